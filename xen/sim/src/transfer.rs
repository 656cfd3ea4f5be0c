//! The simulated Xen's side of giving frames away.
//!
//! The rules and their order are those of Xen's `gnttab_transfer` (common/grant_table.c), `steal_page`
//! (arch/x86/mm.c) and `hvm_grant_table_op` (arch/x86/hvm/hypercall.c), from 4.17 to 4.20:
//!
//! - To a domain that is not PV, the hypercall is not implemented.
//! - A frame that is not the caller's, or that is in use, is `BAD_PAGE`, and the caller keeps it.
//! - From there on the frame is taken from the caller. If the other domain is not there (`BAD_DOMAIN`), is
//!   dying or has all the memory that it may have, or if its entry does not accept a frame of the caller's
//!   (`GENERAL_ERROR`), no domain has the frame any more.
//! - The entry's flags must be ACCEPT_TRANSFER and no other, and its domain the caller. COMMITTED is set by a
//!   compare-and-swap that is tried five times; COMPLETED, after the entry of a PV domain names the machine
//!   frame.
//! - A PVH domain has the frame at once at the page frame that the entry names. A PV domain has to map the
//!   frame first.

use super::faults::Hypercall;
use super::stats::Violation;
use super::vcpu::SimVcpu;
use super::world::{Domain, DomainKind, World};
use bulkhead_xen::abi::grant_table::{EntryV1, TransferFlags};
use bulkhead_xen::{
    DomId, Errno, FrameTransfer, Gfn, GrantRef, GrantStatus, PAGE_SIZE, Pfn, TransferRequest,
};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Transfers that a test holds between being committed to and completed.
#[derive(Default)]
pub(super) struct Transfers {
    hold: bool,
    held: Vec<Delivery>,
}

impl Transfers {
    pub(super) fn hold(&mut self) {
        self.hold = true;
    }
}

/// A frame on its way into a page.
#[derive(Clone, Copy)]
struct Delivery {
    domain: DomId,
    gref: GrantRef,
    address: usize,
}

// SAFETY: a page that is kept was not touched; an adopted one is mapped with the page of the file that the
// other domain had.
unsafe impl FrameTransfer for SimVcpu {
    unsafe fn give_frames(&self, batch: &mut [TransferRequest]) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.transfer_calls += 1;
        self.call(Hypercall::TransferFrames, count, |world| {
            let kind = world.domain(self.domain).map(|domain| domain.kind);
            if kind != Some(DomainKind::Pv) {
                return Err(Errno::NOSYS);
            }
            for request in batch {
                world.transfer(self.domain, request);
                if let Some(domain) = world.domain_mut(self.domain) {
                    match request.status.is_okay() {
                        true => domain.stats.transfers += 1,
                        false => domain.stats.transfers_refused += 1,
                    }
                }
            }
            Ok(())
        })
    }

    fn page_frame(&self, page: NonNull<u8>) -> Option<Pfn> {
        let world = self.world.lock();
        let domain = world.domain(self.domain)?;
        domain.memory.page_frame(page.as_ptr().addr())
    }

    unsafe fn adopt_frame(&self, page: NonNull<u8>, frame: Gfn) {
        let address = page.as_ptr().addr();
        let mut world = self.world.lock();
        world.adopt(self.domain, address, frame);
    }
}

impl World {
    /// One entry of `GNTTABOP_transfer`.
    fn transfer(&mut self, giver: DomId, request: &mut TransferRequest) {
        let address = request.page.as_ptr().addr();
        request.kept = true;
        request.status = GrantStatus::BAD_PAGE;
        let Some(domain) = self.domain_mut(giver) else {
            return;
        };
        if domain.memory.is_pinned(address) {
            return;
        }
        if !address.is_multiple_of(PAGE_SIZE) || domain.memory.give_up(address).is_none() {
            let (domain, address) = (giver, address as u64);
            let violation = Violation::ReleasedNothing { domain, address };
            self.violations.push(violation);
            return;
        }
        request.kept = false;
        let file_page = domain.memory.file_page(address);
        self.machine.take_away(address);
        request.status = match self.deliver(giver, request, file_page) {
            Ok((delivery, other)) => {
                if let Some(domain) = self.domain_mut(giver) {
                    domain.memory.put_behind(address, other);
                }
                match self.transfers.hold {
                    true => self.transfers.held.push(delivery),
                    false => self.complete(delivery),
                }
                GrantStatus::OKAY
            }
            Err(status) => {
                self.machine.discard_page(file_page);
                status
            }
        };
    }

