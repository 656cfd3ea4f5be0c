//! A driver domain that crashes and goes on with the rings of its own disks, whose backend stays connected, or does not.

use super::recovery::{collect_all, held, push_writes};
use super::scripted_backend::{DISK, ScriptedBackend, THERE_AND_BACK, page_of};
use bulkhead_blkback_testkit::{
    Crash, Frontend, Guest, Lower, Random, Setup, Style, World, content,
};
use bulkhead_grant::MappedPages;
use bulkhead_ring::blkif::Status;
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen::{Errno, GrantRef};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use bulkhead_xen_sim::{Hypercall, SimVcpu};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

const GOES_ON: &str = "goes on with the rings of before the crash";

/// Much less than a backend takes to close and to connect.
const AT_ONCE: Duration = Duration::from_millis(20);

fn world_with(vcpus: u32) -> World {
    World::with(Setup {
        own_disks: true,
        recover: true,
        vcpus,
        ..Setup::default()
    })
}

fn below(world: &World) -> Lower<'_> {
    let image = |number: u64| (format!("below{number}"), content(40 + number, 128 * 1024));
    let lower = Lower::new(world, &[image(0), image(1)]);
    lower.attach("xvda", &Disk::new("ram:below0"));
    lower
}

fn connected<'w>(guest: &'w Guest<'w>, name: &str, target: &str) -> Frontend<'w> {
    let disk = guest.attach(name, target);
    disk.styled(Style::persistent(true)).connected()
}

/// Returns how many disks have gone on with rings of before.
fn gone_on(world: &World) -> usize {
    let journal = world.journal();
    journal.iter().filter(|line| line.contains(GOES_ON)).count()
}

/// Returns all nodes of the domain's first own disk that tell of its connection.
fn nodes(world: &World) -> Vec<Option<String>> {
    let names = [
        "state",
        "event-channel",
        "ring-page-order",
        "ring-ref0",
        "ring-ref15",
    ];
    let own = names.map(|name| world.read(&world.own_path(&format!("device/vbd/51712/{name}"))));
    own.into()
}

