//! The task of one disk: it reads the states of both ends, decides, acts, and waits for the next change.

mod opening;
mod publishing;
#[cfg(feature = "recover")]
mod resuming;
#[cfg(feature = "recover")]
mod returning;

use self::opening::Opened;
use super::backend_nodes::set_state;
use super::config::{CONFIG_NODES, VbdConfig};
use super::connection::{FrontendConnection, check_sector_units, read_published};
use super::frontend_nodes::Published;
use super::observation::Observer;
use super::problem::Problem;
use super::retry::{Failure, insist};
use super::state_machine::{Observed, Phase, Step, decide};
use super::statistics_node::show_statistics;
use super::teardown::{End, LAST_REQUESTS, close, close_frontend, finish, report, write_error};
use crate::changes::Changes;
use crate::engine::{Journal, Unreleased};
use crate::guest_log::GuestLog;
use crate::id::VbdId;
use crate::limits::Limits;
use crate::services::Services;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{BlockDevice, Sector};
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::NodeMap;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::read_nodes;
use bulkhead_xenbus::retry::PAUSE;
use bulkhead_xenstore_client::Error;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use futures_util::future::select;
use log::Level;

/// Serves the disk whose directory the toolstack has made, until that directory is gone. `changed` is raised whenever
/// something in it changes.
pub async fn live<H: Hypervisor>(services: &Services<H>, id: VbdId, changed: &Changes) {
    let path = id.backend_path();
    let read = insist(services, id, async || {
        if !services.store.exists(format!("{path}/state")).await? {
            return Ok(None);
        }
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, &services.store, &path, &CONFIG_NODES).await?;
        Ok(Some(nodes))
    });
    let nodes = match read.await {
        Ok(Some(nodes)) => nodes,
        // An event of a removal, or a directory that is still being made.
        Ok(None) => return,
        Err(error) => return log::error!("vbd {id}: cannot be looked at: {error}"),
    };
    let end = match Vbd::open(services, id, &nodes, changed).await {
        // The image is free again before the toolstack can see that the disk is gone.
        Ok(Opened::Wanted(vbd)) => vbd.run(changed).await,
        Ok(Opened::Unwanted(end)) => Ok(end),
        Err(Problem::Store(error)) if error.is_disconnected() => Err(error),
        Err(problem) => Ok(End::Refuse(problem, nodes)),
    };
    let outcome = match end {
        Ok(end) => finish(services, id, end, changed).await,
        Err(error) => Err(error.into()),
    };
    if let Err(problem) = outcome {
        report(services, id, &problem).await;
    }
}

struct Vbd<'a, H: Hypervisor> {
    services: &'a Services<H>,
    id: VbdId,
    path: String,
    /// The toolstack's nodes, and their meaning.
    nodes: NodeMap,
    config: VbdConfig,
    log: Arc<GuestLog>,
    device: Arc<dyn BlockDevice>,
    /// The queues whose store has not let go of the frontend's pages.
    unreleased: Unreleased,
    observer: Observer<H>,
    /// The nodes that this task has written, without the state.
    told: NodeMap,
    phase: Phase,
    /// The limits that the frontend was offered.
    limits: Limits,
    connection: Option<FrontendConnection<H>>,
    /// True if the frontend has started over.
    came_back: bool,
    /// The size that the frontend was told.
    sectors: Sector,
    /// True if xenstored refused the last request, and the log says so.
    refused: bool,
}

/// The messages to xenstored of a change of the directory: a transaction that reads first.
const MESSAGES_OF_A_CHANGE: usize = 4;

/// The messages of an error that is written for the operator.
const MESSAGES_OF_AN_ERROR: usize = 1;

/// An event that ended a wait.
enum Event {
    Changed,
    Resized,
    QueueFailed(Problem),
}

