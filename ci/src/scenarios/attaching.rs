//! Attaching and detaching many times, and many disks.

use crate::config::Kind;
use crate::host::block_list::{self, Row};
use crate::host::guest::Guest;
use crate::lab::held::Held;
use crate::lab::images::Image;
use crate::lab::leftover::State;
use crate::lab::report::milliseconds;
use crate::lab::storage::disk;
use crate::lab::{Lab, MINUTE, Scenario, noise};
use crate::process::tail;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sixteen-disks",
        about: "16 disks on one guest, all in use at once, each byte on the disk it was written to",
        demo: false,
        run: sixteen_disks,
    },
    Scenario {
        name: "hundred-rounds",
        about: "a disk attached and detached 100 times while another is busy and verified; nothing is left",
        demo: false,
        run: hundred_rounds,
    },
];

const ROUNDS: usize = 100;

/// After so many rounds the lab looks at what they printed, and counts what is held.
const STRETCH: usize = 25;

/// All rounds together, and those between two counts.
const ROUNDS_LIMIT: Duration = Duration::from_secs(720);
const STRETCH_LIMIT: Duration = Duration::from_secs(180);

/// A round: attaches `xvdb`, waits until its frontend is connected, detaches it, and prints what
/// `xl block-list` shows in between and at the end.
const ROUND: &str = r#"
round() {
    xl block-attach guest "$disk" || return
    looks=0
    until [ "$(xenstore-read $frontend/state)" = 4 ]; do
        looks=$((looks + 1))
        [ $looks -lt 1000 ] || { echo "round $1: not connected"; return 1; }
    done
    echo "@attached"
    xl block-list guest || return
    xl block-detach guest xvdb || return
    echo "@detached"
    xl block-list guest
}
"#;

fn hundred_rounds(lab: &Lab) -> Result<()> {
    lab.may_take(ROUNDS_LIMIT);
    let _preferred = lab.host.prefer_dom0()?;
    let images = [Image::mib("busy", 4), Image::mib("coming", 1)];
    let mut storage = lab.storage(Kind::Pvh).images(&images)?.memory(24).start()?;
    let alone = Held::by(lab.host, storage.id)?;
    lab.step("a guest with one disk");
    let disks = [disk("storage", "xvda", "rw", "ram:busy")];
    let mut guest = lab.host.lean_guest("guest", Kind::Pv, &disks)?;
    let busy = guest.start(&noise::keep_at_it("xvda", 1))?;
    noise::wait_for_passes(&guest, 1)?;
    let with_guest = Held::by(lab.host, storage.id)?;
    let whole_host = State::of(lab.host)?;

    let mut took = Duration::ZERO;
    let mut passes = noise::passes(&guest)?;
    for done in (STRETCH..=ROUNDS).step_by(STRETCH) {
        lab.step(format!("rounds {} to {done}", done + 1 - STRETCH));
        let start = Instant::now();
        rounds(lab, &guest, STRETCH)?;
        took += start.elapsed();
        let detached = storage.console().matches(": detached").count();
        ensure!(
            detached == done,
            "the driver domain's log shows {detached} detached disks, expected {done}"
        );
        let before = std::mem::replace(&mut passes, noise::passes(&guest)?);
        ensure!(passes > before, "the other disk was not in use meanwhile");
        let left = whole_host.new_in(&State::of(lab.host)?);
        ensure!(
            left.is_empty(),
            "after {done} rounds there is more: {left:?}"
        );
        // How many pages of the busy disk are mapped changes from one moment to the next.
        let now = Held {
            grants: with_guest.grants,
            ..Held::by(lab.host, storage.id)?
        };
        ensure!(
            now == with_guest,
            "after {done} rounds the driver domain holds {now:?}, before them {with_guest:?}"
        );
    }
    let each = milliseconds(took / ROUNDS as u32);

    lab.step(format!("{each} a round; ending the guest"));
    noise::stop(&guest, busy)?;
    guest.destroy()?;
    alone.expect(lab.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}

/// Attaches and detaches `count` times, and looks at every list of disks in between.
fn rounds(lab: &Lab, guest: &Guest, count: usize) -> Result<()> {
    let frontend = format!("/local/domain/{}/device/vbd/{}", guest.id, device(1));
    let disk = disk("storage", "xvdb", "rw", "ram:coming");
    let script = format!(
        "frontend={frontend}\ndisk='{disk}'\n{ROUND}\n\
         for n in $(seq {count}); do round $n 2>&1 || exit; done"
    );
    let output = lab.host.exec(&script, STRETCH_LIMIT)?;
    ensure!(output.status == 0, "{}", tail(&output.out, 12));
    let lists = |mark| -> Result<Vec<Vec<Row>>> {
        let parts = output.out.split('@');
        parts
            .filter_map(|part| part.strip_prefix(mark))
            .map(block_list::parse)
            .collect()
    };
    let connected = |n| Row {
        device: device(n),
        state: 4,
    };
    let (attached, detached) = (lists("attached")?, lists("detached")?);
    ensure!(
        attached.len() == count && detached.len() == count,
        "{} rounds were begun and {} ended, expected {count}",
        attached.len(),
        detached.len()
    );
    for list in attached {
        ensure!(
            list == [connected(0), connected(1)],
            "with two disks, xl block-list shows {list:?}"
        );
    }
    for list in detached {
        ensure!(
            list == [connected(0)],
            "with one disk, xl block-list shows {list:?}"
        );
    }
    Ok(())
}

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
    storage.shutdown()
}
