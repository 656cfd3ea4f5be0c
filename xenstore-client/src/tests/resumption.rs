//! Going on with a connection whose user has started again.

use super::*;
use crate::{Connection, NotResumed, Positions, Resumable, Transport, is_within_request};
use core::sync::atomic::Ordering;
use std::string::{String, ToString};
use std::vec::Vec;

/// The numbers that survive, all 0.
fn positions() -> &'static Positions {
    Box::leak(Box::default())
}

fn resume(
    page: &Page,
    hypervisor: &NotificationCount,
    positions: &'static Positions,
) -> Result<Resumable<NotificationCount>, NotResumed> {
    let ring = StoreRing {
        page: page.address(),
        port: Port(1),
    };
    // SAFETY: as in `Page::ring`; the ring before was dropped, or is not used meanwhile.
    let ring = unsafe { Ring::resumed(hypervisor.clone(), ring) };
    Resumable::new(ring, positions)
}

/// A connection over a ring that was used before, by `earlier` users.
fn connect(
    page: &Page,
    hypervisor: &NotificationCount,
    positions: &'static Positions,
    earlier: u32,
) -> (Client, Connection<Resumable<NotificationCount>>) {
    let ring = resume(page, hypervisor, positions).expect("requests are sent as a whole");
    let (client, connection) = Connection::new(ring);
    client.number_from(earlier << 24);
    (client, connection)
}

/// Runs a request to its end.
fn run<T>(
    connection: &mut Connection<Resumable<NotificationCount>>,
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

/// What a user writes that is not its own: notes and indices, in the order in which a step of its connection writes
/// them, of which there is one of each.
struct Written {
    notes: [u32; 4],
    requests: u32,
    responses: u32,
}

const REQUESTS: usize = offset_of!(XenstoreInterface, request_producer);
const RESPONSES: usize = offset_of!(XenstoreInterface, response_consumer);

impl Written {
    fn at_present(page: &Page, positions: &Positions) -> Written {
        Written {
            notes: positions
                .each_ref()
                .map(|note| note.load(Ordering::Relaxed)),
            requests: page.get(REQUESTS),
            responses: page.get(RESPONSES),
        }
    }

    /// Takes back what was written since then but for the first `kept` of the four.
    fn take_back(&self, kept: u32, page: &Page, positions: &Positions) {
        let notes = |range: core::ops::Range<usize>| {
            for number in range {
                positions[number].store(self.notes[number], Ordering::Relaxed);
            }
        };
        if kept < 1 {
            notes(0..2);
        }
        if kept < 2 {
            page.set(REQUESTS, self.requests);
        }
        if kept < 3 {
            notes(2..4);
        }
        if kept < 4 {
            page.set(RESPONSES, self.responses);
        }
    }
}

/// Returns whether the note for the ring's index says that a part of an answer was taken.
fn is_within_an_answer(page: &Page, positions: &Positions) -> bool {
    let index = page.get(RESPONSES) & 0xfff;
    let mut notes = positions[2..]
        .iter()
        .map(|note| note.load(Ordering::Relaxed));
    notes.any(|note| note >> 18 & 0xfff == index && note >> 13 & 0x1f != 0)
}

#[test]
fn users_that_crash_after_any_write_are_followed_by_ones_that_are_answered() {
    let rig = Rig::new();
    let (page, hypervisor) = (&rig.page, &rig.hypervisor);
    let (mut end, mut server) = (page.server_end(), rig.server);
    // Longer than the ring, so that answers are read in parts.
    let long: String = (0..180).map(|n| (n % 10).to_string().repeat(10)).collect();
    let positions = positions();
    let mut resumed_within_an_answer = 0;
    let (mut torn_requests, mut torn_answers) = (0, 0);
    for earlier in 0..250 {
        resumed_within_an_answer += usize::from(is_within_an_answer(page, positions));
        let (client, mut connection) = connect(page, hypervisor, positions, earlier);
        run(
            &mut connection,
            &mut end,
            &mut server,
            client.reset_watches(),
        )
        .expect("reset");
        if earlier == 0 {
            // Through another connection: a request as long as this could be cut off.
            let path = std::format!("{}/data/long", domain_path(GUEST));
            server.write(&path, &long);
        }
        // Requests are left unanswered, in as many states as there are steps.
        let mut reads: Vec<_> = (0..3).map(|_| Box::pin(client.read("data/long"))).collect();
        for read in &mut reads {
            let mut context = Context::from_waker(Waker::noop());
            assert!(read.as_mut().poll(&mut context).is_pending());
        }
        for step in 0..earlier / 5 % 20 {
            if step % 2 == 0 {
                connection.pump().expect("a good connection");
            } else {
                end.pump(&mut server);
            }
        }
        // The crash: nothing of the user runs any more after its last step, or some of the writes of that.
        let before = Written::at_present(page, positions);
        connection.pump().expect("a good connection");
        let after = Written::at_present(page, positions);
        let kept = earlier % 5;
        torn_requests += u32::from(after.requests != before.requests && kept == 1);
        torn_answers += u32::from(after.responses != before.responses && kept == 3);
        before.take_back(kept, page, positions);
        drop(reads);
        core::mem::forget(connection);
    }
    assert!(resumed_within_an_answer > 10, "{resumed_within_an_answer}");
    assert!(
        torn_requests > 0 && torn_answers > 5,
        "{torn_requests}, {torn_answers}"
    );
}

/// A request with that many bytes of payload.
fn request(payload: u32) -> Vec<u8> {
    let mut request = std::vec![0; 16 + payload as usize];
    request[12..16].copy_from_slice(&payload.to_le_bytes());
    request
}

#[test]
fn requests_are_sent_as_a_whole_as_soon_as_there_is_room() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    let positions = positions();
    let mut ring = resume(&page, &hypervisor, positions).expect("good positions");
    let requests = [request(584), request(0), request(484), request(3)].concat();
    let sent = ring.send(&requests);
    assert_eq!(sent, Ok(616), "the third does not fit any more");
    assert_eq!(ring.send(&requests[616..]), Ok(0));
    assert!(resume(&page, &hypervisor, positions).is_ok());
    assert!(!is_within_request(positions));
    // Room for all but one byte of it.
    let consumer = offset_of!(XenstoreInterface, request_consumer);
    page.set(consumer, page.get(consumer).wrapping_add(91));
    assert_eq!(ring.send(&requests[616..]), Ok(0));
    page.set(consumer, page.get(consumer).wrapping_add(1));
    assert_eq!(ring.send(&requests[616..]), Ok(500));
    page.set(consumer, page.get(REQUESTS));
    assert_eq!(ring.send(&requests[1116..]), Ok(19));
    assert!(resume(&page, &hypervisor, positions).is_ok());
}

