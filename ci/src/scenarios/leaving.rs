//! After a detach nothing is left: no mapping, no event channel, no xenstore directory.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "detach",
        about: "xl block-detach from a PV driver domain leaves no grant map, no event channel and no xenstore node",
        part: Part::Suite,
        run: |testbed| detach(testbed, Kind::Pv),
    },
    Scenario {
        name: "detach-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| detach(testbed, Kind::Pvh),
    },
    Scenario {
        name: "destroyed-guest",
        about: "xl destroy of a guest in mid-write leaves nothing, and the next guest is served",
        part: Part::Suite,
        run: destroyed_guest,
    },
];

fn detach(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("first", 4), Image::mib("second", 4)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(32).start()?;
    testbed.step("a guest with one disk");
    let disks = [disk("storage", "xvda", "rw", "ram:first")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &disks)?;
    let use_disk = |guest: &Guest, name: &str| {
        guest.ok(
            &format!("dd if=/dev/zero of=/dev/{name} bs=64k count=16 conv=fsync"),
            MINUTE,
        )
    };
    use_disk(&guest, "xvda")?;
    let before = Holdings::by(testbed.host, storage.id)?;
    for round in 1..=2 {
        testbed.step(format!("attaching and detaching, round {round}"));
        testbed
            .host
            .attach_disk(&guest, &disk("storage", "xvdb", "rw", "ram:second"), 51728)?;
        guest.ok("until [ -b /dev/xvdb ]; do sleep 0.1; done", MINUTE)?;
        use_disk(&guest, "xvdb")?;
        let during = Holdings::by(testbed.host, storage.id)?;
        ensure!(
            during.ports > before.ports && during.grants > before.grants,
            "an attached disk shows no event channel or no grant: {during:?}, without it: {before:?}"
        );
        testbed.host.ok("xl block-detach guest xvdb")?;
        before.expect(testbed.host, storage.id, "after a detach")?;
    }
    use_disk(&guest, "xvda")?;
    guest.destroy()?;
    storage.shutdown()
}

fn destroyed_guest(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("disk", 16)];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(32)
        .start()?;
    let before = Holdings::by(testbed.host, storage.id)?;
    for kind in Kind::ALL {
        testbed.step(format!("destroying a {kind} guest in mid-write"));
        let disks = [disk("storage", "xvda", "rw", "ram:disk")];
        let mut guest = testbed.host.lean_guest("guest", kind, &disks)?;
        guest.start(
            "while true; do dd if=/dev/zero of=/dev/xvda bs=1M oflag=direct 2>/dev/null; done",
        )?;
        storage.wait_for_writes(&guest, device_number("xvda"), 10, MINUTE)?;
        guest.destroy()?;
        before.expect(testbed.host, storage.id, "after the guest's end")?;
    }
    storage.shutdown()
}
