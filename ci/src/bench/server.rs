//! The driver domains of a bench. Each boots once, and waits paused for its turns.

use super::Plan;
use super::contestant::Contestant;
use super::field::SHORT;
use crate::config::Config;
use crate::host::Host;
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::testbed::storage::READY;
use anyhow::{Result, bail};
use std::time::Duration;

/// Bulkhead's memory in MiB, the images included.
const BULKHEAD_MEMORY: u32 = 80;

/// A Linux driver domain's: with less it does not serve the same data.
const LINUX_MEMORY: u32 = 160;

/// The host's processor that driver domains have to themselves.
const SERVERS: &str = "1";

/// Time limit for a driver domain to boot.
const BOOT: Duration = Duration::from_secs(60);

/// A driver domain.
pub struct Server<'h> {
    running: Running<'h>,
    /// From the moment it was unpaused until its log said that it serves.
    pub boot: Duration,
    /// Its memory in MiB.
    pub memory: u32,
}

/// The system that runs in a driver domain.
enum Running<'h> {
    Bulkhead(Domain<'h>),
    /// Linux takes commands, as guests do.
    Linux(Guest<'h>),
}

impl<'h> Server<'h> {
    /// Boots the driver domain of a contestant, and pauses it.
    pub fn boot(host: &'h Host, plan: &Plan, contestant: Contestant) -> Result<Self> {
        let config = config(host, plan, contestant)?;
        let domain = host.create_paused(&config)?;
        let boot = domain.unpause_until(READY, BOOT)?;
        let running = match contestant {
            Contestant::Linux(_) => Running::Linux(Guest::wait(domain)?),
            _ => Running::Bulkhead(domain),
        };
        // A moment to settle: what it does after its first word is no idle load.
        std::thread::sleep(Duration::from_millis(500));
        host.ok(&format!("xl pause {contestant}"))?;
        Ok(Self {
            running,
            boot,
            memory: config.memory,
        })
    }

    /// The domain.
    pub fn domain(&self) -> &Domain<'h> {
        match &self.running {
            Running::Bulkhead(domain) => domain,
            Running::Linux(guest) => guest,
        }
    }

    /// Runs a script in it, if it is a Linux.
    pub fn ask_linux(&self, script: &str) -> Result<String> {
        match &self.running {
            Running::Linux(guest) => guest.ok(script, SHORT),
            Running::Bulkhead(domain) => bail!("{} takes no commands", domain.name),
        }
    }
}

fn config(host: &Host, plan: &Plan, contestant: Contestant) -> Result<Config> {
    let (family, kernel, ramdisk) = match contestant {
        Contestant::Bulkhead(family) => (family, "/lab/bulkhead", "/lab/images.tar"),
        Contestant::Linux(family) => (family, "/guest/vmlinux", "/lab/driver-initramfs"),
        other => bail!("{other} has no driver domain of its own"),
    };
    let mut config = Config::new(contestant.name(), family.into(), kernel);
    config.ramdisk = Some(ramdisk.to_owned());
    config.driver_domain = true;
    config.vcpus = plan.queues;
    config.cpus = SERVERS;
    if contestant.is_bulkhead() {
        config.memory = BULKHEAD_MEMORY;
        // It may be paused while it is busy, and for longer than Xen's watchdog waits.
        config.cmdline = format!("watchdog=0 {}", plan.bulkhead_options);
    } else {
        config.memory = LINUX_MEMORY;
        // Late kernels let programs make hypercalls only for a domain that they emulate, unless
        // told otherwise; `xl devd` asks Xen what it is.
        config.cmdline = format!(
            "console=hvc0 quiet pci=off tsc_early_khz={} xen_privcmd.unrestricted=1 {}",
            host.tsc_khz()?,
            plan.brd_options("brd.")
        );
    }
    Ok(config)
}
