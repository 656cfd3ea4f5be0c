//! `io/console.h`: the console ring.

use core::sync::atomic::AtomicU32;

/// Bytes towards the domain.
pub const IN_BYTES: usize = 1024;
/// Bytes from the domain.
pub const OUT_BYTES: usize = 2048;

/// `struct xencons_interface`. The indices run freely; a position is an index modulo the size.
#[derive(Debug)]
#[repr(C)]
pub struct ConsoleRing {
    /// Input.
    pub input: [u8; IN_BYTES],
    /// Output.
    pub output: [u8; OUT_BYTES],
    /// The index up to which the domain has read.
    pub in_cons: AtomicU32,
    /// The index up to which the other side has written.
    pub in_prod: AtomicU32,
    /// The index up to which the other side has read.
    pub out_cons: AtomicU32,
    /// The index up to which the domain has written.
    pub out_prod: AtomicU32,
}

const _: () = assert!(size_of::<ConsoleRing>() == 3088);
