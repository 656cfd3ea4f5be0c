//! Numbers that tell things from others of their kind.

/// Returns a number that tells bytes from others: FNV-1a. Nobody gains by a collision but who may change the bytes, and so
/// what they describe, at will.
pub fn identity_of(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let bytes = bytes.into_iter();
    bytes.fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
