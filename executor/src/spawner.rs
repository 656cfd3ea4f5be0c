//! Access to an executor from other vCPUs: they wake its tasks, and send it work.

use crate::Handle;
use crate::sleep_state::SleepState;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, VcpuId};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use spin::Mutex;

type Work<H> = Box<dyn FnOnce(&Handle<H>) + Send>;

/// Sends work to the executor of one vCPU, from any vCPU. Clones are of the same executor.
///
/// ```
/// # fn example<H: bulkhead_xen::Hypervisor>(first: H, start: impl FnOnce(Box<dyn FnOnce() + Send>)) {
/// use bulkhead_executor::{Executor, VcpuSpawner};
/// use bulkhead_xen::VcpuId;
///
/// let second = VcpuSpawner::new(first.clone(), VcpuId(1));
/// let its_own = second.clone();
/// // Runs on the second vCPU, with that one's handle on the hypervisor:
/// start(Box::new(move || Executor::of(&its_own, first).run_until(|| false)));
///
/// second.send(|handle| {
///     handle.spawn(async { log::info!("a task of the second vCPU") });
/// });
/// # }
/// ```
pub struct VcpuSpawner<H>(Arc<Shared<H>>);

impl<H> Clone for VcpuSpawner<H> {
    fn clone(&self) -> Self {
        VcpuSpawner(self.0.clone())
    }
}

struct Shared<H> {
    hypervisor: H,
    vcpu: VcpuId,
    sleep_state: SleepState,
    /// True if work may have been sent.
    sent: AtomicBool,
    work: Mutex<Vec<Work<H>>>,
}

impl<H: Hypervisor> VcpuSpawner<H> {
    /// Announces the executor of `vcpu` before it exists. `hypervisor` is any vCPU's.
    pub fn new(hypervisor: H, vcpu: VcpuId) -> Self {
        VcpuSpawner(Arc::new(Shared {
            hypervisor,
            vcpu,
            sleep_state: SleepState::new(),
            sent: AtomicBool::new(false),
            work: Mutex::default(),
        }))
    }

    /// Returns the vCPU of the executor.
    pub fn vcpu(&self) -> VcpuId {
        self.0.vcpu
    }

    /// Runs `work` on that vCPU, soon. `work` is [`Send`]; the tasks that it spawns need not be, for they
    /// stay there. Takes a lock that the vCPU also takes when work was sent: not for the data path.
    pub fn send(&self, work: impl FnOnce(&Handle<H>) + Send + 'static) {
        self.0.work.lock().push(Box::new(work));
        self.0.sent.store(true, Ordering::Release);
        self.wake();
    }

    /// Runs the work that was sent.
    #[inline]
    pub(crate) fn receive(&self, handle: impl FnOnce() -> Handle<H>) {
        if self.0.sent.load(Ordering::Relaxed) && self.0.sent.swap(false, Ordering::Acquire) {
            let handle = handle();
            let sent = core::mem::take(&mut *self.0.work.lock());
            for work in sent {
                work(&handle);
            }
        }
    }

    pub(crate) fn sleep_state(&self) -> &SleepState {
        &self.0.sleep_state
    }

    /// Returns a waker of the executor itself, for none of its tasks.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// Records that some task can make progress, and has the vCPU woken for that if it sleeps.
    #[inline]
    pub(crate) fn wake(&self) {
        self.0.wake_up();
    }
}

impl<H: Hypervisor> Shared<H> {
    #[inline]
    fn wake_up(&self) {
        if self.sleep_state.wake() {
            self.hypervisor.wake_vcpu(self.vcpu);
        }
    }
}

impl<H: Hypervisor> Wake for Shared<H> {
    fn wake(self: Arc<Self>) {
        self.wake_up();
    }
}
