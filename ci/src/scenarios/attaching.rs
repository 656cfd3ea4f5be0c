//! Many disks on one guest.

use crate::config::Kind;
use crate::host::block_list::{self, Row};
use crate::host::guest::Guest;
use crate::lab::held::Held;
use crate::lab::images::Image;
use crate::lab::storage::disk;
use crate::lab::{Lab, Scenario};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "sixteen-disks",
    about: "16 disks on one guest, all in use at once, each byte on the disk it was written to",
    demo: false,
    run: sixteen_disks,
}];

const MINUTE: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(20);

/// The number of a guest's n-th disk: `xvda`, `xvdb` and on.
fn device(n: usize) -> u32 {
    51712 + 16 * n as u32
}

const DISKS: usize = 16;

/// Every disk gets 1 MiB of its own noise, all of them at once; then all are read back.
const NOISE: &str = r#"
for d in $disks; do
    (dd if=/dev/urandom of=/tmp/$d bs=64k count=16 2>/dev/null &&
     dd if=/tmp/$d of=/dev/$d bs=64k oflag=direct 2>/dev/null || touch /tmp/failed) &
done
wait
for d in $disks; do
    (dd if=/dev/$d bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/$d || touch /tmp/failed) &
done
wait
[ ! -e /tmp/failed ] && cat $(for d in $disks; do echo /tmp/$d; done) | wc -c
"#;

fn sixteen_disks(lab: &Lab) -> Result<()> {
    let images: Vec<Image> = (0..DISKS)
        .map(|n| Image::mib(&format!("disk{n}"), 2))
        .collect();
    let mut storage = lab.storage(Kind::Pv).images(&images)?.memory(56).start()?;
    let before = Held::by(lab.host, storage.id)?;
    let name = |n: usize| format!("xvd{}", char::from(b'a' + n as u8));
    let disks: Vec<String> = (0..DISKS)
        .map(|n| disk("storage", &name(n), "rw", &format!("ram:disk{n}")))
        .collect();
    lab.step("a guest with 16 disks");
    let mut config = lab.host.lean_guest_config("guest", Kind::Pvh, &disks)?;
    // Linux's frontend keeps 4 MiB of its own for each disk.
    config.memory += 128;
    let mut guest = Guest::wait(lab.host.create(&config)?)?;
    let list = block_list::parse(&lab.host.ok("xl block-list guest")?)?;
    let expected: Vec<Row> = (0..DISKS)
        .map(|n| Row {
            device: device(n),
            state: 4,
        })
        .collect();
    ensure!(list == expected, "xl block-list shows {list:?}");
    let held = Held::by(lab.host, storage.id)?;
    ensure!(
        held.ports >= before.ports + DISKS && held.grants >= before.grants + DISKS,
        "16 disks, but the driver domain holds {} ports and {} grants, without them {} and {}",
        held.ports,
        held.grants,
        before.ports,
        before.grants
    );

    lab.step("noise on all disks at once");
    let names: Vec<String> = (0..DISKS).map(name).collect();
    let noise = format!("disks='{}'\n{NOISE}", names.join(" "));
    let bytes = guest.ok(&noise, MINUTE)?;
    ensure!(
        bytes.trim() == (DISKS << 20).to_string(),
        "of {DISKS} MiB the guest compared {bytes}"
    );
    lab.step("detaching the odd ones, then ending the guest");
    for n in (1..DISKS).step_by(2) {
        lab.host.ok(&format!("xl block-detach guest {}", name(n)))?;
    }
    let list = block_list::parse(&lab.host.ok("xl block-list guest")?)?;
    let left: Vec<u32> = list.iter().map(|row| row.device).collect();
    let even: Vec<u32> = (0..DISKS).step_by(2).map(device).collect();
    ensure!(left == even, "xl block-list shows {list:?}");
    guest.destroy()?;
    before.expect(lab.host, storage.id, "after the guest's end")?;
    storage.shutdown(END)
}
