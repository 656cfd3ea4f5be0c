//! [`Balloon`] for a simulated domain: free pages are released to the machine, and populated again as far as the
//! domain's limit allows.

use super::vcpu::SimVcpu;
use bulkhead_xen::{Balloon, PAGE_SIZE, Reservation};
use std::ptr::{self, NonNull};

/// The number of free pages that the domain keeps.
const RESERVE: usize = 16;

/// The most pages that one call releases or populates.
const AT_ONCE: usize = 32;

impl Balloon for SimVcpu {
    fn owned(&self) -> usize {
        let world = self.world.lock();
        let domain = world.domain(self.domain());
        domain.map_or(0, |domain| domain.memory.present())
    }

    fn missing(&self) -> usize {
        let world = self.world.lock();
        let domain = world.domain(self.domain());
        domain.map_or(0, |domain| domain.memory.missing().count())
    }

    fn released(&self) -> usize {
        let world = self.world.lock();
        let domain = world.domain(self.domain());
        domain.map_or(0, |domain| domain.memory.lent_back())
    }

    fn give_back(&self, pages: usize) -> usize {
        let one = |_: &usize| {
            let page = {
                let world = self.world.lock();
                let domain = world.domain(self.domain());
                domain.and_then(|domain| domain.memory.spare(RESERVE))
            };
            page.and_then(pointer).is_some_and(|page| {
                // SAFETY: the page is free: no code of the domain uses it.
                unsafe {
                    ptr::write_bytes(page.as_ptr(), 0, PAGE_SIZE);
                    self.release(page, 1) == 1
                }
            })
        };
        (0..pages.min(AT_ONCE)).take_while(one).count()
    }

    fn take_back(&self, pages: usize) -> usize {
        let one = |_: &usize| {
            let page = {
                let world = self.world.lock();
                let domain = world.domain(self.domain());
                domain.and_then(|domain| domain.memory.missing().next())
            };
            // SAFETY: the page was released, and no code of the domain uses it.
            page.and_then(pointer)
                .is_some_and(|page| unsafe { self.populate(page, 1) } == 1)
        };
        (0..pages.min(AT_ONCE)).take_while(one).count()
    }
}

fn pointer(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(ptr::with_exposed_provenance_mut(address))
}
