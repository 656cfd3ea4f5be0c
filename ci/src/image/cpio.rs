//! Initramfs archives (cpio, "newc" format) in memory.

use ::cpio::newc::{Builder, ModeFileType as Kind};
use std::collections::BTreeSet;
use std::io::Write;

/// An archive that grows in memory. Each member's directories come before it.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    members: u32,
    dirs: BTreeSet<String>,
}

impl Cpio {
    /// Adds a regular file, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.add(path, Kind::Regular, mode & 0o7777, (0, 0), data);
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.add(path, Kind::Symlink, 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device, and the directories above it.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, Kind::Char, 0o600, (major, minor), &[]);
    }

    /// Returns the finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        ::cpio::newc::trailer(&mut self.bytes).expect("memory takes every write");
        self.bytes
    }

    /// Returns the finished archive as a disk, which has whole sectors.
    pub fn finish_as_disk(self) -> Vec<u8> {
        const SECTOR: usize = 512;
        let mut bytes = self.finish();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn add(&mut self, path: &str, kind: Kind, mode: u32, device: (u32, u32), data: &[u8]) {
        let path = path.trim_start_matches('/');
        for (index, _) in path.match_indices('/') {
            let dir = &path[..index];
            if self.dirs.insert(dir.to_owned()) {
                self.member(dir, Kind::Directory, 0o755, (0, 0), &[]);
            }
        }
        self.member(path, kind, mode, device, data);
    }

    fn member(&mut self, path: &str, kind: Kind, mode: u32, device: (u32, u32), data: &[u8]) {
        self.members += 1;
        let mut writer = Builder::new(path)
            .ino(self.members)
            .mode(mode)
            .set_mode_file_type(kind)
            .rdev_major(device.0)
            .rdev_minor(device.1)
            .write(&mut self.bytes, data.len() as u32);
        writer.write_all(data).expect("memory takes every write");
        writer.finish().expect("memory takes every write");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::cpio::NewcReader;

    #[test]
    fn each_member_comes_once_after_its_directories() {
        let mut archive = Cpio::default();
        archive.file("/a/b/c", 0o100_755, b"12345");
        archive.symlink("/a/d", "b/c");
        archive.char_device("/dev/console", 5, 1);
        let bytes = archive.finish_as_disk();
        assert_eq!(bytes.len() % 512, 0);

        let (mut rest, mut members) = (bytes.as_slice(), Vec::new());
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            let mut data = String::new();
            std::io::Read::read_to_string(&mut reader, &mut data).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            members.push((
                entry.name().to_owned(),
                entry.mode(),
                (entry.rdev_major(), entry.rdev_minor()),
                data,
            ));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("a", 0o040_755, (0, 0), ""),
            ("a/b", 0o040_755, (0, 0), ""),
            ("a/b/c", 0o100_755, (0, 0), "12345"),
            ("a/d", 0o120_777, (0, 0), "b/c"),
            ("dev", 0o040_755, (0, 0), ""),
            ("dev/console", 0o020_600, (5, 1), ""),
        ];
        let expected = expected
            .map(|(name, mode, device, data)| (name.to_owned(), mode, device, data.to_owned()));
        assert_eq!(members, expected);
    }
}
