//! Fuzz targets: each is a function of bytes that panics where the project breaks a promise.
//!
//! ```
//! bulkhead_fuzz::target(b"ram:disk0,sector-size=4096");
//! bulkhead_fuzz::requests(&[0; 113]);
//! ```
//!
//! `fuzz_targets/` hands them to libFuzzer (`cargo lab fuzz`); the smoke test in `tests/` runs them on the stable
//! toolchain. Read next: [`seeds`], where their inputs start from.

mod archive;
mod backend;
mod blkfront;
mod heap;
mod nbd;
mod net;
mod nodes;
mod nvme;
mod operator;
mod requests;
mod ring;
pub mod seeds;
mod target;
mod tls;
mod upgrade;
mod virtio;
mod volumes;
mod xenstore;

pub use archive::archive;
pub use backend::backend;
pub use blkfront::blkfront;
pub use nbd::nbd;
pub use net::net;
pub use nodes::{frontend, toolstack};
pub use nvme::nvme;
pub use operator::operator;
pub use requests::requests;
pub use ring::ring;
pub use target::target;
pub use tls::tls;
pub use upgrade::upgrade;
pub use virtio::virtio;
pub use volumes::volumes;
pub use xenstore::xenstore;

/// Fuzzes a whole driver domain. The input is a script for guests, toolstack and xenstored around a running backend.
///
/// # Panics
/// If the backend breaks any rule.
pub fn life(script: &[u8]) {
    let _heap = heap::limited(64 << 20);
    bulkhead_blkback_testkit::play(script);
}

/// A target: its name, which is that of its folder of seeds, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 18] = [
    ("requests", requests),
    ("ring", ring),
    ("xenstore", xenstore),
    ("target", target),
    ("archive", archive),
    ("volumes", volumes),
    ("frontend", frontend),
    ("toolstack", toolstack),
    ("operator", operator),
    ("backend", backend),
    ("life", life),
    ("blkfront", blkfront),
    ("nvme", nvme),
    ("nbd", nbd),
    ("net", net),
    ("tls", tls),
    ("upgrade", upgrade),
    ("virtio", virtio),
];
