//! A writer of numbered records, each of which is flushed before the next: records that it reports as flushed must be
//! on the disk afterwards, whatever was killed meanwhile.

use crate::digest::hex;
use crate::host::domain::Domain;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The size of a record in bytes, which also defines its place: record N begins at N times this.
const RECORD: usize = 4096;

/// The most records that are written.
const MOST: u32 = 1024;

/// The words on the guest's console before the number of a flushed record.
const FLUSHED: &str = "@@flushed ";

/// Returns a guest's shell command that writes records to the beginning of a disk or a file, and other data, which it
/// does not flush, from 4 MiB on at the same time.
pub fn write(to: &str) -> String {
    format!(
        "while dd if=/dev/urandom of={to} bs=64k seek=64 count=16 oflag=direct conv=notrunc 2>/dev/null; do :; done & \
         n=0; while [ $n -lt {MOST} ] && yes \"record $n\" | head -c {RECORD} | \
         dd of={to} bs={RECORD} seek=$n iflag=fullblock conv=fsync,notrunc 2>/dev/null; \
         do echo \"{FLUSHED}$n\" >/dev/console; n=$((n + 1)); done"
    )
}

/// Waits until `records` records are flushed.
pub fn wait_for(guest: &Domain, records: u32, limit: Duration) -> Result<()> {
    guest.wait_console(&format!("{FLUSHED}{}", records - 1), limit)
}

/// Returns the number of records that are flushed, by the guest's console so far.
pub fn flushed(guest: &Domain) -> Result<u32> {
    let console = guest.console();
    let numbers = console.lines().filter_map(|line| {
        let (_, number) = line.split_once(FLUSHED)?;
        number.trim().parse::<u32>().ok()
    });
    // The last line may have been cut off.
    let last = numbers.max();
    let last = last.with_context(|| format!("{} has flushed nothing", guest.name))?;
    Ok(last + 1)
}

/// Returns a shell command that prints the checksum of that many records on a disk, or in a file.
pub fn sum_of(disk: &str, records: u32) -> String {
    format!("dd if={disk} bs={RECORD} count={records} 2>/dev/null | sha256sum")
}

/// Returns the output of [`sum_of`] if all of them are there.
pub fn expected(records: u32) -> String {
    let mut sum = Sha256::new();
    for number in 0..records {
        let line = format!("record {number}\n");
        sum.update(&line.repeat(RECORD.div_ceil(line.len())).as_bytes()[..RECORD]);
    }
    format!("{}  -\n", hex(&sum.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn records_are_what_the_shell_writes() {
        let make =
            format!("for n in 0 1 2; do yes \"record $n\" | head -c {RECORD}; done | sha256sum");
        let made = Command::new("sh").args(["-c", &make]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&made.stdout), expected(3));
        assert_ne!(expected(2), expected(3));
    }
}
