//! Admission: decides which disks may connect, and with how many queues. Memory, address space
//! and the guests' own grants are shared between all guests, and no guest takes so much that another one finds
//! nothing.
//!
//! ```text
//!   attached ──offer──► how many queues, persistent grants or not
//!   connects ──admit──► the queues that the frontend made fit, or the disk is refused
//!   served   ──served─► the memory is taken, and counts as such by itself
//!   gone     ──forget─►
//! ```
//!
//! An offer counts as taken by its guest until the guest has connected. So disks that are attached at the
//! same time do not all count on the same room.

use crate::engine::Needs;
use crate::id::VbdId;
use crate::limits::Limits;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{OnceCell, RefCell};
use core::fmt;

/// The grants of one guest that all its disks together may keep for good: half of what a Linux guest has
/// by default (64 frames of its table, 32,768 grants). The others are its network's, among others.
const GRANTS_OF_A_GUEST: usize = 16 * 1024;

/// The bytes of the heap that a disk takes beside its queues.
const DISK_BYTES: usize = 24 * 1024;

/// The claims of all disks.
#[derive(Default)]
pub struct Admission {
    free_memory: OnceCell<Box<dyn Fn() -> usize>>,
    /// In no order: there are few of them, and they are looked at when a disk comes or goes.
    claims: RefCell<Vec<Admitted>>,
}

/// The resources that a disk has, or may take.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    disk: VbdId,
    needs: Needs,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is taken yet.
    Offered,
    /// Its queues are being made: how much of it is taken is not known.
    Connecting,
    /// All is taken.
    Connected,
}

/// The reason why a disk is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The address space is full, or is left to other guests.
    Space {
        /// Pages that the disk would take.
        wanted: usize,
        /// Pages that its guest has.
        held: usize,
        /// Pages that are free.
        free: usize,
    },
    /// The memory is full.
    Memory {
        /// Bytes that the disk would take.
        wanted: usize,
        /// Bytes that are free, without the reserve.
        free: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Space { wanted, held, free } => write!(
                f,
                "no address space for {wanted} foreign pages: this guest's disks have {held}, {free} are \
                 free, and a quarter of both together stays for other guests"
            ),
            Refused::Memory { wanted, free } => write!(
                f,
                "no memory for this disk: it takes {wanted} bytes, and {free} are free beside the reserve \
                 (memory= in the driver domain's configuration)"
            ),
        }
    }
}

impl core::error::Error for Refused {}

impl Admission {
    /// Has `free` return the number of free bytes, without those that are kept in reserve. Until this is
    /// called, memory is taken to be unlimited.
    pub fn watch_memory(&self, free: impl Fn() -> usize + 'static) {
        let _ = self.free_memory.set(Box::new(free));
    }

    /// Returns the number of free bytes without the reserve, if that is [watched](Self::watch_memory).
    pub fn free_memory(&self) -> Option<usize> {
        self.free_memory.get().map(|free| free())
    }

    /// Returns the bytes that are neither used nor about to be taken.
    fn available(&self) -> usize {
        let free = self.free_memory().unwrap_or(usize::MAX);
        let connecting = self.sum(|claim| claim.stage == Stage::Connecting);
        free.saturating_sub(connecting.bytes)
    }

    /// Returns the sum of the resources that these disks have or may take.
    fn sum(&self, which: impl Fn(&Admitted) -> bool) -> Needs {
        let mut sum = Needs::default();
        for claim in self.claims.borrow().iter().filter(|claim| which(claim)) {
            sum = sum + claim.needs;
        }
        sum
    }

    /// Replaces the claim of a disk.
    fn claim(&self, disk: VbdId, needs: Needs, stage: Stage) {
        self.forget(disk);
        let claim = Admitted { disk, needs, stage };
        self.claims.borrow_mut().push(claim);
    }

    /// Checks that there is memory for one more disk, whatever its queues.
    pub fn attach(&self) -> Result<(), Refused> {
        let free = self.available();
        match free >= DISK_BYTES {
            true => Ok(()),
            false => Err(Refused::Memory {
                wanted: DISK_BYTES,
                free,
            }),
        }
    }

