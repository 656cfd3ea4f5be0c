//! The link between a frontend and the backend: a ring, its event channel, and pages of data.

use super::io::{Page, Pending};
use bulkhead_grant::{Grant, GrantAccess, GrantTable};
use bulkhead_ring::blkif::{Abi, Blkif, RequestId};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{DomId, GrantRef, Hypervisor, PAGE_SIZE, Port};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use std::collections::BTreeMap;
use std::ptr::NonNull;

/// The features that a frontend uses.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// The layout of its messages.
    pub abi: Abi,
    /// Pages of each ring.
    pub ring_pages: u32,
    /// True if it says so by `num-ring-pages` (older Citrix and Red Hat frontends) and not by `ring-page-order`.
    pub num_ring_pages: bool,
    /// True if it keeps its data pages granted.
    pub persistent: bool,
    /// The number of its rings.
    pub queues: usize,
}

impl Default for Style {
    fn default() -> Self {
        Style {
            abi: Abi::X86_64,
            ring_pages: 1,
            num_ring_pages: false,
            persistent: false,
            queues: 1,
        }
    }
}

impl Style {
    /// The default style, with or without persistent grants.
    pub fn persistent(persistent: bool) -> Style {
        Style {
            persistent,
            ..Style::default()
        }
    }
}

/// A ring of a frontend, with its event channel and the pages that it granted.
pub struct Link {
    /// The guest's domain.
    pub domain: SimDomain,
    /// Its grants.
    pub grants: GrantTable<SimVcpu>,
    /// The domain that serves it.
    pub backend: DomId,
    /// The features that the frontend uses.
    pub style: Style,
    /// The ring.
    pub ring: FrontRing<SharedPages, Blkif>,
    /// The guest's end of the event channel.
    pub port: Port,
    /// The ring's memory.
    pub memory: NonNull<u8>,
    /// The grants of the ring's pages.
    pub ring_grants: Vec<Grant<SimVcpu>>,
    pub(super) pending: BTreeMap<RequestId, Pending>,
    /// Pages that stay granted, of a frontend with persistent grants.
    pub(super) pool: Vec<Page>,
    /// Pages of finished requests, of a frontend that cannot tell which the backend still uses.
    pub(super) kept: Vec<Page>,
    pub(super) next_id: u64,
    /// True if the ring holds messages that are not requests.
    pub(super) wild: bool,
    /// True if the event channel is closed.
    has_let_go: bool,
}

impl Link {
    /// Makes a ring for a frontend of that style.
    pub fn new(
        domain: &SimDomain,
        grants: &GrantTable<SimVcpu>,
        backend: DomId,
        style: Style,
    ) -> Link {
        let pages = style.ring_pages as usize;
        let memory = domain.alloc_pages(pages);
        let ring_grants = (0..pages).map(|page| {
            // SAFETY: within the pages just taken.
            let page = unsafe { memory.add(page * PAGE_SIZE) };
            let frame = domain.frame_of(page);
            // SAFETY: the guest's own memory, which it accesses through the ring alone.
            unsafe { grants.grant(backend, frame, GrantAccess::ReadWrite) }.expect("a free entry")
        });
        let ring_grants = ring_grants.collect();
        // SAFETY: domain memory stays mapped as long as the machine.
        let shared = unsafe { SharedPages::new(memory, pages) }.expect("aligned pages");
        let ring = FrontRing::new(shared, Blkif::new(style.abi)).expect("large enough");
        Link {
            domain: domain.clone(),
            grants: grants.clone(),
            backend,
            style,
            ring,
            port: domain
                .hypervisor()
                .alloc_unbound(backend)
                .expect("a free port"),
            memory,
            ring_grants,
            pending: BTreeMap::new(),
            pool: Vec::new(),
            kept: Vec::new(),
            next_id: 1,
            wild: false,
            has_let_go: false,
        }
    }

    /// Returns the grants of the ring's pages.
    pub fn ring_refs(&self) -> Vec<GrantRef> {
        self.ring_grants.iter().map(Grant::gref).collect()
    }

    /// Returns the nodes that the frontend publishes before it connects, for all its rings.
    pub fn common_details(&self) -> Vec<(String, String)> {
        let style = self.style;
        let persistent = u32::from(style.persistent);
        let mut nodes = vec![
            ("protocol", style.abi.name().to_string()),
            ("feature-persistent", persistent.to_string()),
        ];
        if style.queues > 1 {
            nodes.push(("multi-queue-num-queues", style.queues.to_string()));
        }
        match style.ring_pages {
            1 => {}
            pages if style.num_ring_pages => nodes.push(("num-ring-pages", pages.to_string())),
            pages => nodes.push(("ring-page-order", pages.ilog2().to_string())),
        }
        let nodes = nodes.into_iter();
        nodes
            .map(|(name, value)| (name.to_string(), value))
            .collect()
    }

    /// Returns the nodes that the frontend publishes for this ring.
    pub fn details(&self) -> Vec<(String, String)> {
        let mut nodes = vec![("event-channel".into(), self.port.to_string())];
        if self.style.ring_pages == 1 {
            nodes.push(("ring-ref".into(), self.ring_refs()[0].to_string()));
            return nodes;
        }
        for (number, gref) in self.ring_refs().iter().enumerate() {
            nodes.push((format!("ring-ref{number}"), gref.to_string()));
        }
        nodes
    }

    /// Shows the backend what was put into the ring, and notifies it if it wants to be.
    pub fn kick(&mut self) {
        if self.ring.publish() {
            self.notify();
        }
    }

    /// Notifies the backend.
    pub fn notify(&self) {
        // The other end may be gone.
        let _ = self.domain.hypervisor().notify(self.port);
    }

    /// Closes the event channel. The backend may still have the ring and pages mapped.
    pub fn let_go(&mut self) {
        if !std::mem::replace(&mut self.has_let_go, true) {
            let closed = self.domain.hypervisor().close_port(self.port);
            closed.expect("the port is open");
        }
    }

    /// Returns whether the backend has the ring mapped.
    pub fn is_mapped(&self) -> bool {
        self.ring_grants.iter().any(Grant::is_in_use)
    }

    /// Takes everything back, which the backend must have let go of.
    pub fn take_down(mut self) {
        self.let_go();
        for (_, pending) in std::mem::take(&mut self.pending) {
            self.kept.extend(pending.pages);
        }
        let kept = std::mem::take(&mut self.kept);
        for page in kept.into_iter().chain(std::mem::take(&mut self.pool)) {
            page.end(&self.domain);
        }
        for grant in self.ring_grants.drain(..) {
            grant.end().expect("the backend has unmapped the ring");
        }
        self.domain
            .free_pages(self.memory, self.style.ring_pages as usize);
    }
}
