//! The task of a controller: starts it, listens to it, resets it when it fails, and stops it.

mod given_up;
mod listening;
mod starting;

use crate::admin::{Admin, AdminError};
use crate::controller::Controller;
use crate::function::Function;
use crate::listener::Listeners;
use crate::registers;
use crate::stop::Stop;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_dma::{Refusal, leaves_before_trial};
use bulkhead_executor::{Handle, RateLimit, VcpuSpawner};
use bulkhead_xen::{DeviceStops, Hypervisor, Instant};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;
use log::Level;

/// The pause between two looks at the commands that the controller has.
const TICK: Duration = Duration::from_secs(1);
/// The same where no interrupt tells of completions.
const POLL: Duration = Duration::from_millis(1);

/// The starts that may fail one after another, and the pause before the second one; it doubles.
const STARTS: u32 = 4;
const START_AGAIN: Duration = Duration::from_secs(1);

/// A controller that works for that long after a reset has recovered. One that does not is given up after this many,
/// of which none was for a request that takes too long.
const RECOVERED: Duration = Duration::from_secs(600);
const RESETS: u32 = 5;

/// The time that a controller may take to save what is in its cache.
const SHUTS_DOWN: Duration = Duration::from_secs(10);

/// The first pause between two looks at the controller's state, and the longest one.
const FIRST_LOOK: Duration = Duration::from_micros(100);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The events after which other tasks have their turn.
const EVENTS_AT_ONCE: usize = 8;

/// The lines of the log about what a controller tells or causes by itself that come at once, and the time in which there
/// is one more.
const LINES: RateLimit = RateLimit::new(16, Duration::from_secs(60));

/// The reason why a controller is not listened to any more.
enum End {
    /// It is to be stopped for good.
    Leaves,
    /// It has failed, and is to be reset.
    Fails(String),
}

impl From<AdminError> for End {
    fn from(error: AdminError) -> Self {
        End::Fails(error.to_string())
    }
}

/// A controller, with what its task alone uses.
pub(crate) struct Life<'c, H: Hypervisor> {
    handle: Handle<H>,
    vcpus: &'c [VcpuSpawner<H>],
    stops: &'static DeviceStops,
    controller: Arc<Controller>,
    function: Rc<dyn Function<H>>,
    admin: Admin<H>,
    listeners: Listeners,
    lines: RateLimit,
    /// Commands are looked at, next at that time.
    tick: Option<Instant>,
    /// Namespaces are looked at again then, as the controller has refused to describe some for the moment.
    look_again: Option<Instant>,
}

/// Runs a controller until it is let go of.
pub(crate) async fn live<H: Hypervisor>(
    handle: Handle<H>,
    vcpus: &[VcpuSpawner<H>],
    stops: &'static DeviceStops,
    controller: Arc<Controller>,
    function: Rc<dyn Function<H>>,
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
            leaves_before_trial(&handle, &*controller, true).await;
            return controller.set_left();
        }
    };
    let mut life = Life {
        handle,
        vcpus,
        stops,
        controller,
        function,
        admin,
        listeners: Listeners::default(),
        lines: LINES,
        tick: None,
        look_again: None,
    };
    life.run().await;
    match life.stop().await {
        true => drop(registered),
        // It may still be at work: it is told again when the domain ends, which does not start again in place then.
        false => core::mem::forget(registered),
    }
    life.listeners.stop();
    life.controller.set_left();
}

