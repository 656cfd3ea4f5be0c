//! One disk's task: looks at what both ends say, decides, acts, and waits for the next change.

use super::config::{CONFIG_NODES, VbdConfig};
use super::connection::{Connection, read_into, read_published};
use super::decision::{Observed, Phase, Step, decide};
use super::ending::{End, describes, finish, report, set_state};
use super::features::{self, NodeValues};
use super::identity::VbdId;
use super::problem::Problem;
use super::published::{Limits, Nodes, Published};
use super::state::XenbusState;
use crate::backend::Backend;
use crate::frontends::Following;
use crate::operator::show_statistics;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_executor::Signal;
use bulkhead_images::{Access, BlockDevice, Sector, Target};
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::{Error, Transaction};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::{Either, select};

/// How long an ending driver domain waits for a frontend to let go of its disk.
const FAREWELL: Duration = Duration::from_secs(2);

/// Lives the life of the disk whose directory the toolstack has made, until that directory is
/// gone. `changed` is raised whenever something in it changes.
pub async fn live<H: Hypervisor>(backend: &Rc<Backend<H>>, id: VbdId, changed: &Signal) {
    let path = id.backend_path();
    match backend.store.exists(format!("{path}/state")).await {
        Ok(true) => {}
        // An event of a removal, or a directory that is still being made.
        _ => return,
    }
    let mut nodes = Nodes::new();
    let read = read_into(&mut nodes, &backend.store, &path, CONFIG_NODES).await;
    let opened = match read {
        Ok(()) => Vbd::open(backend, id, &nodes, changed).await,
        Err(error) => Err(error.into()),
    };
    let outcome = match opened {
        // The image is free again before the toolstack can see that the disk is gone.
        Ok(vbd) => vbd.run(changed).await,
        Err(problem) => Ok(End::Refuse(problem, nodes)),
    };
    let outcome = match outcome {
        Ok(end) => finish(backend, id, end, changed).await,
        Err(problem) => Err(problem),
    };
    if let Err(problem) = outcome {
        report(backend, id, &problem).await;
    }
}

struct Vbd<'a, H: Hypervisor> {
    backend: &'a Rc<Backend<H>>,
    id: VbdId,
    path: String,
    /// What the toolstack wrote, and what it means.
    nodes: Nodes,
    config: VbdConfig,
    device: Arc<dyn BlockDevice>,
    _following: Following,
    phase: Phase,
    /// What the frontend was offered.
    limits: Limits,
    connection: Option<Connection<H>>,
    /// The size that the frontend was told.
    sectors: Sector,
}

/// What ended a wait.
enum Event {
    Changed,
    Resized,
    QueueFailed(Problem),
}

