//! Two domains that share pages, as the interface guide of Xen 3.0 describes it, each example in a module.
//!
//! ```text
//!   domain A                     xenstore                      domain B
//!   grants a page and a port ──► data/…/{ring-ref,port} ──►    maps the page, binds the port
//!   Channel::offer               (B may read them)             Channel::connect
//! ```
//!
//! The domains find each other by one node, `data/peer`, which the operator writes for each. Everything is
//! generic over [`Hypervisor`](bulkhead_xen::Hypervisor): the binaries boot on Xen, the tests run both domains
//! in the simulated one.
//!
//! Read next: [`channel`], the ring between the two domains, then [`echo`], [`batch`] and [`flip`].

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(
    unsafe_code,
    reason = "grants pages, and looks at those of the other domain"
)]
pub mod batch;
#[cfg(feature = "unikernel")]
#[allow(unsafe_code, reason = "takes the domain's xenstore ring")]
pub mod boot;
#[allow(unsafe_code, reason = "shares a page")]
pub mod channel;
#[allow(unsafe_code, reason = "passes on what its caller promises")]
pub mod counting;
pub mod echo;
#[allow(unsafe_code, reason = "gives pages away")]
pub mod flip;
pub mod index;
pub mod message;
#[allow(unsafe_code, reason = "reads and writes shared pages")]
pub mod pages;
pub mod peer;

use alloc::string::String;
use core::fmt;

/// The reason why an example ended early, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl Failure {
    /// Returns a failure of something, for the reason that `error` gives.
    pub fn of(what: &str, error: impl fmt::Display) -> Failure {
        Failure(alloc::format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Failure {}

impl From<bulkhead_xenstore_client::Error> for Failure {
    fn from(error: bulkhead_xenstore_client::Error) -> Failure {
        Failure(alloc::format!("{error}"))
    }
}

/// The role of this domain of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Grants the page of the ring, and asks.
    Granter,
    /// Maps it, and answers.
    Mapper,
}
