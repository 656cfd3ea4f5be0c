//! A ring between two domains: its page and its port go over by xenstore.

use crate::message::{Message, Messages};
use crate::peer::Peer;
use crate::{Failure, pages};
use alloc::format;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::{Grant, GrantAccess, GrantTable, MappedPages, Region};
use bulkhead_ring::{BackRing, FrontRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, Port, Reservation};
use core::time::Duration;

/// The time after which the granter checks again whether its page is still in use.
const PAUSE: Duration = Duration::from_millis(5);

/// The end of the domain that granted the page: it asks.
pub struct Asking<H: Hypervisor> {
    handle: Handle<H>,
    ring: FrontRing<SharedPages, Messages>,
    port: EventChannel<H>,
    grant: Grant<H>,
}

/// The end of the domain that mapped the page: it answers.
pub struct Answering<H: Hypervisor> {
    ring: BackRing<SharedPages, Messages>,
    port: EventChannel<H>,
    /// The ring's memory: dropped last.
    _pages: MappedPages<H>,
}

impl<H: Hypervisor> Asking<H> {
    /// Grants a page and a port to the other domain, and names both in its own directory `name`.
    pub async fn offer(
        handle: &Handle<H>,
        memory: &impl Reservation,
        table: &GrantTable<H>,
        peer: &Peer,
        name: &str,
    ) -> Result<Asking<H>, Failure> {
        let page = pages::allocate(memory, 1)?;
        // SAFETY: a new page, which is never given back, and which only the ring uses.
        let shared = unsafe { SharedPages::new(page, 1) };
        let shared = shared.map_err(|error| Failure::of("the ring's page", error))?;
        let ring = FrontRing::new(shared, Messages);
        let ring = ring.map_err(|error| Failure::of("the ring", error))?;
        let frame = pages::frame(handle.hypervisor(), page)?;
        // SAFETY: the page is the ring's alone, which reaches it by volatile and atomic accesses; it is cleared.
        let grant = unsafe { table.grant(peer.domain(), frame, GrantAccess::ReadWrite) };
        let grant = grant.map_err(|error| Failure::of("the ring's page", error))?;
        let port = handle.hypervisor().alloc_unbound(peer.domain());
        let port = port.map_err(|error| Failure::of("a port for the other domain", error))?;
        let port = handle.event_channel(port);
        peer.open(name).await?;
        peer.publish(&format!("{name}/ring-ref"), grant.gref())
            .await?;
        // The last one, for which the other domain waits.
        peer.publish(&format!("{name}/event-channel"), port.port())
            .await?;
        Ok(Asking {
            handle: handle.clone(),
            ring,
            port,
            grant,
        })
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, request: Message) -> Result<Message, Failure> {
        let pushed = self.ring.push(&request);
        pushed.map_err(|error| Failure::of("the ring", error))?;
        if self.ring.publish() {
            self.port.notify();
        }
        let broken = |error| Failure::of("the other domain's responses", error);
        loop {
            if let Some(response) = self.ring.take().map_err(broken)? {
                return Ok(response);
            }
            if !self.ring.final_check().map_err(broken)? {
                self.port.notified().await;
            }
        }
    }

    /// Ends the grant. As long as the other domain has the page mapped, that is refused, and tried again: nothing takes
    /// the page from it by force. Returns the number of refusals.
    pub async fn close(self) -> u32 {
        let mut grant = self.grant;
        let mut refused = 0;
        loop {
            match grant.end() {
                Ok(_entry) => return refused,
                Err(in_use) => grant = in_use.0,
            }
            refused += 1;
            self.handle.sleep(PAUSE).await;
        }
    }
}

impl<H: Hypervisor> Answering<H> {
    /// Waits for the page and the port that the other domain names in its directory `name`, maps the page and binds the
    /// port.
    pub async fn connect(
        handle: &Handle<H>,
        region: &Region<H>,
        peer: &Peer,
        name: &str,
    ) -> Result<Answering<H>, Failure> {
        let port = peer.wait_number(&format!("{name}/event-channel")).await?;
        let gref = peer.wait_number(&format!("{name}/ring-ref")).await?;
        let pages = region.map_pages(peer.domain(), &[GrantRef(gref)]);
        let pages = pages.map_err(|error| Failure::of("the ring's page", error))?;
        let pages = pages.map_err(|(gref, status)| Failure(format!("grant {gref}: {status}")))?;
        // SAFETY: the page is mapped until the end of this value, whose last part it is, and only the ring
        // uses it.
        let shared = unsafe { SharedPages::new(pages.base(), 1) };
        let shared = shared.map_err(|error| Failure::of("the ring's page", error))?;
        let ring = BackRing::new(shared, Messages);
        let ring = ring.map_err(|error| Failure::of("the ring", error))?;
        let port = handle
            .hypervisor()
            .bind_interdomain(peer.domain(), Port(port));
        let port = port.map_err(|error| Failure::of("the other domain's port", error))?;
        Ok(Answering {
            ring,
            port: handle.event_channel(port),
            _pages: pages,
        })
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> Result<Message, Failure> {
        let broken = |error| Failure::of("the other domain's requests", error);
        loop {
            if let Some(Ok(request)) = self.ring.take().map_err(broken)? {
                return Ok(request);
            }
            if !self.ring.final_check().map_err(broken)? {
                self.port.notified().await;
            }
        }
    }

    /// Answers the oldest request that has no answer yet.
    pub fn answer(&mut self, response: Message) -> Result<(), Failure> {
        let put = self.ring.respond(&response);
        put.map_err(|error| Failure::of("a response", error))?;
        if self.ring.publish() {
            self.port.notify();
        }
        Ok(())
    }
}
