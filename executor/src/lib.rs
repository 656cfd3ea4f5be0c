//! Async tasks woken by event channels and timers, with one executor for each vCPU.
//!
//! A driver domain waits for many things at once: each disk's event channel, xenstore, a timer.
//! Each wait is a task, and one [`Executor`] per vCPU polls those whose wait is over, then blocks
//! the vCPU in the hypervisor until the next notification or deadline. Nothing is ever
//! interrupted: notifications are taken off the shared bitmaps between two polls and nowhere else.
//!
//! ```text
//!   Hypervisor::take_pending ──► ports ──┐
//!   Hypervisor::now ───────────► timers ─┼─► wakers ─► woken tasks are polled
//!   Handle::spawn ─────────────► inbox ──┤                    │ none left
//!   VcpuSpawner::send (other vCPUs) ► work ───┘                    │
//!                                                             ▼
//!                                             Hypervisor::block(next deadline)
//! ```
//!
//! ```
//! # fn example<H: bulkhead_xen::Hypervisor>(hypervisor: H) {
//! use bulkhead_executor::Executor;
//! use core::time::Duration;
//!
//! let mut executor = Executor::new(hypervisor);
//! let handle = executor.handle();
//! handle.clone().spawn(async move {
//!     handle.sleep(Duration::from_millis(100)).await;
//!     log::info!("a tenth of a second later");
//! });
//! executor.run_until_idle();
//! # }
//! ```
//!
//! A task stays on the vCPU where it was spawned, so it needs no lock and need not be [`Send`].
//! Wakers work from every vCPU: an executor that sleeps is interrupted; one that is awake sees by itself that
//! it was woken.
//!
//! Read next: [`Handle`], which tasks hold; [`EventChannel`]; [`Flag`] and [`Signal`] between tasks of a
//! vCPU; [`VcpuSpawner`] and [`Handover`] for the other vCPUs.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod block_cost;
mod flag;
mod handover;
mod ports;
mod rate_limit;
mod sleep_state;
mod spawner;
mod sync;
mod tasks;
mod timers;
mod waiters;

pub use flag::{Flag, Signal};
pub use handover::Handover;
pub use ports::EventChannel;
pub use rate_limit::RateLimit;
pub use spawner::VcpuSpawner;
pub use timers::Sleep;
pub use waiters::Waiters;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, Instant, Port};
use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Poll, Waker};
use core::time::Duration;

type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;

/// A task that was spawned, and the flag that stops it.
type Spawned = (BoxedTask, Arc<AtomicBool>);

/// State that a vCPU's tasks share.
struct Core<H> {
    hypervisor: H,
    ports: ports::Ports,
    timers: timers::Timers,
    block_cost: block_cost::BlockCost,
    /// Tasks that were spawned and not yet taken over by the executor.
    inbox: RefCell<Vec<Spawned>>,
    /// True if a task was stopped that has not been dropped yet.
    any_stopped: Arc<AtomicBool>,
    spawner: VcpuSpawner<H>,
}

/// Runs the tasks of one vCPU.
pub struct Executor<H: Hypervisor> {
    core: Rc<Core<H>>,
    tasks: tasks::Tasks<H>,
}

impl<H: Hypervisor> Executor<H> {
    /// Makes an executor without tasks, for the vCPU to which `hypervisor` belongs.
    pub fn new(hypervisor: H) -> Self {
        let spawner = VcpuSpawner::new(hypervisor.clone(), hypervisor.vcpu());
        Self::of(&spawner, hypervisor)
    }

    /// Makes the executor that other vCPUs know already. `hypervisor` is that of its vCPU.
    pub fn of(spawner: &VcpuSpawner<H>, hypervisor: H) -> Self {
        debug_assert_eq!(
            spawner.vcpu(),
            hypervisor.vcpu(),
            "an executor on another vCPU"
        );
        Executor {
            core: Rc::new(Core {
                hypervisor,
                ports: ports::Ports::default(),
                timers: timers::Timers::default(),
                block_cost: block_cost::BlockCost::default(),
                inbox: RefCell::default(),
                any_stopped: Arc::default(),
                spawner: spawner.clone(),
            }),
            tasks: tasks::Tasks::new(spawner.clone()),
        }
    }

    /// Returns the means by which other vCPUs send work to this executor.
    pub fn spawner(&self) -> VcpuSpawner<H> {
        self.core.spawner.clone()
    }

    /// Returns the handle by which tasks spawn others and wait.
    pub fn handle(&self) -> Handle<H> {
        Handle {
            core: self.core.clone(),
        }
    }

    /// Runs tasks until none can make progress, without ever blocking. Returns whether any task
    /// was polled.
    pub fn run_until_idle(&mut self) -> bool {
        self.run_while(&|| true)
    }

