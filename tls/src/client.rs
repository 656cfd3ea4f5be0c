//! The client: whom it trusts, and what it shows of itself.

use crate::clock::{Clock, ClockProvider};
use crate::encoding;
use crate::error::{ConfigError, TlsError};
use crate::handshake::handshake;
use crate::provider::provider;
use crate::random::Random;
use crate::verifier::Verifier;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_stream::{Ended, StartTlsError, StartingTls, Stream, Tls};
use core::sync::atomic::{AtomicBool, Ordering};
use rustls::client::{ResolvesClientCert, Resumption, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};

/// A certificate of the domain's own and the key of it, as PEM or DER.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// The certificate, and those of authorities between it and one that the server knows.
    pub certificates: &'a [u8],
    /// The key.
    pub key: &'a [u8],
}

/// The settings that connections to servers have in common.
pub struct TlsClient {
    config: Arc<ClientConfig>,
}

impl TlsClient {
    /// Returns a client that trusts servers whose certificates were signed by one of `authorities` (PEM or DER), and
    /// that shows `identity` to servers that ask for it.
    pub fn new(
        authorities: &[u8],
        identity: Option<Identity<'_>>,
        random: &'static dyn Random,
        clock: impl Clock + 'static,
    ) -> Result<TlsClient, ConfigError> {
        let provider = Arc::new(provider(random));
        let clock = Arc::new(ClockProvider(clock));
        let verifier = Arc::new(Verifier::new(roots(authorities)?, provider.clone()));
        let builder = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .expect("the suites are of both versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let certificates = encoding::certificates(identity.certificates)
                    .map_err(ConfigError::Certificate)?;
                if certificates.is_empty() {
                    let expected = "expected -----BEGIN CERTIFICATE-----";
                    return Err(ConfigError::Certificate(expected.to_string()));
                }
                let key = encoding::key(identity.key).map_err(ConfigError::Key)?;
                let built = builder.with_client_auth_cert(certificates, key);
                built.map_err(|error| ConfigError::Key(unfit(&error)))?
            }
        };
        // Connections are few and live long; a session that is kept is a secret that is kept.
        config.resumption = Resumption::disabled();
        Ok(TlsClient {
            config: Arc::new(config),
        })
    }

    /// Returns whether there is a certificate to show to servers that ask for one.
    pub fn has_identity(&self) -> bool {
        self.config.client_auth_cert_resolver.has_certs()
    }

    /// Begins TLS with the server of that name or address.
    pub async fn connect(
        &self,
        stream: Box<dyn Stream>,
        server: &str,
    ) -> Result<Box<dyn Stream>, TlsError> {
        let name = ServerName::try_from(server.to_string());
        let name = name.map_err(|_| TlsError::Name(server.escape_default().to_string()))?;
        let asked = Arc::new(Asked::default());
        let mut config = self.config.clone();
        if !self.has_identity() {
            let config = Arc::make_mut(&mut config);
            config.client_auth_cert_resolver = asked.clone();
        }
        let connection = UnbufferedClientConnection::new(config, name)?;
        let stream = handshake(stream, connection).await;
        stream
            .map(|stream| -> Box<dyn Stream> { Box::new(stream.or_for_want_of(asked.clone())) })
            .map_err(|error| match error {
                TlsError::Ended(ended) => TlsError::Ended(asked.judge(ended)),
                other => other,
            })
    }
}

impl Tls for TlsClient {
    fn start<'a>(&'a self, stream: Box<dyn Stream>, server: &'a str) -> StartingTls<'a> {
        Box::pin(async move {
            let started = self.connect(stream, server).await;
            started.map_err(|error| StartTlsError {
                reason: error.to_string(),
                passes: error.may_pass(),
            })
        })
    }
}

/// A note of whether a server asked for a certificate, of which there is none.
#[derive(Debug, Default)]
pub struct Asked(AtomicBool);

impl Asked {
    /// Returns how a connection ended on which the server has not said anything: some servers just close it if they have
    /// not got what they asked for.
    pub fn judge(&self, ended: Ended) -> Ended {
        match ended {
            Ended::Truncated | Ended::Reset if self.0.load(Ordering::Relaxed) => Ended::NoIdentity,
            other => other,
        }
    }
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Reads the authorities.
fn roots(file: &[u8]) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in encoding::certificates(file).map_err(ConfigError::Authority)? {
        let added = roots.add(certificate);
        added.map_err(|error| ConfigError::Authority(unfit(&error)))?;
    }
    match roots.is_empty() {
        true => Err(ConfigError::NoAuthority),
        false => Ok(roots),
    }
}

fn unfit(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(reason) => reason.clone(),
        rustls::Error::InconsistentKeys(_) => "it is not the one of the certificate".to_string(),
        other => other.to_string(),
    }
}
