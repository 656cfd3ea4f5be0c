//! An interface: the stack above its device, the sockets, and the task that runs them.

use crate::device::{NetDevice, PacketCounts, domain_time};
use crate::lease::{DhcpAnswers, Lease};
use crate::neighbours::{Neighbours, next_hop};
use crate::settings::InterfaceSettings;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{Flag, Handle, Signal};
use bulkhead_xen::{Hypervisor, Instant};
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use smoltcp::iface::{Config, Interface as Stack, PollIngressSingleResult, PollResult};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

/// The number of packets received, and of rounds of sending, before other tasks have their turn.
const BURST: usize = 64;
/// The time after which the stack is asked again if it wants to send at once and cannot.
const AGAIN: Duration = Duration::from_millis(1);
/// The same time if it cannot because the backend takes nothing: the backend's notification comes earlier.
const STUCK: Duration = Duration::from_millis(250);
/// The first of the ports that any program may use (RFC 6335, 6), and their number: all that follow.
const FIRST_PORT: u16 = 49152;
const PORTS: u16 = u16::MAX - FIRST_PORT + 1;
/// The most connections that were closed and whose last packets are on their way. The oldest ends at once if there are
/// more.
const LEAVING: usize = 8;

/// An interface. It belongs to the vCPU that it was made on.
pub struct Interface<H: Hypervisor> {
    pub(crate) name: String,
    pub(crate) handle: Handle<H>,
    random: fn() -> u64,
    pub(crate) state: RefCell<InterfaceState<H>>,
    /// Raised when there is a packet to send, and when the backend has changed.
    pub(crate) work: Signal,
    /// Set when the interface was given up.
    gone: Flag,
}

/// The state that the task and the users of an interface share.
pub(crate) struct InterfaceState<H: Hypervisor> {
    pub(crate) device: NetDevice<H>,
    /// The stack, made when the first backend connects.
    pub(crate) stack: Option<Stack>,
    pub(crate) sockets: SocketSet<'static>,
    /// The name server that has answered last.
    pub(crate) first_name_server: Option<IpAddress>,
    pub(crate) lease: Option<Lease>,
    pub(crate) settings: InterfaceSettings,
    /// The settings that a DHCP server has given.
    pub(crate) leased: InterfaceSettings,
    /// The sockets of closed connections, with their ports.
    leaving: Vec<(SocketHandle, u16)>,
    next_port: u16,
    /// The reason why the interface was given up.
    pub(crate) failure: Option<String>,
    /// The number of backends that it was connected to.
    connections: u32,
}

/// The task's next step.
struct Turn {
    /// True if there is more to do now.
    busy: bool,
    /// The time at which the stack wants to go on by itself.
    next: Option<Instant>,
}

/// Returns a time of the domain's clock as a time of the stack's.
fn stack_time(time: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((time.0 / 1000) as i64)
}

impl<H: Hypervisor> Interface<H> {
    /// Returns an interface without a backend.
    pub fn new(
        name: String,
        handle: &Handle<H>,
        settings: InterfaceSettings,
        random: fn() -> u64,
    ) -> Rc<Self> {
        let mut sockets = SocketSet::new(Vec::new());
        let lease = settings.dhcp.then(|| Lease::new(&mut sockets));
        Rc::new(Interface {
            name,
            handle: handle.clone(),
            random,
            state: RefCell::new(InterfaceState {
                device: NetDevice::new(),
                stack: None,
                sockets,
                first_name_server: None,
                lease,
                settings,
                leased: InterfaceSettings::default(),
                leaving: Vec::new(),
                // Another one after each boot, so that servers do not take a connection for an old one.
                next_port: FIRST_PORT | (handle.now().0 >> 10 ^ random()) as u16,
                failure: None,
                connections: 0,
            }),
            work: Signal::default(),
            gone: Flag::default(),
        })
    }

    /// Returns a number that nobody can guess, if the machine has a source of them; otherwise another one each time.
    pub(crate) fn number(&self) -> u64 {
        // Far apart for times that are close to each other.
        let time = self.handle.now().0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        time.rotate_left(32) ^ (self.random)()
    }

