//! Guests' disks on an NVMe controller that was given to the driver domain: it reads and writes their pages itself.

use super::allocations::taken_beside;
use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{Guest, Nvme, PATHS, Random, Setup, Style, World, bytes_in_use};
use bulkhead_grant::GrantAccess;
use bulkhead_nvme::command::nvm::opcode;
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use bulkhead_ring::blkif::TransferKind::{Read, WriteBarrier};
use bulkhead_ring::blkif::{BlkifSector, Request, Segment, Status};
use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::pci::FunctionConfig;
use bulkhead_xen_sim::pci::toolstack::{backend_state, frontend_state};
use bulkhead_xen_sim::xenstore::toolstack;
use std::time::Duration;

/// The bytes of each namespace.
const SIZE: usize = 256 * 1024;

fn setup(setup: Setup) -> Setup {
    setup_with(FunctionConfig::default(), setup)
}

fn setup_with(function: FunctionConfig, setup: Setup) -> Setup {
    let config = Config {
        namespaces: vec![
            FakeNamespace::new(1, 9, SIZE / 512),
            FakeNamespace::new(2, 12, SIZE / 4096),
        ],
        ..Config::default()
    };
    Setup {
        kind: DomainKind::Pv,
        controller: Some((function, config)),
        ..setup
    }
}

fn nvme(world: &World) -> &Nvme {
    world.nvme.as_ref().expect("it has a controller")
}

#[test]
fn guests_are_served_however_their_pages_are_reached() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(21);
        let mut disks = Vec::new();
        for (guest, target) in guests.iter().zip(["nvme:03:00.0", "nvme:0000:03:00.0/n2"]) {
            let disk = guest.attach("xvda", target);
            let disk = disk.styled(Style::persistent(persistent)).connected();
            disks.push((disk, vec![0; SIZE]));
        }
        let (first, model) = &mut disks[0];
        for _ in 0..4 {
            first.verify_against(model, &mut random);
        }
        assert!(nvme(&world).fake.bytes(1) == *model);
        let (second, _) = &mut disks[1];
        let data = random.bytes(8192);
        second.write(16, &data);
        assert!(second.read(16, 16) == data);
        assert_eq!(nvme(&world).fake.bytes(2)[8192..16384], data);
        for (disk, _) in disks {
            disk.detach();
        }
        world.nothing_left();
        world.sim.assert_no_violations();
    }
}

#[test]
fn flushes_and_discards_reach_the_controller() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    assert_eq!(
        disk.backend_node("feature-flush-cache").as_deref(),
        Some("1")
    );
    disk.write(8, &[7; 4096]);
    disk.link().push_flush();
    assert_eq!(disk.exchange()[0].status, Status::Okay);
    let seen = nvme(&world).fake.seen();
    let opcodes: Vec<u8> = seen.iter().map(|command| command.opcode()).collect();
    assert_eq!(opcodes, [opcode::WRITE, opcode::FLUSH]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_namespace_that_grows_is_larger_for_its_guest() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    let nvme = nvme(&world);
    nvme.fake
        .change(|config| config.namespaces[0].bytes.resize(2 * SIZE, 9));
    assert!(nvme.fake.report(0x0004_0002));
    world.wait(Duration::from_millis(50));
    let sectors = (2 * SIZE / 512).to_string();
    assert_eq!(disk.backend_node("sectors"), Some(sectors));
    assert_eq!(disk.read(2 * SIZE as u64 / 512 - 1, 1), [9; 512]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn pages_of_a_guest_that_is_gone_stay_until_the_controller_has_none_of_them() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "nvme:03:00.0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let fake = &nvme(&world).fake;
        // Not even an abort is heard of.
        fake.decide(|_| Treatment::Lost);
        for number in 0..4 {
            disk.link().push_read(number * 8, 8);
        }
        disk.link().kick();
        world.run();
        assert_eq!(fake.seen().len(), 4);
        let id = guest.domain.id();
        world.sim.destroy_domain(id);
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        world.wait(Duration::from_secs(6));
        assert!(disk.vbd.backend_gone(&world.sim.store()));
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        assert!(
            !world.sim.is_fully_gone(id),
            "the controller may write there"
        );
        // What it does late, it does to pages that are still there for it.
        for command in fake.seen() {
            fake.do_late(&command);
        }
        world.sim.assert_no_violations();
        // It is reset in the end, and has none of them.
        world.wait(Duration::from_secs(40));
        assert!(world.sim.is_fully_gone(id));
        world.nothing_left();
    }
}

