//! Tests of the NBD client with a server in memory.

mod drops;
mod handshake;
mod lifecycle;
mod lines;
mod names;
mod replies;
mod requests;
mod timeouts;
mod volumes;
