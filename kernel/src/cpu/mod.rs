//! Code for the x86-64 processor: exceptions, upcalls, per-vCPU registers.

#[cfg(feature = "unikernel")]
pub mod exception_entries;
pub mod exceptions;
#[cfg(all(feature = "unikernel", feature = "recover"))]
pub mod halting;
#[cfg(feature = "unikernel")]
pub mod nmi;
#[cfg(feature = "unikernel")]
pub mod pvh;
#[cfg(all(feature = "unikernel", feature = "recover"))]
pub mod tick;
#[cfg(all(feature = "unikernel", feature = "recover"))]
pub mod tick_entry;
#[cfg(feature = "unikernel")]
pub mod upcall;
