//! Random data on a guest's disk: written, read back and compared.

use crate::host::guest::{Guest, Started};
use anyhow::{Result, ensure};
use std::time::Duration;

/// Time limit for the MiB of one command in an emulated guest among others.
const LIMIT: Duration = Duration::from_secs(90);

/// Returns a guest's shell command that writes `mib` MiB of random data to the beginning of a disk, reads it back and
/// compares it, both past its cache; it prints the number of equal bytes.
pub fn command(device: &str, mib: u32) -> String {
    let blocks = mib * 16;
    format!(
        "dd if=/dev/urandom of=/tmp/{device} bs=64k count={blocks} 2>/dev/null && \
         dd if=/tmp/{device} of=/dev/{device} bs=64k oflag=direct 2>/dev/null && \
         dd if=/dev/{device} bs=64k count={blocks} iflag=direct 2>/dev/null | cmp - /tmp/{device} && \
         wc -c </tmp/{device}"
    )
}

/// The script of [`all_at_once`].
const ALL_AT_ONCE: &str = r#"
for d in $disks; do
    (dd if=/dev/urandom of=/tmp/$d bs=$size count=$count iflag=fullblock 2>/dev/null &&
     dd if=/tmp/$d of=/dev/$d bs=$size oflag=direct 2>/dev/null || touch /tmp/failed) &
done
wait
for d in $disks; do
    (dd if=/dev/$d bs=$size count=$count iflag=direct 2>/dev/null | cmp - /tmp/$d || touch /tmp/failed) &
done
wait
[ ! -e /tmp/failed ] && cat $(for d in $disks; do echo /tmp/$d; done) | wc -c
"#;

/// Returns a guest's shell command that writes `count` pieces of random data, each of `size` (as `dd` has it), to the
/// beginning of each disk, to all disks at once; then it reads all of them back. It prints the number of equal bytes.
pub fn all_at_once(devices: &[String], size: &str, count: u32) -> String {
    let disks = devices.join(" ");
    format!("disks='{disks}'; size={size}; count={count}\n{ALL_AT_ONCE}")
}

/// Returns a guest's shell command that writes zeros to a disk until the disk is taken away, and then reports that.
pub fn write_to_the_end(device: &str) -> String {
    // Where the disk's node is gone when dd opens it, dd makes a file of that name. The kernel could not make the
    // node of the next disk then.
    format!(
        "while dd if=/dev/zero of=/dev/{device} bs=4k count=256 oflag=direct 2>/dev/null; do :; done; \
         [ -b /dev/{device} ] || rm -f /dev/{device}; echo the disk is gone"
    )
}

/// Returns whether [`command`] printed that all data was equal.
pub fn is_equal(output: &str, mib: u32) -> bool {
    output.trim() == (u64::from(mib) << 20).to_string()
}

/// Returns a command that writes and compares [again and again](again_and_again).
pub fn keep_at_it(device: &str, mib: u32) -> String {
    again_and_again(&command(device, mib))
}

/// Returns a command that runs another one again and again, with short rests, until `/tmp/stop` is there; `/tmp/passes` has
/// the number of passes so far. In the end it prints `N passes`, or the fault.
pub fn again_and_again(command: &str) -> String {
    format!(
        "rm -f /tmp/stop /tmp/passes; n=0; \
         until [ -e /tmp/stop ]; do ({command}) >/tmp/out 2>&1 || {{ cat /tmp/out; exit 1; }}; \
         n=$((n + 1)); echo $n >/tmp/passes; usleep 300000; done; echo \"$n passes\""
    )
}

/// Returns the number of passes of a guest that writes and verifies again and again.
pub fn passes(guest: &Guest) -> Result<u32> {
    Ok(guest.ok("cat /tmp/passes", LIMIT)?.trim().parse()?)
}

/// Waits until a guest that runs [`keep_at_it`] has done `times` passes.
pub fn wait_for_passes(guest: &Guest, times: u32) -> Result<()> {
    let looks = "$(cat /tmp/passes 2>/dev/null || echo 0)";
    let wait = format!("until [ {looks} -ge {times} ]; do usleep 100000; done");
    guest.ok(&wait, 2 * LIMIT).map(drop)
}

/// Checks that a guest still runs [`keep_at_it`]: it does one more pass from its beginning to its end.
pub fn goes_on(guest: &Guest) -> Result<()> {
    let before = passes(guest)?;
    wait_for_passes(guest, before + 2)
}

/// Ends [`again_and_again`], and checks that all data was equal.
pub fn stop(guest: &Guest, keeping: Started) -> Result<()> {
    guest.ok("touch /tmp/stop", LIMIT)?;
    let output = guest.finish(keeping, 2 * LIMIT)?;
    ensure!(
        output.status == 0 && output.out.ends_with(" passes\n"),
        "{}: {}",
        guest.name,
        output.out
    );
    Ok(())
}

/// Runs [`command`] in a guest; anything but equality is an error.
pub fn verify(guest: &Guest, device: &str, mib: u32) -> Result<()> {
    let output = guest.ok(&command(device, mib), LIMIT)?;
    ensure!(
        is_equal(&output, mib),
        "{} reads from {device} what it did not write: {output}",
        guest.name
    );
    Ok(())
}
