//! The stores of this crate, a folder each. [`Stores`](crate::Stores) has the list of them.

pub mod null;
pub mod ram;
