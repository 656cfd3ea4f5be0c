//! A guest whose disk is connected, on a machine that stays up from one input to the next.
//!
//! An input begins with a new queue, connected as the disk's task would do it, and ends when the queue has released all
//! that it used. The guest's pages and grants, and the content of its disks, are restored between two inputs. So an
//! input does the same whatever came before it.

mod disk;
mod guest;

use crate::heap;
use bulkhead_blkback::engine::{
    DataPath, QueueControl, QueueOptions, QueueSetup, queue_control, serve,
};
use bulkhead_blkback_testkit::{Bystander, Script, Setup, Style, World, content};
use bulkhead_ring::blkif::Abi;
use bulkhead_xen::{GrantRef, Port};
use disk::{DISK_SIZE, DISKS, Disk};
use futures_util::FutureExt;
use guest::HostileGuest;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// The most times that a slow disk's requests are completed before a queue must have ended.
const ROUNDS: usize = 1000;

thread_local! {
    /// The machine of this thread. It is never dropped: when a thread ends, other thread-local state that the machine
    /// uses may be gone.
    static MACHINE: RefCell<Option<&'static mut Machine>> = const { RefCell::new(None) };
}

/// Fuzzes the data path of the backend. The input is a script for a guest with a connected disk.
///
/// # Panics
/// If the backend breaks any rule.
pub fn backend(script: &[u8]) {
    // After an input that fails, the next one gets a new machine, since this one is not put back.
    let kept = MACHINE.with_borrow_mut(Option::take);
    let machine = kept.unwrap_or_else(|| Box::leak(Box::new(Machine::new())));
    let heap = heap::limited(4 << 20);
    machine.play(&mut Script::new(script));
    drop(heap);
    MACHINE.with_borrow_mut(|kept| *kept = Some(machine));
}

/// A machine with a driver domain that serves a well-behaved guest, and with the guest that does as
/// the script says.
struct Machine {
    world: &'static World,
    bystander: Bystander<'static>,
    guest: HostileGuest,
    disks: Vec<Disk>,
    /// The content of the ramdisk at first.
    ramdisk: Vec<u8>,
    /// What the driver domain has while the guest has no disk: live mappings, open ports, and the free part of the
    /// foreign region.
    idle: [usize; 3],
}

impl Machine {
    fn new() -> Machine {
        let mut setup = Setup {
            reservation: true,
            options: options(DataPath::Auto),
            ..Setup::default()
        };
        // The images are small, since the whole ramdisk is compared after each input.
        for (number, image) in (0..).zip(&mut setup.images) {
            image.1 = content(number, DISK_SIZE);
        }
        // Leaked: the bystander borrows it, and the disks use its memory, for as long as the program runs.
        let world: &'static World = Box::leak(Box::new(World::with(setup)));
        let ramdisk = world.ramdisk();
        let disks = (0..).zip(DISKS);
        let disks = disks.map(|(number, kind)| Disk::open(world, &ramdisk, number, kind));
        // Persistent grants: to map the bystander's pages for each input would take most of the time.
        let mut bystander = Bystander::styled(world, Style::persistent(true));
        bystander.check_read();
        Machine {
            disks: disks.collect(),
            guest: HostileGuest::new(world),
            bystander,
            idle: held(world),
            world,
            ramdisk,
        }
    }

    fn play(&mut self, script: &mut Script<'_>) {
        self.world.forget_journal();
        let setting = Setting::read(script);
        self.guest.reset(setting.abi, setting.ring_pages);
        if let Some(queue) = self.connect(&setting, script) {
            let disk = &self.disks[setting.disk];
            while !script.is_empty() {
                match script.below(16) {
                    0..3 => self.guest.show(self.world),
                    3 => self.world.step(true),
                    4 => self
                        .world
                        .wait(Duration::from_micros(script.number() % 2000)),
                    5 => self.bystander.check_read(),
                    6 => disk.answer_late(script),
                    _ => self.guest.act(script),
                }
            }
            self.guest.show(self.world);
            disconnect(self.world, queue, disk);
            self.guest.assert_all_answered();
        }
        self.check(setting.disk);
        self.disks[setting.disk].put_back();
    }