    /// Gives an unowned page of the file to a domain that accepts it. Returns the place to which it goes, and
    /// the page of the file that would have been there.
    fn deliver(
        &mut self,
        giver: DomId,
        request: &TransferRequest,
        file_page: u64,
    ) -> Result<(Delivery, u64), GrantStatus> {
        let (domain, gref) = (request.domain, request.gref);
        let taker = self.domain_mut(domain).ok_or(GrantStatus::BAD_DOMAIN)?;
        if taker.dying || taker.memory.is_full() {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let entry = taker.grants.entries().get(gref.0 as usize);
        let entry = entry.ok_or(GrantStatus::GENERAL_ERROR)?;
        commit(entry, giver)?;
        let place = Pfn(entry.frame.load(Ordering::Relaxed).into());
        let Some(address) = taker.memory.hole(place) else {
            // A real Xen would put it there nevertheless, and what was there would be lost, or remember a
            // page frame that is not the page's.
            let violation = Violation::AcceptedOccupied { domain, place };
            self.violations.push(violation);
            return Err(GrantStatus::GENERAL_ERROR);
        };
        let other = taker.memory.put_behind(address, file_page);
        taker.memory.arrive(address);
        let delivery = Delivery {
            domain,
            gref,
            address,
        };
        Ok((delivery, other))
    }

    /// Completes the delivery of a frame to the domain that now owns it.
    fn complete(&mut self, delivery: Delivery) {
        let address = delivery.address;
        let Some(domain) = self.domain_mut(delivery.domain) else {
            return;
        };
        let entry = &domain.grants.entries()[delivery.gref.0 as usize];
        let place = Gfn(entry.frame.load(Ordering::Relaxed).into());
        let kind = domain.kind;
        let frame = domain.memory.machine_frame_at(address);
        match kind {
            DomainKind::Pv => entry.frame.store(frame.0 as u32, Ordering::Relaxed),
            DomainKind::Pvh => {
                domain.memory.adopt(address, place);
            }
        }
        let completed = TransferFlags::COMPLETED.bits();
        entry.flags.fetch_or(completed, Ordering::Release);
        if kind == DomainKind::Pvh {
            self.machine.get_back(address, frame);
        }
    }

    pub(super) fn complete_transfers(&mut self) -> usize {
        let held = std::mem::take(&mut self.transfers).held;
        held.iter().for_each(|&delivery| self.complete(delivery));
        held.len()
    }

    /// A PV domain maps a frame that came; a PVH domain has it already.
    fn adopt(&mut self, id: DomId, address: usize, frame: Gfn) {
        let Some(domain) = self.domain_mut(id) else {
            return;
        };
        let adopted = match domain.kind {
            DomainKind::Pv => domain.memory.adopt(address, frame),
            DomainKind::Pvh => domain.memory.frame_of(address) == Some(frame),
        };
        if !adopted {
            let (domain, address) = (id, address as u64);
            let violation = Violation::AdoptedNothing { domain, address };
            self.violations.push(violation);
        } else if domain.kind == DomainKind::Pv {
            let frame = domain.memory.machine_frame(frame);
            self.machine.get_back(address, frame);
        }
    }
}

/// Locks an entry down for a transfer (`gnttab_prepare_for_transfer`).
fn commit(entry: &EntryV1, giver: DomId) -> Result<(), GrantStatus> {
    let open = TransferFlags::ACCEPT_TRANSFER.bits();
    let committed = open | TransferFlags::COMMITTED.bits();
    // The other domain may change the entry meanwhile; after a few rounds it is to blame.
    for _ in 0..5 {
        let flags = entry.flags.load(Ordering::Acquire);
        if flags != open || entry.domain.load(Ordering::Relaxed) != giver.0 {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let swapped =
            entry
                .flags
                .compare_exchange(open, committed, Ordering::AcqRel, Ordering::Relaxed);
        if swapped.is_ok() {
            return Ok(());
        }
    }
    Err(GrantStatus::GENERAL_ERROR)
}