    /// Begins to use a backend, which is in `InterfaceState::device`. `mac` is the interface's address.
    pub(crate) fn connected(&self, mac: EthernetAddress) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        let time = self.handle.now();
        let own = mac
            .0
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        config.random_seed = time.0.rotate_left(32) ^ own ^ (self.random)();
        // Made anew: what the backend can do may have changed. Connections are the sockets', and stay.
        let stack = Stack::new(config, &mut state.device, stack_time(time));
        state.stack = Some(stack);
        if let Some(lease) = &mut state.lease {
            state.device.dhcp = Some(DhcpAnswers::new(mac));
            lease.ask(&mut state.sockets, !state.leased.addresses.is_empty());
        }
        state.connections += 1;
        state.address(mac);
        state.want_servers(time);
        self.work.raise();
    }

    /// Gives up the interface: ends all connections over it, for good.
    pub(crate) fn fail(&self, reason: String) {
        let mut state = self.state.borrow_mut();
        state.failure = Some(reason);
        for (_, socket) in state.sockets.iter_mut() {
            if let smoltcp::socket::Socket::Tcp(socket) = socket {
                socket.abort();
            }
        }
        drop(state);
        self.gone.set();
        self.work.raise();
    }

    /// Returns whether the interface was given up.
    pub(crate) fn has_failed(&self) -> bool {
        self.gone.is_set()
    }

    /// Waits until the interface is given up.
    pub(crate) async fn failed(&self) {
        self.gone.wait().await;
    }

    /// Runs the stack, for as long as the domain runs.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            let turn = self.poll();
            if turn.busy {
                self.handle.yield_now().await;
                continue;
            }
            let mut sleep = pin!(turn.next.map(|next| self.handle.sleep_until(next)));
            let mut raised = pin!(self.work.raised());
            poll_fn(|context| {
                if let Some(rings) = &self.state.borrow().device.rings
                    && rings.poll_notified(context)
                {
                    return Poll::Ready(());
                }
                if let Some(sleep) = sleep.as_mut().as_pin_mut()
                    && sleep.poll(context).is_ready()
                {
                    return Poll::Ready(());
                }
                raised.as_mut().poll(context)
            })
            .await;
        }
    }

    /// Receives and sends packets, up to [`BURST`] of each.
    fn poll(&self) -> Turn {
        let now = self.handle.now();
        let time = stack_time(now);
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(stack) = state.stack.as_mut().filter(|_| state.failure.is_none()) else {
            state.reap();
            let next = None;
            return Turn { busy: false, next };
        };
        let (device, sockets) = (&mut state.device, &mut state.sockets);
        device.collect();
        device.turn();
        let mut busy = true;
        for _ in 0..BURST {
            let received = stack.poll_ingress_single(time, device, sockets);
            if let PollIngressSingleResult::None = received {
                busy = false;
                break;
            }
        }
        device.ask_for_hosts(stack, time);
        let mut rounds = 0;
        while stack.poll_egress(time, device, sockets) == PollResult::SocketStateChanged {
            rounds += 1;
            if rounds == BURST {
                busy = true;
                break;
            }
        }
        device.publish();
        busy |= device.final_check();
        let violated = device.violation.filter(|_| state.failure.is_none());
        let next = stack.poll_at(time, &state.sockets).map(domain_time);
        let next = next.into_iter().chain(state.device.neighbours.next()).min();
        let next = next.map(|next| {
            let least = match state.device.has_room() {
                true => AGAIN,
                false => STUCK,
            };
            next.max(now + least)
        });
        state.follow_lease(&self.name, now);
        state.reap();
        drop(guard);
        if let Some(violation) = violated {
            self.fail(violation.to_string());
        }
        Turn { busy, next }
    }

    /// Returns a line about the interface, for the operator.
    pub fn line(&self) -> String {
        let state = self.state.borrow();
        let link = match &state.failure {
            Some(failure) => format!("given up: {failure}"),
            None if state.device.rings.is_some() => match state.waits_for_lease() {
                true => "up, without an address of a DHCP server".to_string(),
                false => "up".to_string(),
            },
            None => "down".to_string(),
        };
        let addresses: Vec<String> = match &state.stack {
            Some(stack) => stack.ip_addrs().iter().map(IpCidr::to_string).collect(),
            None => Vec::new(),
        };
        let streams = state.sockets.iter();
        let is_stream = |socket: &smoltcp::socket::Socket<'_>| {
            matches!(socket, smoltcp::socket::Socket::Tcp(_))
        };
        let streams = streams.filter(|(_, socket)| is_stream(socket)).count();
        let PacketCounts {
            received,
            received_bytes,
            sent,
            sent_bytes,
            damaged,
            refused,
            repeats,
        } = state.device.counts();
        let mut line = format!(
            "network {}, {link}, addresses={} streams={streams} connections={} received={received} \
             received-bytes={received_bytes} sent={sent} sent-bytes={sent_bytes} retransmitted={} repeated={} \
             damaged={damaged} refused={refused}",
            self.name,
            addresses.join(","),
            state.connections,
            repeats.retransmitted,
            repeats.repeated,
        );
        let queues = state.device.queues();
        // With one, they are those of the interface.
        for (queue, (received, sent)) in queues.iter().enumerate().filter(|_| queues.len() > 1) {
            let more = format!(" queue-{queue}-received={received} queue-{queue}-sent={sent}");
            line.push_str(&more);
        }
        line
    }

    /// Returns the packets and bytes so far.
    pub fn counts(&self) -> PacketCounts {
        self.state.borrow().device.counts()
    }

    /// Returns the interface's addresses, except those that it has made for itself.
    pub fn addresses(&self) -> Vec<IpCidr> {
        let state = self.state.borrow();
        let all = [&state.settings.addresses, &state.leased.addresses];
        all.into_iter().flatten().copied().collect()
    }
}

