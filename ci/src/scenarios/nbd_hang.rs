//! An NBD server that hangs.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::network::{DRIVER_DOMAIN, Server};
use crate::testbed::storage::disk;
use crate::testbed::{Part, Scenario, Testbed, fio, write_verify};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "nbd-hang",
    about: "an NBD server hangs while a guest writes to its export: a guest on another server's disk, served by the same vCPU, reads on, no read taking two seconds, and the first one goes on and is verified once its server does",
    part: Part::Suite,
    run: hang,
}];

/// The server that goes on.
const OTHER: Server = Server::Memory(8);

/// The seconds for which a guest reads.
const READS: u32 = 5;

/// The longest time that a read may take on a busy emulated host.
const LONGEST: Duration = Duration::from_secs(2);

fn hang(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    testbed.network()?;
    for server in [OTHER, Server::Files] {
        testbed.start_server(server)?;
    }
    let storage = testbed.storage(Kind::Pvh).memory(16 + 4 * 2).vcpus(1);
    let words = format!("ip={DRIVER_DOMAIN}");
    let mut storage = storage.on_network(&words).start()?;
    let disks = [disk("storage", "xvda", "rw", &OTHER.target(""))];
    let mut reader = host.guest("reader", Kind::Pv, &disks)?;
    let target = Server::Files.target("root-bob");
    let disks = [disk("storage", "xvda", "rw", &target)];
    let mut writer = host.lean_guest("writer", Kind::Pvh, &disks)?;
    let keeping = writer.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&writer, 1)?;
    let before = fio::reads(&reader, "/dev/xvda", READS)?;
    testbed.step(format!("{before:?} while both servers are in order"));

    testbed.stop_server(Server::Files)?;
    // What is on its way arrives before that.
    host.ok("sleep 1")?;
    let passes = write_verify::passes(&writer)?;
    let meanwhile = fio::reads(&reader, "/dev/xvda", READS)?;
    testbed.step(format!(
        "{meanwhile:?} while the other guest's server hangs"
    ));
    ensure!(
        write_verify::passes(&writer)? == passes,
        "the writer goes on although its server hangs"
    );
    // Rates are told, and not compared: two hosts share the machine that emulates them.
    ensure!(
        meanwhile.longest < LONGEST,
        "the reader is delayed: {before:?}, then {meanwhile:?}"
    );

    testbed.continue_server(Server::Files)?;
    write_verify::wait_for_passes(&writer, passes + 2)?;
    write_verify::stop(&writer, keeping)?;
    Guest::destroy_all([&mut reader, &mut writer])?;
    storage.shutdown()?;
    for server in [OTHER, Server::Files] {
        testbed.kill_server(server)?;
    }
    host.ok("rm -r /tmp/nbd").map(drop)
}
