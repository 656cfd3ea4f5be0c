//! From one version to the next, and back if that one fails.
//!
//! ```text
//!   stage (pages outside of the room for images)
//!   ┌──────────────────────────────┬──────────────┬──────────────┬─────────────────┐
//!   │ code that copies, two lists, │ the region   │ this image   │ the new image   │
//!   │ PV: where other vCPUs wait   │              │              │                 │
//!   └──────────────────────────────┴──────────────┴──────────────┴─────────────────┘
//!      forward: new image and region to where the new version has them, then its first instruction
//!      back:    this image and the region to where this version has them, then ours
//! ```
//!
//! The code runs from the stage, on PVH without paging, and needs nothing but its list. The stage stays until the new version
//! serves: until then, each of its failures that is reported leads back. Lists and code are part of the format of what
//! survives (`bulkhead_upgrade::FORMAT`): the new version uses those of the one before.

use super::copying::Step;
use super::leaving::let_go;
use super::record::{HandOver, Phase};
use super::trial::is_trying;
use super::{copying, obstacles, others, parking, pristine, region, restart, trial};
use crate::memory::layout::{Ranges, TooFragmented};
use crate::memory::{self, image, pages};
use crate::{devices, domain, grants, reporter};
use bulkhead_upgrade::{Candidate, FORMAT, GuestType, Running, Version, WITH_DEVICES};
use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen::abi::pv::PvStartInfo;
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
    /// Never called here.
    fn pv_start();
    static hypercall_page: [u8; PAGE_SIZE];
}

/// Places of the lists in the stage, and where its other parts begin.
const FORWARD: usize = 512;
const BACK: usize = 2048;
const PARTS: usize = PAGE_SIZE;

/// Finds the end of the room for images, and keeps the stage with the way back out of the free memory. `taken` are the
/// frames of what the toolstack has loaded.
pub(crate) fn reserve<'a>(
    free: &mut Ranges,
    taken: impl Iterator<Item = &'a Range<u64>>,
) -> Result<(), TooFragmented> {
    let room = image::room();
    let first = taken.map(|range| range.start * PAGE_SIZE as u64);
    let first = first.filter(|first| *first >= room.start);
    ROOM_END.store(first.fold(room.end, u64::min), Ordering::Relaxed);
    trial::keep_stage(free)
}

/// Returns the properties of the running version against which a new one is checked.
pub fn running() -> Running {
    Running {
        version: version(),
        guest_type: match domain::is_pvh() {
            true => GuestType::Pvh,
            false => GuestType::Pv,
        },
        format: match restart::has_devices() {
            true => WITH_DEVICES,
            false => FORMAT,
        },
        region_bytes: region::REGION_BYTES as u32,
        room: room(),
    }
}

/// Returns the addresses that an image may use.
fn room() -> Range<u64> {
    image::room().start..ROOM_END.load(Ordering::Relaxed)
}

/// The reason why no version can take over while a page lies where its image goes.
const GRANTED: &str = "another domain has a page of this one where the new version would lie; more memory (memory=) avoids that";

/// Returns the reason why no version can take over now, if there is one.
pub fn obstacle() -> Option<&'static str> {
    if is_trying() {
        Some("this version has to show first that it serves")
    } else if !restart::is_enabled() {
        obstacles::first().or(Some("expected a command line without recover=off"))
    } else if grants::has_granted(room()) {
        Some(GRANTED)
    } else if has_table() {
        Some("a page table lies where the new version would")
    } else {
        obstacles::first()
    }
}

/// Returns whether a page table lies where images go. That is so only if the domain first booted a version that did not
/// avoid it.
fn has_table() -> bool {
    let start = pristine::start() as *const PvStartInfo;
    // SAFETY: the start info is where the builder has left it, and tables in use stay tables.
    !domain::is_pvh() && unsafe { memory::pv::has_table_in(start, &room()) }
}

/// The stage: pages with everything that the code copies.
struct Stage {
    first: NonNull<u8>,
    pages: usize,
    used: usize,
}

impl Stage {
    /// Takes pages that no image will ever cover.
    fn new(bytes: usize) -> Option<Stage> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        let stage = Stage {
            first: pages::allocate_behind_room(pages)?,
            pages,
            used: PARTS,
        };
        let end = stage.first.as_ptr() as u64 + (pages * PAGE_SIZE) as u64;
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
        let end = to + padded as u32;
        [self.address(at), to, end, end + zero.next_multiple_of(4)]
    }

    fn list(&mut self, at: usize, steps: &[Step]) {
        for (number, step) in steps.iter().enumerate() {
            let bytes = step.map(u32::to_le_bytes);
            self.slice(at + number * size_of::<Step>(), size_of::<Step>())
                .copy_from_slice(bytes.as_flattened());
        }
    }
}

