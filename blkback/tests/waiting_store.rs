//! A store that has to be waited for before it opens a device.

use bulkhead_blkback_testkit::{Bystander, Guest, Setup, World};
use bulkhead_images::target::Target;
use bulkhead_images::{
    Access, NullDevice, OpenDevice, OpenError, Owner, Sector, SectorSize, Store, open_with,
};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The store `later:`, which opens what is asked of it when a test says so.
#[derive(Clone, Default)]
struct Later {
    answer: Rc<RefCell<Option<Result<(), String>>>>,
    waiting: Rc<Cell<usize>>,
    wakers: Rc<RefCell<Vec<Waker>>>,
}

/// The count of an open that waits for the store.
struct Waiting(Rc<Cell<usize>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Later {
    fn answer(&self, answer: Result<(), &str>) {
        *self.answer.borrow_mut() = Some(answer.map_err(String::from));
        self.wakers.take().into_iter().for_each(Waker::wake);
    }
}

impl Store for Later {
    fn scheme(&self) -> &'static str {
        "later"
    }

    fn expected(&self) -> &'static str {
        "later:NAME"
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, _owner: Owner<'a>) -> OpenDevice<'a> {
        assert_eq!(target.value, "disk");
        self.waiting.set(self.waiting.get() + 1);
        let waiting = Waiting(self.waiting.clone());
        Box::pin(async move {
            let _waiting = waiting;
            let answer = std::future::poll_fn(|context| match &*self.answer.borrow() {
                Some(answer) => Poll::Ready(answer.clone()),
                None => {
                    self.wakers.borrow_mut().push(context.waker().clone());
                    Poll::Pending
                }
            });
            answer.await.map_err(OpenError::Store)?;
            let null = NullDevice::new(Sector(64), SectorSize::B512, access);
            open_with(|| Ok(Arc::new(null))).await
        })
    }
}

/// Returns a machine with that store.
fn world() -> (World, Later) {
    let later = Later::default();
    let world = World::with(Setup {
        stores: vec![Box::new(later.clone())],
        ..Setup::default()
    });
    (world, later)
}

#[test]
fn a_disk_connects_once_its_store_has_opened_it() {
    let (world, later) = world();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    world.wait(Duration::from_secs(5));
    assert_eq!(disk.backend(), Some(XenbusState::Initialising));
    assert_eq!(later.waiting.get(), 1);
    other.io();
    later.answer(Ok(()));
    world.run();
    let mut disk = disk.connected();
    assert_eq!(later.waiting.get(), 0);
    disk.write(8, &[1; 512]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_store_that_refuses_late_says_why() {
    let (world, later) = world();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    later.answer(Err("the disk has no name"));
    world.run();
    assert_eq!(disk.problem().as_deref(), Some("the disk has no name"));
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn the_toolstack_need_not_wait_for_a_store() {
    let (world, later) = world();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    disk.request_detach();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert_eq!(
        later.waiting.get(),
        0,
        "nobody waits for the store any more"
    );
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn a_guest_that_is_destroyed_ends_the_wait_for_a_store() {
    let (world, later) = world();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    guest.destroy(vec![disk]);
    assert_eq!(later.waiting.get(), 0);
    world.nothing_left();
}

#[test]
fn a_disk_that_is_made_anew_meanwhile_is_opened_anew() {
    let (world, later) = world();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    assert_eq!(later.waiting.get(), 1);
    let mut store = world.sim.store();
    toolstack::finish_detach(&mut store, &disk.vbd);
    toolstack::attach(&mut store, &disk.vbd, &Disk::new("ram:disk0"));
    drop(store);
    world.run();
    assert_eq!(later.waiting.get(), 0);
    let disk = disk.connected();
    disk.detach();
    world.nothing_left();
}

#[test]
fn the_end_of_the_driver_domain_does_not_wait_for_a_store() {
    let (world, later) = world();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "later:disk");
    let (backend, closed) = (world.backend.clone(), Rc::new(Cell::new(false)));
    let done = closed.clone();
    world.spawn(async move {
        backend.close().await;
        done.set(true);
    });
    world.wait(Duration::from_secs(1));
    assert!(closed.get() && later.waiting.get() == 0);
    // For the toolstack it was never there: no state of a disk that is not offered yet is overwritten.
    assert_eq!(disk.backend(), Some(XenbusState::Initialising));
}
