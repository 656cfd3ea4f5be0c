//! The one vCPU that reports a failure of the domain, or hands it over to another version: all others stop for it.

use crate::hypercall;
use crate::vcpu;
use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::sched::{self, VCPUOP_DOWN};
use core::sync::atomic::{AtomicU32, Ordering};

/// The number of that vCPU plus one; 0 if there is none.
static REPORTING: AtomicU32 = AtomicU32::new(0);

/// Makes the calling vCPU the one that reports. The error is the vCPU that reports already, which may be the calling
/// one.
pub fn begin() -> Result<(), VcpuId> {
    let own = vcpu::current().id();
    match REPORTING.compare_exchange(0, own.0 + 1, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => Ok(()),
        Err(reporting) => Err(VcpuId(reporting - 1)),
    }
}

/// Returns whether another vCPU than the calling one reports. The caller then begins nothing new.
#[cfg(feature = "recover")]
pub fn is_another() -> bool {
    let reporting = REPORTING.load(Ordering::Relaxed);
    reporting != 0 && reporting != vcpu::current().id().0 + 1
}

/// Cancels the calling vCPU's report.
#[cfg(feature = "recover")]
pub fn cancel() {
    REPORTING.store(0, Ordering::SeqCst);
}

/// Yields the processor to other vCPUs (`SCHEDOP_yield`).
pub fn pause() {
    // SAFETY: takes no argument.
    let _ = unsafe { hypercall::sched_op(sched::YIELD.into(), 0) };
}

/// Stops a vCPU. It stays stopped unless another one starts it again.
pub fn stop(vcpu: VcpuId) {
    // SAFETY: takes no argument. A vCPU that does not run touches nothing.
    let _ = unsafe { hypercall::vcpu_op(VCPUOP_DOWN.into(), vcpu.0.into(), 0) };
}

/// Stops the calling vCPU for good; the domain goes on without it.
pub fn stop_this_vcpu() -> ! {
    loop {
        stop(vcpu::current().id());
    }
}
