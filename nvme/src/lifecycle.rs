//! The task of a controller: starts it, listens to it, and stops it. When it is reset and given up is in [`DriverTask`].

mod finding;
mod listening;
mod starting;

use crate::admin::Admin;
use crate::controller::Controller;
use crate::function::ControllerFunction;
use crate::listener::Listeners;
use crate::pair::QueuePair;
use crate::registers;
use crate::stop::Stop;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_dma::{DriverTask, PassedThrough, Ticks, leaves_before_trial};
use bulkhead_executor::{Handle, RateLimit, VcpuSpawner};
use bulkhead_xen::{DeviceStops, Hypervisor, Instant};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;
use log::Level;
use spin::Mutex;
use starting::StartError;

/// The time that a controller may take to write its cache to the medium when it is shut down.
const SHUTS_DOWN: Duration = Duration::from_secs(10);

/// The time in which a controller is to stop if its registers do not tell one any more.
const NO_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of events that are handled before other tasks have their turn.
const EVENTS_AT_ONCE: usize = 8;

/// The limit on lines in the log that a controller causes by itself: 16 at once, and one more each minute.
const LINES: RateLimit = RateLimit::new(16, Duration::from_secs(60));

/// A controller, with the state that its task alone uses.
pub(crate) struct ControllerTask<'c, H: Hypervisor> {
    handle: Handle<H>,
    vcpus: &'c [VcpuSpawner<H>],
    stops: &'static DeviceStops,
    controller: Arc<Controller>,
    function: Rc<dyn ControllerFunction<H>>,
    admin: Admin<H>,
    listeners: Listeners,
    lines: RateLimit,
    ticks: Ticks,
    /// The time at which namespaces are read again that the controller could not describe for the moment.
    look_again: Option<Instant>,
}

/// Runs a controller until it is stopped for good.
pub(crate) async fn live<H: Hypervisor>(
    handle: Handle<H>,
    vcpus: &[VcpuSpawner<H>],
    stops: &'static DeviceStops,
    controller: Arc<Controller>,
    function: Rc<dyn ControllerFunction<H>>,
) {
    let stop = Arc::new(Stop(controller.registers().clone()));
    let registered = stops.register(stop).map_err(|error| error.to_string());
    let made = registered.and_then(|registered| {
        let admin = Admin::new(handle.clone(), controller.clone(), function.vectors());
        Ok((registered, admin.map_err(|error| error.to_string())?))
    });
    let (registered, admin) = match made {
        Ok(made) => made,
        Err(reason) => {
            log::error!("nvme:{}: {reason}", controller.name());
            controller.fail(reason);
            leaves_before_trial(&handle, &controller, true).await;
            return controller.set_left();
        }
    };
    let mut task = ControllerTask {
        handle,
        vcpus,
        stops,
        controller,
        function,
        admin,
        listeners: Listeners::default(),
        lines: LINES,
        ticks: Ticks::default(),
        look_again: None,
    };
    task.run().await;
    match task.stop().await {
        true => drop(registered),
        // It may still access memory: it stays registered, so that it is told to stop again when the domain ends, which
        // then does not start again in place.
        false => core::mem::forget(registered),
    }
    task.listeners.stop();
    task.controller.set_left();
}

