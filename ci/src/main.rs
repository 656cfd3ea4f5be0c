//! `cargo lab`: builds, tests and shows Bulkhead on a real Xen under QEMU.
fn main() {}
