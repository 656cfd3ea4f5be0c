//! The disks that the guest may have. Their content is restored after each input.

use bulkhead_blkback_testkit::{Script, World, content};
use bulkhead_images::testing::{Delayed, OpenNow};
use bulkhead_images::{Access, BlockDevice, Io, IoError, IoSegment, Op, Sector, Submitted, Tag};
use bulkhead_xen::PAGE_SIZE;
use std::collections::HashSet;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of each image.
pub const DISK_SIZE: usize = 16 * 1024;

/// A disk that the guest may use.
pub struct Disk {
    pub device: Arc<dyn BlockDevice>,
    /// Holds requests back, if the disk is a slow one.
    pub late: Option<Delayed>,
    /// The content to restore after an input, if the guest can write the image.
    original: Option<Original>,
    /// The first bytes of each sector of all other images.
    pub foreign: HashSet<Mark>,
}

/// An image, with the content that it had at first.
struct Original {
    /// The image itself.
    device: Arc<dyn BlockDevice>,
    /// The range of the ramdisk's bytes that the image is, whose length is [`DISK_SIZE`].
    bytes: Range<usize>,
    /// The content, in pages of the driver domain.
    content: Vec<IoSegment>,
}

/// The first bytes of a sector, which no two of the images share.
pub type Mark = [u8; 16];

/// The guest's disks: the target, the access, and whether the disk answers only when the script lets it (`late`).
pub const DISKS: [(&str, Access, bool); 5] = [
    ("ram:disk0,discard=release", Access::ReadWrite, false),
    ("ram:disk1,sector-size=4096", Access::ReadWrite, false),
    ("ram:disk2", Access::ReadWrite, true),
    ("ram:disk3", Access::ReadOnly, false),
    ("null:3T", Access::ReadWrite, false),
];

impl Disk {
    pub fn open(world: &World, ramdisk: &[u8], number: u64, kind: (&str, Access, bool)) -> Disk {
        let (target, access, late) = kind;
        let stores = &world.backend.services.stores;
        let opened = stores.open_now(target, access, "the guest");
        let device = opened.expect("the image is there");
        let late = late.then(|| Delayed::new(device.clone()));
        let content = content(number, DISK_SIZE);
        let mut sectors = ramdisk.windows(DISK_SIZE).step_by(512);
        let start = sectors
            .position(|bytes| bytes == content)
            .map(|at| at * 512);
        let own = start.map_or(0..0, |start| start..start + DISK_SIZE);
        let sectors = ramdisk[..own.start]
            .chunks(512)
            .chain(ramdisk[own.end..].chunks(512));
        let marks = sectors.filter_map(|sector| sector.first_chunk().copied());
        let written = access == Access::ReadWrite && !own.is_empty();
        let original = written.then(|| Original {
            device: device.clone(),
            bytes: own,
            content: segments(world, &content),
        });
        Disk {
            device: late.clone().map_or(device, |late| Arc::new(late)),
            late,
            original,
            // Between images, and where an image is empty, all bytes are zero.
            foreign: marks.filter(|mark| *mark != [0; 16]).collect(),
        }
    }

    /// Returns the range of the ramdisk's bytes that the guest may change.
    pub fn own_bytes(&self) -> Range<usize> {
        let original = self.original.as_ref();
        original.map_or(0..0, |original| original.bytes.clone())
    }

    /// Lets a slow disk complete or fail requests that it holds back, as the script says.
    pub fn answer_late(&self, script: &mut Script<'_>) {
        let Some(late) = self.late.as_ref().filter(|late| late.held() > 0) else {
            return;
        };
        let at = script.below(late.held());
        match script.below(4) {
            0 => late.release_backwards(),
            1 => late.fail(at, IoError::Medium),
            _ => late.release(at),
        }
    }

    /// Restores the content that the image had at first.
    pub fn put_back(&self) {
        let Some(original) = &self.original else {
            return;
        };
        let sector = Sector(0);
        let write = Io {
            op: Op::write(sector),
            segments: &original.content,
        };
        let written = original.device.queue().submit(Tag(0), write);
        assert_eq!(
            written,
            Submitted::Done(Ok(())),
            "discarded pages come back"
        );
    }
}

/// Copies bytes into new pages of the driver domain, and returns the segments of a write from there.
fn segments(world: &World, bytes: &[u8]) -> Vec<IoSegment> {
    let pages = bytes.chunks(PAGE_SIZE);
    let segment = |bytes: &[u8]| {
        let page = world.storage.alloc_page();
        let from = NonNull::from(bytes).cast();
        // SAFETY: the page was just allocated, and nothing else accesses it.
        unsafe { page.copy_from_nonoverlapping(from, bytes.len()) };
        // SAFETY: domain memory stays mapped as long as the machine, and nothing refers into it.
        unsafe { IoSegment::new(page, bytes.len(), None) }
    };
    pages.map(segment).collect()
}
