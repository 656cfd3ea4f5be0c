//! A driver domain that crashes and starts again in place (`docs/recovery.md`).

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::pci::{self, Controller, PciDevice};
use crate::host::read_from;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::network::{CONNECTED, DRIVER_DOMAIN, Server};
use crate::testbed::report::milliseconds;
use crate::testbed::storage::{
    BOOT, READY, Running, Storage, controller_started, device_number, disk, own_disk_connected,
};
use crate::testbed::{MINUTE, Scenario, Testbed, fio};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "restart-in-place-pvh",
        about: "a PVH driver domain crashes in three ways, boots again in its own domain and keeps its images and disks; the fourth crash ends it",
        demo: false,
        run: |testbed| restarts(testbed, Kind::Pvh, 1),
    },
    Scenario {
        name: "restart-in-place-pv",
        about: "a PV driver domain crashes in three ways, boots again in its own domain and keeps its images and disks; the fourth crash ends it",
        demo: false,
        run: |testbed| restarts(testbed, Kind::Pv, 1),
    },
    Scenario {
        name: "restart-in-place-vcpus-pvh",
        about: "a PVH driver domain of two vCPUs hangs and crashes on either, boots again with both and keeps its images and disks",
        demo: false,
        run: |testbed| restarts(testbed, Kind::Pvh, 2),
    },
    Scenario {
        name: "restart-in-place-vcpus-pv",
        about: "a PV driver domain of two vCPUs hangs and crashes on either, boots again with both and keeps its images and disks",
        demo: false,
        run: |testbed| restarts(testbed, Kind::Pv, 2),
    },
    Scenario {
        name: "crashes-under-load-pvh",
        about: "a PVH driver domain of two vCPUs crashes three times, on either, under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, Disks::Images),
    },
    Scenario {
        name: "crashes-under-load-pv",
        about: "a PV driver domain of two vCPUs crashes three times, on either, under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, Disks::Images),
    },
];

/// The same with other disks.
pub const LONG: &[Scenario] = &[
    Scenario {
        name: "crashes-under-load-own-disks-pvh",
        about: "a PVH driver domain with two disks of its own crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, Disks::Own),
    },
    Scenario {
        name: "crashes-under-load-own-disks-pv",
        about: "a PV driver domain with two disks of its own crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, Disks::Own),
    },
    Scenario {
        name: "crashes-under-load-nbd-pvh",
        about: "a PVH driver domain that serves exports of two NBD servers crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, Disks::Exports),
    },
    Scenario {
        name: "crashes-under-load-nbd-pv",
        about: "a PV driver domain that serves exports of two NBD servers crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, Disks::Exports),
    },
];

/// The same with devices that are passed through.
pub const LONG_WITH_DEVICES: &[Scenario] = &[
    Scenario {
        name: "crashes-under-load-nvme-pv",
        about: "a PV driver domain with two NVMe controllers crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, Disks::Controllers),
    },
    Scenario {
        name: "crashes-under-load-virtio-pv",
        about: "a PV driver domain with a virtio-blk device and an NVMe controller crashes three times under two guests with fio, verified: they notice a pause",
        demo: false,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, Disks::Virtio),
    },
];

/// What guests' disks lie on.
#[derive(Clone, Copy)]
pub(super) enum Disks {
    /// Images in the driver domain's memory.
    Images,
    /// Disks of the driver domain's own, which dom0 serves.
    Own,
    /// Exports of servers in dom0, which the driver domain reaches over a network.
    Exports,
    /// Namespaces of two NVMe controllers that were passed through.
    Controllers,
    /// The same of one controller, and a virtio-blk device beside it.
    Virtio,
}

/// The servers of the exports: nbdkit, which takes several connections to one export at a time, and qemu-nbd with one.
const SERVERS: [Server; 2] = [Server::Files, Server::Single];

impl Disks {
    /// Waits until a driver domain has what they lie on.
    pub(super) fn wait(self, storage: &Running) -> Result<()> {
        match self {
            Disks::Images => Ok(()),
            Disks::Own => ["xvda", "xvdb"].iter().try_for_each(|device| {
                let connected = own_disk_connected(device);
                storage.wait_console(&connected, MINUTE).map(drop)
            }),
            Disks::Exports => storage.wait_console(CONNECTED, MINUTE).map(drop),
            Disks::Controllers | Disks::Virtio => self.devices().iter().try_for_each(|device| {
                let started = match device.controller {
                    Controller::Nvme(_) => controller_started(device),
                    Controller::VirtioBlk(_) => format!("virtio:{}: ", device.short_name()),
                };
                storage.wait_console(&started, MINUTE).map(drop)
            }),
        }
    }

