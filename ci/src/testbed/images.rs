//! Image archives as a user would hand them to the driver domain: a tar file as `ramdisk=`.

use crate::digest::hex;
use anyhow::Result;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file of an archive.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    size: u64,
    contents: Contents,
}

#[derive(Clone, Debug)]
enum Contents {
    Zeros,
    Noise,
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Image {
    /// Returns an image of zeros, of this many bytes.
    pub fn new(name: &str, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            size,
            contents: Contents::Zeros,
        }
    }

    /// Returns an image of zeros, of this many MiB.
    pub fn mib(name: &str, mib: u64) -> Self {
        Self::new(name, mib << 20)
    }

    /// Returns an image without two equal sectors, of this many MiB.
    pub fn noise(name: &str, mib: u64) -> Self {
        Self {
            contents: Contents::Noise,
            ..Self::mib(name, mib)
        }
    }

    /// Returns a file of these bytes.
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        Self {
            contents: Contents::Bytes(bytes.to_vec()),
            ..Self::new(name, bytes.len() as u64)
        }
    }

    /// Returns a copy of a file.
    pub fn file(name: &str, path: &Path) -> Result<Self> {
        Ok(Self {
            contents: Contents::File(path.to_path_buf()),
            ..Self::new(name, path.metadata()?.len())
        })
    }

    /// Returns the initial contents of the image.
    fn contents(&self) -> io::Result<Box<dyn Read>> {
        let all: Box<dyn Read> = match &self.contents {
            Contents::Zeros => Box::new(io::repeat(0)),
            Contents::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Contents::Noise => Box::new(Noise::default()),
            Contents::File(path) => Box::new(File::open(path)?),
        };
        Ok(Box::new(all.take(self.size)))
    }

    /// Returns its name in an archive.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the image's initial contents to a file.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        io::copy(&mut self.contents()?, &mut File::create(path)?)?;
        Ok(())
    }

    /// Returns the SHA-256 of the image's initial contents, as `sha256sum` prints it.
    pub fn sha256(&self) -> Result<String> {
        let (mut hash, mut contents) = (Sha256::new(), self.contents()?);
        let mut part = vec![0; 64 << 10];
        loop {
            match contents.read(&mut part)? {
                0 => return Ok(hex(&hash.finalize())),
                bytes => hash.update(&part[..bytes]),
            }
        }
    }
}

/// Bytes that do not repeat: a counter, scrambled.
#[derive(Default)]
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *buffer {
            // An odd factor takes every number to another one.
            let word = (self.0 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *byte = word.to_le_bytes()[self.0 as usize % 8];
            self.0 += 1;
        }
        Ok(buffer.len())
    }
}

/// Writes an archive of images.
pub fn write_archive(path: &Path, images: &[Image]) -> Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    for image in images {
        let mut header = tar::Header::new_ustar();
        header.set_size(image.size);
        header.set_mode(0o644);
        archive.append_data(&mut header, &image.name, image.contents()?)?;
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
    fn noise_is_the_same_however_it_is_read_and_has_no_equal_sectors() {
        let image = Image::noise("noise", 1);
        let mut whole = Vec::new();
        image.contents().unwrap().read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), 1 << 20);
        let mut contents = image.contents().unwrap();
        for expected in &whole[..1000] {
            let mut byte = [0];
            contents.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], *expected);
        }
        let sectors: std::collections::BTreeSet<_> = whole.chunks(512).collect();
        assert_eq!(sectors.len(), 2048);
    }

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
