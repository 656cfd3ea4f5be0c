//! Structures and constants of Xen's public headers, laid out as the hypervisor expects them.

pub mod console;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod pciif;
pub mod physdev;
pub mod pv;
pub mod sched;
pub mod shared_info;
pub mod xs_wire;
