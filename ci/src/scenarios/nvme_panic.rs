//! A driver domain that panics while its controllers read and write guests' memory.

use super::operator::other;
use crate::config::Kind;
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::host::pci::{self, PciDevice};
use crate::host::{length, read_from};
use crate::testbed::records;
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "nvme-panic",
    about: "slow NVMe controllers go on with two guests' reads while the driver domain is paused, but when it has panicked no byte of the guests' memory changes, the IOMMU has nothing to refuse, and what was flushed is there",
    part: Part::Suite,
    run: panics,
}];

/// The controllers.
const DEVICES: [PciDevice; 2] = [pci::NVME, pci::TWO_NAMESPACES];

/// The number of records that each guest has flushed before the panic.
const RECORDS: u32 = 3;

/// The operations of each medium in a second around the panic. The controllers have dozens of them pending then.
const SLOW: u32 = 2;

/// The time in which a controller that was not stopped would do some of them.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// The memory into which a guest's reads go, as a file.
const CANARY: &str = "/tmp/canary";

/// Memory of a guest's that no request uses, as a file.
const STILL: &str = "/tmp/still";

/// Makes both files.
const FILL: &str = "yes 'no request is about this' | head -c 1048576 >/tmp/still && \
    head -c 1048576 /dev/zero >/tmp/canary";

/// Reads into and writes from [`CANARY`] past the guest's cache, 32 requests at a time. The place on the disk holds no
/// records.
const READ_AND_WRITE: &str = "fio --name=canary --filename=/dev/xvda --rw=randrw --bs=16k --offset=6m --size=1m \
    --direct=1 --ioengine=libaio --iodepth=32 --iomem=mmapshared:/tmp/canary --norandommap --randrepeat=0 \
    --time_based --runtime=900";

/// Waits until the guest has both reads and writes at the backend.
const BOTH_IN_FLIGHT: &str = "until read -r reads writes </sys/block/xvda/inflight && \
    [ $reads -gt 4 ] && [ $writes -gt 4 ]; do usleep 50000; done";

/// Xen's words about an access that the IOMMU has refused.
const REFUSED: &str = "fault addr";

