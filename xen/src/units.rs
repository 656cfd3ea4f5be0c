//! Numbers with a meaning: domains, grants, ports, frames and times never pass as bare integers.

use core::fmt;
use core::time::Duration;

/// Bytes in a page, and so in a grant (`xen/include/public/grant_table.h` grants whole frames).
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A domain's number (`domid_t`, xen.h). 0 is dom0.
    DomId(u16)
}
number! {
    /// A grant reference (`grant_ref_t`, grant_table.h): an index into the granting domain's table.
    GrantRef(u32)
}
number! {
    /// What Xen hands out for a mapped grant (`grant_handle_t`, grant_table.h); needed to unmap it.
    GrantHandle(u32)
}
number! {
    /// A local event-channel port (`evtchn_port_t`, event_channel.h). Port 0 is never valid.
    Port(u32)
}
number! {
    /// A page frame as Xen takes it in hypercalls and grant entries: a guest frame number (gfn) in
    /// a PVH domain, a machine frame number (mfn) in a PV domain.
    Frame(u64)
}
number! {
    /// A virtual CPU of this domain, counted from 0.
    VcpuId(u32)
}

impl DomId {
    /// The domain that makes the call (`DOMID_SELF`, xen.h).
    pub const SELF: DomId = DomId(0x7FF0);
    /// Domain numbers from here on are reserved (`DOMID_FIRST_RESERVED`, xen.h); no frontend has one.
    pub const FIRST_RESERVED: DomId = DomId(0x7FF0);
}

/// A point on the domain's monotonic clock: nanoseconds since the hypervisor started
/// (Xen's "system time", `struct vcpu_time_info`, xen.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The time from `earlier` to this point; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, delay: Duration) -> Instant {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}