impl<'a, H: Hypervisor> Vbd<'a, H> {
    /// Runs until the device is gone. Returns an error only if xenstore is gone for good.
    async fn run(mut self, changed: &Changes) -> Result<End, Error> {
        loop {
            if self.services.closing.is_set() {
                if self.connection.is_some() {
                    close_frontend(self.services, self.id, &self.observer).await;
                    self.services.handle.sleep(LAST_REQUESTS).await;
                }
                self.disconnect().await;
                return Ok(End::Leave);
            }
            match self.step(changed).await {
                Ok(Some(end)) => {
                    self.disconnect().await;
                    return Ok(end);
                }
                Ok(None) => self.refused = false,
                Err(Failure::Passing(error)) => self.pause(error).await,
                Err(Failure::Disconnected(error)) => {
                    self.serve_without_xenstore().await;
                    return Err(error);
                }
                Err(Failure::Fatal(problem)) if self.phase == Phase::New => {
                    return Ok(End::Refuse(problem, self.nodes));
                }
                Err(Failure::Fatal(problem)) => self.fail(problem).await,
            }
        }
    }

    /// Looks, decides and acts. Where that fails, the next call does it again.
    async fn step(&mut self, changed: &Changes) -> Result<Option<End>, Failure> {
        let seen = self.observe().await?;
        if let Some(connection) = self.connection.as_ref().filter(|_| seen.is_frontend_gone()) {
            connection.set_unreachable();
        }
        let own = seen.own.unwrap_or(XenbusState::Unknown);
        let step = decide(self.phase, seen);
        if seen.frontend == Some(XenbusState::Closed) && self.connection.is_some() {
            let last_requests = pin!(self.services.handle.sleep(LAST_REQUESTS));
            select(last_requests, pin!(self.services.closing.wait())).await;
        }
        #[cfg(feature = "recover")]
        self.follow_what_was_left(step);
        match step {
            #[cfg(feature = "recover")]
            Step::Resume => self.resume().await?,
            Step::Wait => self.wait_and_follow(changed, own).await?,
            Step::Connect => self.connect(own).await?,
            Step::Announce => {
                if !self.publish_disk(own).await? {
                    self.wait_and_follow(changed, own).await?;
                }
            }
            Step::Offer => return self.offer_anew(changed, own).await,
            Step::ReportClosing => {
                if self.phase == Phase::New {
                    self.tell(
                        Level::Warn,
                        format_args!(
                            "its frontend takes it to be connected, and nothing of it is served: it is to close"
                        ),
                    );
                }
                self.set_state(XenbusState::Closing).await?;
            }
            Step::Close => {
                self.disconnect().await;
                self.phase = Phase::Closed;
                self.set_state(XenbusState::Closed).await?;
                self.tell(Level::Info, format_args!("closed by the frontend"));
            }
            Step::Release => return Ok(Some(End::Release)),
            Step::Remove => return Ok(Some(End::Remove)),
            Step::StartOver => return Ok(Some(End::StartOver)),
            Step::Abandon => return Ok(Some(End::Abandon)),
        }
        Ok(None)
    }

    /// Reads the states of both ends. If xenstored refuses that, the disk stays as it is.
    async fn observe(&self) -> Result<Observed, Failure> {
        let seen = self.observer.observe().await;
        seen.map_err(Failure::of_what_must_be)
    }

    /// Waits until xenstored may be asked again; the rings are served meanwhile.
    async fn pause(&mut self, error: Error) {
        if !self.refused {
            self.tell(Level::Warn, format_args!("{error}; to be tried again"));
            self.refused = true;
        }
        let pause = pin!(self.services.handle.sleep(PAUSE));
        select(pause, pin!(self.services.closing.wait())).await;
    }

    /// Goes on serving a connected disk when nothing can be read or written any more.
    async fn serve_without_xenstore(&mut self) {
        let never = Changes::default();
        while self.connection.is_some() && !self.services.closing.is_set() {
            match self.wait(&never).await {
                Event::QueueFailed(problem) => {
                    log::error!("vbd {}: {problem}", self.id);
                    break;
                }
                Event::Resized => self.sectors = self.device.geometry().sectors,
                Event::Changed => {}
            }
        }
        self.disconnect().await;
    }

    /// Waits for the next event, and handles the part that concerns that event alone.
    async fn wait_and_follow(
        &mut self,
        changed: &Changes,
        own: XenbusState,
    ) -> Result<(), Failure> {
        match self.wait(changed).await {
            Event::Changed if changed.take_statistics() => {
                show_statistics(self.services, self.id).await;
            }
            Event::Changed => {}
            Event::Resized => {
                let announced = self.announce_size(own).await;
                announced.map_err(Failure::of_what_must_be)?;
            }
            Event::QueueFailed(problem) => self.fail(problem).await,
        }
        Ok(())
    }

