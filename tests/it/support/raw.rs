//! A server that speaks no HTTP but what a test writes into its socket, and a TLS server with whatever certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A connection of a client.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A listening server; it ends with the test's runtime.
pub(crate) struct Raw {
    pub(crate) addr: SocketAddr,
    connections: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

/// A connection whose request has been read.
pub(crate) struct Peer {
    stream: Box<dyn Stream>,
    written: Arc<AtomicU64>,
    /// The request's head, in lower case.
    pub(crate) head: String,
}

impl Peer {
    /// Writes; false when the client is gone.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        let is_there = self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok();
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        is_there
    }

    /// Keeps the connection open until the client is gone.
    pub(crate) async fn hold(&mut self) {
        let mut rest = [0; 1024];
        while self.stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    }
}

impl Raw {
    /// Listens on 127.0.0.1.
    pub(crate) async fn start<F: Future<Output = ()> + Send>(
        script: impl FnOnce(Peer) -> F + Clone + Send + 'static,
    ) -> Raw {
        Raw::start_at((Ipv4Addr::LOCALHOST, 0).into(), None, script).await
    }

    /// Listens there, with TLS if it has some.
    pub(crate) async fn start_at<F: Future<Output = ()> + Send>(
        addr: SocketAddr,
        tls: Option<ServerConfig>,
        script: impl FnOnce(Peer) -> F + Clone + Send + 'static,
    ) -> Raw {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let (connections, written) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let raw = Raw { addr, connections: Arc::clone(&connections), written: Arc::clone(&written) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (written, script, acceptor) = (Arc::clone(&written), script.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let mut stream: Box<dyn Stream> = match acceptor {
                        None => Box::new(stream),
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    if let Some(head) = read_request(&mut stream).await {
                        script(Peer { stream, written, head }).await;
                    }
                });
            }
        });
        raw
    }

    /// Its URL by address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    /// How many connections have been made.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many bytes have been written to clients.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Reads one request with a `content-length`; `None` when the client went away before.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut more = [0; 4096];
        let n = stream.read(&mut more).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&more[..n]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if bytes.len() >= head.len() + 4 + length.unwrap_or(0) {
            return Some(head.to_owned());
        }
    }
}

/// An issuer of certificates for tests.
pub(crate) struct Issuer(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
pub(crate) struct Pem {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Issuer {
    pub(crate) fn new(name: &str) -> Issuer {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Issuer(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, after `change`.
    pub(crate) fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pem {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Pem { certificate, key: key.serialize_pem() }
    }
}

/// A server with this certificate, which asks clients for one of `clients` if there is such an issuer.
pub(crate) fn server(pem: &Pem, clients: Option<&Issuer>) -> ServerConfig {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(issuer) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(issuer.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(pem.certificate.as_bytes()).unwrap()];
    builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap()).unwrap()
}

/// 127.0.0.`n`: this machine under another address.
pub(crate) fn loopback(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, n).into()
}
