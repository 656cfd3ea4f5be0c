//! The cipher suites.

use super::aead::{Counted, Sent};
use super::hash::{HMAC_SHA256, HMAC_SHA384, SHA256, SHA384};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use alloc::vec::Vec;
use chacha20poly1305::ChaCha20Poly1305;
use core::marker::PhantomData;
use rustls::crypto::tls12::PrfUsingHmac;
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::crypto::{CipherSuiteCommon, KeyExchangeAlgorithm};
use rustls::{
    CipherSuite, SignatureScheme, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};

/// The records that AES-GCM may encrypt with one key (RFC 8446, section 5.5), rounded down as rustls does.
const GCM_LIMIT: u64 = 1 << 24;

/// ChaCha20-Poly1305 has no limit that records could reach.
const CHACHA_LIMIT: u64 = u64::MAX;

const ECDSA: &[SignatureScheme] = &[
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
];

const RSA: &[SignatureScheme] = &[
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA256,
];

macro_rules! tls13 {
    ($name:ident, $cipher:ty, $hash:ident, $hmac:ident, $limit:expr) => {
        static $name: Tls13CipherSuite = Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: CipherSuite::$name,
                hash_provider: &$hash,
                confidentiality_limit: $limit,
            },
            hkdf_provider: &HkdfUsingHmac(&$hmac),
            aead_alg: &Counted::<$cipher>(PhantomData),
            quic: None,
        };
    };
}

macro_rules! tls12 {
    ($name:ident, $nonces:ident, $cipher:ty, $sign:expr, $hash:ident, $hmac:ident, $limit:expr) => {
        static $name: Tls12CipherSuite = Tls12CipherSuite {
            common: CipherSuiteCommon {
                suite: CipherSuite::$name,
                hash_provider: &$hash,
                confidentiality_limit: $limit,
            },
            prf_provider: &PrfUsingHmac(&$hmac),
            kx: KeyExchangeAlgorithm::ECDHE,
            sign: $sign,
            aead_alg: &$nonces::<$cipher>(PhantomData),
        };
    };
}

tls13!(
    TLS13_AES_128_GCM_SHA256,
    Aes128Gcm,
    SHA256,
    HMAC_SHA256,
    GCM_LIMIT
);
tls13!(
    TLS13_AES_256_GCM_SHA384,
    Aes256Gcm,
    SHA384,
    HMAC_SHA384,
    GCM_LIMIT
);
tls13!(
    TLS13_CHACHA20_POLY1305_SHA256,
    ChaCha20Poly1305,
    SHA256,
    HMAC_SHA256,
    CHACHA_LIMIT
);
tls12!(
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    Sent,
    Aes128Gcm,
    ECDSA,
    SHA256,
    HMAC_SHA256,
    GCM_LIMIT
);
tls12!(
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    Sent,
    Aes256Gcm,
    ECDSA,
    SHA384,
    HMAC_SHA384,
    GCM_LIMIT
);
tls12!(
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    Counted,
    ChaCha20Poly1305,
    ECDSA,
    SHA256,
    HMAC_SHA256,
    CHACHA_LIMIT
);
tls12!(
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    Sent,
    Aes128Gcm,
    RSA,
    SHA256,
    HMAC_SHA256,
    GCM_LIMIT
);
tls12!(
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    Sent,
    Aes256Gcm,
    RSA,
    SHA384,
    HMAC_SHA384,
    GCM_LIMIT
);
tls12!(
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    Counted,
    ChaCha20Poly1305,
    RSA,
    SHA256,
    HMAC_SHA256,
    CHACHA_LIMIT
);

/// Returns all suites, the one to prefer first: AES with 128 bits is the fastest where the processor knows AES.
pub fn all() -> Vec<SupportedCipherSuite> {
    alloc::vec![
        SupportedCipherSuite::Tls13(&TLS13_AES_128_GCM_SHA256),
        SupportedCipherSuite::Tls13(&TLS13_AES_256_GCM_SHA384),
        SupportedCipherSuite::Tls13(&TLS13_CHACHA20_POLY1305_SHA256),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        SupportedCipherSuite::Tls12(&TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ]
}
