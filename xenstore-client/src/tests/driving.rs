//! The connection as a task of the executor, in the simulated Xen.

use super::{GUEST, OTHER};
use crate::{Client, Connection, ConnectionFault, Error, Fault, Ring, Transport};
use bulkhead_executor::Executor;
use bulkhead_xen::abi::xs_wire::ERROR_RING_INDEX;
use bulkhead_xen::{DomId, Hypervisor};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xen_sim::{DomainConfig, Sim, SimVcpu};
use std::cell::RefCell;
use std::format;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

fn domain(sim: &Sim, id: DomId) -> (Executor<SimVcpu>, Client) {
    let domain = sim.add_domain_with(DomainConfig {
        id: Some(id),
        ..DomainConfig::default()
    });
    toolstack::create_domain(&mut sim.store(), id, "domain", true);
    let executor = Executor::new(domain.hypervisor());
    // SAFETY: the domain's ring is used once, and lives as long as the simulated machine.
    let ring = unsafe { Ring::new(domain.hypervisor(), domain.store_ring()) };
    let client = Client::start(&executor.handle(), ring);
    (executor, client)
}

#[test]
fn two_domains_meet_in_the_store() {
    let sim = Sim::new();
    let (mut backend, backend_store) = domain(&sim, OTHER);
    let (mut guest, guest_store) = domain(&sim, GUEST);
    let vbd = Vbd::new(OTHER, GUEST, "xvda");

    // The backend waits for disks, and answers each frontend that has come far enough.
    let store = backend_store.clone();
    backend.handle().spawn(async move {
        let mut watch = store.watch("backend/vbd").await.unwrap();
        loop {
            let path = watch.next().await.unwrap();
            let Some(below) = path.below("backend/vbd") else {
                continue;
            };
            if below.split('/').count() != 3 || !below.ends_with("/state") {
                continue;
            }
            if store.read_optional(&path).await.unwrap().as_deref() == Some("1") {
                store.write(&path, "2").await.unwrap();
            }
        }
    });
    // The frontend waits for that.
    let seen = Rc::new(RefCell::new(Vec::<String>::new()));
    let log = seen.clone();
    let state = format!("{}/state", vbd.backend_path());
    guest.handle().spawn(async move {
        let mut watch = guest_store.watch(&state).await.unwrap();
        loop {
            watch.next().await.unwrap();
            // Before the disk is there, this guest may not even know.
            let value = match guest_store.read(&state).await {
                Ok(value) => value,
                Err(error) => error.refusal().unwrap().to_string(),
            };
            log.borrow_mut().push(value);
        }
    });
    sim.run_until_idle(|| backend.run_until_idle() | guest.run_until_idle());
    assert_eq!(*seen.borrow(), ["EACCES"]);
    toolstack::attach(&mut sim.store(), &vbd, &Disk::new("ram:disk0"));
    sim.run_until_idle(|| backend.run_until_idle() | guest.run_until_idle());
    assert_eq!(seen.borrow().last().unwrap(), "2");
    assert_eq!(vbd.backend_state(&mut sim.store()).unwrap(), "2");
    sim.assert_no_violations();
}

#[test]
fn many_tasks_share_one_slow_store() {
    let sim = Sim::new();
    let (mut executor, store) = domain(&sim, GUEST);
    sim.store().faults.requests_per_step = Some(1);
    sim.store().faults.conflicts = 20;
    let done = Rc::new(RefCell::new(0));
    for task in 0..30 {
        let (store, done) = (store.clone(), done.clone());
        executor.handle().spawn(async move {
            // All count in one node: no increment may be lost.
            store
                .transaction(async |tx| {
                    let count: u32 = tx.read_number_optional("data/count").await?.unwrap_or(0);
                    tx.write("data/count", (count + 1).to_string()).await
                })
                .await
                .unwrap();
            store.write(format!("data/task-{task}"), "1").await.unwrap();
            *done.borrow_mut() += 1;
        });
    }
    sim.run_until_idle(|| executor.run_until_idle());
    assert_eq!(*done.borrow(), 30);
    let count = sim.store().read("/local/domain/5/data/count");
    assert_eq!(count.as_deref(), Some("30"));
    assert_eq!(sim.store().transaction_count(GUEST), 0);
    sim.assert_no_violations();
}

#[test]
fn everyone_who_waits_is_woken_when_the_connection_breaks() {
    let sim = Sim::new();
    let (mut executor, store) = domain(&sim, GUEST);
    let told = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..9 {
        let (store, told) = (store.clone(), told.clone());
        executor.handle().spawn(async move {
            match store.begin().await {
                // Eight hold their places and wait for nothing of the store any more.
                Ok(transaction) => {
                    let _held = transaction;
                    core::future::pending::<()>().await;
                }
                Err(error) => told.borrow_mut().push(error),
            }
        });
    }
    let log = told.clone();
    executor.handle().spawn(async move {
        let mut watch = store.watch("data").await.unwrap();
        watch.next().await.unwrap();
        let first = watch.next().await.unwrap_err();
        // Later requests fail at once.
        let second = store.read("data").await.unwrap_err();
        log.borrow_mut().extend([first, second]);
    });
    sim.run_until_idle(|| executor.run_until_idle());
    assert!(told.borrow().is_empty());
    sim.store().give_up(GUEST, ERROR_RING_INDEX);
    // xenstored looks at the ring, and tells there that it has given up.
    let port = sim.domain(GUEST).unwrap().store_ring().port;
    sim.domain(GUEST)
        .unwrap()
        .hypervisor()
        .notify(port)
        .unwrap();
    sim.run_until_idle(|| executor.run_until_idle());
    let code = ERROR_RING_INDEX;
    let gone = Error::from(Fault::Disconnected(ConnectionFault::GivenUp { code }));
    assert_eq!(*told.borrow(), [gone.clone(), gone.clone(), gone]);
}

/// A transport to nowhere.
struct Silence;

impl Transport for Silence {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, ConnectionFault> {
        Ok(bytes.len())
    }

    fn receive(&mut self, _: &mut [u8]) -> Result<usize, ConnectionFault> {
        Ok(0)
    }

    fn notify(&mut self) {}
}

#[test]
fn a_connection_that_is_stopped_hangs_nobody() {
    let sim = Sim::new();
    let mut executor = Executor::new(sim.add_domain().hypervisor());
    let (store, connection) = Connection::new(Silence);
    let task = executor.handle().spawn(async move {
        connection.run(async || core::future::pending().await).await;
    });
    let result = Rc::new(RefCell::new(None));
    let told = result.clone();
    executor.handle().spawn(async move {
        *told.borrow_mut() = Some(store.read("data").await);
    });
    executor.run_until_idle();
    assert_eq!(*result.borrow(), None);
    task.stop();
    executor.run_until_idle();
    let stopped = Error::from(Fault::Disconnected(ConnectionFault::Stopped));
    assert_eq!(*result.borrow(), Some(Err(stopped)));
}
