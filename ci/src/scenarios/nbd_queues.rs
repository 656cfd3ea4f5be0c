//! A network interface with several queues, and another one in its place whose backend takes one.

use super::crash::Crash;
use crate::config::Kind;
use crate::host::Host;
use crate::testbed::network::{BRIDGE, CONNECTED, DRIVER_DOMAIN, Server};
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, write_verify};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "nbd-queues",
    about: "dom0's netback takes two queues, and the driver domain (PVH) has both: two exports are written and compared at once, over one each; the domain crashes and has both again; another interface with one comes in its place, and the guest goes on",
    part: Part::ByName,
    run: queues,
}];

/// The servers of the two exports.
const SERVERS: [Server; 2] = [Server::Files, Server::Qcow2];

/// The MiB that a guest writes and compares.
const MIB: u32 = 2;

/// dom0's limit on the queues of an interface that is attached from then on. Without it, that is the number of its
/// processors.
const LIMIT: &str = "/sys/module/xen_netback/parameters/max_queues";

fn queues(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    testbed.network()?;
    let usual = host.ok(&format!("cat {LIMIT}"))?;
    limit(host, "2")?;
    for server in SERVERS {
        testbed.start_server(server)?;
    }
    let storage = testbed.storage(Kind::Pvh).memory(16 + 4 * 2 + 2);
    let words = format!("recover=on test-crash=on net-queues=4 ip={DRIVER_DOMAIN}");
    let mut storage = storage.on_network(&words).start()?;
    storage.wait_console(CONNECTED, MINUTE)?;
    connected(&storage, 0, 2)?;

    testbed.step("two exports at once, over two queues");
    let [files, qcow] = SERVERS;
    let disks = [
        disk("storage", "xvda", "rw", &files.target("root-bob")),
        disk("storage", "xvdb", "rw", &qcow.target("qcow")),
    ];
    let mut guest = host.lean_guest("guest", Kind::Pvh, &disks)?;
    let both = ["xvda", "xvdb"].map(|device| guest.start(&write_verify::command(device, MIB)));
    for started in both {
        let output = guest.finish(started?, 2 * MINUTE)?;
        ensure!(write_verify::is_equal(&output.out, MIB), "{}", output.out);
    }
    let line = network_line(&storage)?;
    // Each connection is sent by one queue. By which ones dom0 sends is its own choice.
    for queue in ["queue-0-sent", "queue-1-sent"] {
        ensure!(count(&line, queue)? > 20, "a queue is hardly used: {line}");
    }
    ensure!(
        line.contains(" damaged=0 refused=0 "),
        "packets were lost: {line}"
    );
    testbed.step(line.trim());

    testbed.step("a crash");
    let keeping = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&guest, 1)?;
    let seen = storage.console_length();
    Crash::by("panic", 0).and_return(&storage, 1)?;
    storage.wait_console_from(seen, CONNECTED, MINUTE)?;
    connected(&storage, seen, 2)?;
    write_verify::goes_on(&guest)?;

    testbed.step("another interface comes in its place, with one queue");
    let seen = storage.console_length();
    limit(host, "1")?;
    replace_backend(&storage)?;
    storage.wait_console_from(seen, CONNECTED, MINUTE)?;
    connected(&storage, seen, 1)?;
    write_verify::goes_on(&guest)?;
    write_verify::stop(&guest, keeping)?;
    write_verify::verify(&guest, "xvdb", MIB)?;
    guest.destroy()?;
    storage.shutdown()?;
    limit(host, &usual)?;
    for server in SERVERS {
        testbed.kill_server(server)?;
    }
    host.ok("rm -r /tmp/nbd").map(drop)
}

/// Limits the queues of interfaces that are attached from now on.
fn limit(host: &Host, queues: &str) -> Result<()> {
    host.ok(&format!("echo {} >{LIMIT}", queues.trim()))
        .map(drop)
}

/// Checks that the domain and dom0's kernel say that the interface has that many queues.
fn connected(storage: &Running, seen: usize, queues: usize) -> Result<()> {
    let said = format!(", {queues} queue(s)");
    storage.wait_console_from(seen, &said, MINUTE)?;
    let interrupts = "awk '{ print $NF }' /proc/interrupts";
    let interrupts = storage.host.ok(interrupts)?;
    let name = format!("vif{}.0-q", storage.id);
    let of_it: Vec<&str> = interrupts
        .lines()
        .filter(|line| line.starts_with(&name))
        .collect();
    ensure!(of_it.len() == queues, "dom0 has the interrupts {of_it:?}");
    Ok(())
}

/// Has the operator detach the interface and attach another one. (A netback that is bound anew goes on with the rings of the
/// one before it, and so with as many queues.)
fn replace_backend(storage: &Running) -> Result<()> {
    let name = &storage.name;
    let script = format!("xl network-detach {name} 0 && xl network-attach {name} bridge={BRIDGE}");
    storage.host.ok(&script).map(drop)
}

/// Returns the line about the network that the operator is shown.
fn network_line(storage: &Running) -> Result<String> {
    let all = storage.ask("show", "network vif0")?;
    let line = all.lines().find(|line| line.contains("network vif0"));
    Ok(line
        .with_context(|| format!("nothing about it:\n{all}"))?
        .to_owned())
}

/// Returns the value of a key in that line.
fn count(line: &str, key: &str) -> Result<u64> {
    let mut words = line.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let value = value.with_context(|| format!("no {key}: {line}"))?;
    Ok(value.parse()?)
}
