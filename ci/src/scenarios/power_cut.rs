//! The whole host loses its power while guests write to lasting disks: what they had flushed is there afterwards.

use super::operator::other;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::records;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "power-cut",
    about: "QEMU is killed while guests write through PVH and PV driver domains to files of dom0's: every record that was flushed is there afterwards, and what was not flushed is lost",
    demo: false,
    run: power_cut,
}];

/// Where dom0 has the file system on its lasting disk.
const FOLDER: &str = "/tmp/lasting";
const MOUNT: &str = "mkdir -p /tmp/lasting && mount /dev/vdb /tmp/lasting";

/// Makes the files that are the driver domains' disks. dom0 keeps what is written to them in its memory until it is
/// flushed, and is told never to write it out by itself: a disk with a volatile cache.
const MAKE: &str = "truncate --size=8M pvh.img pv.img unflushed.img && \
    echo 0 >/proc/sys/vm/dirty_writeback_centisecs";

/// Records that each guest has flushed before the power is cut.
const RECORDS: u32 = 20;

/// Bytes that a guest writes and does not flush.
const UNFLUSHED: u32 = 64 << 10;

fn power_cut(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    host.ok(&format!(
        "mkfs.ext4 -q /dev/vdb && {MOUNT} && cd {FOLDER} && {MAKE}"
    ))?;
    let own = |vdev: &str, file: &str| {
        format!("format=raw,vdev={vdev},access=rw,backendtype=phy,target={FOLDER}/{file}.img")
    };
    let served =
        |storage: &str, device: &str| disk(storage, device, "rw", &format!("vbd:{device}"));
    let mut running: Vec<(Running, Guest)> = Vec::new();
    for kind in Kind::ALL {
        let name = format!("storage-{kind}");
        let storage = testbed.storage(kind).name(&name).memory(20);
        let mut storage = storage.disk(&own("xvda", &kind.to_string()));
        let mut disks = vec![served(&name, "xvda")];
        if kind == Kind::Pv {
            storage = storage.disk(&own("xvdb", "unflushed"));
            disks.push(served(&name, "xvdb"));
        }
        let storage = storage.start()?;
        testbed.step(format!("a guest of {name} writes"));
        let guest = host.lean_guest(&format!("guest-{kind}"), other(kind), &disks)?;
        running.push((storage, guest));
    }
    let (_, guest) = &running[1];
    let unflushed = guest.ok(
        &format!(
            "dd if=/dev/urandom of=/tmp/data bs={UNFLUSHED} count=1 iflag=fullblock 2>/dev/null && \
             dd if=/tmp/data of=/dev/xvdb bs={UNFLUSHED} oflag=direct 2>/dev/null && sha256sum </tmp/data"
        ),
        MINUTE,
    )?;
    let in_file = format!("head -c {UNFLUSHED} {FOLDER}/unflushed.img | sha256sum");
    ensure!(
        host.ok(&in_file)? == unflushed,
        "dom0 does not have what the guest wrote"
    );
    for (_, guest) in &running {
        guest.start(&records::write("xvda"))?;
    }
    for (_, guest) in &running {
        records::wait_for(guest, RECORDS, MINUTE)?;
    }

    testbed.step("killing QEMU in mid-write, and booting the host again");
    host.cycle_power()?;
    for (storage, guest) in &mut running {
        storage.ended_with_host();
        guest.ended_with_host();
    }
    host.ok(MOUNT)?;
    for (kind, (_, guest)) in Kind::ALL.into_iter().zip(&running) {
        let flushed = records::flushed(guest)?;
        let there = host.ok(&records::sum_of(&format!("{FOLDER}/{kind}.img"), flushed))?;
        ensure!(
            there == records::expected(flushed),
            "{} flushed {flushed} records, and not all of them are there",
            guest.name
        );
    }
    // A disk that loses nothing would not have shown that a flush is passed on.
    ensure!(
        host.ok(&in_file)? != unflushed,
        "what was not flushed outlived the host: the disk has no volatile cache"
    );
    host.ok(&format!("umount {FOLDER}")).map(drop)
}
