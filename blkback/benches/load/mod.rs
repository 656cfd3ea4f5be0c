//! Load on a backend in the simulated Xen, which the host benchmarks measure.
//!
//! Disks are `null:` ones, so that the request path is measured, and not the speed at which the processor copies pages.
//! Only the driver domain's turn is measured, the simulated hypercalls included; the work of frontends is not.
#![allow(dead_code, reason = "each benchmark uses its part")]

use bulkhead_blkback_testkit::{Frontend, Guest, Setup, Style, World, allocations};
use bulkhead_ring::blkif::Status;
use std::time::{Duration, Instant};

/// Pages of address space for 200 disks with rings of any kind.
const REGION_PAGES: usize = 1 << 19;

/// Disks that a guest has.
const DISKS_PER_GUEST: usize = 8;

/// The number of times that time is let pass for answers that are held back for others to join them.
const PATIENCE: u32 = 20;

/// The kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 4 KiB, the pages granted for each request.
    Direct,
    /// 4 KiB, the pages granted for good.
    Persistent,
    /// 64 KiB in an indirect request.
    Indirect,
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
    /// Returns the cases that are measured: each kind alone at depth 1 and 32, and with more and more disks.
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
        cases
    }

    /// Returns its name.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Direct => "direct",
            Kind::Persistent => "persistent",
            Kind::Indirect => "indirect",
        };
        let verb = if self.write { "write" } else { "read" };
        format!("{kind}-{verb}-qd{}-{}disks", self.depth, self.disks)
    }

    fn sectors(&self) -> usize {
        match self.kind {
            Kind::Indirect => 128,
            Kind::Direct | Kind::Persistent => 8,
        }
    }
}

/// Disks under load.
pub struct Load {
    case: Case,
    world: &'static World,
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
            ..Setup::default()
        })));
        // A driver domain with that many disks needs a xenstored that was told so.
        world.sim.store().quotas.nodes = 100_000;
        let style = Style {
            persistent: case.kind == Kind::Persistent,
            ..Style::default()
        };
        let mut disks = Vec::new();
        while disks.len() < case.disks {
            let guest = Guest::with_memory(world, 8192);
            for letter in ('a'..).take(DISKS_PER_GUEST.min(case.disks - disks.len())) {
                let disk = guest
                    .attach(&format!("xvd{letter}"), "null:16G")
                    .styled(style);
                let needed = match case.kind {
                    Kind::Direct => None,
                    Kind::Persistent => Some("feature-persistent"),
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
                let sector = ((number * 37 + request) * 1024) as u64;
                match self.case.write {
                    true => link.push_write(sector, &self.data),
                    false => link.push_read(sector, self.case.sectors()),
                };
            }
            link.kick();
        }
        for _ in 0..PATIENCE {
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
