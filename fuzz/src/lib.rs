//! Fuzz targets: each is a function of bytes that panics where the project breaks a promise.
//!
//! ```
//! bulkhead_fuzz::target(b"ram:disk0,sector-size=4096");
//! bulkhead_fuzz::requests(&[0; 113]);
//! ```
//!
//! `fuzz_targets/` hands them to cargo-fuzz; the smoke test in `tests/` runs them on the stable
//! toolchain. Read next: [`seeds`], where their inputs start from.

mod archive;
mod requests;
mod ring;
pub mod seeds;
mod target;
// The machine that the backend's own tests use.
#[path = "../../blkback/tests/world/mod.rs"]
mod world;
mod xenstore;

pub use archive::archive;
pub use requests::requests;
pub use ring::ring;
pub use target::target;
pub use xenstore::xenstore;

/// A script for guests, toolstack and xenstored around a running backend.
pub fn backend(script: &[u8]) {
    world::play(script);
}

/// A target: its name, which is that of its folder of seeds, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("requests", requests),
    ("ring", ring),
    ("xenstore", xenstore),
    ("target", target),
    ("archive", archive),
    ("backend", backend),
];
