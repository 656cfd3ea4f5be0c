//! What `cargo lab` can be told to do, one module each.

pub mod bench;
pub mod build;
pub mod checks;
pub mod fuzz;
pub mod package;
pub mod run;
pub mod scenarios;
pub mod shell;
pub mod soak;
pub mod suite;
