//! The command line of `cargo lab`.

use crate::commands::scenarios::Setting;
use crate::commands::{bench, build, fuzz, package, run, scenarios, shell, soak, suite};
use crate::host::{self, Host, domain::TOOLSTACK, xenstored::Xenstored};
use crate::image::{packages, release::Release};
use crate::testbed::schedule;
use anyhow::Result;
use clap::builder::TypedValueParser;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Builds, tests and shows Bulkhead on a real Xen, which QEMU emulates.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
pub struct Cli {
    /// Xen's version: 4.17 (Debian bookworm) or 4.20 (trixie).
    #[arg(long, global = true, default_value_t)]
    xen: Release,
    /// The xenstored that dom0 runs. (`test` also runs a few scenarios with the other one.)
    #[arg(long, global = true, value_enum, default_value_t)]
    xenstored: Xenstored,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Shows Bulkhead at work, from a fresh clone to a table of measurements.
    Demo,
    /// Runs the test suite: format, lints, tests, documentation, scenarios.
    Test {
        /// Hosts that run scenarios at the same time: two, where the machine has room for them.
        #[arg(long, value_parser = hosts())]
        hosts: Option<usize>,
        /// Also runs the long scenarios, which otherwise run by name only, fuzzes, and has the tests and instruction
        /// counts of the smallest ELF.
        #[arg(long)]
        long: bool,
    },
    /// Runs the scenarios whose names contain one of these words (those of `test` without any).
    Scenario {
        /// Parts of names.
        names: Vec<String>,
        /// Hosts that run scenarios at the same time.
        #[arg(long, default_value_t = 1, value_parser = hosts())]
        hosts: usize,
        /// The unikernel to use (default: it is built).
        #[arg(long, value_parser = build::existing_file)]
        elf: Option<PathBuf>,
    },
    /// Lists the scenarios.
    List,
    /// Measures Bulkhead and every other backend, in one boot of one host.
    Bench(bench::Options),
    /// Builds the unikernel; the last line is the path of the bootable ELF.
    Build {
        /// Builds the one with TLS, which is installed as `bulkhead-tls`.
        #[arg(long)]
        tls: bool,
    },
    /// Makes the Debian package; the last line is its path.
    Package {
        /// The unikernel to use (default: it is built).
        #[arg(long, value_parser = build::existing_file)]
        elf: Option<PathBuf>,
        /// The one with TLS to use (default: it is built).
        #[arg(long, value_parser = build::existing_file)]
        tls_elf: Option<PathBuf>,
    },
    /// Opens a shell in dom0, with a driver domain and a guest running.
    Shell,
    /// Runs one ELF as a domain on a host that stays up.
    Run {
        /// The host's name.
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        options: run::Options,
    },
    /// Boots, uses and ends a host that stays up.
    Host {
        /// The host's name.
        #[arg(long, default_value = "default")]
        name: String,
        #[command(subcommand)]
        task: HostTask,
    },
    /// Fuzzes everything that parses untrusted input, guided by coverage.
    Fuzz(fuzz::Options),
    /// Counts how often the emulation itself fails, with Linux domains only.
    Soak {
        /// The name of the folder for the logs.
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        options: soak::Options,
    },
}

#[derive(Debug, Subcommand)]
enum HostTask {
    /// Boots it.
    Start {
        #[command(flatten)]
        tuning: soak::Tuning,
    },
    /// Runs a shell script in its dom0.
    Exec {
        /// The script.
        script: Vec<String>,
    },
    /// Ends it.
    Stop,
}

fn hosts() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(1..=8).map(|n| n as usize)
}

/// Carries out the command line. Returns whether everything that it tested passed.
pub fn main(cli: Cli) -> Result<bool> {
    let (xen, xenstored) = (cli.xen, cli.xenstored);
    let setting = |hosts, elf| Setting {
        release: xen,
        xenstored,
        hosts,
        elf,
    };
    match cli.command {
        Task::Demo => return scenarios::demo(xen, xenstored),
        Task::Test { hosts, long } => {
            let hosts = hosts.unwrap_or_else(schedule::hosts_that_fit);
            return suite::run(&setting(hosts, None), long);
        }
        Task::Scenario { names, hosts, elf } => {
            return scenarios::some(&setting(hosts, elf), &names);
        }
        Task::List => scenarios::list(),
        Task::Bench(options) => return bench::run(xen, xenstored, &options),
        Task::Fuzz(options) => return fuzz::run(&options),
        Task::Build { tls } => build::run(tls)?,
        Task::Package { elf, tls_elf } => package::run(elf, tls_elf)?,
        Task::Shell => shell::run(xen, xenstored)?,
        Task::Run { name, options } => {
            packages::ensure()?;
            run::run(&name, xen, xenstored, &options)?;
        }
        Task::Host { name, task } => host_task(&name, xen, xenstored, task)?,
        Task::Soak { name, options } => {
            packages::ensure()?;
            soak::run(&name, xen, xenstored, &options)?;
        }
    }
    Ok(true)
}

fn host_task(name: &str, xen: Release, xenstored: Xenstored, task: HostTask) -> Result<()> {
    match task {
        HostTask::Start { tuning } => {
            packages::ensure()?;
            host::boot_named(name, xen, &tuning.machine(xenstored)).map(drop)
        }
        HostTask::Exec { script } => {
            let output = Host::attach(Host::named(name))?.exec(&script.join(" "), TOOLSTACK)?;
            print!("{}", output.out);
            eprint!("{}", output.err);
            std::process::exit(output.status)
        }
        HostTask::Stop => Host::attach(Host::named(name))?.stop(),
    }
}
