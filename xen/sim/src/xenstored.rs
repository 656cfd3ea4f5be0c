//! xenstored in dom0: the server, its end of every domain's ring, and its event channels.

use super::world::World;
use super::xenstore::Server;
use super::xenstore::ring::ServerEnd;
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DomId, Port, VcpuId};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// The entry of each domain's grant table that grants its xenstore page to dom0
/// (`GNTTAB_RESERVED_XENSTORE`, grant_table.h).
const GRANT_ENTRY: usize = 1;

/// xenstored's connection to one domain.
struct Connection {
    ring: ServerEnd,
    /// dom0's end of the event channel.
    port: Port,
    /// True if the ring had no room for all that is to go to the domain, which notifies once it has made room.
    full: bool,
}

/// xenstored as a process in dom0.
pub(super) struct Xenstored {
    pub(super) server: Server,
    connections: BTreeMap<DomId, Connection>,
    /// The virtual CPU of dom0 that takes xenstored's notifications, and no others.
    vcpu: VcpuId,
}

const DOM0: DomId = DomId(0);

impl Xenstored {
    pub(super) fn new(vcpu: VcpuId) -> Xenstored {
        Xenstored {
            server: Server::new(),
            connections: BTreeMap::new(),
            vcpu,
        }
    }

    /// Gives a new domain its ring and port, as the toolstack does, and introduces it.
    pub(super) fn introduce(&mut self, world: &mut World, id: DomId) {
        let domain = world.alive_mut(id).expect("the domain is new");
        let address = domain.memory.allocate(1).expect("the domain has memory");
        let frame = domain.memory.frame_of(address).expect("just allocated");
        if let Some(entry) = domain.grants.entries().get(GRANT_ENTRY) {
            entry.frame.store(frame.0 as u32, Ordering::Relaxed);
            entry.domain.store(DOM0.0, Ordering::Relaxed);
            let flags = EntryFlags::PERMIT_ACCESS.bits();
            entry.flags.store(flags, Ordering::Release);
        }
        let theirs = world
            .alloc_unbound(id, VcpuId(0), DOM0)
            .expect("a new domain has free ports");
        let port = world
            .bind_interdomain(DOM0, self.vcpu, id, theirs)
            .expect("the port was allocated for dom0");
        let domain = world.alive_mut(id).expect("the domain is new");
        domain.store = Some((address, theirs));
        let page = NonNull::new(address as *mut u8).expect("pages are not at address 0");
        // SAFETY: the page is domain memory, which stays mapped as long as the machine, and which
        // is only ever reached through raw pointers.
        let ring = unsafe { ServerEnd::new(page, id) };
        let full = false;
        self.connections.insert(id, Connection { ring, port, full });
        self.server.introduce(id);
    }

    /// A domain is gone: so are its connection and xenstored's end of the channel.
    pub(super) fn release(&mut self, world: &mut World, id: DomId) {
        if let Some(connection) = self.connections.remove(&id) {
            let closed = world.close_port(DOM0, connection.port);
            closed.expect("xenstored's ports stay open until it closes them");
        }
        self.server.release(id);
    }

    /// Serves every ring that was notified or for which something waits. A request that its domain
    /// does not notify of is not seen, and neither is room in a ring that was full.
    pub(super) fn step(&mut self, world: &mut World) -> bool {
        let mut moved = self.server.step() > 0;
        let mut rung = Vec::new();
        if let Some(vcpu) = world.vcpu_mut(DOM0, self.vcpu) {
            while let Some(port) = vcpu.take_pending(Port(0)) {
                rung.push(port);
            }
        }
        for (&id, connection) in &mut self.connections {
            let notified = rung.contains(&connection.port);
            let waiting = self.server.has_outgoing(id) && !connection.full;
            if !notified && !waiting {
                continue;
            }
            moved |= notified;
            if connection.ring.pump(&mut self.server) {
                moved = true;
                let sent = world.notify(DOM0, connection.port);
                sent.expect("xenstored's ports stay open until it closes them");
            }
            connection.full = self.server.has_outgoing(id);
        }
        moved
    }
}
