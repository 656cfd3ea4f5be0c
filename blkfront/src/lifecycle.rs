//! The task of one disk of our own: it reads the states of both ends, decides, acts, and waits for the next
//! change.

mod connecting;
mod earlier_boot;
mod going_on;

use self::earlier_boot::EarlierBoot;
use crate::connection::{BackendConnection, Leftover, RING_NODES, answered};
use crate::device::Disk;
use crate::frontends::Frontends;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Signal;
use bulkhead_xen::{DomId, Hypervisor, Instant};
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::frontend::{
    FrontendNodes, LONGEST_RETRY, Observed, Phase, Retries, Step, decide, is_left,
};
use bulkhead_xenbus::retry::PAUSE;
use bulkhead_xenstore_client::Error;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The pause between the first two checks whether a backend has unmapped our memory; it doubles each time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The log says that a backend keeps our memory once it has been waited for longer than this.
const LONG_LOOK: Duration = Duration::from_secs(2);

/// The time in which a backend that closes has to answer all requests and a last flush. It is less than the backend of
/// this project waits for its frontends to close.
const LAST_FLUSH: Duration = Duration::from_millis(1500);
/// The pause between two checks whether it has.
const LAST_FLUSH_PAUSE: Duration = Duration::from_millis(5);

/// The time in which a restarted backend has to connect to the rings that it finds.
const GOES_ON: Duration = Duration::from_secs(5);

/// One disk.
pub struct DiskTask<'a, H: Hypervisor> {
    frontends: &'a Frontends<H>,
    nodes: FrontendNodes,
    disk: Arc<Disk<H>>,
    phase: Phase,
    connection: Option<BackendConnection<H>>,
    /// The domain that served the disk last.
    served_by: Option<DomId>,
    leftover: Option<Leftover<H>>,
    /// A restarted backend has had [`GOES_ON`] to connect by itself.
    waited: bool,
    retries: Retries,
    /// No attempt to connect is made before this time.
    rests_until: Instant,
    /// A new size of the disk is not applied before this time.
    next_size: Option<Instant>,
    /// What a boot before this one may have left.
    before: EarlierBoot<H>,
    /// The last reason in the log why nothing happens.
    told: Option<String>,
}

/// Follows a disk until the toolstack has removed it and no guest has it. `changed` is raised whenever
/// something in its directory changes.
pub async fn live<H: Hypervisor>(
    frontends: &Frontends<H>,
    device: u32,
    disk: Arc<Disk<H>>,
    changed: &Signal,
) -> Result<(), Error> {
    let mut task = DiskTask {
        frontends,
        nodes: FrontendNodes::new(format!("device/vbd/{device}"), &RING_NODES),
        disk,
        phase: Phase::Fresh,
        connection: None,
        served_by: None,
        leftover: None,
        waited: false,
        retries: Retries::new(frontends.was_left()),
        rests_until: Instant(0),
        next_size: None,
        before: EarlierBoot::new(frontends.was_left()),
        told: None,
    };
    loop {
        match task.step(changed).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.is_disconnected() => {
                // Connected disks are served on.
                log::error!(
                    "disk {}: cannot be followed any more: {error}",
                    task.disk.name
                );
                core::future::pending::<()>().await;
            }
            Err(error) => {
                task.tell(format!("{error}; to be tried again"));
                frontends.handle().sleep(PAUSE).await;
            }
        }
    }
}

