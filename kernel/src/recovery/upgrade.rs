//! From one version to the next, and back if that one fails.
//!
//! ```text
//!   stage (pages outside of the room for images)
//!   ┌──────────────────────────────┬──────────────┬──────────────┬─────────────────┐
//!   │ code that copies, two lists  │ the region   │ this image   │ the new image   │
//!   └──────────────────────────────┴──────────────┴──────────────┴─────────────────┘
//!      forward: new image and region to where the new version has them, then its first instruction
//!      back:    this image and the region to where this version has them, then ours
//! ```
//!
//! The code runs without paging, from the stage, and needs nothing but its list. The stage stays until the new version
//! serves: until then, each of its failures that is reported leads back. Lists and code are part of the format of what
//! survives (`bulkhead_upgrade::FORMAT`): the new version uses those of the one before.

use super::leaving::let_go;
use super::record::{HandOver, Phase};
use super::trial::is_trying;
use super::{copying, obstacles, others, region, restart, trial};
use crate::memory::layout::{Ranges, TooFragmented};
use crate::memory::{image, pages};
use crate::{domain, grants, logger};
use bulkhead_upgrade::{Candidate, FORMAT, Running, Version};
use bulkhead_xen::PAGE_SIZE;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

/// Returns the version that runs.
pub fn version() -> Version {
    Version(region::version())
}

/// The end of the addresses that an image may use.
static ROOM_END: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    /// Never called here.
    fn pvh_start();
}

/// Places of the lists in the stage, and where its other parts begin.
const FORWARD: usize = 512;
const BACK: usize = 2048;
const PARTS: usize = PAGE_SIZE;

/// An entry of a list.
type Step = [u32; 4];

/// Learns where the room for images ends, and keeps the way back out of the memory that is free. `taken` are the frames of
/// what the builder has left.
pub(crate) fn reserve<'a>(
    ram: &Ranges,
    free: &mut Ranges,
    taken: impl Iterator<Item = &'a Range<u64>>,
) -> Result<(), TooFragmented> {
    let start = image::image().start / PAGE_SIZE as u64;
    let memory = ram.iter().find(|range| range.contains(&start));
    let memory_end = memory.map_or(start, |range| range.end);
    let next = taken
        .map(|range| range.start)
        .filter(|first| *first >= start);
    let end = next.fold(memory_end, u64::min);
    ROOM_END.store(end * PAGE_SIZE as u64, Ordering::Relaxed);
    trial::keep_stage(free)
}

/// Returns what a new version has to fit to.
pub fn running() -> Running {
    Running {
        version: version(),
        format: FORMAT,
        region_bytes: region::REGION_BYTES as u32,
        room: image::image().start..ROOM_END.load(Ordering::Relaxed),
    }
}

/// Returns the reason why no version can take over now, if there is one.
pub fn obstacle() -> Option<&'static str> {
    if !domain::is_pvh() {
        Some("expected a domain of type \"pvh\": in a PV domain no version takes over in place yet")
    } else if is_trying() {
        Some("this version has to show first that it serves")
    } else if !restart::is_enabled() {
        Some("expected recover=on on the command line")
    } else if others::exist() {
        Some("expected a domain with one vCPU: with several, no version takes over in place yet")
    } else if grants::has_granted() {
        // Where the new image goes, as it may.
        Some("other domains have pages of this one, as those do whose disks it uses")
    } else {
        obstacles::first()
    }
}

/// The pages in which everything is that the code copies.
struct Stage {
    first: NonNull<u8>,
    pages: usize,
    used: usize,
}

impl Stage {
    /// Takes pages that no image will ever cover.
    fn new(bytes: usize, room: &Range<u64>) -> Option<Stage> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        let mut covered = heapless::Vec::<NonNull<u8>, 8>::new();
        let first = loop {
            let Some(first) = pages::allocate_pages(pages) else {
                break None;
            };
            let start = first.as_ptr() as u64;
            if start >= room.end || start + (pages * PAGE_SIZE) as u64 <= room.start {
                break Some(first);
            }
            if covered.push(first).is_err() {
                // SAFETY: allocated just now.
                unsafe { pages::free_pages(first, pages) };
                break None;
            }
        };
        for first in covered {
            // SAFETY: allocated above, and used for nothing.
            unsafe { pages::free_pages(first, pages) };
        }
        let first = first?;
        let stage = Stage {
            first,
            pages,
            used: PARTS,
        };
        let end = first.as_ptr() as u64 + (pages * PAGE_SIZE) as u64;
        if end > 1 << 32 {
            stage.free();
            return None;
        }
        Some(stage)
    }

    fn free(self) {
        // SAFETY: its own, and nothing uses it.
        unsafe { pages::free_pages(self.first, self.pages) };
    }

    fn address(&self, offset: usize) -> u32 {
        self.first.as_ptr() as u32 + offset as u32
    }

    /// Sets memory aside, and returns its offset.
    fn room(&mut self, bytes: usize) -> usize {
        let at = self.used;
        self.used = (at + bytes).next_multiple_of(16);
        assert!(
            self.used <= self.pages * PAGE_SIZE,
            "the stage is too small"
        );
        at
    }

    /// Returns memory of the stage.
    fn slice(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(at + bytes <= self.pages * PAGE_SIZE, "beyond the stage");
        // SAFETY: within pages that are the stage's alone.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr().add(at), bytes) }
    }

    /// Copies bytes into the stage, and returns the step that brings them to `to` and clears what is after them.
    fn part(&mut self, content: &[u8], to: u32, zero: u32) -> Step {
        let padded = content.len().next_multiple_of(4);
        let at = self.room(padded);
        let place = self.slice(at, padded);
        place.fill(0);
        place[..content.len()].copy_from_slice(content);
        let zero = (content.len() as u32 + zero).saturating_sub(padded as u32);
        [
            self.address(at),
            to,
            padded as u32,
            zero.next_multiple_of(4),
        ]
    }

    fn list(&mut self, at: usize, steps: &[Step]) {
        for (number, step) in steps.iter().enumerate() {
            let bytes = step.map(u32::to_le_bytes);
            self.slice(at + number * size_of::<Step>(), size_of::<Step>())
                .copy_from_slice(bytes.as_flattened());
        }
    }
}

