//! Layers: devices that are made of other devices.

pub(crate) mod mapping;
pub(crate) mod shared;