#[test]
fn a_backend_below_stays_connected_and_answers_at_once() {
    let world = world_with(1);
    let _lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    let told = nodes(&world);
    assert!(told.iter().all(Option::is_some), "{told:?}");
    for round in 1..=2 {
        let asked = push_writes(&mut disk, 16, round);
        disk.link().kick();
        let crash = world.crash_after(10, 0);
        assert!(matches!(crash, Crash::Crashed(_)), "{crash:?}");
        world.restart();
        world.wait(AT_ONCE);
        collect_all(&mut disk, &asked, "at once");
        assert_eq!(gone_on(&world), usize::from(round));
        assert_eq!(nodes(&world), told);
        assert_eq!(disk.read(15, 1), [round; 512]);
    }
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn rings_of_two_vcpus_are_gone_on_with() {
    let world = world_with(2);
    let _lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    for round in 1..=2 {
        let asked = push_writes(&mut disk, 16, round);
        disk.link().kick();
        world.crash_after(10, 0);
        world.restart();
        world.wait(AT_ONCE);
        collect_all(&mut disk, &asked, "at once");
        assert_eq!(gone_on(&world), usize::from(round));
    }
    disk.detach();
    world.no_mistakes();
}

/// The ring's first page, mapped by the domain below beside its backend.
fn ring_page(world: &World, lower: &Lower<'_>) -> (MappedPages<SimVcpu>, SharedPages) {
    let ring = world.read(&world.own_path("device/vbd/51712/ring-ref0"));
    let ring = GrantRef(ring.expect("a ring").parse().expect("a number"));
    let region = &lower.backend.services.region;
    let pages = region.map_pages(world.storage.id(), &[ring]);
    let pages = pages.expect("room").expect("it is granted");
    // SAFETY: mapped as long as the pages are, and both are dropped together.
    let shared = unsafe { SharedPages::new(pages.base(), 1) };
    (pages, shared.expect("a page"))
}

#[test]
fn a_backend_whose_ring_makes_no_sense_after_a_crash_is_connected_anew() {
    // Requests that were never put, and responses to them.
    let forgeries: [fn(u32) -> (u32, u32); 4] = [
        |index| (index, index + 1),
        |index| (index, index.wrapping_sub(1)),
        |index| (index, index + (1 << 31)),
        |index| (index, index + 4000),
    ];
    for (number, forge) in forgeries.into_iter().enumerate() {
        let world = world_with(1);
        let lower = below(&world);
        let before = held(&world);
        let guest = Guest::with_memory(&world, 2048);
        let mut disk = connected(&guest, "xvda", "vbd:xvda");
        let mut bystander = connected(&guest, "xvdb", "ram:disk0");
        disk.write(0, &[1; 512]);
        world.crash_after(0, 0);
        let (pages, shared) = ring_page(&world, &lower);
        let (asked, answered) = forge(shared.load(Index::RequestProducer));
        shared.store(Index::RequestProducer, asked);
        shared.store(Index::ResponseProducer, answered);
        drop(pages);
        world.restart();
        world.wait(AT_ONCE);
        bystander.write(0, &[3; 512]);
        world.wait(Duration::from_secs(3));
        assert_eq!(gone_on(&world), 0, "forgery {number}");
        disk.write(0, &[2; 512]);
        assert_eq!(disk.read(0, 1), [2; 512], "forgery {number}");
        disk.detach();
        bystander.detach();
        assert_eq!(held(&world), before, "forgery {number}");
        world.no_mistakes();
    }
}

#[test]
fn a_backend_whose_indices_are_both_forged_is_connected_anew_and_nobody_else_notices() {
    let world = world_with(1);
    let lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    let mut bystander = connected(&guest, "xvdb", "ram:disk0");
    disk.write(0, &[1; 512]);
    world.crash_after(0, 0);
    let (pages, shared) = ring_page(&world, &lower);
    let index = shared.load(Index::RequestProducer).wrapping_add(1 << 30);
    shared.store(Index::RequestProducer, index);
    shared.store(Index::ResponseProducer, index);
    drop(pages);
    world.restart();
    world.wait(AT_ONCE);
    assert_eq!(gone_on(&world), 1);
    let asked = push_writes(&mut disk, 1, 2);
    disk.link().kick();
    world.wait(Duration::from_millis(50));
    bystander.write(0, &[3; 512]);
    assert_eq!(bystander.read(0, 1), [3; 512]);
    // By the backend's own count there is none to answer: it ends the connection, and has what was asked on the next one.
    let overrun = |line: &String| line.contains("ring overrun");
    assert!(world.journal().iter().any(overrun));
    collect_all(&mut disk, &asked, "after the backend has connected anew");
    assert_eq!(disk.read(0, 1), [2; 512]);
    bystander.detach();
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn what_was_asked_before_the_crash_is_answered_before_anything_is_asked_again() {
    let world = world_with(1);
    let lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    // The backend has the requests, and is slow.
    lower.pause(true);
    let mut asked = push_writes(&mut disk, 8, 2);
    disk.link().kick();
    world.run();
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_millis(100));
    assert_eq!((gone_on(&world), disk.link().collect().len()), (0, 0));
    lower.pause(false);
    world.wait(AT_ONCE);
    assert_eq!(gone_on(&world), 1);
    asked.extend(push_writes(&mut disk, 1, 3));
    disk.link().kick();
    collect_all(&mut disk, &asked, "once the backend goes on");
    assert_eq!(disk.read(0, 1), [3; 512]);
    assert_eq!(disk.read(7, 1), [2; 512]);
    disk.detach();
    world.no_mistakes();
}

/// A backend without persistent grants maps the pages of a request when it takes it: nothing but the ring is in use before.
#[test]
fn a_request_of_before_that_a_backend_takes_late_names_no_page_of_now() {
    // While the disk waits for the answer, and after it was closed for lack of one.
    for late in [Duration::ZERO, Duration::from_millis(500)] {
        let world = World::with(Setup {
            own_disks: true,
            recover: true,
            // Enough for both disks' pages of before, twice.
            grant_entries: 4096,
            ..Setup::default()
        });
        let mut first = ScriptedBackend::new(&world, &DISK);
        let mut second = first.beside("xvdb", &DISK);
        let guest = Guest::with_memory(&world, 4096);
        let mut disk = connected(&guest, "xvda", "vbd:xvda");
        let mut slow = connected(&guest, "xvdb", "vbd:xvdb");
        disk.link().push_write(0, &[5; 4096]);
        disk.link().kick();
        for _ in 0..4 {
            slow.link().push_read(0, 8);
        }
        slow.link().kick();
        world.wait(THERE_AND_BACK);
        let asked = first.take();
        world.crash_after(0, 0);
        world.restart();
        world.wait(AT_ONCE);
        // A disk that is attached now has what was left looked at.
        let lower = Lower::new(&world, &[("other".to_string(), content(42, 128 * 1024))]);
        lower.attach("xvdc", &Disk::new("ram:other"));
        world.wait(AT_ONCE);
        assert_eq!(gone_on(&world), 0);
        first.answer(&asked.response(Status::Okay));
        world.wait(AT_ONCE + late);
        assert_eq!(gone_on(&world), 1);
        let now = page_of(&first.take());
        for number in 0..4 {
            let before = page_of(&second.take());
            let page = second.region.map_pages(world.storage.id(), &[before]);
            let page = page.expect("room").map(drop);
            assert!(
                page.is_err(),
                "request {number} names {before}, which is granted now ({now} is, too)"
            );
        }
        world.no_mistakes();
    }
}

#[test]
fn a_disk_that_is_attached_after_a_crash_waits_for_no_page_of_another_one() {
    let world = world_with(1);
    let lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    disk.write(0, &[1; 512]);
    world.crash_after(0, 0);
    world.restart();
    world.wait(AT_ONCE);
    assert_eq!(gone_on(&world), 1);
    assert!(world.storage.grants_in_use() > 16, "pages of before");
    lower.attach("xvdb", &Disk::new("ram:below1"));
    world.wait(AT_ONCE);
    let mut other = connected(&guest, "xvdb", "vbd:xvdb");
    other.write(0, &[2; 512]);
    other.detach();
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_backend_below_stays_connected_however_long_xenstored_takes() {
    let world = world_with(1);
    let _lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    disk.write(0, &[1; 512]);
    world.crash_after(0, 0);
    world.restart();
    world.sim.store().faults.requests_per_step = Some(0);
    world.wait(Duration::from_secs(20));
    assert_eq!(gone_on(&world), 0, "nobody knows the disk yet");
    world.sim.store().faults.requests_per_step = None;
    world.wait(AT_ONCE);
    assert_eq!(gone_on(&world), 1);
    assert_eq!(disk.read(0, 1), [1; 512]);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_port_that_cannot_be_taken_up_is_closed() {
    let world = world_with(1);
    let _lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    disk.write(0, &[1; 512]);
    let before = world.storage.open_ports();
    world.crash_after(0, 0);
    world
        .storage
        .fail_call(Hypercall::BindVcpu, Errno::INVAL, 1);
    world.restart();
    world.wait(Duration::from_secs(3));
    assert_eq!((world.storage.open_ports(), gone_on(&world)), (before, 0));
    assert_eq!(disk.read(0, 1), [1; 512]);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_disk_that_is_taken_away_between_crash_and_restart_leaves_no_port() {
    let world = world_with(1);
    let before = held(&world);
    let lower = below(&world);
    world.crash_after(0, 0);
    lower.destroy();
    let own = world.own_path("device/vbd/51712");
    world.sim.store().remove(&own);
    world.restart();
    world.wait(Duration::from_secs(61));
    assert_eq!((held(&world), gone_on(&world)), (before, 0));
    world.no_mistakes();
}

/// What a backend keeps mapped of each boot is out of use. Before that is too much, it is made to let go.
#[test]
fn many_crashes_take_no_more_memory_than_there_is() {
    const ROUNDS: u8 = 40;
    let world = world_with(1);
    let _lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = connected(&guest, "xvda", "vbd:xvda");
    let mut random = Random::new(9);
    let asked = push_writes(&mut disk, 32, 0);
    disk.link().kick();
    world.wait(AT_ONCE);
    collect_all(&mut disk, &asked, "before any crash");
    let of_a_boot = world.storage.grants_in_use();
    let (mut crashes, mut most) = (0, 0);
    for round in 1..=ROUNDS {
        let asked = push_writes(&mut disk, 32, round);
        disk.link().kick();
        let crash = world.crash_after(random.below(30), random.below(500));
        crashes += usize::from(matches!(crash, Crash::Crashed(_)));
        world.restart();
        world.wait(Duration::from_millis(2500));
        collect_all(&mut disk, &asked, &format!("round {round}"));
        assert_eq!(disk.read(31, 1), [round; 512]);
        assert_eq!(disk.backend(), Some(XenbusState::Connected));
        most = most.max(world.storage.grants_in_use());
    }
    assert!(crashes > usize::from(ROUNDS / 3), "{crashes}");
    let on = gone_on(&world);
    let some = 1..usize::from(ROUNDS);
    assert!(some.contains(&on), "{on} times, {most} pages at most");
    assert!(most <= 3 * of_a_boot, "{most} pages, {of_a_boot} of a boot");
    disk.detach();
    world.no_mistakes();
}
