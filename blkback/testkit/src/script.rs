//! Whole machines driven by a string of bytes: guests, the toolstack and xenstored do whatever the bytes say, and one
//! well-behaved guest must never notice.

use super::{Answer, Bystander, Frontend, Guest, LateDisks, Link, PATHS, Setup, Style, World};
use bulkhead_ring::blkif::{
    Abi, BlkifSector, Discard, Operation, Request, SLOT_SIZE, TransferKind,
};
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use std::time::Duration;

/// Reads a script; past its end everything is zero.
pub struct Script<'s>(&'s [u8]);

impl<'s> Script<'s> {
    /// Makes a script of those bytes.
    pub fn new(bytes: &'s [u8]) -> Script<'s> {
        Script(bytes)
    }

    /// Returns whether the script is over.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the next byte; 0 once the script is over.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// Returns one of the elements of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Returns a number that is small or at an edge more often than not.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..200 => u64::from(small),
            200..215 => u64::MAX - u64::from(self.byte()),
            215..230 => (1 << 32) - u64::from(self.byte()),
            230..240 => 256 - u64::from(self.byte() % 16),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }
}

const NAMES: [&str; 3] = ["xvda", "xvdb", "xvdd"];
const TARGETS: [&str; 8] = [
    "ram:disk0",
    "ram:disk1",
    "ram:disk2,sector-size=4096",
    "ram:disk5",
    "ram:nothing",
    "null:1M",
    "null:3T,sector-size=4096",
    "rubbish",
];
const NODES: [&str; 11] = [
    "state",
    "ring-ref",
    "event-channel",
    "protocol",
    "ring-page-order",
    "num-ring-pages",
    "multi-queue-num-queues",
    "feature-persistent",
    "ring-ref1",
    "queue-0/event-channel",
    "queue-1/ring-ref",
];
const VALUES: [&str; 12] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "8",
    "4294967295",
    "",
    "x86_32-abi",
    "rubbish",
];

const WRITES: [TransferKind; 3] = [
    TransferKind::Write,
    TransferKind::FlushAndWrite,
    TransferKind::WriteBarrier,
];

/// A guest that does as the bytes say.
struct ScriptedGuest<'w> {
    guest: Guest<'w>,
    disks: Vec<Frontend<'w>>,
    /// Rings that it has turned away from.
    old: Vec<Link>,
}

