//! An operator's requests to the running domain: images that grow under their guests, statistics, and keys on the
//! console.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback::operator::answer_keys;
use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, SECTORS, Setup, Style, World, content,
};
use bulkhead_executor::Executor;
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_xen::Hypervisor;
use bulkhead_xen::abi::xs_wire::{MessageType, Refusal};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenstore_client::{Client, Ring};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Asks for an image to grow, and returns the answer that the operator gets.
fn grow(world: &World, request: &str) -> String {
    world.write(&world.own_path("data/grow"), request);
    let asked = world.read(&world.own_path("data/grow"));
    assert_eq!(asked.as_deref(), Some(""), "the request was seen");
    let answer = world.own_path("data/grow-answer");
    world.read(&answer).expect("there is an answer")
}

/// Removes what an operator leaves behind.
fn forget_requests(world: &World) {
    for node in ["data/grow", "data/grow-answer"] {
        world.sim.store().remove(&world.own_path(node));
    }
    world.run();
}

/// Counts how often the backend writes its state: a write of whatever value makes blkfront look at the size.
fn state_writes(disk: &Frontend<'_>, change: impl FnOnce()) -> usize {
    let mut executor = Executor::new(disk.domain.hypervisor());
    // SAFETY: the guest's own xenstore ring, which nobody else uses.
    let ring = unsafe { Ring::new(disk.domain.hypervisor(), disk.domain.store_ring()) };
    let store = Client::start(&executor.handle(), ring);
    let (count, path) = (Rc::new(Cell::new(0)), disk.backend_path("state"));
    let events = count.clone();
    executor.handle().spawn(async move {
        let mut watch = store.watch(path).await.expect("a guest may watch");
        while watch.next().await.is_ok() {
            events.set(events.get() + 1);
        }
    });
    let mut settle = || while executor.run_until_idle() | disk.world.run() {};
    settle();
    assert_eq!(count.replace(0), 1, "a watch fires once when it is set");
    change();
    settle();
    count.get()
}

#[test]
fn an_image_grows_under_a_connected_frontend() {
    for persistent in [false, true] {
        let world = World::with_discards();
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
        let past = disk.transfer(TransferKind::Read, SECTORS, 8, &[]);
        assert_eq!(past.status, Status::Error, "not there yet");
        let mapped = world.storage.live_mappings();
        let announced = state_writes(&disk, || {
            let answer = grow(&world, "disk0 192K");
            assert_eq!(answer, "image ram:disk0 grew from 131072 to 196608 bytes");
        });
        assert_eq!(announced, 1, "the frontend is told once");
        assert_eq!(disk.backend(), Some(XenbusState::Connected));
        assert_eq!(disk.backend_node("sectors").as_deref(), Some("384"));
        assert_eq!(world.storage.live_mappings(), mapped, "not connected anew");
        // What was there is there; what was added is zeros, and as good as the rest.
        assert!(disk.read(0, 256) == content(0, IMAGE_SIZE));
        assert!(disk.read(SECTORS, 128) == [0; 64 << 10]);
        let across = vec![7; 16 * 512];
        disk.write(SECTORS - 8, &across);
        assert!(disk.read(SECTORS - 8, 16) == across);
        let past = disk.transfer(TransferKind::Read, 384, 8, &[]);
        assert_eq!(past.status, Status::Error, "the new end");
        other.io();
        disk.detach();
        other.leave();
        forget_requests(&world);
        world.nothing_left();
    }
}

#[test]
fn an_image_that_grows_before_a_frontend_connects_has_its_new_size_then() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    grow(&world, "ram:disk0 132K");
    let mut disk = guest.attach("xvda", "ram:disk0");
    grow(&world, "disk0 136K");
    assert_eq!(disk.backend_node("sectors"), None, "not connected yet");
    disk.connect();
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("272"));
    disk.close();
    grow(&world, "disk0 140K");
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.go(XenbusState::Initialising);
    disk.connect();
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("280"));
    assert!(disk.read(SECTORS, 24) == [0; 24 * 512]);
    disk.detach();
    forget_requests(&world);
    world.nothing_left();
}

#[test]
fn a_disk_on_its_way_out_is_not_called_back_by_growth() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0").connected();
    disk.request_detach();
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    grow(&world, "disk0 132K");
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    disk.detach();
    forget_requests(&world);
    world.nothing_left();
}

#[test]
fn every_reader_of_an_image_sees_it_grow() {
    let world = World::with_discards();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let disks = [0, 1].map(|guest: usize| {
        let disk = guests[guest].attach_read_only("xvda", "ram:disk0");
        disk.connected()
    });
    grow(&world, "disk0 132K");
    for mut disk in disks {
        assert_eq!(disk.backend_node("sectors").as_deref(), Some("264"));
        assert!(disk.read(SECTORS, 8) == [0; 4096]);
        disk.detach();
    }
    forget_requests(&world);
    world.nothing_left();
}

#[test]
fn what_cannot_grow_is_answered_and_changes_nothing() {
    let world = World::with_discards();
    let mut other = Bystander::new(&world);
    for (request, expected) in [
        ("disk5 64K", "image disk5 has 131072 bytes already"),
        ("disk5 131073", "not a multiple of 4096"),
        ("disk5 1T", "bytes of memory in one piece"),
        ("nothing 1M", "no image nothing, there are: disk0"),
        ("disk5", "expected NAME SIZE"),
        ("rubbish rubbish", "expected NAME SIZE"),
    ] {
        let answer = grow(&world, request);
        assert!(answer.contains(expected), "{request:?}: {answer}");
        let logged = |line: &String| line.starts_with("ERROR") && line.contains(&answer);
        assert!(world.journal().iter().any(logged), "so says the log");
        other.io();
    }
    other.leave();
    forget_requests(&world);
    world.nothing_left();
}