impl<H: Hypervisor> InterfaceState<H> {
    /// Returns a port for a new connection: the next one that no connection has.
    pub(crate) fn port(&mut self) -> Option<u16> {
        for _ in 0..PORTS {
            self.next_port = FIRST_PORT | self.next_port.wrapping_add(1);
            if !self.device.sequences.has(self.next_port) {
                return Some(self.next_port);
            }
        }
        None
    }

    /// Asks for the host to which packets for an address are sent.
    pub(crate) fn want(&mut self, address: &IpAddress, now: Instant) {
        if let Some(host) = self
            .stack
            .as_ref()
            .and_then(|stack| next_hop(stack, address))
        {
            self.device.neighbours.want(host, now);
        }
    }

    /// Asks for the hosts of all connections, of which a new stack knows none.
    fn want_servers(&mut self, now: Instant) {
        self.device.neighbours = Neighbours::default();
        let sockets = self.sockets.iter();
        let servers = sockets.filter_map(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(socket) => socket.remote_endpoint(),
            _ => None,
        });
        let servers: Vec<_> = servers.map(|server| server.addr).collect();
        servers.iter().for_each(|server| self.want(server, now));
    }

    /// Lets a connection whose user is gone end by itself.
    pub(crate) fn leave(&mut self, socket: SocketHandle, port: u16) {
        if self.leaving.len() == LEAVING {
            let (oldest, port) = self.leaving.remove(0);
            self.sockets.remove(oldest);
            self.device.sequences.remove(port);
        }
        self.leaving.push((socket, port));
    }

    /// Removes the connections that have ended.
    fn reap(&mut self) {
        let (leaving, sockets) = (&mut self.leaving, &mut self.sockets);
        leaving.retain(|(handle, port)| {
            let state = sockets.get::<tcp::Socket<'_>>(*handle).state();
            let over = matches!(state, tcp::State::Closed | tcp::State::TimeWait);
            if over {
                sockets.remove(*handle);
                self.device.sequences.remove(*port);
            }
            !over
        });
    }
}