#[test]
fn serving_allocates_nothing() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    let taken = taken_beside(&mut disk, || _ = nvme(&world).fake.step());
    assert_eq!(taken, 0);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_controller_is_served_whatever_interrupts_its_function_has() {
    for (msix, line) in [(true, true), (false, true), (false, false)] {
        let mut function = FunctionConfig {
            line,
            ..FunctionConfig::default()
        };
        function.msix = function.msix.filter(|_| msix);
        let world = World::with(setup_with(
            function,
            Setup {
                vcpus: 2,
                ..Setup::default()
            },
        ));
        // Its registers up to the MSI-X table, or all of them.
        let pages = if msix { 2 } else { 4 };
        assert_eq!(world.storage.mapped_registers(), pages);
        let messages = nvme(&world).function.messages();
        assert_eq!(messages, if msix { 3 } else { 0 });
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(5);
        let mut disks = Vec::new();
        for (guest, target) in guests.iter().zip(["nvme:03:00.0", "nvme:03:00.0/n2"]) {
            let mut disk = guest.attach("xvda", target).connected();
            let data = random.bytes(8192);
            disk.write(64, &data);
            assert!(disk.read(64, 16) == data);
            disks.push(disk);
        }
        disks.into_iter().for_each(|disk| disk.detach());
        world.nothing_left();
        world.sim.assert_no_violations();
    }
}

#[test]
fn a_controller_that_was_left_at_work_accesses_no_memory_before_it_was_stopped() {
    let world = World::with(setup(Setup::default()));
    let nvme = nvme(&world);
    world.sim.detach_function(&world.storage, &nvme.function);
    world.run();
    assert!(world.sim.finish_detach(&world.storage, &nvme.function));
    world.run();
    assert!(nvme.controllers.list().is_empty());
    nvme.fake.leave_at_work();
    world
        .sim
        .attach_functions(&world.storage, &[&nvme.function]);
    world.wait(Duration::from_millis(50));
    assert_eq!(nvme.fake.state(), (true, true), "{:#?}", world.journal());
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    disk.write(8, &[7; 4096]);
    assert_eq!(disk.read(8, 8), [7; 4096]);
    disk.detach();
}