fn panics(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let mut first = storage(testbed)?;
    let targets = targets();
    let mut guests = targets
        .iter()
        .enumerate()
        .map(|(number, target)| create(testbed, number, target))
        .collect::<Result<Vec<_>>>()?;
    testbed.step("two guests read, write and flush");
    for guest in &guests {
        let _ = guest.ok(FILL, MINUTE)?;
    }
    for guest in &guests {
        guest.start(READ_AND_WRITE)?;
    }
    for guest in &guests {
        expect_reads(guest)?;
        let counts = first.statistics(guest, device_number("xvda"))?;
        let read = 512 * counts.get("sectors_read")?;
        let mapped = counts.get("maps")?;
        // The lists of large requests' segments are copied.
        ensure!(
            read > 1 << 16 && counts.get("bytes_copied")? < read / 50,
            "the controller does not access the guest's own pages: {counts:?}"
        );
        ensure!(
            mapped > 0 && counts.get("device_maps")? == mapped,
            "pages are mapped for the domain, too: {counts:?}"
        );
    }
    let before = guests.iter().map(sums).collect::<Result<Vec<_>>>()?;
    // They say on the console what they have flushed: until that is over, answers would be mixed with it.
    for guest in &guests {
        guest.start(&records::write("/dev/xvda"))?;
    }
    for guest in &guests {
        records::wait_for(guest, RECORDS, 2 * MINUTE)?;
    }

    testbed.step("slow controllers go on while the driver domain does not run");
    for device in &DEVICES {
        host.limit_operations(device, Some(SLOW))?;
    }
    for guest in &guests {
        guest.ok(BOTH_IN_FLIGHT, MINUTE)?;
    }
    // What is to be seen after the panic would be seen.
    first.pause()?;
    for guest in &guests {
        expect_reads(guest)?;
    }
    Domain::unpause(&first)?;

    testbed.step("the driver domain panics, and stays as it is then");
    for guest in &guests {
        guest.ok(BOTH_IN_FLIGHT, MINUTE)?;
    }
    let xen_log = host.instance().xen_log();
    let xen_start = length(&xen_log);
    first.crash()?;
    let ended = guests.iter().map(sums).collect::<Result<Vec<_>>>()?;
    thread::sleep(AFTERWARDS);
    let afterwards = guests.iter().map(sums).collect::<Result<Vec<_>>>()?;
    first.destroy_with_devices()?;
    let gone = guests.iter().map(sums).collect::<Result<Vec<_>>>()?;
    let console = first.console();
    ensure!(
        console.contains("panic on vCPU") && !console.contains("do not stop"),
        "it did not panic, or did not stop its controllers:\n{console}"
    );

    testbed.step("the next driver domain has the controllers");
    for device in &DEVICES {
        host.limit_operations(device, None)?;
    }
    let mut second = storage(testbed)?;
    for (number, guest) in guests.iter_mut().enumerate() {
        let now = sums(guest)?;
        let all = BTreeSet::from([&ended[number], &afterwards[number], &gone[number], &now]);
        ensure!(
            all.len() == 1 && now.still == before[number].still,
            "{}: memory has changed after the panic: {all:?}",
            guest.name
        );
        guest.destroy()?;
    }
    let xen = read_from(&xen_log, xen_start);
    let refused = xen.lines().find(|line| line.contains(REFUSED));
    ensure!(
        refused.is_none(),
        "a controller was at work after the panic: {refused:?}"
    );
    let names = ["xvda", "xvdb"];
    let disks = names
        .iter()
        .zip(&targets)
        .map(|(name, target)| disk("storage", name, "ro", target));
    let mut reader = host.lean_guest("reader", Kind::Pvh, &disks.collect::<Vec<_>>())?;
    for (name, guest) in names.iter().zip(&guests) {
        let flushed = records::flushed(guest)?;
        let there = reader.ok(&records::sum_of(&format!("/dev/{name}"), flushed), MINUTE)?;
        ensure!(
            there == records::expected(flushed),
            "{} flushed {flushed} records, and not all of them are there",
            guest.name
        );
        testbed.step(format!(
            "{}: {flushed} flushed records are there",
            guest.name
        ));
    }
    reader.destroy()?;
    // It lets go of its controllers when the tool stack takes them.
    second.destroy()
}

/// Starts a driver domain whose controllers access guests' pages directly.
fn storage<'h>(testbed: &Testbed<'h>) -> Result<Running<'h>> {
    let storage = testbed.storage(Kind::Pv).memory(40).preserved_at_crash();
    DEVICES
        .iter()
        .fold(storage, |storage, device| storage.pci(device))
        .start()
}

/// Returns the first namespace of each controller, of blocks of 512 and of 4096 bytes.
fn targets() -> [String; 2] {
    DEVICES
        .each_ref()
        .map(|device| format!("nvme:{}", device.short_name()))
}

/// Boots a guest that grants the pages of its requests themselves, anew for each request.
fn create<'h>(testbed: &Testbed<'h>, number: usize, target: &str) -> Result<Guest<'h>> {
    let kind = match number {
        0 => Kind::Pvh,
        _ => other(Kind::Pvh),
    };
    let disks = [disk("storage", "xvda", "rw", target)];
    let name = format!("guest{number}");
    let mut config = testbed.host.guest_config(&name, kind, &disks)?;
    config.cmdline += " xen_blkfront.feature_persistent=0";
    Guest::wait(testbed.host.create(&config)?)
}

/// The checksums of a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sums {
    canary: String,
    still: String,
}

/// Waits until reads have changed the memory into which they go.
fn expect_reads(guest: &Guest) -> Result<()> {
    let (first, deadline) = (sums(guest)?, Instant::now() + MINUTE);
    while sums(guest)?.canary == first.canary {
        ensure!(
            Instant::now() < deadline,
            "{}: no reads go into the file",
            guest.name
        );
    }
    Ok(())
}

fn sums(guest: &Guest) -> Result<Sums> {
    let text = guest.ok(&format!("sha256sum {CANARY} {STILL}"), MINUTE)?;
    let mut lines = text.lines().map(str::to_owned);
    let (canary, still) = lines.next().zip(lines.next()).context("two checksums")?;
    Ok(Sums { canary, still })
}
