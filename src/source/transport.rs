//! The way to the server: TCP or a Unix socket, with TLS as `sslmode` asks for. One negotiation for both kinds of
//! connection, replication and SQL, so that they cannot differ in what they verify.
//!
//! Sources: PostgreSQL manual, "SSL Session Encryption"; RFC 5929 (`tls-server-end-point`).

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use rustix::net::sockopt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::{Decode, asn1::ObjectIdentifier};

use super::conn_info::{ConnInfo, Host, SslMode};
use crate::error::{Error, Kind, Result};

/// `SSLRequest` (PostgreSQL manual, "Message Formats"): length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A connected socket, encrypted or not.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects and negotiates TLS. Authentication comes after this.
    pub(crate) async fn connect(info: &ConnInfo) -> Result<Transport> {
        let host = match &info.host {
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", info.port));
                return UnixStream::connect(&path)
                    .await
                    .map(Transport::Unix)
                    .map_err(|e| unreachable(info, &e));
            }
            Host::Tcp(host) => host,
        };
        let stream =
            TcpStream::connect((host.as_str(), info.port)).await.map_err(|e| unreachable(info, &e))?;
        stream.set_nodelay(true).map_err(|e| unreachable(info, &e))?;
        notice_silence(&stream).map_err(|e| unreachable(info, &e))?;
        if info.ssl_mode == SslMode::Disable {
            return Ok(Transport::Tcp(stream));
        }
        encrypt(stream, host, info).await
    }

    /// `tls-server-end-point` channel-binding data (RFC 5929 §4.1); `None` without TLS.
    pub(crate) fn channel_binding(&self) -> Option<Vec<u8>> {
        let Transport::Tls(tls) = self else { return None };
        let (_, session) = tls.get_ref();
        end_point(session.peer_certificates()?.first()?)
    }

    /// When the server's certificate expires, in seconds since 1970; `None` without TLS.
    pub(super) fn certificate_expires_at(&self) -> Option<i64> {
        let Transport::Tls(tls) = self else { return None };
        let (_, session) = tls.get_ref();
        let certificate = Certificate::from_der(session.peer_certificates()?.first()?).ok()?;
        i64::try_from(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs()).ok()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }
}

/// A server that is gone without a word (a firewall that forgot the connection, a host without power) is noticed within this,
/// and not after the quarter of an hour that the kernel would go on trying.
const SILENCE: Duration = Duration::from_secs(30);

/// `TCP_USER_TIMEOUT` bounds how long what we sent may stay unacknowledged; keepalives make sure that something is sent also
/// while we only wait (RFC 5482, RFC 9293 §3.8.4).
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let probes = 3;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE * 2 / 3 / probes)?;
    sockopt::set_tcp_keepcnt(stream, probes)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

fn unreachable(info: &ConnInfo, error: &io::Error) -> Error {
    Error::new(
        Kind::DatabaseUnreachable,
        format!(
            "the database {} cannot be reached: {error}: check that it runs and that database.url is right",
            info.shown()
        ),
    )
}

async fn encrypt(mut stream: TcpStream, host: &str, info: &ConnInfo) -> Result<Transport> {
    // Before anything is asked: a root certificate that cannot be read is wrong whatever the server says.
    let config = client_config(info)?;
    stream.write_all(&SSL_REQUEST).await.map_err(|e| unreachable(info, &e))?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(|e| unreachable(info, &e))?;
    match answer {
        [b'S'] => {}
        [b'N'] if info.ssl_mode == SslMode::Prefer => return Ok(Transport::Tcp(stream)),
        [b'N'] => {
            return Err(Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "the server {} has no TLS and sslmode asks for it: turn ssl on in postgresql.conf, or use sslmode=disable",
                    info.shown()
                ),
            ));
        }
        _ => {
            return Err(Error::new(
                Kind::DatabaseRefuses,
                format!("{} does not speak PostgreSQL's protocol: check host and port", info.shown()),
            ));
        }
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::config(format!("database.url: {host:?} is no host name that TLS can verify")))?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| {
        Error::new(
            Kind::DatabaseRefuses,
            format!(
                "TLS with the database {} failed: {e}: give the issuer's certificate as sslrootcert, or correct the host name",
                info.shown()
            ),
        )
    })?;
    Ok(Transport::Tls(Box::new(tls)))
}

