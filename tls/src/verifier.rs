//! What a server's certificates are judged by: rustls-webpki, at a bounded cost.
//!
//! rustls-webpki tries every way from a server's certificate to an authority that the names allow. With certificates
//! of authorities that all have one name, these are up to a hundred checks of signatures, between which no other task
//! has a turn. So it is given one way only.

use alloc::sync::Arc;
use alloc::vec::Vec;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use webpki::EndEntityCert;

/// The most authorities between a server's certificate and one that is trusted: private CAs have one or two.
const MOST_BETWEEN: usize = 4;

/// Judges servers' certificates.
#[derive(Debug)]
pub struct Verifier(Arc<WebPkiServerVerifier>);

impl Verifier {
    /// Returns the judge of servers that these authorities vouch for.
    pub fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Verifier {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        // Without lists of what was revoked, there must be an authority, and there is.
        Verifier(builder.build().expect("an authority"))
    }
}

/// Returns the certificates that lead from a server's towards an authority, in their order: of those that have the name
/// wanted next, the first one. What the server sends beside them is of no use.
fn way<'a>(server: &CertificateDer<'_>, sent: &'a [CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    let mut way: Vec<CertificateDer<'a>> = Vec::new();
    let Ok(server) = EndEntityCert::try_from(server) else {
        return way;
    };
    let mut names = Vec::from([server.subject().to_vec()]);
    let mut wanted = server.issuer().to_vec();
    while way.len() < MOST_BETWEEN && !names.contains(&wanted) {
        let read = |der: &'a CertificateDer<'a>| EndEntityCert::try_from(der).ok().zip(Some(der));
        let mut authorities = sent.iter().filter_map(read);
        let Some((authority, der)) = authorities.find(|(it, _)| it.subject() == wanted) else {
            break;
        };
        way.push(CertificateDer::from(der.as_ref()));
        names.push(core::mem::replace(&mut wanted, authority.issuer().to_vec()));
    }
    way
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0
            .verify_server_cert(server, &way(server, sent), name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, server, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, server, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