    /// Returns the offer to a disk, within `limits`, while `free` pages of address space are free.
    ///
    /// One disk may take up to a quarter of the address space and of the memory that is free, its guest's
    /// disks together up to half of what is left to them, and up to half of the guest's grants. Where that
    /// leaves no room for a queue with persistent grants, it is offered one queue without.
    pub fn offer(&self, id: VbdId, limits: Limits, free: usize) -> Limits {
        // The disk's own share does not count against it: it is offered anew.
        self.forget(id);
        let held = self.sum(|claim| claim.disk.frontend == id.frontend);
        let pending = self.sum(|claim| claim.stage == Stage::Offered);
        let free = free.saturating_sub(pending.pages);
        let share = ((held.pages + free) / 2).saturating_sub(held.pages);
        let pages = (free / 4).min(share);
        let bytes = self.available().saturating_sub(pending.bytes) / 4;
        let grants = GRANTS_OF_A_GUEST.saturating_sub(held.grants);
        let fitting = |queue: Needs| {
            let fits = (pages / queue.pages).min(bytes / queue.bytes);
            if queue.grants == 0 {
                return fits;
            }
            // The next disk gets some, too, as long as there are enough.
            let many = (grants / 2 / queue.grants).max(1);
            fits.min(many).min(grants / queue.grants)
        };
        let most = limits.queues as usize;
        let lasting = match limits.persistent {
            true => fitting(limits.queue(true)).min(most),
            false => 0,
        };
        let limits = match lasting {
            0 if limits.persistent => Limits {
                queues: 1,
                persistent: false,
                ..limits
            },
            0 => Limits {
                queues: fitting(limits.queue(false)).clamp(1, most) as u32,
                ..limits
            },
            queues => Limits {
                queues: queues as u32,
                ..limits
            },
        };
        let needs = limits
            .queue(limits.persistent)
            .times(limits.queues as usize);
        self.claim(id, needs, Stage::Offered);
        limits
    }

    /// Lets a disk take what its queues need, while `free` pages of address space are free. That memory is
    /// reserved for it until it is [`served`](Self::served) or [forgotten](Self::forget).
    pub fn admit(&self, id: VbdId, needs: Needs, free: usize) -> Result<(), Refused> {
        self.admit_if(id, needs, free, |held| {
            held + needs.pages <= (held + free) / 4 * 3
        })
    }

    /// Lets a disk take what its queues need that was served before the crash: whatever is there. The shares of guests
    /// depend on the order in which disks come, which is another one now; that they fit was seen when they connected.
    #[cfg(feature = "recover")]
    pub fn admit_again(&self, id: VbdId, needs: Needs, free: usize) -> Result<(), Refused> {
        self.admit_if(id, needs, free, |_| needs.pages <= free)
    }

    /// The same, if `fits` says so of the pages that the guest's other disks have.
    fn admit_if(
        &self,
        id: VbdId,
        needs: Needs,
        free: usize,
        fits: impl FnOnce(usize) -> bool,
    ) -> Result<(), Refused> {
        let wanted = needs.pages;
        let taken = |claim: &Admitted| claim.stage != Stage::Offered && claim.disk != id;
        let held = self.sum(|claim| claim.disk.frontend == id.frontend && taken(claim));
        let held = held.pages;
        if !fits(held) {
            return Err(Refused::Space { wanted, held, free });
        }
        let (wanted, free) = (needs.bytes + DISK_BYTES, self.available());
        if wanted > free {
            return Err(Refused::Memory { wanted, free });
        }
        self.claim(id, needs, Stage::Connecting);
        Ok(())
    }

    /// Notes that a disk's queues are made.
    pub fn served(&self, id: VbdId) {
        let mut claims = self.claims.borrow_mut();
        for claim in claims.iter_mut().filter(|claim| claim.disk == id) {
            claim.stage = Stage::Connected;
        }
    }

