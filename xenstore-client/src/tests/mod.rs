//! The client against the simulated xenstored, over a ring in memory.
#![allow(unsafe_code)]

mod against_server;
mod driving;
mod hypervisor;
mod model;
mod resumption;
mod ring;
mod transactions;
mod wire;

use crate::{Client, Connection, Ring};
use bulkhead_xen::abi::xs_wire::XenstoreInterface;
use bulkhead_xen::{DomId, Port, StoreRing};
use bulkhead_xen_sim::xenstore::ring::ServerEnd;
use bulkhead_xen_sim::xenstore::{Server, domain_path, owned_by};
use core::future::Future;
use core::mem::offset_of;
use core::pin::pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};
use hypervisor::NotificationCount;
use std::boxed::Box;

const GUEST: DomId = DomId(5);
const OTHER: DomId = DomId(6);

#[repr(C, align(4096))]
struct Bytes([u8; 4096]);

/// A page that both ends of a ring see.
struct Page(NonNull<Bytes>);

impl Page {
    /// A page with rubbish in the rings, and all indices close to where they wrap.
    fn new() -> Page {
        let page = Page(NonNull::from(Box::leak(Box::new(Bytes([0xa5; 4096])))));
        for index in [
            offset_of!(XenstoreInterface, request_consumer),
            offset_of!(XenstoreInterface, request_producer),
            offset_of!(XenstoreInterface, response_consumer),
            offset_of!(XenstoreInterface, response_producer),
        ] {
            page.set(index, u32::MAX - 100);
        }
        page.set(offset_of!(XenstoreInterface, server_features), 0);
        page.set(offset_of!(XenstoreInterface, connection), 0);
        page.set(offset_of!(XenstoreInterface, error), 0);
        page
    }

    fn address(&self) -> NonNull<u8> {
        self.0.cast()
    }

    fn set(&self, offset: usize, value: u32) {
        // SAFETY: the offset is that of an aligned word in the page.
        unsafe {
            self.address()
                .add(offset)
                .cast::<u32>()
                .write_volatile(value)
        }
    }

    fn get(&self, offset: usize) -> u32 {
        // SAFETY: the offset is that of an aligned word in the page.
        unsafe { self.address().add(offset).cast::<u32>().read_volatile() }
    }

    fn ring(&self, hypervisor: NotificationCount) -> Ring<NotificationCount> {
        let ring = StoreRing {
            page: self.address(),
            port: Port(1),
        };
        // SAFETY: the page lives as long as the rig that it is part of, and is used by this ring
        // and the server's end alone.
        unsafe { Ring::new(hypervisor, ring) }
    }

    fn server_end(&self) -> ServerEnd {
        // SAFETY: as in `ring`.
        unsafe { ServerEnd::new(self.address(), GUEST) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page came from a box, and its users were dropped before.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A client, its connection, and the store on the other side. Fields are dropped in this order.
struct Rig {
    client: Client,
    connection: Connection<Ring<NotificationCount>>,
    end: ServerEnd,
    server: Server,
    hypervisor: NotificationCount,
    page: Page,
}

impl Rig {
    fn new() -> Rig {
        let mut server = Server::new();
        for domain in [GUEST, OTHER] {
            server.introduce(domain);
            let path = domain_path(domain);
            server.write(&path, "");
            server.set_permissions(&path, &owned_by(DomId(0), &[domain]));
            server.write(&std::format!("{path}/data"), "");
            server.set_permissions(&std::format!("{path}/data"), &owned_by(domain, &[]));
        }
        let page = Page::new();
        let hypervisor = NotificationCount::default();
        let end = page.server_end();
        let (client, connection) = Connection::new(page.ring(hypervisor.clone()));
        Rig {
            client,
            connection,
            end,
            server,
            hypervisor,
            page,
        }
    }

    /// Lets both sides do what they can, once. Returns whether anything moved.
    fn step(&mut self) -> bool {
        let before = self.hypervisor.rung();
        // The tasks that wait see a breakdown.
        let _ = self.connection.pump();
        let moved = self.end.pump(&mut self.server);
        moved || self.hypervisor.rung() != before
    }

    fn settle(&mut self) {
        while self.step() {}
    }

    /// Polls once.
    fn poll<T>(&mut self, future: core::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Runs to the end, in as many rounds as a stuck one would never need.
    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        for _ in 0..10_000 {
            if let Poll::Ready(result) = self.poll(future.as_mut()) {
                return result;
            }
            self.step();
        }
        panic!("it never ends");
    }
}
