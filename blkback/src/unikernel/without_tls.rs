//! The unikernel without TLS: another ELF has it.

use crate::network::TlsOrReason;
use alloc::string::ToString;
use bulkhead_images::Catalog;

/// There are no keys on the command line.
pub const KEYS: [&str; 0] = [];

/// Says where TLS is to be had.
pub fn tls(_: &'static str, _: &mut Catalog) -> TlsOrReason {
    Err(
        "this file of the driver domain has no TLS, kernel=\"/usr/lib/bulkhead/bulkhead-tls\" has it"
            .to_string(),
    )
}