/// libxl has Xen take the function away, and then asks for it.
#[test]
fn a_controller_that_is_detached_in_use_is_given_back_when_its_disks_are() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let nvme = nvme(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    disk.write(8, &[7; 4096]);
    world.sim.detach_function(&world.storage, &nvme.function);
    world.wait(Duration::from_secs(10));
    let gives_up = !world.sim.finish_detach(&world.storage, &nvme.function);
    assert!(gives_up, "the tool stack waits no longer");
    let expected = "nvme:03:00.0 is in use: disks are attached that lie on n1: it is kept until they are detached";
    let journal = world.journal();
    assert!(
        journal.iter().any(|line| line.contains(expected)),
        "{journal:#?}"
    );
    // There is nothing behind the disk any more.
    disk.link().push_read(8, 8);
    disk.link().kick();
    world.wait(Duration::from_secs(3));
    let answers = disk.link().collect();
    assert_eq!(
        answers.iter().map(|it| it.status).collect::<Vec<_>>(),
        [Status::Error]
    );
    disk.detach();
    world.wait(Duration::from_secs(1));
    let id = world.storage.id();
    let backend = backend_state(&mut world.sim.store(), id);
    let frontend = frontend_state(&mut world.sim.store(), id);
    assert_eq!(
        (backend.as_deref(), frontend.as_deref()),
        (Some("4"), Some("4"))
    );
    assert!(nvme.controllers.list().is_empty());
    assert_eq!(world.storage.mapped_registers(), 0);
    assert!(world.sim.finish_detach(&world.storage, &nvme.function));
    world.run();
    // It comes back with what is on it.
    world
        .sim
        .attach_functions(&world.storage, &[&nvme.function]);
    world.wait(Duration::from_millis(50));
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    assert_eq!(disk.read(8, 8), [7; 4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_controller_that_cannot_be_opened_is_named_with_the_reason() {
    let mut function = FunctionConfig::default();
    function.msix.as_mut().expect("MSI-X").table = 0x800;
    let world = World::with(setup_with(function, Setup::default()));
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "nvme:03:00.0");
    world.wait(Duration::from_secs(1));
    let problem = disk.problem().expect("refused without waiting");
    assert!(
        problem.contains("the controller 03:00.0 cannot be used: ")
            && problem.contains("share a page with the MSI-X table"),
        "{problem}"
    );
    disk.finish_detach();
    // dom0 may have it back.
    let function = &nvme(&world).function;
    world.sim.detach_function(&world.storage, function);
    world.wait(Duration::from_secs(1));
    assert!(world.sim.finish_detach(&world.storage, function));
    let later = guest.attach("xvda", "nvme:03:00.0");
    world.wait(Duration::from_secs(8));
    let problem = later.problem().expect("refused");
    assert!(problem.contains("the driver domain has none"), "{problem}");
    world.sim.assert_no_violations();
}

#[test]
fn a_domain_that_ends_in_mid_read_leaves_its_guests_pages_alone() {
    // Once told that the domain ends, no driver of this test starts a device again.
    for stops_devices in [false, true] {
        let world = World::with(setup(Setup::on_path(DataPath::Map)));
        let guest = Guest::new(&world);
        let nvme = nvme(&world);
        let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
        nvme.fake.decide(|_| Treatment::Held);
        let page = disk.link().fresh_page(GrantAccess::ReadWrite);
        let memory = page.memory;
        let segment = Segment::new(page.gref(), 0, 7).expect("a page");
        let id = disk.link().new_id();
        let request = Request::transfer(id, Read, BlkifSector(0), &[segment]).expect("one segment");
        disk.link().push(&request, vec![page]);
        disk.link().kick();
        world.run();
        assert_eq!(nvme.fake.held().len(), 1);
        if stops_devices {
            assert_eq!(nvme.stop_devices().stopped, 1);
        }
        world.sim.destroy_domain(world.storage.id());
        // The guest has its page back, and uses it.
        let canary = [0x5a; PAGE_SIZE];
        // SAFETY: the guest's own page.
        unsafe { memory.cast().write(canary) };
        nvme.fake.finish_reversed();
        // SAFETY: as before.
        let there: [u8; PAGE_SIZE] = unsafe { memory.cast().read() };
        assert_eq!(
            there == canary,
            stops_devices,
            "a device that was not stopped writes on"
        );
    }
}

#[test]
fn a_barrier_outlives_the_cache_and_so_does_what_came_before_it() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "nvme:03:00.0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let write = |sector: u64, byte: u8| (sector, [byte; 4096]);
        let (sector, data) = write(0, 1);
        disk.link().push_write(sector, &data);
        let (sector, data) = write(8, 2);
        disk.link().push_transfer(WriteBarrier, sector, 8, &data);
        let (sector, data) = write(16, 3);
        disk.link().push_write(sector, &data);
        assert_eq!(disk.exchange().len(), 3);
        let seen = nvme(&world).fake.seen();
        let seen: Vec<_> = seen
            .iter()
            .map(|command| (command.opcode(), command.dword(12) >> 30 == 1))
            .collect();
        let expected = [
            (opcode::WRITE, false),
            (opcode::FLUSH, false),
            (opcode::WRITE, true),
            (opcode::WRITE, false),
        ];
        assert_eq!(seen, expected);
        nvme(&world).fake.lose_cache();
        let kept = nvme(&world).fake.bytes(1);
        let bytes = |sector: usize| &kept[sector * 512..sector * 512 + 4096];
        assert!(bytes(0) == [1; 4096] && bytes(8) == [2; 4096]);
        assert!(bytes(16) == [0; 4096], "it was not flushed");
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn what_a_controller_reports_again_and_again_does_not_fill_the_log() {
    let world = World::with(setup(Setup::default()));
    world.wait(Duration::from_millis(50));
    world.forget_journal();
    let fake = &nvme(&world).fake;
    // Blocks of a size that nobody serves.
    fake.change(|config| config.namespaces[1].shift = 10);
    // Namespaces have changed; an error, too hot, something of the vendor's.
    let events = [0x0004_0002, 0x0001_0000, 0x0002_0101, 0x0003_0007];
    let report = |rounds: usize| {
        for event in (0..rounds).flat_map(|_| events) {
            assert!(fake.report(event));
            world.wait(Duration::from_millis(10));
        }
        let journal = world.journal();
        let told = |what: &str| journal.iter().filter(|line| line.contains(what)).count();
        let counts = (
            told("nvme:03:00.0"),
            told("it is not served"),
            told("degrees"),
        );
        world.forget_journal();
        counts
    };
    let (lines, refused, health) = report(100);
    assert_eq!((lines, refused), (16, 1));
    assert!(health >= 4, "{health} lines about its health");
    // Later there is room for a line again, but not for what was said.
    world.wait(Duration::from_secs(60));
    assert_eq!(report(100), (1, 0, 0));
    world.no_mistakes();
}

/// The README's rule for `memory=` has 16 MiB for the domain itself, and 1 MiB for each disk: so 48 MiB serve 16 disks, here of
/// guests with four vCPUs each.
#[test]
fn sixteen_disks_need_less_than_16_mib() {
    const DISKS: u32 = 16;
    const ROOM: usize = 16 << 20;
    for (path, persistent) in PATHS {
        let namespaces = (1..=DISKS).map(|id| FakeNamespace::new(id, 9, SIZE / 512));
        let config = Config {
            namespaces: namespaces.collect(),
            ..Config::default()
        };
        let world = World::with(Setup {
            kind: DomainKind::Pv,
            vcpus: 4,
            controller: Some((FunctionConfig::default(), config)),
            // That of a domain of up to 64 MiB.
            region_pages: 32 * 1024,
            ..Setup::on_path(path)
        });
        let guests: Vec<_> = (0..DISKS)
            .map(|_| Guest::with_memory(&world, 1024))
            .collect();
        let before = bytes_in_use();
        // Of the simulated machine, too.
        let used = move || (bytes_in_use() - before).max(0) as usize;
        let memory = move || ROOM.saturating_sub(used());
        world.backend.services.admission.watch_memory(memory);
        let mut disks = Vec::new();
        for (guest, id) in guests.iter().zip(1..) {
            let disk = guest.attach("xvda", &format!("nvme:03:00.0/n{id}"));
            let offered = disk.backend_node("feature-persistent").as_deref() == Some("1");
            let style = Style {
                queues: disk.offered_queues(),
                ..Style::persistent(persistent && offered)
            };
            disks.push(disk.styled(style).connected());
        }
        let queues: usize = disks.iter().map(|disk| disk.rings()).sum();
        // Several of the largest requests at a time.
        for queue in disks.iter_mut().flat_map(|disk| disk.queues()) {
            (0..4).for_each(|_| _ = queue.push_read(0, 88));
            queue.kick();
        }
        let connected = used();
        world.wait(Duration::from_millis(10));
        for queue in disks.iter_mut().flat_map(|disk| disk.queues()) {
            let answers = queue.collect();
            let okay = answers.iter().filter(|one| one.status == Status::Okay);
            assert_eq!(okay.count(), 4, "{path:?}");
        }
        println!(
            "{path:?}: {queues} queues, {connected} bytes, then {}",
            used()
        );
        assert!(used() < ROOM, "{path:?}: {} bytes", used());
        disks.into_iter().for_each(|disk| disk.detach());
        world.nothing_left();
    }
}
