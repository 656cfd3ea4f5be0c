//! Structures and constants of Xen's public headers, laid out as the hypervisor expects them.

pub mod grant_table;
