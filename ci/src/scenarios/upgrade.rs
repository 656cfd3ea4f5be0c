//! A new version that takes over from the one that runs, under the load of guests (`docs/recovery.md`).

use super::main_job::FIO_LIMIT;
use super::stores::{self, Store};
use crate::commands::build;
use crate::config::Kind;
use crate::digest::hex;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::report::milliseconds;
use crate::testbed::storage::{BOOT, Running, device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "upgrade-under-load-pvh",
        about: "a newer version takes over from the one that runs and back, under two guests with fio, verified; one that panics and one that does not serve go back",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pvh, 1, &stores::IMAGES),
    },
    Scenario {
        name: "upgrade-under-load-vcpus-pvh",
        about: "the same with two vCPUs, on each of which a version fails",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pvh, 2, &stores::IMAGES),
    },
    Scenario {
        name: "upgrade-under-load-own-disks-pvh",
        about: "the same with two vCPUs, and two disks of the driver domain's own",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pvh, 2, &stores::OWN_DISKS),
    },
    Scenario {
        name: "upgrade-under-load-pv",
        about: "a newer version takes over from the one that runs in a PV domain and back, under two guests with fio, verified; one that panics and one that does not serve go back",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pv, 1, &stores::IMAGES),
    },
    Scenario {
        name: "upgrade-under-load-vcpus-pv",
        about: "the same with two vCPUs, on each of which a version fails",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pv, 2, &stores::IMAGES),
    },
    Scenario {
        name: "upgrade-under-load-nbd-pvh",
        about: "a PVH domain of two vCPUs that serves exports of two NBD servers is upgraded in the same way",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pvh, 2, &stores::EXPORTS),
    },
    Scenario {
        name: "upgrade-under-load-nbd-pv",
        about: "the same in a PV domain",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pv, 2, &stores::EXPORTS),
    },
];

/// The same with devices that are passed through.
pub const WITH_DEVICES: &[Scenario] = &[
    Scenario {
        name: "upgrade-under-load-nvme-pv",
        about: "a PV domain of two vCPUs with two NVMe controllers is upgraded in the same way",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pv, 2, &stores::CONTROLLERS),
    },
    Scenario {
        name: "upgrade-under-load-virtio-pv",
        about: "the same with an NVMe controller and a virtio-blk device",
        part: Part::ByName,
        run: |testbed| upgrades(testbed, Kind::Pv, 2, &stores::VIRTIO),
    },
];

/// The time within which a version that does not serve is given up: ten seconds, in an emulated host that is shared.
const GIVEN_UP: Duration = Duration::from_secs(20);

/// fio's options for rounds over the disk, long enough for everything.
const LOOPS: &str = "--loops=60 --time_based --runtime=140";

/// The time for which the second guest reads around each change, in seconds.
const READS: u32 = 6;

/// The time within which the resources that an earlier boot held have to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// An ELF, in the form in which an operator names it.
struct Elf {
    target: &'static str,
    sha256: String,
    version: String,
}

/// The bytes before the version's numbers in the note about the way in which a version takes over: lengths, kind, name.
const NOTE: &[u8] = b"\x09\0\0\0\x20\0\0\0\x01\0\0\0Bulkhead\0\0\0\0";

/// Reads the version of an ELF, and adds `patch` to the last of its numbers.
fn version_of(elf: &mut [u8], patch: u8) -> Result<String> {
    let note = elf.windows(NOTE.len()).position(|bytes| bytes == NOTE);
    let at = note.context("an ELF without the note")? + NOTE.len();
    elf[at + 8] += patch;
    let number = |at: usize| u32::from_le_bytes([elf[at], elf[at + 1], elf[at + 2], elf[at + 3]]);
    let [major, minor, patch] = [at, at + 4, at + 8].map(number);
    Ok(format!("{major}.{minor}.{patch}"))
}

