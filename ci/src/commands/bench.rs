//! `cargo lab bench`: Bulkhead beside every other backend.

use super::build;
use crate::bench::contestant::{self, Contestant};
use crate::bench::network::{self, ServerDomain};
use crate::bench::results::Results;
use crate::bench::store::Store;
use crate::bench::{Plan, chart, contest, instructions, job, markdown, table};
use crate::config::Kind;
use crate::host::{Host, qemu::Machine, xenstored::Xenstored};
use crate::image::{self, packages, release::Release};
use crate::testbed::progress::Progress;
use crate::workspace;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of `cargo lab bench`.
#[derive(Args, Debug)]
pub struct Options {
    /// Runs one round of the five most telling jobs.
    #[arg(long)]
    quick: bool,
    /// The number of rounds (default: 3, or 1 with --quick).
    #[arg(long)]
    rounds: Option<u32>,
    /// Parts of names of contestants (all without any).
    #[arg(long, value_delimiter = ',')]
    contestants: Vec<String>,
    /// Parts of names of jobs (all without any).
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<String>,
    /// The stores of the driver domains: memory of their own, disks that dom0 gives them, NVMe controllers, or the
    /// export of a server on the network.
    #[arg(long, value_enum, default_value_t)]
    store: Store,
    /// The domain of the server on the network: dom0, or one of its own with a fourth processor.
    #[arg(long, value_enum, default_value_t)]
    server: ServerDomain,
    /// Number of guests at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    guests: u32,
    /// The guests' kind: pvh or pv.
    #[arg(long, default_value_t = Kind::Pvh)]
    guest: Kind,
    /// Persistent grants in the guests' frontends.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    persistent: Switch,
    /// Queues, and virtual processors, of guests and backends.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    queues: u32,
    /// Seconds that each job runs (default: 4, or 3 with --quick).
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=60))]
    seconds: Option<u64>,
    /// Minutes after which no job is started (default: 60, or 8 with --quick).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    limit: Option<u64>,
    /// Added to Bulkhead's command line.
    #[arg(long, default_value = "")]
    bulkhead_options: String,
    /// Counts instructions, and adds jobs at offered rates. The emulation is slower then.
    #[arg(long)]
    count: bool,
    /// The unikernel to measure (default: it is built).
    #[arg(long, value_parser = build::existing_file)]
    elf: Option<PathBuf>,
}

/// The shortest time in microseconds for which a guest keeps the processor that it shares, for Xen's scheduler.
/// Changing from one guest to another costs an emulated processor all its cached address translations: with Xen's
/// default of a millisecond, four guests do little but handle timer ticks.
const LONG_TURNS: &str = " sched_ratelimit_us=30000";

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Options {
    fn plan(&self) -> Result<Plan> {
        let all = job::choose(&self.jobs, self.count).map_err(|error| anyhow!(error))?;
        let quick = self.quick && self.jobs.is_empty();
        ensure!(
            self.store == Store::Nbd || self.server == ServerDomain::Dom0,
            "only the store nbd has a server"
        );
        if let (Some(reason), 2..) = (self.store.one_guest(), self.guests) {
            bail!("this store is for one guest: {reason}");
        }
        Ok(Plan {
            contestants: contestant::choose(&self.contestants, self.count, self.store)
                .map_err(|error| anyhow!(error))?,
            jobs: all.into_iter().filter(|job| !quick || job.quick).collect(),
            store: self.store,
            server: self.server,
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 3 }),
            guests: self.guests,
            guest_kind: self.guest,
            persistent: self.persistent == Switch::On,
            queues: self.queues,
            runtime: Duration::from_secs(self.seconds.unwrap_or(if self.quick { 3 } else { 4 })),
            limit: Duration::from_secs(60 * self.limit.unwrap_or(if self.quick { 8 } else { 60 })),
            bulkhead_options: self.bulkhead_options.clone(),
            counts: self.count,
        })
    }
}

/// Boots a host, measures, and writes everything to `target/lab/bench/`. Returns whether every contestant
/// could be measured.
pub fn run(release: Release, xenstored: Xenstored, options: &Options) -> Result<bool> {
    let plan = options.plan()?;
    let progress = Progress::default();
    let say = |text: &str| progress.step("bench", text);
    packages::ensure()?;
    say("building the unikernel");
    let unikernel = match &options.elf {
        Some(path) => path.clone(),
        None => build::build()?,
    };
    let image = image::ensure(release, &say)?;
    let driver = image::linux_driver_domain::ensure(&image, &say)?;

    say(&format!("booting Xen {release}"));
    let xen_options = if plan.guests > 1 { LONG_TURNS } else { "" };
    let machine = Machine {
        xenstored,
        devices: plan.store.devices(),
        plugin: plan.counts.then(instructions::build).transpose()?,
        xen_options: xen_options.to_owned(),
        processors: plan.server.processors(),
        ..Machine::default()
    };
    let dir = workspace::lab()
        .join("hosts")
        .join(format!("bench-{release}"));
    let host = Host::boot(dir, &image, &machine, false)?;
    let share = host.instance().share();
    for (from, name) in [
        (&unikernel, "bulkhead"),
        (&driver.initramfs, "driver-initramfs"),
    ] {
        fs::copy(from, share.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    if plan.server == ServerDomain::Domain {
        let initramfs = image::nbd_server_domain::ensure(&image, &say)?;
        fs::copy(initramfs, share.join(network::RAMDISK)).context("cannot copy its initramfs")?;
    }
    let bulkhead = fs::metadata(&unikernel)?.len();
    let linux = fs::metadata(image.guest.join("vmlinuz"))?.len() + gzipped(&driver.initramfs)?;
    let sizes = |contestant: Contestant| match contestant {
        Contestant::Bulkhead(_) => Some(bulkhead),
        Contestant::Linux(_) => Some(linux),
        _ => None,
    };
    // An interrupted bench leaves what it came to so far.
    let keep = |results: &Results| write(results, release).map(drop);
    let results = contest::run(&plan, &host, sizes, &progress, keep)?;
    host.stop()?;
    progress.finish();
    ensure!(!results.runs.is_empty(), "nothing could be measured");

    for grid in table::all(&results) {
        println!("\n{}", grid.terminal());
    }
    for remark in table::remarks(&results) {
        println!("{remark}");
    }
    let report = write(&results, release)?;
    println!("\nreport: {}", report.display());
    Ok(results
        .contenders
        .iter()
        .all(|contender| contender.failures.is_empty() && !contender.unfinished))
}

fn gzipped(path: &Path) -> Result<u64> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&fs::read(path)?)?;
    Ok(encoder.finish()?.len() as u64)
}

/// Writes the JSON, the charts and the report, and returns the report's path.
fn write(results: &Results, release: Release) -> Result<PathBuf> {
    let dir = workspace::lab().join("bench");
    fs::create_dir_all(&dir)?;
    fs::write(
        dir.join("results.json"),
        serde_json::to_string_pretty(results)?,
    )?;
    let mut charts = Vec::new();
    for &job in &results.plan.jobs {
        let name = format!("{job}.svg");
        fs::write(dir.join(&name), chart::job(results, job))?;
        charts.push(name);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let repeat = format!("cargo lab {}", words.join(" "));
    let report = dir.join("report.md");
    fs::write(
        &report,
        markdown::report(results, release.xen(), &repeat, &charts),
    )?;
    Ok(report)
}
