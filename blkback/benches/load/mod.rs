//! Load on a backend in the simulated Xen, which the host benchmarks measure.
//!
//! Disks are `null:` ones, so that the request path is measured, and not the speed at which the processor copies pages;
//! or partitions of none, but whole disks of the driver domain's own (`vbd:`), with their rings to another one's backend.
//! Only the driver domain's turn is measured, the simulated hypercalls included; the work of frontends is not, nor is that
//! of the other driver domain.
#![allow(dead_code, reason = "each benchmark uses its part")]

use bulkhead_blkback_testkit::{Frontend, Guest, Lower, Setup, Style, World, allocations};
use bulkhead_ring::blkif::Status;
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use std::time::{Duration, Instant};

/// Pages of address space for 200 disks with rings of any kind.
const REGION_PAGES: usize = 1 << 19;

/// Disks that a guest has.
const DISKS_PER_GUEST: usize = 8;

/// The number of times that time is let pass for answers that are held back for others to join them, by each of the
/// domains that a request goes through.
const COALESCING_STEPS: u32 = 60;

/// Bytes of a disk of the driver domain's own.
const OWN_DISK: usize = 4 << 20;

/// The kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 4 KiB, the pages granted for each request.
    Direct,
    /// 4 KiB, the pages granted for good.
    Persistent,
    /// 64 KiB in an indirect request.
    Indirect,
    /// So many KiB of a disk of the driver domain's own, the pages granted for good.
    OwnDisk(usize),
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The kind of requests.
    pub kind: Kind,
    /// True if they are writes.
    pub write: bool,
    /// Disks in use.
    pub disks: usize,
    /// Requests that each has under way at a time.
    pub depth: usize,
}

impl Case {
    /// Returns the cases that are measured: each kind alone at depth 1 and 32, and with more and more disks; and disks of
    /// the driver domain's own as the bench in the lab measures them, where Linux's frontend divides a request of 1 MiB into
    /// eight.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for kind in [Kind::Direct, Kind::Persistent, Kind::Indirect] {
            for (write, disks, depth) in [
                (false, 1, 1),
                (false, 1, 32),
                (true, 1, 32),
                (false, 20, 8),
                (false, 200, 8),
            ] {
                cases.push(Case {
                    kind,
                    write,
                    disks,
                    depth,
                });
            }
        }
        for (kilobytes, write, depth) in [
            (4, false, 1),
            (4, false, 32),
            (64, false, 8),
            (128, false, 32),
            (128, true, 32),
        ] {
            cases.push(Case {
                kind: Kind::OwnDisk(kilobytes),
                write,
                disks: 1,
                depth,
            });
        }
        cases
    }

    /// Returns its name.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Direct => "direct",
            Kind::Persistent => "persistent",
            Kind::Indirect => "indirect",
            Kind::OwnDisk(kilobytes) => &format!("vbd-{kilobytes}k"),
        };
        let verb = if self.write { "write" } else { "read" };
        format!("{kind}-{verb}-qd{}-{}disks", self.depth, self.disks)
    }

    fn sectors(&self) -> usize {
        match self.kind {
            Kind::Indirect => 128,
            Kind::Direct | Kind::Persistent => 8,
            Kind::OwnDisk(kilobytes) => kilobytes * 2,
        }
    }

    fn is_persistent(&self) -> bool {
        matches!(self.kind, Kind::Persistent | Kind::OwnDisk(_))
    }

    /// Returns the first sector of a request, on a disk of that number.
    fn sector(&self, disk: usize, request: usize) -> u64 {
        match self.kind {
            Kind::OwnDisk(_) => (request * self.sectors()) as u64,
            _ => ((disk * 37 + request) * 1024) as u64,
        }
    }
}

/// Disks under load.
pub struct Load {
    case: Case,
    world: &'static World,
    /// The driver domain that serves the disk of this one's own.
    lower: Option<Lower<'static>>,
    disks: Vec<Frontend<'static>>,
    data: Vec<u8>,
}

