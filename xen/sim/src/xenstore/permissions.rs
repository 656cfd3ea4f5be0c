//! Lists of permissions as the toolstack sets them.

use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{NodeAccess, Permission};

/// Returns the permissions of a node that belongs to `owner` and that only `readers` may read.
pub fn owned_by(owner: DomId, readers: &[DomId]) -> Vec<Permission> {
    let mut list = vec![Permission {
        domain: owner,
        access: NodeAccess::None,
    }];
    list.extend(readers.iter().map(|&domain| Permission {
        domain,
        access: NodeAccess::Read,
    }));
    list
}
