//! All interfaces of the domain: finds those that the toolstack attaches, gives each its tasks, and connects to
//! servers over them.

use crate::interface::Interface;
use crate::leftovers::Leftovers;
use crate::lifecycle::live;
use crate::names::resolve;
use crate::settings::InterfaceSettings;
use crate::tcp::TcpStream;
use crate::traces::Traces;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Signal};
use bulkhead_grant::{PagePool, TableOnDemand};
use bulkhead_stream::{
    AddressChoice, Buffers, ConnectError, Connecting, Endpoint, Network, Stream,
};
use bulkhead_xen::{Hypervisor, Instant, Reservation};
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;
use core::convert::Infallible;
use core::net::IpAddr;
use core::num::NonZeroU8;
use core::time::Duration;
use smoltcp::wire::IpAddress;

/// The directory of this domain's interfaces.
const INTERFACES: &str = "device/vif";
/// The most interfaces that are followed: each takes memory.
const MOST: usize = 8;
/// The time after a restart in place for which connections wait for an interface, if there was one before.
const RETURNS: Duration = Duration::from_secs(5);
/// The time between two checks for an interface.
const LOOK: Duration = Duration::from_millis(5);

/// The interfaces of a domain.
pub struct Interfaces<H: Hypervisor> {
    handle: Handle<H>,
    store: Client,
    pool: PagePool,
    grants: TableOnDemand<H>,
    /// The addresses of interface 0, and the queues of all. Other interfaces have only the addresses that they make for
    /// themselves.
    settings: InterfaceSettings,
    random: fn() -> u64,
    all: RefCell<Vec<Followed<H>>>,
    /// The time until which connections wait for an interface.
    return_by: Instant,
    leftovers: Leftovers<H>,
    /// The traces of connections that a crash leaves to the next boot.
    traces: Traces,
}

/// An interface that has a task, and the signal that tells the task of changes.
struct Followed<H: Hypervisor> {
    number: u32,
    interface: Rc<Interface<H>>,
    changed: Signal,
}

impl<H: Hypervisor> Interfaces<H> {
    /// Returns an empty list of interfaces, which [`follow`](Self::follow) fills. `handle` is that of the calling vCPU,
    /// on which everything is done. Packets lie in `memory`, and are granted by `grants`. `random` returns a number
    /// that nobody can guess, if the machine has a source of them: ports and sequence numbers are made of it and of the
    /// time. `traces` are the traces of connections that survive a crash.
    pub fn new(
        handle: Handle<H>,
        store: Client,
        memory: Arc<dyn Reservation>,
        grants: TableOnDemand<H>,
        settings: InterfaceSettings,
        random: fn() -> u64,
        traces: Traces,
    ) -> Rc<Self> {
        let wait = match grants.was_left() {
            true => RETURNS,
            false => Duration::ZERO,
        };
        Rc::new(Interfaces {
            return_by: handle.now() + wait,
            traces,
            leftovers: Leftovers::new(handle.clone()),
            handle,
            store,
            pool: PagePool::new(memory),
            grants,
            settings,
            random,
            all: RefCell::default(),
        })
    }

    /// Connects every interface that the toolstack attaches. Returns only if xenstore cannot be used any more;
    /// connected interfaces stay in use even then.
    pub async fn follow(self: &Rc<Self>) -> Result<Infallible, Error> {
        persist(&self.handle, INTERFACES, async || self.follow_watch().await).await
    }

    async fn follow_watch(self: &Rc<Self>) -> Result<Infallible, Error> {
        // The directory need not be there yet.
        let mut watch = self.store.watch(INTERFACES).await?;
        loop {
            let event = watch.next().await?;
            let below = event.as_str().strip_prefix(INTERFACES).unwrap_or_default();
            match below.strip_prefix('/') {
                None => {
                    for name in self.store.directory_or_empty(INTERFACES).await? {
                        self.look_at(&name);
                    }
                    let all = self.all.borrow();
                    all.iter().for_each(|followed| followed.changed.raise());
                }
                Some(below) => match below.split_once('/') {
                    None => self.look_at(below),
                    Some((name, "state" | "backend" | "backend-id")) => self.look_at(name),
                    // Written by this end.
                    Some(_) => {}
                },
            }
        }
    }

    /// Tells an interface's task that something has changed, and starts its tasks if there are none.
    fn look_at(self: &Rc<Self>, name: &str) {
        let Ok(number) = name.parse() else {
            return;
        };
        let mut all = self.all.borrow_mut();
        if let Some(followed) = all.iter().find(|followed| followed.number == number) {
            return followed.changed.raise();
        }
        if all.len() == MOST {
            return log::error!("{INTERFACES}/{number}: more than {MOST} interfaces are not used");
        }
        let settings = match number {
            0 => self.settings.clone(),
            _ => InterfaceSettings::default(),
        };
        let name = format!("vif{number}");
        let interface = Interface::new(name, &self.handle, settings, self.random);
        let changed = Signal::default();
        all.push(Followed {
            number,
            interface: interface.clone(),
            changed: changed.clone(),
        });
        let runs = self.handle.spawn(interface.clone().run());
        let interfaces = self.clone();
        self.handle.spawn(async move {
            live(&interfaces, number, &interface, &changed).await;
            interface.fail("it was taken away".into());
            runs.stop();
            interfaces
                .all
                .borrow_mut()
                .retain(|one| one.number != number);
            // What was written meanwhile belongs to an interface that was attached anew.
            if changed.take() {
                interfaces.look_at(&format!("{number}"));
            }
        });
    }

