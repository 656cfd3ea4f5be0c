//! Going on with a connection whose user has started again.

use super::*;
use crate::{Connection, NotResumed, Positions, Resumable, Transport};
use core::sync::atomic::Ordering;
use std::string::{String, ToString};
use std::vec::Vec;

/// The numbers that survive, all 0.
fn positions() -> &'static Positions {
    Box::leak(Box::default())
}

fn resumable(
    page: &Page,
    hypervisor: &NotificationCount,
    positions: &'static Positions,
) -> Resumable<Ring<NotificationCount>> {
    let ring = StoreRing {
        page: page.address(),
        port: Port(1),
    };
    // SAFETY: as in `Page::ring`; the ring before was dropped.
    let ring = unsafe { Ring::resumed(hypervisor.clone(), ring) };
    Resumable::new(ring, positions).expect("good positions")
}

/// A connection over a ring that was used before, by `earlier` users.
fn connect(
    page: &Page,
    hypervisor: &NotificationCount,
    positions: &'static Positions,
    earlier: u32,
) -> (Client, Connection<Resumable<Ring<NotificationCount>>>) {
    let (client, connection) = Connection::new(resumable(page, hypervisor, positions));
    client.number_from(earlier << 24);
    (client, connection)
}

/// Runs a request to its end.
fn run<T>(
    connection: &mut Connection<Resumable<Ring<NotificationCount>>>,
    end: &mut ServerEnd,
    server: &mut Server,
    future: impl Future<Output = T>,
) -> T {
    let mut future = pin!(future);
    for _ in 0..10_000 {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        connection.pump().expect("a good connection");
        end.pump(server);
    }
    panic!("it never ends");
}

#[test]
fn users_that_crash_at_any_moment_are_followed_by_ones_that_are_answered() {
    let rig = Rig::new();
    let (page, hypervisor) = (&rig.page, &rig.hypervisor);
    let (mut end, mut server) = (page.server_end(), rig.server);
    // Longer than the ring, so that answers are read in parts.
    let long: String = (0..180).map(|n| (n % 10).to_string().repeat(10)).collect();
    let positions = positions();
    let mut resumed_within_an_answer = 0;
    for earlier in 0..60 {
        let made = Resumable::new(
            // SAFETY: as in `Page::ring`; the ring before was dropped.
            unsafe {
                let (page, port) = (page.address(), Port(1));
                Ring::resumed(hypervisor.clone(), StoreRing { page, port })
            },
            positions,
        );
        drop(made.expect("requests are sent as a whole here"));
        resumed_within_an_answer += usize::from(positions[2].load(Ordering::Relaxed) != 0);
        let (client, mut connection) = connect(page, hypervisor, positions, earlier);
        run(
            &mut connection,
            &mut end,
            &mut server,
            client.reset_watches(),
        )
        .expect("reset");
        let writing = client.write("data/long", &long);
        run(&mut connection, &mut end, &mut server, writing).expect("written");
        // Requests are left unanswered, in as many states as there are steps.
        let mut reads: Vec<_> = (0..3).map(|_| Box::pin(client.read("data/long"))).collect();
        for read in &mut reads {
            let mut context = Context::from_waker(Waker::noop());
            assert!(read.as_mut().poll(&mut context).is_pending());
        }
        for step in 0..earlier % 20 {
            if step % 2 == 0 {
                connection.pump().expect("a good connection");
            } else {
                end.pump(&mut server);
            }
        }
        // The crash: nothing of the user runs any more.
        drop(reads);
        core::mem::forget(connection);
    }
    assert!(resumed_within_an_answer > 10, "{resumed_within_an_answer}");
}

#[test]
fn a_request_that_was_cut_off_is_told() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    let positions = positions();
    let mut ring = resumable(&page, &hypervisor, positions);
    // A request of 2000 bytes, of which the ring takes 1024.
    let mut request = [0; 2000];
    request[12..16].copy_from_slice(&1984_u32.to_le_bytes());
    assert_eq!(ring.send(&request), Ok(1024));
    let again = page.ring(hypervisor.clone());
    let resumed = Resumable::new(again, positions).err();
    assert_eq!(resumed, Some(NotResumed::CutOff));
    page.set(
        offset_of!(Interface, request_consumer),
        page.get(offset_of!(Interface, request_producer)),
    );
    assert_eq!(ring.send(&request[1024..]), Ok(976));
    assert!(Resumable::new(page.ring(hypervisor), positions).is_ok());
}

#[test]
fn impossible_positions_are_refused() {
    let page = Page::new();
    for (place, value) in [(0, 5000), (1, 4097), (2, u32::MAX), (3, 4097)] {
        let positions = positions();
        positions[place].store(value, Ordering::Relaxed);
        let ring = page.ring(NotificationCount::default());
        let resumed = Resumable::new(ring, positions).err();
        assert_eq!(resumed, Some(NotResumed::Damaged), "{place}");
    }
}