    /// Notes that a disk has given back all it had.
    pub fn forget(&self, id: VbdId) {
        self.claims.borrow_mut().retain(|claim| claim.disk != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use bulkhead_xen::DomId;

    const FREE: usize = 32 * 1024;

    fn id(guest: u16, disk: u32) -> VbdId {
        VbdId {
            frontend: DomId(guest),
            device: 51712 + 16 * disk,
        }
    }

    /// Returns the queues that the disks of one guest are offered, one after another, and whether persistent grants
    /// are offered too.
    fn offers(admission: &Admission, guest: u16, disks: u32, free: usize) -> Vec<(u32, bool)> {
        let limits = Limits::for_vcpus(1);
        let offer = |disk| {
            let offer = admission.offer(id(guest, disk), limits, free);
            (offer.queues, offer.persistent)
        };
        (0..disks).map(offer).collect()
    }

    #[test]
    fn fewer_queues_are_offered_where_address_space_is_scarce() {
        let queues = |free| {
            let limits = Limits::for_vcpus(6);
            let offer = Admission::default().offer(id(1, 0), limits, free);
            (offer.queues, offer.persistent)
        };
        // 256 MiB, 64 MiB and 32 MiB of address space.
        assert_eq!(queues(65536), (6, true));
        assert_eq!(queues(16384), (3, true));
        assert_eq!(queues(8192), (1, true));
        assert_eq!(queues(1024), (1, false));
        assert_eq!(queues(0), (1, false));
    }

    #[test]
    fn the_disks_of_a_guest_leave_half_of_its_grants() {
        // Address space is no limit: the guest's table is.
        let admission = Admission::default();
        let offers = offers(&admission, 1, 26, 1 << 20);
        let lasting = offers.iter().filter(|(_, persistent)| *persistent);
        let queues: u32 = lasting.map(|(queues, _)| queues).sum();
        assert_eq!(queues, 15);
        assert!(queues as usize * 1056 <= GRANTS_OF_A_GUEST);
        assert_eq!(offers[0], (4, true));
        assert_eq!(offers[25], (1, false));
        // A disk that goes gives its share back.
        admission.forget(id(1, 0));
        let limits = Limits::for_vcpus(1);
        assert!(admission.offer(id(1, 25), limits, 1 << 20).persistent);
        // Another guest has grants of its own.
        assert_eq!(super::tests::offers(&admission, 2, 1, 1 << 20), [(4, true)]);
    }

    #[test]
    fn a_guest_never_takes_all_of_the_address_space() {
        let admission = Admission::default();
        let queue = Needs::of_queue(false, 1, 256);
        let mut free = FREE;
        let mut disks = 0;
        let refused = loop {
            match admission.admit(id(1, disks), queue, free) {
                Ok(()) => admission.served(id(1, disks)),
                Err(refused) => break refused,
            }
            free -= queue.pages;
            disks += 1;
        };
        assert!(matches!(refused, Refused::Space { .. }), "{refused}");
        assert!((FREE / 4..FREE / 4 + queue.pages).contains(&free), "{free}");
        // Another guest finds room, and the next one, too.
        for guest in 2..6 {
            assert_eq!(admission.admit(id(guest, 0), queue, free), Ok(()));
            free -= queue.pages;
        }
    }

    #[cfg(feature = "recover")]
    #[test]
    fn disks_that_were_served_before_are_admitted_again_in_any_order() {
        const PAGES: usize = 2048;
        let of = |pages| Needs {
            pages,
            ..Needs::default()
        };
        let (large, small) = ((id(1, 0), of(1500)), (id(2, 0), of(400)));
        let admission = Admission::default();
        // The large one takes nearly all that a guest may, and the small one what is left to others.
        let mut free = PAGES;
        for (disk, needs) in [large, small] {
            assert_eq!(admission.admit(disk, needs, free), Ok(()), "{disk}");
            admission.served(disk);
            free -= needs.pages;
        }
        // A crash: nothing is held any more, and each comes when its store is there.
        for (disk, _) in [large, small] {
            admission.forget(disk);
        }
        free = PAGES;
        for (disk, needs) in [small, large] {
            let by_shares = admission.admit(disk, needs, free);
            assert_eq!(by_shares.is_ok(), disk == small.0, "{disk}");
            assert_eq!(admission.admit_again(disk, needs, free), Ok(()), "{disk}");
            admission.served(disk);
            free -= needs.pages;
        }
        // What is not there nobody gets, and one that was not served before gets its share alone.
        let again = |pages| admission.admit_again(id(3, 0), of(pages), free);
        assert!(matches!(again(free + 1), Err(Refused::Space { .. })));
        assert!(admission.admit(id(3, 0), of(free), free).is_err());
        assert_eq!(again(free), Ok(()));
        admission.watch_memory(|| DISK_BYTES - 1);
        assert!(matches!(again(1), Err(Refused::Memory { .. })));
    }

    #[test]
    fn memory_is_promised_once() {
        let admission = Admission::default();
        let queue = Needs::of_queue(true, 1, 256);
        let room = 2 * queue.bytes + 2 * DISK_BYTES;
        admission.watch_memory(move || room);
        assert_eq!(admission.admit(id(1, 0), queue, FREE), Ok(()));
        assert_eq!(admission.admit(id(2, 0), queue, FREE), Ok(()));
        let refused = admission.admit(id(3, 0), queue, FREE).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("no memory for this disk: it takes")
        );
        // The first one's is taken by now, which the free memory says by itself.
        admission.served(id(1, 0));
        assert_eq!(admission.admit(id(3, 0), queue, FREE), Ok(()));
        admission.forget(id(2, 0));
        assert_eq!(admission.attach(), Ok(()));
    }

    #[test]
    fn without_memory_no_disk_is_attached() {
        let admission = Admission::default();
        admission.watch_memory(|| DISK_BYTES - 1);
        assert!(matches!(admission.attach(), Err(Refused::Memory { .. })));
        let limits = Limits::for_vcpus(4);
        let offer = admission.offer(id(1, 0), limits, FREE);
        assert_eq!((offer.queues, offer.persistent), (1, false));
    }
}
