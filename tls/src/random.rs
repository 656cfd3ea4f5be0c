//! Random numbers, from whoever the caller trusts with that.

use core::fmt;
use rand_core::{TryCryptoRng, TryRng};

/// A source of random numbers that nobody else can guess: keys are made of them.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills `bytes`, or says that it cannot.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The source of random numbers does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there are no random numbers")
    }
}

impl core::error::Error for NoRandomness {}

/// A source, as rustls and RustCrypto take it.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub &'static dyn Random);

impl TryRng for Source {
    type Error = NoRandomness;

    fn try_next_u32(&mut self) -> Result<u32, NoRandomness> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, NoRandomness> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.0.fill(bytes)
    }
}

impl TryCryptoRng for Source {}
