//! A disk of the driver domain's own (`vbd:`) whose backend does as a script says.
//!
//! A guest uses that disk. Another guest uses another disk of the driver domain's own, whose backend behaves, and
//! a third one a RAM image: neither may notice anything.

mod hostile_backend;

use crate::heap;
use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, Link, Lower, SECTORS, Script, Setup, World, content,
};
use bulkhead_blkfront::UNSENT_TIMEOUT;
use bulkhead_ring::blkif::{BlkifSector, Discard, Opcode, Operation, Request, Status};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use hostile_backend::{Behaviour, DATA, HostileBackend};
use std::collections::HashSet;
use std::time::Duration;

/// The number from which the content of the well-behaved backend's image is made.
const NEIGHBOUR: u64 = 90;

/// The most time of a request to a well-behaved backend.
const THERE_AND_BACK: Duration = Duration::from_millis(5);

/// The time for which libxl waits for a backend to close (`LIBXL_DESTROY_TIMEOUT`).
const LIBXL_WAITS: Duration = Duration::from_secs(10);

/// Fuzzes the block frontend. The input is a script for the backend of a disk of the driver domain's own, and for the
/// guest that uses the disk.
///
/// # Panics
/// If the frontend breaks any rule.
pub fn blkfront(script: &[u8]) {
    let _heap = heap::limited(64 << 20);
    let mut script = Script::new(script);
    let setting = script.byte();
    let world = World::with(Setup {
        own_disks: true,
        vcpus: 1 + u32::from(setting & 1),
        ..Setup::default()
    });
    let lower = Lower::new(&world, &[("good".into(), content(NEIGHBOUR, IMAGE_SIZE))]);
    let lower_disk = lower.attach("xvdb", &Disk::new("ram:good"));
    let mut neighbour = Neighbour::new(&world);
    let mut bystander = Bystander::new(&world);
    let mut stage = Stage {
        backend: HostileBackend::new(&world),
        guest: Guest::with_memory(&world, 4096),
        world: &world,
        disk: None,
        mapped: Vec::new(),
        secrets: neighbour.marks(),
    };
    if setting & 2 == 0 {
        stage.backend.behave();
        stage.attach();
    }
    while !script.is_empty() {
        match script.byte() % 20 {
            16 => neighbour.check_read(),
            17 => bystander.check_read(),
            act => stage.act(act, &mut script),
        }
    }
    stage.end();
    neighbour.check_read();
    bystander.leave();
    neighbour.disk.detach();
    assert!(toolstack::request_detach(
        &mut world.sim.store(),
        &lower_disk
    ));
    world.wait_for_removal();
    assert!(
        lower_disk.backend_gone(&world.sim.store()),
        "the other disk is in use"
    );
    toolstack::finish_detach(&mut world.sim.store(), &lower_disk);
    world.nothing_left();
    assert_eq!(world.storage.grants_in_use(), 0, "what is granted still");
}

/// The guest whose disk comes from a well-behaved backend.
struct Neighbour<'w> {
    disk: Frontend<'w>,
    data: Vec<u8>,
    turn: u64,
}

impl<'w> Neighbour<'w> {
    fn new(world: &'w World) -> Neighbour<'w> {
        Neighbour {
            disk: Guest::new(world).attach("xvda", "vbd:xvdb").connected(),
            data: content(NEIGHBOUR, IMAGE_SIZE),
            turn: 0,
        }
    }

    /// Reads a page of its disk, and checks it.
    fn check_read(&mut self) {
        let sector = self.turn * 8 % SECTORS;
        self.turn += 1;
        self.disk.link().push_read(sector, 8);
        self.disk.link().kick();
        self.disk.world.wait(THERE_AND_BACK);
        let answers = self.disk.link().collect();
        assert_eq!(answers.len(), 1, "the neighbour is stalled");
        assert_eq!(answers[0].status, Status::Okay, "the neighbour's I/O fails");
        let start = sector as usize * 512;
        assert!(
            answers[0].data == self.data[start..start + 4096],
            "the neighbour's data"
        );
    }

    /// Returns all aligned 16-byte sequences of its disk.
    fn marks(&self) -> Marks {
        let marks = self.data.chunks_exact(16);
        Marks(
            marks
                .map(|mark| mark.try_into().expect("16 bytes"))
                .collect(),
        )
    }
}

/// The aligned 16-byte sequences of a disk.
struct Marks(HashSet<[u8; 16]>);

impl Marks {
    /// Checks that no bytes of that disk are among those that another domain sees.
    fn assert_none_in(&self, bytes: &[u8]) {
        let seen = bytes.chunks_exact(16).find(|mark| self.0.contains(*mark));
        assert_eq!(seen, None, "bytes of the neighbour's disk");
    }
}

/// The scripted backend, and the guest that uses its disk.
struct Stage<'w> {
    world: &'w World,
    backend: HostileBackend<'w>,
    guest: Guest<'w>,
    /// The guest's disk, and whether it is connected.
    disk: Option<(Frontend<'w>, bool)>,
    /// Rings of disks that were detached: the driver domain keeps them mapped while the scripted backend may have
    /// requests from them.
    mapped: Vec<Link>,
    secrets: Marks,
}

impl Stage<'_> {
    fn act(&mut self, act: u8, script: &mut Script<'_>) {
        let world = self.world;
        match act {
            0..3 => self.ask(script),
            3 => self.attach(),
            4 => self.take_away(),
            5..7 => self.serve_all(),
            7 => _ = self.serve(script.below(8)),
            8 => self.backend.answer(script),
            9 => self.backend.damage(script),
            10 => self.backend.notify(),
            11 => self.backend.say(script),
            12 => self.backend.connect(),
            13 => self.backend.let_go(),
            14 => _ = world.run(),
            15 => world.wait(Duration::from_millis(script.number() % 7000)),
            18 => _ = toolstack::request_detach(&mut world.sim.store(), &self.backend.vbd),
            _ => self.replace(script),
        }
        self.look();
    }