impl<H: Hypervisor> ControllerTask<'_, H> {
    fn name(&self) -> &str {
        self.controller.name()
    }

    /// Logs a line that the controller causes by itself, at level Debug if it has caused too many. The controller's
    /// name is put before the line.
    fn tell(&mut self, level: Level, line: fmt::Arguments<'_>) {
        let level = match self.lines.take(self.handle.now()) {
            true => level,
            false => Level::Debug,
        };
        log::log!(level, "nvme:{}{line}", self.name());
    }

    /// Shuts the controller down, so that it writes its cache to the medium, and stops it. Returns whether it accesses
    /// no memory any more.
    async fn stop(&mut self) -> bool {
        let registers = self.controller.registers().clone();
        self.controller.set_ready(false);
        let status = registers::status(&*registers);
        if status.is_ready() && !status.is_gone() && !status.is_fatal() {
            registers::shut_down(&*registers);
            let over =
                |status: registers::ControllerStatus| status.is_gone() || status.is_shut_down();
            if !self.until(SHUTS_DOWN, over).await {
                log::warn!(
                    "nvme:{}: it does not say that it has shut down",
                    self.name()
                );
            }
        }
        let halted = self.halt().await;
        self.fail_requests();
        if halted && let Err(error) = self.forbid_memory().await {
            log::debug!("nvme:{}: {error}", self.name());
        }
        halted
    }

    /// Polls the controller's status until it is as wanted. Returns false if that takes longer than `timeout`.
    async fn until(
        &self,
        timeout: Duration,
        wanted: impl Fn(registers::ControllerStatus) -> bool,
    ) -> bool {
        let registers = self.controller.registers();
        self.look_until(timeout, || wanted(registers::status(&**registers)))
            .await
    }
}

impl<H: Hypervisor> DriverTask for ControllerTask<'_, H> {
    type Hypervisor = H;
    type Queue = QueuePair;
    type StartError = StartError;

    const KIND: &'static str = "nvme";
    const LOG_TARGET: &'static str = module_path!();
    const DOES_NOT_STOP: &'static str = "it does not stop";

    fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    fn device(&self) -> &PassedThrough {
        &self.controller
    }

    fn queues(&self) -> &[Mutex<QueuePair>] {
        self.controller.pairs()
    }

    fn ticks(&mut self) -> &mut Ticks {
        &mut self.ticks
    }

    fn is_interrupted(&self) -> bool {
        self.admin.is_interrupted()
    }

    fn is_gone(&self) -> bool {
        registers::status(&**self.controller.registers()).is_gone()
    }

    async fn try_start(&mut self) -> Result<(), StartError> {
        self.start().await
    }

    /// Handles the controller's events, checks its commands if that is due, and does what queues or the operator have
    /// asked for.
    async fn attend(&mut self) -> Result<(), String> {
        let called = self.controller.watch().take_call();
        let mut events = 0;
        while let Some(event) = self.admin.next_event()? {
            self.note(event.kind, event.log).await?;
            events += 1;
            if events == EVENTS_AT_ONCE {
                self.controller.watch().call();
                self.handle.yield_now().await;
                break;
            }
        }
        self.admin.look_at_pairs();
        self.admin.handled();
        let now = self.handle.now();
        let ticks = self.is_check_due(now);
        if called || ticks {
            self.admin.check()?;
            self.look_at_commands().await?;
        }
        if ticks {
            self.checked(now);
        }
        if self.controller.take_asked() {
            self.read_smart().await?;
        }
        if self.look_again.is_some_and(|due| due <= now) {
            self.look_at_namespaces().await?;
        }
        Ok(())
    }

    /// Waits for an interrupt of the controller, a call of a queue pair, or the next check that is due.
    async fn something_happens(&self) {
        let due = [self.ticks.next(), self.look_again]
            .into_iter()
            .flatten()
            .min();
        let mut over = pin!(OptionFuture::from(
            due.map(|due| self.handle.sleep_until(due))
        ));
        let watch = self.controller.watch();
        poll_fn(|context| {
            watch.wake_with(context.waker());
            let happened = watch.is_called()
                || self.ticks.are_called_for(watch)
                || self.admin.poll_interrupted(context).is_ready()
                || matches!(over.as_mut().poll(context), Poll::Ready(Some(())));
            match happened {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Stops the controller without a shutdown.
    async fn reset(&mut self) -> bool {
        let registers = self.controller.registers().clone();
        registers::disable(&*registers);
        let timeout = registers::capabilities(&*registers).map_or(NO_TIMEOUT, |it| it.timeout());
        self.until(timeout, |status| status.is_gone() || !status.is_ready())
            .await
    }

    async fn forbid_memory(&self) -> Result<(), String> {
        self.function.set_bus_mastering(false).await
    }

    fn released(&mut self) {
        self.admin.released();
    }
}
