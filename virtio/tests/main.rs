//! The driver, driven by a guest's requests, with a device in memory.

mod discards;
mod interrupts;
mod lifecycle;
mod requests;
mod resets;
mod violations;
