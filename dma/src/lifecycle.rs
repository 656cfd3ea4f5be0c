//! The task of a device, as far as it is the same for all drivers: starts the device, resets it when it fails, gives it
//! up for a time if that does not help, and stops it.

use crate::given_up::give_up;
use crate::{DeviceQueueState, HardwareQueue, PassedThrough, Refusal, Ticks, seconds};
use alloc::string::{String, ToString};
use bulkhead_executor::Handle;
use bulkhead_xen::{Hypervisor, Instant};
use core::fmt;
use core::time::Duration;
use log::Level;
use spin::Mutex;

/// The number of attempts to start a device before it is given up, and the pause before the second one; it doubles.
const STARTS: u32 = 4;
const START_AGAIN: Duration = Duration::from_secs(1);

/// A device that works for [`RECOVERED`] after a reset has recovered. One that has not recovered is given up when it
/// fails after [`RESETS`] resets. Resets for commands that take too long do not count.
const RECOVERED: Duration = Duration::from_secs(600);
const RESETS: u32 = 5;

/// The first pause between two looks at a device's state, and the longest one.
const FIRST_LOOK: Duration = Duration::from_micros(100);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The reason why a device does not start.
pub trait StartFailure: fmt::Display {
    /// Returns whether it is of no use to try again at once.
    fn is_final(&self) -> bool;

    /// Returns whether it is of no use to try again later, either.
    fn stays(&self) -> bool;
}

/// The task of a device. A driver implements what precedes [`run`](Self::run), and calls the rest.
#[allow(
    async_fn_in_trait,
    reason = "a task stays on the first vCPU, and need not be Send"
)]
pub trait DriverTask {
    /// The hypervisor of the first vCPU.
    type Hypervisor: Hypervisor;
    /// A queue of the device.
    type Queue: HardwareQueue;
    /// The reason why the device does not start.
    type StartError: StartFailure;

    /// The kind of device, which precedes its name in lines of the log.
    const KIND: &'static str;
    /// The target that these lines have.
    const LOG_TARGET: &'static str;
    /// What the log says of a device that does not stop.
    const DOES_NOT_STOP: &'static str;

    /// Returns the handle of the first vCPU.
    fn handle(&self) -> &Handle<Self::Hypervisor>;

    /// Returns the state of the device.
    fn device(&self) -> &PassedThrough;

    /// Returns the queues of the device; none before it has started.
    fn queues(&self) -> &[Mutex<Self::Queue>];

    /// Returns when the commands are checked.
    fn ticks(&mut self) -> &mut Ticks;

    /// Returns whether an interrupt tells of completions.
    fn is_interrupted(&self) -> bool;

    /// Returns whether the device is not there any more.
    fn is_gone(&self) -> bool;

    /// Starts the device, and gives it the commands again that it had before a reset. This is one attempt.
    async fn try_start(&mut self) -> Result<(), Self::StartError>;

    /// Handles what has happened. The error is the reason for which the device is to be reset.
    async fn attend(&mut self) -> Result<(), String>;

    /// Waits until there is something to handle.
    async fn something_happens(&self);

    /// Has the device stop at once, and waits for that. Returns whether it says that it has stopped.
    async fn reset(&mut self) -> bool;

    /// Forbids the device to read and write memory. The error is a sentence for the operator.
    async fn forbid_memory(&self) -> Result<(), String>;

    /// Notes that the device accesses no memory any more. Its [queues](Self::queues) are told so by the caller.
    fn released(&mut self);

    /// Starts and serves the device, and resets it when it fails. Returns when it is to be stopped for good.
    async fn run(&mut self) {
        let mut resets = 0;
        let mut begun = begin(self).await;
        loop {
            if let Err(refusal) = begun
                && !give_up(self, refusal).await
            {
                return;
            }
            let since = self.handle().now();
            let Err(reason) = serve(self).await else {
                return;
            };
            self.log(Level::Error, format_args!("{reason}: it is reset"));
            self.device().set_ready(false);
            self.device().count_reset();
            if self.handle().now().since(since) >= RECOVERED {
                resets = 0;
            }
            // A reset because of commands that take too long counts only against these, each of which fails at its
            // second reset: otherwise a guest could have the device given up for all others.
            let mut queues = self.queues().iter();
            if !queues.any(|queue| queue.lock().has_late()) {
                resets += 1;
            }
            begun = match self.halt().await && resets <= RESETS {
                true => begin(self).await,
                false => Err(Refusal::for_now(reason)),
            };
        }
    }

