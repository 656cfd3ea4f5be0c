//! The driver domains of a bench. Each boots once, and waits paused for its turns.

use super::Plan;
use super::contestant::Contestant;
use super::field::SHORT;
use super::network;
use super::store::{NAMESPACE_NAME, Store, own_disk};
use crate::config::Config;
use crate::host::Host;
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::testbed::network::{BRIDGE, CONNECTED};
use crate::testbed::storage::{READY, controller_started, own_disk_connected};
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// Bulkhead's memory in MiB without disks.
const BULKHEAD_MEMORY: u32 = 16;

/// The memory of a Linux driver domain in MiB: with less it does not serve the same data in its memory. (With 160 MiB
/// its kernel killed the lab's shell once the RAM disk was full.)
const LINUX_MEMORY: u32 = 192;

/// Its further memory in MiB for the pages that the driver of a PCI device bounces where it has to.
const LINUX_DEVICE_MEMORY: u32 = 96;

/// The host's processor for driver domains alone.
const SERVERS: &str = "1";

/// Time limit for a driver domain to boot.
const BOOT: Duration = Duration::from_secs(60);

/// A driver domain.
pub struct Server<'h> {
    running: Running<'h>,
    /// The time from its being unpaused until its log said that it serves.
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
        let server = Self {
            running,
            boot,
            memory: config.memory,
        };
        server.wait_for_own_disks(plan, contestant)?;
        // A moment to settle: what it does after its first word is no idle load.
        std::thread::sleep(Duration::from_millis(500));
        host.ok(&format!("xl pause {contestant}"))?;
        Ok(server)
    }

    /// Waits until its own disks are served, if it is given some.
    fn wait_for_own_disks(&self, plan: &Plan, contestant: Contestant) -> Result<()> {
        if let Running::Bulkhead(domain) = &self.running {
            if let Some(device) = plan.store.device(contestant) {
                return domain.wait_console(&controller_started(&device), BOOT);
            }
            if plan.store == Store::Nbd {
                return domain.wait_console(CONNECTED, BOOT);
            }
        }
        if let (Running::Linux(guest), Store::Nbd) = (&self.running, plan.store) {
            guest.ok(&network::connect_linux(contestant), BOOT)?;
        }
        let disks: Vec<String> = match plan.store {
            Store::Ram => return Ok(()),
            Store::Vbd => (0..plan.guests).map(own_disk).collect(),
            Store::Nvme => vec![NAMESPACE_NAME.to_owned()],
            Store::Nbd => vec![network::CLIENT_DISK.to_owned()],
        };
        for disk in disks {
            match &self.running {
                Running::Bulkhead(domain) => domain.wait_console(&own_disk_connected(&disk), BOOT),
                Running::Linux(guest) => guest
                    .ok(&appeared(&disk, plan.disk_size()), BOOT)
                    .map(drop)
                    .with_context(|| format!("its own disk {disk} did not appear")),
            }?;
        }
        match &self.running {
            Running::Linux(guest) if plan.store == Store::Nvme => expect_msix(guest),
            _ => Ok(()),
        }
    }

    /// Returns the domain.
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

/// Makes sure that a Linux uses its NVMe controller as well as it can (see `image/pcifront.rs`).
pub fn expect_msix(guest: &Guest) -> Result<()> {
    let interrupts = guest.ok("grep nvme /proc/interrupts", SHORT)?;
    ensure!(
        interrupts.contains("msi-x"),
        "{} uses its NVMe controller without MSI-X: {interrupts}",
        guest.name
    );
    Ok(())
}

/// Returns a script that ends when a Linux has a disk of this size in MiB.
pub fn appeared(disk: &str, size: u32) -> String {
    let sectors = size * 2048;
    format!(
        "until [ \"$(cat /sys/block/{disk}/size 2>/dev/null)\" = {sectors} ]; do sleep 0.1; done"
    )
}

fn config(host: &Host, plan: &Plan, contestant: Contestant) -> Result<Config> {
    let (family, kernel, ramdisk) = match contestant {
        Contestant::Bulkhead(family) => (family, "/lab/bulkhead", "/lab/images.tar"),
        Contestant::Linux(family) => (family, "/guest/vmlinux", "/lab/driver-initramfs"),
        other => bail!("{other} has no driver domain of its own"),
    };
    let mut config = Config::new(contestant.name(), family.into(), kernel);
    config.ramdisk = Some(ramdisk.to_owned());
    config.disks = plan.own_disks(contestant);
    let device = plan.store.device(contestant);
    config.pci.extend(device.map(|device| device.to_string()));
    config.driver_domain = true;
    config.vcpus = plan.queues;
    config.cpus = SERVERS;
    if contestant.is_bulkhead() {
        if plan.store != Store::Ram {
            config.ramdisk = None;
        }
        config.memory = BULKHEAD_MEMORY + plan.store.disk_memory(plan.disk_size()) * plan.guests;
        // It may be paused while it is busy, and for longer than Xen's watchdog waits.
        config.cmdline = format!("watchdog=0 {}", plan.bulkhead_options);
        if plan.store == Store::Nbd {
            config.cmdline += &format!(" ip={}", network::address(contestant));
        }
    } else {
        config.memory = LINUX_MEMORY;
        // Late kernels let programs make hypercalls only for a domain that they emulate, unless
        // told otherwise; `xl devd` asks Xen what it is.
        config.cmdline = format!(
            "console=hvc0 quiet tsc_early_khz={} xen_privcmd.unrestricted=1 {}",
            host.tsc_khz()?,
            plan.brd_options("brd.", plan.guests)
        );
        config.cmdline += match device {
            // Its init loads the drivers then.
            Some(_) => " lab.device",
            None => " pci=off",
        };
        if device.is_some() {
            config.memory += LINUX_DEVICE_MEMORY;
        }
        if plan.store == Store::Nbd {
            config.cmdline += " lab.network";
        }
    }
    if plan.store == Store::Nbd {
        config.vifs.push(format!("bridge={BRIDGE}"));
    }
    Ok(config)
}
