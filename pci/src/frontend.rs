//! The task of the frontend: it reads the states of both ends, decides, acts, and waits for the next change.

mod probing;

use crate::PciHost;
use crate::channel::{Channel, give_up};
use crate::function::{Departure, Function, Shared};
use crate::holders::Holders;
use crate::state_machine::{Observed, Phase, Step, decide, phase_left};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Handle;
use bulkhead_grant::{PagePool, SharedMemory, TableOnDemand};
use bulkhead_xen::{DomId, GrantRef, Instant, Port, Reservation};
use bulkhead_xenbus::frontend::{FrontendNodes, write_nodes};
use bulkhead_xenbus::retry::persist;
use bulkhead_xenbus::{XenbusState, own_node};
use bulkhead_xenstore_client::{Client, Error, Watch};
use core::convert::Infallible;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;
use futures_util::task::AtomicWaker;

/// This end's directory. libxl makes one for all functions.
const DIRECTORY: &str = "device/pci/0";

/// The pause before a step is tried again for which dom0 had no time, or this domain no memory.
pub(crate) const TRIED_AGAIN: Duration = Duration::from_secs(10);

/// A driver of functions.
pub trait Driver<H: PciHost> {
    /// Returns its name, for the log.
    fn name(&self) -> &'static str;

    /// Takes a function and starts to drive it, or gives it back if this driver is not for it. Called on the first
    /// vCPU, and must not wait.
    fn take(&self, function: Function<H>) -> Result<(), Function<H>>;
}

/// How the frontend behaves.
#[derive(Clone, Copy, Debug)]
pub struct FrontendOptions {
    /// The longest time that pciback may take for an operation; by default 60 seconds. Under load, dom0 takes seconds.
    pub timeout: Duration,
    /// Called with the port of the channel to pciback before pciback is told of it, and with `None` when the channel
    /// ends. If the domain starts again in place after a crash, that port has to stay open. By default, does nothing.
    pub keep_port: fn(Option<Port>),
}

impl Default for FrontendOptions {
    fn default() -> Self {
        FrontendOptions {
            timeout: Duration::from_secs(60),
            keep_port: |_| (),
        }
    }
}

/// The functions of this domain.
pub struct Frontend<H: PciHost> {
    handle: Handle<H>,
    store: Client,
    pool: PagePool,
    grants: TableOnDemand<H>,
    drivers: Vec<Rc<dyn Driver<H>>>,
    options: FrontendOptions,
}

/// A function that pciback shows.
struct Known<H: PciHost> {
    shared: Rc<Shared<H>>,
    holders: Holders,
    /// Its driver was asked to let go of it.
    leaves: bool,
}

/// The frontend's life.
struct FrontendTask<'f, H: PciHost> {
    frontend: &'f Frontend<H>,
    watch: Watch,
    nodes: FrontendNodes,
    phase: Phase,
    channel: Option<Rc<Channel<H>>>,
    functions: Vec<Known<H>>,
    /// The number of functions whose drivers were asked to let go of them and have not, as of the last decision.
    kept: usize,
    /// A backend has been followed before.
    met: bool,
    /// A boot before this one may have left functions running, including those that cannot be reached until later.
    left: bool,
    /// The time at which a step that failed is tried again.
    again: Option<Instant>,
    /// Woken when a function has no holder any more.
    released: Arc<AtomicWaker>,
    /// The last line in the log about what is waited for.
    told: Option<String>,
}

impl<H: PciHost> Frontend<H> {
    /// Returns the frontend of a domain, which [`follow`](Self::follow) runs. `handle` is of the vCPU that this is
    /// called on. The page that is shared with pciback comes from `memory`, and is granted by `grants`.
    pub fn new(
        handle: Handle<H>,
        store: Client,
        memory: Arc<dyn Reservation>,
        grants: TableOnDemand<H>,
        options: FrontendOptions,
    ) -> Self {
        Frontend {
            handle,
            store,
            pool: PagePool::new(memory),
            grants,
            drivers: Vec::new(),
            options,
        }
    }

