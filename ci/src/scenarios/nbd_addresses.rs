//! Addresses and names on the network of NBD servers: those that servers of dom0 give, and those of IPv6.

use super::refusal::refuse;
use crate::config::Kind;
use crate::testbed::network::{ALIAS, DRIVER_DOMAIN_6, NAME, Server};
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, write_verify};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "nbd-dhcp",
    about: "a driver domain (PV) that no DHCP server gives an address gets one from dnsmasq once it runs, renews it, and finds an NBD server by its name, each time that it connects; a name that is not there is refused with the reason; another server is reached over IPv6",
    part: Part::Suite,
    run: addresses,
}];

/// The MiB that a guest writes and compares.
const MIB: u32 = 2;

fn addresses(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    testbed.network()?;
    for server in [Server::Files, Server::Six] {
        testbed.start_server(server)?;
    }
    testbed.step("nobody gives an address");
    let storage = testbed.storage(Kind::Pv).memory(16 + 4 * 2);
    let words = format!("ip=dhcp,{DRIVER_DOMAIN_6}");
    let mut storage = storage.on_network(&words).start()?;
    storage.wait_console("network vif0: no DHCP server gives an address", MINUTE)?;
    let line = network_line(&storage)?;
    ensure!(line.contains(" up, without an address"), "{line}");

    testbed.step("dnsmasq does, and knows the server's name");
    testbed.start_dnsmasq()?;
    storage.wait_console("network vif0: the address is 10.0.0.5", MINUTE)?;
    let line = network_line(&storage)?;
    ensure!(line.contains("addresses=fd00::7/64,10.0.0.5"), "{line}");
    let named = Server::Files.target_at(ALIAS, "root-bob");
    let disks = [
        disk("storage", "xvda", "rw", &named),
        disk("storage", "xvdb", "rw", &Server::Six.target("")),
    ];
    let mut guest = host.lean_guest("guest", Kind::Pvh, &disks)?;
    let both = ["xvda", "xvdb"].map(|device| guest.start(&write_verify::command(device, MIB)));
    for started in both {
        let output = guest.finish(started?, 2 * MINUTE)?;
        ensure!(write_verify::is_equal(&output.out, MIB), "{}", output.out);
    }

    testbed.step("the name is asked for again");
    let start = storage.console_length();
    testbed.kill_server(Server::Files)?;
    testbed.start_server(Server::Files)?;
    storage.wait_console_from(start, "it is connected again", MINUTE)?;
    write_verify::verify(&guest, "xvda", MIB)?;
    guest.destroy()?;

    testbed.step("a name that is not there");
    let nobody = Server::Files.target_at("nobody.example", "root-bob");
    refuse(
        testbed,
        &storage,
        &nobody,
        "nobody.example:10810: its name has no address",
    )?;
    let line = network_line(&storage)?;
    ensure!(line.contains(" damaged=0 "), "packets were damaged: {line}");
    storage.shutdown()?;

    let log = testbed.stop_dnsmasq()?;
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    let (renewed, asked) = (count("DHCPACK("), count(&format!("query[A] {ALIAS}")));
    ensure!(renewed >= 2, "the lease was not renewed:\n{log}");
    ensure!(asked >= 2, "{ALIAS} was asked for {asked} times:\n{log}");
    ensure!(count(&format!("config {NAME} is 10.0.0.2")) >= 2, "{log}");
    testbed.step(format!(
        "{renewed} times an address, {asked} times the server's"
    ));
    for server in [Server::Files, Server::Six] {
        testbed.kill_server(server)?;
    }
    host.ok("rm -r /tmp/nbd").map(drop)
}

/// Returns the line about the network that the operator is shown.
fn network_line(storage: &Running) -> Result<String> {
    let all = storage.ask("show", "network")?;
    let line = all.lines().find(|line| line.contains("network vif0"));
    Ok(line
        .with_context(|| format!("nothing about it:\n{all}"))?
        .to_owned())
}
