//! Frontends that keep their pages granted.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, POISON, Page, Random, Style, World, content,
};
use bulkhead_grant::GrantAccess;
use bulkhead_ring::blkif::{BlkifSector, Request, Segment, Status, TransferKind};
use std::collections::BTreeMap;

/// The number of pages that stay mapped.
const MOST_PERSISTENT: usize = 1056;

/// Returns a disk whose frontend keeps its pages granted.
fn persistent<'w>(guest: &Guest<'w>) -> Frontend<'w> {
    let disk = guest.attach("xvda", "ram:disk0");
    disk.styled(Style::persistent(true)).connected()
}

/// Moves a page's worth of data with a page of the test's own.
fn move_page(disk: &mut Frontend<'_>, kind: TransferKind, sector: u64, page: &Page) -> Status {
    let id = disk.link().new_id();
    let segments = [Segment::whole(page.gref())];
    let request = Request::transfer(id, kind, BlkifSector(sector), &segments);
    disk.link().push(&request.expect("one segment"), Vec::new());
    disk.answer().status
}

#[test]
fn pages_stay_mapped_and_cost_no_hypercall() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(
        disk.backend_node("feature-persistent").as_deref(),
        Some("1")
    );
    let mut disk = disk.styled(Style::persistent(true)).connected();
    disk.read(0, 88);
    let (before, mapped) = (world.storage.stats(), world.storage.live_mappings());
    for _ in 0..20 {
        disk.read(0, 88);
        disk.write(8, &[1; 4096]);
    }
    let stats = world.storage.stats() - before;
    assert_eq!(
        stats.map_calls + stats.unmap_calls + stats.copy_calls,
        0,
        "{stats:?}"
    );
    assert_eq!(world.storage.live_mappings(), mapped);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_does_not_ask_for_it_has_its_pages_back() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.read(0, 88);
    assert_eq!(world.storage.live_mappings(), 1, "the ring");
    disk.detach();
    // Nor does one that asks where it is not offered.
    let world = World::on_path(DataPath::Map);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(
        disk.backend_node("feature-persistent").as_deref(),
        Some("0")
    );
    let mut disk = disk.styled(Style::persistent(true)).connected();
    disk.read(0, 88);
    assert_eq!(world.storage.live_mappings(), 1, "the ring");
    disk.detach();
    world.nothing_left();
}

#[test]
fn more_grants_than_fit_are_exchanged() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = persistent(&guest);
    let image = content(0, IMAGE_SIZE);
    let pages: Vec<Page> = (0..1500)
        .map(|_| disk.link().fresh_page(GrantAccess::ReadWrite))
        .collect();
    for round in 0..3 {
        for (number, page) in pages.iter().enumerate() {
            let sector = (number as u64 * 7 + round) % 248;
            page.fill(0, &[POISON; 4096]);
            let status = move_page(&mut disk, TransferKind::Read, sector, page);
            assert_eq!(status, Status::Okay);
            assert!(page.bytes() == image[sector as usize * 512..][..4096]);
        }
        assert!(
            world.storage.live_mappings() <= MOST_PERSISTENT + 8,
            "the cache is bounded"
        );
        other.io();
    }
    pages.into_iter().for_each(|page| disk.link().recycle(page));
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn more_grants_in_flight_than_fit_wait_for_a_late_store() {
    let (world, late) = World::with_late_disks();
    let mut other = Bystander::styled(&world, Style::persistent(true));
    let guest = Guest::with_memory(&world, 8192);
    let style = Style {
        ring_pages: 16,
        ..Style::persistent(true)
    };
    let mut disk = guest.attach("xvdd", "ram:disk0").styled(style).connected();
    let image = content(0, IMAGE_SIZE);
    // 3,300 pages that were never granted before.
    let asked: BTreeMap<_, _> = (0..300)
        .map(|number| number % 21 * 8)
        .map(|sector| (disk.link().push_read(sector, 88), sector as usize * 512))
        .collect();
    disk.link().kick();
    world.run();
    let mut random = Random::new(17);
    let mut answered = 0;
    while disk.link().outstanding() > 0 {
        let held = late.last().held() as u64;
        assert!(held > 0, "nothing moves after {answered} answers");
        late.last().release(random.below(held) as usize);
        world.run();
        for answer in disk.link().collect() {
            assert_eq!(answer.status, Status::Okay);
            assert!(answer.data == image[asked[&answer.id]..][..88 * 512]);
            answered += 1;
        }
        let bound = 2 * (16 + MOST_PERSISTENT + 128);
        assert!(
            world.storage.live_mappings() <= bound,
            "the cache is bounded"
        );
    }
    assert_eq!(answered, 300);
    other.io();
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn all_that_linux_has_in_use_stays_mapped() {
    let world = World::new();
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = persistent(&guest);
    let pages: Vec<Page> = (0..32 * 33)
        .map(|_| disk.link().fresh_page(GrantAccess::ReadWrite))
        .collect();
    let mut calls = Vec::new();
    for _ in 0..3 {
        for page in &pages {
            let status = move_page(&mut disk, TransferKind::Read, 0, page);
            assert_eq!(status, Status::Okay);
        }
        let stats = world.storage.stats();
        calls.push(stats.map_calls + stats.unmap_calls);
    }
    assert_eq!(calls[0], calls[2], "mapped again");
    pages.into_iter().for_each(|page| disk.link().recycle(page));
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_page_granted_for_reading_is_never_written() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = persistent(&guest);
    let page = disk.link().fresh_page(GrantAccess::ReadOnly);
    page.fill(0, &[7; 4096]);
    for _ in 0..3 {
        assert_eq!(
            move_page(&mut disk, TransferKind::Write, 8, &page),
            Status::Okay
        );
        assert_eq!(
            move_page(&mut disk, TransferKind::Read, 16, &page),
            Status::Error
        );
        assert!(page.bytes() == [7; 4096]);
    }
    assert!(disk.read(8, 8) == [7; 4096]);
    disk.link().recycle(page);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_page_first_written_from_and_then_read_into() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = persistent(&guest);
    let page = disk.link().fresh_page(GrantAccess::ReadWrite);
    page.fill(0, &[7; 4096]);
    assert_eq!(
        move_page(&mut disk, TransferKind::Write, 8, &page),
        Status::Okay
    );
    assert_eq!(
        move_page(&mut disk, TransferKind::Read, 0, &page),
        Status::Okay
    );
    assert!(page.bytes() == content(0, IMAGE_SIZE)[..4096]);
    disk.link().recycle(page);
    disk.detach();
    world.nothing_left();
}

#[test]
fn grants_revoked_and_given_to_other_pages_harm_nobody_else() {
    let world = World::new();
    let mut other = Bystander::styled(&world, Style::persistent(true));
    let guest = Guest::new(&world);
    let mut disk = persistent(&guest);
    for _ in 0..20 {
        let page = disk.link().fresh_page(GrantAccess::ReadWrite);
        assert_eq!(
            move_page(&mut disk, TransferKind::Read, 0, &page),
            Status::Okay
        );
        // The guest takes the grant by force and uses its number for another page.
        let another = disk.domain.alloc_page();
        let (gref, frame) = (page.gref(), disk.domain.frame_of(another));
        disk.domain.revoke(gref);
        let flags = bulkhead_xen::abi::grant_table::EntryFlags::PERMIT_ACCESS;
        disk.domain.grant(gref, disk.vbd.backend, frame, flags);
        move_page(&mut disk, TransferKind::Read, 8, &page);
        other.io();
        disk.link().recycle(page);
    }
    guest.destroy(vec![disk]);
    other.leave();
    world.nothing_left();
}