fn upgrades(testbed: &Testbed, kind: Kind, vcpus: u32, on: &[Store; 2]) -> Result<()> {
    let host = testbed.host;
    let mut old = fs::read(testbed.shared_file("bulkhead").0)?;
    // Another layout, too.
    let mut new = fs::read(build::build_tls()?)?;
    let elf = |target, bytes: &mut Vec<u8>, patch| -> Result<Elf> {
        let version = version_of(bytes, patch)?;
        let sha256 = hex(&Sha256::digest(&bytes[..]));
        // Images have whole sectors. The ELF itself says where it ends.
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Ok(Elf {
            target,
            sha256,
            version,
        })
    };
    let (old_elf, new_elf) = (
        elf("ram:old.elf", &mut old, 0)?,
        elf("ram:new.elf", &mut new, 1)?,
    );
    let images = vec![Image::of("old.elf", &old), Image::of("new.elf", &new)];
    let storage = stores::make(testbed, kind, "recover=on test-crash=on", on, images)?;
    let mut storage = storage.memory(72).vcpus(vcpus).start()?;
    stores::wait(&storage, on)?;
    let nothing = Holdings::by(host, storage.id)?;
    let [written, read] = on.each_ref().map(Store::target);
    let disks = |target: &str| [disk("storage", "xvda", "rw", target)];
    let mut writer = host.guest("writer", Kind::Pvh, &disks(&written))?;
    let mut reader = host.guest("reader", Kind::Pv, &disks(&read))?;
    let job = writer.start(&fio::verify_command_with("/dev/xvda", LOOPS))?;
    storage.wait_for_writes(&writer, device_number("xvda"), 100, MINUTE)?;
    let nodes = Holdings::by(host, storage.id)?.nodes;

    testbed.step("requests that are refused");
    let sum = &new_elf.sha256;
    let wrong = sum.chars().rev().collect::<String>();
    for (request, reason) in [
        ("ram:new.elf".to_owned(), "no checksum: expected"),
        (
            format!("ram:new.elf sha256={wrong}"),
            "do not have the checksum",
        ),
        (format!("ram:newer.elf sha256={sum}"), "newer.elf"),
        (format!("{written} sha256={sum}"), &written),
    ] {
        let told = refused(&storage, &request)?;
        ensure!(
            told.contains(reason),
            "{request}: {told:?} instead of {reason:?}"
        );
    }

    let last_vcpu = format!("panic on vCPU {}:", vcpus - 1);
    let steps: [(&str, &Elf, &str, Outcome<'_>); 5] = [
        ("pause: to a newer version", &new_elf, "", Outcome::Serves),
        (
            "pause: back to the older one",
            &old_elf,
            " force",
            Outcome::Serves,
        ),
        (
            "pause: a version that panics",
            &new_elf,
            " test=panic",
            Outcome::Fails(&["was asked to panic"]),
        ),
        (
            "pause: a version that panics when it has served",
            &new_elf,
            " test=late",
            Outcome::Fails(&["was asked to panic late", &last_vcpu]),
        ),
        (
            "pause: a version that does not serve",
            &new_elf,
            " test=wait",
            Outcome::Fails(&["does not serve 10 s after"]),
        ),
    ];
    for (what, elf, words, outcome) in steps {
        testbed.step(what);
        if words == " force" {
            let told = refused(&storage, &format!("{} sha256={}", elf.target, elf.sha256))?;
            ensure!(told.contains("older than"), "an older version: {told:?}");
        }
        let trial = words == " test=wait";
        let reads = reader.start(&fio::reads_command(
            "/dev/xvda",
            READS + if trial { 12 } else { 0 },
        ))?;
        host.ok("sleep 2")?;
        let request = format!("{} sha256={}{words}", elf.target, elf.sha256);
        change(&storage, &request, elf, outcome).with_context(|| what.to_owned())?;
        let reads = fio::finish_reads(&reader, reads, 2 * MINUTE)?;
        testbed.record(testbed.scenario, what, milliseconds(reads.longest));
        ensure!(
            reads.longest < fio::NOT_ANSWERED,
            "{what}: a guest has waited for {:?}",
            reads.longest
        );
        let now = Holdings::by(host, storage.id)?.nodes;
        ensure!(
            now == nodes,
            "{what}: nodes were {nodes:?}, and are {now:?}"
        );
    }

    testbed.step("everything verified, and nothing left");
    fio::finish(&writer, job, FIO_LIMIT)?;
    let restarts = format!("xenstore-read {}/restarts", data(&storage));
    ensure!(host.ok(&restarts).is_err(), "an upgrade counts as a crash");
    let log = storage.console();
    let resumed = log.matches("taken up again").count();
    // A version that fails while it boots takes nothing up.
    ensure!(
        resumed >= 12,
        "{resumed} queues were taken up again:\n{log}"
    );
    writer.destroy()?;
    reader.destroy()?;
    nothing.expect_within(host, storage.id, "after five upgrades", GIVEN_BACK)?;
    storage.shutdown()?;
    stores::remove(testbed, on)
}

/// The expected outcome of an upgrade.
enum Outcome<'a> {
    /// The new version serves.
    Serves,
    /// The version before serves again, and the error contains all of these texts.
    Fails(&'a [&'a str]),
}

fn data(storage: &Running) -> String {
    format!("/local/domain/{}/data", storage.id)
}

/// Asks for an upgrade that is refused, and returns the reason.
fn refused(storage: &Running, request: &str) -> Result<String> {
    let data = data(storage);
    storage.host.ok(&format!(
        "xenstore-rm {data}/upgrade-error 2>/dev/null; xenstore-write {data}/upgrade '{request}' && \
         for n in $(seq 100); do xenstore-read {data}/upgrade-error 2>/dev/null && exit; sleep 0.1; done; exit 1"
    ))
}

/// Asks for an upgrade, and waits until the domain, which stays the same one, serves.
fn change(storage: &Running, request: &str, elf: &Elf, outcome: Outcome<'_>) -> Result<()> {
    let (data, seen, version) = (data(storage), storage.console_length(), &elf.version);
    storage.host.ok(&format!(
        "xenstore-write {data}/upgrade-error before {data}/upgrade '{request}'"
    ))?;
    match outcome {
        Outcome::Serves => {
            storage.wait_console_from(seen, &format!("version {version} serves"), BOOT)?;
            let gone = format!(
                "for n in $(seq 50); do xenstore-read {data}/upgrade-error 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
            );
            storage
                .host
                .ok(&gone)
                .context("data/upgrade-error is not cleared")?;
        }
        Outcome::Fails(reasons) => {
            let back = format!("back from version {version}");
            storage.wait_console_from(seen, &back, BOOT + GIVEN_UP)?;
            let read = format!(
                "for n in $(seq 50); do xenstore-read {data}/upgrade-error | grep -v '^before$' && exit; sleep 0.1; done; exit 1"
            );
            let told = storage.host.ok(&read)?;
            for reason in reasons {
                ensure!(told.contains(reason), "{told:?} instead of {reason:?}");
            }
        }
    }
    let id = storage.host.ok(&format!("xl domid {}", storage.name))?;
    if id.trim() != storage.id.to_string() {
        bail!("domain {} became {id}", storage.id);
    }
    Ok(())
}
