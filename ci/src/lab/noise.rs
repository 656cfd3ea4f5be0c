//! Noise on a guest's disk: random bytes that are written, and compared with what is read back.

use crate::host::guest::Guest;
use anyhow::{Result, ensure};
use std::time::Duration;

/// How long the MiB of one command may take in an emulated guest among others.
const LIMIT: Duration = Duration::from_secs(90);

/// A guest's shell command that writes `mib` MiB of noise to the begin of a disk and compares what it
/// reads back, both past its cache; it prints how many bytes were equal.
pub fn command(device: &str, mib: u32) -> String {
    let blocks = mib * 16;
    format!(
        "dd if=/dev/urandom of=/tmp/{device} bs=64k count={blocks} 2>/dev/null && \
         dd if=/tmp/{device} of=/dev/{device} bs=64k oflag=direct 2>/dev/null && \
         dd if=/dev/{device} bs=64k count={blocks} iflag=direct 2>/dev/null | cmp - /tmp/{device} && \
         wc -c </tmp/{device}"
    )
}

/// Whether [`command`] printed that all was equal.
pub fn is_equal(output: &str, mib: u32) -> bool {
    output.trim() == (u64::from(mib) << 20).to_string()
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
