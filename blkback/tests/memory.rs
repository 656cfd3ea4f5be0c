//! The driver domain's memory runs out: who wants more is refused, and nobody else notices.

use crate::world::{Bystander, Guest, Link, Style, World, in_driver_domain, refusing};
use bulkhead_blkback::engine::{ConnectError, Queue, QueueSetup};
use bulkhead_blkback::vbd::state::XenbusState;
use bulkhead_grant::NoRoom;
use bulkhead_images::{Access, BlockDevice, ImageMemory, RamImage, SectorSize};
use std::ptr::NonNull;

/// What a queue takes from this size on may be refused. The reserve is for what is smaller.
const LARGE_FOR_A_QUEUE: usize = 512;
/// What the smaller ones of a queue's connect come to, with those of the simulated Xen.
const SMALL_OF_A_QUEUE: usize = 8 * 1024;
/// What a disk takes from this size on may be refused. The reserve is for what is smaller: what the
/// control plane takes to read the frontend's nodes, and gives back.
const LARGE_FOR_A_DISK: usize = 8 * 1024;
/// What the smaller ones of a disk's connect come to, one after another.
const SMALL_OF_A_DISK: usize = 192 * 1024;

/// Every kind of queue that a frontend can ask for.
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
        let device = RamImage::new(memory, SectorSize::B512, Access::ReadWrite);
        let setup = || QueueSetup {
            name: "a queue".into(),
            log: backend
                .guest_logs
                .of(guest.domain.id(), backend.handle.now()),
            frontend: guest.domain.id(),
            abi: style.abi,
            ring: link.ring_refs(),
            event_channel: link.port,
            persistent: style.persistent,
            indirect_segments: 256,
            discard: true,
            sector_size: 512,
            device: device.queue(),
            options: backend.options,
        };
        let connect = |setup| Queue::connect(&backend.handle, &backend.region, setup).map(drop);
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
            let without_memory = matches!(outcome, Err(ConnectError::NoRoom(NoRoom::Memory(_))));
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
