//! Image archives as a user would hand them to the driver domain: a tar file as `ramdisk=`.

use anyhow::Result;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// One file of an archive.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    size: u64,
}

impl Image {
    /// An image of zeros, of this many bytes.
    pub fn new(name: &str, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            size,
        }
    }

    /// An image of zeros, of this many MiB.
    pub fn mib(name: &str, mib: u64) -> Self {
        Self::new(name, mib << 20)
    }
}

/// Writes an archive of images.
pub fn write_archive(path: &Path, images: &[Image]) -> Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    for image in images {
        let mut header = tar::Header::new_ustar();
        header.set_size(image.size);
        header.set_mode(0o644);
        let zeros = io::repeat(0).take(image.size);
        archive.append_data(&mut header, &image.name, zeros)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

/// Writes an archive whose second member has a header that was damaged.
pub fn write_damaged_archive(path: &Path) -> Result<()> {
    write_archive(path, &[Image::new("first", 512), Image::new("second", 512)])?;
    let mut bytes = std::fs::read(path)?;
    // The second header follows the first member's one block; its checksum lies at byte 148.
    bytes[1024 + 148] ^= 0x55;
    std::fs::write(path, bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_damaged_archive_reads_up_to_the_damage() {
        let path = std::env::temp_dir().join(format!("lab-archive-{}", std::process::id()));
        write_damaged_archive(&path).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let members: Vec<bool> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.is_ok())
            .collect();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(members, [true, false]);
    }
}
