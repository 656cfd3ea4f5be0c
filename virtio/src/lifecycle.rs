//! The task of a device: starts it, listens to it, and stops it. When it is reset and given up is in [`DriverTask`].

mod starting;

use crate::device::Device;
use crate::device_queue::DeviceQueue;
use crate::devices::Devices;
use crate::disk_config::DiskConfig;
use crate::error::StartError;
use crate::transport::{self, Transport};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::{
    DeviceQueueState, DriverTask, HardwareQueue, PassedThrough, Refusal, Ticks,
    leaves_before_trial, seconds,
};
use bulkhead_executor::{Handle, RateLimit, Task};
use bulkhead_pci::{Delivery, Function, Interrupt, OperationError, PciHost, Vectors};
use bulkhead_xen::{Instant, StopRegistration};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;
use spin::Mutex;
use virtio_spec::blk::F;

/// The time that a request may take before the device is reset, in seconds: as long as Linux gives an NVMe command.
/// Linux has no limit for virtio disks. The unit does not depend on how often requests are checked.
const REQUEST_TICKS: u32 = 30;

/// The time that a device may take for a reset.
const RESETS_ITSELF: Duration = Duration::from_secs(5);

/// The limit on changes of its size that a device causes: 16 at once, and one more every 30 seconds. Each is a line in
/// the log, and is passed on to all guests that use it.
const CHANGES: RateLimit = RateLimit::new(16, Duration::from_secs(30));

/// A device, with the state that its task alone uses.
struct DeviceTask<'d, H: PciHost> {
    devices: &'d Devices<H>,
    device: Arc<Device>,
    function: Rc<Function<H>>,
    transport: Arc<Transport>,
    vectors: Option<Vectors>,
    /// The first interrupt: that of the configuration, and of the queues if there is no other.
    interrupt: Option<Interrupt<H>>,
    /// The tasks that wait for the interrupts of the queues.
    listeners: Vec<Task>,
    /// Has it stopped when the domain ends.
    registration: Option<StopRegistration<'static>>,
    features: F,
    /// The generation of the configuration that was read last.
    generation: u8,
    ticks: Ticks,
    changes: RateLimit,
    /// The time at which a change of the configuration that was put off is read.
    next_size: Option<Instant>,
}

/// Runs a device until it is stopped for good.
pub async fn live<H: PciHost>(
    devices: &Devices<H>,
    device: Arc<Device>,
    function: Rc<Function<H>>,
) {
    let mut task = loop {
        let error = match DeviceTask::open(devices, &device, function.clone()).await {
            Ok(task) => break task,
            Err(error) => error,
        };
        let refusal = Refusal {
            reason: error.to_string(),
            stays: error != OperationError::TimedOut.into(),
        };
        let (again, Refusal { reason, stays }) = (refusal.retry_note(), refusal);
        log::error!(
            "virtio:{}: it cannot be used: {reason}{again}",
            device.name()
        );
        device.fail(reason);
        if leaves_before_trial(devices.handle(), &device, stays).await {
            return;
        }
    };
    device.recover();
    task.run().await;
    task.stop().await;
}