    /// Returns the devices that are passed through: that of the guest that writes, and that of the one that reads.
    fn devices(self) -> &'static [PciDevice] {
        match self {
            Disks::Images | Disks::Own | Disks::Exports => &[],
            Disks::Controllers => &[pci::NVME, pci::TWO_NAMESPACES],
            Disks::Virtio => &[pci::NVME, pci::VIRTIO_BLK],
        }
    }

    /// Makes them for that driver domain, 16 MiB each, and returns a target on each of two. It has `images` anyway.
    pub(super) fn make<'l, 'h>(
        self,
        testbed: &'l Testbed<'h>,
        kind: Kind,
        mut images: Vec<Image>,
    ) -> Result<(Storage<'l, 'h>, [String; 2])> {
        let mut storage = testbed.storage(kind).cmdline("recover=on test-crash=on");
        if let Disks::Images = self {
            images.extend(["written", "read"].map(|name| Image::mib(name, 16)));
        }
        if !images.is_empty() {
            storage = storage.images(&images)?;
        }
        if let Disks::Images = self {
            return Ok((storage, ["ram:written", "ram:read"].map(str::to_owned)));
        }
        if let Disks::Exports = self {
            testbed.network()?;
            for server in SERVERS {
                testbed.start_server(server)?;
            }
            let words = format!("ip={DRIVER_DOMAIN}");
            let [files, qcow] = SERVERS;
            let targets = [files.target("root-bob"), qcow.target("qcow")];
            return Ok((storage.on_network(&words), targets));
        }
        if let [writes, reads] = self.devices() {
            let target = |device: &PciDevice| match device.controller {
                Controller::Nvme(_) => format!("nvme:{}", device.short_name()),
                Controller::VirtioBlk(_) => format!("virtio:{}", device.short_name()),
            };
            let targets = [target(writes), target(reads)];
            return Ok((storage.pci(writes).pci(reads), targets));
        }
        for device in ["xvda", "xvdb"] {
            let file = format!("/tmp/crashing-{kind}-{device}.img");
            let script = format!("rm -f {file} && truncate --size=16M {file}");
            testbed.host.ok(&script)?;
            let own = format!("format=raw,vdev={device},access=rw,backendtype=phy,target={file}");
            storage = storage.disk(&own);
        }
        Ok((storage, ["vbd:xvda", "vbd:xvdb"].map(str::to_owned)))
    }

    /// Removes what [`make`](Self::make) has made in dom0 and other scenarios would find.
    pub(super) fn remove(self, testbed: &Testbed) -> Result<()> {
        if let Disks::Exports = self {
            for server in SERVERS {
                testbed.kill_server(server)?;
            }
            testbed.host.ok("rm -r /tmp/nbd")?;
        }
        Ok(())
    }
}

/// The time within which what a crashed boot held has to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// The ways to crash, with the number of the vCPU if it is not the first, and what the report of each says. On PV, Xen
/// itself ends a domain whose stack overflows, and lets nobody damage page tables. On PV, a hang takes several vCPUs to be noticed.
fn crashes(kind: Kind, vcpus: u32) -> [(&'static str, &'static str); 3] {
    const FAULT: &str = "CPU exception 14: page fault";
    match (kind, vcpus) {
        (Kind::Pv, 1) => [
            ("panic", "panic on vCPU 0"),
            ("null", FAULT),
            ("heap", "memory allocation of"),
        ],
        (_, 1) => [
            ("page-table", FAULT),
            ("hang", "watchdog: vCPU 0 has run for 2 s"),
            ("stack", "the stack has overflowed"),
        ],
        (Kind::Pv, _) => [
            ("hang", "watchdog: vCPU 0 has run for 2 s"),
            ("null 1", FAULT),
            ("hang 1", "watchdog: vCPU 1 has run for 2 s"),
        ],
        (_, _) => [
            ("hang 1", "watchdog: vCPU 1 has run for 2 s"),
            ("stack 1", "the stack has overflowed"),
            ("hang", "watchdog: vCPU 0 has run for 2 s"),
        ],
    }
}

