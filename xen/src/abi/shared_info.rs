//! `xen.h` and `arch-x86/xen.h`: the page of events and time that Xen shares with a domain.
//!
//! Xen may change all of it at any time: these types only give the layout, for volatile or atomic accesses through raw
//! pointers.

/// The number of vCPUs whose `vcpu_info` fits into the shared page (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: usize = 32;

/// The number of event-channel words, of 64 ports each (`EVTCHN_2L_NR_CHANNELS` ports in all).
pub const EVENT_WORDS: usize = 64;

/// `struct vcpu_time_info`: the parameters by which system time is computed from the time stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while Xen is updating; a reader whose version changed reads again.
    pub version: u32,
    /// Padding.
    pub pad0: u32,
    /// The time stamp counter when `system_time` was taken.
    pub tsc_timestamp: u64,
    /// The system time at that moment: nanoseconds since the hypervisor started.
    pub system_time: u64,
    /// Nanoseconds per (shifted) tick of the counter, as a 0.32 fixed-point fraction.
    pub tsc_to_system_mul: u32,
    /// The left shift that is applied to the ticks first; negative for a right shift.
    pub tsc_shift: i8,
    /// `XEN_PVCLOCK_*`.
    pub flags: u8,
    /// Padding.
    pub pad1: [u8; 2],
}

/// `struct vcpu_info`: one vCPU's part of the page.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuInfo {
    /// Set by Xen when a word of `evtchn_pending_sel` gets its first bit.
    pub evtchn_upcall_pending: u8,
    /// Set while a PV vCPU wants no upcalls.
    pub evtchn_upcall_mask: u8,
    /// Padding.
    pub pad: [u8; 6],
    /// A bit for each word of `SharedInfo::evtchn_pending` that may have a new notification for this vCPU.
    pub evtchn_pending_sel: u64,
    /// The faulting address of a PV vCPU's last page fault (`arch_vcpu_info.cr2`).
    pub cr2: u64,
    /// Padding of `arch_vcpu_info`.
    pub arch_pad: u64,
    /// The clock.
    pub time: VcpuTimeInfo,
}

/// `struct shared_info`, up to the wall clock.
#[derive(Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// One for each vCPU.
    pub vcpu_info: [VcpuInfo; LEGACY_MAX_VCPUS],
    /// One bit for each port: a notification is pending.
    pub evtchn_pending: [u64; EVENT_WORDS],
    /// One bit for each port: notifications do not interrupt the vCPU.
    pub evtchn_mask: [u64; EVENT_WORDS],
    /// Version of the wall clock, as in [`VcpuTimeInfo`].
    pub wc_version: u32,
    /// Seconds since 1970 when the hypervisor started (low half).
    pub wc_sec: u32,
    /// Nanoseconds that go with it.
    pub wc_nsec: u32,
    /// High half of the seconds.
    pub wc_sec_hi: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<VcpuTimeInfo>() == 32);
    assert!(offset_of!(VcpuTimeInfo, tsc_to_system_mul) == 24);
    assert!(offset_of!(VcpuTimeInfo, tsc_shift) == 28);
    assert!(size_of::<VcpuInfo>() == 64);
    assert!(offset_of!(VcpuInfo, evtchn_pending_sel) == 8);
    assert!(offset_of!(VcpuInfo, cr2) == 16);
    assert!(offset_of!(VcpuInfo, time) == 32);
    assert!(offset_of!(SharedInfo, evtchn_pending) == 2048);
    assert!(offset_of!(SharedInfo, evtchn_mask) == 2560);
    assert!(offset_of!(SharedInfo, wc_version) == 3072);
    assert!(offset_of!(SharedInfo, wc_sec_hi) == 3084);
};
