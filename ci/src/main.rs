//! `cargo lab`: builds, tests and shows Bulkhead on a real Xen under QEMU.

use bulkhead_ci::cli::{self, Cli};
use bulkhead_ci::fuzz;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(error) = fuzz::become_compiler() {
        eprintln!("the compiler does not start: {error}");
        return ExitCode::FAILURE;
    }
    match cli::main(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
