//! The driver domain's memory runs out: a guest that wants more is refused, and no other guest notices.

use bulkhead_blkback::engine::{Queue, QueueSetup, QueueSetupError};
use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, Link, Lower, Setup, Style, World, bytes_in_use,
    content, forget_most_bytes, in_driver_domain, refusing,
};
use bulkhead_grant::NoRoom;
use bulkhead_images::{Access, BlockDevice, ImageMemory, QueueContext, RamImage, SectorSize};
use bulkhead_xen::VcpuId;
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use bulkhead_xenbus::XenbusState;
use futures_util::FutureExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// The size from which on an allocation of a queue may be refused. The reserve is for smaller ones.
const LARGE_FOR_A_QUEUE: usize = 512;
/// The sum of the smaller allocations of a queue's connect, with those of the simulated Xen.
const SMALL_OF_A_QUEUE: usize = 8 * 1024;
/// The size from which on an allocation of a disk may be refused. The reserve is for smaller ones: those of the control
/// plane that reads the frontend's nodes, which it gives back.
const LARGE_FOR_A_DISK: usize = 8 * 1024;
/// The same for a disk on one of the driver domain's own, whose list of pages is smaller.
const LARGE_BELOW: usize = 6 * 1024;
/// The sum of the smaller allocations of a disk's connect, one after another.
const SMALL_OF_A_DISK: usize = 192 * 1024;

/// Returns every kind of queue that a frontend can ask for.
fn styles() -> impl Iterator<Item = Style> {
    [(false, 1), (true, 1), (false, 16), (true, 16)]
        .into_iter()
        .map(|(persistent, ring_pages)| Style {
            ring_pages,
            ..Style::persistent(persistent)
        })
}

#[test]
fn a_queue_without_memory_is_refused_at_every_allocation() {
    for style in styles() {
        let world = World::new();
        let guest = Guest::new(&world);
        let link = Link::new(&guest.domain, &guest.grants, world.storage.id(), style);
        let backend = &world.backend;
        let pages = Box::leak(Box::new([0_u8; 8192]));
        // SAFETY: leaked, and nobody else uses it.
        let memory = unsafe { ImageMemory::new(NonNull::from(pages).cast(), 8192) };
        let device: Arc<dyn BlockDevice> =
            Arc::new(RamImage::new(memory, SectorSize::B512, Access::ReadWrite));
        let setup = || QueueSetup {
            name: "a queue".into(),
            log: backend
                .services
                .guest_logs
                .of(guest.domain.id(), backend.services.handle.now()),
            frontend: guest.domain.id(),
            abi: style.abi,
            ring: link.ring_refs(),
            event_channel: link.port,
            persistent: style.persistent,
            indirect_segments: 256,
            discard: true,
            sector_size: 512,
            device: device.clone(),
            options: backend.services.options,
            turn: Default::default(),
            queues: 1,
            unreleased: Default::default(),
            journal: Default::default(),
        };
        let connect = |setup: QueueSetup| {
            let context = QueueContext::new(VcpuId(0), 32);
            let opening = setup.device.clone();
            let opened = opening.open_queue(&context).now_or_never();
            let device = opened.expect("an image is opened at once")?;
            Queue::connect(
                &backend.services.handle,
                &backend.services.region,
                setup,
                device,
            )
            .map(drop)
        };
        // What the simulated Xen takes once is taken.
        assert_eq!(connect(setup()), Ok(()));
        let mut refused = 0;
        loop {
            let (setup, mut outcome) = (setup(), Ok(()));
            let connect = || in_driver_domain(|| outcome = connect(setup));
            let (happened, small) = refusing(refused + 1, LARGE_FOR_A_QUEUE, connect);
            assert!(small <= SMALL_OF_A_QUEUE, "{small} bytes");
            if !happened {
                assert_eq!(outcome, Ok(()));
                break;
            }
            refused += 1;
            let without_memory = matches!(outcome, Err(QueueSetupError::NoRoom(NoRoom::Memory(_))));
            assert!(without_memory, "{refused}: {outcome:?}");
            world.nothing_left();
        }
        assert!(refused >= 10, "only {refused} for {style:?}");
    }
}

