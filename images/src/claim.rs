//! Claims on an image: one writer alone has it open, or any number of readers. Disks whose targets say
//! `shared=yes` may have it open together, writers among them.
//!
//! Xen's own `block` hotplug script permits the same (`check_sharing` there, and no check for the mode `w!`), with one
//! exception that it makes and this domain does not: it lets two domains of the same VM write at once, for the moment
//! in which a VM moves from one to the other on the same host (`xl migrate` to localhost). Here that takes
//! `shared=yes`, and so do the disks of an HVM guest whose device model runs in a stub domain, which are attached to
//! both. The mode `w!` cannot reach a driver domain: libxl writes `r` or `w`.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;

/// The access for which an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only; shared with other readers.
    ReadOnly,
    /// Reads and writes; not shared.
    ReadWrite,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::ReadOnly => "reading",
            Access::ReadWrite => "writing",
        })
    }
}

/// An image is open already, and its owner cannot share it with the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The access that the owner has.
    pub access: Access,
    /// The owner's name.
    pub owner: String,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "open for {} by {}; two that write, or write and read, need shared=yes in the target of each",
            self.access, self.owner
        )
    }
}

impl core::error::Error for InUse {}

/// The holders of claims on one image, or on another store's device.
#[derive(Debug, Default)]
pub struct Claims {
    holders: Mutex<Holders>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    all: Vec<Holder>,
}

#[derive(Debug)]
struct Holder {
    number: u64,
    access: Access,
    shared: bool,
    owner: String,
}

impl Claims {
    /// Takes a claim, or returns the owner who stands in its way. With `shared`, owners with `shared` are not in the
    /// way.
    pub fn take(
        self: &Arc<Self>,
        access: Access,
        shared: bool,
        owner: &str,
    ) -> Result<Claim, InUse> {
        let mut holders = self.holders.lock();
        let shares = |other: &Holder| {
            let only_read = access == Access::ReadOnly && other.access == Access::ReadOnly;
            only_read || (shared && other.shared)
        };
        if let Some(other) = holders.all.iter().find(|other| !shares(other)) {
            return Err(InUse {
                access: other.access,
                owner: other.owner.clone(),
            });
        }
        let number = holders.next;
        holders.next += 1;
        holders.all.push(Holder {
            number,
            access,
            shared,
            owner: owner.to_string(),
        });
        Ok(Claim {
            claims: self.clone(),
            number,
        })
    }

    /// Returns the number of holders.
    pub fn count(&self) -> usize {
        self.holders.lock().all.len()
    }

    /// Returns the access and the name of each owner, in the order in which they came.
    pub fn owners(&self) -> Vec<(Access, String)> {
        let holders = self.holders.lock();
        let all = holders.all.iter();
        all.map(|holder| (holder.access, holder.owner.clone()))
            .collect()
    }
}

/// The right to use an image, given back when dropped.
#[derive(Debug)]
pub struct Claim {
    claims: Arc<Claims>,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut holders = self.claims.holders.lock();
        holders.all.retain(|holder| holder.number != self.number);
    }
}