/// The image that runs, as it was loaded: code with constants, and data.
fn own_parts() -> [(&'static [u8], u64); 2] {
    let constants = image::image().start..image::image_parts().constants.end;
    let (data, copy) = (image::data(), image::pristine());
    // SAFETY: read-only parts of the image, for as long as it runs.
    let of = |start: u64, bytes: u64| unsafe {
        core::slice::from_raw_parts(start as *const u8, bytes as usize)
    };
    [
        (
            of(constants.start, constants.end - constants.start),
            constants.start,
        ),
        (of(copy.start, data.end - data.start), data.start),
    ]
}

/// Hands the domain over to a version that was checked against [`running`]. Returns only if that cannot be, with the
/// reason; nothing has changed then.
pub fn take_over(candidate: &Candidate<'_>, fault: u32) -> &'static str {
    if let Some(obstacle) = obstacle() {
        return obstacle;
    }
    let bytes = region::REGION_BYTES;
    let own = own_parts().map(|(content, _)| content.len() + 16);
    let new = candidate.parts().map(|(_, content, _)| content.len() + 16);
    let size = PARTS + bytes + own.iter().sum::<usize>() + new.sum::<usize>();
    let Some(mut stage) = Stage::new(size, &running().room) else {
        return "there is no memory to keep both versions";
    };
    let code = copying::code();
    stage.slice(0, code.len()).copy_from_slice(code);
    let room = stage.room(bytes);
    let surviving = [stage.address(room), candidate.note.region, bytes as u32, 0];

    let mut back = heapless::Vec::<Step, 4>::new();
    let image_end = image::image().end;
    for (content, to) in own_parts() {
        let end = to + content.len() as u64;
        // Behind the data, everything is zero.
        let is_data = end > image::image_parts().constants.end;
        let zero = if is_data { image_end - end } else { 0 };
        let _ = back.push(stage.part(content, to as u32, zero as u32));
    }
    let _ = back.push([
        stage.address(room),
        region::address() as u32,
        bytes as u32,
        0,
    ]);
    let _ = back.push([pvh_start as *const () as u32, 0, 0, 0]);
    stage.list(BACK, &back);

    let mut forward = heapless::Vec::<Step, 18>::new();
    for (to, content, zero) in candidate.parts() {
        let _ = forward.push(stage.part(content, to, zero));
    }
    let _ = forward.push(surviving);
    let _ = forward.push([candidate.entry, 0, 0, 0]);
    stage.list(FORWARD, &forward);

    let over = HandOver {
        from: version().0,
        to: candidate.note.version.0,
        fault,
        stage: stage.address(0),
        stage_pages: stage.pages as u32,
        table: stage.address(BACK),
        room: stage.address(room),
        room_bytes: bytes as u32,
    };
    let copy = stage.slice(room, bytes).as_mut_ptr();
    // SAFETY: there is as much room; the copy begins with the record.
    let intact = unsafe {
        region::copy_to(copy, bytes);
        (*copy.cast::<super::record::Sealed>()).begin_trying(over)
    };
    if !intact {
        stage.free();
        return "the region that survives is damaged";
    }
    let (next, own) = (candidate.note.version, version());
    // SAFETY: no other task runs before the new version does.
    if !unsafe { let_go(format_args!("version {next} takes over from {own}")) } {
        panic!("pages of guests stay mapped: version {next} cannot take over");
    }
    logger::drain();
    // SAFETY: PVH; the list and the code were just made, and Xen knows nothing of this boot any more.
    unsafe { copying::leave(stage.address(FORWARD), stage.address(0)) }
}

/// What the boot before this one was, in the same domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It has crashed.
    Crashed,
    /// This version has taken over from that one, and is to fail in this way.
    Version(Version, u32),
    /// That version had taken over, and has failed.
    Failed(Version),
}

impl Before {
    /// Reads the record.
    pub(crate) fn of(phase: Phase, over: &HandOver) -> Before {
        match phase {
            Phase::Settled => Before::Crashed,
            Phase::Trying => Before::Version(Version(over.from), over.fault),
            Phase::Back => Before::Failed(Version(over.to)),
        }
    }
}
