//! Certificates and keys as they come in files: PEM, or DER.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The tag that every certificate and every key in DER begins with, a sequence's. No text begins with the two bytes of a
/// longer one.
const SEQUENCE: u8 = 0x30;

/// Returns whether a file is DER: a sequence whose length needs more than a byte.
fn is_der(file: &[u8]) -> bool {
    matches!(file, [SEQUENCE, 0x81..=0x84, ..])
}

/// Returns the certificates of a file, of which there is one in DER, and any number in PEM.
pub fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if is_der(file) {
        return Ok(alloc::vec![CertificateDer::from(file.to_vec())]);
    }
    CertificateDer::pem_slice_iter(file)
        .map(|certificate| certificate.map_err(|error| error.to_string()))
        .collect()
}

/// Returns the key of a file. The error says what was expected.
pub fn key(file: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if is_der(file) {
        return PrivateKeyDer::try_from(file.to_vec()).map_err(ToString::to_string);
    }
    PrivateKeyDer::from_pem_slice(file).map_err(|error| {
        let encrypted = b"ENCRYPTED";
        match file.windows(encrypted.len()).any(|it| it == encrypted) {
            true => "it is encrypted, expected one without a passphrase".to_string(),
            false => error.to_string(),
        }
    })
}
