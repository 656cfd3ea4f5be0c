//! The argument of `main`.

use crate::domain::GuestType;
use crate::hypervisor::Hypercalls;
#[cfg(feature = "recover")]
use crate::recovery::record::Record;
#[cfg(feature = "recover")]
use crate::recovery::upgrade::Before;
#[cfg(feature = "recover")]
use alloc::string::String;
use bulkhead_xen::{DeviceStops, Instant, Port, StoreRing, VcpuId};
use core::ptr::NonNull;

/// A module that the builder loaded with the kernel (`ramdisk=`): ordinary, writable memory.
#[derive(Debug)]
pub struct Module {
    /// Its first byte, page-aligned.
    pub start: NonNull<u8>,
    /// Its length in bytes.
    pub len: usize,
    /// Its own command line; empty if there is none (xl gives none).
    pub command_line: heapless::String<128>,
}

// SAFETY: the memory belongs to the owner of the `Module` alone.
unsafe impl Send for Module {}

/// The list of modules.
pub type Modules = heapless::Vec<Module, 8>;

/// The argument of `main`: the domain, ready for use.
#[derive(Debug)]
pub struct Machine {
    /// The hypervisor.
    pub hypervisor: Hypercalls,
    /// The way in which the domain was booted.
    pub guest_type: GuestType,
    /// The domain's command line.
    pub command_line: &'static str,
    /// The modules that the builder loaded beside the kernel.
    pub modules: Modules,
    /// This domain's end of the xenstore ring.
    pub store: StoreRing,
    /// The console's port, notified when something was typed: see [`crate::logger::read`].
    pub console: Option<Port>,
    /// The registry of devices: drivers register their devices here, so that these are stopped before the domain ends,
    /// unless Xen or the toolstack ends it.
    pub devices: &'static DeviceStops,
    /// The time at which the domain's first instruction ran.
    pub started: Instant,
    /// The number of vCPUs of the domain, including the one that runs `main`.
    pub vcpus: u32,
    /// The boot before this one in the same domain, if there was one.
    #[cfg(feature = "recover")]
    pub restarted: Option<Restarted>,
}

/// The boot before this one in the same domain.
#[cfg(feature = "recover")]
#[derive(Debug)]
pub struct Restarted {
    /// Its outcome.
    pub before: Before,
    /// The number of restarts after crashes since the domain was built.
    pub number: u32,
    /// The number of boots before this one since the domain was built.
    pub boots: u32,
    /// The report of its failure, if it has failed.
    pub report: String,
}

#[cfg(feature = "recover")]
impl From<&Record> for Restarted {
    fn from(record: &Record) -> Restarted {
        Restarted {
            before: Before::of(record.phase(), record.hand_over()),
            number: record.restarts(),
            boots: record.boots(),
            report: record.report().collect(),
        }
    }
}

impl Machine {
    /// Returns the domain's vCPUs except the first, on which `main` runs.
    pub fn other_vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        (1..self.vcpus).map(VcpuId)
    }
}
