//! The tasks of a vCPU, and which of them were woken.
//!
//! Each task has a bit, which its wakers set from any vCPU, and which is taken before the task is polled. So a
//! wake costs one atomic instruction beside the executor's own word, takes neither lock nor memory, and is not
//! lost if it comes during the poll. `FuturesUnordered`, which keeps woken tasks in a queue and moves each through a
//! list when it is polled, took twice as many instructions for a wake and a poll.

use crate::{BoxedTask, Spawned, VcpuSpawner};
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use bulkhead_xen::Hypervisor;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Waker};

/// Tasks whose bits are in one word.
const GROUP: usize = u64::BITS as usize;

/// A set of tasks of which only the woken ones are polled.
pub(crate) struct Tasks<H> {
    spawner: VcpuSpawner<H>,
    groups: Vec<Group<H>>,
    /// The tasks of all groups; `None` where one has ended.
    tasks: Vec<Option<Entry>>,
}

/// The bits of up to [`GROUP`] tasks.
struct Group<H> {
    woken: Arc<Woken<H>>,
    /// Which of them are taken.
    taken: u64,
}

struct Entry {
    future: BoxedTask,
    stopped: Arc<AtomicBool>,
    waker: Waker,
}

/// Which tasks of a group were woken.
struct Woken<H> {
    bits: AtomicU64,
    spawner: VcpuSpawner<H>,
}

/// Wakes one task. If the task has ended, it may wake another one, which finds then that nothing has happened.
struct TaskWaker<H> {
    group: Arc<Woken<H>>,
    bit: u64,
}

impl<H: Hypervisor> Wake for TaskWaker<H> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.group.bits.fetch_or(self.bit, Ordering::Release);
        // After that: whoever sees this sees the bit.
        self.group.spawner.wake();
    }
}

impl<H: Hypervisor> Tasks<H> {
    /// Creates an empty set. Its executor is the one that `spawner` wakes.
    pub(crate) fn new(spawner: VcpuSpawner<H>) -> Self {
        Tasks {
            spawner,
            groups: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Takes over the tasks that were spawned.
    #[cold]
    pub(crate) fn take_over(&mut self, spawned: &mut Vec<Spawned>) {
        for (task, stopped) in spawned.drain(..) {
            self.insert(task, stopped);
        }
    }

    /// Adds a task, which counts as woken. It is dropped by [`drop_stopped`](Self::drop_stopped) once `stopped` is
    /// set.
    fn insert(&mut self, future: BoxedTask, stopped: Arc<AtomicBool>) {
        let at = match self.groups.iter().position(|group| group.taken != u64::MAX) {
            Some(at) => at,
            None => {
                self.groups.push(Group {
                    woken: Arc::new(Woken {
                        bits: AtomicU64::new(0),
                        spawner: self.spawner.clone(),
                    }),
                    taken: 0,
                });
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[at];
        let number = group.taken.trailing_ones();
        let bit = 1 << number;
        group.taken |= bit;
        group.woken.bits.fetch_or(bit, Ordering::Relaxed);
        let waker = Arc::new(TaskWaker {
            group: group.woken.clone(),
            bit,
        });
        let place = at * GROUP + number as usize;
        if self.tasks.len() <= place {
            self.tasks.resize_with(place + 1, || None);
        }
        self.tasks[place] = Some(Entry {
            future,
            stopped,
            waker: waker.into(),
        });
    }

    /// Polls each woken task once, and drops those that have ended.
    pub(crate) fn poll_woken(&mut self) {
        for (number, group) in self.groups.iter_mut().enumerate() {
            if group.woken.bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut woken = group.woken.bits.swap(0, Ordering::Acquire);
            while woken != 0 {
                let bit = woken.trailing_zeros();
                woken &= woken - 1;
                let place = &mut self.tasks[number * GROUP + bit as usize];
                let Some(task) = place else { continue };
                if task.stopped.load(Ordering::Relaxed) {
                    continue;
                }
                let mut context = Context::from_waker(&task.waker);
                if task.future.as_mut().poll(&mut context).is_ready() {
                    *place = None;
                    group.taken &= !(1 << bit);
                }
            }
        }
    }

    /// Drops the tasks that were stopped.
    #[cold]
    pub(crate) fn drop_stopped(&mut self) {
        for (number, place) in self.tasks.iter_mut().enumerate() {
            if place
                .as_ref()
                .is_some_and(|task| task.stopped.load(Ordering::Relaxed))
            {
                *place = None;
                self.groups[number / GROUP].taken &= !(1 << (number % GROUP));
            }
        }
    }
}