fn client_config(info: &ConnInfo) -> Result<ClientConfig> {
    let crypto = Arc::new(provider::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match info.ssl_mode {
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Arc::new(Unverified(Arc::clone(&crypto))),
        SslMode::VerifyCa | SslMode::VerifyFull => Arc::new(verified(info, &crypto)?),
    };
    ClientConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
        .map_err(|e| Error::internal(format!("TLS cannot be configured: {e}")))
}

fn verified(info: &ConnInfo, crypto: &Arc<CryptoProvider>) -> Result<Verified> {
    let trusted = match &info.ssl_root_cert {
        Some(path) => read_certificates(path)?,
        None => Vec::new(),
    };
    let mut roots = RootCertStore::empty();
    if info.ssl_root_cert.is_some() {
        for certificate in &trusted {
            roots
                .add(certificate.clone())
                .map_err(|e| Error::config(format!("sslrootcert cannot be used: {e}")))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(crypto)).build();
    let chain = chain.map_err(|e| {
        Error::config(format!(
            "no issuer is trusted ({e}): give the server's issuer as sslrootcert in database.url"
        ))
    })?;
    Ok(Verified { chain, trusted, checks_name: info.ssl_mode == SslMode::VerifyFull })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |what: String| {
        Error::config(format!(
            "sslrootcert {} cannot be used: {what}: give a readable PEM file with the issuer's certificate",
            path.display()
        ))
    };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
    if certificates.is_empty() { Err(bad("there is no certificate in it".into())) } else { Ok(certificates) }
}

/// `sslmode=require`: encrypted, not verified. The handshake's signatures are still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `sslmode=verify-ca` and `verify-full`. A certificate that is itself in the root file is trusted as it is, as libpq does:
/// servers often have one that signed itself, which a strict verifier refuses as an end entity.
#[derive(Debug)]
struct Verified {
    chain: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    checks_name: bool,
}

impl Verified {
    fn verify_trusted(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let validity = Certificate::from_der(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?
            .tbs_certificate
            .validity;
        let now = now.as_secs();
        if now < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        if self.checks_name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.trusted.iter().any(|trusted| trusted == certificate) {
            return self.verify_trusted(certificate, name, now);
        }
        match self.chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The chain is verified before the name is.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The certificate's hash with the hash function of its own signature, MD5 and SHA-1 replaced by SHA-256 (RFC 5929 §4.1).
/// `None` for signatures without one hash function (Ed25519): then SCRAM goes without channel binding.
fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    const fn oid(text: &str) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(text)
    }
    const SHA256: [ObjectIdentifier; 4] = [
        oid("1.2.840.113549.1.1.4"),  // md5WithRSAEncryption
        oid("1.2.840.113549.1.1.5"),  // sha1WithRSAEncryption
        oid("1.2.840.113549.1.1.11"), // sha256WithRSAEncryption
        oid("1.2.840.10045.4.3.2"),   // ecdsa-with-SHA256
    ];
    const SHA384: [ObjectIdentifier; 2] = [oid("1.2.840.113549.1.1.12"), oid("1.2.840.10045.4.3.3")];
    const SHA512: [ObjectIdentifier; 2] = [oid("1.2.840.113549.1.1.13"), oid("1.2.840.10045.4.3.4")];
    let signature = Certificate::from_der(der).ok()?.signature_algorithm.oid;
    let algorithm = if SHA256.contains(&signature) {
        &digest::SHA256
    } else if SHA384.contains(&signature) {
        &digest::SHA384
    } else if SHA512.contains(&signature) {
        &digest::SHA512
    } else {
        return None;
    };
    Some(digest::digest(algorithm, der).as_ref().to_vec())
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(s) => Pin::new(s).poll_flush(cx),
            Transport::Unix(s) => Pin::new(s).poll_flush(cx),
            Transport::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Transport::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Transport::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