    /// Connects a queue and starts it. Returns `None` if the backend refuses it, which it may do only if the script has
    /// put something else in place of the guest's ring or event channel.
    fn connect(&mut self, setting: &Setting, script: &mut Script<'_>) -> Option<QueueControl> {
        let (mut ring, mut event_channel) = (self.guest.ring_refs(), self.guest.open_port());
        let mut wrong = false;
        match script.byte() {
            224..240 => wrong = self.guest.used_before(script),
            240..248 => {
                let at = script.below(ring.len());
                ring[at] = GrantRef(script.number() as u32);
                wrong = true;
            }
            248.. => {
                event_channel = Port(script.number() as u32);
                wrong = true;
            }
            _ => {}
        }
        if wrong {
            self.guest.misbehaves();
        }
        let (world, device) = (self.world, &self.disks[setting.disk].device);
        let backend = &world.backend;
        let setup = QueueSetup {
            name: "the guest's queue".into(),
            log: backend
                .services
                .guest_logs
                .of(self.guest.id(), backend.services.handle.now()),
            frontend: self.guest.id(),
            abi: setting.abi,
            ring,
            event_channel,
            persistent: setting.persistent && setting.path.offers_persistent(),
            indirect_segments: backend.services.limits.indirect_segments as usize,
            discard: setting.discard && device.geometry().discard.is_some(),
            sector_size: 512,
            device: device.clone(),
            options: options(setting.path),
            turn: Default::default(),
            queues: 1,
            unreleased: Default::default(),
            journal: Default::default(),
        };
        let (control, guard) = queue_control();
        let (handle, region) = (
            backend.services.handle.clone(),
            backend.services.region.clone(),
        );
        world.spawn(serve(handle, region, setup, guard));
        world.run_without_xenstored();
        let connected = control.connected().now_or_never();
        match connected.expect("a queue connects at once, or never") {
            Ok(_) => {
                control.start();
                Some(control)
            }
            Err(error) => {
                assert!(wrong, "nothing is wrong with the guest's ring: {error}");
                None
            }
        }
    }

    /// Checks that nothing of the guest is in use any more, and that no other guest was harmed.
    fn check(&mut self, disk: usize) {
        let world = self.world;
        self.guest.close_port();
        assert_eq!(
            self.guest.grants_in_use(),
            0,
            "what the backend holds on to"
        );
        assert_eq!(held(world), self.idle, "mappings, ports, address space");
        world.no_mistakes();
        self.bystander.check_read();
        let own = self.disks[disk].own_bytes();
        let others = [0..own.start, own.end..self.ramdisk.len()];
        for bytes in others {
            let same = world.ramdisk_holds(bytes.start, &self.ramdisk[bytes]);
            assert!(same, "bytes of an image that the guest does not have");
        }
        self.guest.assert_has_none_of(&self.disks[disk].foreign);
    }
}

/// The options that an input is served with.
struct Setting {
    path: DataPath,
    abi: Abi,
    persistent: bool,
    discard: bool,
    disk: usize,
    ring_pages: usize,
}

impl Setting {
    fn read(script: &mut Script<'_>) -> Setting {
        const PATHS: [DataPath; 3] = [DataPath::Auto, DataPath::Map, DataPath::Copy];
        let bits = script.byte();
        Setting {
            disk: script.below(DISKS.len()),
            path: script.pick(&PATHS),
            abi: [Abi::X86_64, Abi::X86_32][usize::from(bits & 1)],
            persistent: bits & 2 != 0,
            discard: bits & 4 == 0,
            ring_pages: [1, 1, 2, 4][usize::from(bits >> 3 & 3)],
        }
    }
}

/// Returns options by which the backend neither polls nor holds responses back: the guest has no influence on those
/// times.
fn options(data_path: DataPath) -> QueueOptions {
    QueueOptions {
        data_path,
        poll: Some(Duration::ZERO),
        hold: Some(Duration::ZERO),
        ..QueueOptions::default()
    }
}

/// Returns the live mappings, the open ports, and the free part of the foreign region.
fn held(world: &World) -> [usize; 3] {
    let storage = &world.storage;
    [
        storage.live_mappings(),
        storage.open_ports(),
        world.free_region(),
    ]
}

/// Stops a queue, and waits until it has completed the requests that it has taken.
fn disconnect(world: &World, queue: QueueControl, disk: &Disk) {
    let ended = Rc::new(Cell::new(false));
    let end = ended.clone();
    world.spawn(async move {
        queue.stop().await;
        end.set(true);
    });
    for _ in 0..ROUNDS {
        world.run_without_xenstored();
        if ended.get() {
            return;
        }
        if let Some(late) = &disk.late {
            late.release_backwards();
        }
    }
    panic!("the queue does not end");
}