impl<'w> ScriptedGuest<'w> {
    fn new(world: &'w World) -> ScriptedGuest<'w> {
        ScriptedGuest {
            guest: Guest::with_memory(world, 4096),
            disks: Vec::new(),
            old: Vec::new(),
        }
    }
}

/// Plays a script from the first attach to the last trace of it.
///
/// # Panics
/// If the backend breaks any rule.
pub fn play(script: &[u8]) {
    let mut script = Script(script);
    let setting = usize::from(script.byte());
    let (path, _) = PATHS[setting % PATHS.len()];
    let (world, late) = World::with_late_disks_and(Setup {
        vcpus: [1, 1, 2, 3][setting / PATHS.len() % 4],
        ..Setup::on_path(path)
    });
    let mut bystander = Bystander::new(&world);
    let mut scripted_guests = vec![ScriptedGuest::new(&world), ScriptedGuest::new(&world)];
    while !script.is_empty() {
        let which = script.below(scripted_guests.len());
        match script.byte() % 32 {
            0 => bystander.io(),
            1 => world.step(true),
            2 => world.step(false),
            3..6 => _ = world.run(),
            6 => world.wait(Duration::from_millis(script.number() % 700)),
            7 => misbehave(&world, &mut script),
            13 => operate(&world, &scripted_guests[which], &mut script),
            8 => serve_late(&late, &scripted_guests[which], &mut script),
            9 => {
                let scripted =
                    std::mem::replace(&mut scripted_guests[which], ScriptedGuest::new(&world));
                end(scripted, &bystander);
            }
            10 | 11 => attach(&mut scripted_guests[which], &mut script, &bystander),
            _ => act(&mut scripted_guests[which], &mut script, &bystander),
        }
    }
    world.sim.store().faults.requests_per_step = None;
    world.sim.store().faults.stalled = false;
    world.run();
    bystander.io();
    for scripted in scripted_guests {
        end(scripted, &bystander);
    }
    bystander.leave();
    for node in ["data/grow", "data/grow-answer"] {
        world.sim.store().remove(&world.own_path(node));
    }
    world.nothing_left();
}

/// Changes how xenstored behaves.
fn misbehave(world: &World, script: &mut Script<'_>) {
    let id = world.storage.id();
    let mut store = world.sim.store();
    match script.below(5) {
        0 => store.fire_spuriously(id),
        1 => store.faults.requests_per_step = Some(1 + script.below(3)),
        2 => store.faults.requests_per_step = None,
        3 => store.faults.conflicts = script.below(20) as u32,
        _ => store.faults.reverse_replies = script.below(2) == 0,
    }
}

/// Does an operator's work.
fn operate(world: &World, scripted: &ScriptedGuest<'_>, script: &mut Script<'_>) {
    let mut store = world.sim.store();
    if script.below(2) == 0 {
        let (image, pages) = (script.below(7), 30 + script.below(12));
        let request = format!("disk{image} {}K", pages * 4);
        store.write(&world.own_path("data/grow"), &request);
    } else {
        for disk in &scripted.disks {
            let statistics = disk.backend_path("statistics");
            // Nothing is written below a disk that is gone.
            if store.exists(&disk.backend_path("state")) {
                store.write(&statistics, "refresh");
            }
        }
    }
}

fn serve_late(late: &LateDisks, scripted: &ScriptedGuest<'_>, script: &mut Script<'_>) {
    for disk in &scripted.disks {
        let Some(late) = late.of(&disk.vbd) else {
            continue;
        };
        match late.held() {
            0 => {}
            held if script.below(4) > 0 => late.release(script.below(held)),
            _ => late.release_backwards(),
        }
    }
}

fn attach<'w>(
    scripted: &mut ScriptedGuest<'w>,
    script: &mut Script<'_>,
    bystander: &Bystander<'_>,
) {
    let name = script.pick(&NAMES);
    if let Some(at) = scripted.disks.iter().position(|disk| disk.vbd.name == name) {
        let disk = scripted.disks.remove(at);
        if script.below(4) == 0 {
            give_up(scripted, disk, bystander);
        } else {
            force_away(scripted, disk, bystander);
        }
    }
    let disk = Disk {
        read_only: script.below(4) == 0,
        cdrom: script.below(8) == 0,
        discard: script.below(4) != 0,
        ..Disk::new(script.pick(&TARGETS))
    };
    let style = Style {
        abi: script.pick(&[Abi::X86_64, Abi::X86_32]),
        ring_pages: 1 << script.below(5),
        num_ring_pages: script.below(4) == 0,
        ..Style::default()
    };
    let more = usize::from(script.byte());
    let style = Style {
        persistent: more.is_multiple_of(4),
        // Sometimes more than are offered.
        queues: [1, 1, 1, 2, 3, 4, 5][more / 4 % 7],
        ..style
    };
    let frontend = scripted.guest.attach_unseen(name, &disk).styled(style);
    scripted.disks.push(frontend);
}

fn act(scripted: &mut ScriptedGuest<'_>, script: &mut Script<'_>, bystander: &Bystander<'_>) {
    if scripted.disks.is_empty() {
        return;
    }
    let at = script.below(scripted.disks.len());
    let disk = &mut scripted.disks[at];
    let there = disk.has_directory();
    match script.byte() % 24 {
        // As a good frontend would.
        0..4 if there && !disk.is_prepared() => {
            disk.prepare();
            disk.publish();
            disk.write_node("state", "3");
        }
        4 if there => disk.write_node("state", script.pick(&VALUES)),
        5 if there => disk.write_node(script.pick(&NODES), script.pick(&VALUES)),
        6 if there => disk.remove_if_there(script.pick(&NODES)),
        7 => _ = toolstack::request_detach(&mut disk.world.sim.store(), &disk.vbd),
        8 => {
            let disk = scripted.disks.remove(at);
            force_away(scripted, disk, bystander);
        }
        9 => scripted.old.extend(disk.forget()),
        10 if there => {
            disk.write_node("state", "5");
            disk.write_node("state", "6");
        }
        11.. if disk.is_prepared() => ask(disk, script, bystander),
        _ => {}
    }
}