/// Writes random data to the disk and prints their sum.
pub(super) const WRITE: &str = "dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null && \
    dd if=/tmp/noise of=/dev/xvda bs=64k oflag=direct 2>/dev/null && sha256sum </tmp/noise";

/// Writes to the disk without end.
const WRITE_ON: &str =
    "while dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct; do :; done 2>/dev/null";

/// Prints the sum of the disk as it reads without the guest's cache.
pub(super) const READ: &str =
    "dd if=/dev/xvda bs=64k count=64 iflag=direct 2>/dev/null | sha256sum";

fn restarts(testbed: &Testbed, kind: Kind, vcpus: u32) -> Result<()> {
    let host = testbed.host;
    let mut storage = testbed
        .storage(kind)
        .images(&[Image::mib("disk", 4)])?
        .memory(24)
        .vcpus(vcpus)
        .cmdline("recover=on test-crash=on")
        .start()?;
    let nothing = Holdings::by(host, storage.id)?;
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    let mut config = host.lean_guest_config("guest", Kind::Pv, &disks)?;
    config.vcpus = vcpus;
    let mut guest = Guest::wait(host.create(&config)?)?;
    let written = guest.ok(WRITE, MINUTE)?;

    let [idle, busy, last] = crashes(kind, vcpus);
    testbed.step(format!("{kind}: a crash while a disk is connected"));
    let connected = Holdings::by(host, storage.id)?;
    crash_and_return(&storage, idle, 1)?;
    let read = guest.ok(READ, MINUTE)?;
    ensure!(
        read == written,
        "{kind}: after a crash, the disk reads {read}, but {written} was written"
    );

    if vcpus == 1 {
        // No node of the disk has changed, and Xen has given out the same again.
        connected.expect_within(host, storage.id, "after a crash", GIVEN_BACK)?;
    } else {
        // That depends on which of the guest's vCPUs has written and read.
        expect_all_serve(&storage, &guest, vcpus)?;
    }

    testbed.step(format!("{kind}: a crash while the guest writes"));
    guest.start(WRITE_ON)?;
    storage.wait_for_writes(&guest, device_number("xvda"), 50, MINUTE)?;
    crash_and_return(&storage, busy, 2)?;
    storage.wait_for_writes(&guest, device_number("xvda"), 50, MINUTE)?;
    guest.destroy()?;
    nothing.expect_within(host, storage.id, "after a crash in mid-write", GIVEN_BACK)?;

    testbed.step(format!("{kind}: a crash without any disk"));
    crash_and_return(&storage, last, 3)?;
    nothing.expect_within(host, storage.id, "after three restarts", GIVEN_BACK)?;

    testbed.step(format!("{kind}: the fourth crash within a minute"));
    let seen = storage.console_length();
    host.let_crash(storage.id);
    crash(&storage, "panic")?;
    storage.wait_gone(MINUTE)?;
    let console = storage.console_from(seen);
    ensure!(
        console.contains("no restart: three within a minute"),
        "{kind}: the fourth crash was not the last:\n{console}"
    );
    let log = read_from(&host.instance().share().join("xl/xl-storage.log"), 0);
    // SHUTDOWN_crash (sched.h).
    ensure!(
        log.contains("reason code 3"),
        "{kind}: xl was not told of a crash:\n{log}"
    );
    Ok(())
}

/// Expects that each vCPU serves one of the queues of the guest's disk.
fn expect_all_serve(storage: &Running, guest: &Guest, vcpus: u32) -> Result<()> {
    let counted = storage.statistics(guest, device_number("xvda"))?;
    let serving = |queue| counted.get(&format!("queue_{queue}_vcpu"));
    let mut all = (0..vcpus).map(serving).collect::<Result<Vec<_>>>()?;
    all.sort_unstable();
    ensure!(
        all.iter().copied().eq(0..u64::from(vcpus)),
        "queues are served by vCPUs {all:?}"
    );
    Ok(())
}

fn crash(storage: &Running, lever: &str) -> Result<()> {
    let node = format!("/local/domain/{}/data/crash", storage.id);
    storage
        .host
        .ok(&format!("xenstore-write {node} '{lever}'"))
        .map(drop)
}

