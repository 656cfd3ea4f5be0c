//! `sched.h` and `vcpu.h`: blocking, shutting down, timers.

use crate::Port;

/// `SCHEDOP_yield`.
pub const YIELD: u32 = 0;
/// `SCHEDOP_block`.
pub const BLOCK: u32 = 1;
/// `SCHEDOP_shutdown`.
pub const SHUTDOWN: u32 = 2;
/// `SCHEDOP_poll`.
pub const POLL: u32 = 3;
/// `SCHEDOP_watchdog`.
pub const WATCHDOG: u32 = 6;

/// The reason why a domain ends (`SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ShutdownReason {
    /// `SHUTDOWN_poweroff`: it has ended in order.
    Poweroff = 0,
    /// `SHUTDOWN_reboot`: the toolstack is to start it anew.
    Reboot = 1,
    /// `SHUTDOWN_crash`: it has crashed.
    Crash = 3,
    /// `SHUTDOWN_watchdog`: a watchdog was not set anew in time.
    Watchdog = 4,
}

/// `struct sched_shutdown`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Shutdown {
    /// The reason.
    pub reason: ShutdownReason,
}

/// `struct sched_watchdog`: ends the domain unless it is set anew in time.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Watchdog {
    /// The watchdog's number; 0 asks for a new one, whose number Xen returns.
    pub id: u32,
    /// The time in seconds from now; 0 removes the watchdog.
    pub timeout: u32,
}

/// `struct sched_poll`: blocks the vCPU until one of some ports is pending, masked or not, or until a time.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Poll {
    /// The ports, at most 128.
    pub ports: *const Port,
    /// Their number.
    pub nr_ports: u32,
    /// System time in nanoseconds; 0 waits for ever.
    pub timeout: u64,
}

/// `VCPUOP_initialise`: with a [`pv::GuestContext`](super::pv::GuestContext), or on PVH a
/// [`hvm::VcpuContext`](super::hvm::VcpuContext).
pub const VCPUOP_INITIALISE: u32 = 0;
/// `VCPUOP_up`.
pub const VCPUOP_UP: u32 = 1;
/// `VCPUOP_down`.
pub const VCPUOP_DOWN: u32 = 2;
/// `VCPUOP_is_up`.
pub const VCPUOP_IS_UP: u32 = 3;
/// `VCPUOP_get_runstate_info`.
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// `VCPUOP_stop_periodic_timer`.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// `VCPUOP_set_singleshot_timer`.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// `VCPUOP_send_nmi`.
pub const VCPUOP_SEND_NMI: u32 = 11;

/// `RUNSTATE_runnable`: the vCPU waits for a processor. `RUNSTATE_running` is smaller; in the greater states,
/// `RUNSTATE_blocked` and `RUNSTATE_offline`, Xen does nothing on the vCPU's behalf.
pub const RUNSTATE_RUNNABLE: u32 = 1;

/// `struct vcpu_runstate_info`: the state of a vCPU, and the time spent in each.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`.
    pub state: u32,
    /// The system time at which it entered the state, in nanoseconds.
    pub state_entry_time: u64,
    /// Nanoseconds that it has spent running, waiting for a processor, blocked, and offline.
    pub time: [u64; 4],
}

/// `struct vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// System time in nanoseconds.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<Shutdown>() == 4);
    assert!(size_of::<Poll>() == 24);
    assert!(size_of::<Watchdog>() == 8);
    assert!(size_of::<RunstateInfo>() == 48);
    assert!(size_of::<SetSingleshotTimer>() == 16);
};
