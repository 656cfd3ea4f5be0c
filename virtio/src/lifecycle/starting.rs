//! Starting a device, for the first time or after a reset (virtio 1.2, section 3.1.1).

use super::{CHANGES, DeviceTask};
use crate::device::Device;
use crate::device_queue::DeviceQueue;
use crate::devices::Devices;
use crate::disk_config::{DiskConfig, bits, negotiate};
use crate::error::StartError;
use crate::ring::Ring;
use crate::structures::Structures;
use crate::transport::Transport;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::{Ticks, seconds};
use bulkhead_executor::Handover;
use bulkhead_pci::{Function, PciError, PciHost};
use spin::Mutex;
use virtio_spec::DeviceStatus;
use virtio_spec::blk::F;

/// The least number of entries of a queue: a request has a header, data and a status, and entries are a power of two.
const LEAST_ENTRIES: usize = 4;

impl<'d, H: PciHost> DeviceTask<'d, H> {
    /// Maps the registers of a device's function, and enables its interrupts.
    pub(super) async fn open(
        devices: &'d Devices<H>,
        device: &Arc<Device>,
        function: Rc<Function<H>>,
    ) -> Result<Self, StartError> {
        let structures = Structures::open(&function).await?;
        // One for the configuration, and one for each queue. They can be enabled only once, so nothing below may fail.
        let wanted = devices.vcpus().len() + 1;
        let vectors = match function.enable_interrupts(wanted).await {
            Ok(vectors) => Some(vectors),
            Err(PciError::NoInterrupts) => {
                log::warn!(
                    "virtio:{}: it has no interrupts and is polled",
                    device.name()
                );
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(DeviceTask {
            devices,
            device: device.clone(),
            function,
            transport: Arc::new(Transport::new(structures)),
            vectors,
            interrupt: None,
            listeners: Vec::new(),
            registration: None,
            features: F::empty(),
            generation: 0,
            changes: CHANGES,
            next_size: None,
            ticks: Ticks::default(),
        })
    }

    /// Starts the device, and asks the requests again that it had before a reset.
    pub(super) async fn start(&mut self) -> Result<(), StartError> {
        let transport = self.transport.clone();
        // Its last user may have left it running.
        transport.reset();
        let reset = self.until(|state| state.is_reset() || state.is_gone());
        if !reset.await {
            return Err(StartError::Stays);
        }
        if transport.state().is_gone() {
            return Err(StartError::Gone);
        }
        self.register()?;
        self.function.set_bus_mastering(true).await?;
        let mut state = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_state(state);
        self.features = negotiate(transport.offered())?;
        transport.accept(bits(self.features));
        state |= DeviceStatus::FEATURES_OK;
        transport.set_state(state);
        if !transport.state().has(DeviceStatus::FEATURES_OK) {
            return Err(StartError::FeaturesRefused);
        }
        self.generation = transport.generation();
        self.next_size = None;
        let config = DiskConfig::read(&transport, self.features)?;
        let first = *self.device.set_config(config);
        // Requests that it had before the reset are asked again: they must not go to another disk.
        if !config.is_like(&first) {
            let reason = "it is another disk than before its reset".to_string();
            return Err(StartError::Unusable(reason));
        }
        self.device.set_sectors(config.sectors);
        self.listen()?;
        self.make_queues(&config).await?;
        state |= DeviceStatus::DRIVER_OK;
        transport.set_state(state);
        let now = seconds(self.devices.handle().now());
        for queue in self.device.queues() {
            queue.lock().resume(now);
        }
        self.tell_of_it(&config);
        Ok(())
    }

    /// Registers the device to be stopped when the domain shuts down or crashes.
    fn register(&mut self) -> Result<(), StartError> {
        let stops = self.devices.stops();
        if self.registration.is_none() {
            let registered = stops.register(self.transport.clone());
            self.registration = Some(registered.map_err(StartError::TooMany)?);
        }
        match stops.is_ending() {
            true => Err(StartError::Ending),
            false => Ok(()),
        }
    }

    /// Uses the first interrupt of the function for changes of the configuration.
    fn listen(&mut self) -> Result<(), StartError> {
        let Some(vectors) = &self.vectors else {
            return Ok(());
        };
        if self.interrupt.is_none() {
            let bound = vectors.get(0).bind(self.devices.handle());
            let interrupt = bound.map_err(|error| StartError::Interrupt { vector: 0, error })?;
            self.interrupt = Some(interrupt);
        }
        match self.transport.set_config_vector(self.message(0)) {
            true => Ok(()),
            false => Err(StartError::Unusable(
                "it does not give its configuration an interrupt".to_string(),
            )),
        }
    }

    /// Returns the MSI-X vector that the device is told for an interrupt, if its interrupts are by MSI-X.
    fn message(&self, vector: usize) -> Option<u16> {
        let vectors = self.vectors.as_ref()?;
        let messages = vectors.delivery() == bulkhead_pci::Delivery::Msix;
        messages.then_some(vector as u16)
    }

    /// Returns the number of a queue's interrupt: the first one, if there is no other.
    fn vector_of(&self, queue: u16) -> usize {
        match self.vectors.as_ref().map_or(0, |vectors| vectors.count()) {
            0 | 1 => 0,
            _ => usize::from(queue) + 1,
        }
    }

    /// Sets up a queue for each vCPU, or as many as the device has queues and interrupts. After a reset, it has to be
    /// as many as before.
    async fn make_queues(&mut self, config: &DiskConfig) -> Result<(), StartError> {
        let transport = self.transport.clone();
        let offered = transport.queues().min(config.queues);
        let known = self.device.queues().len();
        if known == 0 {
            let mut count = self.devices.vcpus().len().min(offered.into());
            if let Some(vectors) = self.vectors.as_ref().filter(|all| all.count() > 1) {
                count = count.min(vectors.count() - 1);
            }
            self.add_queues(count.max(1), config)?;
            self.listen_to_queues().await?;
        } else if usize::from(offered) < known {
            let reason = "it has fewer queues than before its reset".to_string();
            return Err(StartError::Unusable(reason));
        }
        let event_index = self.features.contains(F::EVENT_IDX);
        for queue in self.device.queues() {
            let mut queue = queue.lock();
            let number = queue.number();
            if !queue.prepare(transport.most_entries(number), event_index) {
                let reason = "it takes shorter queues than before its reset".to_string();
                return Err(StartError::Unusable(reason));
            }
            let (entries, addresses) = queue.memory();
            let vector = self.message(self.vector_of(number));
            let doorbell = transport.set_up_queue(number, entries, addresses, vector)?;
            queue.set_doorbell(doorbell);
        }
        Ok(())
    }

    fn add_queues(&mut self, count: usize, config: &DiskConfig) -> Result<(), StartError> {
        let device = &self.device;
        let has_indirect = self.features.contains(F::INDIRECT_DESC);
        let mut queues = Vec::new();
        for number in 0..count as u16 {
            let entries = Ring::entries_for(self.transport.most_entries(number));
            if entries < LEAST_ENTRIES {
                let reason = alloc::format!("its queue {number} has only {entries} entries");
                return Err(StartError::Unusable(reason));
            }
            let queue = DeviceQueue::new(
                number,
                (self.transport.clone(), &**device.memory()),
                device.watch().clone(),
                entries,
                has_indirect,
                config.discards,
            )?;
            queues.push(Mutex::new(queue));
        }
        device.set_queues(queues);
        Ok(())
    }

    /// Binds the interrupt of each queue on its vCPU. With a single interrupt, or none, it binds none, and the device's
    /// task looks at the queues.
    async fn listen_to_queues(&mut self) -> Result<(), StartError> {
        let Some(vectors) = self.vectors.as_ref().filter(|all| all.count() > 1) else {
            return Ok(());
        };
        for (index, vcpu) in self.devices.vcpus().iter().enumerate() {
            if index >= self.device.queues().len() {
                break;
            }
            let number = index + 1;
            let vector = vectors.get(number).clone();
            let (given, device) = (Handover::default(), self.device.clone());
            let taken = given.clone();
            vcpu.send(move |handle| {
                let bound = vector.bind(handle);
                given.give(bound.map(|interrupt| {
                    handle.spawn(async move {
                        loop {
                            interrupt.raised().await;
                            device.watch().count_interrupt();
                            if let Some(queue) = device.queues().get(index) {
                                queue.lock().interrupted();
                            }
                            interrupt.handled();
                        }
                    })
                }));
            });
            let task = taken.taken().await;
            let task = task.map_err(|error| StartError::Interrupt {
                vector: number,
                error,
            })?;
            self.listeners.push(task);
        }
        Ok(())
    }

    fn tell_of_it(&self, config: &DiskConfig) {
        log::info!(
            "virtio:{}: {} sectors of {}{}, {} queue(s){}",
            self.name(),
            config.sectors,
            config.sector_size,
            if config.read_only { ", read-only" } else { "" },
            self.device.queues().len(),
            if config.flushes {
                ", with a cache"
            } else {
                ", without a cache"
            },
        );
    }
}
