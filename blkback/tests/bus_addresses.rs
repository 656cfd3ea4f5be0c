//! A store whose device reads and writes frontends' pages by bus address: every way to the pages tells it the
//! right one.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{Guest, IMAGE_SIZE, PATHS, Random, Setup, Style, World};

#[test]
fn a_device_finds_the_pages_however_they_are_reached() {
    for (path, persistent) in PATHS {
        let world = World::with_dma_disks(Setup::on_path(path));
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(11);
        let mut disks = guests.each_ref().map(|guest| {
            let target = match guest.domain.id() == guests[0].domain.id() {
                true => "ram:disk0",
                false => "ram:disk1",
            };
            let disk = guest.attach("xvda", target);
            let disk = disk.styled(Style::persistent(persistent)).connected();
            (disk, vec![0; IMAGE_SIZE])
        });
        for _ in 0..4 {
            for (disk, model) in &mut disks {
                disk.verify_against(model, &mut random);
            }
        }
        for (disk, _) in disks {
            disk.detach();
        }
        world.nothing_left();
    }
}

#[test]
fn a_device_finds_our_own_pages_where_frontends_are_copied() {
    for (path, persistent) in PATHS {
        let world = World::with_dma_disks(Setup::on_path(path));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let (mut model, mut random) = (vec![0; IMAGE_SIZE], Random::new(12));
        // The ring is mapped, and nothing else can be.
        world.storage.set_maptrack_limit(1);
        let before = world.storage.stats();
        disk.verify_against(&mut model, &mut random);
        let stats = world.storage.stats() - before;
        assert!(stats.copies > 0, "{stats:?}");
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn what_a_frontend_grants_anew_is_mapped_for_the_device_alone_and_not_copied() {
    const SECTORS: usize = 128;
    for (path, alone) in [
        (DataPath::Auto, true),
        (DataPath::Copy, true),
        (DataPath::Persistent, true),
        (DataPath::Map, false),
    ] {
        let world = World::with_dma_disks(Setup::on_path(path));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(Style::persistent(false)).connected();
        let data = Random::new(13).bytes(SECTORS * 512);
        let before = world.storage.stats();
        disk.write(8, &data);
        assert!(disk.read(8, SECTORS) == data);
        let stats = world.storage.stats() - before;
        let pages = 2 * SECTORS as u64 / 8;
        assert_eq!((stats.maps, stats.unmaps), (pages, pages), "{path:?}");
        // The list of each request's segments.
        assert_eq!(stats.bytes_copied, 8 * pages, "{path:?}");
        let statistics = &world.backend.services.statistics;
        let counts = statistics.of(statistics.disks()[0]).unwrap();
        let expected = if alone { pages } else { 0 };
        assert_eq!(counts.device_maps, expected, "{path:?}");
        assert_eq!(counts.maps, pages, "{path:?}");
        disk.detach();
        world.nothing_left();
    }
}
