//! A machine with a driver domain that has an interface, the domain of its backend, and a host in the network.

use crate::{DhcpServer, Frame, NameServer, NetBack, Offered, Peer};
use bulkhead_executor::{Executor, Handle};
use bulkhead_grant::TableOnDemand;
use bulkhead_net::{InterfaceSettings, Interfaces, TcpStream, Traces};
use bulkhead_stream::{AddressChoice, Buffers, ConnectError, Ended, Endpoint, Stream};
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::{Client, Ring};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// A stream of the tests.
pub type TestStream = TcpStream<SimVcpu>;

/// The buffers of its streams.
pub const BUFFERS: Buffers = Buffers {
    receive: 64 << 10,
    send: 64 << 10,
};

/// A function that replaces a packet by others, or none.
pub type Mangle = Box<dyn FnMut(Frame) -> Vec<Frame>>;

/// The machine. Any fault in it is a panic.
pub struct World {
    /// Its hypervisor, xenstore and clock.
    pub sim: Sim,
    /// The driver domain.
    pub domain: SimDomain,
    /// The backend's domain.
    pub backend: SimDomain,
    /// The driver domain's interfaces.
    pub net: Rc<Interfaces<SimVcpu>>,
    /// The backend of its one interface.
    pub back: RefCell<NetBack>,
    /// A host in the network.
    pub peer: RefCell<Peer>,
    /// A DHCP server there.
    pub dhcp: RefCell<DhcpServer>,
    /// A name server there.
    pub names: RefCell<NameServer>,
    /// The least length of the next packet for the frontend that is to be damaged, if one is.
    pub damage: RefCell<Option<usize>>,
    /// The function that replaces each packet for the frontend.
    pub mangle: RefCell<Option<Mangle>>,
    /// The function that replaces each packet from the frontend.
    pub mangle_sent: RefCell<Option<Mangle>>,
    /// The function that runs the driver domain until it has nothing to do, and returns whether it had. A benchmark has
    /// one of its own, which is counted.
    pub turn: Cell<fn(&mut Executor<SimVcpu>) -> bool>,
    executor: RefCell<Executor<SimVcpu>>,
    /// The numbers of the domain's ports and grants before it had an interface.
    before: (usize, usize),
}

impl World {
    /// Returns a machine whose interface is connected. `offload` says whether its backend offers everything or nothing.
    pub fn new(offload: bool) -> World {
        World::with(offload, &["ip=10.0.0.7/24,fd00::7/64"])
    }

    /// Returns such a machine, with more words on the command line.
    pub fn with(offload: bool, words: &[&str]) -> World {
        World::with_random(offload, words, || 0)
    }

    /// Returns such a machine, with a source of random numbers.
    pub fn with_random(offload: bool, words: &[&str], random: fn() -> u64) -> World {
        let offered = Offered {
            parts: offload,
            offload,
            queues: None,
        };
        World::of(offered, words, random)
    }

    /// Returns such a machine with more words on the command line, whose backend offers everything and says that it
    /// takes that many queues.
    pub fn with_queues(most: &'static str, words: &[&str]) -> World {
        let offered = Offered {
            parts: true,
            offload: true,
            queues: Some(most),
        };
        let words = [&["ip=10.0.0.7/24,fd00::7/64"], words].concat();
        World::of(offered, &words, || 0)
    }