#[test]
fn a_request_that_was_cut_off_is_told() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    let positions = positions();
    let mut ring = resume(&page, &hypervisor, positions).expect("good positions");
    // A request of 2000 bytes, of which the ring takes 1024, and one behind it.
    let requests = [request(1984), request(8)].concat();
    assert_eq!(ring.send(&requests), Ok(1024));
    let resumed = resume(&page, &hypervisor, positions).err();
    assert_eq!(resumed, Some(NotResumed::CutOff));
    assert!(is_within_request(positions));
    page.set(
        offset_of!(XenstoreInterface, request_consumer),
        page.get(REQUESTS),
    );
    assert_eq!(ring.send(&requests[1024..]), Ok(976));
    assert!(resume(&page, &hypervisor, positions).is_ok());
    assert_eq!(ring.send(&requests[2000..]), Ok(24));
    assert!(!is_within_request(positions));
}

#[test]
fn a_length_that_no_message_has_ends_nothing_but_the_connection() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    let positions = positions();
    let mut ring = resume(&page, &hypervisor, positions).expect("good positions");
    let producer = offset_of!(XenstoreInterface, response_producer);
    let start = page.get(producer);
    // The ring is full of 0xa5, and so is the length of the message.
    for arrived in 1..=200 {
        page.set(producer, start.wrapping_add(arrived));
        assert_eq!(ring.receive(&mut [0; 8]), Ok(1));
        assert!(resume(&page, &hypervisor, positions).is_ok(), "{arrived}");
    }
}

#[test]
fn impossible_positions_are_refused() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    // What was noted for another index, what has the same index twice, and places that there are not.
    let good = positions();
    drop(resume(&page, &hypervisor, good).expect("good positions"));
    let [sent, _, received, _] = good.each_ref().map(|note| note.load(Ordering::Relaxed));
    for (place, value) in [
        (0, sent ^ 1 << 18),
        (0, 5000),
        (0, 0),
        (0, sent | 1),
        (0, sent | 17 << 13),
        (0, sent | 16 << 13),
        (1, sent),
        (2, received & !(1 << 31)),
        (2, received | 16 << 13 | 4097),
        (2, u32::MAX),
        (3, received),
    ] {
        let positions = positions();
        for (position, good) in positions.iter().zip(good) {
            position.store(good.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        positions[1].store(1, Ordering::Relaxed);
        positions[3].store(1, Ordering::Relaxed);
        assert!(resume(&page, &hypervisor, positions).is_ok(), "{place}");
        positions[place].store(value, Ordering::Relaxed);
        let resumed = resume(&page, &hypervisor, positions).err();
        assert_eq!(resumed, Some(NotResumed::Damaged), "{place}: {value:#x}");
    }
}
