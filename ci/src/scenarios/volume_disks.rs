//! Partitions and logical volumes on disks of the driver domain's own, made in dom0 by the tools that users have.

use super::operator::other;
use super::refusal::refuse;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "volume-disks",
    about: "partitions of sgdisk's and logical volumes of lvcreate's through PVH and PV driver domains: dom0 reads the same data through them, lvextend is announced, a second writer is refused; a table whose first header is gone is served from the other one, until sgdisk has mended it",
    part: Part::Suite,
    run: volume_disks,
}];

/// The partition for guests, by its label and by its GUID.
const LABEL: &str = "alpha";
const GUID: &str = "7d1c3a52-6a0e-4f0b-9b59-2f4c1f0d9e11";

/// What dom0's commands about volumes begin with: has LVM work without udev, which dom0 does not run, and look at loop
/// devices alone. LVM complains about each file that a shell has open.
pub(super) const IN_FOLDER: &str = r#"mkdir -p /tmp/volumes && cd /tmp/volumes && set -e
export LVM_SYSTEM_DIR=$PWD LVM_SUPPRESS_FD_WARNINGS=1
cat >lvm.conf <<'END'
devices { global_filter = [ "a|^/dev/loop|", "r|.*|" ]  use_devicesfile = 0
          obtain_device_list_from_udev = 0  external_device_info_source = "none" }
activation { udev_sync = 0  udev_rules = 0  monitoring = 0 }
backup { backup = 0  archive = 0 }
END
modprobe dm-mod
"#;

/// Makes a disk with two partitions, of which the second is a physical volume, and one that is a physical
/// volume altogether; a linear and a striped volume on both, in several pieces. The volumes are filled with
/// random data. The last line of output has the names of the two disks.
const MAKE: &str = "
truncate --size=16M partitioned.img whole.img
sgdisk --clear --new=1:0:+2M --change-name=1:LABEL --partition-guid=1:GUID \
    --new=2:0:0 --typecode=2:8e00 --change-name=2:pool partitioned.img
partitioned=$(losetup --find --show --partscan partitioned.img)
whole=$(losetup --find --show whole.img)
pool=${partitioned}p2
pvcreate $pool $whole
vgcreate --physicalextentsize 512k vg0 $whole $pool
lvcreate --yes --name alice --extents 4 vg0 $whole
lvcreate --yes --name bob --extents 4 --stripes 2 --stripesize 64k vg0
lvextend --extents +2 vg0/alice $pool
lvextend --extents +2 vg0/bob
for volume in ${partitioned}p1:2 /dev/vg0/alice:3 /dev/vg0/bob:3; do
    dd if=/dev/urandom of=${volume%:*} bs=1M count=${volume#*:} iflag=fullblock oflag=direct
done
echo $partitioned $whole";

/// Makes both logical volumes larger, by this many MiB.
const GROWTH: u32 = 1;
const EXTEND: &str = "
lvextend --extents +2 vg0/alice POOL
lvextend --extents +2 vg0/bob";

/// Overwrites the first header of the partition table, as a tool that takes the disk for another one would.
const DAMAGE: &str =
    "dd if=/dev/zero of=partitioned.img bs=512 seek=1 count=1 conv=notrunc 2>/dev/null";
/// Has sgdisk, which finds the other header, write both again, with a new label.
const MEND: &str = "sgdisk --change-name=1:MENDED partitioned.img";
const MENDED: &str = "mended";

/// Checks the tables, and takes all of it away.
const REMOVE: &str = "
sgdisk --verify partitioned.img
vgck vg0
vgchange --activate n vg0
losetup --detach PARTITIONED
losetup --detach WHOLE
rm -r /tmp/volumes";

/// A volume: where a guest has it, what the guest calls it, where dom0 has it, and its size in MiB.
struct Volume {
    device: &'static str,
    target: String,
    in_dom0: String,
    size: u32,
}

/// The two disks, as dom0 names them.
struct Disks<'d> {
    partitioned: &'d str,
    whole: &'d str,
}

