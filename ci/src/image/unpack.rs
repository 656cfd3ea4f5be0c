//! Unpacking what Debian ships compressed: the hypervisor, kernels and kernel modules.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// The ELF inside a Linux bzImage. Linux's boot protocol says where it lies: the header's fields
/// `setup_sects` (byte 0x1f1), `payload_offset` and `payload_length` (0x248 and 0x24c).
///
/// libxc would do the same at every creation of a domain, which costs an emulated dom0 seconds.
pub fn kernel(bz_image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = bz_image
            .get(at..at + 4)
            .context("the kernel is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let sectors = *bz_image.get(0x1f1).context("the kernel is too short")?;
    let start = (usize::from(sectors) + 1) * 512 + word(0x248)?;
    // The payload's last four bytes are its unpacked size, no part of the compressed stream.
    let end = start + word(0x24c)? - 4;
    let elf = any(bz_image
        .get(start..end)
        .context("the kernel is too short")?)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not an ELF file");
    }
    Ok(elf)
}

/// Unpacks gzip, xz or zstd, told apart by their first bytes.
pub fn any(data: &[u8]) -> Result<Vec<u8>> {
    match data {
        [0x1f, 0x8b, ..] => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(data).read_to_end(&mut plain)?;
            Ok(plain)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => through("xz", data),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => through("zstd", data),
        _ => bail!("the data is neither gzip nor xz nor zstd"),
    }
}

/// Pipes data through a program. (The kernel's xz streams use filters that the Rust unpackers lack.)
fn through(program: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{program} failed ({})", output.status);
    }
    Ok(output.stdout)
}