    /// Returns all interfaces.
    pub fn list(&self) -> Vec<Rc<Interface<H>>> {
        let all = self.all.borrow();
        all.iter()
            .map(|followed| followed.interface.clone())
            .collect()
    }

    /// Returns a line about each interface, for the operator.
    pub fn lines(&self) -> Vec<String> {
        self.list()
            .iter()
            .map(|interface| interface.line())
            .collect()
    }

    /// Waits for an interface that comes back after a restart in place, or for the end of its time.
    async fn outwait_return(&self) {
        let is_back = |interface: &Rc<Interface<H>>| {
            let state = interface.state.borrow();
            state.stack.is_some() && !state.waits_for_lease()
        };
        while self.handle.now() < self.return_by && !self.list().iter().any(is_back) {
            self.handle.sleep(LOOK).await;
        }
    }

    /// Connects to a server, at the first of its addresses at which it answers, in the order that `choice` says.
    pub async fn open(
        &self,
        server: &Endpoint,
        choice: &AddressChoice,
        buffers: Buffers,
    ) -> Result<TcpStream<H>, ConnectError> {
        self.outwait_return().await;
        let all = self.list();
        let usable = |interface: &&Rc<Interface<H>>| {
            let state = interface.state.borrow();
            state.failure.is_none() && state.stack.is_some()
        };
        if !all.iter().any(|interface| usable(&interface)) {
            return Err(ConnectError::NoNetwork);
        }
        let addresses = match server.host.parse() {
            Ok(address) => [address].into(),
            Err(()) => {
                let knows = |interface: &&Rc<Interface<H>>| {
                    usable(interface) && !interface.state.borrow().name_servers().is_empty()
                };
                let asked = all.iter().find(knows);
                let asked = asked.ok_or_else(|| without(&all, ConnectError::NoNameServer))?;
                resolve(asked, &server.host).await?
            }
        };
        self.open_one(&all, (&addresses, choice), server.port, buffers)
            .await
    }

    /// Connects to the first of a server's addresses at which it answers.
    async fn open_one(
        &self,
        all: &[Rc<Interface<H>>],
        (addresses, choice): (&[IpAddress], &AddressChoice),
        port: u16,
        buffers: Buffers,
    ) -> Result<TcpStream<H>, ConnectError> {
        let mut refused = without(all, ConnectError::Unreachable);
        let all_addresses: Vec<IpAddr> = addresses.iter().map(|it| (*it).into()).collect();
        let first = choice.first(&all_addresses);
        for turn in first..first + addresses.len() {
            let address = addresses[turn % addresses.len()];
            let reaches = |interface: &&Rc<Interface<H>>| {
                let state = interface.state.borrow();
                state.failure.is_none() && state.reaches(&address)
            };
            let Some(interface) = all.iter().find(reaches) else {
                continue;
            };
            // If the caller gives up waiting, its next attempt begins with the next address.
            choice.begin(address.into());
            TcpStream::end_left(interface, (address, port), &self.traces).await;
            let connecting =
                TcpStream::connect(interface.clone(), address, port, buffers, &self.traces);
            match connecting.await {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    pub(crate) fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    pub(crate) fn store(&self) -> &Client {
        &self.store
    }

    pub(crate) fn pool(&self) -> &PagePool {
        &self.pool
    }

    pub(crate) fn leftovers(&self) -> &Leftovers<H> {
        &self.leftovers
    }

    /// Returns whether the domain has started again in place after a crash, so that backends may still be connected to
    /// a boot before this one.
    pub(crate) fn was_left(&self) -> bool {
        self.grants.was_left()
    }

    /// Returns the most queues of an interface.
    pub(crate) fn queues(&self) -> NonZeroU8 {
        self.settings.queues.unwrap_or(NonZeroU8::MIN)
    }

    pub(crate) fn grants(&self) -> &TableOnDemand<H> {
        &self.grants
    }
}

impl<H: Hypervisor> Network for Interfaces<H> {
    fn connect<'a>(
        &'a self,
        server: &'a Endpoint,
        choice: &'a AddressChoice,
        buffers: Buffers,
    ) -> Connecting<'a> {
        Box::pin(async move {
            let stream = self.open(server, choice, buffers).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn lines(&self) -> Vec<String> {
        Interfaces::lines(self)
    }
}

/// Returns the reason why a server cannot be reached: an interface still waits for its address or, if none does,
/// `otherwise`.
fn without<H: Hypervisor>(all: &[Rc<Interface<H>>], otherwise: ConnectError) -> ConnectError {
    let waits = |interface: &Rc<Interface<H>>| interface.state.borrow().waits_for_lease();
    match all.iter().any(waits) {
        true => ConnectError::NoLease,
        false => otherwise,
    }
}