impl<H: Hypervisor> Life<'_, H> {
    fn name(&self) -> &str {
        self.controller.name()
    }

    /// Logs what the controller tells or causes by itself, unless there was too much of that. The controller's name comes
    /// before the line.
    fn tell(&mut self, level: Level, line: fmt::Arguments<'_>) {
        let level = match self.lines.take(self.handle.now()) {
            true => level,
            false => Level::Debug,
        };
        log::log!(level, "nvme:{}{line}", self.name());
    }

    /// Returns when the controller is to be stopped for good.
    async fn run(&mut self) {
        let mut resets = 0;
        let mut begun = self.begin().await;
        loop {
            if let Err(refusal) = begun
                && !self.give_up(refusal).await
            {
                return;
            }
            let since = self.handle.now();
            let reason = match self.serve().await {
                End::Leaves => return,
                End::Fails(reason) => reason,
            };
            log::error!("nvme:{}: {reason}: it is reset", self.name());
            self.controller.set_ready(false);
            self.controller.count_reset();
            if self.handle.now().since(since) >= RECOVERED {
                resets = 0;
            }
            // A reset for requests that take too long counts against these alone, of which each fails at its second
            // one: otherwise a guest could have the controller given up for all others.
            let mut pairs = self.controller.pairs().iter();
            if !pairs.any(|pair| pair.lock().has_late()) {
                resets += 1;
            }
            begun = match self.halt().await && resets <= RESETS {
                true => self.begin().await,
                false => Err(Refusal::for_now(reason)),
            };
        }
    }

    /// Starts the controller, if need be again and again. The error is why it is to be given up.
    async fn begin(&mut self) -> Result<(), Refusal> {
        let mut pause = START_AGAIN;
        let mut attempt = 1;
        loop {
            let error = match self.start().await {
                Ok(()) => {
                    self.controller.set_ready(true);
                    return Ok(());
                }
                Err(error) => error,
            };
            let stopped = self.halt().await;
            if attempt == STARTS || !stopped || error.is_final() || self.controller.is_leaving() {
                return Err(Refusal {
                    reason: error.to_string(),
                    stays: error.stays(),
                });
            }
            log::warn!(
                "nvme:{}: it does not start: {error}; it is tried again",
                self.name()
            );
            self.handle.sleep(pause).await;
            attempt += 1;
            pause *= 2;
        }
    }

    /// Listens to the controller as long as it works.
    async fn serve(&mut self) -> End {
        loop {
            if self.controller.is_leaving() {
                return End::Leaves;
            }
            if let Err(end) = self.attend().await {
                return end;
            }
            self.something_happens().await;
        }
    }

    /// Does what there is to do.
    async fn attend(&mut self) -> Result<(), End> {
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
        if self.tick.is_none() && self.controller.watch().ticks() {
            for pair in self.controller.pairs() {
                pair.lock().begin_ticks(seconds(now));
            }
            self.tick = Some(now + self.pause());
        }
        let ticks = self.tick.is_some_and(|tick| tick <= now);
        if called || ticks {
            self.admin.check()?;
            self.look_at_commands().await?;
        }
        if ticks {
            self.tick = Some(now + self.pause());
            if self.is_idle() {
                let watch = self.controller.watch();
                watch.end_ticks();
                // A command that came in between has seen that there are ticks.
                match self.is_idle() {
                    true => self.tick = None,
                    false => watch.begin_ticks(),
                }
            }
        }
        if self.controller.take_asked() {
            self.read_smart().await?;
        }
        if self.look_again.is_some_and(|due| due <= now) {
            self.look_at_namespaces().await?;
        }
        Ok(())
    }

    fn pause(&self) -> Duration {
        match self.admin.is_interrupted() {
            true => TICK,
            false => POLL,
        }
    }

    fn is_idle(&self) -> bool {
        self.controller
            .pairs()
            .iter()
            .all(|pair| pair.lock().is_idle())
    }

    /// Waits for the controller, for the queue pairs, or for the next look at the commands.
    async fn something_happens(&self) {
        let due = [self.tick, self.look_again].into_iter().flatten().min();
        let mut over = pin!(OptionFuture::from(
            due.map(|due| self.handle.sleep_until(due))
        ));
        let watch = self.controller.watch();
        poll_fn(|context| {
            watch.wake_with(context.waker());
            let happened = watch.is_called()
                || (self.tick.is_none() && watch.ticks())
                || self.admin.poll_interrupted(context).is_ready()
                || matches!(over.as_mut().poll(context), Poll::Ready(Some(())));
            match happened {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Stops the controller at once. Returns whether it accesses no memory any more.
    async fn halt(&mut self) -> bool {
        for pair in self.controller.pairs() {
            pair.lock().stop();
        }
        self.tick = None;
        let registers = self.controller.registers().clone();
        registers::disable(&*registers);
        let timeout = registers::capabilities(&*registers).map_or(TICK, |it| it.timeout());
        let mut stopped = self
            .until(timeout, |status| status.is_gone() || !status.is_ready())
            .await;
        let gone = registers::status(&*registers).is_gone();
        if !stopped || gone {
            // Its configuration says that it may access no memory. If it is not even there, it cannot.
            match self.function.set_bus_mastering(false).await {
                Ok(()) => stopped = true,
                Err(error) => log::warn!("nvme:{}: {error}", self.name()),
            }
        }
        if !stopped {
            log::error!(
                "nvme:{}: it does not stop: memory that it may access stays as it is",
                self.name()
            );
            return false;
        }
        self.admin.released();
        for pair in self.controller.pairs() {
            pair.lock().quiet();
        }
        true
    }

    /// Stops the controller in order: what is in its cache is saved. Returns whether it accesses no memory any more.
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
        for pair in self.controller.pairs() {
            match halted {
                true => pair.lock().die(),
                false => pair.lock().stick(),
            }
        }
        if halted && let Err(error) = self.function.set_bus_mastering(false).await {
            log::debug!("nvme:{}: {error}", self.name());
        }
        halted
    }

    /// Looks at the controller's state until it is as wanted. Returns false if that takes too long.
    async fn until(
        &self,
        timeout: Duration,
        wanted: impl Fn(registers::ControllerStatus) -> bool,
    ) -> bool {
        let deadline = self.handle.now() + timeout;
        let mut pause = FIRST_LOOK;
        loop {
            if wanted(registers::status(&**self.controller.registers())) {
                return true;
            }
            if self.handle.now() >= deadline {
                return false;
            }
            self.handle.sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }
}

/// Returns a time in seconds.
fn seconds(time: Instant) -> u32 {
    (time.0 / 1_000_000_000) as u32
}
