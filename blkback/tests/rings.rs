//! Rings of many pages, and requests of many segments.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{
    Bystander, DeviceHook, Frontend, Guest, IMAGE_SIZE, PATHS, Page, Random, Setup, Style, World,
    content, on_every_path,
};
use bulkhead_grant::GrantAccess;
use bulkhead_ring::blkif::{
    Operation, Request, RequestId, SLOT_SIZE, Segment, Status, TransferKind,
};
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen::GrantRef;
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;

fn style(ring_pages: u32, num_ring_pages: bool) -> Style {
    Style {
        ring_pages,
        num_ring_pages,
        ..Style::default()
    }
}

#[test]
fn rings_of_every_size_are_filled_and_emptied() {
    let world = World::new();
    let guest = Guest::with_memory(&world, 2048);
    for (ring_pages, slots) in [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)] {
        for old in [false, true] {
            let disk = guest.attach("xvda", "ram:disk0");
            assert_eq!(
                disk.backend_node("max-ring-page-order").as_deref(),
                Some("4")
            );
            assert_eq!(disk.backend_node("max-ring-pages").as_deref(), Some("16"));
            let mut disk = disk.styled(style(ring_pages, old)).connected();
            assert_eq!(disk.link().ring.slots(), slots);
            for number in 0..slots {
                disk.link()
                    .push_write(u64::from(number % 256), &[number as u8; 512]);
            }
            assert_eq!(disk.exchange().len(), slots as usize, "{ring_pages} pages");
            assert!(disk.read(255, 1) == [255; 512] || slots < 256);
            disk.detach();
        }
    }
    world.nothing_left();
}

#[test]
fn a_ring_of_one_page_that_was_negotiated_goes_by_either_name() {
    let world = World::new();
    let guest = Guest::new(&world);
    for node in ["ring-page-order", "num-ring-pages"] {
        for name in ["ring-ref", "ring-ref0"] {
            let mut disk = guest.attach("xvda", "ram:disk0");
            let gref = disk.prepare().ring_refs()[0].to_string();
            disk.publish();
            disk.remove_node("ring-ref");
            disk.write_node(name, gref);
            disk.write_node(node, if node == "num-ring-pages" { "1" } else { "0" });
            disk.go(XenbusState::Initialised);
            assert_eq!(
                disk.backend(),
                Some(XenbusState::Connected),
                "{node}, {name}"
            );
            assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
            disk.detach();
        }
    }
    world.nothing_left();
}

#[test]
fn more_pages_than_one_sweep_has_room_for_are_all_served() {
    // 512 requests of eleven pages, one notification: nobody wakes the backend a second time.
    on_every_path(style(16, false), |disk| {
        for number in 0..512 {
            disk.link().push_read(number % 21 * 8, 88);
        }
        let answers = disk.exchange();
        assert_eq!(answers.len(), 512);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    });
}

#[test]
fn a_ring_with_one_bad_page() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for page in 0..4 {
        for gref in ["900", "8192", "rubbish", ""] {
            let mut disk = guest.attach("xvda", "ram:disk0").styled(style(4, false));
            disk.prepare();
            disk.publish();
            disk.write_node(&format!("ring-ref{page}"), gref);
            disk.go(XenbusState::Initialised);
            assert_eq!(disk.backend(), Some(XenbusState::Closing));
            assert_eq!(
                disk.domain.grants_in_use(),
                0,
                "the other pages are given back"
            );
            other.io();
            disk.close();
            disk.detach();
        }
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_ring_that_is_one_page_many_times() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style(4, false));
    let first = disk.prepare().ring_refs()[0];
    disk.publish();
    for page in 0..4 {
        disk.write_node(&format!("ring-ref{page}"), first.to_string());
    }
    disk.go(XenbusState::Initialised);
    for number in 0..100 {
        disk.link().push_slot(&[number; SLOT_SIZE]);
    }
    disk.link().kick();
    world.run();
    other.io();
    disk.detach_at_once();
    other.leave();
    world.nothing_left();
}