    /// Adds a driver. Functions are offered to the drivers in the order in which they were added.
    pub fn add_driver(&mut self, driver: Rc<dyn Driver<H>>) {
        self.drivers.push(driver);
    }

    /// Offers the drivers each function that the domain has been given or is given later. Returns only if xenstore
    /// cannot be used any more; functions stay in use even then.
    pub async fn follow(&self) -> Result<Infallible, Error> {
        let watching = async || self.store.watch(DIRECTORY).await;
        let watch = persist(&self.handle, DIRECTORY, watching).await?;
        let mut task = FrontendTask {
            frontend: self,
            watch,
            nodes: FrontendNodes::new(DIRECTORY.to_string(), &[]),
            phase: Phase::Fresh,
            channel: None,
            functions: Vec::new(),
            kept: 0,
            met: false,
            left: false,
            again: None,
            released: Arc::default(),
            told: None,
        };
        loop {
            match task.step().await {
                Ok(()) => {}
                Err(error) if error.is_disconnected() => return Err(error),
                Err(error) => {
                    task.tell(format!("PCI frontend: {error}; to be tried again"));
                    self.handle.sleep(bulkhead_xenbus::retry::PAUSE).await;
                }
            }
        }
    }
}

impl<H: PciHost> FrontendTask<'_, H> {
    /// Reads the states, decides and acts.
    async fn step(&mut self) -> Result<(), Error> {
        let seen = self.observe().await?;
        match decide(self.phase, seen) {
            Step::Wait => self.wait().await,
            Step::Keep => {
                self.tell("a function is to be detached, but it is in use: it is kept".to_string());
                self.wait().await
            }
            Step::Publish => self.publish().await,
            Step::Resume => self.resume(seen).await,
            Step::Connect => self.connect().await,
            Step::Reconfigure => self.reconfigure().await,
            Step::Close => {
                log::warn!("dom0's pciback is gone, and all functions with it");
                self.disconnect();
                self.phase = Phase::Closed;
                self.write(&[], XenbusState::Closed).await
            }
            Step::Forget => {
                self.disconnect();
                self.nodes.forget();
                self.phase = Phase::Fresh;
                self.wait().await
            }
        }
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        let store = &self.frontend.store;
        let found = self.nodes.read(store).await?;
        self.kept = kept(&self.functions);
        let mut seen = Observed {
            attached: found.backend.is_some(),
            own: found.own,
            backend: XenbusState::Unknown,
            in_use: self.kept > 0,
        };
        if let Some(named) = found.backend {
            self.follow_backend(named).await?;
            (seen.backend, _) = self.nodes.backend(store).await?;
        }
        Ok(seen)
    }

    /// Follows the backend that the toolstack has named, if it is another one than before.
    async fn follow_backend(&mut self, named: (String, DomId)) -> Result<(), Error> {
        if self.nodes.follows(&named) {
            return Ok(());
        }
        self.disconnect();
        self.nodes.follow(&self.frontend.store, named).await?;
        // Only the first backend that is followed can be connected to the boot before.
        self.phase = match self.frontend.grants.was_left() && !self.met {
            true => Phase::Left,
            false => Phase::Fresh,
        };
        self.met = true;
        Ok(())
    }

    /// Waits until something may have changed, or a step that failed is to be tried again.
    async fn wait(&mut self) -> Result<(), Error> {
        let handle = &self.frontend.handle;
        let again = self.again.map(|again| handle.sleep_until(again));
        let mut again = pin!(OptionFuture::from(again));
        let is_over = poll_fn(|context| {
            self.released.register(context.waker());
            if kept(&self.functions) != self.kept {
                return Poll::Ready(Ok(false));
            }
            if let Poll::Ready(event) = self.nodes.poll_backend(context) {
                return Poll::Ready(event.map(|()| false));
            }
            if let Poll::Ready(event) = self.watch.poll_next(context) {
                return Poll::Ready(event.map(|_| false));
            }
            match again.as_mut().poll(context) {
                Poll::Ready(Some(())) => Poll::Ready(Ok(true)),
                _ => Poll::Pending,
            }
        })
        .await?;
        match self.phase {
            _ if !is_over => {}
            Phase::Connected => self.probe_functions().await?,
            // The next step does it.
            _ => self.again = None,
        }
        Ok(())
    }

    /// Has a step that failed tried again after a pause.
    fn try_again(&mut self) {
        self.again = Some(self.frontend.handle.now() + TRIED_AGAIN);
    }

    /// Goes on with the channel of a boot before this one.
    async fn resume(&mut self, seen: Observed) -> Result<(), Error> {
        let (gref, port) = (
            self.own_number("pci-op-ref").await?,
            self.own_number("event-channel").await?,
        );
        let Some(peer) = self.nodes.peer() else {
            return Ok(());
        };
        let (frontend, id) = (self.frontend, peer.id);
        let page = gref.zip(frontend.grants.get()).and_then(|(gref, grants)| {
            SharedMemory::left(&frontend.pool, &grants, id, &[GrantRef(gref)])
        });
        let resumed = match page.zip(port) {
            Some((page, port)) => {
                // No operation names a grant.
                page.drained();
                Channel::left(&frontend.handle, page, Port(port), frontend.options)
            }
            None => Err("pciback does not use its page".to_string()),
        };
        match resumed {
            Ok(channel) => {
                log::info!("connected to dom0's pciback as before the restart");
                self.channel = Some(channel);
                self.left = true;
                self.phase = phase_left(seen).unwrap_or(Phase::Published);
            }
            // pciback has not connected yet, so another page may be published.
            Err(_) if seen.backend == XenbusState::Initialised => self.phase = Phase::Fresh,
            Err(problem) => {
                log::error!(
                    "the channel to dom0's pciback of before the restart cannot be used: {problem}"
                );
                self.phase = Phase::Closed;
                return self.write(&[], XenbusState::Closed).await;
            }
        }
        Ok(())
    }

    async fn own_number(&self, node: &str) -> Result<Option<u32>, Error> {
        let text = own_node(&self.frontend.store, format!("{DIRECTORY}/{node}")).await?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Makes a channel, and tells pciback of it.
    async fn publish(&mut self) -> Result<(), Error> {
        let Some(peer) = self.nodes.peer() else {
            return Ok(());
        };
        let frontend = self.frontend;
        let made = frontend
            .grants
            .get()
            .ok_or("Xen gives no grant table".to_string());
        let made = made.and_then(|grants| {
            let page = SharedMemory::new(&frontend.pool, &grants, 1);
            page.map_err(|error| error.to_string())
        });
        let made =
            made.and_then(|page| Channel::new(&frontend.handle, page, peer.id, frontend.options));
        let channel = match made {
            Ok(channel) => channel,
            Err(problem) => {
                self.tell(format!(
                    "the PCI frontend cannot connect to dom0's pciback: {problem}"
                ));
                self.try_again();
                return self.wait().await;
            }
        };
        let nodes = channel.nodes();
        self.channel = Some(channel);
        self.phase = Phase::Published;
        self.write(&nodes, XenbusState::Initialised).await
    }

    /// Stops using pciback, and tells the drivers that their functions are gone. What they have mapped and bound stays
    /// until they drop it.
    fn disconnect(&mut self) {
        for known in self.functions.drain(..) {
            known.shared.depart(Departure::Gone);
        }
        if let Some(channel) = self.channel.take() {
            give_up(channel);
        }
    }

    /// Writes nodes and this end's state, if the directory is there.
    async fn write(&self, nodes: &[(&str, String)], state: XenbusState) -> Result<(), Error> {
        // The phase has changed already, so this is tried until xenstored accepts it.
        persist(&self.frontend.handle, DIRECTORY, async || {
            write_nodes(&self.frontend.store, DIRECTORY, nodes, &[], state).await
        })
        .await
    }

    /// Logs a line, unless it repeats the last one.
    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            log::warn!("{what}");
            self.told = Some(what);
        }
    }
}

/// Returns the number of functions whose drivers were asked to let go of them and have not.
fn kept<H: PciHost>(functions: &[Known<H>]) -> usize {
    let is_kept = |known: &&Known<H>| known.leaves && known.holders.any();
    functions.iter().filter(is_kept).count()
}
