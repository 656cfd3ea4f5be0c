//! A driver domain that is created anew, and a disk that is taken away by force: the effects for guests and operators.
//! The README's table "After a restart of the driver domain" describes them.

use crate::config::Kind;
use crate::host::Host;
use crate::host::block_list;
use crate::host::guest::{Guest, Started};
use crate::testbed::guest_queue;
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::write_verify::{self, write_to_the_end};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, side_by_side};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "replaced-storage",
        about: "xl destroy and xl create of a driver domain in use: PVH and PV guests attach again; xl block-detach --force in mid-write leaves nothing",
        part: Part::Suite,
        run: replaced_storage,
    },
    Scenario {
        name: "rebooted-storage",
        about: "xl reboot of a driver domain whose disks are idle, mounted and written to: PVH and PV guests attach them again",
        part: Part::ByName,
        run: rebooted_storage,
    },
];

/// The disks of each guest. Each has an image that is named after the guest and the disk.
const IDLE: &str = "xvda";
const BUSY: &str = "xvdb";
const MOUNTED: &str = "xvdc";
const OTHER: &str = "xvdd";
const DISKS: [&str; 3] = [IDLE, BUSY, MOUNTED];

/// The time that a writer whose disk was closed may take to end, before its guest's queue is examined.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// The number of times that a disk of each guest is taken away by force. When requests that came late had no answer,
/// one guest in six waited for ever.
const TAKEN_AWAY: usize = 3;

/// The states of a frontend (`XenbusState` in Xen's io/xenbus.h).
const CONNECTED: u32 = 4;
const CLOSED: u32 = 6;

/// Makes a file system, mounts it and leaves it idle.
const MOUNT: &str =
    "mkfs.ext4 -q /dev/DISK && mount -t ext4 /dev/DISK /mnt && echo lasts >/mnt/file && sync";

/// Returns the images of both guests.
fn images() -> Vec<Image> {
    let of = |kind| DISKS.map(|device| Image::mib(&format!("{kind}-{device}"), mib(device).into()));
    Kind::ALL.into_iter().flat_map(of).collect()
}

/// Returns the size of the image of a disk in MiB: room for a file system, and little where all of it is written and
/// compared again and again.
fn mib(device: &str) -> u32 {
    match device {
        MOUNTED => 4,
        _ => 1,
    }
}

fn replaced_storage(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let images = images();
    let create = |kind| testbed.storage(kind).images(&images)?.memory(48).start();
    let mut storage = create(Kind::Pvh)?;
    testbed.step("two guests with three disks each: idle, mounted, written to");
    let mut guests = side_by_side::run(2, |n| {
        let kind = Kind::ALL[n];
        let name = kind.to_string();
        let disks = DISKS.map(|device| own_disk(&name, device));
        let guest = host.guest(&name, kind, &disks)?;
        guest.ok(&MOUNT.replace("DISK", MOUNTED), MINUTE)?;
        guest.start(&write_to_the_end(BUSY))?;
        Ok(guest)
    })?;

    testbed.step("xl destroy in mid-write, and xl create, as PV");
    each(&guests, |guest| {
        storage.wait_for_writes(guest, device_number(BUSY), 10, MINUTE)
    })?;
    storage.destroy()?;
    let mut storage = create(Kind::Pv)?;
    // No frontend is told of the end of a domain that was destroyed.
    each(&guests, |guest| attach_idle_again(host, guest, CONNECTED))?;

    testbed.step("a disk that was mounted has a place of another name");
    each(&guests, |guest| {
        expect_state(guest, MOUNTED, CONNECTED)?;
        attach(guest, MOUNTED, OTHER)
    })?;

    for _ in 0..TAKEN_AWAY {
        testbed.step("xl block-detach --force in mid-write");
        each(&guests, |guest| forced_detach(&storage, guest))?;
    }
    Guest::destroy_all(&mut guests)?;
    storage.shutdown()
}

fn rebooted_storage(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let images = images();
    let storage = testbed.storage(Kind::Pvh).images(&images)?.memory(48);
    let mut storage = storage.start()?;
    testbed.step("two guests with three disks each: idle, mounted, written to");
    let mut guests = side_by_side::run(2, |n| {
        let kind = Kind::ALL[n];
        let name = kind.to_string();
        let disks = DISKS.map(|device| own_disk(&name, device));
        let guest = host.guest(&name, kind, &disks)?;
        guest.ok(&MOUNT.replace("DISK", MOUNTED), MINUTE)?;
        let writer = guest.start(&write_to_the_end(BUSY))?;
        Ok((guest, writer))
    })?;
    for (guest, _) in &guests {
        storage.wait_for_writes(guest, device_number(BUSY), 10, MINUTE)?;
    }

    testbed.step("xl reboot in mid-write");
    storage.reboot()?;
    let held = side_by_side::run(guests.len(), |n| {
        let (guest, writer) = &guests[n];
        after_reboot(guest, writer).with_context(|| format!("the {} guest", guest.name))
    })?;
    for (guest, _) in guests
        .iter()
        .zip(held)
        .filter_map(|(guest, held)| held.then_some(guest))
    {
        testbed.step(format!("{} itself holds a request", guest.name));
    }
    Guest::destroy_all(guests.iter_mut().map(|(guest, _)| guest))?;
    storage.shutdown()
}

