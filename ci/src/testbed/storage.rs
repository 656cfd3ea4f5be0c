//! Starting Bulkhead as a driver domain.

use super::Testbed;
use super::images::{self, Image};
use super::network::BRIDGE;
use super::report::milliseconds;
use crate::config::{Config, Kind};
use crate::host::domain::Domain;
use crate::host::pci::PciDevice;
use crate::host::vbd_statistics::VbdStatistics;
use anyhow::{Context, Result, ensure};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The words in a driver domain's log when guests may attach.
pub const READY: &str = "ready for attach";

/// Returns the words in a driver domain's log when an NVMe controller of its own is served.
pub fn controller_started(device: &PciDevice) -> String {
    format!("nvme:{}: QEMU NVMe Ctrl", device.short_name())
}

/// Returns the words in a driver domain's log when a disk of its own is served.
pub fn own_disk_connected(name: &str) -> String {
    format!("disk {name}: connected to domain")
}

/// The goal for the time from a driver domain's being unpaused to [`READY`].
pub const BOOT_TARGET: Duration = Duration::from_millis(150);

/// The time within which a driver domain has to reach it.
pub const BOOT: Duration = Duration::from_secs(20);

/// A driver domain to be started.
pub struct Storage<'l, 'h> {
    testbed: &'l Testbed<'h>,
    config: Config,
}

impl<'h> Testbed<'h> {
    /// Returns a driver domain called `storage`, without images, with 16 MiB.
    pub fn storage(&self, kind: Kind) -> Storage<'_, 'h> {
        let mut config = Config::new("storage", kind, "/lab/bulkhead");
        config.memory = 16;
        config.driver_domain = true;
        Storage {
            testbed: self,
            config,
        }
    }

    /// Returns the paths of a file that dom0 sees: here, and in dom0.
    pub fn shared_file(&self, name: &str) -> (PathBuf, String) {
        (
            self.host.instance().share().join(name),
            format!("/lab/{name}"),
        )
    }
}

impl<'h> Storage<'_, 'h> {
    /// Gives it an archive of images as its ramdisk.
    pub fn images(self, images: &[Image]) -> Result<Self> {
        let (here, _) = self.testbed.shared_file("images.tar");
        images::write_archive(&here, images).context("cannot write the image archive")?;
        Ok(self.ramdisk("images.tar"))
    }

    /// Gives it a file of the shared folder as its ramdisk.
    pub fn ramdisk(mut self, name: &str) -> Self {
        self.config.ramdisk = Some(format!("/tmp/{name}"));
        self
    }

    /// Boots it from another ELF of the shared folder.
    pub fn elf(mut self, name: &str) -> Self {
        self.config.kernel = format!("/lab/{name}");
        self
    }

    /// Sets the memory that it may be given later, in MiB.
    pub fn maxmem(mut self, mib: u32) -> Self {
        self.config.maxmem = Some(mib);
        self
    }

    /// Gives it a file of dom0's as its ramdisk, at its path there.
    pub fn ramdisk_of_dom0(mut self, path: &str) -> Self {
        self.config.ramdisk = Some(path.to_owned());
        self
    }

    /// Boots another ELF, a file of the shared folder.
    pub fn kernel(mut self, name: &str) -> Self {
        self.config.kernel = format!("/lab/{name}");
        self
    }

    /// Sets its memory in MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.config.memory = mib;
        self
    }

    /// Gives it a disk of its own, in `xl`'s form.
    pub fn disk(mut self, disk: &str) -> Self {
        self.config.disks.push(disk.to_owned());
        self
    }

    /// Gives it an interface to the network that [`Testbed::network`] makes, and further words for its command line.
    pub fn on_network(mut self, words: &str) -> Self {
        self.config.vifs.push(format!("bridge={BRIDGE}"));
        self.config.cmdline = format!("{} {words}", self.config.cmdline).trim().to_owned();
        self
    }

    /// Passes a device through to it.
    pub fn pci(mut self, device: &PciDevice) -> Self {
        self.config.pci.push(device.to_string());
        self
    }

    /// Sets its number of processors.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.config.vcpus = count;
        self
    }

    /// Sets the number of processors that it may be given later.
    pub fn maxvcpus(mut self, count: u32) -> Self {
        self.config.maxvcpus = count;
        self
    }

    /// Sets the number of frames that Xen keeps to track its mappings (`max_maptrack_frames`).
    pub fn map_frames(mut self, frames: u32) -> Self {
        self.config.max_maptrack_frames = Some(frames);
        self
    }

    /// Sets its name.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.config.name);
        self
    }

    /// Sets its command line.
    pub fn cmdline(mut self, text: &str) -> Self {
        text.clone_into(&mut self.config.cmdline);
        self
    }

    /// Has the toolstack leave it as it is when it crashes.
    pub fn preserved_at_crash(mut self) -> Self {
        self.config.on_crash = "preserve";
        self
    }

    /// Returns the configuration so far.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Boots it and waits until guests may attach.
    pub fn start(self) -> Result<Running<'h>> {
        let mut running = self.start_paused()?;
        running.unpause()?;
        Ok(running)
    }

    /// Creates it and does not let it run yet.
    pub fn start_paused(self) -> Result<Running<'h>> {
        let Config { name, kind, .. } = &self.config;
        self.testbed
            .step(format!("booting {name} as a {kind} driver domain"));
        if let Some(name) = self
            .config
            .ramdisk
            .as_deref()
            .and_then(|path| path.strip_prefix("/tmp/"))
        {
            // xl maps the file, and page faults on the shared folder cost a second per 8 MiB.
            self.testbed
                .host
                .ok(&format!("cp --sparse=always /lab/{name} /tmp/{name}"))?;
        }
        let domain = self.testbed.host.create_paused(&self.config)?;
        Ok(Running {
            domain,
            boot: Duration::ZERO,
        })
    }
}