/// The cost of a batch of requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Requests answered.
    pub requests: u64,
    /// Time of the driver domain's turns.
    pub time: Duration,
    /// Allocations in them.
    pub allocations: u64,
}

impl Load {
    /// Connects the disks; `None` if the backend does not offer what the case needs.
    pub fn new(case: Case) -> Option<Load> {
        // A machine lives as long as the program: guests and disks refer to it.
        let world = Box::leak(Box::new(World::with(Setup {
            region_pages: REGION_PAGES,
            // What keeping requests for the time after a crash costs is counted, too.
            #[cfg(feature = "recover")]
            recover: true,
            own_disks: matches!(case.kind, Kind::OwnDisk(_)),
            ..Setup::default()
        })));
        // A driver domain with that many disks needs a xenstored that was told so.
        world.sim.store().quotas.nodes = 100_000;
        let style = Style {
            persistent: case.is_persistent(),
            ..Style::default()
        };
        let mut lower = None;
        let mut target = "null:16G";
        if let Kind::OwnDisk(_) = case.kind {
            let below = Lower::new(world, &[("below".to_string(), vec![0xa5; OWN_DISK])]);
            below.attach("xvda", &Disk::new("ram:below"));
            (lower, target) = (Some(below), "vbd:xvda");
        }
        let mut disks = Vec::new();
        while disks.len() < case.disks {
            let guest = Guest::with_memory(world, 8192);
            for letter in ('a'..).take(DISKS_PER_GUEST.min(case.disks - disks.len())) {
                let disk = guest.attach(&format!("xvd{letter}"), target).styled(style);
                let needed = match case.kind {
                    Kind::Direct => None,
                    Kind::Persistent | Kind::OwnDisk(_) => Some("feature-persistent"),
                    Kind::Indirect => Some("feature-max-indirect-segments"),
                };
                if let Some(node) = needed {
                    disk.backend_node(node).filter(|value| value != "0")?;
                }
                disks.push(disk.connected());
            }
        }
        let data = vec![0x5a; if case.write { case.sectors() * 512 } else { 0 }];
        let mut load = Load {
            case,
            world,
            lower,
            disks,
            data,
        };
        for _ in 0..3 {
            load.batch(warm_up);
        }
        Some(load)
    }

    /// Asks every disk for its requests, lets the backend serve them through `serve`, and takes the
    /// answers.
    pub fn batch(&mut self, serve: fn(&World)) -> Taken {
        let mut taken = Taken::default();
        for (number, disk) in self.disks.iter_mut().enumerate() {
            let link = disk.link();
            for request in 0..self.case.depth {
                let sector = self.case.sector(number, request);
                match self.case.write {
                    true => link.push_write(sector, &self.data),
                    false => link.push_read(sector, self.case.sectors()),
                };
            }
            link.kick();
        }
        for _ in 0..COALESCING_STEPS {
            let (before, start) = (allocations(), Instant::now());
            serve(self.world);
            taken.time += start.elapsed();
            taken.allocations += allocations() - before;
            // What the simulated Xen does to put a vCPU to sleep is not counted.
            self.world.step(true);
            for disk in &mut self.disks {
                for answer in disk.link().collect() {
                    assert_eq!(answer.status, Status::Okay, "{}", self.case.name());
                    taken.requests += 1;
                }
            }
            if self
                .disks
                .iter_mut()
                .all(|disk| disk.link().outstanding() == 0)
            {
                return taken;
            }
            if let Some(lower) = &self.lower {
                lower.step();
            }
            let sim = &self.world.sim;
            sim.advance_to(sim.now() + Duration::from_micros(100));
        }
        panic!("{}: requests are not answered", self.case.name());
    }
}

/// Gives the driver domain its turn, uncounted.
#[inline(never)]
fn warm_up(world: &World) {
    std::hint::black_box("warm up");
    world.turn();
}

/// Gives the driver domain its turn. The instruction counter looks for this name.
#[inline(never)]
pub fn driver_domains_turn(world: &World) {
    std::hint::black_box("measured");
    world.turn();
}
