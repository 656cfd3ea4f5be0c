//! `cargo lab`: builds, tests and shows Bulkhead on a real Xen under QEMU.

use anyhow::Result;
use bulkhead_ci::host::{self, Host, qemu::Machine};
use bulkhead_ci::image::{packages, release::Release};
use clap::{Parser, Subcommand};
use std::time::Duration;

#[derive(Parser)]
struct Cli {
    #[arg(long, global = true, default_value_t)]
    xen: Release,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Runs one ELF as a domain on a host that stays up.
    Run {
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        options: bulkhead_ci::commands::run::Options,
    },
    Host {
        #[arg(long, default_value = "default")]
        name: String,
        #[command(subcommand)]
        command: HostCmd,
    },
}

#[derive(Subcommand)]
enum HostCmd {
    Start {
        #[arg(long)]
        cpu: Option<String>,
        #[arg(long, default_value = "multi")]
        threads: String,
        #[arg(long, default_value = "")]
        xen_options: String,
    },
    Exec {
        script: Vec<String>,
    },
    Stop,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let cli = Cli::parse();
    packages::ensure()?;
    match cli.command {
        Cmd::Run { name, options } => bulkhead_ci::commands::run::run(&name, cli.xen, &options)?,
        Cmd::Host { name, command } => match command {
            HostCmd::Start {
                cpu,
                threads,
                xen_options,
            } => {
                let mut machine = Machine {
                    threads,
                    xen_options,
                    ..Machine::default()
                };
                if let Some(cpu) = cpu {
                    machine.cpu = cpu;
                }
                host::boot_named(&name, cli.xen, &machine)?;
            }
            HostCmd::Exec { script } => {
                let output = Host::attach(Host::named(&name))?
                    .exec(&script.join(" "), Duration::from_secs(120))?;
                print!("{}", output.out);
                eprint!("{}", output.err);
                std::process::exit(output.status);
            }
            HostCmd::Stop => Host::attach(Host::named(&name))?.stop()?,
        },
    }
    Ok(())
}
