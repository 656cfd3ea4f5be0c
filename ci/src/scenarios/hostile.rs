//! Frontends that publish invalid nodes: an error for them alone.
//!
//! The hostile guest never runs: dom0 writes what its frontend would publish.

use crate::config::Kind;
use crate::host::domain::{Domain, TOOLSTACK};
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{Part, Scenario, Testbed, write_verify};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "hostile-frontends",
    about: "frontends that publish invalid nodes are closed with the reason; another guest works on",
    part: Part::Suite,
    run: hostile_frontends,
}];

const LIMIT: Duration = Duration::from_secs(15);

/// The first virtual device, `xvda`; each further disk's number is 16 higher.
const FIRST_DEVICE: u32 = 51712;

/// A name, the nodes that a frontend publishes, and a word of the reason for which it is refused.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

const ABI: (&str, &str) = ("protocol", "x86_64-abi");

const CASES: &[Case] = &[
    ("no ring-ref", &[("event-channel", "1"), ABI], "ring-ref"),
    (
        "no event-channel",
        &[("ring-ref", "8"), ABI],
        "event-channel",
    ),
    (
        "ring-ref is not a number",
        &[("ring-ref", "eight"), ("event-channel", "1"), ABI],
        "ring-ref",
    ),
    (
        "ring-ref is not granted",
        &[("ring-ref", "9"), ("event-channel", "1"), ABI],
        "grant 9 ",
    ),
    (
        "ring-ref is out of range",
        &[("ring-ref", "4294967295"), ("event-channel", "1"), ABI],
        "4294967295",
    ),
    (
        "event-channel is not a number",
        &[("ring-ref", "8"), ("event-channel", "-1"), ABI],
        "event-channel",
    ),
    (
        "unknown protocol",
        &[
            ("ring-ref", "8"),
            ("event-channel", "1"),
            ("protocol", "vax-abi"),
        ],
        "vax-abi",
    ),
];

fn hostile_frontends(testbed: &Testbed) -> Result<()> {
    let mut images: Vec<Image> = (0..CASES.len())
        .map(|n| Image::mib(&format!("bait{n}"), 1))
        .collect();
    images.push(Image::mib("good", 8));
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(40)
        .start()?;

    testbed.step("a guest that works on");
    let good = [disk("storage", "xvda", "rw", "ram:good")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &good)?;
    let keeping = guest.start(&write_verify::keep_at_it("xvda", 2))?;
    write_verify::wait_for_passes(&guest, 1)?;

    testbed.step("a guest whose frontends lie");
    let letter = |n: usize| char::from(b'a' + n as u8);
    let disks: Vec<String> = (0..CASES.len())
        .map(|n| {
            disk(
                "storage",
                &format!("xvd{}", letter(n)),
                "rw",
                &format!("ram:bait{n}"),
            )
        })
        .collect();
    let mut config = testbed.host.guest_config("liar", Kind::Pvh, &disks)?;
    config.ramdisk = None;
    config.memory = 128;
    let mut hostile = testbed.host.create_paused(&config)?;
    for (n, case) in CASES.iter().enumerate() {
        testbed.step(case.0);
        violate(
            testbed,
            &storage,
            &hostile,
            FIRST_DEVICE + 16 * n as u32,
            case,
        )?;
    }
    write_verify::goes_on(&guest).context("the other guest was disturbed")?;
    write_verify::stop(&guest, keeping)?;
    Domain::destroy_all([&mut hostile, &mut *guest])?;
    storage.shutdown()
}

fn violate(
    testbed: &Testbed,
    storage: &Running,
    hostile: &Domain,
    device: u32,
    case: &Case,
) -> Result<()> {
    let &(what, nodes, reason) = case;
    let seen = storage.console_length();
    let frontend = format!("/local/domain/{}/device/vbd/{device}", hostile.id);
    let mut words: String = nodes
        .iter()
        .map(|(name, value)| format!(" {frontend}/{name} '{value}'"))
        .collect();
    words += &format!(" {frontend}/state 3");
    testbed.host.ok(&format!("xenstore-write --{words}"))?;
    storage.expect_error(seen, reason, LIMIT)?;

    let backend = storage.backend_path(hostile, device);
    // The log comes first, then the error node, then the state: Closing or Closed.
    let closing = format!(
        "for n in $(seq 100); do case $(xenstore-read {backend}/state) in 5|6) exit;; esac; sleep 0.1; done; exit 1"
    );
    let closed = testbed.host.exec(&closing, TOOLSTACK)?;
    ensure!(closed.status == 0, "{what}: the backend does not close");
    let errors = testbed.host.ok(&format!(
        "xenstore-ls -f /local/domain/{}/error",
        storage.id
    ))?;
    let node = errors
        .lines()
        .find(|line| line.contains(&format!("/{}/{device}/", hostile.id)));
    ensure!(
        node.is_some_and(|line| line.contains(reason)),
        "{what}: no error node names {reason:?}:\n{errors}"
    );
    Ok(())
}
