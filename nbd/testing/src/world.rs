//! A domain with a network, its executors, and a guest's disks on exports.

use crate::{Config, FakeNetwork, FakeServer};
use bulkhead_executor::{Executor, Handle};
use bulkhead_images::target::Target;
use bulkhead_images::testing::OpenNow;
use bulkhead_images::{
    Access, BlockDevice, Io, IoError, IoQueue, IoSegment, Op, Owner, QueueContext, Sector, Store,
    Submitted, Tag,
};
use bulkhead_nbd::{ExportSettings, Exports, nbd_store};
use bulkhead_stream::Tls;
use bulkhead_volumes::DiskStore;
use bulkhead_xen::{DomId, PAGE_SIZE, VcpuId};
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use std::cell::RefCell;
use std::future::Future;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

/// The address of the first server, and of the second.
pub const SERVERS: [&str; 2] = ["10.0.0.2:10809", "10.0.0.3:10809"];

/// The name that has the addresses of both.
pub const NAME: &str = "storage:10809";

/// A machine with a domain of two vCPUs, and two servers.
pub struct World {
    /// The machine.
    pub sim: Sim,
    /// The domain.
    pub domain: SimDomain,
    executors: RefCell<Vec<Executor<SimVcpu>>>,
    /// The first server.
    pub server: FakeServer,
    /// The second server.
    pub other: FakeServer,
    /// The client.
    pub exports: Rc<Exports<SimVcpu>>,
    /// Its store.
    pub store: Rc<DiskStore>,
}

impl World {
    /// Returns a machine whose first server has that configuration. Requests wait for servers for ever.
    pub fn new(config: Config) -> World {
        World::with(config, None, None)
    }

    /// Returns a machine whose requests wait for servers for `timeout`, and use TLS if there is some.
    pub fn with(config: Config, timeout: Option<Duration>, tls: Option<Rc<dyn Tls>>) -> World {
        let sim = Sim::new();
        let domain = sim.add_domain_with(DomainConfig {
            vcpus: 2,
            memory_pages: 4096,
            ..DomainConfig::default()
        });
        let executors: Vec<_> = (0..2)
            .map(|vcpu| Executor::new(domain.hypervisor_of(VcpuId(vcpu))))
            .collect();
        let server = FakeServer::new(config);
        let other = FakeServer::new(Config::default());
        let network = FakeNetwork(vec![
            (SERVERS[0].to_string(), server.clone()),
            (SERVERS[1].to_string(), other.clone()),
            (NAME.to_string(), server.clone()),
            (NAME.to_string(), other.clone()),
        ]);
        let settings = ExportSettings { vcpus: 2, timeout };
        let exports = Exports::new(executors[0].handle(), Rc::new(network), tls, settings);
        World {
            store: Rc::new(nbd_store(exports.clone())),
            server,
            other,
            exports,
            executors: RefCell::new(executors),
            domain,
            sim,
        }
    }

