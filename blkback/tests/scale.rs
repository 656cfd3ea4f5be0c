//! Two hundred disks at once, and what each of them costs.

use bulkhead_blkback::engine::Needs;
use bulkhead_blkback_testkit::{Bystander, Guest, Setup, Style, World, bytes_in_use};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;

const GUESTS: usize = 25;
const DISKS: usize = 8;
const VBDS: usize = GUESTS * DISKS;

const NAMES: [&str; DISKS] = [
    "xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh",
];

#[test]
fn two_hundred_disks_and_what_each_costs() {
    let setup = Setup {
        region_pages: 128 * 1024,
        ..Setup::default()
    };
    let world = World::with(setup);
    let mut other = Bystander::new(&world);
    // xenstored's default of 1000 nodes does not do: libxl makes each disk 14 that are ours.
    world.sim.store().quotas.nodes = 10_000;
    let guests: Vec<_> = (0..GUESTS)
        .map(|_| Guest::with_memory(&world, 256))
        .collect();
    let id = world.storage.id();
    let (heap, region) = (bytes_in_use(), world.free_region());
    let (nodes, watches) = {
        let store = world.sim.store();
        (store.node_count(id), store.watch_count(id))
    };
    let (ports, mappings) = (world.storage.open_ports(), world.storage.live_mappings());

    // All at once: nobody has seen anything yet when the last one is attached.
    let mut disks = Vec::new();
    for guest in &guests {
        for name in NAMES {
            disks.push(guest.attach_unseen(name, &Disk::new("null:1G")));
        }
    }
    world.run();
    let nodes_of_libxl = (world.sim.store().node_count(id) - nodes) / VBDS;
    for disk in &mut disks {
        disk.connect();
    }
    other.io();

    let per_vbd = |total: usize| total.div_ceil(VBDS);
    let pages = per_vbd(region - world.free_region());
    let heap = (bytes_in_use() - heap) as usize / VBDS;
    let nodes = per_vbd(world.sim.store().node_count(id) - nodes);
    let watches = world.sim.store().watch_count(id) - watches;
    println!(
        "each of {VBDS} vbds: {pages} pages of address space, {heap} bytes of heap (of the \
         simulated machine, too), {nodes} nodes ({nodes_of_libxl} before it connected); \
         {watches} watches for {GUESTS} guests"
    );
    assert_eq!(world.storage.open_ports() - ports, VBDS);
    assert_eq!(world.storage.live_mappings() - mappings, VBDS, "the rings");
    assert!(pages <= 1 + 32 * 11 + 32, "{pages} pages");
    assert!(heap <= 96 * 1024, "{heap} bytes");
    assert!(nodes <= 32, "{nodes} nodes");
    assert!(watches <= GUESTS, "{watches} watches");
    assert!(watches + 3 <= 128, "xenstored's default quota");

    for disk in &mut disks {
        disk.read(0, 8);
    }
    // One disk's request costs as much among two hundred as alone.
    let before = world.storage.stats();
    disks[VBDS / 2].read(0, 8);
    let stats = world.storage.stats() - before;
    assert!(stats.hypercalls() <= 4, "{stats:?}");
    for disk in &disks {
        toolstack::request_detach(&mut world.sim.store(), &disk.vbd);
    }
    world.run();
    for mut disk in disks {
        disk.close();
        toolstack::request_detach(&mut world.sim.store(), &disk.vbd);
        world.run();
    }
    world.wait_for_removal();
    for guest in &guests {
        assert_eq!(guest.domain.grants_in_use(), 0);
        assert_eq!(guest.domain.violations(), []);
        toolstack::remove_domain(&mut world.sim.store(), guest.domain.id());
        let above = format!("/local/domain/{id}/backend/vbd/{}", guest.domain.id());
        world.sim.store().remove(&above);
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn xenstoreds_default_quota_has_room_for_so_many_disks() {
    fill_the_quota(&World::new(), "ENOSPC");
}

#[test]
fn oxenstoreds_default_quota_has_room_for_as_many() {
    let world = World::new();
    world.sim.store().become_oxenstored();
    fill_the_quota(&world, "EQUOTA");
}

/// Attaches disks until the store has no room for another one, which is refused in the store's word.
fn fill_the_quota(world: &World, word: &str) {
    let guests: Vec<_> = (0..GUESTS).map(|_| Guest::with_memory(world, 64)).collect();
    let mut disks = Vec::new();
    let all = guests
        .iter()
        .flat_map(|guest| NAMES.map(|name| (guest, name)));
    for (guest, name) in all {
        let mut disk = guest.attach(name, "null:1G");
        if disk.backend().is_none() || !disk.try_connect() {
            let refused = |line: &String| line.contains(word);
            assert!(world.journal().iter().any(refused), "so says the log");
            break;
        }
        disks.push(disk);
    }
    // As the table of features says.
    assert_eq!(disks.len(), 36);
    for disk in &mut disks {
        disk.read(0, 8);
    }
}

#[test]
fn a_full_address_space_costs_the_new_disk_alone() {
    let setup = Setup {
        region_pages: 1024,
        ..Setup::default()
    };
    let world = World::with(setup);
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disks = Vec::new();
    let mut refused = None;
    for name in NAMES {
        let mut disk = guest.attach(name, "null:1G");
        if !disk.try_connect() {
            refused = Some(disk);
            break;
        }
        disks.push(disk);
    }
    let mut refused = refused.expect("1024 pages do not hold nine disks");
    let problem = refused.problem().unwrap();
    assert!(problem.starts_with("no address space for"), "{problem}");
    other.io();
    refused.close();
    // With one disk less, there is room again.
    disks.pop().unwrap().detach();
    refused.go(bulkhead_xenbus::XenbusState::Initialising);
    refused.connect();
    refused.read(0, 8);
    refused.detach();
    disks.into_iter().for_each(|disk| disk.detach());
    other.leave();
    world.nothing_left();
}

/// Returns the bytes of the heap that one more queue takes, for a frontend of that style.
fn heap_of_a_queue(style: Style) -> usize {
    let world = World::new();
    let guest = Guest::with_memory(&world, 1024);
    let heap = |queues| {
        let style = Style { queues, ..style };
        let mut disk = guest.attach("xvda", "null:1G").styled(style);
        disk.prepare();
        let before = bytes_in_use();
        disk.publish();
        disk.go(XenbusState::Initialised);
        assert_eq!(disk.backend(), Some(XenbusState::Connected));
        let taken = bytes_in_use() - before;
        disk.go(XenbusState::Connected);
        disk.detach();
        taken
    };
    // The first disk makes the simulated machine take what it keeps.
    heap(4);
    (heap(4) - heap(1)) as usize / 3
}

#[test]
fn what_a_queue_takes_of_the_heap() {
    for (persistent, ring_pages, most) in [
        // As a plain Linux has it, and with the largest ring. They took 174 and 259 KiB.
        (true, 1, 58),
        (true, 16, 89),
        (false, 1, 64),
        (false, 16, 111),
    ] {
        let style = Style {
            ring_pages,
            ..Style::persistent(persistent)
        };
        let taken = heap_of_a_queue(style);
        println!("persistent {persistent}, {ring_pages} page(s): {taken} bytes");
        assert!(taken <= most * 1024, "{taken} bytes for {style:?}");
        // What it is admitted for.
        let needs = Needs::of_queue(persistent, ring_pages as usize, 256).bytes;
        assert!(taken <= needs, "{taken} bytes of {needs} for {style:?}");
        assert!(
            needs <= taken * 5 / 4,
            "{taken} bytes of {needs} for {style:?}"
        );
    }
}