    /// Returns a machine whose interface is connected to a backend with that offer.
    pub fn of(offered: Offered, words: &[&str], random: fn() -> u64) -> World {
        let sim = Sim::new();
        let big = || DomainConfig {
            memory_pages: 4096,
            ..DomainConfig::default()
        };
        let domain = sim.add_domain_with(big());
        let backend = sim.add_domain_with(big());
        let executor = Executor::new(domain.hypervisor());
        let handle = executor.handle();
        // SAFETY: the domain's xenstore ring, used here alone.
        let ring = unsafe { Ring::new(domain.hypervisor(), domain.store_ring()) };
        let store = Client::start(&handle, ring);
        let mut settings = InterfaceSettings::default();
        for word in words {
            assert_eq!(settings.take(word), Ok(true), "{word}");
        }
        let net = Interfaces::new(
            handle.clone(),
            store,
            Arc::new(domain.hypervisor()),
            TableOnDemand::new(domain.hypervisor()),
            settings,
            random,
            Traces::default(),
        );
        let following = net.clone();
        handle.spawn(async move {
            let Err(error) = following.follow().await;
            panic!("the interfaces are followed no more: {error}");
        });
        let before = (domain.open_ports(), domain.grants_in_use());
        let back = NetBack::new(&sim, &backend, domain.id(), offered);
        let world = World {
            sim,
            net,
            back: RefCell::new(back),
            peer: RefCell::new(Peer::new(offered.offload)),
            dhcp: RefCell::default(),
            names: RefCell::default(),
            damage: RefCell::default(),
            mangle: RefCell::default(),
            mangle_sent: RefCell::default(),
            turn: Cell::new(Executor::run_until_idle),
            executor: RefCell::new(executor),
            before,
            backend,
            domain,
        };
        world.run();
        assert_eq!(world.states(), states("4", "4"));
        world
    }

    fn micros(&self) -> u64 {
        self.sim.now().0 / 1000
    }

    /// Runs everything until nothing moves any more.
    pub fn run(&self) {
        self.sim.run_until_idle(|| {
            let mut moved = (self.turn.get())(&mut self.executor.borrow_mut());
            let (mut back, mut peer) = (self.back.borrow_mut(), self.peer.borrow_mut());
            moved |= back.step(&self.sim);
            while let Some(frame) = back.from_frontend.pop_front() {
                match self.served(&frame) {
                    Some(answer) => {
                        let answer = answer.into_iter();
                        back.to_frontend
                            .extend(answer.flat_map(|frame| mangled(&self.mangle, frame)));
                    }
                    None => {
                        let arrives = mangled(&self.mangle_sent, frame);
                        arrives.into_iter().for_each(|frame| peer.receive(frame));
                    }
                }
                moved = true;
            }
            moved |= peer.step(self.micros());
            while let Some(mut frame) = peer.take_sent() {
                let mut damage = self.damage.borrow_mut();
                if damage.is_some_and(|least| frame.bytes.len() >= least) {
                    let last = frame.bytes.last_mut().expect("not empty");
                    *last ^= 1;
                    *damage = None;
                }
                back.to_frontend.extend(mangled(&self.mangle, frame));
                moved = true;
            }
            moved
        });
    }

    /// Has the servers of addresses and of names take a frame. Returns the answer.
    fn served(&self, frame: &Frame) -> Option<Option<Frame>> {
        let answered = self.dhcp.borrow_mut().take(frame);
        answered.or_else(|| self.names.borrow_mut().take(frame))
    }

    fn next_deadline(&self) -> Option<bulkhead_xen::Instant> {
        let own = self.executor.borrow().next_deadline();
        let theirs = self.peer.borrow_mut().next_deadline(self.micros());
        let theirs = theirs.map(|micros| bulkhead_xen::Instant(micros * 1000));
        own.into_iter().chain(theirs).min()
    }

    /// Returns the handle of the driver domain's executor.
    pub fn handle(&self) -> Handle<SimVcpu> {
        self.executor.borrow().handle()
    }

    /// Lets time pass.
    pub fn wait(&self, span: Duration) {
        let next = || self.next_deadline();
        self.sim.pass(span, || self.run(), next);
    }

