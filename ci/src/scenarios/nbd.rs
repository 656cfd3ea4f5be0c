//! Exports of NBD servers in dom0, which the driver domain reaches over a network of its own.

use super::operator::other;
use super::refusal::refuse;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::network::{CONNECTED, DRIVER_DOMAIN, Server};
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use crate::testbed::{fio, write_verify};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nbd-disks",
        about: "PVH and PV driver domains serve exports of two nbdkits and of qemu-nbd (qcow2) over a bridge of dom0's: fio verified, ext4 with fsync that dom0 finds in the server's file, an export that is not there refused with those that are",
        part: Part::Suite,
        run: disks,
    },
    Scenario {
        name: "nbd-life",
        about: "an NBD server is killed in mid-write and started again, then the link is down for 8 seconds, and for 30: the guest waits, all is verified, and retransmissions were counted; a server that comes back with a disk of another size is refused, and the next guest has that disk",
        part: Part::Suite,
        run: life,
    },
    Scenario {
        name: "nbd-server",
        about: "a PV driver domain serves an export of Debian's nbd-server: fio verified, ext4 with fsync that dom0 finds in the server's file, an export that is not there refused with those that are; the server is killed in mid-write and started again, the guest waits, and all is verified",
        part: Part::ByName,
        run: nbd_server,
    },
];

/// An empty disk in memory, of so many MiB, which fio works on.
const MEMORY: Server = Server::Memory(8);

/// How much of a disk fio verifies: the whole one of [`MEMORY`]'s.
const FIO: &str = "--size=8M";

/// MiB that a guest writes and compares.
const MIB: u32 = 2;

/// The seconds for which the link is down: a time that a connection outlasts, and one after which the server may have been
/// given up for silent.
const DOWN: [u32; 2] = [8, 30];

/// Makes a file system, writes files that are flushed, and prints their checksums.
const WRITE: &str = "mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /mnt && \
    for i in 1 2 3 4; do \
        dd if=/dev/urandom of=/mnt/file$i bs=$((i * 37))k count=3 conv=fsync 2>/dev/null || exit 1; \
    done && (cd /mnt && sha256sum file1 file2 file3 file4) && umount /mnt && e2fsck -fn /dev/xvdb >&2";

/// Prints the checksums of what dom0 finds in the server's file.
const READ: &str = "set -e; mkdir -p /tmp/nbd/mnt
mount -o loop,ro /tmp/nbd/files/root-bob /tmp/nbd/mnt
cd /tmp/nbd/mnt; sha256sum file1 file2 file3 file4; cd /; umount /tmp/nbd/mnt";

/// A driver domain on the network, with the memory for so many disks on servers.
fn storage<'h>(testbed: &Testbed<'h>, kind: Kind, disks: u32) -> Result<Running<'h>> {
    let storage = testbed.storage(kind).memory(16 + 4 * disks);
    let storage = storage.on_network(&format!("ip={DRIVER_DOMAIN}")).start()?;
    storage.wait_console(CONNECTED, MINUTE)?;
    Ok(storage)
}

fn disks(testbed: &Testbed) -> Result<()> {
    testbed.network()?;
    testbed.step("three servers start in dom0");
    for server in [MEMORY, Server::Files, Server::Qcow2] {
        testbed.start_server(server)?;
    }
    verified(testbed, Kind::Pvh, Server::Files, "/dev/xvda")?;
    two_servers(testbed, Kind::Pv)?;
    for server in [MEMORY, Server::Files, Server::Qcow2] {
        testbed.kill_server(server)?;
    }
    testbed.host.ok("rm -r /tmp/nbd").map(drop)
}

/// A guest has a disk of [`MEMORY`]'s, and a file of another server's: fio verifies the first, or a part of the second,
/// which then has files that are flushed.
fn verified(testbed: &Testbed, kind: Kind, files: Server, device: &str) -> Result<()> {
    let mut storage = storage(testbed, kind, 2)?;
    let disks = [
        disk("storage", "xvda", "rw", &MEMORY.target("")),
        disk("storage", "xvdb", "rw", &files.target("root-bob")),
    ];
    let mut guest = testbed.host.guest("guest", other(kind), &disks)?;
    testbed.step(format!("fio verifies {device}"));
    let command = fio::verify_command_with(device, FIO);
    fio::finish(&guest, guest.start(&command)?, 3 * MINUTE)?;
    testbed.step("files on a disk that is a file of another server's");
    let written = guest.ok(WRITE, MINUTE)?;
    shown(testbed, &storage, [MEMORY, files])?;
    guest.destroy()?;
    testbed.step("an export that is not there");
    refuse(
        testbed,
        &storage,
        &files.target("root-eve"),
        "there are: root-bob",
    )?;
    storage.shutdown()?;
    let found = testbed.host.ok(READ)?;
    let sums = |text: &str| -> Vec<String> {
        let is_sum = |line: &&str| {
            line.split_whitespace()
                .next()
                .is_some_and(|word| word.len() == 64)
        };
        text.lines().filter(is_sum).map(str::to_owned).collect()
    };
    ensure!(
        sums(&written).len() == 4 && sums(&written) == sums(&found),
        "the guest wrote {written}, and dom0 finds {found}"
    );
    Ok(())
}

/// What the operator is shown.
fn shown(testbed: &Testbed, storage: &Running, servers: [Server; 2]) -> Result<()> {
    let all = storage.ask("show", "all")?;
    let line = |what: &str| {
        let line = all.lines().find(|line| line.contains(what));
        line.with_context(|| format!("nothing about {what}:\n{all}"))
    };
    let network = line("network vif0")?;
    ensure!(
        network.contains(" up") && network.contains(DRIVER_DOMAIN),
        "{network}"
    );
    ensure!(
        network.contains(" damaged=0 ") && network.contains(" refused=0"),
        "packets were lost: {network}"
    );
    testbed.step(network.trim());
    for server in servers {
        let export = line(&format!("{}/", server.target("").trim_end_matches('/')))?;
        ensure!(
            export.contains(": connected, ") && export.contains(" 0 failed"),
            "{export}"
        );
        testbed.step(export.trim());
    }
    Ok(())
}

