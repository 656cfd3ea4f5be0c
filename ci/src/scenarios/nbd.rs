//! Exports of an NBD server in dom0, which the driver domain reaches over a network of its own.

use crate::config::Kind;
use crate::testbed::network::{DRIVER_DOMAIN, Server};
use crate::testbed::storage::{Running, disk};
use crate::testbed::write_verify;
use crate::testbed::{MINUTE, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "nbd-life",
    about: "an NBD server is killed in mid-write and started again, then the link is down for 8 seconds: the guest waits, and all is verified; a server that comes back with a disk of another size is refused, and the next guest has that disk",
    demo: false,
    run: life,
}];

/// MiB that a guest writes and compares.
const MIB: u32 = 2;

/// The seconds for which the link is down.
const DOWN: u32 = 8;

/// A driver domain on the network, with the memory for so many disks on servers.
fn storage<'h>(testbed: &Testbed<'h>, kind: Kind, disks: u32) -> Result<Running<'h>> {
    let storage = testbed.storage(kind).memory(16 + 4 * disks);
    let storage = storage.on_network(&format!("ip={DRIVER_DOMAIN}")).start()?;
    storage.wait_console("network vif0: connected to domain 0", MINUTE)?;
    Ok(storage)
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
    write_verify::wait_for_passes(&guest, 1)?;

    testbed.step("the server is killed in mid-write, and started again");
    let start = storage.console_length();
    testbed.kill_server(Server::Files)?;
    storage.wait_console_from(start, "its requests wait", MINUTE)?;
    testbed.start_server(Server::Files)?;
    storage.wait_console_from(start, "it is connected again", MINUTE)?;
    let passes = write_verify::passes(&guest)?;
    write_verify::wait_for_passes(&guest, passes + 2)?;

    testbed.step(format!("the link is down for {DOWN} seconds"));
    let link = format!("vif{}.0", storage.id);
    host.ok(&format!("ip link set {link} down; sleep {DOWN}"))?;
    let before = write_verify::passes(&guest)?;
    host.ok(&format!("sleep 1; ip link set {link} up"))?;
    write_verify::wait_for_passes(&guest, before + 2)?;
    write_verify::stop(&guest, keeping)?;

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
