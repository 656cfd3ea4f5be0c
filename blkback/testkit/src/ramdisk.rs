//! The driver domain's ramdisk: an archive of images, whose content identifies the image and the place in it.

use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen_sim::SimDomain;
use std::ptr::NonNull;

/// Returns the content of the image with that number: no two images share a run of bytes.
pub fn content(image: u64, len: usize) -> Vec<u8> {
    super::Random::new(0xb01d_0000 + image).bytes(len)
}

/// Puts an archive into a domain's memory, as Xen's toolstack does, and returns its address.
pub fn load(domain: &SimDomain, archive: &[u8]) -> NonNull<u8> {
    let pages = archive.len().div_ceil(PAGE_SIZE);
    let base = domain.alloc_pages(pages);
    let from = NonNull::from(archive).cast();
    // SAFETY: pages just taken, as long as the archive.
    unsafe { base.copy_from_nonoverlapping(from, archive.len()) };
    base
}

/// Returns an archive of files with these names and sizes.
pub fn archive_of(files: &[(&str, usize)]) -> Vec<u8> {
    let files = files.iter().zip(0..);
    let files: Vec<_> = files
        .map(|((name, size), number)| (name.to_string(), content(number, *size)))
        .collect();
    archive(&files)
}

/// Returns a POSIX archive of plain files.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
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