    /// Stops the device at once. Returns whether it accesses no memory any more.
    async fn halt(&mut self) -> bool {
        for queue in self.queues() {
            queue.lock().stop();
        }
        self.ticks().end();
        let mut stopped = self.reset().await;
        if !stopped || self.is_gone() {
            // Without bus mastering it cannot access memory, whether or not it still answers.
            match self.forbid_memory().await {
                Ok(()) => stopped = true,
                Err(error) => self.log(Level::Warn, format_args!("{error}")),
            }
        }
        if !stopped {
            let what = Self::DOES_NOT_STOP;
            self.log(
                Level::Error,
                format_args!("{what}: memory that it may access stays as it is"),
            );
            return false;
        }
        self.released();
        for queue in self.queues() {
            queue.lock().quiet();
        }
        true
    }

    /// Looks at the device's state until it is as wanted. Returns false if that takes longer than `timeout`.
    async fn look_until(&self, timeout: Duration, is_as_wanted: impl Fn() -> bool) -> bool {
        let deadline = self.handle().now() + timeout;
        let mut pause = FIRST_LOOK;
        loop {
            if is_as_wanted() {
                return true;
            }
            if self.handle().now() >= deadline {
                return false;
            }
            self.handle().sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Returns whether a check of the commands is due at the time `now`. Begins the checks if there are commands now.
    fn is_check_due(&mut self, now: Instant) -> bool {
        let has_commands = self.device().watch().ticks();
        if has_commands && self.ticks().next().is_none() {
            for queue in self.queues() {
                queue.lock().begin_ticks(seconds(now));
            }
            let is_interrupted = self.is_interrupted();
            self.ticks().set(now, is_interrupted);
        }
        self.ticks().next().is_some_and(|next| next <= now)
    }

    /// Notes that a check that was due at the time `now` is over. Ends the checks if there are no commands.
    fn checked(&mut self, now: Instant) {
        let is_interrupted = self.is_interrupted();
        self.ticks().set(now, is_interrupted);
        if is_idle(self.queues()) {
            self.device().watch().end_ticks();
            // A command that was sent in between found the ticks still on, and has not called this task.
            match is_idle(self.queues()) {
                true => self.ticks().end(),
                false => self.device().watch().begin_ticks(),
            }
        }
    }

    /// Fails all requests to a device that does not work. While it may still access their memory, requests that it has
    /// stay pending, and only new ones fail.
    fn fail_requests(&self) {
        for queue in self.queues() {
            let mut queue = queue.lock();
            match queue.state() {
                DeviceQueueState::Quiet => queue.die(),
                _ => queue.set_stuck(),
            }
        }
    }

    /// Logs a line about the device.
    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        let name = self.device().name();
        log::log!(target: Self::LOG_TARGET, level, "{}:{name}: {line}", Self::KIND);
    }
}

/// Starts a device, in up to [`STARTS`] attempts. The error is the reason for which it is to be given up.
async fn begin<T: DriverTask + ?Sized>(task: &mut T) -> Result<(), Refusal> {
    let mut pause = START_AGAIN;
    let mut attempt = 1;
    loop {
        let error = match task.try_start().await {
            Ok(()) => {
                task.device().set_ready(true);
                return Ok(());
            }
            Err(error) => error,
        };
        let stopped = task.halt().await;
        if attempt == STARTS || !stopped || error.is_final() || task.device().is_leaving() {
            return Err(Refusal {
                reason: error.to_string(),
                stays: error.stays(),
            });
        }
        task.log(
            Level::Warn,
            format_args!("it does not start: {error}; it is tried again"),
        );
        task.handle().sleep(pause).await;
        attempt += 1;
        pause *= 2;
    }
}

/// Serves a device for as long as it works, and until it is to be stopped for good. The error is the reason for which
/// it is to be reset.
async fn serve<T: DriverTask + ?Sized>(task: &mut T) -> Result<(), String> {
    while !task.device().is_leaving() {
        task.attend().await?;
        task.something_happens().await;
    }
    Ok(())
}

fn is_idle(queues: &[Mutex<impl HardwareQueue>]) -> bool {
    queues.iter().all(|queue| queue.lock().is_idle())
}
