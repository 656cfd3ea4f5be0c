//! The unikernel without TLS, which another ELF has.

use crate::network::TlsOrReason;
use alloc::string::ToString;
use bulkhead_images::Catalog;

/// The keys on the command line: none.
pub const KEYS: [&str; 0] = [];

/// Returns the error that says where TLS is to be had.
pub fn tls(_: &'static str, _: &mut Catalog) -> TlsOrReason {
    Err(
        "this file of the driver domain has no TLS, kernel=\"/usr/lib/bulkhead/bulkhead-tls\" has it"
            .to_string(),
    )
}
