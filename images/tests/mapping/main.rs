//! Devices that consist of extents of others: data is where the map says, however requests are cut.

mod data;
mod extents;
mod flush;
mod parts;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
mod world;