/// Returns the two parts of the running image as it was loaded, each with its address: code with constants, and data.
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

/// Hands the domain over to a version that was checked against [`running`]. Returns only if that is refused, with the
/// reason; nothing has changed then. If a device does not stop, the domain ends, as it does after a crash. `fault` is
/// the way in which the new version is to fail on purpose, for tests; 0 for not at all.
pub fn take_over(candidate: &Candidate<'_>, fault: u32) -> &'static str {
    if let Some(obstacle) = obstacle() {
        return obstacle;
    }
    let bytes = region::REGION_BYTES;
    let own = own_parts().map(|(content, _)| content.len() + 16);
    let new = candidate.parts().map(|(_, content, _)| content.len() + 16);
    let size = PARTS + bytes + own.iter().sum::<usize>() + new.sum::<usize>() + PAGE_SIZE;
    let Some(mut stage) = Stage::new(size) else {
        return "there is no memory to keep both versions";
    };
    let code = copying::code();
    stage.slice(0, code.len()).copy_from_slice(code);
    let code = parking::code();
    let at = parking::CODE_IN_STAGE;
    stage.slice(at, code.len()).copy_from_slice(code);
    let at = parking::PLACES_IN_STAGE;
    stage.slice(at, parking::PLACES_BYTES).fill(0);
    let room = stage.room(bytes);
    // What survives, copied to `to`.
    let from = stage.address(room);
    let surviving = |to: u32| [from, to, to + bytes as u32, to + bytes as u32];

    let mut back = heapless::Vec::<Step, 4>::new();
    let image_end = image::image().end;
    for (content, to) in own_parts() {
        let end = to + content.len() as u64;
        // Behind the data, everything is zero.
        let is_data = end > image::image_parts().constants.end;
        let zero = if is_data { image_end - end } else { 0 };
        let _ = back.push(stage.part(content, to as u32, zero as u32));
    }
    let _ = back.push(surviving(region::address() as u32));
    let entry = match domain::is_pvh() {
        true => pvh_start as *const (),
        false => pv_start as *const (),
    };
    let _ = back.push([entry as u32, 0, 0, 0]);
    stage.list(BACK, &back);

    let mut forward = heapless::Vec::<Step, 19>::new();
    for (to, content, zero) in candidate.parts() {
        let _ = forward.push(stage.part(content, to, zero));
    }
    if let Some(to) = candidate.hypercall_page {
        // Xen fills it when it builds a domain, with code that runs anywhere.
        // SAFETY: the page is there, and nobody writes to it.
        let filled = unsafe { &hypercall_page };
        let _ = forward.push(stage.part(filled, to, 0));
    }
    let _ = forward.push(surviving(candidate.note.region));
    let _ = forward.push([candidate.entry, 0, 0, 0]);
    stage.list(FORWARD, &forward);

    let over = HandOver {
        from: version().0,
        to: candidate.note.version.0,
        fault,
        stage: stage.address(0),
        stage_pages: stage.pages as u32,
        table: stage.address(BACK),
        room: from,
        room_bytes: bytes as u32,
    };
    let copy = stage.slice(room, bytes).as_mut_ptr();
    if reporter::begin().is_err() {
        reporter::stop_this_vcpu();
    }
    // The other vCPUs have served until here.
    let refused = others::stop().err();
    let refused = refused.or_else(obstacles::first).or_else(|| {
        if grants::has_granted(self::room()) {
            return Some(GRANTED);
        }
        // SAFETY: there is as much room, and no other vCPU changes the region; the copy begins with the record.
        let intact = unsafe {
            region::copy_to(copy, bytes);
            (*copy.cast::<super::record::Sealed>()).begin_trying(over)
        };
        (!intact).then_some("the region that survives is damaged")
    });
    if let Some(refused) = refused {
        others::go_on();
        stage.free();
        return refused;
    }
    let (next, own) = (candidate.note.version, version());
    // From here on, there is no way to go on with this version: devices that were stopped start again only in the next
    // boot.
    if devices::stop() > 0 {
        panic!("version {next} cannot take over from {own}");
    }
    // SAFETY: no other task or vCPU goes on before the new version does. The list and the code were just made, and Xen
    // knows nothing of this boot any more then.
    unsafe {
        if let_go(format_args!("version {next} takes over from {own}")) {
            copying::leave(stage.address(FORWARD), stage.address(0));
        }
    }
    panic!("version {next} cannot take over, and {own} cannot go on");
}

/// The boot before this one, in the same domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It has crashed.
    Crashed,
    /// This version has taken over from that one; the number is the way in which it is to fail on purpose, 0 for none.
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
