//! From an accepted socket to a stream of bytes, and who is at its other end.

use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A stream of bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// What an acceptor makes of a socket.
pub(crate) struct Accepted {
    pub(crate) stream: Box<dyn Duplex>,
    pub(crate) identity: Identity,
    pub(crate) rights: Rights,
}

/// Who calls, for the whole life of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// How the name is known: `none` where nothing was asked.
    pub(crate) kind: &'static str,
    /// Name of the caller, empty where nothing was asked.
    pub(crate) name: String,
}

/// What a connection may do here. What it may ask of the server behind is decided there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Send frames as a client.
    pub(crate) frames: bool,
    /// Send frames as another node.
    pub(crate) links: bool,
}

/// Makes streams of sockets.
pub(crate) trait Acceptor {
    /// Take a socket; the caller bounds the time.
    fn accept(
        &self,
        socket: TcpStream,
    ) -> Pin<Box<dyn Future<Output = io::Result<Accepted>> + 'static>>;
}

/// No encryption and no question who calls.
pub(crate) struct Plain;

impl Acceptor for Plain {
    fn accept(
        &self,
        socket: TcpStream,
    ) -> Pin<Box<dyn Future<Output = io::Result<Accepted>> + 'static>> {
        let identity = Identity { kind: "none", name: String::new() };
        let rights = Rights { frames: true, links: true };
        Box::pin(async move { Ok(Accepted { stream: Box::new(socket), identity, rights }) })
    }
}
