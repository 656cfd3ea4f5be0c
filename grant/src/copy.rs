//! Copies between a frontend's granted pages and own memory, many in one hypercall.
//!
//! For a few bytes of a page, a copy by the hypervisor costs less than mapping and unmapping it.

use crate::EAGAIN_TRIES;
use crate::memory::{OutOfMemory, room_for};
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{CopyEnd, CopyFlags, GrantCopy};
use bulkhead_xen::{DomId, GrantRef, GrantStatus, Hypervisor, PAGE_SIZE};
use core::fmt;
use core::ptr::NonNull;

/// The direction of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the granted page to own memory.
    FromGranted,
    /// From own memory to the granted page.
    ToGranted,
}

/// Bytes of a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedBytes {
    /// The page.
    pub gref: GrantRef,
    /// The first byte.
    pub offset: usize,
    /// The number of bytes.
    pub len: usize,
}

/// A batch of copies from and to pages of one frontend. All memory it needs is taken when it is
/// made.
pub struct CopyBatch<H: Hypervisor> {
    hypervisor: H,
    domain: DomId,
    copies: Vec<GrantCopy>,
    /// The number of them that were made.
    made: usize,
    calls: u64,
    bytes: u64,
    /// The number of the current batch; the outcome of an earlier batch's copies is not kept.
    round: u16,
}

/// A queued copy, by which the caller asks for its outcome.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a copy may be refused"]
pub struct Copied {
    round: u16,
    first: u16,
    count: u16,
}

impl Copied {
    /// Both copies as one, of which the other was queued right after this one.
    pub fn and(self, next: Copied) -> Copied {
        debug_assert_eq!(self.round, next.round, "copies of one batch");
        debug_assert_eq!(self.first + self.count, next.first, "neighbours");
        Copied {
            count: self.count + next.count,
            ..self
        }
    }
}

/// The reason why a copy cannot be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyRefused {
    /// The batch has no room: run it first.
    Full,
    /// The bytes do not lie within one granted page.
    BeyondPage {
        /// The bytes.
        bytes: GrantedBytes,
    },
    /// The other end is not this domain's own memory.
    NotOwnMemory {
        /// Its address.
        address: usize,
    },
}

impl fmt::Display for CopyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyRefused::Full => f.write_str("the batch of copies is full"),
            CopyRefused::BeyondPage { bytes } => {
                let GrantedBytes { gref, offset, len } = bytes;
                write!(
                    f,
                    "{len} bytes at offset {offset} of grant {gref} reach past the end of its page"
                )
            }
            CopyRefused::NotOwnMemory { address } => {
                write!(
                    f,
                    "{address:#x} is not memory of this domain, and cannot be copied from or to"
                )
            }
        }
    }
}

impl core::error::Error for CopyRefused {}

impl<H: Hypervisor> CopyBatch<H> {
    /// An empty batch for up to `capacity` copies within one page each.
    ///
    /// # Panics
    /// If that is more than 65,535.
    pub fn new(hypervisor: H, domain: DomId, capacity: usize) -> Result<Self, OutOfMemory> {
        assert!(capacity <= u16::MAX.into(), "a batch of {capacity} copies");
        Ok(CopyBatch {
            hypervisor,
            domain,
            copies: room_for(capacity)?,
            made: 0,
            calls: 0,
            bytes: 0,
            round: 0,
        })
    }

    /// Returns the number of hypercalls made so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Returns the number of bytes that they were to copy.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Queues bytes to be copied between a granted page and the own memory at `own`. A copy that crosses from
    /// one page to the next takes two places in the batch.
    ///
    /// # Safety
    /// Until [`run`](Self::run) returns or the batch is [cleared](Self::clear), `own` stays memory
    /// of that many bytes. As a destination it is seen through no Rust reference meanwhile; as a
    /// source it holds nothing that the granting domain may not see.
    pub unsafe fn queue(
        &mut self,
        direction: Direction,
        granted: GrantedBytes,
        own: NonNull<u8>,
    ) -> Result<Copied, CopyRefused> {
        let GrantedBytes { gref, offset, len } = granted;
        let within = offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
        if !within {
            return Err(CopyRefused::BeyondPage { bytes: granted });
        }
        let first = self.copies.len();
        let mut done = 0;
        while done < len {
            let address = own.addr().get() + done;
            let refused = self.push(direction, gref, offset + done, address, len - done);
            match refused {
                Ok(bytes) => done += bytes,
                Err(error) => {
                    self.copies.truncate(first);
                    return Err(error);
                }
            }
        }
        Ok(Copied {
            round: self.round,
            first: first as u16,
            count: (self.copies.len() - first) as u16,
        })
    }

