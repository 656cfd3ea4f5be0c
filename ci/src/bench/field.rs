//! The domains and disks of a bench: driver domains that wait paused for their turn, guests that take
//! their disks one after another.

use super::Plan;
use super::contestant::Contestant;
use super::server::{self, Server};
use super::store::{NAMESPACE_NAME, Store};
use crate::host::Host;
use crate::host::domain::TOOLSTACK;
use crate::host::guest::Guest;
use crate::host::pci::PciDevice;
use crate::testbed::images::{self, Image};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The host's processor for guests alone. dom0 has the first, driver domains the second.
const GUESTS: &str = "2";

/// Time limit for a command in a guest that moves no data.
pub const SHORT: Duration = Duration::from_secs(30);

/// The number of `xvda`, as libxl gives it to the first disk.
pub const DEVICE: u32 = 51712;

/// The file of the disk with which dom0's QEMU is started.
const QEMU_STARTER: &str = "/tmp/qdisk-starter.img";

/// The file in a guest that says whether its frontends keep pages granted (persistent grants).
const KEEPS_GRANTS: &str = "/sys/module/xen_blkfront/parameters/feature_persistent";

/// A guest's script that loads its modules for later. The option is null_blk's, which would otherwise make a disk at
/// once; other modules ignore it.
const LOAD_LATER: &str =
    "while read -r module; do insmod $module nr_devices=0; done </modules.later";

/// All domains and disks of a bench.
pub struct Field<'h> {
    host: &'h Host,
    plan: &'h Plan,
    say: &'h dyn Fn(&str),
    guests: Vec<Guest<'h>>,
    /// The domain of the server on the network, if it has one of its own.
    nbd_server: Option<Guest<'h>>,
    /// The Linux that has the device itself, once one was needed.
    bare: Option<Guest<'h>>,
    servers: BTreeMap<Contestant, Server<'h>>,
    /// The contestants whose disks were written once, and the domain that wrote them.
    filled: BTreeSet<(Contestant, u32)>,
    /// The reason why dom0's QEMU serves no disks, if it does not.
    pub qemu_problem: Option<String>,
}

impl<'h> Field<'h> {
    /// Makes the disks of dom0's own backends, and no domain yet.
    pub fn new(host: &'h Host, plan: &'h Plan, say: &'h dyn Fn(&str)) -> Result<Self> {
        let nbd_server = plan.store.prepare(host, plan)?;
        let field = Self {
            host,
            plan,
            say,
            guests: Vec::new(),
            nbd_server,
            bare: None,
            servers: BTreeMap::new(),
            filled: BTreeSet::new(),
            qemu_problem: None,
        };
        if plan.store == Store::Ram {
            let names = (0..plan.guests).map(|number| format!("disk{number}"));
            let archive: Vec<Image> = names
                .map(|name| Image::mib(&name, u64::from(field.size())))
                .collect();
            images::write_archive(&host.instance().share().join("images.tar"), &archive)?;
        }
        match plan.ram_disks() {
            0 => {}
            disks => drop(host.ok(&format!("modprobe brd {}", plan.brd_options("", disks)))?),
        }
        if field.has_qemu() {
            let size = field.size();
            let files = match plan.store {
                Store::Nvme | Store::Nbd => 0,
                Store::Ram | Store::Vbd => plan.guests,
            };
            for number in 0..files {
                host.ok(&format!(
                    "dd if=/dev/zero of=/tmp/qdisk{number}.img bs=1M count={size} status=none"
                ))?;
            }
            host.ok(&format!(
                "dd if=/dev/zero of={QEMU_STARTER} bs=1M count=1 status=none"
            ))?;
        }
        Ok(field)
    }

    fn size(&self) -> u32 {
        self.plan.disk_size()
    }

    fn has_qemu(&self) -> bool {
        self.plan.contestants.contains(&Contestant::Dom0Qdisk)
    }

    /// Returns the numbers of the guests that use a contestant's disks.
    pub fn guest_ids(&self, contestant: Contestant) -> Vec<u32> {
        let guests = self.guests(contestant).iter();
        guests.map(|guest| guest.id).collect()
    }

    /// Returns the guests that use a contestant's disks.
    pub fn guests(&self, contestant: Contestant) -> &[Guest<'h>] {
        match contestant {
            Contestant::Bare => self.bare.as_slice(),
            _ => &self.guests,
        }
    }

