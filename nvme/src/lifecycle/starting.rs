//! Starting a controller, for the first time or after a reset: its queues.

use super::ControllerTask;
use crate::admin::AdminError;
use crate::command::admin::{self, Identify};
use crate::command::{ControllerData, ControllerKind, DeallocateLimits, PAGE, QueueId};
use crate::pair::QueuePair;
use crate::registers::{self, Capabilities};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_dma::{NoPages, StartFailure, seconds};
use bulkhead_xen::{Errno, Hypervisor, PAGE_SHIFT};
use core::fmt;

/// The reason why a controller does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartError {
    /// An admin command has failed, or the controller has.
    Admin(AdminError),
    /// It does not become ready, or does not stop, within the time that it reports (CAP.TO).
    Late {
        /// It does not become ready; otherwise, it does not stop.
        ready: bool,
    },
    /// It cannot be used, for a reason that will not pass.
    Unusable(String),
    /// There is no memory for its queues.
    Pages(NoPages),
    /// Its bus mastering cannot be switched on.
    BusMastering(String),
    /// Its interrupt cannot be used.
    Interrupt {
        /// The number of the interrupt.
        vector: usize,
        /// Xen's reason.
        error: Errno,
    },
}

impl StartFailure for StartError {
    fn is_final(&self) -> bool {
        let passes = matches!(
            self,
            Self::Admin(_) | Self::Late { .. } | Self::BusMastering(_)
        );
        !passes || matches!(self, Self::Admin(AdminError::Gone))
    }

    fn stays(&self) -> bool {
        matches!(self, Self::Unusable(_) | Self::Interrupt { .. })
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(error) => error.fmt(f),
            Self::Late { ready: true } => f.write_str("the controller does not become ready"),
            Self::Late { ready: false } => f.write_str("the controller does not stop"),
            Self::Unusable(reason) | Self::BusMastering(reason) => f.write_str(reason),
            Self::Pages(error) => error.fmt(f),
            Self::Interrupt { vector, error } => {
                write!(f, "its interrupt {vector} cannot be used: {error}")
            }
        }
    }
}

impl core::error::Error for StartError {}

impl From<AdminError> for StartError {
    fn from(error: AdminError) -> Self {
        StartError::Admin(error)
    }
}

impl From<NoPages> for StartError {
    fn from(error: NoPages) -> Self {
        StartError::Pages(error)
    }
}

