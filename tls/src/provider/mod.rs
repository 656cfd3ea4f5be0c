//! What TLS computes with: RustCrypto's ciphers, hashes, curves and signatures, put together for rustls.
//!
//! The suites are those with forward secrecy and authenticated encryption that rustls itself has.

mod aead;
mod exchange;
mod hash;
mod sign;
mod suites;
mod verify;

use crate::random::{Random, Source};
use alloc::boxed::Box;
use rustls::NamedGroup;
use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom};

/// Returns the provider. rustls wants some of its parts to live for ever, so that each call costs a few bytes that are
/// never given back: a domain does it once.
pub fn provider(random: &'static dyn Random) -> CryptoProvider {
    let curve = |name| -> &'static exchange::Curve {
        Box::leak(Box::new(exchange::Curve { name, random }))
    };
    CryptoProvider {
        cipher_suites: suites::all(),
        kx_groups: [
            NamedGroup::X25519,
            NamedGroup::secp256r1,
            NamedGroup::secp384r1,
        ]
        .map(|name| curve(name) as _)
        .to_vec(),
        signature_verification_algorithms: verify::ALGORITHMS,
        secure_random: Box::leak(Box::new(Source(random))),
        key_provider: Box::leak(Box::new(sign::Keys(random))),
    }
}

impl SecureRandom for Source {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        self.0.fill(bytes).map_err(|_| GetRandomFailed)
    }
}