impl<H: PciHost> DeviceTask<'_, H> {
    fn name(&self) -> &str {
        self.device.name()
    }

    /// Ends the device's interrupt. What it was raised for is looked at after this.
    fn end_interrupt(&self) {
        let (Some(interrupt), Some(vectors)) = (&self.interrupt, &self.vectors) else {
            return;
        };
        if vectors.delivery() == Delivery::Line {
            self.transport.end_line_interrupt();
        }
        interrupt.handled();
    }

    /// Reads the disk's size anew. If that changes too often, this is put off, and the size at that time counts.
    fn note_size(&mut self) -> Result<(), String> {
        let (now, changes) = (self.devices.handle().now(), &mut self.changes);
        if *self.next_size.get_or_insert_with(|| changes.reserve(now)) > now {
            return Ok(());
        }
        self.next_size = None;
        self.generation = self.transport.generation();
        let config = DiskConfig::read(&self.transport, self.features);
        let config = config.map_err(|error| error.to_string())?;
        if let Some(before) = self.device.set_sectors(config.sectors) {
            log::info!(
                "virtio:{}: now {} sectors, it had {before}",
                self.name(),
                config.sectors
            );
        }
        Ok(())
    }

    /// Takes used requests whose interrupt was lost. The error says that the device has broken the protocol, or takes
    /// too long for a request.
    fn look_at_requests(&mut self, now: u32) -> Result<(), String> {
        for queue in self.device.queues() {
            let mut queue = queue.lock();
            queue.interrupted();
            if queue.state() == DeviceQueueState::Broken {
                return Err("it does not keep to the protocol".to_string());
            }
            if queue.is_late(now, REQUEST_TICKS) {
                let number = queue.number();
                return Err(alloc::format!(
                    "it has not used a request of queue {number} in time"
                ));
            }
        }
        Ok(())
    }

    /// Stops the device for good.
    async fn stop(&mut self) {
        self.device.set_ready(false);
        let halted = self.halt().await;
        self.fail_requests();
        self.listeners.drain(..).for_each(|task| task.stop());
        if halted {
            // A device that may still access memory stays registered, and is told again to stop when the domain ends.
            self.registration = None;
            if let Err(error) = self.forbid_memory().await {
                log::debug!("virtio:{}: {error}", self.name());
            }
        } else if let Some(registration) = self.registration.take() {
            core::mem::forget(registration);
        }
    }

    /// Polls the device's status until it is as wanted. Returns false if that takes longer than [`RESETS_ITSELF`].
    async fn until(&self, wanted: impl Fn(transport::State) -> bool) -> bool {
        self.look_until(RESETS_ITSELF, || wanted(self.transport.state()))
            .await
    }
}

impl<H: PciHost> DriverTask for DeviceTask<'_, H> {
    type Hypervisor = H;
    type Queue = DeviceQueue;
    type StartError = StartError;

    const KIND: &'static str = "virtio";
    const LOG_TARGET: &'static str = module_path!();
    const DOES_NOT_STOP: &'static str = "it does not reset itself";

    fn handle(&self) -> &Handle<H> {
        self.devices.handle()
    }

    fn device(&self) -> &PassedThrough {
        &self.device
    }

    fn queues(&self) -> &[Mutex<DeviceQueue>] {
        self.device.queues()
    }

    fn ticks(&mut self) -> &mut Ticks {
        &mut self.ticks
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt.is_some()
    }

    fn is_gone(&self) -> bool {
        self.transport.state().is_gone()
    }

    async fn try_start(&mut self) -> Result<(), StartError> {
        self.start().await
    }

    /// Handles the device's interrupt, a change of its configuration, and its requests if a check is due.
    async fn attend(&mut self) -> Result<(), String> {
        let called = self.device.watch().take_call();
        self.end_interrupt();
        let state = self.transport.state();
        if state.is_gone() {
            return Err(StartError::Gone.to_string());
        }
        if state.needs_reset() {
            return Err("it reports that it has failed (DEVICE_NEEDS_RESET)".to_string());
        }
        if self.transport.generation() != self.generation {
            self.note_size()?;
        }
        let now = self.devices.handle().now();
        let ticks = self.is_check_due(now);
        if called || ticks || self.listeners.is_empty() {
            self.look_at_requests(seconds(now))?;
        }
        if ticks {
            self.checked(now);
        }
        Ok(())
    }

    /// Waits for an interrupt of the device, a call of a queue, or the next check that is due.
    async fn something_happens(&self) {
        let handle = self.devices.handle();
        let due = [self.ticks.next(), self.next_size]
            .into_iter()
            .flatten()
            .min();
        let mut over = pin!(OptionFuture::from(due.map(|due| handle.sleep_until(due))));
        let watch = self.device.watch();
        poll_fn(|context| {
            watch.wake_with(context.waker());
            let raised = self
                .interrupt
                .as_ref()
                .is_some_and(|interrupt| interrupt.poll_raised(context).is_ready());
            if raised {
                watch.count_interrupt();
            }
            let happened = raised
                || watch.is_called()
                || self.ticks.are_called_for(watch)
                || matches!(over.as_mut().poll(context), Poll::Ready(Some(())));
            match happened {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    async fn reset(&mut self) -> bool {
        self.transport.reset();
        self.until(|state| state.is_reset() || state.is_gone())
            .await
    }

    async fn forbid_memory(&self) -> Result<(), String> {
        let forbidden = self.function.set_bus_mastering(false).await;
        forbidden.map_err(|error| error.to_string())
    }

    /// Does nothing: the queues have all the memory.
    fn released(&mut self) {}
}