fn volume_disks(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    testbed.step("sgdisk, pvcreate, vgcreate and lvcreate in dom0");
    let make = MAKE.replace("LABEL", LABEL).replace("GUID", GUID);
    let made = host.ok(&format!("{IN_FOLDER}{make}"))?;
    let names = made.lines().last().and_then(|line| line.split_once(' '));
    let (partitioned, whole) = names.with_context(|| format!("dom0 printed {made}"))?;
    let disks = Disks { partitioned, whole };
    let volume = |device, target: &str, in_dom0: &str, size| Volume {
        device,
        target: format!("vbd:{target}"),
        in_dom0: in_dom0.to_owned(),
        size,
    };
    let mut volumes = [
        volume("xvda", "xvda/", &format!("{partitioned}p1"), 2),
        volume("xvdb", "xvdb/vg0/alice", "/dev/vg0/alice", 3),
        // Named by either of the disks it lies on.
        volume("xvdc", "xvda/vg0/bob", "/dev/vg0/bob", 3),
    ];
    for (kind, name) in [(Kind::Pvh, LABEL), (Kind::Pv, GUID)] {
        volumes[0].target = format!("vbd:xvda/{name}");
        serve(testbed, kind, &disks, &mut volumes)?;
    }
    let remove = REMOVE
        .replace("PARTITIONED", partitioned)
        .replace("WHOLE", whole);
    let checked = host.ok(&format!("{IN_FOLDER}{remove}"))?;
    ensure!(
        checked.contains("No problems found"),
        "sgdisk finds the partition table damaged: {checked}"
    );
    Ok(())
}

/// Has a driver domain of that kind serve the volumes to a guest of the other kind.
fn serve(
    testbed: &Testbed,
    kind: Kind,
    disks: &Disks<'_>,
    volumes: &mut [Volume; 3],
) -> Result<()> {
    let own = |vdev: &str, device: &str| {
        format!("format=raw,vdev={vdev},access=rw,backendtype=phy,target={device}")
    };
    let damaged = kind == Kind::Pv;
    if damaged {
        testbed.step("the first header of the partition table is overwritten");
        testbed.host.ok(&format!("{IN_FOLDER}{DAMAGE}"))?;
    }
    let mut storage = testbed
        .storage(kind)
        .memory(20)
        .disk(&own("xvda", disks.partitioned))
        .disk(&own("xvdb", disks.whole))
        .start()?;
    for vdev in ["xvda", "xvdb"] {
        let connected = format!("disk {vdev}: connected to domain");
        storage.wait_console(&connected, MINUTE)?;
    }
    let served: Vec<_> = volumes
        .iter()
        .map(|volume| disk("storage", volume.device, "rw", &volume.target))
        .collect();
    testbed.step("a guest reads what dom0 has, and dom0 what the guest writes");
    let mut guest = testbed.host.lean_guest("guest", other(kind), &served)?;
    let devices = volumes.iter().map(|it| format!("/dev/{}", it.device));
    expect_in_dom0(testbed, volumes, &guest.ok(&sums(devices), MINUTE)?)?;
    write(testbed, &guest, volumes)?;

    let (target, reason) = match kind {
        Kind::Pvh => ("vbd:xvda", "is in use: it has sectors of vbd:xvda/"),
        _ => ("vbd:xvda/pool", "has the partition type of LVM"),
    };
    testbed.step(format!("another guest that wants {target}"));
    refuse(testbed, &storage, target, &format!("{target} {reason}"))?;

    if damaged {
        mended(testbed, &storage)?;
    }
    // Once is enough: what grows is the same in both kinds, and the other one is given what has grown.
    if kind == Kind::Pvh {
        testbed.step("lvextend in dom0 makes the logical volumes larger");
        extend(&storage, &guest, disks, volumes)?;
        write(testbed, &guest, volumes)?;
    }
    let connections = storage.console().matches(": connected, ").count();
    ensure!(
        connections == volumes.len(),
        "the guest's disks connected {connections} times"
    );
    guest.destroy()?;
    storage.shutdown()
}

/// The partition table was read from its other header, which the log says; sgdisk writes both again, and the driver domain
/// finds what it wrote.
fn mended(testbed: &Testbed, storage: &Running) -> Result<()> {
    const USED: &str = "the partition table at its start is damaged (it has no header), the one at its end is used";
    testbed.step("sgdisk mends the partition table, whose other header was used");
    storage.wait_console(USED, MINUTE)?;
    let seen = storage.console_length();
    let mend = MEND.replace("MENDED", MENDED);
    testbed.host.ok(&format!("{IN_FOLDER}{mend}"))?;
    let answer = storage.ask("rescan", "vbd:xvda")?;
    ensure!(
        answer.starts_with("vbd:xvda was read again") && answer.lines().count() == 1,
        "the answer is {answer:?}"
    );
    let there_are = format!("there are: {MENDED}");
    refuse(testbed, storage, "vbd:xvda/nothing", &there_are)?;
    let log = storage.console_from(seen);
    ensure!(!log.contains("is damaged"), "it is not mended: {log}");
    Ok(())
}

