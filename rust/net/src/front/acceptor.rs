//! From an accepted socket to a stream of bytes, and what its other end has proved.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::tls::SharedTls;

/// A stream of bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// What is known of a connection for its whole life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The URI in the certificate that was shown, empty when that has none; `None`: none was shown.
    pub(crate) certificate: Option<String>,
    /// Where the connection comes from.
    pub(crate) remote: String,
}

/// Make a stream of a socket; the caller bounds the time.
pub(crate) async fn accept(
    tls: Option<&Arc<SharedTls>>,
    socket: TcpStream,
) -> io::Result<(Box<dyn Duplex>, Proof)> {
    let remote = socket.peer_addr()?.to_string();
    let Some(tls) = tls else {
        return Ok((Box::new(socket), Proof { certificate: None, remote }));
    };
    let (stream, certificate) = tls.accept(socket).await?;
    Ok((Box::new(stream), Proof { certificate, remote }))
}

/// Connect to a node of that name.
pub(crate) async fn connect(
    tls: Option<&Arc<SharedTls>>,
    node: &str,
    address: &str,
) -> io::Result<Box<dyn Duplex>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(match tls {
        Some(tls) => Box::new(tls.connect(node, socket).await?),
        None => Box::new(socket),
    })
}
