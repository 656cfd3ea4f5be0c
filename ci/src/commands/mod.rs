//! The commands of `cargo lab`, one module each.

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