    /// Runs the domain and the servers until they have nothing to do.
    ///
    /// # Panics
    /// If that is never so.
    pub fn run(&self) {
        for _ in 0..100_000 {
            let mut moved = self.server.step() | self.other.step();
            for executor in &mut *self.executors.borrow_mut() {
                moved |= executor.run_until_idle();
            }
            if !moved {
                return;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// Runs the domain alone.
    pub fn run_domain(&self) {
        for executor in &mut *self.executors.borrow_mut() {
            executor.run_until_idle();
        }
    }

    /// Returns the handle of the first vCPU's executor.
    pub fn handle(&self) -> Handle<SimVcpu> {
        self.executors.borrow()[0].handle()
    }

    /// Lets time pass.
    pub fn wait(&self, span: Duration) {
        self.sim.pass(span, || self.run(), || self.next_deadline());
    }

    /// Returns the time at which the domain wants to do something next by itself.
    pub fn next_deadline(&self) -> Option<bulkhead_xen::Instant> {
        let executors = self.executors.borrow();
        executors.iter().filter_map(Executor::next_deadline).min()
    }

    /// Runs a task of the first vCPU to its end; `None` if it takes longer than that.
    pub fn within<T: 'static>(
        &self,
        span: Duration,
        task: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let told = result.clone();
        let handle = self.executors.borrow()[0].handle();
        handle.spawn(async move { *told.borrow_mut() = Some(task.await) });
        let end = self.sim.now() + span;
        self.run();
        while result.borrow().is_none()
            && let Some(next) = self.next_deadline().filter(|next| *next <= end)
        {
            self.sim.advance_to(next.max(self.sim.now()));
            self.run();
        }
        result.take()
    }

    /// Opens a target.
    ///
    /// # Panics
    /// If that takes longer than a guest's toolstack waits.
    pub fn try_open(&self, target: &str, access: Access) -> Result<Arc<dyn BlockDevice>, String> {
        let (store, target) = (self.store.clone(), target.to_string());
        let opened = self.within(Duration::from_secs(10), async move {
            let target = Target::parse(&target).expect("a target");
            let owner = Owner {
                name: "domain 5, xvda",
                domain: DomId(5),
            };
            let opened = store.open(target, access, owner);
            opened.await.map_err(|error| error.to_string())
        });
        opened.expect("opened or refused in time")
    }

    /// Returns the reason why a target is refused.
    ///
    /// # Panics
    /// If it is not.
    pub fn refusal(&self, target: &str) -> String {
        let opened = self.try_open(target, Access::ReadWrite);
        opened.err().expect("it is refused")
    }

    /// Opens a target, with a queue on the first vCPU.
    ///
    /// # Panics
    /// If it is refused.
    pub fn open(&self, target: &str) -> Disk<'_> {
        let device = self.try_open(target, Access::ReadWrite);
        let device = device.unwrap_or_else(|error| panic!("{target}: {error}"));
        Disk::new(self, device, 0, 32)
    }

    /// Returns the lines about the exports that the operator is shown.
    pub fn lines(&self) -> String {
        self.store.lines().join("\n")
    }

    /// Lets go of all exports, and checks that nothing of them is left.
    ///
    /// # Panics
    /// If that takes too long, or a connection is left.
    pub fn end(self) {
        let exports = self.exports.clone();
        let closed = self.within(Duration::from_secs(120), async move {
            exports.close().await;
        });
        assert_eq!(closed, Some(()), "{}", self.lines());
        assert_eq!(self.exports.count(), 0);
        for server in [&self.server, &self.other] {
            assert_eq!(server.connections().1, 0, "connections are left");
        }
        // A timer of a line may be left; what it is for is not there any more.
        self.wait(Duration::from_secs(1200));
        assert_eq!(self.next_deadline(), None, "idle means idle");
        self.sim.assert_no_violations();
    }
}

/// A guest's disk: a queue of a device, on one vCPU.
pub struct Disk<'w> {
    /// The machine.
    pub world: &'w World,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// The queue.
    pub queue: Box<dyn IoQueue>,
    /// The number of times that its task was woken.
    pub wakes: Arc<Wakes>,
    /// The requests that have completed and were not looked at yet.
    pub done: Vec<(usize, Result<(), IoError>)>,
}

