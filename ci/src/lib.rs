//! The lab: builds a Xen host out of Debian packages, boots it in QEMU (or in Bochs) and runs scenarios on it.
#![forbid(unsafe_code)]

pub mod bench;
pub mod bochs;
pub mod cli;
pub mod commands;
pub mod config;
pub mod digest;
pub mod fault;
pub mod fuzz;
pub mod host;
pub mod image;
pub mod package;
pub mod process;
pub mod scenarios;
mod shared_object;
pub mod system_calls;
pub mod testbed;
pub mod workspace;
