//! Ends the domain when a vCPU hangs, so that its guests and its operator see a domain that has ended,
//! with a reason, and not one that does nothing for ever.
//!
//! ```text
//!   vCPU 0 ──looks at──► vCPU 1 ──► … ──► the last one ──► vCPU 0      each every `interval`
//!   vCPU 0 ──sets anew──► Xen's timer (SCHEDOP_watchdog)
//! ```
//!
//! **Another vCPU** notices first: a vCPU that has *run* for a tenth of the time-out (or two seconds, see
//! [`watch_closely`]) and did not come back to its executor meanwhile hangs. Time in which it did not run does not
//! count, so neither a paused domain nor a vCPU that has to wait for a processor is taken for a hung one.
//!
//! **A timer of its own** (`cpu::tick`) interrupts the only vCPU of a PVH domain if the domain would restart after a
//! hang.
//!
//! **Xen's timer** is what is left otherwise if there is one vCPU alone, or if all hang. It counts while the domain is
//! paused, too (`domain_watchdog_timeout` in Xen only checks whether the domain is shutting down). So the time-out is
//! long; and while the first vCPU has nothing to do, the timer is off: it is set with the first event that wakes that
//! vCPU, and not for each.

#[cfg(feature = "recover")]
use crate::cpu::{exceptions::ExceptionFrame, tick};
#[cfg(feature = "recover")]
use crate::recovery::restart;
use crate::vcpu::{self, Vcpu};
use crate::{hypercall, panic};
use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::sched::{self, RunstateInfo};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

/// The interval and the limit if the domain would restart after a hang, which is then to be noticed soon.
const CLOSE_INTERVAL: Duration = Duration::from_millis(500);
#[cfg(feature = "recover")]
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Xen's time-out, in seconds; 0 for no watchdog.
static TIMEOUT: AtomicU32 = AtomicU32::new(0);
/// The number of Xen's timer; 0 while it is off.
static TIMER: AtomicU32 = AtomicU32::new(0);
/// True if a hang is to be noticed soon, because the domain would restart after it.
static CLOSELY: AtomicBool = AtomicBool::new(false);
/// True once Xen has refused the timer, which is logged once.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Starts the watchdog: from now on, each vCPU has to call [`beat`] every [`interval`]. `seconds` is the
/// time-out of Xen's timer.
pub fn start(seconds: u32) {
    TIMEOUT.store(seconds, Ordering::Relaxed);
}

/// Has vCPUs check each other every half a second, and notice one that hangs for two seconds, once the domain would
/// start again after a hang. The caller calls this before [`interval`].
#[cfg(feature = "recover")]
pub fn watch_closely() {
    CLOSELY.store(true, Ordering::Relaxed);
}

/// Has a timer interrupt the only vCPU, on which this is called, so that a hang is noticed after two seconds, once the
/// domain would start again after a hang. Does nothing on PV, where a frame that is pushed on the stack would overwrite
/// live data, without an x2APIC, or if the watchdog is off.
#[cfg(feature = "recover")]
pub fn watch_alone() {
    let on = TIMEOUT.load(Ordering::Relaxed) > 0;
    if on && tick::is_possible() {
        // SAFETY: it is possible; the rest is the caller's promise.
        unsafe { tick::start() }
    }
}

/// Called by the timer that interrupts the only vCPU, if that vCPU has not come back since the last tick.
#[cfg(feature = "recover")]
pub extern "C" fn silent(frame: &ExceptionFrame) {
    if tick::interrupted_itself(frame) {
        panic::interrupted_twice(frame);
    }
    let here = vcpu::current();
    // It is changing mappings, and has to note the outcome before it may be stopped.
    if here.changes_mappings.load(Ordering::Relaxed) {
        return;
    }
    if let Some(ran) = run_time(here.id())
        && here
            .watchdog
            .neighbour
            .hangs(here.id(), tick::rounds(), ran, limit())
    {
        panic::hangs(frame, limit());
    }
}