    /// Returns the number of the domain that serves a contestant's disks.
    pub fn server_id(&self, contestant: Contestant) -> Result<u32> {
        let Some(name) = contestant.server() else {
            return Ok(0);
        };
        let server = self.servers.get(&name);
        Ok(server
            .with_context(|| format!("{name} is not running"))?
            .domain()
            .id)
    }

    /// Returns the number of the domain of the server on the network, if it has one of its own.
    pub fn nbd_server_id(&self) -> Option<u32> {
        self.nbd_server.as_ref().map(|server| server.id)
    }

    /// Returns the plan.
    pub fn plan(&self) -> &Plan {
        self.plan
    }

    /// Runs a script in the Linux that serves a contestant's disks, or has them.
    pub fn ask_linux(&self, contestant: Contestant, script: &str) -> Result<String> {
        match (self.server(contestant), &self.bare) {
            (Some(server), _) => server.ask_linux(script),
            (None, Some(bare)) if contestant == Contestant::Bare => bare.ok(script, SHORT),
            (None, _) => self.host.ok(script),
        }
    }

    /// Returns a contestant's driver domain.
    pub fn server(&self, contestant: Contestant) -> Option<&Server<'h>> {
        self.servers.get(&contestant.server()?)
    }

    /// Returns a contestant's driver domain, and the device that is passed through to it.
    pub fn own_device(&self, contestant: Contestant) -> Option<(&Server<'h>, PciDevice)> {
        let device = self.plan.store.device(contestant.server()?)?;
        Some((self.server(contestant)?, device))
    }

    /// Boots the domain that serves a contestant's disks, unless it is there; it waits paused.
    pub fn start_server(&mut self, contestant: Contestant) -> Result<()> {
        let Some(name) = contestant.server() else {
            return Ok(());
        };
        if self.servers.contains_key(&name) {
            return Ok(());
        }
        (self.say)(&format!("booting {name}"));
        let server = Server::boot(self.host, self.plan, name)?;
        self.servers.insert(name, server);
        Ok(())
    }

    /// Boots the guests.
    pub fn start_guests(&mut self) -> Result<()> {
        for number in 0..self.plan.guests {
            (self.say)(&format!("booting guest {number}"));
            let mut disks = Vec::new();
            if self.has_qemu() && self.qemu_problem.is_none() {
                // libxl starts dom0's QEMU with a guest that needs it, and only then.
                disks.push(format!(
                    "vdev=xvdz,format=raw,access=rw,backendtype=qdisk,target={QEMU_STARTER}"
                ));
            }
            let guest = match self.start_guest(number, &disks) {
                Err(error) if !disks.is_empty() => {
                    self.qemu_problem = Some(format!("{error:#}"));
                    self.start_guest(number, &[])?
                }
                result => result?,
            };
            self.guests.push(guest);
        }
        Ok(())
    }

    fn start_guest(&self, number: u32, disks: &[String]) -> Result<Guest<'h>> {
        let name = format!("guest{number}");
        let mut config = self.host.guest_config(&name, self.plan.guest_kind, disks)?;
        config.vcpus = self.plan.queues;
        config.cpus = GUESTS;
        Guest::wait(self.host.create(&config)?)
    }

    /// Boots the Linux that has the device itself, or lets it go on.
    fn start_bare(&mut self) -> Result<()> {
        if let Some(bare) = &self.bare {
            return bare.unpause();
        }
        let name = Contestant::Bare.name();
        (self.say)(&format!("booting {name}"));
        let device = self.plan.store.device(Contestant::Bare);
        let device = device.context("this store has no device")?;
        let mut config = self.host.guest_config_with(name, &device)?;
        config.vcpus = self.plan.queues;
        config.cpus = GUESTS;
        let bare = Guest::wait(self.host.create(&config)?)?;
        bare.ok(LOAD_LATER, SHORT)?;
        let there = server::appeared(NAMESPACE_NAME, self.size());
        bare.ok(&there, SHORT * 4)
            .context("the device did not appear")?;
        server::expect_msix(&bare)?;
        self.bare = Some(bare);
        Ok(())
    }

    /// Gives every guest its disk. Returns the longest time that it took for one.
    pub fn attach(&mut self, contestant: Contestant) -> Result<Duration> {
        if contestant == Contestant::Bare {
            let start = Instant::now();
            return self.start_bare().map(|()| start.elapsed());
        }
        if let Some(problem) = &self.qemu_problem
            && contestant == Contestant::Dom0Qdisk
        {
            bail!("dom0's QEMU did not start: {problem}");
        }
        if let Some(server) = contestant.server() {
            self.host.ok(&format!("xl unpause {server}"))?;
        }
        let mut longest = Duration::ZERO;
        let keeps = match self.plan.persistent && contestant.keeps_grants() {
            true => "Y",
            false => "N",
        };
        for (number, guest) in (0..).zip(&self.guests) {
            // Its frontend looks at that when it connects.
            guest.ok(&format!("echo {keeps} >{KEEPS_GRANTS}"), SHORT)?;
            match contestant.disk(self.plan.store, number, self.size()) {
                Some(disk) => {
                    longest = longest.max(self.host.attach_disk(guest, &disk, DEVICE)?);
                }
                None => {
                    let load = self.own_disk();
                    guest.ok(&load, SHORT)?;
                }
            }
            let script = server::appeared(contestant.device(), self.size());
            guest
                .ok(&script, SHORT)
                .context("the disk did not appear")?;
        }
        Ok(longest)
    }

    /// Returns a command that makes a guest's own null_blk, as similar to its block frontend as it can be: queues of
    /// the same depth, and completions in an interrupt's bottom half.
    fn own_disk(&self) -> String {
        let files = "/sys/kernel/config/nullb/nullb0";
        format!(
            "if [ ! -d /sys/kernel/config/nullb ]; then \
                 {LOAD_LATER}; mount -t configfs configfs /sys/kernel/config; \
             fi; \
             mkdir {files} && echo {} >{files}/size && echo 512 >{files}/blocksize && \
             echo {} >{files}/submit_queues && echo 32 >{files}/hw_queue_depth && \
             echo 1 >{files}/irqmode && echo 1 >{files}/power",
            self.size(),
            self.plan.queues
        )
    }

    /// Writes every byte of the disks, once for each domain that serves them: a RAM disk has no memory for blocks that
    /// were never written.
    pub fn fill(&mut self, contestant: Contestant) -> Result<()> {
        let server = (contestant, self.server_id(contestant)?);
        if contestant == Contestant::GuestAlone || self.filled.contains(&server) {
            return Ok(());
        }
        let device = contestant.device();
        for guest in self.guests(contestant) {
            let count = self.size();
            let script =
                format!("dd if=/dev/zero of=/dev/{device} bs=1M count={count} oflag=direct");
            guest.ok(&script, SHORT * 2)?;
        }
        self.filled.insert(server);
        Ok(())
    }

    /// Takes the disks away again.
    pub fn detach(&self, contestant: Contestant) -> Result<()> {
        if contestant == Contestant::GuestAlone {
            for guest in &self.guests {
                guest.ok("rmdir /sys/kernel/config/nullb/nullb0", SHORT)?;
            }
            return Ok(());
        }
        if let (Contestant::Bare, Some(bare)) = (contestant, &self.bare) {
            return bare.pause();
        }
        for guest in &self.guests {
            let script = format!("xl block-detach {} {DEVICE}", guest.id);
            let output = self.host.exec(&script, TOOLSTACK)?;
            if output.status != 0 {
                bail!("xl block-detach: {}{}", output.out, output.err);
            }
            let gone = "while [ -e /sys/block/xvda ]; do sleep 0.1; done";
            guest.ok(gone, SHORT).context("the disk did not vanish")?;
        }
        if let Some(server) = contestant.server() {
            self.host.ok(&format!("xl pause {server}"))?;
        }
        Ok(())
    }

    /// Replaces the guests, and the contestant's domain, after a failure.
    pub fn replace(&mut self, contestant: Contestant) -> Result<()> {
        (self.say)("replacing the domains after a failure");
        // Some of them may have died: dropping a domain destroys what is left of it.
        self.guests.clear();
        self.bare = None;
        if let Some(name) = contestant.server() {
            self.servers.remove(&name);
        }
        self.start_guests()
    }

    /// Returns the end of a driver domain's console.
    pub fn console_end(&self, contestant: Contestant) -> String {
        self.server(contestant)
            .map(|server| crate::process::tail(&server.domain().console(), 6))
            .unwrap_or_default()
    }
}
