//! Instructions for each request to an NBD server, over the TCP/IP stack and the rings of a network interface, counted
//! by callgrind in the simulated Xen.
//!
//! ```text
//! cargo bench -p bulkhead-blkback --bench network
//! ```
//!
//! The counts are those of the driver domain, without the instructions of the simulated Xen, as in `instructions`: the
//! store's queue, the line's task, the stack, the rings, and every copy of a byte. The guest's ring is not counted:
//! requests are handed to the store. The server and the network backend belong to other domains, and cost nothing here.

mod callgrind;

use bulkhead_executor::Executor;
use bulkhead_images::target::Target;
use bulkhead_images::testing::OpenNow;
use bulkhead_images::{
    Access, Io, IoQueue, IoSegment, Op, Owner, QueueContext, Sector, Store, Submitted, Tag,
};
use bulkhead_nbd::{ExportSettings, Exports, nbd_store};
use bulkhead_nbd_testing::{Config, FakeServer};
use bulkhead_net_testing::world::World;
use bulkhead_xen::{DomId, PAGE_SIZE, VcpuId};
use bulkhead_xen_sim::SimVcpu;
use std::process::ExitCode;
use std::task::{Context, Waker};
use std::time::Duration;

/// The number of requests before any is counted, and the least number of requests for one count.
const WARM: usize = 64;
const REQUESTS: usize = 512;

/// The cases: whether they write, the bytes of a request, and the requests at a time.
const CASES: [(bool, usize, usize); 7] = [
    (false, 4 << 10, 1),
    (false, 4 << 10, 32),
    (true, 4 << 10, 1),
    (true, 4 << 10, 32),
    (false, 64 << 10, 1),
    (false, 64 << 10, 8),
    (true, 64 << 10, 8),
];

fn name((write, bytes, depth): (bool, usize, usize)) -> String {
    let verb = if write { "write" } else { "read" };
    format!("{verb}-{}k-qd{depth}", bytes >> 10)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, wanted, ..] = &arguments[..]
        && flag == "--case"
    {
        let case = CASES.into_iter().find(|case| name(*case) == *wanted);
        run_case(case.expect("a known case"));
    }
    println!(
        "{:20} {:>12} {:>14} {:>9} {:>9}",
        "for each request", "instructions", "simulated Xen", "received", "sent"
    );
    for case in CASES {
        if let Err(error) = count(&name(case)) {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Counts one case, and prints it.
fn count(name: &str) -> Result<(), String> {
    let (text, file) = callgrind::run(name)?;
    let words: Vec<f64> = text
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [requests, received, sent] = words[..] else {
        return Err(format!("{name} said {text:?}"));
    };
    let counts = callgrind::counts(&file, "<bulkhead_xen_sim::vcpu::SimVcpu as ")?;
    println!(
        "{name:20} {:12.0} {:14.0} {:9.2} {:9.2}",
        (counts.total - counts.part) / requests,
        counts.part / requests,
        received / requests,
        sent / requests
    );
    Ok(())
}

/// A disk on a server, whose queue is given as many requests as it may have, again and again.
struct Load {
    world: World,
    queue: Box<dyn IoQueue>,
    segments: Vec<Vec<IoSegment>>,
    op: Op,
}

impl Load {
    fn new((write, bytes, depth): (bool, usize, usize)) -> Load {
        let world = World::new(true);
        let server = FakeServer::new(Config::default());
        let connection = server.accept();
        world.peer.borrow_mut().serve(
            10809,
            Box::new(move |socket| {
                while socket.can_recv() {
                    let taken = socket.recv(|bytes| {
                        server.deliver(connection, bytes);
                        (bytes.len(), ())
                    });
                    taken.expect("it can receive");
                }
                server.deliver(connection, &[]);
                let room = socket.send_capacity() - socket.send_queue();
                if socket.can_send() {
                    let bytes = server.collect(connection, room);
                    assert_eq!(socket.send_slice(&bytes), Ok(bytes.len()));
                }
            }),
        );
        let settings = ExportSettings {
            vcpus: 1,
            timeout: None,
        };
        let exports = Exports::new(world.handle(), world.net.clone(), None, settings);
        let store = nbd_store(exports);
        let opened = world.within(Duration::from_secs(10), async move {
            let target = Target::parse("nbd:10.0.0.2/disk").expect("a target");
            let owner = Owner {
                name: "domain 5, xvda",
                domain: DomId(5),
            };
            store.open(target, Access::ReadWrite, owner).await
        });
        let device = opened.expect("opened in time");
        let device = device.unwrap_or_else(|error| panic!("{error}"));
        let queue = device.queue_for(&QueueContext::new(VcpuId(0), depth));
        let pages = bytes.div_ceil(PAGE_SIZE);
        let segments = (0..depth).map(|_| {
            let base = world.domain.alloc_pages(pages);
            let page = |page: usize| {
                // SAFETY: within the pages, which stay as long as the program runs.
                unsafe { IoSegment::new(base.add(page * PAGE_SIZE), PAGE_SIZE, None) }
            };
            (0..pages).map(page).collect()
        });
        let sector = Sector(64);
        Load {
            segments: segments.collect(),
            op: match write {
                true => Op::write(sector),
                false => Op::Read { sector },
            },
            queue,
            world,
        }
    }

    /// Does as many requests as the queue may have at a time. `calls` makes the queue's calls.
    fn batch(&mut self, calls: fn(&mut dyn FnMut())) -> usize {
        let (op, queue) = (self.op, &mut self.queue);
        calls(&mut || {
            for (tag, segments) in self.segments.iter().enumerate() {
                assert_eq!(
                    queue.submit(Tag(tag), Io { op, segments }),
                    Submitted::Pending
                );
            }
            queue.flush_submissions();
        });
        let mut done = 0;
        let mut context = Context::from_waker(Waker::noop());
        while done < self.segments.len() {
            self.world.run();
            let mut sink = |_: Tag, outcome| {
                assert_eq!(outcome, Ok(()));
                done += 1;
            };
            calls(&mut || {
                while queue.poll_complete(&mut context, &mut sink).is_ready() {}
            });
            if done < self.segments.len() {
                self.world.wait(Duration::from_millis(1));
            }
        }
        done
    }
}

/// Runs the driver domain, and is counted.
#[inline(never)]
fn driver_domains_turn(executor: &mut Executor<SimVcpu>) -> bool {
    executor.run_until_idle()
}

/// Makes the queue's calls, which are the driver domain's, too, and is counted.
#[inline(never)]
fn driver_domains_turn_of_queue(calls: &mut dyn FnMut()) {
    calls();
}

/// Runs one case under callgrind.
fn run_case(case: (bool, usize, usize)) -> ! {
    let mut load = Load::new(case);
    let mut warm = 0;
    while warm < WARM {
        warm += load.batch(|calls| calls());
    }
    load.world.turn.set(driver_domains_turn);
    let before = load.world.net.list()[0].counts();
    let mut requests = 0;
    while requests < REQUESTS {
        requests += load.batch(driver_domains_turn_of_queue);
    }
    let after = load.world.net.list()[0].counts();
    println!(
        "{requests} {} {}",
        after.received - before.received,
        after.sent - before.sent
    );
    // What a machine gives back at its end is of no interest.
    std::process::exit(0)
}
