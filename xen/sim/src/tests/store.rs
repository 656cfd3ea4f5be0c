//! xenstored behind each domain's ring.

use crate::xenstore::toolstack;
use crate::{DomainConfig, Sim, SimDomain};
use bulkhead_xen::abi::xs_wire::{
    Header, MessageType, RING_SIZE, RequestId, TransactionId, XenstoreInterface,
};
use bulkhead_xen::{Hypervisor, StoreRing};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

/// A domain's end of its ring, as plain as can be.
struct Client {
    domain: SimDomain,
    ring: StoreRing,
}

impl Client {
    fn new(domain: &SimDomain) -> Client {
        Client {
            domain: domain.clone(),
            ring: domain.store_ring(),
        }
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the ring's page.
        unsafe { AtomicU32::from_ptr(self.ring.page.add(offset).cast().as_ptr()) }
    }

    /// Puts bytes onto the ring, without notifying xenstored.
    fn put(&self, bytes: &[u8]) {
        let index = self.index(offset_of!(XenstoreInterface, request_producer));
        let producer = index.load(Ordering::Relaxed);
        for (at, byte) in bytes.iter().enumerate() {
            let slot = (producer as usize + at) % RING_SIZE;
            // SAFETY: inside the ring's page.
            unsafe { self.ring.page.add(slot).write_volatile(*byte) };
        }
        index.store(producer + bytes.len() as u32, Ordering::Release);
    }

    fn ring(&self) {
        self.domain.hypervisor().notify(self.ring.port).unwrap();
    }

    /// Takes all bytes off the ring.
    fn take(&self) -> Vec<u8> {
        let index = self.index(offset_of!(XenstoreInterface, response_consumer));
        let producer = self.index(offset_of!(XenstoreInterface, response_producer));
        let (start, end) = (
            index.load(Ordering::Relaxed),
            producer.load(Ordering::Acquire),
        );
        let at = |index: u32| offset_of!(XenstoreInterface, responses) + index as usize % RING_SIZE;
        // SAFETY: inside the ring's page.
        let read = |index| unsafe { self.ring.page.add(at(index)).read_volatile() };
        let bytes = (start..end).map(read).collect();
        index.store(end, Ordering::Release);
        bytes
    }
}

fn request(message_type: MessageType, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        message_type,
        request: RequestId(1),
        transaction: TransactionId::NONE,
        length: payload.len() as u32,
    };
    [&header.to_bytes()[..], payload].concat()
}

#[test]
fn a_request_is_answered_and_both_sides_notified() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    let client = Client::new(&domain);
    sim.step_xenstored();
    domain.hypervisor().take_pending(&mut |_| ());

    client.put(&request(MessageType::READ, b"domid\0"));
    assert!(!sim.step_xenstored(), "nobody told xenstored");
    client.ring();
    assert!(sim.step_xenstored());
    let mut rung = Vec::new();
    domain
        .hypervisor()
        .take_pending(&mut |port| rung.push(port));
    assert_eq!(rung, [client.ring.port]);
    let expected = request(MessageType::READ, domain.id().to_string().as_bytes());
    assert_eq!(client.take(), expected);
    assert!(!sim.step_xenstored());
    sim.assert_no_violations();
}

#[test]
fn an_answer_longer_than_the_ring_comes_in_parts() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    let value = "v".repeat(2000);
    sim.store().write("/local/domain/1/long", &value);
    let path = "/local/domain/1/long";
    let readers = crate::xenstore::owned_by(bulkhead_xen::DomId(0), &[domain.id()]);
    sim.store().set_permissions(path, &readers);
    let client = Client::new(&domain);
    client.put(&request(MessageType::READ, b"long\0"));
    client.ring();
    let mut got = Vec::new();
    for _ in 0..3 {
        sim.step_xenstored();
        // Room that xenstored is not told of is room that it does not see.
        assert!(!sim.step_xenstored());
        got.extend(client.take());
        client.ring();
    }
    assert_eq!(got, request(MessageType::READ, value.as_bytes()));
}

#[test]
fn dom0_has_a_ring_too() {
    let sim = Sim::new();
    let client = Client::new(&sim.dom0());
    client.put(&request(MessageType::WRITE, b"/tool\0value"));
    client.ring();
    sim.step_xenstored();
    assert_eq!(sim.store().read("/tool").as_deref(), Some("value"));
}

#[test]
fn a_driver_domain_has_its_nodes() {
    let sim = Sim::new();
    let storage = sim.add_domain_with(DomainConfig {
        name: Some("storage".into()),
        driver_domain: true,
        ..DomainConfig::default()
    });
    let store = sim.store();
    let node = |path: &str| store.exists(&format!("/local/domain/{}/{path}", storage.id()));
    assert!(node("libxl") && node("control/shutdown"));
    assert!(!node("backend"), "nothing is attached yet");
}

#[test]
fn a_machine_may_be_used_from_several_threads() {
    fn shareable<T: Send + Sync>(_: &T) {}
    let sim = Sim::new();
    shareable(&sim);
    shareable(&sim.dom0());
    shareable(&sim.dom0().hypervisor());
}

#[test]
fn a_destroyed_domain_is_released() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    let open = sim.dom0().open_ports();
    assert!(sim.store().exists("/local/domain/1/name"));
    sim.destroy_domain(domain.id());
    assert!(!sim.store().is_introduced(domain.id()));
    assert_eq!(sim.dom0().open_ports(), open - 1);
    assert!(sim.store().exists("/local/domain/1/name"));
    toolstack::remove_domain(&mut sim.store(), domain.id());
    assert!(!sim.store().exists("/local/domain/1"));
    sim.assert_no_violations();
}