impl<H: Hypervisor> ControllerTask<'_, H> {
    /// Starts the controller, and sends the commands again that it had before a reset.
    pub(super) async fn start(&mut self) -> Result<(), StartError> {
        let registers = self.controller.registers().clone();
        let capabilities = registers::capabilities(&*registers).ok_or(AdminError::Gone)?;
        check(capabilities)?;
        // Its last user may have left it running.
        registers::disable(&*registers);
        let timeout = capabilities.timeout();
        let stopped = self.until(timeout, |status| status.is_gone() || !status.is_ready());
        let stopped = stopped.await;
        if registers::status(&*registers).is_gone() {
            return Err(AdminError::Gone.into());
        }
        if !stopped {
            return Err(StartError::Late { ready: false });
        }
        if self.stops.is_ending() {
            let reason = "the domain ends".to_string();
            return Err(StartError::Unusable(reason));
        }
        self.listen_to_admin()?;
        let mastering = self.function.set_bus_mastering(true).await;
        mastering.map_err(StartError::BusMastering)?;
        self.admin.enable(capabilities);
        let over = |status: registers::ControllerStatus| status.is_ready() || status.is_fatal();
        let started = self.until(timeout, over).await;
        self.admin.check()?;
        if !started {
            return Err(StartError::Late { ready: true });
        }
        self.identify().await?;
        self.make_queues(capabilities).await?;
        self.request_events().await?;
        self.find_namespaces_anew().await?;
        self.read_smart().await?;
        let now = seconds(self.handle.now());
        for pair in self.controller.pairs() {
            pair.lock().resume(now);
        }
        self.tell_of_it();
        Ok(())
    }

    /// Uses the first interrupt of the function for the admin queue, if there is one.
    fn listen_to_admin(&mut self) -> Result<(), StartError> {
        let vectors = self.function.vectors();
        if self.admin.is_interrupted() || vectors.count() == 0 {
            return Ok(());
        }
        let bound = vectors.bind(0, self.handle.hypervisor());
        let port = bound.map_err(|error| StartError::Interrupt { vector: 0, error })?;
        self.admin.listen(self.handle.event_channel(port));
        Ok(())
    }

    async fn identify(&mut self) -> Result<(), StartError> {
        let bytes: [u8; PAGE] = self
            .admin
            .read(admin::identify(Identify::Controller))
            .await?;
        let data = ControllerData::parse(&bytes);
        if let ControllerKind::Other(kind) = data.kind {
            let reason = alloc::format!("it is no controller for I/O (its kind is {kind})");
            return Err(StartError::Unusable(reason));
        }
        if !data.takes_usual_entries() {
            let reason = "it takes no queue entries of 64 and 16 bytes".to_string();
            return Err(StartError::Unusable(reason));
        }
        let first = self.controller.set_data(data.clone());
        // Commands that it had before the reset are sent again: they must not go to another controller.
        if first.serial != data.serial || first.most_bytes != data.most_bytes {
            return Err(StartError::Unusable(alloc::format!(
                "it is another controller than before its reset: serial {}, it was {}",
                data.serial,
                first.serial
            )));
        }
        Ok(())
    }

    /// Reads the most that one command may deallocate or clear.
    async fn read_limits(&mut self, data: &ControllerData) -> Result<DeallocateLimits, AdminError> {
        let discards = data.deallocates || data.writes_zeroes;
        // Controllers before NVMe 1.4 do not know this structure.
        if !discards || registers::version(&**self.controller.registers()) < (1, 4) {
            return Ok(DeallocateLimits::untold(data));
        }
        match self.admin.read(admin::identify(Identify::Limits)).await {
            Ok(bytes) => Ok(DeallocateLimits::parse(&bytes, data)),
            Err(AdminError::Refused { .. }) => Ok(DeallocateLimits::untold(data)),
            Err(error) => Err(error),
        }
    }

    /// Creates a queue pair for each vCPU, or as many as the controller, its interrupts and its registers have room
    /// for. After a reset, it has to be as many as before.
    async fn make_queues(&mut self, capabilities: Capabilities) -> Result<(), StartError> {
        let registers = self.controller.registers().clone();
        let vectors = self.function.vectors();
        let stride = capabilities.doorbell_stride();
        let known = self.controller.pairs().len();
        let mut wanted = self
            .vcpus
            .len()
            .min(registers::pairs_within(registers.len(), stride));
        if vectors.count() > 1 {
            wanted = wanted.min(vectors.count() - 1);
        }
        if known > 0 {
            wanted = known;
        }
        if wanted == 0 {
            let reason = "its registers have no room for doorbells".to_string();
            return Err(StartError::Unusable(reason));
        }
        let granted = self
            .admin
            .command(admin::set_number_of_queues(wanted as u16))
            .await?;
        let granted = wanted.min(admin::queues_granted(granted.result()) as usize);
        if known > granted {
            let reason = "it grants fewer queues than before its reset".to_string();
            return Err(StartError::Unusable(reason));
        }
        if known == 0 {
            let Some(data) = self.controller.data().cloned() else {
                return Ok(());
            };
            let limits = self.read_limits(&data).await?;
            self.add_pairs(granted, limits)?;
            let listening = self
                .listeners
                .listen(&self.controller, &vectors, self.vcpus)
                .await;
            listening.map_err(|(vector, error)| StartError::Interrupt { vector, error })?;
        }
        for index in 0..self.controller.pairs().len() {
            let (queue, [submission, completion]) = {
                let mut pair = self.controller.pairs()[index].lock();
                if !pair.prepare(capabilities.queue_entries(), stride) {
                    let reason = "it takes shorter queues than before its reset".to_string();
                    return Err(StartError::Unusable(reason));
                }
                (pair.queue(), pair.queues())
            };
            let vector = match vectors.count() {
                0 => None,
                1 => Some(0),
                _ => Some(queue.0),
            };
            let create = admin::create_completion_queue(queue, completion.1 as u16, vector);
            self.admin
                .command(create.with_data([completion.0, 0]))
                .await?;
            let create = admin::create_submission_queue(queue, submission.1 as u16);
            self.admin
                .command(create.with_data([submission.0, 0]))
                .await?;
        }
        Ok(())
    }

    fn add_pairs(&mut self, count: usize, limits: DeallocateLimits) -> Result<(), StartError> {
        let controller = &self.controller;
        let mut pairs = Vec::new();
        for index in 0..count {
            let access = (controller.registers().clone(), &**controller.memory());
            let queue = QueueId(index as u16 + 1);
            let pair = QueuePair::new(
                queue,
                access,
                controller.watch().clone(),
                (controller.most_bytes(), limits),
            );
            pairs.push(pair?);
        }
        controller.set_pairs(pairs);
        Ok(())
    }

    /// Asks for events. A controller that reports none is used all the same.
    async fn request_events(&mut self) -> Result<(), AdminError> {
        match self.admin.command(admin::set_async_events()).await {
            Ok(_) => {}
            Err(AdminError::Refused { status, .. }) => {
                log::warn!("nvme:{}: it tells of no events: {status}", self.name());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let most = self.controller.data().map_or(0, |data| data.event_requests);
        self.admin.request_events(most);
        Ok(())
    }

    fn tell_of_it(&self) {
        let controller = &self.controller;
        if let Some(data) = controller.data() {
            let (major, minor) = registers::version(&**controller.registers());
            log::info!(
                "nvme:{}: {}, serial {}, NVMe {major}.{minor}, {} namespace(s), {} queue pair(s), {}",
                controller.name(),
                data.model,
                data.serial,
                controller.namespaces().len(),
                controller.pairs().len(),
                if data.volatile_cache {
                    "with a cache"
                } else {
                    "without a cache"
                },
            );
        }
    }
}

/// Checks the capabilities that the driver depends on.
fn check(capabilities: Capabilities) -> Result<(), StartError> {
    if !capabilities.has_nvm_commands() {
        let reason = "it has no NVM command set".to_string();
        return Err(StartError::Unusable(reason));
    }
    let smallest = capabilities.smallest_page();
    if smallest > PAGE_SHIFT {
        let reason = alloc::format!("its smallest page has 2^{smallest} bytes, expected 4096");
        return Err(StartError::Unusable(reason));
    }
    Ok(())
}