impl<H: Hypervisor> DiskTask<'_, H> {
    /// Reads the states, decides and acts. Returns false if the disk is gone.
    async fn step(&mut self, changed: &Signal) -> Result<bool, Error> {
        if self.disk.failure().is_some() && self.phase != Phase::Failed {
            self.give_up().await?;
        }
        let seen = self.observe().await?;
        if seen.attached {
            self.nodes.write_again(self.frontends.store()).await?;
        }
        match decide(self.phase, seen) {
            Step::Wait => self.wait(changed).await?,
            Step::WaitForBackend => self.wait_for_backend(changed).await?,
            Step::Keep => {
                self.tell("is to be detached, but guests use it: it is kept".to_string());
                self.wait(changed).await?;
            }
            Step::GoOn => self.go_on().await?,
            Step::Publish => self.publish(changed).await?,
            Step::Connect => self.connect(Some(XenbusState::Connected)).await?,
            Step::Reread => {
                self.reread().await?;
                self.wait(changed).await?;
            }
            Step::Close => self.close(seen.backend).await?,
            Step::StartOver if self.frontends.handle().now() < self.rests_until => {
                self.wait(changed).await?;
            }
            Step::StartOver => self.start_over().await?,
            Step::Forget => {
                self.nodes.forget();
                if self.phase == Phase::Failed {
                    // Guests keep their claims on the failed disk; a disk that is attached later is a new one.
                    if let Some(leftover) = self.leftover.take() {
                        leftover.leave_with(&self.disk);
                    }
                    return Ok(false);
                }
                self.disconnect().await;
                self.phase = Phase::Fresh;
                if !self.disk.is_in_use() {
                    return Ok(false);
                }
                self.tell("was taken away while guests use it: requests wait for it".to_string());
                self.wait(changed).await?;
            }
        }
        Ok(true)
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        let store = self.frontends.store();
        let found = self.nodes.read(store).await?;
        let attached = found.backend.is_some();
        let (mut backend, mut online) = (XenbusState::Unknown, false);
        if let Some(named) = found.backend {
            self.follow_backend(named).await?;
            (backend, online) = self.nodes.backend(store).await?;
        }
        Ok(Observed {
            attached,
            backend,
            online,
            in_use: self.disk.is_in_use(),
            waited: core::mem::take(&mut self.waited),
            left: self.frontends.was_left() && is_left(found.own),
            may_go_on: self.before.may_go_on && found.own == XenbusState::Connected,
        })
    }

    /// Follows the backend that the toolstack has named, if it is another one than before.
    async fn follow_backend(&mut self, named: (String, DomId)) -> Result<(), Error> {
        if self.nodes.follows(&named) {
            return Ok(());
        }
        self.disconnect().await;
        if self.phase != Phase::Failed {
            self.phase = Phase::Fresh;
        }
        self.nodes.follow(self.frontends.store(), named).await
    }

    /// Waits for a restarted backend.
    async fn wait_for_backend(&mut self, changed: &Signal) -> Result<(), Error> {
        let over = self.frontends.handle().sleep(GOES_ON);
        if let Either::Left((waited, _)) = select(pin!(self.wait(changed)), pin!(over)).await {
            return waited;
        }
        self.waited = true;
        Ok(())
    }

    /// Waits until something may have changed, or until a step that was put off is due.
    async fn wait(&mut self, changed: &Signal) -> Result<(), Error> {
        let handle = self.frontends.handle();
        let due = match self.phase {
            Phase::Closed => Some(self.rests_until),
            Phase::Connected => self.next_size,
            _ => None,
        };
        let Some(due) = due.filter(|due| *due > handle.now()) else {
            return self.wait_for_change(changed).await;
        };
        let over = handle.sleep_until(due);
        if self.phase == Phase::Closed {
            // Changes by the backend are looked at after the pause; the toolstack may remove the disk during it.
            select(pin!(changed.raised()), pin!(over)).await;
            return Ok(());
        }
        match select(pin!(self.wait_for_change(changed)), pin!(over)).await {
            Either::Left((waited, _)) => waited,
            Either::Right(_) => Ok(()),
        }
    }

    async fn wait_for_change(&mut self, changed: &Signal) -> Result<(), Error> {
        let (disk, failed) = (&self.disk, self.phase == Phase::Failed);
        let (nodes, users) = (&mut self.nodes, self.disk.users());
        let mut raised = pin!(changed.raised());
        let by_backend = poll_fn(|context| {
            disk.wake_task_with(context.waker());
            if (disk.failure().is_some() && !failed) || disk.users() != users {
                return Poll::Ready(Ok(false));
            }
            if let Poll::Ready(event) = nodes.poll_backend(context) {
                return Poll::Ready(event.map(|()| true));
            }
            raised.as_mut().poll(context).map(|()| Ok(false))
        })
        .await?;
        if by_backend {
            self.nodes.paced(self.frontends.handle()).await;
        }
        Ok(())
    }

    /// Stops using the backend, which is in state `backend`, and reports `Closed`; waits until the backend has unmapped
    /// our memory. If the backend closes in order, it is first given the chance to make acknowledged writes durable.
    async fn close(&mut self, backend: XenbusState) -> Result<(), Error> {
        let was_connected = self.phase == Phase::Connected;
        if was_connected {
            if backend == XenbusState::Closing {
                self.flush_last().await;
            }
            log::warn!(
                "disk {}: the backend is gone; requests wait for it",
                self.disk.name
            );
        }
        self.stop();
        self.phase = Phase::Closed;
        self.write(Vec::new(), XenbusState::Closed).await?;
        self.disconnect().await;
        self.frontends.something_changed();
        let now = self.frontends.handle().now();
        self.rests_until = self.retries.after_close(was_connected, now);
        Ok(())
    }

    /// Has a backend that closes in order flush what it has acknowledged, within [`LAST_FLUSH`]. It answers until this
    /// end has closed, and another domain may serve the disk after it.
    async fn flush_last(&mut self) {
        let disk = self.disk.clone();
        if !disk.has_unflushed() {
            return;
        }
        let links = disk.links();
        links.iter().for_each(|link| link.lock().stop_sending());
        let handle = self.frontends.handle();
        let over = handle.now() + LAST_FLUSH;
        let mut flush = None;
        while handle.now() < over {
            (0..links.len()).for_each(|number| answered(&disk, number));
            if disk.failure().is_some() {
                return;
            }
            let first = &links[0];
            match flush {
                // No write is in flight or sent any more, so this flush covers all that the backend has acknowledged.
                None if links.iter().all(|link| link.lock().is_idle()) => {
                    flush = Some(disk.flushes().begin());
                    if !first.lock().ask_flush() {
                        return;
                    }
                }
                None => {}
                Some(number) => match first.lock().flushed() {
                    Some(Ok(())) => return disk.flushes().end(number),
                    Some(Err(_)) => return,
                    None => {}
                },
            }
            handle.sleep(LAST_FLUSH_PAUSE).await;
        }
    }

    /// Reports `Initialising`, so that the backend may offer the disk again, once it has none of our memory.
    async fn start_over(&mut self) -> Result<(), Error> {
        // `close` has waited for that already, unless it ended early with an error of xenstored's.
        self.disconnect().await;
        self.write(Vec::new(), XenbusState::Initialising).await?;
        self.phase = Phase::Fresh;
        Ok(())
    }

    /// Fails all requests to the disk, until the toolstack attaches it anew.
    async fn give_up(&mut self) -> Result<(), Error> {
        log::error!(
            "disk {}: given up: {}",
            self.disk.name,
            self.disk.failure().unwrap_or_default()
        );
        self.stop();
        self.disk.links().iter().for_each(|link| link.lock().fail());
        self.phase = Phase::Failed;
        self.frontends.something_changed();
        self.write(Vec::new(), XenbusState::Closed).await?;
        // Memory that the backend has not unmapped is not waited for: it may never unmap it.
        if let Some(leftover) = &mut self.leftover {
            leftover.take_back(&self.disk);
        }
        Ok(())
    }

    async fn back_off(&mut self, problem: String) -> Result<(), Error> {
        self.tell(problem);
        self.close(XenbusState::Unknown).await
    }

    /// Stops using the rings.
    fn stop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.leftover = Some(connection.disconnect(&self.disk));
        }
    }

    /// Stops using the rings, and waits until the backend has unmapped our memory: it must not be able to change the
    /// data that a later backend handles.
    async fn disconnect(&mut self) {
        self.stop();
        let Some(mut leftover) = self.leftover.take() else {
            return;
        };
        let (mut pause, since) = (LOOK_AGAIN, self.frontends.handle().now());
        while !leftover.take_back(&self.disk) {
            if self.frontends.handle().now().since(since) > LONG_LOOK {
                self.tell(
                    "the backend does not let go of our memory: it is waited for".to_string(),
                );
            }
            self.frontends.handle().sleep(pause).await;
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    /// Writes nodes and this end's state. Nodes that xenstored refuses are written later.
    async fn write(
        &mut self,
        nodes: Vec<(String, String)>,
        state: XenbusState,
    ) -> Result<(), Error> {
        self.nodes.write(self.frontends.store(), nodes, state).await
    }

    /// Logs a line, unless it repeats the last one.
    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            log::warn!("disk {}: {what}", self.disk.name);
            self.told = Some(what);
        }
    }
}