/// Returns the value of a counter in the text of a `statistics` node.
fn counter(statistics: &str, name: &str) -> u64 {
    let value = statistics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{name} in {statistics}"));
    value.parse().expect("a number")
}

#[test]
fn a_disks_statistics_are_shown_on_request() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let mut idle = guest.attach("xvdb", "ram:disk1").connected();
    disk.read(0, 8);
    disk.read(8, 16);
    disk.write(0, &[1; 4096]);
    disk.flush();
    disk.transfer(TransferKind::Read, SECTORS, 8, &[]);
    let show = |disk: &Frontend<'_>| {
        world.write(&disk.backend_path("statistics"), "refresh");
        let shown = disk.backend_node("statistics");
        shown.expect("what was counted")
    };
    let shown = show(&disk);
    for (name, expected) in [
        ("reads", 2),
        ("writes", 1),
        ("flushes", 1),
        ("discards", 0),
        ("sectors_read", 24),
        ("sectors_written", 8),
        ("errors", 1),
        ("deepest", 1),
    ] {
        assert_eq!(counter(&shown, name), expected, "{name} in {shown}");
    }
    assert_eq!(
        counter(&show(&idle), "reads"),
        0,
        "each disk counts its own"
    );
    idle.read(0, 1);
    assert_eq!(counter(&show(&idle), "reads"), 1);
    // What the guest or anybody else writes there is left alone.
    world.write(&disk.backend_path("statistics"), "rubbish");
    assert_eq!(disk.backend_node("statistics").as_deref(), Some("rubbish"));
    disk.detach();
    idle.detach();
    world.nothing_left();
}

#[test]
fn the_statistics_of_many_queues_fit_into_their_node() {
    let world = World::with(Setup {
        vcpus: 32,
        region_pages: 256 * 1024,
        // Without persistent grants: with them no disk is offered so many.
        ..Setup::on_path(DataPath::Map)
    });
    let guest = Guest::with_memory(&world, 4096);
    let style = Style {
        queues: 32,
        ..Style::default()
    };
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    disk.read(0, 8);
    world.write(&disk.backend_path("statistics"), "refresh");
    let shown = disk.backend_node("statistics").unwrap();
    assert_eq!(counter(&shown, "reads"), 1);
    assert_eq!(counter(&shown, "queue_0_reads"), 1);
    assert!(shown.contains("queue_20_vcpu "), "{shown}");
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    disk.detach();
    world.nothing_left();
}

#[test]
fn statistics_that_xenstored_does_not_take_are_no_matter_of_the_disks() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for refusal in [
        Refusal::QuotaExceeded,
        Refusal::OutOfMemory,
        Refusal::AccessDenied,
    ] {
        world.sim.store().faults.refuse = Some(Box::new(move |_, kind, path| {
            let meant = kind == MessageType::WRITE && path.ends_with("/statistics");
            meant.then_some(refusal)
        }));
        world.write(&disk.backend_path("statistics"), "refresh");
        assert_eq!(disk.backend(), Some(XenbusState::Connected), "{refusal}");
        disk.read(0, 8);
    }
    world.sim.store().faults.refuse = None;
    world.write(&disk.backend_path("statistics"), "refresh");
    let shown = disk.backend_node("statistics").unwrap();
    assert_eq!(counter(&shown, "reads"), 3);
    disk.detach();
    world.nothing_left();
}

#[test]
fn statistics_do_not_bring_a_removed_directory_back() {
    let world = World::new();
    let guest = Guest::new(&world);
    for turns in 0..30 {
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        let node = disk.backend_path("statistics");
        world.sim.store().write(&node, "refresh");
        world.slowly(turns);
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        world.wait_for_removal();
        assert_eq!(world.read(&node), None, "after {turns}");
        assert!(disk.vbd.backend_gone(&world.sim.store()), "after {turns}");
        disk.take_down();
        world.nothing_left();
    }
}

#[test]
fn keys_on_the_console_show_what_there_is() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.read(0, 8);
    let port = world.storage.hypervisor().alloc_unbound(guest.domain.id());
    let port = port.expect("a free port");
    let theirs = guest
        .domain
        .hypervisor()
        .bind_interdomain(world.storage.id(), port);
    let theirs = theirs.expect("it is for this guest");
    let typed: Rc<RefCell<VecDeque<u8>>> = Rc::default();
    let (services, keys) = (world.backend.services.clone(), typed.clone());
    let channel = services.handle.event_channel(port);
    world.spawn(async move {
        answer_keys(&services, channel, || keys.borrow_mut().pop_front()).await;
    });
    world.run();
    let press = |text: &str| {
        let before = world.journal().len();
        typed.borrow_mut().extend(text.bytes());
        guest
            .domain
            .hypervisor()
            .notify(theirs)
            .expect("an open port");
        world.run();
        world.journal()[before..].join("\n")
    };
    let help = press("h");
    assert!(
        help.contains("s statistics") && help.contains("i images"),
        "{help}"
    );
    let statistics = press("s");
    assert!(statistics.contains("1 connected disk(s)"), "{statistics}");
    assert!(
        statistics.contains("reads=1 sectors_read=8"),
        "{statistics}"
    );
    let images = press("i");
    assert!(
        images.contains("ram:disk0, 131072 bytes, open 1 time(s)"),
        "{images}"
    );
    assert_eq!(press("\r\n"), "", "Enter is no key");
    assert!(press("x").contains("no such key"));
    assert!(press("sh").contains("keys:"), "keys that come together");
    disk.detach();
}
