//! `cargo lab soak`: the stability of the emulated host, measured with stock Linux domains only.

use crate::config::Kind;
use crate::fault;
use crate::host::guest::Guest;
use crate::host::{Host, qemu::Machine, read_from, xenstored::Xenstored};
use crate::image::{self, release::Release};
use crate::workspace;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Options of `cargo lab soak`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Whole-host boots.
    #[arg(long, default_value_t = 10)]
    pub boots: u32,
    /// Creations of a Linux domain in each boot, PVH and PV in turn.
    #[arg(long, default_value_t = 5)]
    pub creations: u32,
    /// Emulation settings other than the lab's own.
    #[command(flatten)]
    pub tuning: Tuning,
}

/// Emulation settings other than the lab's own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Tuning {
    /// QEMU's -cpu.
    #[arg(long)]
    pub cpu: Option<String>,
    /// QEMU's TCG threading: single or multi.
    #[arg(long)]
    pub threads: Option<String>,
    /// Added to Xen's command line.
    #[arg(long)]
    pub xen_options: Option<String>,
    /// Added to the command line of dom0's kernel.
    #[arg(long)]
    pub dom0_options: Option<String>,
}

impl Tuning {
    /// Returns the lab's machine with these changes.
    pub fn machine(&self, xenstored: Xenstored) -> Machine {
        let mut machine = Machine {
            xenstored,
            ..Machine::default()
        };
        let set = |field: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                field.clone_from(value);
            }
        };
        set(&mut machine.cpu, &self.cpu);
        set(&mut machine.threads, &self.threads);
        set(&mut machine.xen_options, &self.xen_options);
        set(&mut machine.dom0_options, &self.dom0_options);
        machine
    }
}

#[derive(Default)]
struct Count {
    boots: u32,
    failed_boots: u32,
    created: u32,
    failed: u32,
}

/// Boots hosts, creates domains on them, has them work, destroys them, and counts the failures.
pub fn run(name: &str, release: Release, xenstored: Xenstored, options: &Options) -> Result<()> {
    let image = image::ensure(release, &|text| eprintln!("{text}"))?;
    let machine = options.tuning.machine(xenstored);
    let dir = workspace::lab().join("soak").join(name);
    let mut count = Count::default();
    let mut faults = Vec::new();
    let start = Instant::now();
    for boot in 1..=options.boots {
        count.boots += 1;
        let began = Instant::now();
        let host = match Host::boot(dir.clone(), &image, &machine, false) {
            Ok(host) => host,
            Err(error) => {
                count.failed_boots += 1;
                println!("boot {boot}: FAILED {error:#}");
                continue;
            }
        };
        println!(
            "boot {boot}: up after {:.1} s",
            began.elapsed().as_secs_f32()
        );
        for creation in 1..=options.creations {
            let kind = Kind::ALL[creation as usize % 2];
            count.created += 1;
            let began = Instant::now();
            let result = work(&host, &format!("soak{creation}"), kind);
            let took = began.elapsed().as_secs_f32();
            if let Err(error) = result {
                count.failed += 1;
                println!(
                    "boot {boot}, {kind} guest {creation}: FAILED after {took:.1} s: {error:#}"
                );
            } else {
                println!("boot {boot}, {kind} guest {creation}: ok, {took:.1} s");
            }
        }
        let xen = read_from(&host.instance().xen_log(), 0);
        let dom0 = read_from(&host.instance().share().join("dom0.log"), 0);
        let mut found = fault::in_logs(&xen, &dom0, &host.domains()).emulator;
        found.extend(host.take_emulator_faults());
        for line in &found {
            println!("boot {boot}: EMULATOR FAULT {line}");
        }
        faults.extend(found);
    }
    println!(
        "{} boots, {} failed; {} creations, {} failed; {} lines that show a fault; {:.0} s",
        count.boots,
        count.failed_boots,
        count.created,
        count.failed,
        faults.len(),
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

/// A guest's whole life, with some work in it and some for the toolstack.
fn work(host: &Host, name: &str, kind: Kind) -> Result<()> {
    let mut guest: Guest = host.guest(name, kind, &[])?;
    guest.ok(
        "dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null && sha256sum /tmp/x",
        Duration::from_secs(60),
    )?;
    for _ in 0..3 {
        host.ok("xl list && xenstore-ls >/dev/null && xenstore-exists /local/domain/0 && xl info >/dev/null")?;
    }
    guest.destroy()
}