#[test]
fn indirect_requests_of_every_size() {
    on_every_path(Style::default(), |disk| {
        let most = disk.backend_node("feature-max-indirect-segments");
        assert_eq!(most.as_deref(), Some("256"));
        let image = content(0, IMAGE_SIZE);
        for sectors in [89, 96, 100, 128, 200, 256] {
            assert!(disk.read(0, sectors) == image[..sectors * 512]);
        }
        let data = Random::new(5).bytes(200 * 512);
        disk.write(7, &data);
        assert!(disk.read(7, 200) == data);
        assert!(disk.read(0, 7) == image[..7 * 512]);
        assert!(disk.read(207, 49) == image[207 * 512..]);
        let past = disk.transfer(TransferKind::Read, 57, 200, &[]);
        assert_eq!(past.status, Status::Error);
    });
}

/// Asks for a whole page in each of `segments` segments, all of them in a few pages of memory.
fn push_many(disk: &mut Frontend<'_>, segments: usize) -> RequestId {
    let pages = (0..16).map(|_| disk.link().fresh_page(GrantAccess::ReadWrite));
    let mut pages: Vec<Page> = pages.collect();
    let segment = |number: usize| Segment::whole(pages[number % 16].gref());
    let list: Vec<Segment> = (0..segments).map(segment).collect();
    let (indirect, index) = disk.link().indirect(TransferKind::Read, 0, &list);
    pages.extend(index);
    let id = disk.link().new_id();
    let request = Request::of(id, Operation::Indirect(indirect));
    disk.link().push(&request, pages);
    id
}

