//! A simulated Xen for host tests.

pub mod xenstore;
