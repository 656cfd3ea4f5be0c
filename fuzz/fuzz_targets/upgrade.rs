//! The target `upgrade`, as libFuzzer runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bulkhead_fuzz::upgrade(bytes));