#[test]
fn a_disk_without_memory_is_refused_and_may_come_again() {
    for style in styles() {
        let world = World::new();
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style { queues: 2, ..style };
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style);
        let mut refused = 0;
        loop {
            assert_eq!(disk.backend(), Some(XenbusState::InitWait));
            disk.prepare();
            disk.publish();
            let connect = || disk.go(XenbusState::Initialised);
            let (happened, small) = refusing(refused + 1, LARGE_FOR_A_DISK, connect);
            assert!(small <= SMALL_OF_A_DISK, "{small} bytes");
            if !happened {
                break;
            }
            refused += 1;
            assert_eq!(disk.backend(), Some(XenbusState::Closing), "{refused}");
            let problem = disk.problem().expect("the operator is told");
            assert!(
                problem.contains("bytes of memory in one piece"),
                "{problem}"
            );
            other.io();
            disk.close();
            disk.go(XenbusState::Initialising);
        }
        assert!(refused >= 2, "only {refused} for {style:?}");
        assert_eq!(disk.backend(), Some(XenbusState::Connected));
        disk.go(XenbusState::Connected);
        disk.read(0, 8);
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

/// A queue that is left open keeps its pages granted to the backend for good.
#[test]
fn a_disk_below_which_a_queue_gets_no_memory_leaves_none_open() {
    let world = World::with(Setup {
        own_disks: true,
        ..Setup::default()
    });
    let lower = Lower::new(&world, &[("below".to_string(), content(90, IMAGE_SIZE))]);
    lower.attach("xvda", &Disk::new("ram:below"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda");
    let connect = |disk: &mut Frontend<'_>| {
        assert_eq!(disk.backend(), Some(XenbusState::InitWait));
        disk.prepare();
        disk.publish();
        disk.go(XenbusState::Initialised);
    };
    let end = |disk: &mut Frontend<'_>| {
        disk.close();
        disk.go(XenbusState::Initialising);
        // A frontend that has closed is served for a little longer.
        world.wait(Duration::from_millis(50));
    };
    connect(&mut disk);
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    let granted = || world.storage.grants_for(lower.domain.id());
    let before = granted();
    let mut refused = 0;
    loop {
        end(&mut disk);
        let (happened, _) = refusing(refused + 1, LARGE_BELOW, || connect(&mut disk));
        if !happened {
            break;
        }
        refused += 1;
        assert_eq!(disk.backend(), Some(XenbusState::Closing), "{refused}");
        assert_eq!(granted(), before, "{refused}");
    }
    assert!(refused >= 3, "only {refused}");
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    assert_eq!(granted(), before);
    disk.detach();
    world.no_mistakes();
}

/// Connects disks of a guest that makes as many queues as it is offered, until one is refused. Returns them, and the
/// error.
fn disks_until_refused<'w>(guest: &Guest<'w>, most: usize) -> (Vec<Frontend<'w>>, Option<String>) {
    let mut disks = Vec::new();
    for number in 0..most {
        let name = format!("xvd{}", char::from(b'a' + number as u8));
        let disk = guest.attach(&name, "null:64M");
        if disk.backend() != Some(XenbusState::InitWait) {
            let problem = disk.problem();
            disk.finish_detach();
            return (disks, problem);
        }
        let persistent = disk.backend_node("feature-persistent").as_deref() == Some("1");
        let style = Style {
            queues: disk.offered_queues(),
            ..Style::persistent(persistent)
        };
        let mut disk = disk.styled(style);
        if !disk.try_connect() {
            let problem = disk.problem();
            disk.close();
            disk.detach();
            return (disks, problem);
        }
        disks.push(disk);
    }
    (disks, None)
}

