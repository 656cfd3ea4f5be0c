//! Attaching and detaching many times, and many disks.

use crate::config::Kind;
use crate::host::block_list::{self, Row};
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::process::tail;
use crate::testbed::host_state::HostState;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::report::milliseconds;
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed, write_verify};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sixteen-disks",
        about: "16 disks of one guest, all in use at once: each byte is on the disk it was written to",
        part: Part::Suite,
        run: sixteen_disks,
    },
    Scenario {
        name: "full-domain",
        about: "26 disks of one guest with 4 vCPUs, on a driver domain of 296 MiB of which the image has 280: all connect, and another guest's disk goes on",
        part: Part::ByName,
        run: |testbed| many_disks(testbed, &[ALMOST_FULL]),
    },
    Scenario {
        name: "hundred-rounds",
        about: "disks are attached and detached 100 times while another disk is in use and verified; nothing is left",
        part: Part::ByName,
        run: |testbed| many_rounds(testbed, 25),
    },
    Scenario {
        name: "many-disks",
        about: "26 disks of one guest with 4 vCPUs, on a driver domain of 16, 64 and 296 MiB: all connect, and another guest's disk goes on",
        part: Part::ByName,
        run: |testbed| {
            many_disks(
                testbed,
                &[(16, 1, Kind::Pv), (64, 1, Kind::Pv), ALMOST_FULL],
            )
        },
    },
];

/// The number of disks that come and go together. A detached disk can be seen for two and a half seconds, so they go at
/// the same time.
const AT_ONCE: usize = 4;

/// The number of rounds after which the scenario checks their output, and counts the driver domain's holdings.
const STRETCH: usize = 5;

/// Time limits for all rounds together, and for those between two counts.
const ROUNDS_LIMIT: Duration = Duration::from_secs(720);
const STRETCH_LIMIT: Duration = Duration::from_secs(180);

/// A round: attaches `$names`, waits until their frontends are connected, detaches them, and prints the output of `xl
/// block-list` in between and at the end.
const ROUND: &str = r#"
round() {
    for name in $names; do
        xl block-attach guest "backend=storage,vdev=$name,format=raw,access=rw,target=ram:$name" || return
    done
    looks=0
    until [ "$(xenstore-ls -f $frontends | grep -c '/state = "4"')" = $connected ]; do
        looks=$((looks + 1))
        [ $looks -lt 1000 ] || { echo "round $1: not connected"; return 1; }
    done
    echo "@attached"
    xl block-list guest || return
    rm -f /tmp/kept
    for name in $names; do (xl block-detach guest $name || touch /tmp/kept) & done
    wait
    [ ! -e /tmp/kept ] || return 1
    echo "@detached"
    xl block-list guest
}
"#;

/// Returns the disks that come and go, each with an image of its name.
fn coming() -> Vec<String> {
    (1..=AT_ONCE).map(name).collect()
}

