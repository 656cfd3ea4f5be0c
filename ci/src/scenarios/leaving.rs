//! After a detach nothing is left: no mapping, no event channel, no xenstore directory.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::lab::held::Held;
use crate::lab::images::Image;
use crate::lab::storage::{device_number, disk};
use crate::lab::{Lab, MINUTE, Scenario};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "detach",
        about: "xl block-detach leaves no grant map, no event channel and no xenstore node",
        demo: false,
        run: |lab| Kind::ALL.into_iter().try_for_each(|kind| detach(lab, kind)),
    },
    Scenario {
        name: "destroyed-guest",
        about: "xl destroy of a guest in mid-write leaves nothing, and the next guest is served",
        demo: false,
        run: destroyed_guest,
    },
];

fn detach(lab: &Lab, kind: Kind) -> Result<()> {
    let images = [Image::mib("first", 4), Image::mib("second", 4)];
    let mut storage = lab.storage(kind).images(&images)?.memory(32).start()?;
    lab.step("a guest with one disk");
    let disks = [disk("storage", "xvda", "rw", "ram:first")];
    let mut guest = lab.host.guest("guest", Kind::Pvh, &disks)?;
    let use_disk = |guest: &Guest, name: &str| {
        guest.ok(
            &format!("dd if=/dev/zero of=/dev/{name} bs=64k count=16 conv=fsync"),
            MINUTE,
        )
    };
    use_disk(&guest, "xvda")?;
    let before = Held::by(lab.host, storage.id)?;
    for round in 1..=2 {
        lab.step(format!("attaching and detaching, round {round}"));
        lab.host
            .attach_disk(&guest, &disk("storage", "xvdb", "rw", "ram:second"), 51728)?;
        guest.ok("until [ -b /dev/xvdb ]; do sleep 0.1; done", MINUTE)?;
        use_disk(&guest, "xvdb")?;
        let during = Held::by(lab.host, storage.id)?;
        ensure!(
            during.ports > before.ports && during.grants > before.grants,
            "an attached disk shows no event channel or no grant: {during:?}, without it: {before:?}"
        );
        lab.host.ok("xl block-detach guest xvdb")?;
        before.expect(lab.host, storage.id, "after a detach")?;
    }
    use_disk(&guest, "xvda")?;
    guest.destroy()?;
    storage.shutdown()
}

fn destroyed_guest(lab: &Lab) -> Result<()> {
    let images = [Image::mib("disk", 16)];
    let mut storage = lab.storage(Kind::Pvh).images(&images)?.memory(32).start()?;
    let before = Held::by(lab.host, storage.id)?;
    for kind in Kind::ALL {
        lab.step(format!("destroying a {kind} guest in mid-write"));
        let disks = [disk("storage", "xvda", "rw", "ram:disk")];
        let mut guest = lab.host.guest("guest", kind, &disks)?;
        guest.start(
            "while true; do dd if=/dev/zero of=/dev/xvda bs=1M oflag=direct 2>/dev/null; done",
        )?;
        storage.wait_for_writes(&guest, device_number("xvda"), 10, MINUTE)?;
        guest.destroy()?;
        before.expect(lab.host, storage.id, "after the guest's end")?;
    }
    storage.shutdown()
}