/// A guest has disks of two servers at once.
fn two_servers(testbed: &Testbed, kind: Kind) -> Result<()> {
    let mut storage = storage(testbed, kind, 2)?;
    let disks = [
        disk("storage", "xvda", "rw", &Server::Files.target("root-bob")),
        disk("storage", "xvdb", "rw", &Server::Qcow2.target("qcow")),
    ];
    let mut guest = testbed.host.lean_guest("guest", other(kind), &disks)?;
    testbed.step("a guest works on nbdkit's disk and on qemu-nbd's at once");
    let both = ["xvda", "xvdb"].map(|device| guest.start(&write_verify::command(device, MIB)));
    for started in both {
        let output = guest.finish(started?, 2 * MINUTE)?;
        ensure!(write_verify::is_equal(&output.out, MIB), "{}", output.out);
    }
    guest.destroy()?;
    storage.shutdown()
}

fn nbd_server(testbed: &Testbed) -> Result<()> {
    testbed.network()?;
    testbed.start_server(MEMORY)?;
    testbed.start_server(Server::NbdServer)?;
    verified(testbed, Kind::Pv, Server::NbdServer, "/dev/xvdb")?;
    let mut storage = storage(testbed, Kind::Pv, 1)?;
    let target = Server::NbdServer.target("root-bob");
    let disks = [disk("storage", "xvda", "rw", &target)];
    let mut guest = testbed.host.lean_guest("writer", Kind::Pvh, &disks)?;
    let keeping = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    killed_and_started(testbed, &storage, &guest, Server::NbdServer)?;
    write_verify::stop(&guest, keeping)?;
    guest.destroy()?;
    storage.shutdown()?;
    for server in [MEMORY, Server::NbdServer] {
        testbed.kill_server(server)?;
    }
    testbed.host.ok("rm -r /tmp/nbd").map(drop)
}

/// A server is killed while a guest keeps writing, and started again.
fn killed_and_started(
    testbed: &Testbed,
    storage: &Running,
    guest: &Guest,
    server: Server,
) -> Result<()> {
    write_verify::wait_for_passes(guest, 1)?;
    testbed.step("the server is killed in mid-write, and started again");
    let start = storage.console_length();
    testbed.kill_server(server)?;
    storage.wait_console_from(start, "its requests wait", MINUTE)?;
    testbed.start_server(server)?;
    storage.wait_console_from(start, "it is connected again", MINUTE)?;
    let passes = write_verify::passes(guest)?;
    write_verify::wait_for_passes(guest, passes + 2)
}

/// What was sent while the link was down was sent again, and the operator is shown that.
fn retransmitted(testbed: &Testbed, storage: &Running) -> Result<()> {
    let all = storage.ask("show", "network vif0")?;
    let count = all.split_whitespace().find_map(|word| {
        let count = word.strip_prefix("retransmitted=")?;
        count.parse::<u64>().ok()
    });
    let count = count.with_context(|| format!("no count of retransmissions:\n{all}"))?;
    ensure!(count > 0, "nothing was sent again: {all}");
    testbed.step(all.trim());
    Ok(())
}

fn life(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    testbed.network()?;
    testbed.start_server(Server::Files)?;
    let mut storage = storage(testbed, Kind::Pvh, 1)?;
    let target = Server::Files.target("root-bob");
    let disks = [disk("storage", "xvda", "rw", &target)];
    let mut guest = host.lean_guest("writer", Kind::Pvh, &disks)?;
    let keeping = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    killed_and_started(testbed, &storage, &guest, Server::Files)?;

    let link = format!("vif{}.0", storage.id);
    for down in DOWN {
        testbed.step(format!("the link is down for {down} seconds"));
        // What is on its way arrives before that.
        host.ok(&format!("ip link set {link} down && sleep 2"))?;
        let before = write_verify::passes(&guest)?;
        host.ok(&format!("sleep {}", down - 2))?;
        ensure!(
            write_verify::passes(&guest)? == before,
            "the guest goes on without a link"
        );
        host.ok(&format!("ip link set {link} up"))?;
        write_verify::wait_for_passes(&guest, before + 2)?;
    }
    write_verify::stop(&guest, keeping)?;
    retransmitted(testbed, &storage)?;

    testbed.step("the server comes back with a disk of another size");
    let start = storage.console_length();
    testbed.kill_server(Server::Files)?;
    host.ok("truncate --size=8M /tmp/nbd/files/root-bob")?;
    testbed.start_server(Server::Files)?;
    storage.expect_error(start, "another export in its place", MINUTE)?;
    let read = guest.exec(
        "dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct",
        MINUTE,
    )?;
    ensure!(
        read.status != 0,
        "the guest reads from another disk than it had"
    );
    guest.destroy()?;
    let mut guest = host.lean_guest("next", Kind::Pv, &disks)?;
    let sectors = guest.ok("cat /sys/block/xvda/size", MINUTE)?;
    ensure!(sectors.trim() == "16384", "the disk has {sectors} sectors");
    write_verify::verify(&guest, "xvda", MIB)?;
    guest.destroy()?;

    testbed.step("shutdown while the server is away");
    testbed.kill_server(Server::Files)?;
    storage.shutdown()?;
    host.ok("rm -r /tmp/nbd").map(drop)
}
