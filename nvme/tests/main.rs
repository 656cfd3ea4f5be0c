//! The driver against a controller in memory, which does what controllers should not do, too.

mod closing;
mod discards;
mod errors;
mod lifecycle;
mod moderation;
mod namespaces;
mod queues;
mod requests;
mod resets;