/// Counts the times that it was woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    /// Returns that number.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'w> Disk<'w> {
    /// Opens a queue of a device.
    ///
    /// # Panics
    /// If that is refused.
    pub fn new(world: &'w World, device: Arc<dyn BlockDevice>, vcpu: u32, depth: usize) -> Self {
        let queue = device.queue_for(&QueueContext::new(VcpuId(vcpu), depth));
        Disk {
            world,
            device,
            queue,
            wakes: Arc::default(),
            done: Vec::new(),
        }
    }

    /// Hands a request over without waking the client's task.
    pub fn hand(&mut self, tag: usize, op: Op, segments: &[IoSegment]) -> Submitted {
        self.queue.submit(Tag(tag), Io { op, segments })
    }

    /// Hands over a request, which the queue takes, and wakes the client's task.
    ///
    /// # Panics
    /// If the queue does not take it.
    pub fn ask(&mut self, tag: usize, op: Op, segments: &[IoSegment]) {
        assert_eq!(self.hand(tag, op, segments), Submitted::Pending);
        self.queue.flush_submissions();
        self.collect();
    }

    /// Looks for completions as an engine does: until there are none, so that it may sleep.
    pub fn collect(&mut self) -> usize {
        let before = self.done.len();
        let waker = Waker::from(self.wakes.clone());
        let done = &mut self.done;
        let mut sink = |tag: Tag, outcome| done.push((tag.0, outcome));
        let mut context = Context::from_waker(&waker);
        while self.queue.poll_complete(&mut context, &mut sink).is_ready() {}
        self.done.len() - before
    }

    /// Runs the machine, and returns what has completed, in the order of the tags.
    pub fn completed(&mut self) -> Vec<(usize, Result<(), IoError>)> {
        self.world.run();
        self.collect();
        let mut done = std::mem::take(&mut self.done);
        done.sort_by_key(|(tag, _)| *tag);
        done
    }

    /// Does one request, and returns its outcome.
    ///
    /// # Panics
    /// If the queue is busy, or the server does not answer.
    pub fn does(&mut self, op: Op, segments: &[IoSegment]) -> Result<(), IoError> {
        match self.hand(7777, op, segments) {
            Submitted::Done(outcome) => return outcome,
            Submitted::Busy => panic!("an idle queue is busy"),
            Submitted::Pending => {}
        }
        self.queue.flush_submissions();
        self.collect();
        let done = self.completed();
        let [(7777, outcome)] = done[..] else {
            panic!("it is complete, alone: {done:?}");
        };
        outcome
    }

    /// Closes the queue. Returns whether the client has let go of everything.
    pub fn close(&mut self) -> bool {
        let waker = Waker::from(self.wakes.clone());
        let closed = self.queue.poll_close(&mut Context::from_waker(&waker));
        closed.is_ready()
    }
}

/// Pages of the domain's, for data.
pub struct Buffer<'w> {
    world: &'w World,
    base: NonNull<u8>,
    pages: usize,
}

impl<'w> Buffer<'w> {
    /// Takes that many pages.
    pub fn new(world: &'w World, pages: usize) -> Buffer<'w> {
        Buffer {
            base: world.domain.alloc_pages(pages),
            world,
            pages,
        }
    }

    /// Returns a segment of `len` bytes at that place.
    ///
    /// # Panics
    /// If there are none.
    pub fn segment(&self, page: usize, offset: usize, len: usize) -> IoSegment {
        assert!(page < self.pages && offset + len <= PAGE_SIZE);
        // SAFETY: within the pages.
        let address = unsafe { self.base.add(page * PAGE_SIZE + offset) };
        // SAFETY: the pages stay as long as the buffer, which outlives the requests.
        unsafe { IoSegment::new(address, len, None) }
    }

    /// Returns segments that cover `len` bytes from the start on, a page each.
    pub fn whole(&self, len: usize) -> Vec<IoSegment> {
        let pages = 0..len.div_ceil(PAGE_SIZE);
        pages
            .map(|page| self.segment(page, 0, PAGE_SIZE.min(len - page * PAGE_SIZE)))
            .collect()
    }

    /// Writes bytes to its start.
    ///
    /// # Panics
    /// If there are too many.
    pub fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.pages * PAGE_SIZE);
        // SAFETY: within the pages, which nothing else uses now.
        unsafe {
            self.base
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
    }

    /// Returns bytes of it.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn bytes(&self, start: usize, len: usize) -> Vec<u8> {
        assert!(start + len <= self.pages * PAGE_SIZE);
        // SAFETY: within the pages, which nothing else uses now.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start), len) }.to_vec()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.world.domain.free_pages(self.base, self.pages);
    }
}

/// Returns bytes of which no two sectors are alike.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| seed ^ (at / 512) as u8 ^ (at % 251) as u8)
        .collect()
}

/// Returns a read from that sector on.
pub fn read(sector: u64) -> Op {
    Op::Read {
        sector: Sector(sector),
    }
}

/// Returns a write from that sector on.
pub fn write(sector: u64) -> Op {
    Op::write(Sector(sector))
}

/// Returns a discard of `count` sectors.
pub fn discard(sector: u64, count: u64) -> Op {
    Op::Discard {
        sector: Sector(sector),
        count: Sector(count),
        secure: false,
    }
}
