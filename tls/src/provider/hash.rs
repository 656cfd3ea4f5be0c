//! Hashes, and the message authentication codes that keys are derived with.

use alloc::boxed::Box;
use core::marker::PhantomData;
use hmac::{KeyInit, Mac, SimpleHmac};
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::hmac::{Hmac, Key, Tag};
use sha2::digest::Output as Digested;
use sha2::digest::block_api::BlockSizeUser;
use sha2::{Digest, Sha256, Sha384};

/// SHA-256.
pub static SHA256: Hashes<Sha256> = Hashes(HashAlgorithm::SHA256, PhantomData);

/// SHA-384.
pub static SHA384: Hashes<Sha384> = Hashes(HashAlgorithm::SHA384, PhantomData);

/// HMAC with SHA-256.
pub static HMAC_SHA256: Hashes<Sha256> = Hashes(HashAlgorithm::SHA256, PhantomData);

/// HMAC with SHA-384.
pub static HMAC_SHA384: Hashes<Sha384> = Hashes(HashAlgorithm::SHA384, PhantomData);

/// A hash, by its name.
pub struct Hashes<H>(HashAlgorithm, PhantomData<H>);

/// A hash that is being computed.
struct Hashing<H>(H);

/// A key of an HMAC.
struct HmacKey<H: Digest + BlockSizeUser>(SimpleHmac<H>);

fn output(digest: &[u8]) -> Output {
    Output::new(digest)
}

impl<H: Digest + Clone + Send + Sync + 'static> Hash for Hashes<H> {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Hashing(H::new()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        output(&H::digest(data))
    }

    fn output_len(&self) -> usize {
        <H as Digest>::output_size()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0
    }
}

impl<H: Digest + Clone + Send + Sync + 'static> Context for Hashing<H> {
    fn fork_finish(&self) -> Output {
        output(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Hashing(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        output(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

impl<H: Digest + BlockSizeUser + Clone + Send + Sync + 'static> Hmac for Hashes<H> {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        let hmac = SimpleHmac::new_from_slice(key);
        Box::new(HmacKey::<H>(hmac.expect("a key of any length will do")))
    }

    fn hash_output_len(&self) -> usize {
        <H as Digest>::output_size()
    }
}

impl<H: Digest + BlockSizeUser + Clone + Send + Sync> Key for HmacKey<H> {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut hmac = self.0.clone();
        hmac.update(first);
        middle.iter().for_each(|part| hmac.update(part));
        hmac.update(last);
        let code: Digested<H> = hmac.finalize().into_bytes();
        Tag::new(&code)
    }

    fn tag_len(&self) -> usize {
        <H as Digest>::output_size()
    }
}