fn ask(disk: &mut Frontend<'_>, script: &mut Script<'_>, bystander: &Bystander<'_>) {
    let queue = match disk.rings() {
        1 => 0,
        rings => script.below(rings),
    };
    let link = disk.queue(queue);
    let room = link.ring.free() > 0;
    match script.byte() % 16 {
        0..5 if room => {
            let (sector, sectors) = (script.number() % 300, 1 + script.below(200));
            link.push_read(sector, sectors);
        }
        5..8 if room => {
            let (sector, sectors) = (script.number(), 1 + script.below(80));
            let kind = script.pick(&WRITES);
            link.push_transfer(kind, sector, sectors, &vec![script.byte(); sectors * 512]);
        }
        8 if room && script.below(2) == 0 => _ = link.push_flush(),
        8 if room => {
            let discard = Discard {
                sector: BlkifSector(script.number()),
                count: script.number(),
                secure: script.below(2) == 0,
            };
            let request = Request::of(link.new_id(), Operation::Discard(discard));
            link.push(&request, Vec::new());
        }
        9 | 10 if room => {
            let mut slot: [u8; SLOT_SIZE] = std::array::from_fn(|_| script.byte());
            slot[0] %= 8;
            link.push_slot(&slot);
        }
        11 => {
            // SAFETY: domain memory stays mapped as long as the machine.
            let ring = unsafe { SharedPages::new(link.memory, link.style.ring_pages as usize) };
            let indices = [
                Index::RequestProducer,
                Index::RequestEvent,
                Index::ResponseEvent,
            ];
            let ring = ring.expect("pages of a ring");
            ring.store(script.pick(&indices), script.number() as u32);
        }
        12 => {
            let offset = script.number() as usize % (PAGE_SIZE - 8);
            // SAFETY: within the ring's first page, to which there is no reference.
            unsafe { link.memory.add(offset).write_volatile(script.byte()) };
        }
        13 => {
            let refs = link.data_refs();
            if !refs.is_empty() {
                link.domain.revoke(script.pick(&refs));
            }
        }
        14 => link.notify(),
        _ => look(link, bystander),
    }
    link.kick();
}

/// Takes the answers that have come, and looks for data that belongs to another guest.
fn look(link: &mut Link, bystander: &Bystander<'_>) {
    let answers: Vec<Answer> = link.collect_whatever();
    for answer in answers {
        bystander.assert_none_of_it_in(&answer.data);
    }
}

/// Takes a disk away by force, as libxl does; the backend has to follow.
fn force_away(scripted: &mut ScriptedGuest<'_>, mut disk: Frontend<'_>, bystander: &Bystander<'_>) {
    let world = disk.world;
    let stalled = std::mem::take(&mut world.sim.store().faults.requests_per_step);
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.run();
    // Requests that are on the ring are still served, and may have a second step. libxl waits for ten seconds.
    let mut seconds = 0..10;
    let mut gone = false;
    while !gone && seconds.next().is_some() {
        while let Some(late) = world.late.of(&disk.vbd).filter(|late| late.held() > 0) {
            late.release_backwards();
            world.run();
        }
        world.wait(Duration::from_secs(1));
        gone = disk.vbd.backend_gone(&world.sim.store());
    }
    let journal = || world.journal().join("\n");
    assert!(
        gone,
        "libxl waits for the directory of {:?}: {}",
        disk.vbd,
        journal()
    );
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.late.forget(&disk.vbd);
    world.run();
    world.sim.store().faults.requests_per_step = stalled;
    for mut link in disk.forget() {
        look(&mut link, bystander);
        scripted.old.push(link);
    }
}

/// Has libxl give up waiting for the backend, and clean up behind a disk without it.
fn give_up(scripted: &mut ScriptedGuest<'_>, mut disk: Frontend<'_>, bystander: &Bystander<'_>) {
    let world = disk.world;
    // The guest's requests reach the disk, and a disk answers in the end.
    world.run();
    while let Some(late) = world.late.of(&disk.vbd).filter(|late| late.held() > 0) {
        late.release_backwards();
        world.run();
    }
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.late.forget(&disk.vbd);
    for mut link in disk.forget() {
        look(&mut link, bystander);
        scripted.old.push(link);
    }
}

/// Ends a guest, and checks that nothing of it is left in use.
fn end(mut scripted: ScriptedGuest<'_>, bystander: &Bystander<'_>) {
    while let Some(disk) = scripted.disks.pop() {
        force_away(&mut scripted, disk, bystander);
    }
    let (world, domain) = (scripted.guest.world, &scripted.guest.domain);
    assert_eq!(domain.grants_in_use(), 0, "what the backend holds on to");
    for link in scripted.old {
        link.take_down();
    }
    let id = domain.id();
    world.sim.destroy_domain(id);
    assert!(world.sim.is_fully_gone(id));
    toolstack::remove_domain(&mut world.sim.store(), id);
    world.run();
}
