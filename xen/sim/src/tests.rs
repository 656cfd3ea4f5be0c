//! The simulated Xen's own tests, one module per group of rules.

mod copies;
mod devices;
mod events;
mod grants;
mod lifecycle;
mod reservation;
mod store;
mod transfers;
