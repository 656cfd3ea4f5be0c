//! Xen's public ABI as Rust types, and the traits through which the hypervisor is called.
//!
//! Drivers call Xen through the trait [`Hypervisor`]. The unikernel's runtime implements it with hypercalls; the
//! simulated Xen (crate `bulkhead-xen-sim`) implements it in memory, so that every driver can be tested on a host
//! without Xen.
//!
//! ```text
//!   blkback   grant   ring   xenstore-client   executor
//!        \      |       |        |             /
//!         +-----+--- Hypervisor (this crate) -+
//!               /                    \
//!    kernel: hypercalls        xen/sim: a Xen in memory
//! ```
//!
//! The ABI follows the public headers of Xen (Debian package libxen-dev, `/usr/include/xen`);
//! each type names the header that it comes from.
//!
//! ```
//! use bulkhead_xen::{DomId, Errno, GrantRef};
//!
//! let frontend = DomId(5);
//! assert_eq!(frontend.to_string(), "5");
//! assert_eq!(GrantRef(17).to_string(), "17");
//! assert_eq!(Errno::from_return(-22), Err(Errno::INVAL));
//! ```
//!
//! What only some of the code needs is in traits of its own: [`Reservation`], [`Balloon`] and [`FrameTransfer`] for the
//! domain's memory, [`Mmio`], [`Interrupts`] and [`DmaMemory`] for devices that were given to the domain.
//!
//! Read next: [`hypervisor`] for Xen's services, [`abi`] for the types that it uses.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod abi;
mod balloon;
mod device_stops;
mod dma;
mod error;
pub mod hypervisor;
mod interrupts;
mod kept_ports;
mod registers;
mod reservation;
mod transfer;
mod units;

pub use balloon::Balloon;
pub use device_stops::{DeviceStops, StopDevice, StopRegistration, Stopped, TooManyDevices};
pub use dma::DmaMemory;
pub use error::{Errno, GrantStatus};
pub use hypervisor::{ForeignRegion, Hypervisor, StoreRing};
pub use interrupts::Interrupts;
pub use kept_ports::KeptPorts;
pub use registers::{Mmio, Registers, is_register};
pub use reservation::{GrantedBefore, Reservation};
pub use transfer::{FrameTransfer, TransferRequest};
pub use units::{
    DmaAddr, DomId, Gfn, GrantHandle, GrantRef, Instant, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, Pirq,
    Port, VcpuId,
};
