//! Event channels: the pending notifications in the shared bitmaps (event_channel.h, the 2-level ABI).

use bulkhead_xen::Port;
use bulkhead_xen::abi::shared_info::{EVENT_WORDS, SharedInfo, VcpuInfo};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A set of ports.
#[derive(Debug)]
pub struct PortSet {
    ports: [AtomicU64; EVENT_WORDS],
    /// The words of `ports` that may have some.
    words: AtomicU64,
}

impl PortSet {
    /// Returns a set without ports.
    pub const fn new() -> Self {
        PortSet {
            ports: [const { AtomicU64::new(0) }; EVENT_WORDS],
            words: AtomicU64::new(0),
        }
    }

    /// Adds a port. One that the 2-level ABI does not have is ignored.
    pub fn insert(&self, port: Port) {
        let number = port.0 / 64;
        if let Some(word) = self.ports.get(number as usize) {
            word.fetch_or(1 << (port.0 % 64), Ordering::Relaxed);
            self.words.fetch_or(1 << number, Ordering::Relaxed);
        }
    }

    /// Removes a port.
    pub fn remove(&self, port: Port) {
        if let Some(word) = self.ports.get(port.0 as usize / 64) {
            word.fetch_and(!(1 << (port.0 % 64)), Ordering::Relaxed);
        }
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

/// The bitmaps in the shared page.
#[derive(Clone, Copy, Debug)]
pub struct Bitmaps(*mut SharedInfo);

impl Bitmaps {
    /// # Safety
    /// `page` is a shared info page (or memory laid out like one) for as long as the result and
    /// its copies are used.
    pub unsafe fn new(page: *mut SharedInfo) -> Self {
        Bitmaps(page)
    }

    fn pending(&self, word: usize) -> &AtomicU64 {
        // SAFETY: within the page, aligned, and only ever accessed atomically by both sides.
        unsafe {
            AtomicU64::from_ptr(
                (&raw mut (*self.0).evtchn_pending)
                    .cast::<u64>()
                    .add(word % EVENT_WORDS),
            )
        }
    }

    fn mask_word(&self, word: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe {
            AtomicU64::from_ptr(
                (&raw mut (*self.0).evtchn_mask)
                    .cast::<u64>()
                    .add(word % EVENT_WORDS),
            )
        }
    }

    /// Masks every port: no port wakes a vCPU until it is unmasked.
    pub fn mask_all(&self) {
        for word in 0..EVENT_WORDS {
            self.mask_word(word).store(u64::MAX, Ordering::SeqCst);
        }
    }

    /// Clears all pending notifications.
    pub fn clear_all(&self) {
        for word in 0..EVENT_WORDS {
            self.pending(word).store(0, Ordering::SeqCst);
        }
    }

    /// Masks one port.
    pub fn mask(&self, port: Port) {
        self.mask_word(port.0 as usize / 64)
            .fetch_or(1 << (port.0 % 64), Ordering::SeqCst);
    }

    /// Clears the pending notification of a port. Returns whether there was one.
    pub fn clear(&self, port: Port) -> bool {
        let bit = 1 << (port.0 % 64);
        self.pending(port.0 as usize / 64)
            .fetch_and(!bit, Ordering::SeqCst)
            & bit
            != 0
    }

    /// Notifies a vCPU of a port of its own, as Xen does.
    ///
    /// # Safety
    /// `vcpu` is the part of the shared page of the vCPU that the port is delivered to.
    pub unsafe fn raise(&self, vcpu: *mut VcpuInfo, port: Port) {
        let (word, bit) = (port.0 as usize / 64, 1 << (port.0 % 64));
        self.pending(word).fetch_or(bit, Ordering::SeqCst);
        // SAFETY: by the contract; aligned, and only accessed atomically.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*vcpu).evtchn_pending_sel)
                .fetch_or(1 << word, Ordering::SeqCst);
            AtomicU8::from_ptr(&raw mut (*vcpu).evtchn_upcall_pending).store(1, Ordering::SeqCst);
        }
    }

    /// Takes every pending, unmasked notification among `ports` off the bitmaps, and calls `sink` with its port.
    ///
    /// The order loses nothing: first the vCPU's flag, then the selector, then the words. Xen sets them the other way
    /// round, so a notification that comes meanwhile sets the flag again. Bits of ports that go to other vCPUs stay.
    ///
    /// # Safety
    /// `vcpu` is the calling vCPU's part of the shared page.
    pub unsafe fn take(&self, vcpu: *mut VcpuInfo, ports: &PortSet, sink: &mut dyn FnMut(Port)) {
        // SAFETY: by the contract; aligned, and only accessed atomically.
        let (flag, selector) = unsafe {
            (
                AtomicU8::from_ptr(&raw mut (*vcpu).evtchn_upcall_pending),
                AtomicU64::from_ptr(&raw mut (*vcpu).evtchn_pending_sel),
            )
        };
        if flag.load(Ordering::Acquire) == 0 {
            return;
        }
        flag.swap(0, Ordering::SeqCst);
        let mut words = selector.swap(0, Ordering::SeqCst);
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            self.take_word(word, ports, sink);
        }
    }

