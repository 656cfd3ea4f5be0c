//! A guest that starts another kernel in its place by itself. The toolstack resets such a domain ("soft reset"): its
//! number stays, but its grants and event channels are gone, and its disks are connected anew.

use crate::config::Kind;
use crate::host::guest::{BOOT, Guest};
use crate::image::SECOND_KERNEL;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "kexec",
    about: "an HVM guest starts a second kernel in mid-write, that one crashes into a third; all verified",
    part: Part::ByName,
    run: kexec,
}];

/// The memory of the guest in MiB: Linux accepts no second kernel that is larger than half of the first one's.
const MEMORY: u32 = 512;

/// The memory that the second kernel keeps free for the third.
const RESERVED: &str = "crashkernel=144M";

/// Writes random data to the first half of the disk past the guest's cache, reads it back, and prints the checksum of
/// both. Then it goes on writing to the second half.
const WRITE: &str = "head -c 4194304 /dev/urandom >/tmp/noise; sha256sum </tmp/noise; \
    dd if=/tmp/noise of=/dev/xvda bs=64k oflag=direct 2>/dev/null || exit 1; sum; \
    while dd if=/dev/zero of=/dev/xvda bs=256k seek=16 count=16 oflag=direct; do :; done >/dev/null 2>&1 & \
    writes() { read -r _ _ _ _ writes _ </sys/block/xvda/stat; echo $writes; }; \
    before=$(writes); until [ $(writes) -gt $((before + 20)) ]; do usleep 20000; done";

/// Prints the checksum of the first half of the disk, read past the guest's cache.
const SUM: &str = "until [ -b /dev/xvda -a -b /dev/xvdb ]; do usleep 50000; done; \
    sum() { dd if=/dev/xvda bs=64k count=64 iflag=direct 2>/dev/null | sha256sum; }; ";

/// Returns a command that unpacks the files for another kernel from our disk, and loads that kernel.
fn load(option: &str, cmdline: &str) -> String {
    format!(
        "cd / && cpio -idu </dev/xvdb 2>/dev/null; \
         kexec -s {option} /vmlinuz --initrd=/initramfs --command-line='{cmdline}'"
    )
}

fn kexec(testbed: &Testbed) -> Result<()> {
    let second = testbed.guest_files().join(SECOND_KERNEL);
    let images = [Image::mib("work", 8), Image::file("second", &second)?];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(48)
        .start()?;
    let nothing = Holdings::by(testbed.host, storage.id)?;

    testbed.step("booting an HVM guest");
    let disks = [
        disk("storage", "xvda", "rw", "ram:work"),
        disk("storage", "xvdb", "ro", "ram:second"),
    ];
    let mut config = testbed.host.hvm_guest_config("guest", &disks)?;
    config.memory = MEMORY;
    let cmdline = config.cmdline.clone();
    let mut guest = Guest::wait(testbed.host.create(&config)?)?;

    testbed.step("kexec into a second kernel, in mid-write");
    guest.ok(SUM, MINUTE)?;
    guest.ok(&load("-l", &format!("{cmdline} {RESERVED}")), MINUTE)?;
    let written = write(&guest)?;
    starts_over(&guest, "kexec -e")?;
    expect(&guest, &written, "the second kernel")?;
    let booted = guest.ok("cat /proc/cmdline", MINUTE)?;
    ensure!(booted.contains(RESERVED), "another kernel runs: {booted}");

    testbed.step("a crash of the second kernel into a third, in mid-write");
    guest.ok(&load("-p", &cmdline), MINUTE)?;
    let written = write(&guest)?;
    starts_over(&guest, "echo c >/proc/sysrq-trigger")?;
    expect(&guest, &written, "the third kernel")?;
    // The memory of the crashed kernel, which the third kernel is there to save.
    guest.ok("test -e /proc/vmcore", MINUTE)?;
    write(&guest)?;

    testbed.step("counting what is left");
    let log = storage.console();
    let connected = log.matches("(xvda): connected, ").count();
    ensure!(
        connected == 3 && !log.contains("ERROR"),
        "the log shows {connected} connections instead of three, or errors:\n{log}"
    );
    guest.destroy()?;
    nothing.expect(testbed.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}

/// Writes to the disk and goes on writing. Returns the checksum of the data to be read from its first half.
fn write(guest: &Guest) -> Result<String> {
    let sums = guest.ok(&format!("{SUM}{WRITE}"), MINUTE)?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(
        sums.len() == 2 && sums[0] == sums[1],
        "the data that was written reads differently: {sums:?}"
    );
    Ok(sums[0].to_owned())
}

/// Checks the data that the kernel before has left on the disk.
fn expect(guest: &Guest, written: &str, who: &str) -> Result<()> {
    let read = guest.ok(&format!("{SUM}sum"), MINUTE)?;
    ensure!(
        read.trim_end() == written,
        "{who} reads {read}, but {written} was written"
    );
    Ok(())
}

/// Runs the command that ends the kernel, and waits until the next one takes commands.
fn starts_over(guest: &Guest, command: &str) -> Result<()> {
    let seen = guest.console_length();
    guest.start(command)?;
    guest
        .wait_console_from(seen, "@@ready", BOOT)
        .with_context(|| format!("after {command}"))
        .map(drop)
}
