//! The lab: builds a Xen host out of Debian packages, boots it in QEMU and runs scenarios on it.
#![forbid(unsafe_code)]

pub mod commands;
pub mod domain;
pub mod host;
pub mod image;
pub mod process;
pub mod workspace;
