//! The simulated Xen's side of giving memory back and asking for it again.

use super::faults::Hypercall;
use super::stats::Violation;
use super::vcpu::SimVcpu;
use super::world::World;
use bulkhead_xen::{DomId, Errno, Gfn, GrantedBefore, PAGE_SIZE, Reservation};
use std::ptr::NonNull;

/// The content that the last user of a page has left in it.
const LEFT: u8 = 0xd5;

// SAFETY: allocated pages are marked as used; populated ones are mapped where they were, from
// parts of the memory file that were punched out and so read as zeros.
unsafe impl Reservation for SimVcpu {
    fn allocate(&self, pages: usize) -> Option<NonNull<u8>> {
        let mut world = self.world.lock();
        let memory = &mut world.alive_mut(self.domain())?.memory;
        let first = NonNull::new(memory.take(pages)? as *mut u8)?;
        // SAFETY: the caller's own, who does not have them yet.
        unsafe { first.write_bytes(LEFT, pages * PAGE_SIZE) };
        Some(first)
    }

    fn free_pages(&self) -> usize {
        let mut world = self.world.lock();
        let own = world.alive_mut(self.domain());
        own.map_or(0, |own| own.memory.free_pages())
    }

    unsafe fn release(&self, first: NonNull<u8>, pages: usize) -> usize {
        let released = self.call(
            Hypercall::ReleasePages,
            |domain| domain.stats.release_calls += 1,
            |world| {
                Ok(count(first, pages, |at| {
                    world.release_page(self.domain(), at)
                }))
            },
        );
        // A hypercall that is refused as a whole has done nothing.
        released.unwrap_or(0)
    }

    unsafe fn populate(&self, first: NonNull<u8>, pages: usize) -> usize {
        let populated = self.call(
            Hypercall::PopulatePages,
            |domain| domain.stats.populate_calls += 1,
            |world| {
                Ok(count(first, pages, |at| {
                    world.populate_page(self.domain(), at)
                }))
            },
        );
        populated.unwrap_or(0)
    }
}

/// As Xen does it: page after page, up to the first that is refused.
fn count(
    first: NonNull<u8>,
    pages: usize,
    mut one: impl FnMut(usize) -> Result<(), Errno>,
) -> usize {
    let addresses = (0..pages).map(|page| first.as_ptr().addr() + page * PAGE_SIZE);
    addresses
        .take_while(|&address| one(address).is_ok())
        .count()
}

impl GrantedBefore for SimVcpu {
    fn keep(&self, frame: Gfn) -> Option<NonNull<u8>> {
        let (mut world, domain) = (self.world.lock(), self.domain());
        let own = world.alive_mut(domain)?;
        let address = own.memory.keep_granted_before(frame)?;
        NonNull::new(address as *mut u8)
    }

    unsafe fn free(&self, frame: Gfn) {
        let (mut world, domain) = (self.world.lock(), self.domain());
        let own = world.alive_mut(domain);
        if own.is_some_and(|own| own.memory.free_granted_before(frame)) {
            let violation = Violation::FreedWhileShared { domain, frame };
            world.violations.push(violation);
        }
    }
}

impl World {
    /// One extent of `XENMEM_decrease_reservation`.
    fn release_page(&mut self, id: DomId, address: usize) -> Result<(), Errno> {
        let given = self
            .domain_mut(id)
            .filter(|_| address.is_multiple_of(PAGE_SIZE))
            .and_then(|domain| domain.memory.give_up(address));
        let Some((frame, shared)) = given else {
            let (domain, address) = (id, address as u64);
            let violation = Violation::ReleasedNothing { domain, address };
            self.violations.push(violation);
            return Err(Errno::INVAL);
        };
        if shared {
            let domain = id;
            let violation = Violation::FreedWhileShared { domain, frame };
            self.violations.push(violation);
        }
        let page = std::ptr::with_exposed_provenance::<[u64; PAGE_SIZE / 8]>(address);
        // SAFETY: a page of the domain's own memory, which is mapped until the machine releases it
        // and which its owner does not use any more.
        let content = unsafe { page.read_volatile() };
        if content.iter().any(|&word| word != 0)
            && let Some(domain) = self.domain_mut(id)
        {
            domain.stats.pages_released_uncleared += 1;
        }
        if let Some(domain) = self.domain(id) {
            let frame = domain.memory.machine_frame(frame);
            self.machine.release(address, frame);
        }
        Ok(())
    }

    /// One extent of `XENMEM_populate_physmap`.
    fn populate_page(&mut self, id: DomId, address: usize) -> Result<(), Errno> {
        let domain = self.domain_mut(id).ok_or(Errno::SRCH)?;
        if !domain.memory.is_released(address) || !address.is_multiple_of(PAGE_SIZE) {
            let (domain, address) = (id, address as u64);
            let violation = Violation::PopulatedOccupied { domain, address };
            self.violations.push(violation);
            return Err(Errno::INVAL);
        }
        let frame = domain.memory.get_back(address).ok_or(Errno::NOMEM)?;
        let frame = domain.memory.machine_frame(frame);
        self.machine.get_back(address, frame);
        Ok(())
    }
}
