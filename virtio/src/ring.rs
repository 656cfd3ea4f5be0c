//! A split virtqueue in one page (virtio 1.2, section 2.7): the descriptor table, the ring of chains that the driver
//! makes available, and the ring of chains that the device has used.
//!
//! The device may change every word of the page at any time. The driver keeps its own copy of what it needs of its
//! parts, and reads each word of the device's part once.

use bulkhead_dma::{DmaPages, NoPages, WORDS};
use bulkhead_xen::DmaMemory;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// The most entries: with them, all three parts are in one page.
pub const MOST_ENTRIES: usize = 64;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, and `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTICE: u16 = 1;

/// The offsets of the rings in the page, in words of eight bytes. Each ring begins with flags and index in the upper
/// half of a word, so that its entries begin with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    entries: usize,
    available: usize,
    used: usize,
}

impl Layout {
    const fn new(entries: usize) -> Layout {
        let available = 2 * entries;
        // Entries of two bytes, and one for the event.
        let used = available + 1 + (entries + 1).div_ceil(4);
        Layout {
            entries,
            available,
            used,
        }
    }

    /// Returns the number of words.
    const fn words(self) -> usize {
        self.used + 1 + self.entries + 1
    }
}

const _: () = assert!(Layout::new(MOST_ENTRIES).words() <= WORDS);

/// The next entry of the device's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// Nothing more.
    Nothing,
    /// A chain of descriptors.
    Chain {
        /// The number of its first descriptor.
        head: u32,
        /// The bytes that the device says that it has written.
        written: u32,
    },
    /// The device says that it has used more than it was given.
    TooMany,
}

/// A queue.
pub struct Ring {
    page: DmaPages,
    layout: Layout,
    /// A copy of the driver's entries, and of the index at which it wants to be interrupted (`used_event`).
    available: [u64; (MOST_ENTRIES + 1).div_ceil(4)],
    flags: u16,
    /// The numbers of chains that were added, made available, and taken back so far, each modulo 2^16.
    added: u16,
    published: u16,
    taken: u16,
    /// The device's index, as it was read last.
    seen: u16,
    event_index: bool,
    /// The device was told to interrupt when it uses a chain next.
    armed: bool,
}

impl Ring {
    /// Allocates the memory of a queue.
    pub fn new(memory: &dyn DmaMemory) -> Result<Ring, NoPages> {
        Ok(Ring {
            page: DmaPages::new(memory, 1)?,
            layout: Layout::new(1),
            available: [0; _],
            flags: 0,
            added: 0,
            published: 0,
            taken: 0,
            seen: 0,
            event_index: false,
            armed: true,
        })
    }

    /// Returns the number of entries to use of a device that takes up to `most`: a power of two, at most
    /// [`MOST_ENTRIES`].
    pub fn entries_for(most: u16) -> usize {
        match usize::from(most).min(MOST_ENTRIES) {
            0 => 0,
            // The size of a split virtqueue is a power of two.
            most => 1 << most.ilog2(),
        }
    }

    /// Empties the queue, for a device that does not know of it yet. The descriptor table stays.
    pub fn reset(&mut self, entries: usize, event_index: bool) {
        debug_assert!(entries.is_power_of_two() && entries <= MOST_ENTRIES);
        self.layout = Layout::new(entries);
        for word in &self.page.words(0)[self.layout.available..] {
            word.store(0, Ordering::Relaxed);
        }
        self.available = [0; _];
        self.flags = 0;
        (self.added, self.published, self.taken, self.seen) = (0, 0, 0, 0);
        (self.event_index, self.armed) = (event_index, true);
        self.page.set_in_use(true);
    }

    /// Notes that the device does not access the queue any more.
    pub fn released(&mut self) {
        self.page.set_in_use(false);
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> usize {
        self.layout.entries
    }

    /// Returns the bus addresses of the descriptor table, of the driver's ring and of the device's.
    pub fn addresses(&self) -> [u64; 3] {
        let page = self.page.address(0);
        let upper_half = |word: usize| page + (word * 8 + 4) as u64;
        [
            page,
            upper_half(self.layout.available),
            upper_half(self.layout.used),
        ]
    }

    /// Returns the words of descriptors, two for each.
    #[inline]
    pub fn descriptors(&self) -> &[AtomicU64] {
        &self.page.words(0)[..2 * self.layout.entries]
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.page.words(0)[at]
    }

    /// Sets one of the driver's entries, or `used_event`, which follows the last one.
    #[inline]
    fn set_available(&mut self, entry: usize, value: u16) {
        let (at, shift) = (entry / 4, entry % 4 * 16);
        let word = self.available[at] & !(0xffff << shift) | u64::from(value) << shift;
        self.available[at] = word;
        self.word(self.layout.available + 1 + at)
            .store(word.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn set_index(&self, order: Ordering) {
        let head = u64::from(self.flags) | u64::from(self.published) << 16;
        self.word(self.layout.available)
            .store((head << 32).to_le(), order);
    }

    /// Adds the chain that begins with the descriptor `head`. The caller has no more chains in the ring than there are
    /// entries.
    #[inline]
    pub fn push(&mut self, head: u16) {
        let entry = usize::from(self.added) & (self.layout.entries - 1);
        self.set_available(entry, head);
        self.added = self.added.wrapping_add(1);
    }

    /// Makes the chains that were added available. Returns whether the device wants to be notified of them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.added == self.published {
            return false;
        }
        let before = core::mem::replace(&mut self.published, self.added);
        self.set_index(Ordering::Release);
        // Orders the write of the index before the read below: either the device sees the new index before it waits, or
        // the driver sees that the device wants to be notified.
        fence(Ordering::SeqCst);
        match self.event_index {
            true => {
                let event = self.layout.used + 1 + self.layout.entries;
                let event = u64::from_le(self.word(event).load(Ordering::Relaxed)) as u16;
                is_past(event, before, self.published)
            }
            false => (self.used_head(Ordering::Relaxed) as u16) & NO_NOTICE == 0,
        }
    }

    /// Reads the device's flags and index.
    #[inline]
    fn used_head(&self, order: Ordering) -> u32 {
        let word = u64::from_le(self.word(self.layout.used).load(order));
        (word >> 32) as u32
    }

    /// Takes the next chain that the device has used. The first one has the device not interrupt until
    /// [`arm`](Self::arm).
    #[inline]
    pub fn take(&mut self) -> Used {
        if self.taken == self.seen {
            self.seen = (self.used_head(Ordering::Acquire) >> 16) as u16;
            if self.seen.wrapping_sub(self.taken) > self.published.wrapping_sub(self.taken) {
                self.seen = self.taken;
                return Used::TooMany;
            }
            if self.taken == self.seen {
                return Used::Nothing;
            }
            self.disarm();
        }
        let entry = usize::from(self.taken) & (self.layout.entries - 1);
        let word = self.word(self.layout.used + 1 + entry);
        let word = u64::from_le(word.load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        Used::Chain {
            head: word as u32,
            written: (word >> 32) as u32,
        }
    }

    /// Has the device not interrupt while the queue is being looked at. With an event index there is nothing to do: the
    /// device interrupts only when it passes `used_event`, once.
    #[inline]
    fn disarm(&mut self) {
        self.armed = false;
        if !self.event_index && self.flags != NO_NOTICE {
            self.flags = NO_NOTICE;
            self.set_index(Ordering::Relaxed);
        }
    }

    /// Has the device interrupt when it uses a chain next. Returns whether it has used one already.
    #[inline]
    pub fn arm(&mut self) -> bool {
        if !self.armed {
            self.armed = true;
            match self.event_index {
                true => self.set_available(self.layout.entries, self.taken),
                false => {
                    self.flags = 0;
                    self.set_index(Ordering::Relaxed);
                }
            }
            // Orders this write before the read below: either the device sees it before it uses the next chain, or the
            // driver sees that chain.
            fence(Ordering::SeqCst);
        }
        (self.used_head(Ordering::Relaxed) >> 16) as u16 != self.taken
    }
}

/// Returns whether the step from `before` to `now` passes the event (`vring_need_event`, virtio 1.2, section 2.7.7.1).
#[inline]
fn is_past(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim};

    #[test]
    fn the_parts_of_a_queue_lie_apart_and_aligned() {
        for shift in 0..=MOST_ENTRIES.ilog2() {
            let entries = 1 << shift;
            let layout = Layout::new(entries);
            // Sixteen bytes a descriptor; six bytes and two an entry; six and eight an entry.
            assert!(16 * entries <= 8 * layout.available + 4);
            assert!(8 * layout.available + 4 + 6 + 2 * entries <= 8 * layout.used + 4);
            assert!(8 * layout.used + 4 + 6 + 8 * entries <= 8 * layout.words());
            assert!(layout.words() <= WORDS);
        }
    }

    #[test]
    fn an_event_is_passed_once_also_where_indices_wrap() {
        assert!(is_past(0, 0, 1));
        assert!(!is_past(1, 0, 1));
        assert!(is_past(0xffff, 0xfffe, 2));
        assert!(is_past(0xffff, 0xffff, 0));
        assert!(!is_past(0xfffe, 0xffff, 0));
        assert!(!is_past(5, 6, 9));
        assert!(is_past(8, 6, 9));
    }

    /// The device uses a chain.
    fn used(ring: &Ring, index: u16, head: u32) {
        let entry = ring.word(ring.layout.used + 1 + usize::from(index - 1));
        entry.store(u64::from(head), Ordering::Relaxed);
        let index = u64::from(index) << 48;
        ring.word(ring.layout.used).store(index, Ordering::Release);
    }

    #[test]
    fn what_is_used_before_the_interrupt_is_armed_is_not_slept_over() {
        let sim = Sim::new();
        let domain = sim.add_domain_with(DomainConfig {
            kind: DomainKind::Pv,
            ..DomainConfig::default()
        });
        for event_index in [true, false] {
            let mut ring = Ring::new(&domain.hypervisor()).expect("memory");
            ring.reset(4, event_index);
            ring.push(2);
            ring.push(3);
            ring.publish();
            used(&ring, 1, 2);
            assert!(ring.arm(), "it is there already");
            let chain = |head| Used::Chain { head, written: 0 };
            assert_eq!((ring.take(), ring.take()), (chain(2), Used::Nothing));
            // Between that look and the next line.
            used(&ring, 2, 3);
            assert!(ring.arm());
            assert_eq!((ring.take(), ring.take()), (chain(3), Used::Nothing));
            assert!(!ring.arm());
            ring.released();
        }
    }

    #[test]
    fn the_number_of_entries_is_a_power_of_two() {
        let all = [0, 1, 2, 3, 63, 64, 255, 256, u16::MAX].map(Ring::entries_for);
        assert_eq!(all, [0, 1, 2, 2, 32, 64, 64, 64, 64]);
    }
}
