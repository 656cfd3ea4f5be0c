//! Devices that consist of extents of others: data lies where the map says, however requests are cut.

mod data;
mod extents;
mod flush;
mod parts;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
mod world;
