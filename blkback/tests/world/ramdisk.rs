//! The driver domain's ramdisk: an archive of images with content that tells where it is from.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The content of the image with that number: no two images share a run of bytes.
pub fn content(image: u64, len: usize) -> Vec<u8> {
    super::Random::new(0xb01d_0000 + image).bytes(len)
}

/// An archive in memory that nobody else uses.
pub struct Ramdisk {
    base: NonNull<u8>,
    layout: Layout,
}

impl Ramdisk {
    pub fn new(images: &[(String, Vec<u8>)], damage: Option<usize>) -> Ramdisk {
        let mut archive = archive(images);
        if let Some(bytes) = damage.and_then(|from| archive.get_mut(from..)) {
            bytes.fill(0xff);
        }
        let layout = Layout::from_size_align(archive.len(), 4096).expect("not too large");
        // SAFETY: an archive is never empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) });
        let base = base.unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: just allocated, as long as the archive.
        unsafe { base.copy_from_nonoverlapping(NonNull::from(&archive[..]).cast(), archive.len()) };
        Ramdisk { base, layout }
    }

    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Ramdisk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; whoever used it is gone by now.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// An archive of files with these names and sizes.
pub fn archive_of(files: &[(&str, usize)]) -> Vec<u8> {
    let files = files.iter().zip(0..);
    let files: Vec<_> = files
        .map(|((name, size), number)| (name.to_string(), content(number, *size)))
        .collect();
    archive(&files)
}

/// A POSIX archive of plain files.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