impl<'h> Storage<'_, 'h> {
    /// Boots it like [`Self::start`], and measures the time with care: a first boot over [`BOOT_TARGET`] may have been
    /// disturbed by the machine underneath, so the median of three is used then.
    pub fn start_measured(self) -> Result<Running<'h>> {
        let testbed = self.testbed;
        let again = || Storage {
            testbed,
            config: self.config.clone(),
        };
        let mut boots = Vec::new();
        loop {
            let mut running = again().start()?;
            boots.push(running.boot);
            let first_is_good = boots.len() == 1 && running.boot <= BOOT_TARGET;
            if first_is_good || boots.len() == 3 {
                boots.sort();
                running.boot = boots[boots.len() / 2];
                return Ok(running);
            }
            running.shutdown()?;
        }
    }
}

/// A driver domain that serves.
#[derive(Debug)]
pub struct Running<'h> {
    domain: Domain<'h>,
    /// The time from its being unpaused to "ready for attach" in its log.
    pub boot: Duration,
}

impl Running<'_> {
    /// Lets a paused one run, and waits until guests may attach.
    pub fn unpause(&mut self) -> Result<()> {
        self.boot = self.domain.unpause_until(READY, BOOT)?;
        Ok(())
    }

    /// Has `xl reboot` create it anew, and waits until guests may attach to the new domain.
    pub fn reboot(&mut self) -> Result<()> {
        let seen = self.console_length();
        self.host.ok(&format!("xl reboot {}", self.name))?;
        self.wait_remade(BOOT)?;
        self.wait_console_from(seen, READY, BOOT).map(drop)
    }

    /// Returns the boot time in the form of the table. A busy machine makes it longer, so it is shown and never a
    /// failure.
    pub fn boot_figure(&self) -> String {
        let figure = milliseconds(self.boot);
        match self.boot <= BOOT_TARGET {
            true => figure,
            false => format!("{figure} (target {})", milliseconds(BOOT_TARGET)),
        }
    }

    /// Returns the path of our directory of a disk, given the guest and the number of the virtual device.
    pub fn backend_path(&self, guest: &Domain, device: u32) -> String {
        let (storage, guest) = (self.id, guest.id);
        format!("/local/domain/{storage}/backend/vbd/{guest}/{device}")
    }

    /// Returns a node of that directory.
    pub fn backend_node(&self, guest: &Domain, device: u32, node: &str) -> Result<String> {
        let path = self.backend_path(guest, device);
        let text = self.host.ok(&format!("xenstore-read {path}/{node}"))?;
        Ok(text.trim().to_owned())
    }

    /// Reads the counts of a disk since it connected.
    pub fn statistics(&self, guest: &Domain, device: u32) -> Result<VbdStatistics> {
        self.host.vbd_statistics(self.id, guest.id, device)
    }

    /// Presses a key on its console.
    pub fn press(&self, key: &str) -> Result<()> {
        let tty = format!("$(xenstore-read /local/domain/{}/console/tty)", self.id);
        self.host.ok(&format!("printf {key} >{tty}")).map(drop)
    }

    /// Waits until a disk has counted `count` writes.
    pub fn wait_for_writes(
        &self,
        guest: &Domain,
        device: u32,
        count: u64,
        limit: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.statistics(guest, device)?.get("writes")? < count {
            self.host
                .tick(deadline)
                .with_context(|| format!("{} did not write", guest.name))?;
        }
        Ok(())
    }

    /// Checks that the log holds an error that contains `what`.
    pub fn expect_error(&self, start: usize, what: &str, limit: Duration) -> Result<String> {
        let line = self.wait_console_from(start, "ERROR", limit)?;
        ensure!(
            line.contains(what),
            "the log's error does not name {what:?}: {line}"
        );
        Ok(line)
    }
}

impl<'h> Deref for Running<'h> {
    type Target = Domain<'h>;

    fn deref(&self) -> &Domain<'h> {
        &self.domain
    }
}

impl<'h> DerefMut for Running<'h> {
    fn deref_mut(&mut self) -> &mut Domain<'h> {
        &mut self.domain
    }
}

/// Returns the number of a virtual device `xvda` to `xvdp` (`xen-vbd-interface(7)`).
pub fn device_number(name: &str) -> u32 {
    let letter = name.bytes().last().unwrap_or(b'a');
    (202 << 8) + 16 * u32::from(letter - b'a')
}

/// Returns a guest's disk served by `backend`, in the form of its configuration.
pub fn disk(backend: &str, device: &str, access: &str, target: &str) -> String {
    format!("backend={backend},vdev={device},format=raw,access={access},target={target}")
}