/// Returns a command that prints the checksums of devices; all of each is read, past the cache.
fn sums(devices: impl Iterator<Item = String>) -> String {
    let devices: Vec<_> = devices.collect();
    format!(
        "for device in {}; do dd if=$device of=/tmp/seen bs=64k iflag=direct 2>/dev/null && \
         md5sum </tmp/seen || exit 1; done",
        devices.join(" ")
    )
}

/// Makes sure that dom0 finds this in the volumes, as [`sums`] prints it.
fn expect_in_dom0(testbed: &Testbed, volumes: &[Volume], seen: &str) -> Result<()> {
    let in_dom0 = volumes.iter().map(|volume| volume.in_dom0.clone());
    let there = testbed.host.ok(&sums(in_dom0))?;
    ensure!(
        seen == there && seen.lines().count() == volumes.len(),
        "the guest has\n{seen}and dom0\n{there}"
    );
    Ok(())
}

/// Has the guest fill all volumes with random data; all of it is there afterwards, for the guest and for dom0.
fn write(testbed: &Testbed, guest: &Guest, volumes: &[Volume]) -> Result<()> {
    let fill = volumes.iter().map(|Volume { device, size, .. }| {
        let blocks = size * 16;
        format!(
            "dd if=/dev/urandom of=/tmp/{device} bs=64k count={blocks} iflag=fullblock 2>/dev/null && \
             dd if=/tmp/{device} of=/dev/{device} bs=64k oflag=direct 2>/dev/null"
        )
    });
    let look = volumes.iter().map(|Volume { device, .. }| {
        format!(
            "dd if=/dev/{device} bs=64k iflag=direct 2>/dev/null | cmp - /tmp/{device} && \
             md5sum </tmp/{device}"
        )
    });
    let command = fill.chain(look).collect::<Vec<_>>().join(" && ");
    let written = guest.ok(&command, MINUTE)?;
    expect_in_dom0(testbed, volumes, &written)
}

/// Makes sure that the volumes begin with what was written last, however large they are now.
fn expect_written(guest: &Guest, volumes: &[Volume]) -> Result<()> {
    let compare = volumes.iter().map(|Volume { device, size, .. }| {
        let blocks = size * 16;
        format!(
            "dd if=/dev/{device} bs=64k count={blocks} iflag=direct 2>/dev/null | cmp - /tmp/{device}"
        )
    });
    let compare = compare.collect::<Vec<_>>().join(" && ");
    guest.ok(&compare, MINUTE).map(drop)
}

/// Extends the logical volumes in dom0, has the driver domain read their tables again, and waits until the
/// guest sees them grow. What was on them stays.
fn extend(
    storage: &Running,
    guest: &Guest,
    disks: &Disks<'_>,
    volumes: &mut [Volume; 3],
) -> Result<()> {
    let pool = format!("{}p2", disks.partitioned);
    let extend = EXTEND.replace("POOL", &pool);
    storage.host.ok(&format!("{IN_FOLDER}{extend}"))?;
    let answer = storage.ask("rescan", "vbd:xvdb")?;
    ensure!(
        answer.starts_with("vbd:xvdb was read again, volumes on it: 2\n"),
        "the answer is {answer:?}"
    );
    let mut lines = Vec::new();
    for volume in &volumes[1..] {
        let sectors = |mib: u32| u64::from(mib) * 2048;
        let (from, to) = (sectors(volume.size), sectors(volume.size + GROWTH));
        let Volume { target, device, .. } = volume;
        let grown = format!(" ({device}) has grown from {from} to {to} sectors of 512 bytes");
        let mut all = answer.lines();
        ensure!(
            all.any(|line| line.starts_with(target.as_str()) && line.ends_with(&grown)),
            "the answer does not say that {target}{grown}: {answer:?}"
        );
        guest.wait_for_sectors(device, to)?;
        lines.push(format!("volume {target}, {to} sectors"));
        lines.push(format!("{target} is open for writing by vbd {}/", guest.id));
    }
    expect_written(guest, volumes)?;
    volumes[1..]
        .iter_mut()
        .for_each(|volume| volume.size += GROWTH);
    let seen = storage.console_length();
    storage.press("i")?;
    for line in lines {
        storage.wait_console_from(seen, &line, MINUTE)?;
    }
    Ok(())
}