    /// Starts a task, and returns the place where its result will be.
    pub fn start<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let result = Rc::new(RefCell::new(None));
        let told = result.clone();
        let handle = self.executor.borrow().handle();
        handle.spawn(async move { *told.borrow_mut() = Some(task.await) });
        self.run();
        result
    }

    /// Runs a task to its end; `None` if it takes longer than that.
    pub fn within<T: 'static>(
        &self,
        span: Duration,
        task: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let told = result.clone();
        let handle = self.executor.borrow().handle();
        let task = handle.spawn(async move { *told.borrow_mut() = Some(task.await) });
        let end = self.sim.now() + span;
        self.run();
        while result.borrow().is_none()
            && let Some(next) = self.next_deadline().filter(|next| *next <= end)
        {
            self.sim.advance_to(next.max(self.sim.now()));
            self.run();
        }
        task.stop();
        self.run();
        result.take()
    }

    /// Connects to a server, as `HOST:PORT`.
    pub fn try_connect(&self, server: &str) -> Result<TestStream, ConnectError> {
        let server = Endpoint::parse(server, 7).expect("an endpoint");
        let net = self.net.clone();
        let connecting = async move { net.open(&server, &AddressChoice::default(), BUFFERS).await };
        let connected = self.within(Duration::from_secs(120), connecting);
        connected.expect("connected or refused in time")
    }

    /// Connects to a server.
    pub fn connect(&self, server: &str) -> TestStream {
        let connected = self.try_connect(server);
        connected.unwrap_or_else(|error| panic!("{server}: {error}"))
    }

    /// Returns the states of backend and frontend.
    pub fn states(&self) -> (String, String) {
        self.back.borrow().states(&self.sim)
    }

    /// Returns the lines that the operator is shown.
    pub fn lines(&self) -> String {
        self.net.lines().join("\n")
    }

    /// Detaches the interface, and checks that nothing of it is left.
    pub fn end(self) {
        self.back.borrow().request_detach(&self.sim);
        self.wait(Duration::from_secs(5));
        assert_eq!(self.states(), states("6", "6"));
        self.back.borrow().finish_detach(&self.sim);
        self.wait(Duration::from_secs(5));
        assert!(self.net.list().is_empty(), "{}", self.lines());
        let after = (self.domain.open_ports(), self.domain.grants_in_use());
        assert_eq!(after, self.before);
        self.sim.assert_no_violations();
    }
}

fn mangled(mangle: &RefCell<Option<Mangle>>, frame: Frame) -> Vec<Frame> {
    match &mut *mangle.borrow_mut() {
        Some(mangle) => mangle(frame),
        None => vec![frame],
    }
}

/// Returns states in the form of [`World::states`].
pub fn states(backend: &str, frontend: &str) -> (String, String) {
    (backend.to_string(), frontend.to_string())
}

/// Returns bytes of which no two neighbouring packets are alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at % 251) as u8 ^ (at / 1000) as u8)
        .collect()
}

/// Sends bytes, and receives as many. Returns the received ones, and the stream.
pub async fn exchange(
    mut stream: TestStream,
    bytes: Vec<u8>,
    expected: usize,
) -> Result<(Vec<u8>, TestStream), Ended> {
    let (mut sent, mut received) = (0, Vec::new());
    poll_fn(|context| {
        stream.wake_with(context.waker());
        loop {
            let mut moved = 0;
            if sent < bytes.len() {
                let count = stream.send(&mut |room| {
                    let count = room.len().min(bytes.len() - sent);
                    room[..count].copy_from_slice(&bytes[sent..sent + count]);
                    count
                })?;
                sent += count;
                moved += count;
            }
            if received.len() < expected {
                moved += stream.receive(&mut |arrived| {
                    received.extend_from_slice(arrived);
                    arrived.len()
                })?;
            }
            stream.push();
            if sent == bytes.len() && received.len() >= expected {
                return Poll::Ready(Ok(()));
            }
            if moved == 0 {
                return Poll::Pending;
            }
        }
    })
    .await?;
    Ok((received, stream))
}

/// Waits for the end of a stream.
pub async fn end_of(mut stream: TestStream) -> Ended {
    poll_fn(|context| {
        stream.wake_with(context.waker());
        match stream.receive(&mut |bytes| bytes.len()) {
            Err(ended) => Poll::Ready(ended),
            Ok(_) => Poll::Pending,
        }
    })
    .await
}
