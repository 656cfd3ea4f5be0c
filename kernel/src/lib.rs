//! The unikernel runtime: PVH and PV boot, memory, events, time, console.
//!
//! One ELF, booted by `xl create` as `type="pvh"` or `type="pv"`. The runtime brings the domain
//! up, hands a `Machine` to the binary's `main`, and ends the domain with the reason that `main`
//! returns:
//!
//! ```
//! # #[cfg(feature = "unikernel")]
//! # mod binary {
//! use bulkhead_kernel::{Machine, ShutdownReason};
//!
//! bulkhead_kernel::entry!(main);
//!
//! fn main(machine: Machine) -> ShutdownReason {
//!     log::info!("{} modules", machine.modules.len());
//!     ShutdownReason::Poweroff
//! }
//! # }
//! ```
//!
//! ```text
//!   boot (entry ──> pvh | pv | smp) ──> machine::Machine ──> main
//!            │
//!   hypervisor::Hypercalls (bulkhead_xen::Hypervisor by hypercalls)   reservation   transfer   grants
//!            │                                                        registers   interrupts
//!            │
//!   watchdog ──> panic ──> reporter   devices   logger (the console behind log)   recovery (starting again in place)
//!            │
//!   memory   domain   cpu   event_channels   vcpu   time   hypercall
//! ```
//!
//! A module needs only modules below or beside it, and none that needs it.
//!
//! No Rust code is interrupted by events: upcalls are masked, or held back, except in
//! [`Hypervisor::block`](bulkhead_xen::Hypervisor::block), which is assembly. An ordinary call takes the pending
//! notifications. So no code is re-entered, and compiled code may use the red zone below its stack pointer. The other
//! vCPUs run what `start_vcpus` gives them in the same way. Only on PVH may Rust code be interrupted: by an NMI; and
//! if there is one vCPU (feature `recover`), by the watchdog's timer, and by an upcall that Xen was about to raise when
//! upcalls were held back. Their handlers have stacks of their own, and touch
//! nothing that the interrupted code uses, unless they end it for good.
//!
//! Without the feature `unikernel`, only the modules that need no hypervisor are compiled, so that they can be tested
//! on a host.
//!
//! Read next: `boot`, the start of the domain; [`memory`], the layout of its memory; and `README.md`, the building and
//! linking of a binary.

#![cfg_attr(not(test), no_std)]

#[cfg(feature = "unikernel")]
extern crate alloc;

pub mod command_line;
pub mod console;
pub mod cpu;
pub mod events;
pub mod liveness;
pub mod memory;
#[cfg(any(test, feature = "random"))]
pub mod random;
pub mod rdrand;
#[cfg(any(test, feature = "recover"))]
pub mod recovery;
pub mod start_info;
pub mod time;

#[cfg(feature = "unikernel")]
mod boot;
#[cfg(feature = "unikernel")]
mod devices;
#[cfg(feature = "unikernel")]
mod domain;
#[cfg(feature = "unikernel")]
mod event_channels;
#[cfg(feature = "unikernel")]
mod grants;
#[cfg(feature = "unikernel")]
mod hypercall;
#[cfg(feature = "unikernel")]
pub mod hypervisor;
#[cfg(feature = "unikernel")]
mod interrupts;
#[cfg(feature = "unikernel")]
pub mod logger;
#[cfg(feature = "unikernel")]
pub mod machine;
#[cfg(feature = "unikernel")]
mod panic;
#[cfg(feature = "unikernel")]
mod registers;
#[cfg(feature = "unikernel")]
mod reporter;
#[cfg(feature = "unikernel")]
mod reservation;
#[cfg(feature = "unikernel")]
mod transfer;
#[cfg(feature = "unikernel")]
mod vcpu;
#[cfg(feature = "unikernel")]
pub mod watchdog;

#[cfg(feature = "unikernel")]
pub use crate::{
    boot::smp::start_vcpus,
    domain::GuestType,
    hypervisor::Hypercalls,
    machine::{Machine, Module},
    panic::shutdown,
    registers::MappedRegisters,
};
pub use bulkhead_xen::abi::sched::ShutdownReason;

/// Names the function that the domain runs: `fn(Machine) -> ShutdownReason`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Called by the runtime, once, when the domain is up.
        #[unsafe(no_mangle)]
        fn bulkhead_main(machine: $crate::Machine) -> $crate::ShutdownReason {
            let main: fn($crate::Machine) -> $crate::ShutdownReason = $main;
            main(machine)
        }
    };
}