/// Attaches and detaches [`AT_ONCE`] disks `count` times.
fn many_rounds(testbed: &Testbed, count: usize) -> Result<()> {
    testbed.may_take(ROUNDS_LIMIT);
    let _preferred = testbed.host.prefer_dom0()?;
    let mut images = vec![Image::mib("busy", 4)];
    images.extend(coming().iter().map(|name| Image::mib(name, 1)));
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(24)
        .start()?;
    let alone = Holdings::by(testbed.host, storage.id)?;
    testbed.step("a guest with one disk");
    let disks = [disk("storage", "xvda", "rw", "ram:busy")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
    let busy = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&guest, 1)?;
    let with_guest = Holdings::by(testbed.host, storage.id)?;
    let whole_host = HostState::of(testbed.host)?;

    let mut took = Duration::ZERO;
    let mut passes = write_verify::passes(&guest)?;
    for done in (STRETCH..=count).step_by(STRETCH) {
        testbed.step(format!("rounds {} to {done}", done + 1 - STRETCH));
        let start = Instant::now();
        rounds(testbed, &guest, STRETCH)?;
        took += start.elapsed();
        let detached = storage.console().matches(": detached").count();
        ensure!(
            detached == done * AT_ONCE,
            "after {done} rounds the driver domain's log shows {detached} detached disks"
        );
        let before = std::mem::replace(&mut passes, write_verify::passes(&guest)?);
        ensure!(passes > before, "the other disk was not in use meanwhile");
        let left = whole_host.new_in(&HostState::of(testbed.host)?);
        ensure!(
            left.is_empty(),
            "after {done} rounds there is more: {left:?}"
        );
        // How many pages of the busy disk are mapped changes from one moment to the next.
        let now = Holdings {
            grants: with_guest.grants,
            ..Holdings::by(testbed.host, storage.id)?
        };
        ensure!(
            now == with_guest,
            "after {done} rounds the driver domain holds {now:?}, before them {with_guest:?}"
        );
    }
    let each = milliseconds(took / count as u32);

    testbed.step(format!("{each} a round; ending the guest"));
    write_verify::stop(&guest, busy)?;
    guest.destroy()?;
    alone.expect(testbed.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}

/// Attaches and detaches `count` times, and checks every list of disks in between.
fn rounds(testbed: &Testbed, guest: &Guest, count: usize) -> Result<()> {
    let script = format!(
        "frontends=/local/domain/{}/device/vbd\nnames='{}'\nconnected={}\n{ROUND}\n\
         for n in $(seq {count}); do round $n 2>&1 || exit; done",
        guest.id,
        coming().join(" "),
        AT_ONCE + 1
    );
    let output = testbed.host.exec(&script, STRETCH_LIMIT)?;
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
            list == (0..=AT_ONCE).map(connected).collect::<Vec<_>>(),
            "with {AT_ONCE} more disks, xl block-list shows {list:?}"
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

/// Returns the name of a guest's n-th disk: `xvda`, `xvdb` and on.
fn name(n: usize) -> String {
    format!("xvd{}", char::from(b'a' + n as u8))
}

/// Returns its number.
fn device(n: usize) -> u32 {
    51712 + 16 * n as u32
}

const DISKS: usize = 16;

fn sixteen_disks(testbed: &Testbed) -> Result<()> {
    let images: Vec<Image> = (0..DISKS)
        .map(|n| Image::mib(&format!("disk{n}"), 2))
        .collect();
    let mut storage = testbed
        .storage(Kind::Pv)
        .images(&images)?
        .memory(56)
        .start()?;
    let before = Holdings::by(testbed.host, storage.id)?;
    let disks: Vec<String> = (0..DISKS)
        .map(|n| disk("storage", &name(n), "rw", &format!("ram:disk{n}")))
        .collect();
    testbed.step("a guest with 16 disks");
    let mut config = testbed.host.lean_guest_config("guest", Kind::Pvh, &disks)?;
    // Linux's frontend keeps 4 MiB of its own for each disk.
    config.memory += 128;
    let mut guest = Guest::wait(testbed.host.create(&config)?)?;
    let list = block_list::parse(&testbed.host.ok("xl block-list guest")?)?;
    let expected: Vec<Row> = (0..DISKS)
        .map(|n| Row {
            device: device(n),
            state: 4,
        })
        .collect();
    ensure!(list == expected, "xl block-list shows {list:?}");
    let held = Holdings::by(testbed.host, storage.id)?;
    ensure!(
        held.ports >= before.ports + DISKS && held.grants >= before.grants + DISKS,
        "16 disks, but the driver domain holds {} ports and {} grants, without them {} and {}",
        held.ports,
        held.grants,
        before.ports,
        before.grants
    );

    testbed.step("random data on all disks at once");
    let names: Vec<String> = (0..DISKS).map(name).collect();
    let output = guest.ok(&write_verify::all_at_once(&names, "64k", 16), MINUTE)?;
    ensure!(
        write_verify::is_equal(&output, DISKS as u32),
        "of {DISKS} MiB the guest compared {output}"
    );
    testbed.step("detaching the odd ones, then ending the guest");
    let odd: Vec<String> = (1..DISKS).step_by(2).map(name).collect();
    testbed.host.ok(&format!(
        "rm -f /tmp/kept\n\
         for d in {}; do (xl block-detach guest $d || touch /tmp/kept) & done; wait\n\
         [ ! -e /tmp/kept ]",
        odd.join(" ")
    ))?;
    let list = block_list::parse(&testbed.host.ok("xl block-list guest")?)?;
    let left: Vec<u32> = list.iter().map(|row| row.device).collect();
    let even: Vec<u32> = (0..DISKS).step_by(2).map(device).collect();
    ensure!(left == even, "xl block-list shows {list:?}");
    guest.destroy()?;
    before.expect(testbed.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}

/// The number of disks that one of xl's guests can have with names of one letter.
const MANY: usize = 26;

/// A driver domain's memory, its image's size, both in MiB, and the kind of its guest. The ramdisk is one image; where
/// it is large, little of the memory is left for disks.
type Size = (u32, u64, Kind);
const ALMOST_FULL: Size = (296, 280, Kind::Pvh);

/// The time limit for three driver domains and three guests with many disks.
const MANY_LIMIT: Duration = Duration::from_secs(1200);

/// The time that such a guest may take to boot: Linux probes its disks one after another, on four vCPUs that
/// share an emulated processor with everything else.
const MANY_BOOT: Duration = Duration::from_secs(360);

/// Reads the start of every disk, all at once, and counts those that could be read.
const READ_ALL: &str = r#"
for d in $disks; do
    (dd if=/dev/$d of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null && touch /tmp/read-$d) &
done
wait
ls /tmp/read-* | wc -l
"#;

fn many_disks(testbed: &Testbed, sizes: &[Size]) -> Result<()> {
    testbed.may_take(MANY_LIMIT);
    let verify = |guest: &Guest| -> Result<()> {
        let output = guest.ok(&write_verify::command("xvda", 1), MINUTE)?;
        ensure!(
            write_verify::is_equal(&output, 1),
            "{}: {output}",
            guest.name
        );
        Ok(())
    };
    let mut bystander = testbed.host.lean_guest("bystander", Kind::Pv, &[])?;
    for &(memory, image, kind) in sizes {
        let (here, _) = testbed.shared_file("image");
        std::fs::File::create(here)?.set_len(image << 20)?;
        let storage = testbed.storage(Kind::Pvh).ramdisk("image").memory(memory);
        let mut storage = storage.start()?;
        let ours = disk("storage", "xvda", "rw", "ram:disk0");
        testbed
            .host
            .ok(&format!("xl block-attach bystander '{ours}'"))?;
        bystander.ok("until [ -b /dev/xvda ]; do usleep 100000; done", MINUTE)?;
        verify(&bystander)?;
        testbed.step(format!("{MANY} disks of one guest, with {memory} MiB"));
        let name = |n: usize| format!("xvd{}", char::from(b'a' + n as u8));
        let disks: Vec<String> = (0..MANY)
            .map(|n| disk("storage", &name(n), "rw", "null:64M"))
            .collect();
        let mut config = testbed.host.lean_guest_config("guest", kind, &disks)?;
        config.vcpus = 4;
        // Linux's frontend keeps 4 MiB of its own for each queue with persistent grants.
        config.memory += 128;
        let mut guest = Guest::wait_within(testbed.host.create(&config)?, MANY_BOOT)?;
        let list = block_list::parse(&testbed.host.ok("xl block-list guest")?)?;
        let connected = list.iter().filter(|row| row.state == 4).count();
        ensure!(connected == MANY, "xl block-list shows {list:?}");
        let names: Vec<String> = (0..MANY).map(name).collect();
        let read = format!("disks='{}'\n{READ_ALL}", names.join(" "));
        let read = guest.ok(&read, MINUTE)?;
        ensure!(read.trim() == MANY.to_string(), "{read} disks were read");
        verify(&bystander)?;

        testbed.step("an image that grows leaves memory for disks to come");
        let answer = grow_as_far_as_it_goes(testbed, &storage)?;
        ensure!(answer.contains(" grew from "), "data/grow: {answer}");
        let next = disk("storage", "xvdb", "rw", "null:64M");
        testbed
            .host
            .ok(&format!("xl block-attach bystander '{next}'"))?;
        bystander.ok("until [ -b /dev/xvdb ]; do usleep 100000; done", MINUTE)?;
        verify(&bystander)?;
        guest.destroy()?;
        for name in ["xvda", "xvdb"] {
            testbed
                .host
                .ok(&format!("xl block-detach bystander {name}"))?;
        }
        storage.shutdown()?;
    }
    bystander.destroy()
}

/// Grows the image by a MiB at a time until that is refused. Returns the last answer before.
fn grow_as_far_as_it_goes(testbed: &Testbed, storage: &Domain) -> Result<String> {
    let data = format!("/local/domain/{}/data", storage.id);
    let script = format!(
        r#"
size=$(xl list storage | awk 'NR == 2 {{ print $3 }}')
while [ $size -gt 1 ]; do
    xenstore-write {data}/grow-answer "" {data}/grow "disk0 ${{size}}M"
    looks=0
    until answer=$(xenstore-read {data}/grow-answer) && [ -n "$answer" ]; do
        looks=$((looks + 1))
        [ $looks -lt 1000 ] || exit 1
    done
    case $answer in *" grew from "*) echo "$answer"; exit;; esac
    size=$((size - 1))
done
echo "$answer"
"#
    );
    testbed.host.ok(&script)
}
