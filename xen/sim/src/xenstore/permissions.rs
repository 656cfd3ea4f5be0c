//! Lists of permissions as the toolstack sets them.

use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{NodeAccess, Permission};

/// The permissions of a node that is `owner`'s, that `readers` may read and nobody else.
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
