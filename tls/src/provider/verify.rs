//! Signatures of servers and of authorities, which are only verified here.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::signature::{SignatureEncoding, Verifier};
use rsa::PublicKey as RsaPublicKey;
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::{pkcs1v15, pss};
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// What is accepted. The order of a scheme's algorithms is that in which they are tried.
pub static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        &ECDSA_P256_SHA256,
        &ECDSA_P256_SHA384,
        &ECDSA_P384_SHA256,
        &ECDSA_P384_SHA384,
        &ED25519,
        &RSA_PKCS1_SHA256,
        &RSA_PKCS1_SHA384,
        &RSA_PKCS1_SHA512,
        &RSA_PSS_SHA256,
        &RSA_PSS_SHA384,
        &RSA_PSS_SHA512,
    ],
    mapping: &[
        // In TLS 1.2, the hash does not say which curve it is.
        (
            SignatureScheme::ECDSA_NISTP384_SHA384,
            &[&ECDSA_P384_SHA384, &ECDSA_P256_SHA384],
        ),
        (
            SignatureScheme::ECDSA_NISTP256_SHA256,
            &[&ECDSA_P256_SHA256, &ECDSA_P384_SHA256],
        ),
        (SignatureScheme::ED25519, &[&ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[&RSA_PSS_SHA512]),
        (SignatureScheme::RSA_PSS_SHA384, &[&RSA_PSS_SHA384]),
        (SignatureScheme::RSA_PSS_SHA256, &[&RSA_PSS_SHA256]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[&RSA_PKCS1_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[&RSA_PKCS1_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[&RSA_PKCS1_SHA256]),
    ],
};

/// Verifies a signature by a key: `verify(key, message, signature)`.
type Verify = fn(&[u8], &[u8], &[u8]) -> Option<()>;

/// An algorithm: of which key, of which signature, and what verifies it.
#[derive(Debug)]
struct Algorithm {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }

    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.verify)(key, message, signature).ok_or(InvalidSignature)
    }
}

macro_rules! algorithms {
    ($($name:ident: $key:ident, $signature:ident, $verify:expr;)*) => {
        $(static $name: Algorithm = Algorithm {
            key: alg_id::$key,
            signature: alg_id::$signature,
            verify: $verify,
        };)*
    };
}

algorithms! {
    ECDSA_P256_SHA256: ECDSA_P256, ECDSA_SHA256, p256_with::<Sha256>;
    ECDSA_P256_SHA384: ECDSA_P256, ECDSA_SHA384, p256_with::<Sha384>;
    ECDSA_P384_SHA256: ECDSA_P384, ECDSA_SHA256, p384_with::<Sha256>;
    ECDSA_P384_SHA384: ECDSA_P384, ECDSA_SHA384, p384_with::<Sha384>;
    ED25519: ED25519, ED25519, ed25519;
    RSA_PKCS1_SHA256: RSA_ENCRYPTION, RSA_PKCS1_SHA256, |key, message, signature| {
        by_rsa(&pkcs1v15::VerifyingKey::<Sha256>::new(rsa_key(key)?), message, signature)
    };
    RSA_PKCS1_SHA384: RSA_ENCRYPTION, RSA_PKCS1_SHA384, |key, message, signature| {
        by_rsa(&pkcs1v15::VerifyingKey::<Sha384>::new(rsa_key(key)?), message, signature)
    };
    RSA_PKCS1_SHA512: RSA_ENCRYPTION, RSA_PKCS1_SHA512, |key, message, signature| {
        by_rsa(&pkcs1v15::VerifyingKey::<Sha512>::new(rsa_key(key)?), message, signature)
    };
    RSA_PSS_SHA256: RSA_ENCRYPTION, RSA_PSS_SHA256, |key, message, signature| {
        by_rsa(&pss::VerifyingKey::<Sha256>::new(rsa_key(key)?), message, signature)
    };
    RSA_PSS_SHA384: RSA_ENCRYPTION, RSA_PSS_SHA384, |key, message, signature| {
        by_rsa(&pss::VerifyingKey::<Sha384>::new(rsa_key(key)?), message, signature)
    };
    RSA_PSS_SHA512: RSA_ENCRYPTION, RSA_PSS_SHA512, |key, message, signature| {
        by_rsa(&pss::VerifyingKey::<Sha512>::new(rsa_key(key)?), message, signature)
    };
}

fn p256_with<H: Digest>(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
    let signature = p256::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&H::digest(message), &signature).ok()
}

fn p384_with<H: Digest>(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
    let signature = p384::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&H::digest(message), &signature).ok()
}

fn ed25519(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = ed25519_dalek::VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
    let signature = ed25519_dalek::Signature::from_slice(signature).ok()?;
    key.verify_strict(message, &signature).ok()
}

/// The bits that an RSA key has at least: fewer are within reach of those who can afford it (NIST SP 800-131A).
const LEAST_RSA: u32 = 2048;

/// Reads an RSA key. The crate accepts no more than 4096 bits, and no exponent that would take long.
fn rsa_key(key: &[u8]) -> Option<RsaPublicKey> {
    use rsa::traits::PublicKeyParts;
    let key = RsaPublicKey::from_pkcs1_der(key).ok()?;
    (key.n().bit_width() >= LEAST_RSA).then_some(key)
}

fn by_rsa<S: SignatureEncoding>(
    key: &impl Verifier<S>,
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    let signature = S::try_from(signature).ok()?;
    key.verify(message, &signature).ok()
}
