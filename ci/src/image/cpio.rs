//! Writing initramfs archives (cpio, "newc" format).

use std::collections::BTreeSet;

/// An archive that grows in memory.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

impl Cpio {
    /// Adds a regular file, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.parents(path);
        self.entry(path, 0o100_000 | (mode & 0o7777), data);
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, 0o120_777, target.as_bytes());
    }

    /// Adds a character device, and the directories above it.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.header(path, 0o020_600, 0, (major, minor));
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// The finished archive as a disk, which has whole sectors.
    pub fn finish_as_disk(self) -> Vec<u8> {
        const SECTOR: usize = 512;
        let mut bytes = self.finish();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn parents(&mut self, path: &str) {
        let path = path.trim_start_matches('/');
        for (index, _) in path.match_indices('/') {
            let dir = &path[..index];
            if self.dirs.insert(dir.to_owned()) {
                self.entry(dir, 0o040_755, &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.header(path, mode, data.len(), (0, 0));
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, device: (u32, u32)) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_starts_at_a_multiple_of_four() {
        let mut cpio = Cpio::default();
        cpio.file("/a/b/c", 0o755, b"12345");
        cpio.symlink("/a/d", "b/c");
        cpio.char_device("/dev/console", 5, 1);
        let bytes = cpio.finish();
        let starts: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(index, _)| index)
            .collect();
        // a, a/b, a/b/c, a/d, dev, dev/console, the trailer
        assert_eq!(starts.len(), 7);
        assert!(starts.iter().all(|start| start % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }
}