/// Crashes the domain and waits until the same domain serves again, and tells of that crash and that many restarts.
pub(super) fn crash_and_return(
    storage: &Running,
    crash: (&str, &str),
    restarts: u32,
) -> Result<()> {
    let ((lever, report), seen) = (crash, storage.console_length());
    self::crash(storage, lever)?;
    storage.wait_console_from(seen, "started again in place", BOOT)?;
    storage.wait_console_from(seen, READY, BOOT)?;
    let id = storage.host.ok(&format!("xl domid {}", storage.name))?;
    ensure!(
        id.trim() == storage.id.to_string(),
        "domain {} became {id}",
        storage.id
    );
    // Both nodes, once they tell of this restart.
    let data = format!("/local/domain/{}/data", storage.id);
    let script = format!(
        "for n in $(seq 50); do [ \"$(xenstore-read {data}/restarts 2>/dev/null)\" = {restarts} ] && \
         xenstore-read {data}/last-crash && exit; sleep 0.1; done; exit 1"
    );
    let told = storage
        .host
        .ok(&script)
        .with_context(|| format!("data/restarts is not {restarts} after {lever}"))?;
    ensure!(
        told.contains(report),
        "after {lever}, data/last-crash says {told:?} instead of {report:?}"
    );
    Ok(())
}

/// Crashes of a scenario: as many as a minute may have.
const CRASHES: u32 = 3;

/// Time for which the second guest reads around each crash, in seconds.
const READS: u32 = 6;

/// Rounds over the disk, or so much of it, long enough for all crashes.
const LOOPS: &str = "--size=16m --loops=20 --time_based --runtime=45";

fn crashes_under_load(testbed: &Testbed, kind: Kind, on: Disks) -> Result<()> {
    let host = testbed.host;
    let (storage, [written, read]) = on.make(testbed, kind, Vec::new())?;
    let mut storage = storage.memory(64).vcpus(2).start()?;
    on.wait(&storage)?;
    let nothing = Holdings::by(host, storage.id)?;
    let disks = |target: &str| [disk("storage", "xvda", "rw", target)];
    let mut writer = host.guest("writer", Kind::Pvh, &disks(&written))?;
    let mut reader = host.guest("reader", Kind::Pv, &disks(&read))?;
    let job = writer.start(&fio::verify_command_with("/dev/xvda", LOOPS))?;
    storage.wait_for_writes(&writer, device_number("xvda"), 100, MINUTE)?;
    let nodes = Holdings::by(host, storage.id)?.nodes;

    let mut pauses = Vec::new();
    for number in 1..=CRASHES {
        testbed.step(format!("{kind}: crash {number} under load"));
        let reads = reader.start(&fio::reads_command("/dev/xvda", READS))?;
        host.ok("sleep 3")?;
        let crash = match number % 2 {
            0 => ("panic", "panic on vCPU 0"),
            _ => ("panic 1", "panic on vCPU 1"),
        };
        crash_and_return(&storage, crash, number)?;
        let reads = fio::finish_reads(&reader, reads, 2 * MINUTE)?;
        pauses.push(reads.longest);
        let now = Holdings::by(host, storage.id)?.nodes;
        ensure!(
            now == nodes,
            "{kind}: nodes were {nodes:?}, and are {now:?}"
        );
    }
    pauses.sort();
    let (median, worst) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    testbed.record(kind, "pause, median", milliseconds(median));
    testbed.record(kind, "pause, worst", milliseconds(worst));
    ensure!(
        worst < fio::NOT_ANSWERED,
        "{kind}: a guest has waited for {worst:?}"
    );

    testbed.step(format!("{kind}: everything verified, and nothing left"));
    fio::finish(&writer, job, FIO_LIMIT)?;
    let log = storage.console();
    let resumed = log.matches("taken up again").count();
    ensure!(
        resumed >= 2 * CRASHES as usize,
        "{kind}: {resumed} queues were taken up again:\n{log}"
    );
    writer.destroy()?;
    reader.destroy()?;
    nothing.expect_within(host, storage.id, "after three crashes", GIVEN_BACK)?;
    storage.shutdown()?;
    on.remove(testbed)
}
