//! The connection to a frontend's queues.

use super::{MOST_QUEUES, NetBack, Rings};
use bulkhead_ring::netif::{NetifRx, NetifTx};
use bulkhead_ring::{BackRing, SharedPages};
use bulkhead_xen::abi::grant_table::{MapFlags, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{GrantRef, GrantStatus, Hypervisor, PAGE_SIZE, Port};
use bulkhead_xen_sim::Sim;
use std::collections::VecDeque;
use std::ptr::NonNull;

impl NetBack {
    /// Says, from the next connection on, that it takes that many queues.
    pub fn offer_queues(&mut self, sim: &Sim, most: &'static str) {
        self.offered.queues = Some(most);
        let path = format!("{}/multi-queue-max-queues", self.path);
        sim.store().write(&path, most);
    }

    /// Returns the number of queues to which it is connected.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Connects to all queues. Returns false if the frontend has more than it takes.
    pub(super) fn connect(&mut self, sim: &Sim) -> bool {
        assert_eq!(
            self.frontend_node(sim, "request-rx-copy").as_deref(),
            Some("1"),
            "Linux's netback does not connect otherwise"
        );
        let count = self.frontend_node(sim, "multi-queue-num-queues");
        let count: usize = count.map_or(1, |count| count.parse().expect("a number"));
        let most = self
            .offered
            .queues
            .map_or(Ok(1), str::parse)
            .unwrap_or(MOST_QUEUES);
        if count > most.clamp(1, self.takes_queues) {
            return false;
        }
        assert!(count > 0, "Linux's netback connects to one at least");
        self.spoiled = false;
        self.flows.clear();
        for number in 0..count {
            let below = match count {
                1 => String::new(),
                _ => format!("queue-{number}/"),
            };
            let rings = self.connect_queue(sim, number, &below);
            self.queues.push(rings);
        }
        true
    }

    /// Returns the pages at which the rings of a queue are mapped.
    pub(super) fn ring_pages(&self, queue: usize) -> [NonNull<u8>; 2] {
        let base = self.region.base;
        // SAFETY: within the region.
        [0, 1].map(|n| unsafe { base.add((2 * queue + n) * PAGE_SIZE) })
    }

    fn connect_queue(&self, sim: &Sim, number: usize, below: &str) -> Rings {
        let node = |name: &str| -> u32 {
            let value = self.frontend_node(sim, &format!("{below}{name}"));
            value.and_then(|value| value.parse().ok()).expect(name)
        };
        let grefs = [node("tx-ring-ref"), node("rx-ring-ref")].map(GrantRef);
        let port = Port(node("event-channel"));
        let pages = self.ring_pages(number);
        let mut batch = [0, 1].map(|n| {
            let address = pages[n].as_ptr() as u64;
            MapGrantRef::new(address, MapFlags::HOST_MAP, grefs[n], self.frontend)
        });
        // SAFETY: pages of the region, where nothing is mapped.
        let mapped = unsafe { self.hypervisor.map_grants(&mut batch) };
        mapped.expect("the hypercall");
        assert!(batch.iter().all(|entry| entry.status == GrantStatus::OKAY));
        // SAFETY: they are mapped until `disconnect`, which drops the rings first.
        let shared = |n: usize| unsafe { SharedPages::new(pages[n], 1) }.expect("a page");
        let port = self.hypervisor.bind_interdomain(self.frontend, port);
        Rings {
            tx: BackRing::attach(shared(0), NetifTx).expect("a ring"),
            rx: BackRing::attach(shared(1), NetifRx).expect("a ring"),
            port: port.expect("the frontend's port"),
            handles: batch.map(|entry| entry.handle),
            pages: VecDeque::new(),
        }
    }

    /// Lets go of the frontend's memory, as when its module is unloaded.
    pub fn disconnect(&mut self) {
        for (number, rings) in std::mem::take(&mut self.queues).into_iter().enumerate() {
            let Rings { port, handles, .. } = rings;
            let pages = self.ring_pages(number);
            let mut batch =
                [0, 1].map(|n| UnmapGrantRef::new(pages[n].as_ptr() as u64, handles[n]));
            // SAFETY: the rings are gone.
            let unmapped = unsafe { self.hypervisor.unmap_grants(&mut batch) };
            unmapped.expect("the hypercall");
            self.hypervisor.close_port(port).expect("its own port");
        }
        self.to_frontend.clear();
    }
}
