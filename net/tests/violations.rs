//! Backends that break the protocol.

use bulkhead_net_testing::Violation;
use bulkhead_net_testing::world::{World, end_of, states};
use bulkhead_stream::{ConnectError, Ended, Stream};
use std::time::Duration;

#[test]
fn a_backend_that_violates_the_protocol_costs_its_interface_alone() {
    for (violation, reason) in [
        (Violation::RxIndex, "producer index 0x186a0"),
        (Violation::RxId, "answered request 4, which"),
        (Violation::RxOffset(4090, 60), "put 60 bytes at byte 4090"),
        (Violation::RxOffset(65535, 1), "put 1 bytes at byte 65535"),
        (Violation::RxEndless, "longer than any packet"),
        (Violation::TxId(77), "answered request 77, which"),
        (Violation::TxId(9999), "answered request 9999, which"),
        (
            Violation::TxNull,
            "answered details of a packet that had none",
        ),
    ] {
        let world = World::new(true);
        let mut stream = world.connect("10.0.0.2:7");
        if matches!(violation, Violation::TxId(_) | Violation::TxNull) {
            // There is something to be answered.
            world.back.borrow_mut().stalled = true;
            assert_eq!(stream.send(&mut |_| 10), Ok(10));
            stream.push();
            world.run();
        }
        world.back.borrow_mut().violate(violation);
        world.back.borrow_mut().stalled = true;
        world.run();
        let line = world.lines();
        assert!(line.contains(", given up: "), "{violation:?}: {line}");
        assert!(line.contains(reason), "{violation:?}: {line}");
        assert_eq!(world.states(), states("6", "6"), "{violation:?}");
        let ended = world.within(Duration::from_secs(1), end_of(stream));
        assert_eq!(ended, Some(Ended::NoNetwork), "{violation:?}");
        let refused = world.try_connect("10.0.0.2:7").map(drop);
        assert_eq!(refused, Err(ConnectError::NoNetwork));
        world.back.borrow_mut().stalled = false;
        world.end();
    }
}