    /// Has the backend take all requests, and answer `most` of them on each ring. Returns whether it answered any.
    fn serve(&mut self, most: usize) -> bool {
        let secrets = &self.secrets;
        self.backend
            .serve(most, |bytes| secrets.assert_none_in(bytes))
    }

    /// Has the backend answer everything. Unless it may have done anything to its rings, no request of the guest is in
    /// flight then: a request whose response the backend gave to another one has failed with the disk.
    fn serve_all(&mut self) {
        loop {
            self.world.wait(THERE_AND_BACK);
            self.look();
            if !self.serve(usize::MAX) {
                break;
            }
        }
        if let Some((disk, true)) = &mut self.disk
            && self.backend.behaviour < Behaviour::Anything
        {
            let journal = || self.world.journal().join("\n");
            assert_eq!(disk.link().outstanding(), 0, "requests wait: {}", journal());
        }
    }

    /// Attaches the guest's disk, and connects it once the driver domain offers it.
    fn attach(&mut self) {
        if self.disk.is_none() {
            self.disk = Some((self.guest.attach("xvda", "vbd:xvda"), false));
        }
        if let Some((disk, connected)) = &mut self.disk
            && !disk.is_prepared()
            && disk.backend() == Some(XenbusState::InitWait)
        {
            *connected = disk.try_connect();
        }
    }

    /// Has the guest submit a request, if its disk is connected and its ring has room.
    fn ask(&mut self, script: &mut Script<'_>) {
        let Some((disk, true)) = &mut self.disk else {
            return;
        };
        let link = disk.link();
        if link.ring.free() == 0 {
            return;
        }
        let (kind, sector, sectors) =
            (script.below(8), script.number() % 300, 1 + script.below(88));
        match kind {
            0..3 => _ = link.push_read(sector, sectors),
            3..6 => _ = link.push_write(sector, &vec![script.byte(); sectors * 512]),
            6 => _ = link.push_flush(),
            _ => {
                let discard = Discard {
                    sector: BlkifSector(sector),
                    count: sectors as u64,
                    secure: sector % 2 == 0,
                };
                let request = Request::of(link.new_id(), Operation::Discard(discard));
                link.push(&request, Vec::new());
            }
        }
        link.kick();
    }

    /// Takes the guest's responses, and checks that they are valid and hold no bytes of the neighbour's disk.
    fn look(&mut self) {
        if let Some((disk, true)) = &mut self.disk {
            look(disk.link(), &self.secrets, self.backend.behaviour);
        }
    }

    /// Has libxl detach the guest's disk by force.
    fn take_away(&mut self) {
        let Some((mut disk, _)) = self.disk.take() else {
            return;
        };
        let world = self.world;
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        world.wait(LIBXL_WAITS);
        let gone = disk.vbd.backend_gone(&world.sim.store());
        assert!(
            gone,
            "libxl waits for the guest's disk: {:#?}",
            world.journal()
        );
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        world.run();
        for mut link in disk.forget() {
            look(&mut link, &self.secrets, self.backend.behaviour);
            link.let_go();
            if link.is_mapped() {
                assert!(
                    self.backend.may_have_requests(),
                    "no backend has any request"
                );
                self.mapped.push(link);
            } else {
                link.take_down();
            }
        }
    }

    /// Destroys the backend's domain, and makes another one, which may do nothing.
    fn replace(&mut self, script: &mut Script<'_>) {
        self.backend.destroy();
        self.world
            .wait(Duration::from_millis(script.number() % 7000));
        // The driver domain may have held the last responses to the guest back, to send several with one notification.
        self.world.wait(THERE_AND_BACK);
        self.look();
        self.backend = HostileBackend::new(self.world);
        if script.below(4) > 0 {
            self.backend.behave();
        }
    }

    /// Destroys the backend for good, and checks that the driver domain answers every request within [`UNSENT_TIMEOUT`] and
    /// releases everything of the guest.
    fn end(mut self) {
        self.backend.destroy();
        self.world.wait(UNSENT_TIMEOUT + LIBXL_WAITS);
        self.look();
        if let Some((disk, true)) = &mut self.disk {
            assert_eq!(disk.link().outstanding(), 0, "requests without an answer");
        }
        self.take_away();
        self.mapped.drain(..).for_each(Link::take_down);
        let id = self.guest.domain.id();
        assert_eq!(
            self.guest.domain.grants_in_use(),
            0,
            "what is held of the guest"
        );
        self.world.sim.destroy_domain(id);
        toolstack::remove_domain(&mut self.world.sim.store(), id);
        self.world.wait(LIBXL_WAITS);
    }
}

fn look(link: &mut Link, secrets: &Marks, behaviour: Behaviour) {
    for answer in link.collect() {
        assert!(!matches!(answer.status, Status::Other(_)), "{answer:?}");
        secrets.assert_none_in(&answer.data);
        let read = answer.operation == Opcode::READ && answer.status == Status::Okay;
        let right = answer.data.iter().all(|byte| *byte == DATA);
        assert!(
            !read || right || behaviour > Behaviour::Good,
            "what the backend has"
        );
    }
}
