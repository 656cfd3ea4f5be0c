//! Backends that do not let go of the memory that they were granted.

use bulkhead_net_testing::world::{TestStream, World, exchange, pattern, states};
use bulkhead_net_testing::{NetBack, Offered};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const SERVER: &str = "10.0.0.2:7";

/// Has a new stream carry bytes both ways.
fn carry(world: &World) -> TestStream {
    let stream = world.connect(SERVER);
    let exchanged = world.within(MINUTE, exchange(stream, pattern(5000), 5000));
    let (echoed, stream) = exchanged.expect("echoed").expect("the stream goes on");
    assert!(echoed == pattern(5000));
    stream
}

/// Detaches the interface, and attaches another one of the same number and backend. Then lets that much time pass.
fn replace(world: &World, span: Duration) {
    world.back.borrow().request_detach(&world.sim);
    world.wait(SECOND);
    world.back.borrow().finish_detach(&world.sim);
    world.wait(SECOND);
    let backend = world.backend.id();
    world.back.borrow().attach(&mut world.sim.store(), backend);
    world.wait(span);
}

/// Has the backend let go of the page that it keeps. The domain takes it back, and nothing is left.
fn end_once_it_lets_go(world: World) {
    assert!(world.back.borrow_mut().let_go());
    world.wait(2 * MINUTE);
    world.end();
}

/// Has the backend keep the page of a packet.
fn keep_a_page(world: &World) {
    world.back.borrow_mut().keeps_page = true;
    drop(carry(world));
}

#[test]
fn a_backend_that_keeps_a_page_does_not_hold_up_an_interface_in_the_place_of_its_own() {
    let world = World::new(true);
    keep_a_page(&world);
    replace(&world, 5 * SECOND);
    assert_eq!(world.states(), states("4", "4"));
    drop(carry(&world));
    end_once_it_lets_go(world);
}

#[test]
fn a_backend_that_keeps_a_page_and_starts_anew_is_connected_to_again() {
    let world = World::new(true);
    keep_a_page(&world);
    let stream = carry(&world);
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(8 * SECOND);
    assert_eq!(world.states(), states("4", "4"));
    let exchanged = world.within(MINUTE, exchange(stream, pattern(5000), 5000));
    drop(exchanged.expect("echoed").expect("the stream goes on"));
    end_once_it_lets_go(world);
}

#[test]
fn an_interface_is_attached_to_another_domain_while_the_first_one_hangs() {
    let world = World::new(true);
    drop(carry(&world));
    let shared = world.domain.grants_in_use();
    assert!(shared > 0);
    world.back.borrow_mut().hangs = true;
    world.back.borrow().request_detach(&world.sim);
    world.wait(SECOND);
    world.back.borrow().finish_detach(&world.sim);
    world.wait(SECOND);
    let offered = Offered {
        parts: true,
        offload: true,
        queues: None,
    };
    let other = world.sim.add_domain();
    let other = NetBack::new(&world.sim, &other, world.domain.id(), offered);
    let mut hung = world.back.replace(other);
    world.wait(5 * SECOND);
    assert_eq!(world.states(), states("4", "4"));
    drop(carry(&world));

    // It goes on with the rings that it has. What they say of pages still holds: it copies by their numbers.
    hung.hangs = false;
    hung.to_frontend.push_back(Default::default());
    hung.to_frontend[0].bytes = pattern(1000);
    assert!(hung.step(&world.sim), "it finds a page");
    drop(carry(&world));
    hung.disconnect();
    world.wait(2 * MINUTE);
    assert_eq!(world.domain.grants_in_use(), shared, "the other one's");
    world.end();
}

#[test]
fn memory_that_backends_keep_is_bounded() {
    let world = World::new(true);
    keep_a_page(&world);
    replace(&world, 5 * SECOND);
    assert_eq!(world.states(), states("4", "4"));
    keep_a_page(&world);
    let pages = world.domain.pages_in_use();
    replace(&world, 5 * SECOND);
    // There is no third connection beside what it has of two.
    assert_ne!(world.states().0, "4");
    assert!(world.domain.pages_in_use() <= pages);
    assert!(world.back.borrow_mut().let_go());
    world.wait(4 * MINUTE);
    assert_eq!(world.states(), states("4", "4"));
    drop(carry(&world));
    end_once_it_lets_go(world);
}
