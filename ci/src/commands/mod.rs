//! What `cargo lab` can be told to do, one module each.

pub mod run;
