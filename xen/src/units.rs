//! Types for numbers with a meaning: domains, grants, ports, frames and times are never bare integers.

use core::fmt;
use core::num::NonZeroU64;
use core::time::Duration;

/// The number of bytes in a page, and so in a grant, which is of a whole frame (grant_table.h).
pub const PAGE_SIZE: usize = 4096;
/// The base-2 logarithm of [`PAGE_SIZE`].
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
    /// The handle of a mapped grant (`grant_handle_t`, grant_table.h); needed to unmap it.
    GrantHandle(u32)
}
number! {
    /// A local event-channel port (`evtchn_port_t`, event_channel.h). Port 0 is never valid.
    Port(u32)
}
number! {
    /// A guest frame number (`gfn_t`, Xen's include/xen/mm.h): the name of one of a domain's own pages in
    /// hypercalls and grant entries. In a PVH domain it is guest-physical; in a PV domain it is the page's
    /// [`Mfn`], as Xen translates nothing there.
    Gfn(u64)
}
number! {
    /// A page frame number (`pfn`): a domain's own number of one of its pages, which the page keeps whatever frame is
    /// behind it. In a PVH domain it is the page's [`Gfn`]; for PV domains, Xen only keeps the pfn of each machine
    /// frame (the M2P).
    Pfn(u64)
}
number! {
    /// A machine frame number (`mfn_t`): a page of the host's memory. Only PV domains see any, in their
    /// page tables and in the list of the frames that they own.
    Mfn(u64)
}
number! {
    /// A physical interrupt, by its number in this domain (`pirq`, event_channel.h).
    Pirq(u32)
}
number! {
    /// A virtual CPU of this domain, counted from 0.
    VcpuId(u32)
}

impl Mfn {
    /// Returns the bus address of the first byte of a page of a PV domain: the tables that Xen keeps for
    /// the domain's devices map each machine frame to itself (`_get_page_type`, Xen's arch/x86/mm.c).
    pub const fn dma_addr(self) -> Option<DmaAddr> {
        DmaAddr::new(self.0 << PAGE_SHIFT)
    }
}

impl From<Mfn> for Gfn {
    /// Returns the guest frame number of a page of a PV domain.
    fn from(frame: Mfn) -> Gfn {
        Gfn(frame.0)
    }
}

/// A bus address, in bytes: the address at which a device that was given to this domain reaches a byte of memory. It is
/// never 0, because Xen gives no domain the host's first page.
///
/// A bus address is neither the address at which this domain sees the byte nor made from a [`Gfn`]: for own memory
/// [`DmaMemory`](crate::DmaMemory) knows it, for a mapped grant
/// [`MapGrantRef::dma_addr`](crate::abi::grant_table::MapGrantRef::dma_addr). The bytes of one page are contiguous on
/// the bus; pages that are contiguous in this domain need not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DmaAddr(NonZeroU64);

impl DmaAddr {
    /// Returns that bus address; `None` for 0.
    #[inline]
    pub const fn new(address: u64) -> Option<DmaAddr> {
        match NonZeroU64::new(address) {
            Some(address) => Some(DmaAddr(address)),
            None => None,
        }
    }

    /// Returns the address as a number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Returns the address of the byte that is `bytes` bytes further on, in the same page.
    #[inline]
    pub const fn offset(self, bytes: usize) -> DmaAddr {
        DmaAddr(self.0.saturating_add(bytes as u64))
    }
}

impl fmt::Display for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl DomId {
    /// The first domain, which Xen itself starts.
    pub const DOM0: DomId = DomId(0);
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
    /// Returns the time from `earlier` to this point; zero if `earlier` is later.
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