/// Attaches all disks again, of a guest whose driver domain was rebooted. Returns whether the guest itself holds a
/// request of the busy disk, which is left as it is then.
fn after_reboot(guest: &Guest, writer: &Started) -> Result<bool> {
    attach_idle_again(guest.host, guest, CLOSED)?;
    expect_state(guest, MOUNTED, CLOSED)?;
    guest.ok("umount /mnt", MINUTE)?;
    attach_again(guest, MOUNTED)?;
    match guest.finish_within(writer, GIVEN_UP)? {
        Some(output) => {
            ensure!(output.out.trim() == "the disk is gone", "{}", output.out);
            attach_again(guest, BUSY)?;
            Ok(false)
        }
        None => guest_queue::expect_held_by_the_guest(guest, BUSY).map(|()| true),
    }
}

/// Detaches a disk whose driver domain is gone, and attaches it again.
fn attach_again(guest: &Guest, device: &str) -> Result<()> {
    detach(guest.host, guest, device)?;
    attach(guest, device, device)
}

/// Calls `work` with each guest, for all at the same time.
fn each(guests: &[Guest], work: impl Fn(&Guest) -> Result<()> + Sync) -> Result<()> {
    side_by_side::run(guests.len(), |n| {
        work(&guests[n]).with_context(|| format!("the {} guest", guests[n].name))
    })
    .map(drop)
}

/// Returns a guest's disk on its image of that name.
fn own_disk(guest: &str, device: &str) -> String {
    disk("storage", device, "rw", &format!("ram:{guest}-{device}"))
}

/// Takes a disk away by force while it is written to. Checks that nothing of the disk is left, that the guest's writer
/// fails, and that the disk can be attached again.
fn forced_detach(storage: &Running, guest: &Guest) -> Result<()> {
    let (host, name) = (storage.host, &guest.name);
    let writer = guest.start(&write_to_the_end(IDLE))?;
    storage.wait_for_writes(guest, device_number(IDLE), 100, MINUTE)?;
    host.ok(&format!("xl block-detach --force {name} {IDLE}"))?;
    let directory = storage.backend_path(guest, device_number(IDLE));
    let left = host.ok(&format!("! xenstore-ls {directory} 2>/dev/null"))?;
    ensure!(left.is_empty(), "{directory} is left: {left}");
    let output = guest.finish(writer, MINUTE)?;
    ensure!(
        output.out.trim() == "the disk is gone",
        "the writer says {:?}",
        output.out
    );
    attach(guest, IDLE, IDLE)
}

/// Attaches the idle disk of the new driver domain in the place of that of the old one.
fn attach_idle_again(host: &Host, guest: &Guest, state: u32) -> Result<()> {
    expect_state(guest, IDLE, state)?;
    let disk = own_disk(&guest.name, IDLE);
    let again = format!("xl block-attach {} '{disk}'", guest.name);
    let refused = host.exec(&again, MINUTE)?;
    ensure!(
        refused.status != 0 && refused.err.contains("already exists in xenstore"),
        "a disk was attached twice: {}{}",
        refused.out,
        refused.err
    );
    attach_again(guest, IDLE)
}

/// Checks that a disk's frontend is in this state.
fn expect_state(guest: &Guest, device: &str, state: u32) -> Result<()> {
    let list = block_list::parse(&guest.host.ok(&format!("xl block-list {}", guest.name))?)?;
    let row = list.iter().find(|row| row.device == device_number(device));
    ensure!(
        row.is_some_and(|row| row.state == state),
        "{device} is not in state {state}: {list:?}"
    );
    Ok(())
}

/// Detaches a disk whose driver domain is gone.
fn detach(host: &Host, guest: &Guest, device: &str) -> Result<()> {
    let output = host.exec(&format!("xl block-detach {} {device}", guest.name), MINUTE)?;
    ensure!(
        output.status == 0
            && output
                .err
                .contains("already removed, cleanup frontend only"),
        "xl block-detach {device}: {}{}",
        output.out,
        output.err
    );
    Ok(())
}

/// Attaches the image of one of the guest's disks, and has the guest write to all of it and read it back.
fn attach(guest: &Guest, image: &str, device: &str) -> Result<()> {
    let disk = disk(
        "storage",
        device,
        "rw",
        &format!("ram:{}-{image}", guest.name),
    );
    guest
        .host
        .attach_disk(guest, &disk, device_number(device))?;
    let there = format!("until [ -b /dev/{device} ]; do usleep 50000; done");
    guest.ok(&there, MINUTE)?;
    write_verify::verify(guest, device, mib(image))
}
