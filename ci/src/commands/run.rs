//! `cargo lab run`: one ELF as a domain on a host that stays up, for the edit-and-boot cycle.

use super::build;
use crate::config::{Config, Kind};
use crate::host::{Host, length, qemu::Machine, read_from, xenstored::Xenstored};
use crate::image::release::Release;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Options of `cargo lab run`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The kernel: an ELF.
    #[arg(long, value_parser = build::existing_file)]
    pub elf: PathBuf,
    /// pvh or pv.
    #[arg(long = "type", default_value_t = Kind::Pvh)]
    pub kind: Kind,
    /// The domain's ramdisk.
    #[arg(long, value_parser = build::existing_file)]
    pub ramdisk: Option<PathBuf>,
    /// Memory of the domain in MiB.
    #[arg(long, default_value_t = 64)]
    pub memory: u32,
    /// Processors of the domain.
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    /// Its command line.
    #[arg(long, default_value = "")]
    pub cmdline: String,
    /// Ends after this many seconds, or as soon as the domain is gone.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Ends as soon as the domain's console shows this text.
    #[arg(long)]
    pub until: Option<String>,
    /// Leaves the domain running at the end.
    #[arg(long)]
    pub keep: bool,
    /// The domain's name.
    #[arg(long, default_value = "trial")]
    pub domain: String,
    /// A script to run in dom0 before the domain is ended.
    #[arg(long)]
    pub then: Option<String>,
}

/// Runs the domain on the host called `name`, which is booted if it does not run yet.
pub fn run(name: &str, release: Release, xenstored: Xenstored, options: &Options) -> Result<()> {
    let host = match Host::attach(Host::named(name)) {
        Ok(host) => host,
        Err(_) => {
            eprintln!("booting a host; it stays up until `cargo lab host --name {name} stop`");
            let machine = Machine {
                xenstored,
                ..Machine::default()
            };
            crate::host::boot_named(name, release, &machine)?
        }
    };
    let dir = host.instance().share().join("trial");
    fs::create_dir_all(&dir)?;
    let place = |path: &Path, name: &str| -> Result<String> {
        fs::copy(path, dir.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(format!("/lab/trial/{name}"))
    };
    let mut config = Config::new(
        &options.domain,
        options.kind,
        &place(&options.elf, "kernel")?,
    );
    if let Some(ramdisk) = &options.ramdisk {
        config.ramdisk = Some(place(ramdisk, "ramdisk")?);
    }
    config.memory = options.memory;
    config.vcpus = options.vcpus;
    config.cmdline = options.cmdline.clone();
    config.driver_domain = true;
    config.on_reboot = "destroy";
    fs::write(dir.join("config"), config.to_string())?;

    let console = host
        .instance()
        .share()
        .join(format!("console/guest-{}.log", options.domain));
    let console_start = length(&console);
    let xen_start = length(&host.instance().xen_log());
    let minute = Duration::from_secs(60);
    host.exec(
        &format!("xl destroy {} 2>/dev/null", options.domain),
        minute,
    )?;
    let created = host.exec("xl create -q /lab/trial/config", minute)?;
    let deadline = Instant::now() + Duration::from_secs(options.seconds);
    let alive = format!("xl domid {} >/dev/null 2>&1", options.domain);
    let seen = |text: &String| read_from(&console, console_start).contains(text);
    while Instant::now() < deadline && !options.until.as_ref().is_some_and(seen) {
        std::thread::sleep(Duration::from_millis(100));
        if options.until.is_none() && host.exec(&alive, minute)?.status != 0 {
            break;
        }
    }
    let list = host.exec("xl list", minute)?;
    let then = options
        .then
        .as_ref()
        .map(|script| host.exec(script, minute))
        .transpose()?;
    if !options.keep {
        host.exec(
            &format!("xl destroy {} 2>/dev/null", options.domain),
            minute,
        )?;
    }
    section("xl create", &format!("{}{}", created.out, created.err));
    section("console", &read_from(&console, console_start));
    section("xen", &read_from(&host.instance().xen_log(), xen_start));
    section("xl list", &list.out);
    if let Some(output) = then {
        section("then", &format!("{}{}", output.out, output.err));
    }
    if created.status != 0 {
        bail!("xl create failed with status {}", created.status);
    }
    Ok(())
}

fn section(title: &str, text: &str) {
    println!("--- {title}");
    println!("{}", text.trim_end().replace('\r', ""));
}