#[test]
fn the_most_segments_are_served_and_one_more_is_an_error() {
    for (path, persistent) in PATHS {
        let setup = Setup {
            images: vec![
                ("disk0".into(), content(0, 1 << 20)),
                ("disk5".into(), content(5, IMAGE_SIZE)),
            ],
            ..Setup::on_path(path)
        };
        let world = World::with(setup);
        let style = Style::persistent(persistent);
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(style).connected();
        for (segments, expected) in [
            (1, Status::Okay),
            (256, Status::Okay),
            (257, Status::Error),
            (512, Status::Error),
            (513, Status::Error),
            (4096, Status::Error),
        ] {
            push_many(&mut disk, segments);
            let status = disk.answer().status;
            assert_eq!(status, expected, "{segments} segments, {path:?}");
        }
        // Together they are more than there is room for.
        for _ in 0..6 {
            push_many(&mut disk, 256);
        }
        let answers = disk.exchange();
        assert_eq!(answers.len(), 6);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn more_index_pages_than_one_sweep_fetches() {
    on_every_path(style(16, false), |disk| {
        for _ in 0..100 {
            disk.link().push_read(0, 100);
        }
        let answers = disk.exchange();
        assert_eq!(answers.len(), 100);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    });
}

#[test]
fn malformed_index_pages() {
    for (path, persistent) in PATHS {
        let world = World::on_path(path);
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
        let page = disk.link().fresh_page(GrantAccess::ReadWrite);
        let whole = Segment::whole(page.gref());
        // One segment of twenty is none, or names a page that does not map.
        for bad in [
            [8, 0, 0, 0, 3, 2, 0, 0],
            [8, 0, 0, 0, 0, 8, 0, 0],
            [0xff; 8],
            [0x84, 3, 0, 0, 0, 7, 0, 0],
        ] {
            let (indirect, index) = disk.link().indirect(TransferKind::Read, 0, &[whole; 20]);
            index[0].fill(13 * 8, &bad);
            let request = Request::of(disk.link().new_id(), Operation::Indirect(indirect));
            disk.link().push(&request, index);
            assert_eq!(disk.answer().status, Status::Error, "{bad:?}");
            other.io();
        }
        // The index itself does not map.
        for gref in [0, 900, 8192, u32::MAX] {
            let grefs = [GrantRef(gref); 8];
            let indirect = bulkhead_ring::blkif::Indirect::new(
                TransferKind::Write,
                bulkhead_ring::blkif::BlkifSector(0),
                20,
                grefs,
            );
            let operation = Operation::Indirect(indirect.expect("twenty segments"));
            let request = Request::of(disk.link().new_id(), operation);
            disk.link().push(&request, Vec::new());
            assert_eq!(disk.answer().status, Status::Error, "grant {gref}");
            other.io();
        }
        disk.read(0, 200);
        disk.link().recycle(page);
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn an_index_page_that_changes_after_it_was_read_changes_nothing() {
    // When the first request of a sweep reaches the device, all index pages are overwritten.
    for (path, persistent) in [(DataPath::Auto, true), (DataPath::Map, false)] {
        let hook = DeviceHook::default();
        let setup = Setup {
            layer: Some(hook.layer("xvda")),
            ..Setup::on_path(path)
        };
        let world = World::with(setup);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
        let first = disk.link().push_read(0, 100);
        let second = disk.link().push_read(100, 100);
        let index = disk.link().index_addresses();
        assert_eq!(index.len(), 2);
        let overwritten = Rc::new(Cell::new(false));
        let told = overwritten.clone();
        hook.set(move || {
            for page in &index {
                for byte in 0..4096 {
                    // SAFETY: a page of the guest, which is there as long as the machine.
                    unsafe { (*page as *mut u8).add(byte).write_volatile(0xff) };
                }
            }
            told.set(true);
        });
        let image = content(0, IMAGE_SIZE);
        for answer in disk.exchange() {
            assert_eq!(answer.status, Status::Okay);
            let from = if answer.id == first { 0 } else { 100 * 512 };
            assert!(answer.id == first || answer.id == second);
            assert!(answer.data == image[from..from + 100 * 512]);
        }
        assert!(overwritten.get());
        hook.end();
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_ring_that_was_in_use_before_goes_on_where_it_was() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for sector in 0..12 {
        disk.write(sector, &[sector as u8 + 1; 512]);
    }
    for _ in 0..3 {
        // The same pages again, with the indexes that they have.
        disk.go(XenbusState::Closing);
        disk.go(XenbusState::Closed);
        disk.go(XenbusState::Initialising);
        disk.publish();
        disk.go(XenbusState::Initialised);
        assert_eq!(
            disk.backend(),
            Some(XenbusState::Connected),
            "{:?}",
            disk.problem()
        );
        disk.go(XenbusState::Connected);
        assert!(disk.link().collect().is_empty(), "nothing was asked for");
        for sector in 0..12 {
            assert!(disk.read(sector, 1) == [sector as u8 + 1; 512], "{sector}");
        }
        let rest = content(0, IMAGE_SIZE);
        assert!(disk.read(12, 200) == rest[12 * 512..212 * 512]);
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_ring_whose_indexes_cannot_be_is_refused() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    for (answered, asked) in [(0, 33), (5, 4), (u32::MAX, 32), (1 << 31, 0)] {
        let link = disk.prepare();
        // SAFETY: domain memory stays mapped as long as the machine.
        let ring = unsafe { SharedPages::new(link.memory, 1) }.unwrap();
        ring.store(Index::ResponseProducer, answered);
        ring.store(Index::RequestProducer, asked);
        disk.publish();
        disk.go(XenbusState::Initialised);
        assert_eq!(
            disk.backend(),
            Some(XenbusState::Closing),
            "{answered} {asked}"
        );
        let problem = disk.problem().unwrap();
        assert!(problem.contains("cannot be used"), "{problem}");
        disk.go(XenbusState::Closed);
        disk.take_down();
        disk.go(XenbusState::Initialising);
    }
    disk.connect();
    disk.detach();
    world.nothing_left();
}
