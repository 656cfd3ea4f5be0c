//! The target `target`, as cargo-fuzz runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bulkhead_fuzz::target(bytes));
