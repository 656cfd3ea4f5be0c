//! The stores, a folder each. [`crate::target`] has the list of them.

pub mod null;
pub mod ram;