    async fn wait(&self, changed: &Changes) -> Event {
        let connection = self.connection.as_ref();
        let mut failed = pin!(async {
            match connection {
                Some(connection) => connection.failed().await,
                None => core::future::pending().await,
            }
        });
        let (device, sectors) = (&self.device, self.sectors);
        let mut raised = pin!(changed.raised());
        let mut closing = pin!(self.services.closing.wait());
        poll_fn(|context| {
            if let Poll::Ready(error) = failed.as_mut().poll(context) {
                return Poll::Ready(Event::QueueFailed(error.into()));
            }
            if closing.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Changed);
            }
            if connection.is_some() {
                device.on_change(context.waker());
                if device.geometry().sectors != sectors {
                    return Poll::Ready(Event::Resized);
                }
            }
            raised.as_mut().poll(context).map(|()| Event::Changed)
        })
        .await
    }

    /// Charges the guest with messages to xenstored, once it has come back: that a disk is attached and
    /// connected for the first time is the toolstack's doing.
    fn charge(&self, messages: usize) {
        if self.came_back {
            self.observer.charge(messages);
        }
    }

    /// Connects to the rings that the frontend published.
    async fn connect(&mut self, from: XenbusState) -> Result<(), Failure> {
        let services = self.services;
        let (frontend, mut messages) = (&self.config.frontend_path, 0);
        let published = read_published(&services.store, frontend, self.limits, &mut messages);
        let published = published.await;
        self.charge(messages);
        let published = published?;
        services
            .admit(self.id, published.needs(services.limits))
            .map_err(Problem::from)?;
        let device = &self.device;
        let sectors = device.geometry().sector_size;
        let mut messages = 0;
        let checked = check_sector_units(&services.store, frontend, sectors, &mut messages).await;
        self.charge(messages);
        checked?;
        #[cfg(feature = "recover")]
        let journals = self.journals(&published);
        #[cfg(not(feature = "recover"))]
        let journals = Vec::new();
        self.serve(&published, journals).await?;
        self.log_connected(&published);
        self.publish_disk(from).await?;
        Ok(())
    }

    /// Has the rings served that the frontend published.
    async fn serve(
        &mut self,
        published: &Published,
        journals: Vec<Journal>,
    ) -> Result<(), Problem> {
        let services = self.services;
        let (connection, served) = FrontendConnection::open(
            services,
            self.id,
            published,
            &self.config,
            &self.device,
            (&self.unreleased, journals),
        )
        .await?;
        self.connection = Some(connection);
        services.statistics.connected(self.id, served);
        services.admission.served(self.id);
        self.phase = Phase::Connected;
        Ok(())
    }

    fn log_connected(&self, published: &Published) {
        let geometry = self.device.geometry();
        let queues = published.queues.len();
        let ring_pages = published.queues.first().map_or(0, |queue| queue.ring.len());
        self.tell(
            Level::Info,
            format_args!(
                "connected, {} sectors of {}, {queues} queue(s) of {ring_pages} ring page(s), {}",
                geometry.sectors, geometry.sector_size, published.abi,
            ),
        );
    }

    /// Logs what the guest has caused.
    fn tell(&self, level: Level, what: fmt::Arguments<'_>) {
        let line = format_args!("vbd {}: {what}", self.id);
        self.log.say(self.services.handle.now(), level, line);
    }

    /// Stops serving and takes back everything.
    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.services.statistics.disconnected(self.id);
            close(self.services, &connection, &self.observer).await;
        }
        self.services.admission.forget(self.id);
    }

    /// Gives the device up because of an error of the frontend or of this end. The next step tells
    /// the frontend.
    async fn fail(&mut self, problem: Problem) {
        self.disconnect().await;
        self.phase = Phase::Failed;
        self.tell(Level::Error, format_args!("{problem}"));
        self.charge(MESSAGES_OF_AN_ERROR);
        write_error(self.services, self.id, &problem).await;
    }

    async fn set_state(&self, state: XenbusState) -> Result<(), Failure> {
        self.charge(MESSAGES_OF_A_CHANGE);
        let written = set_state(&self.services.store, &self.path, state).await;
        let written = written.map_err(Failure::of_what_must_be)?;
        self.observer.wrote(state, written);
        Ok(())
    }
}
