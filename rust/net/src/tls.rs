//! TLS of a node: what its port shows to callers, and what its links show to other nodes.
//!
//! The cluster's authority is the only one that is trusted. A caller may show a certificate, and one that
//! it shows must be good; a node that is connected to must have the name that is asked for. TLS 1.3 only,
//! no tickets and no stored sessions: who calls is proved anew with each connection.

use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const HTTP_2: &[u8] = b"h2";

/// Certificates and key of a node, ready for use.
#[derive(Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// From PEM: the authority's certificate, the node's own, and its key.
    ///
    /// # Errors
    /// A text is no PEM, or key and certificate don't fit together.
    pub fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(one_certificate(authority)?).map_err(io::Error::other)?;
        let roots = Arc::new(roots);
        let chain = vec![one_certificate(certificate)?];
        let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(io::Error::other)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(io::Error::other)?;
        server.alpn_protocols = vec![HTTP_2.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(io::Error::other)?;
        client.alpn_protocols = vec![HTTP_2.to_vec()];
        client.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn one_certificate(pem: &[u8]) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem).map_err(io::Error::other)
}

/// Certificates that can be replaced while the node runs; connections that are open stay as they are.
#[derive(Debug)]
pub struct SharedTls(RwLock<Tls>);

impl SharedTls {
    /// With these to begin with.
    pub fn new(tls: Tls) -> Self {
        Self(RwLock::new(tls))
    }

    /// Use these from now on.
    pub fn set(&self, tls: Tls) {
        *self.0.write() = tls;
    }

    /// Take a caller's socket: the stream, and the URI in the certificate it has shown (empty when
    /// that has none).
    pub(crate) async fn accept(
        &self,
        socket: TcpStream,
    ) -> io::Result<(server::TlsStream<TcpStream>, Option<String>)> {
        let acceptor = TlsAcceptor::from(self.0.read().server.clone());
        let stream = acceptor.accept(socket).await?;
        let connection = stream.get_ref().1;
        require_http_2(connection.alpn_protocol())?;
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let uri = shown.map(|certificate| uri_of(certificate).unwrap_or_default());
        Ok((stream, uri))
    }

    /// Connect to the node of that name.
    pub(crate) async fn connect(
        &self,
        node: &str,
        socket: TcpStream,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let connector = TlsConnector::from(self.0.read().client.clone());
        let name = ServerName::try_from(node_dns(node)).map_err(io::Error::other)?;
        let stream = connector.connect(name, socket).await?;
        require_http_2(stream.get_ref().1.alpn_protocol())?;
        Ok(stream)
    }
}

/// The DNS name in a node's certificate that other nodes ask for.
fn node_dns(node: &str) -> String {
    format!("{node}.node.spacegrid")
}

fn require_http_2(protocol: Option<&[u8]>) -> io::Result<()> {
    if protocol == Some(HTTP_2) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the other side does not speak HTTP/2"))
}

fn uri_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_uri_names().next().map(str::to_owned)
}
