//! The assignment of queues to rings: each uses the ring of its vCPU, or shares one where the backend takes fewer rings
//! than there are vCPUs. A backend that comes back may take another number of them than before.

use crate::link::Link;
use bulkhead_grant::NotShared;
use bulkhead_xen::Hypervisor;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::{Mutex, MutexGuard};

/// The ring that a queue uses, and the queue's number there. It changes only while the ring is locked.
pub struct Location(AtomicU64);

impl Location {
    /// Returns the location of the queue with that number on a ring.
    pub fn new(ring: usize, number: usize) -> Self {
        Location(AtomicU64::new(Self::packed(ring, number)))
    }

    fn packed(ring: usize, number: usize) -> u64 {
        (ring as u64) << 32 | number as u64
    }

    /// Returns the ring, and the queue's number there.
    #[inline]
    pub fn get(&self) -> (usize, usize) {
        let packed = self.0.load(Ordering::Relaxed);
        ((packed >> 32) as usize, packed as u32 as usize)
    }

    /// Notes another ring, and the queue's number there.
    pub fn set(&self, ring: usize, number: usize) {
        self.0.store(Self::packed(ring, number), Ordering::Relaxed);
    }

    /// Locks the ring that the queue uses. Returns it, and the queue's number there.
    #[inline]
    pub fn lock<'l, H: Hypervisor>(
        &self,
        links: &'l [Mutex<Link<H>>],
    ) -> (MutexGuard<'l, Link<H>>, usize) {
        loop {
            let (ring, number) = self.get();
            let link = links[ring].lock();
            if self.get() == (ring, number) {
                return (link, number);
            }
        }
    }
}

/// Returns the ring that the queues of a vCPU use, out of `rings` rings.
pub fn ring_of(vcpu: usize, rings: usize) -> usize {
    vcpu % rings.max(1)
}

/// Assigns all queues to the first `rings` rings, none of which is in use yet. If there is no memory for that, some
/// queues keep the ring that they had.
pub fn assign<H: Hypervisor>(links: &[Mutex<Link<H>>], rings: usize) -> Result<(), NotShared> {
    for (from, source) in links.iter().enumerate() {
        let mut source = source.lock();
        let mut number = 0;
        while let Some(vcpu) = source.vcpu_of(number) {
            let to = ring_of(vcpu, rings);
            if to == from {
                number += 1;
                continue;
            }
            // Nothing else locks two rings at once.
            links[to].lock().take_over(to, &mut source, number)?;
        }
    }
    Ok(())
}
