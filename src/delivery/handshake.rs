//! A connection to an endpoint and, with https, a TLS handshake: whether it is there and what its certificate is like. No request is
//! sent. Only addresses that have passed the guard are connected to.
//!
//! The certificate is judged as the HTTP client judges it (the platform's verifier, and `network.ca_file`), but one that is refused
//! does not end the handshake: it is what is to be told.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::lookup::Resolver;
use super::tls::Trust;

/// The certificate that an endpoint showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// When it expires, in seconds since 1970.
    pub expires_at: i64,
    /// Why the HTTP client would refuse it.
    pub refused: Option<String>,
}

/// Makes handshakes.
#[derive(Debug)]
pub struct Handshakes {
    resolver: Resolver,
    crypto: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
}

impl Handshakes {
    /// With endpoints that `resolver` lets through. `Err` says what is wrong with the issuers that are trusted.
    pub fn new(resolver: Resolver, trust: &Trust) -> Result<Handshakes, String> {
        let crypto = Arc::new(provider::default_provider());
        let verifier = Verifier::new_with_extra_roots(trust.roots().iter().cloned(), Arc::clone(&crypto));
        let verifier = verifier.map_err(|e| format!("the issuers that are trusted cannot be used: {e}"))?;
        Ok(Handshakes { resolver, crypto, verifier: Arc::new(verifier) })
    }

    /// Connects to where `url` leads, and ends the connection. `None` without TLS. `Err` says why there is no connection.
    pub async fn look(&self, url: &Url) -> Result<Option<Shown>, String> {
        let stream = connect(&self.resolver.places(url).await?).await?;
        if url.scheme() != "https" {
            return Ok(None);
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| "its host is no name that TLS can verify".to_owned())?;
        let looking = Arc::new(Looking { verifier: Arc::clone(&self.verifier), seen: Mutex::default() });
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.crypto))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS cannot be configured: {e}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&looking) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        match (looking.seen(), shaken) {
            (Some(seen), _) => Ok(Some(seen)),
            (None, Ok(_)) => Err("it showed no certificate that can be read".to_owned()),
            (None, Err(error)) => Err(format!("TLS failed: {error}")),
        }
    }
}

/// The first address that answers.
async fn connect(places: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut last = io::Error::other("its name has no address");
    for place in places {
        match TcpStream::connect(place).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last.to_string())
}

/// Notes what the verifier says of the certificate, and goes on.
#[derive(Debug)]
struct Looking {
    verifier: Arc<Verifier>,
    seen: Mutex<Option<Shown>>,
}

impl Looking {
    fn seen(&self) -> Option<Shown> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, now);
        if let Ok(parsed) = Certificate::from_der(certificate) {
            let expires_at = parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Shown {
                expires_at: i64::try_from(expires_at).unwrap_or(i64::MAX),
                refused: verdict.err().map(|error| error.to_string()),
            });
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