    /// Runs tasks until none can make progress or `more` returns false.
    fn run_while(&mut self, more: &dyn Fn() -> bool) -> bool {
        let core = &self.core;
        let mut polled = false;
        core.spawner.sleep_state().end_sleep();
        loop {
            core.hypervisor
                .take_pending(&mut |port| core.ports.notify(port));
            core.timers.fire(|| core.hypervisor.now());
            core.spawner.receive(|| Handle { core: core.clone() });
            if !more() || !core.spawner.sleep_state().take() {
                return polled;
            }
            polled = true;
            // Spawning a task and stopping one count as a wake.
            if !core.inbox.borrow().is_empty() {
                self.tasks.take_over(&mut core.inbox.borrow_mut());
            }
            let any_stopped = &core.any_stopped;
            if any_stopped.load(Ordering::Relaxed) && any_stopped.swap(false, Ordering::Acquire) {
                self.tasks.drop_stopped();
            }
            self.tasks.poll_woken();
        }
    }

    /// Runs tasks until `done` returns true, blocking the vCPU whenever no task can run.
    pub fn run_until(&mut self, done: impl Fn() -> bool) {
        self.run_until_done(&done);
    }

    /// Does the same in code that is not compiled for each type of `done`.
    fn run_until_done(&mut self, done: &dyn Fn() -> bool) {
        loop {
            // A task that polls without sleeping does not keep the executor from ending.
            self.run_while(&|| !done());
            if done() {
                return;
            }
            self.sleep();
        }
    }

    /// Blocks the vCPU until a notification, the next deadline, or a wake from another vCPU;
    /// returns at once if some task was woken since [`run_until_idle`](Self::run_until_idle).
    pub fn sleep(&mut self) {
        if self.core.spawner.sleep_state().begin_sleep() {
            let core = &self.core;
            let deadline = core.timers.next();
            let run_time = || core.hypervisor.run_time();
            let measurement = core.block_cost.begin(run_time);
            if !core.hypervisor.block(deadline) {
                return;
            }
            if let Some(measurement) = measurement {
                core.block_cost.end(&measurement, run_time());
            }
            if let Some(deadline) = deadline {
                core.timers.slept(deadline, core.hypervisor.now());
            }
        }
    }

    /// Returns the earliest time at which a task wants to be woken.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.core.timers.next()
    }
}

/// A task's access to its vCPU's executor, and through it to the hypervisor. Cloning is cheap.
pub struct Handle<H> {
    core: Rc<Core<H>>,
}

impl<H> Clone for Handle<H> {
    fn clone(&self) -> Self {
        Handle {
            core: self.core.clone(),
        }
    }
}

impl<H: Hypervisor> Handle<H> {
    /// Starts a task. It runs until it ends, or until it is stopped through the returned [`Task`].
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> Task {
        self.spawn_boxed(Box::pin(task))
    }

    /// Does the same in code that is not compiled for each type of task.
    fn spawn_boxed(&self, task: BoxedTask) -> Task {
        let stopped = Arc::new(AtomicBool::new(false));
        self.core.inbox.borrow_mut().push((task, stopped.clone()));
        self.core.spawner.wake();
        Task {
            stopped,
            any_stopped: self.core.any_stopped.clone(),
            waker: self.core.spawner.waker(),
        }
    }

    /// Returns the means by which other vCPUs send work to the executor.
    pub fn spawner(&self) -> VcpuSpawner<H> {
        self.core.spawner.clone()
    }

    /// Returns the hypervisor, as this vCPU calls it.
    pub fn hypervisor(&self) -> &H {
        &self.core.hypervisor
    }

    /// Returns the time, by a clock that never goes back.
    pub fn now(&self) -> Instant {
        self.core.hypervisor.now()
    }

    /// Returns the delay with which a sleep of this vCPU ends, by the last ones. `None` until the vCPU has
    /// slept until a deadline.
    pub fn wakeup_latency(&self) -> Option<Duration> {
        self.core.timers.wakeup_latency()
    }

    /// Returns the processor time that it takes to block this vCPU and wake it, by the last sleeps that were
    /// measured. `None` until it has slept, and if Xen does not account for it.
    pub fn block_cost(&self) -> Option<Duration> {
        self.core.block_cost.get()
    }

    /// Returns how many times longer than 64 µs a wake-up takes on this machine, from 1 to 16: 1 if that is not known.
    /// What is worth waiting for to save a wake-up is longer in proportion.
    pub fn wakeup_scale(&self) -> u32 {
        let latency = self.core.timers.slower_latency();
        block_cost::scale(latency.max(self.block_cost()))
    }

    /// Takes over a bound port: its notifications wake the task that waits for them, and dropping the
    /// channel closes it.
    pub fn event_channel(&self, port: Port) -> EventChannel<H> {
        EventChannel::new(self.core.clone(), port)
    }

    /// Waits until a time.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep<H> {
        Sleep::new(self.core.clone(), deadline)
    }

    /// Waits for a span of time.
    pub fn sleep(&self, span: Duration) -> Sleep<H> {
        self.sleep_until(self.now() + span)
    }

    /// Gives every other task that can run its turn.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        core::future::poll_fn(|context| {
            if core::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// A spawned task. Dropping this lets the task run on.
#[derive(Debug)]
pub struct Task {
    stopped: Arc<AtomicBool>,
    any_stopped: Arc<AtomicBool>,
    /// The executor's.
    waker: Waker,
}

impl Task {
    /// Stops the task at the place where it waits; everything it owns is dropped before the
    /// executor goes idle again.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Whoever sees this sees the other. The wake carries it over to the executor's vCPU.
        self.any_stopped.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }
}