    /// Adds the copy of at most `len` bytes that ends with the own page; returns the number of bytes.
    fn push(
        &mut self,
        direction: Direction,
        gref: GrantRef,
        offset: usize,
        address: usize,
        len: usize,
    ) -> Result<usize, CopyRefused> {
        if self.copies.len() == self.copies.capacity() {
            return Err(CopyRefused::Full);
        }
        let own_offset = address % PAGE_SIZE;
        let bytes = len.min(PAGE_SIZE - own_offset);
        let page = core::ptr::without_provenance(address - own_offset);
        let frame = self.hypervisor.frame_of(page);
        let frame = frame.ok_or(CopyRefused::NotOwnMemory { address })?;
        // Both offsets are below the page size.
        let granted = CopyEnd::granted(gref, self.domain, offset as u16);
        let own = CopyEnd::own(frame, own_offset as u16);
        let (source, dest, flags) = match direction {
            Direction::FromGranted => (granted, own, CopyFlags::SOURCE_GREF),
            Direction::ToGranted => (own, granted, CopyFlags::DEST_GREF),
        };
        self.copies.push(GrantCopy {
            source,
            dest,
            len: bytes as u16,
            flags: flags.bits(),
            status: GrantStatus::GENERAL_ERROR,
        });
        Ok(bytes)
    }

    /// Forgets a copy that was queued last and not made yet: the caller does without it.
    pub fn unqueue(&mut self, last: Copied) {
        let first = usize::from(last.first);
        let is_last = last.round == self.round
            && first >= self.made
            && first + usize::from(last.count) == self.copies.len();
        debug_assert!(is_last, "the copy that was queued last");
        if is_last {
            self.copies.truncate(first);
        }
    }

    /// Makes all copies that were queued since this was last called, in one hypercall. [`status`](Self::status) returns the
    /// outcome of each, until the batch is [cleared](Self::clear).
    pub fn run(&mut self) {
        let queued = self.made..self.copies.len();
        if queued.is_empty() {
            return;
        }
        self.made = queued.end;
        self.copy(queued.clone());
        for entry in queued {
            // Hardly ever: one at a time will do.
            for _ in 0..EAGAIN_TRIES {
                if self.copies[entry].status != GrantStatus::EAGAIN {
                    break;
                }
                self.copy(entry..entry + 1);
            }
        }
    }

    fn copy(&mut self, entries: core::ops::Range<usize>) {
        let batch = &mut self.copies[entries];
        self.calls += 1;
        self.bytes += batch.iter().map(|copy| u64::from(copy.len)).sum::<u64>();
        // SAFETY: the code that queued them has promised it for own memory; granted pages are not ours.
        if let Err(error) = unsafe { self.hypervisor.copy_grants(batch) } {
            let (copies, domain) = (batch.len(), self.domain);
            log::error!(
                "cannot make {copies} copies from or to grants of domain {domain}: {error}"
            );
            for copy in batch {
                copy.status = GrantStatus::GENERAL_ERROR;
            }
        }
    }

    /// Returns the outcome of a copy that was queued since the batch was last cleared.
    ///
    /// # Panics
    /// If the copy was queued before that.
    pub fn status(&self, copied: &Copied) -> Result<(), GrantStatus> {
        assert_eq!(copied.round, self.round, "a copy is asked about too late");
        let entries =
            usize::from(copied.first)..usize::from(copied.first) + usize::from(copied.count);
        let refused = self.copies[entries]
            .iter()
            .find(|copy| !copy.status.is_okay());
        refused.map_or(Ok(()), |copy| Err(copy.status))
    }

    /// Returns the outcome of all copies that were queued since the batch was last cleared.
    pub fn outcome(&self) -> Result<(), GrantStatus> {
        let refused = self.copies.iter().find(|copy| !copy.status.is_okay());
        refused.map_or(Ok(()), |copy| Err(copy.status))
    }

    /// Forgets all queued copies, whether they were made or not.
    pub fn clear(&mut self) {
        self.copies.clear();
        self.made = 0;
        self.round = self.round.wrapping_add(1);
    }
}

impl<H: Hypervisor> fmt::Debug for CopyBatch<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyBatch")
            .field("domain", &self.domain)
            .field("copies", &self.copies.len())
            .field("capacity", &self.copies.capacity())
            .finish_non_exhaustive()
    }
}