    /// Takes every pending, unmasked notification of a word among `ports` off the bitmaps, and calls `sink` with its
    /// port.
    fn take_word(&self, word: usize, ports: &PortSet, sink: &mut dyn FnMut(Port)) {
        let ours = ports.ports[word].load(Ordering::Relaxed)
            & !self.mask_word(word).load(Ordering::SeqCst);
        let mut bits = self.pending(word).fetch_and(!ours, Ordering::SeqCst) & ours;
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            sink(Port(word as u32 * 64 + bit));
        }
    }

    /// Keeps Xen from raising upcalls on a vCPU: while all bits of its selector are set, Xen assumes that the vCPU will
    /// look at every word anyway (`evtchn_2l_set_pending`). An upcall for an event that Xen was noting just then may still
    /// come. [`next_held`](Self::next_held) finds the notifications.
    ///
    /// # Safety
    /// `vcpu` is the calling vCPU's part of the shared page.
    pub unsafe fn hold_upcalls(&self, vcpu: *mut VcpuInfo) {
        // SAFETY: by the contract; aligned, and only accessed atomically.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*vcpu).evtchn_pending_sel)
                .store(u64::MAX, Ordering::SeqCst);
            AtomicU8::from_ptr(&raw mut (*vcpu).evtchn_upcall_pending).store(0, Ordering::SeqCst);
        }
    }

    /// Allows Xen to raise upcalls on a vCPU for notifications from now on. Earlier ones are pending already.
    ///
    /// # Safety
    /// `vcpu` is the calling vCPU's part of the shared page.
    pub unsafe fn let_upcalls(&self, vcpu: *mut VcpuInfo) {
        // SAFETY: by the contract; aligned, and only accessed atomically.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*vcpu).evtchn_pending_sel).store(0, Ordering::SeqCst);
        }
    }

    /// Returns whether Xen has raised an upcall on a vCPU.
    ///
    /// # Safety
    /// `vcpu` is the calling vCPU's part of the shared page.
    pub unsafe fn is_upcall_pending(&self, vcpu: *mut VcpuInfo) -> bool {
        // SAFETY: by the contract; only accessed atomically.
        let pending = unsafe { AtomicU8::from_ptr(&raw mut (*vcpu).evtchn_upcall_pending) };
        pending.load(Ordering::Acquire) != 0
    }

    /// Returns the number of the next word, from `first` on, with a pending, unmasked notification among `ports`.
    #[inline]
    pub fn next_held(&self, first: usize, ports: &PortSet) -> Option<usize> {
        let all = ports.words.load(Ordering::Relaxed);
        let mut words = u64::MAX.checked_shl(first as u32).unwrap_or(0) & all;
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let ours = self.pending(word).load(Ordering::Acquire)
                & ports.ports[word].load(Ordering::Relaxed);
            if ours != 0 && ours & !self.mask_word(word).load(Ordering::Relaxed) != 0 {
                return Some(word);
            }
        }
        None
    }

    /// Does the same as [`take`](Self::take) on a vCPU whose upcalls are [held](Self::hold_upcalls).
    #[inline]
    pub fn take_held(&self, ports: &PortSet, sink: &mut dyn FnMut(Port)) {
        let mut next = self.next_held(0, ports);
        while let Some(word) = next {
            self.take_word(word, ports, sink);
            next = self.next_held(word + 1, ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zeroed page, and Xen's side of it.
    struct Page(Box<core::mem::MaybeUninit<SharedInfo>>);

    impl Page {
        fn new() -> (Page, Bitmaps, *mut VcpuInfo) {
            let mut page = Page(Box::new_zeroed());
            let shared = page.0.as_mut_ptr();
            // SAFETY: the page outlives the test that holds it.
            (page, unsafe { Bitmaps::new(shared) }, shared.cast())
        }

        /// Sets a port pending, as Xen's `evtchn_2l_set_pending` does.
        fn notify(&mut self, port: u32) {
            let shared = self.0.as_mut_ptr();
            let (word, bit) = (port as usize / 64, 1u64 << (port % 64));
            // SAFETY: plain zeroed integers, one thread.
            unsafe {
                let was = (*shared).evtchn_pending[word];
                (*shared).evtchn_pending[word] |= bit;
                let vcpu = &raw mut (*shared).vcpu_info[0];
                if was & bit == 0
                    && (*shared).evtchn_mask[word] & bit == 0
                    && (*vcpu).evtchn_pending_sel & 1 << word == 0
                {
                    (*vcpu).evtchn_pending_sel |= 1 << word;
                    (*vcpu).evtchn_upcall_pending = 1;
                }
            }
        }
    }

    fn taken(bitmaps: Bitmaps, vcpu: *mut VcpuInfo, ports: &PortSet) -> Vec<u32> {
        let mut all = Vec::new();
        // SAFETY: the tests keep the page alive.
        unsafe { bitmaps.take(vcpu, ports, &mut |port| all.push(port.0)) };
        all
    }

    #[test]
    fn each_notification_is_named_once() {
        let (mut page, bitmaps, vcpu) = Page::new();
        let ports = PortSet::new();
        for port in [1, 63, 64, 4095] {
            ports.insert(Port(port));
            page.notify(port);
            page.notify(port);
        }
        assert_eq!(taken(bitmaps, vcpu, &ports), [1, 63, 64, 4095]);
        assert_eq!(taken(bitmaps, vcpu, &ports), []);
        page.notify(64);
        assert_eq!(taken(bitmaps, vcpu, &ports), [64]);
    }

    #[test]
    fn masked_ports_and_those_of_other_vcpus_stay() {
        let (mut page, bitmaps, vcpu) = Page::new();
        let ports = PortSet::new();
        ports.insert(Port(2));
        ports.insert(Port(3));
        bitmaps.mask(Port(3));
        for port in [2, 3, 4] {
            page.notify(port);
        }
        assert_eq!(taken(bitmaps, vcpu, &ports), [2]);
        assert!(bitmaps.clear(Port(3)));
        assert!(!bitmaps.clear(Port(3)));
        assert!(bitmaps.clear(Port(4)));
    }

    #[test]
    fn a_notification_while_taking_is_not_lost() {
        let (mut page, bitmaps, vcpu) = Page::new();
        let ports = PortSet::new();
        ports.insert(Port(5));
        ports.insert(Port(6));
        page.notify(5);
        let mut seen = Vec::new();
        // SAFETY: the page is alive.
        unsafe {
            bitmaps.take(vcpu, &ports, &mut |port| {
                seen.push(port.0);
                page.notify(6);
            });
        }
        seen.extend(taken(bitmaps, vcpu, &ports));
        assert_eq!(seen, [5, 6]);
    }

    #[test]
    fn a_notification_that_was_cleared_can_be_raised_again() {
        let (mut page, bitmaps, vcpu) = Page::new();
        let ports = PortSet::new();
        ports.insert(Port(70));
        page.notify(70);
        assert!(bitmaps.clear(Port(70)));
        assert_eq!(taken(bitmaps, vcpu, &ports), []);
        // SAFETY: the page is alive.
        unsafe { bitmaps.raise(vcpu, Port(70)) };
        assert_eq!(taken(bitmaps, vcpu, &ports), [70]);
    }

    #[test]
    fn notifications_that_are_held_raise_no_upcall_and_are_all_found() {
        let (mut page, bitmaps, vcpu) = Page::new();
        let ports = PortSet::new();
        for port in [1, 63, 64, 4095] {
            ports.insert(Port(port));
        }
        page.notify(63);
        // SAFETY: the page is alive.
        unsafe { bitmaps.hold_upcalls(vcpu) };
        bitmaps.mask(Port(64));
        for port in [1, 2, 64, 4095] {
            page.notify(port);
        }
        // SAFETY: the page is alive.
        assert!(!unsafe { bitmaps.is_upcall_pending(vcpu) });
        let mut all = Vec::new();
        bitmaps.take_held(&ports, &mut |port| all.push(port.0));
        assert_eq!(all, [1, 63, 4095]);
        assert_eq!(bitmaps.next_held(0, &ports), None);
        page.notify(1);
        assert_eq!(bitmaps.next_held(0, &ports), Some(0));
        assert_eq!(bitmaps.next_held(1, &ports), None);
        // SAFETY: the page is alive.
        unsafe { bitmaps.let_upcalls(vcpu) };
        // SAFETY: the page is alive.
        assert!(!unsafe { bitmaps.is_upcall_pending(vcpu) });
        page.notify(63);
        // SAFETY: the page is alive.
        assert!(unsafe { bitmaps.is_upcall_pending(vcpu) });
    }

    #[test]
    fn ports_that_cannot_exist_are_ignored() {
        let ports = PortSet::new();
        ports.insert(Port(4096));
        ports.remove(Port(u32::MAX));
    }
}
