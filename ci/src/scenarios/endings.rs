//! Guests that end in mid-write in every way, and the next guests on the same disks at once.

use crate::config::{Config, Kind};
use crate::host::Host;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed, side_by_side};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "four-endings",
        about: "a guest each powers off, reboots, crashes and is destroyed in mid-write, and its image goes to the next; nothing leaks",
        part: Part::Suite,
        run: |testbed| endings(testbed, 2),
    },
    Scenario {
        name: "thirty-endings",
        about: "30 guests power off, reboot, crash or are destroyed in mid-write, PV and PVH ones in each way; nothing leaks",
        part: Part::ByName,
        run: |testbed| endings(testbed, 15),
    },
];

/// The time within which the resources of guests that ended have to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// The time limit for all guests together.
const LIMIT: Duration = Duration::from_secs(720);

/// The number of guests that live and end beside each other, each on a disk of its own.
const DISKS: usize = 2;

/// Returns the kind of a guest. On the second disk the first guests are PVH, one for each ending: a crash or a reboot
/// of a PVH guest reaches Xen in another way than that of a PV guest. The others are PV, which boot sooner here.
fn kind(disk: usize, life: usize) -> Kind {
    match disk == 1 && life < Ending::ALL.len() {
        true => Kind::Pvh,
        false => Kind::Pv,
    }
}

/// The way in which a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    PowersOff,
    Reboots,
    Crashes,
    IsDestroyed,
}

impl Ending {
    const ALL: [Self; 4] = [
        Self::PowersOff,
        Self::Reboots,
        Self::Crashes,
        Self::IsDestroyed,
    ];

    /// Returns the ending of a guest. The endings take turns, and are different on each disk: two lives on each have all.
    fn of(disk: usize, life: usize) -> Self {
        Self::ALL[(2 * disk + life) % Self::ALL.len()]
    }

    /// Returns the reason that the guest gives to Xen (`SHUTDOWN_*` in Xen's sched.h).
    fn reason(self) -> Option<u32> {
        match self {
            Self::PowersOff => Some(0),
            Self::Reboots => Some(1),
            Self::Crashes => Some(3),
            Self::IsDestroyed => None,
        }
    }
}

/// Has `count` guests end on each disk.
fn endings(testbed: &Testbed, count: usize) -> Result<()> {
    testbed.may_take(LIMIT);
    let _preferred = testbed.host.prefer_dom0()?;
    let images: Vec<Image> = (0..DISKS)
        .map(|n| Image::mib(&format!("disk{n}"), 8))
        .collect();
    // PV: a fault of the emulation hits PVH domains only, and this one has to live through all of it.
    let mut storage = testbed
        .storage(Kind::Pv)
        .images(&images)?
        .memory(48)
        .start()?;
    let before = Holdings::by(testbed.host, storage.id)?;
    testbed.step(format!(
        "{count} lives on each of {DISKS} disks, side by side"
    ));
    let host = testbed.host;
    side_by_side::run(DISKS, |disk| {
        lives(host, disk, count).with_context(|| format!("on disk {disk}"))
    })?;

    testbed.step("counting what is left");
    before.expect_within(host, storage.id, "after all endings", GIVEN_BACK)?;
    let log = storage.console();
    let connected = log.matches(": connected, ").count();
    let expected = DISKS * (count + 1);
    ensure!(
        connected == expected && !log.contains("ERROR"),
        "the driver domain's log shows {connected} connections instead of {expected}, or errors:\n{log}"
    );
    storage.shutdown()
}

/// Has one guest after the other live on a disk; each finds the data that the one before has written last.
fn lives(host: &Host, number: usize, count: usize) -> Result<()> {
    let name = format!("mortal{number}");
    let disks = [disk("storage", "xvda", "rw", &format!("ram:disk{number}"))];
    let config = |life| {
        let mut config = host.lean_guest_config(&name, kind(number, life), &disks)?;
        // Linux tells Xen that it crashed, not that it wants to reboot.
        config.cmdline += " xen_legacy_crash";
        Ok::<_, anyhow::Error>(config)
    };
    let mut guest = Guest::wait(host.create(&config(0)?)?)?;
    for life in 0..count {
        let ending = Ending::of(number, life);
        live(&guest, number, life).with_context(|| format!("life {life}"))?;
        guest = die(host, guest, ending, &config(life + 1)?)
            .with_context(|| format!("life {life}, which {ending:?}"))?;
    }
    live(&guest, number, count).context("the last life")?;
    guest.destroy()
}

/// Checks the mark of the guest before, leaves a mark of its own, and begins to write.
fn live(guest: &Guest, disk: usize, life: usize) -> Result<()> {
    let mark = |life: usize| format!("disk {disk}, life {life}");
    // The mark is written past the guest's cache: what was answered is on the disk.
    let script = format!(
        r#"until [ -b /dev/xvda ]; do usleep 50000; done
head -c 64 /dev/xvda | tr -d '\0'
echo '{}' | dd of=/dev/xvda bs=4k conv=sync oflag=direct 2>/dev/null || exit 1
while dd if=/dev/zero of=/dev/xvda bs=256k seek=4 count=28 oflag=direct; do :; done >/dev/null 2>&1 &
writes=0
until [ $writes -gt 8 ]; do usleep 20000; read -r _ _ _ _ writes _ </sys/block/xvda/stat; done"#,
        mark(life)
    );
    let found = guest.ok(&script, MINUTE)?;
    let expected = match life.checked_sub(1) {
        Some(before) => mark(before),
        None => String::new(),
    };
    ensure!(
        found.trim_end() == expected,
        "the mark of the guest before is {found:?}, expected {expected:?}"
    );
    Ok(())
}

/// Ends a guest and brings up the next one.
fn die<'h>(
    host: &'h Host,
    mut guest: Guest<'h>,
    ending: Ending,
    next: &Config,
) -> Result<Guest<'h>> {
    let id = guest.id;
    match ending {
        Ending::PowersOff => {
            guest.start("poweroff -f")?;
            guest.wait_gone(MINUTE)?;
        }
        Ending::Crashes => {
            guest.start("echo c >/proc/sysrq-trigger")?;
            guest.wait_gone(MINUTE)?;
        }
        Ending::IsDestroyed => guest.destroy()?,
        // The toolstack makes the next one from the same configuration.
        Ending::Reboots => guest.reboot()?,
    }
    if let Some(reason) = ending.reason() {
        let line = format!("Domain {id} has shut down, reason code {reason} ");
        let log = host.tool_stack_log();
        ensure!(
            log.contains(&line),
            "the toolstack's log does not show {line:?}"
        );
    }
    match ending {
        Ending::Reboots => Ok(guest),
        _ => Guest::wait(host.create(next)?),
    }
}