/// Returns the interval at which each vCPU has to call [`beat`]; `None` if the watchdog is off.
pub fn interval() -> Option<Duration> {
    let timeout = TIMEOUT.load(Ordering::Relaxed);
    let interval = Duration::from_secs(timeout.into()) / 30;
    let most = match CLOSELY.load(Ordering::Relaxed) {
        true => CLOSE_INTERVAL,
        false => interval,
    };
    (timeout > 0).then(|| interval.min(most))
}

/// Returns the time that a vCPU may run without coming back to its executor.
fn limit() -> Duration {
    let limit = Duration::from_secs(TIMEOUT.load(Ordering::Relaxed).into()) / 10;
    #[cfg(feature = "recover")]
    if (CLOSELY.load(Ordering::Relaxed) || tick::is_on()) && restart::is_enabled() {
        return limit.min(CLOSE_LIMIT);
    }
    limit
}

/// Records that the calling vCPU is alive, and checks the next one.
pub fn beat() {
    let here = vcpu::current();
    here.watchdog.beats.fetch_add(1, Ordering::Relaxed);
    if here.id() == VcpuId(0) {
        // It was woken for this beat, and perhaps once more: it is idle. A vCPU that never slept is busy.
        let idle = (1..=2).contains(&here.watchdog.wakes.swap(0, Ordering::Relaxed));
        set_timer(if idle {
            0
        } else {
            TIMEOUT.load(Ordering::Relaxed)
        });
    }
    let Some(next) = after(here.id()) else {
        return;
    };
    let beats = next.watchdog.beats.load(Ordering::Relaxed);
    if let Some(ran) = run_time(next.id())
        && here
            .watchdog
            .neighbour
            .hangs(next.id(), beats, ran, limit())
    {
        panic::hung(next.id(), limit());
    }
}

/// Returns the vCPU that comes after `id`, in turn, among those that have called [`beat`] at least once.
fn after(id: VcpuId) -> Option<&'static Vcpu> {
    let begun = |vcpu: &&Vcpu| vcpu.watchdog.beats.load(Ordering::Relaxed) > 0;
    let others = || vcpu::all().filter(begun).filter(|vcpu| vcpu.id() != id);
    others()
        .find(|vcpu| vcpu.id() > id)
        .or_else(|| others().next())
}

/// Notes that the calling vCPU has slept.
pub fn woken() {
    let here = vcpu::current();
    if here.id() == VcpuId(0) {
        // No other code writes it.
        let wakes = here.watchdog.wakes.load(Ordering::Relaxed);
        here.watchdog
            .wakes
            .store(wakes.wrapping_add(1), Ordering::Relaxed);
        let timeout = TIMEOUT.load(Ordering::Relaxed);
        if timeout > 0 && TIMER.load(Ordering::Relaxed) == 0 {
            set_timer(timeout);
        }
    }
}

/// Sets Xen's timer anew; 0 turns it off. Only the first vCPU calls this.
fn set_timer(timeout: u32) {
    let id = TIMER.load(Ordering::Relaxed);
    if (id == 0 && timeout == 0) || REFUSED.load(Ordering::Relaxed) {
        return;
    }
    let mut request = sched::Watchdog { id, timeout };
    // SAFETY: Xen reads the request.
    let result =
        unsafe { hypercall::sched_op(sched::WATCHDOG.into(), hypercall::pointer(&mut request)) };
    match result {
        Ok(new) if id == 0 => TIMER.store(new as u32, Ordering::Relaxed),
        Ok(_) if timeout == 0 => TIMER.store(0, Ordering::Relaxed),
        Ok(_) => {}
        Err(error) => {
            REFUSED.store(true, Ordering::Relaxed);
            log::warn!("Xen refuses to set a watchdog timer: {error}");
        }
    }
}

/// Returns the time for which a vCPU has run in all; `None` if Xen does not say.
pub(crate) fn run_time(vcpu: VcpuId) -> Option<Duration> {
    const RUNNING: usize = 0;
    let mut info = RunstateInfo::default();
    // SAFETY: Xen writes what it knows into `info`.
    let result = unsafe {
        hypercall::vcpu_op(
            sched::VCPUOP_GET_RUNSTATE_INFO.into(),
            vcpu.0.into(),
            hypercall::pointer(&mut info),
        )
    };
    result
        .ok()
        .map(|_| Duration::from_nanos(info.time[RUNNING]))
}