#[test]
fn many_disks_of_one_guest_all_connect_and_leave_room_for_others() {
    let world = World::new();
    let guest = Guest::new(&world);
    // As the smallest driver domain: 16 MiB, of which it needs four itself.
    let free = 12 << 20;
    let before = bytes_in_use();
    let used = move || (bytes_in_use() - before).max(0) as usize;
    world
        .backend
        .services
        .admission
        .watch_memory(move || free - used());
    let (mut disks, problem) = disks_until_refused(&guest, 26);
    assert_eq!((disks.len(), problem), (26, None));
    // What Linux would keep granted is at most half of its table.
    let lasting = disks.iter().filter(|disk| disk.style.persistent);
    let queues: usize = lasting.map(|disk| disk.style.queues).sum();
    assert!(queues * 1056 <= 16 * 1024, "{queues} queues");
    disks.iter_mut().for_each(|disk| _ = disk.read(0, 8));
    // Another guest comes later, and finds room.
    let mut other = Bystander::new(&world);
    other.io();
    disks.into_iter().for_each(Frontend::detach);
    other.leave();
    world.nothing_left();
}

#[test]
fn a_disk_that_no_memory_is_left_for_is_refused_with_a_reason() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let free = 1 << 20;
    let before = bytes_in_use();
    let used = move || (bytes_in_use() - before).max(0) as usize;
    world
        .backend
        .services
        .admission
        .watch_memory(move || usize::saturating_sub(free, used()));
    let (mut disks, problem) = disks_until_refused(&guest, 26);
    let problem = problem.expect("a MiB is not enough for 26 disks");
    assert!(
        problem.starts_with("no memory for this disk: it takes"),
        "{problem}"
    );
    assert!(disks.len() >= 5, "{} disks", disks.len());
    other.io();
    disks.iter_mut().for_each(|disk| _ = disk.read(0, 8));
    // With less there is room again.
    disks.drain(..2).for_each(Frontend::detach);
    let (more, problem) = disks_until_refused(&guest, 1);
    assert_eq!((more.len(), problem), (1, None));
    more.into_iter().for_each(Frontend::detach);
    disks.into_iter().for_each(Frontend::detach);
    other.leave();
    world.nothing_left();
}

/// The most memory that is in use while a disk with as many and as large rings as there are connects in vain:
/// `padding` follows each number that its frontend publishes, and the last one is none.
fn most_while_it_connects(padding: &str) -> i64 {
    let world = World::new();
    let guest = Guest::with_memory(&world, 4096);
    let style = Style {
        queues: 4,
        ring_pages: 16,
        ..Style::default()
    };
    let mut disk = guest.attach("xvda", "null:1G").styled(style);
    disk.prepare();
    disk.publish();
    let details: Vec<_> = disk.queues().map(|link| link.details()).collect();
    for (queue, link) in details.into_iter().enumerate() {
        for (name, value) in link {
            let name = format!("queue-{queue}/{name}");
            disk.write_node(&name, format!("{value}{padding}"));
        }
    }
    disk.write_node("queue-3/ring-ref15", format!("x{padding}"));
    world.run();
    let before = bytes_in_use();
    forget_most_bytes();
    disk.go(XenbusState::Initialised);
    let most = forget_most_bytes() + bytes_in_use() - before;
    let problem = disk.problem().expect("it is told why");
    assert!(
        problem.contains("queue-3/ring-ref15 is not a number"),
        "{problem}"
    );
    most
}

#[test]
fn padded_numbers_of_a_frontend_take_little_more_memory() {
    let (plain, padded) = (
        most_while_it_connects(""),
        most_while_it_connects(&" ".repeat(1900)),
    );
    println!("{plain} bytes, padded {padded}");
    // Those that xenstored has on its way at once are the simulation's.
    assert!(padded - plain < 64 << 10, "{plain} bytes, padded {padded}");
}