impl<'a, H: Hypervisor> Vbd<'a, H> {
    /// Opens the image that the toolstack named and offers it to the frontend.
    async fn open(
        backend: &'a Rc<Backend<H>>,
        id: VbdId,
        nodes: &Nodes,
        changed: &Signal,
    ) -> Result<Self, Problem> {
        let config = VbdConfig::parse(nodes)?;
        let target: Target = config.target.parse()?;
        let owner = format!("vbd {id}");
        let device = backend.catalog.open(&target, config.access, &owner)?;
        let frontend = &config.frontend_path;
        let following =
            backend
                .frontends
                .follow(&backend.handle, &backend.store, frontend, changed);
        let mut vbd = Vbd {
            backend,
            id,
            path: id.backend_path(),
            nodes: nodes.clone(),
            config,
            device,
            _following: following,
            phase: Phase::Offered,
            limits: backend.limits,
            connection: None,
            sectors: Sector(0),
        };
        vbd.offer(XenbusState::Initialising).await?;
        let mode = match vbd.config.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        };
        log::info!("vbd {id}: attached, {} {mode}", vbd.config.target);
        Ok(vbd)
    }

    /// Lives until the device is gone.
    async fn run(mut self, changed: &Signal) -> Result<End, Problem> {
        loop {
            if self.backend.closing.is_set() {
                self.take_leave(changed).await?;
                self.disconnect().await;
                return Ok(End::Leave);
            }
            let seen = self.observe().await?;
            let own = seen.own.unwrap_or(XenbusState::Unknown);
            match decide(self.phase, seen) {
                Step::Wait => match self.wait(changed).await? {
                    Event::Changed => show_statistics(self.backend, self.id).await?,
                    Event::Resized => self.announce_size(own).await?,
                    Event::QueueFailed(problem) => self.fail(problem).await?,
                },
                Step::Connect => {
                    if let Err(problem) = self.connect(own).await {
                        self.fail(problem).await?;
                    }
                }
                Step::Offer => {
                    self.disconnect().await;
                    self.offer(own).await?;
                    self.phase = Phase::Offered;
                    log::info!("vbd {}: offered again", self.id);
                }
                Step::AcknowledgeClosing => self.set_state(XenbusState::Closing).await?,
                Step::Close => {
                    self.disconnect().await;
                    self.phase = Phase::Closed;
                    self.set_state(XenbusState::Closed).await?;
                    log::info!("vbd {}: closed by the frontend", self.id);
                }
                Step::Release => {
                    self.disconnect().await;
                    return Ok(End::Release);
                }
                Step::Remove => {
                    self.disconnect().await;
                    return Ok(End::Remove);
                }
                Step::StartOver => {
                    self.disconnect().await;
                    return Ok(End::StartOver);
                }
                Step::Abandon => {
                    self.disconnect().await;
                    return Ok(End::Abandon);
                }
            }
        }
    }

    async fn observe(&self) -> Result<Observed, Problem> {
        let (path, frontend) = (&self.path, &self.config.frontend_path);
        let own = self.read(format!("{path}/state")).await?;
        let online = self.read(format!("{path}/online")).await?;
        let frontend = self.read(format!("{frontend}/state")).await?;
        Ok(Observed {
            own: own.map(|state| XenbusState::parse(Some(&state))),
            online: online.as_deref() != Some("0"),
            frontend: frontend.map(|state| XenbusState::parse(Some(&state))),
        })
    }

    /// Reads a node that another domain may remove, or close to us, at any time.
    async fn read(&self, path: String) -> Result<Option<String>, Error> {
        match self.backend.store.read_optional(path).await {
            Err(Error::Disconnected(breakdown)) => Err(Error::Disconnected(breakdown)),
            Err(error) => {
                log::debug!("vbd {}: {error}", self.id);
                Ok(None)
            }
            read => read,
        }
    }

    async fn wait(&mut self, changed: &Signal) -> Result<Event, Problem> {
        let connection = self.connection.as_ref();
        let mut failed = pin!(async {
            match connection {
                Some(connection) => connection.failed().await,
                None => core::future::pending().await,
            }
        });
        let (device, sectors) = (&self.device, self.sectors);
        let mut raised = pin!(changed.raised());
        let mut closing = pin!(self.backend.closing.wait());
        poll_fn(|context| {
            if let Poll::Ready(error) = failed.as_mut().poll(context) {
                return Poll::Ready(Ok(Event::QueueFailed(error.into())));
            }
            if closing.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Event::Changed));
            }
            if connection.is_some() {
                device.on_change(context.waker());
                if device.geometry().sectors != sectors {
                    return Poll::Ready(Ok(Event::Resized));
                }
            }
            raised.as_mut().poll(context).map(|()| Ok(Event::Changed))
        })
        .await
    }

    /// Publishes what the frontend may use, and waits for its part.
    async fn offer(&mut self, from: XenbusState) -> Result<(), Error> {
        let backend = self.backend;
        let geometry = self.device.geometry();
        self.limits = backend.limits.within(backend.region.free_pages());
        let nodes = features::offered(&self.config, &geometry, self.limits, backend.options);
        self.publish(nodes, from, XenbusState::InitWait).await
    }

    /// Writes nodes and the state that they belong to, all at once. Does nothing if the directory
    /// is not what it was when this was decided: the toolstack wants the disk back, or has made
    /// the directory anew for another one, and neither may be overwritten. The next look tells.
    async fn publish(
        &self,
        nodes: NodeValues,
        from: XenbusState,
        state: XenbusState,
    ) -> Result<(), Error> {
        let path = &self.path;
        self.backend
            .store
            .transaction(async |tx: &Transaction| {
                let own = tx.read_optional(format!("{path}/state")).await?;
                if own.is_none()
                    || XenbusState::parse(own.as_deref()) != from
                    || !describes(tx, path, &self.nodes).await?
                {
                    return Ok(());
                }
                for (name, value) in &nodes {
                    tx.write(format!("{path}/{name}"), value).await?;
                }
                tx.write(format!("{path}/state"), state.to_string()).await
            })
            .await
    }

    /// Connects to the rings that the frontend published.
    async fn connect(&mut self, from: XenbusState) -> Result<(), Problem> {
        let backend = self.backend;
        let published =
            read_published(&backend.store, &self.config.frontend_path, self.limits).await?;
        let device = self.device.as_ref();
        let (connection, served) =
            Connection::open(backend, self.id, &published, &self.config, device).await?;
        self.connection = Some(connection);
        backend.statistics.connected(self.id, served);
        self.phase = Phase::Connected;
        self.publish_disk(from).await?;
        self.log_connected(&published);
        Ok(())
    }

    /// Tells the frontend what the disk is like, and that it is connected.
    async fn publish_disk(&mut self, from: XenbusState) -> Result<(), Error> {
        let geometry = self.device.geometry();
        let nodes = features::disk(&self.config, &geometry);
        self.publish(nodes, from, XenbusState::Connected).await?;
        self.sectors = geometry.sectors;
        Ok(())
    }

    /// The image has grown under a connected frontend: writing the state again, with the size,
    /// makes it look (as Linux's xen-blkback does, and blkfront expects).
    async fn announce_size(&mut self, own: XenbusState) -> Result<(), Error> {
        if own == XenbusState::Connected {
            self.publish_disk(own).await?;
            log::info!("vbd {}: now {} sectors", self.id, self.sectors);
        } else {
            // On its way out; it need not know.
            self.sectors = self.device.geometry().sectors;
        }
        Ok(())
    }

    fn log_connected(&self, published: &Published) {
        let geometry = self.device.geometry();
        log::info!(
            "vbd {}: connected, {} sectors of {}, {} queue(s) of {} ring page(s), {}",
            self.id,
            geometry.sectors,
            geometry.sector_size,
            published.queues.len(),
            published.queues.first().map_or(0, |queue| queue.ring.len()),
            published.abi,
        );
    }

    /// Tells a connected frontend that its disk goes away, and serves it until it has let go of it:
    /// what it asks for before it has heard is answered too. One that does not react waits for
    /// [`FAREWELL`] only.
    async fn take_leave(&self, changed: &Signal) -> Result<(), Problem> {
        if self.connection.is_none() {
            return Ok(());
        }
        self.set_state(XenbusState::Closing).await?;
        let mut over = pin!(self.backend.handle.sleep(FAREWELL));
        while let Observed {
            own: Some(XenbusState::Closing),
            frontend: Some(XenbusState::Initialised | XenbusState::Connected | XenbusState::Closing),
            ..
        } = self.observe().await?
        {
            if let Either::Right(_) = select(pin!(changed.raised()), &mut over).await {
                log::warn!("vbd {}: the frontend does not let go", self.id);
                break;
            }
        }
        Ok(())
    }

    /// Stops serving and takes back everything.
    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.backend.statistics.disconnected(self.id);
            connection.close().await;
        }
    }

    /// Closes the device because of an error that is the frontend's or ours.
    async fn fail(&mut self, problem: Problem) -> Result<(), Problem> {
        if let Problem::Store(Error::Disconnected(_)) = problem {
            return Err(problem);
        }
        self.disconnect().await;
        self.phase = Phase::Failed;
        report(self.backend, self.id, &problem).await;
        Ok(self.set_state(XenbusState::Closing).await?)
    }

    async fn set_state(&self, state: XenbusState) -> Result<(), Error> {
        set_state(self.backend, &self.path, state).await
    }
}
