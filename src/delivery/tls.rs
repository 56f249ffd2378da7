//! TLS to endpoints: who is trusted beside the system's issuers, who we are, and the one way not to verify.
//!
//! The library's TLS is rustls on aws-lc-rs; verification is the platform's (system trust store). Private keys are held as
//! parsed identities and never shown.

use std::fmt;

use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Issuers that are trusted beside the system's. Default: none.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    certificates: Vec<Certificate>,
    /// The same, for a handshake that is not the HTTP client's.
    roots: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// The certificates of a PEM file. `Err` says what is wrong with it.
    pub fn from_pem(pem: &[u8]) -> Result<Trust, String> {
        let certificates = Certificate::from_pem_bundle(pem).map_err(|_| "it is no PEM file".to_owned())?;
        if certificates.is_empty() {
            return Err("there is no certificate in it".into());
        }
        let roots = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
        let trust = Trust { certificates, roots };
        // Nothing else looks into the certificates before the client is made.
        match trust.apply(reqwest::Client::builder()).build() {
            Ok(_) => Ok(trust),
            Err(_) => Err("a certificate in it cannot be read".into()),
        }
    }

    fn apply(&self, builder: ClientBuilder) -> ClientBuilder {
        if self.certificates.is_empty() {
            builder
        } else {
            builder.tls_certs_merge(self.certificates.iter().cloned())
        }
    }

    pub(super) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

/// How TLS is made with one endpoint.
#[derive(Clone)]
pub struct Tls {
    identity: Option<Identity>,
    verify: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Tls { identity: None, verify: true }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tls { identity, verify } = self;
        f.debug_struct("Tls").field("identity", &identity.is_some()).field("verify", verify).finish()
    }
}

impl Tls {
    /// With a client certificate (its chain may follow it) and its key, both PEM. `Err` says what is wrong.
    pub fn with_identity(self, certificate: &[u8], key: &[u8]) -> Result<Tls, String> {
        let pem = [key, b"\n", certificate].concat();
        let identity = Identity::from_pem(&pem)
            .map_err(|_| "they do not hold a certificate and its private key as PEM".to_owned())?;
        let tls = Tls { identity: Some(identity), ..self };
        // Whether the two belong together is only seen when a client is made. This one verifies nothing, and is never used.
        let probe = tls.clone().with_verify(false);
        match probe.apply(reqwest::Client::builder(), &Trust::default()).build() {
            Ok(_) => Ok(tls),
            Err(_) => {
                Err("the key does not belong to the certificate, or is of no kind that TLS knows".into())
            }
        }
    }

    /// Whether the endpoint's certificate is verified.
    #[must_use]
    pub fn with_verify(self, verify: bool) -> Tls {
        Tls { verify, ..self }
    }

    /// Whether the endpoint's certificate is verified.
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// Whether it is like everybody's, so that the common client will do.
    pub(super) fn is_default(&self) -> bool {
        self.verify && self.identity.is_none()
    }

    pub(super) fn apply(&self, builder: ClientBuilder, trust: &Trust) -> ClientBuilder {
        let builder = match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        };
        if self.verify { trust.apply(builder) } else { builder.tls_danger_accept_invalid_certs(true) }
    }
}
