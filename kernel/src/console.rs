//! The console ring (`io/console.h`): text out, keys in.
//!
//! The ring holds 2 KiB of output, and its reader in dom0 may be late, or never come. No vCPU that serves disks waits
//! for the reader: output that does not fit is kept here until there is room, and output that does not fit here either
//! is dropped, and counted in the output.

use bulkhead_xen::abi::console::{ConsoleRing, IN_BYTES, OUT_BYTES};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use heapless::Deque;

/// The bytes kept for a late reader: about three hundred lines.
const KEPT: usize = 32 << 10;

/// This domain's end of a console ring.
pub struct Console {
    ring: Option<NonNull<ConsoleRing>>,
    /// Text that waits for room in the ring.
    kept: Deque<u8, KEPT>,
    lost: u32,
    /// The reader's position when the last wait for it was given up.
    gave_up_at: Option<u32>,
}

// SAFETY: the ring is shared memory that any thread may access; the indices are atomic.
unsafe impl Send for Console {}

/// Treatment of text for which the ring has no room.
pub enum OnFull<'a> {
    /// Keeps the text as far as there is room for it, and drops the rest. The caller does not wait.
    Keep,
    /// Waits for the reader: calls the function, which waits a little, until there is room or it returns false. Then
    /// the text is dropped, and later texts do not wait at all until the reader has read something.
    Wait(&'a mut dyn FnMut() -> bool),
}

impl Console {
    /// Returns a console without a ring.
    pub const fn detached() -> Self {
        Console {
            ring: None,
            kept: Deque::new(),
            lost: 0,
            gave_up_at: None,
        }
    }

    /// Sends text to this ring from now on.
    ///
    /// # Safety
    /// `ring` is a console ring for as long as the console is used, and this is its only user on
    /// this side.
    pub unsafe fn attach(&mut self, ring: NonNull<ConsoleRing>) {
        self.ring = Some(ring);
    }

    /// Returns whether there is a ring.
    pub fn is_attached(&self) -> bool {
        self.ring.is_some()
    }

    fn ring(&self) -> *mut ConsoleRing {
        let ring = self
            .ring
            .expect("nothing is written or read before there is a ring");
        ring.as_ptr()
    }

    fn out_cons(&self) -> &AtomicU32 {
        // SAFETY: within the ring; both sides access it atomically.
        unsafe { &(*self.ring()).out_cons }
    }

    fn out_prod(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &(*self.ring()).out_prod }
    }

    /// Returns whether everything written has been read.
    pub fn is_drained(&self) -> bool {
        self.kept.is_empty()
            && self.out_cons().load(Ordering::Acquire) == self.out_prod().load(Ordering::Relaxed)
    }

    fn room(&self) -> usize {
        let used = self
            .out_prod()
            .load(Ordering::Relaxed)
            .wrapping_sub(self.out_cons().load(Ordering::Acquire));
        OUT_BYTES.saturating_sub(used as usize)
    }

    /// Puts bytes into the ring as far as they fit, and returns their number.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let start = self.out_prod().load(Ordering::Relaxed);
        for (offset, byte) in bytes[..count].iter().enumerate() {
            let position = start.wrapping_add(offset as u32) as usize % OUT_BYTES;
            // SAFETY: within the ring, in the part that the reader leaves to us.
            unsafe {
                (&raw mut (*self.ring()).output)
                    .cast::<u8>()
                    .add(position)
                    .write_volatile(*byte);
            }
        }
        self.out_prod()
            .store(start.wrapping_add(count as u32), Ordering::Release);
        count
    }

    /// Moves kept text into the ring, as far as it has room. Returns whether anything was moved.
    pub fn flush(&mut self) -> bool {
        let mut moved = 0;
        while !self.kept.is_empty() {
            // The kept text may wrap around in its own buffer, so it is moved piece by piece.
            let (first, _) = self.kept.as_slices();
            let mut piece = heapless::Vec::<u8, 256>::new();
            let _ = piece.extend_from_slice(&first[..first.len().min(256)]);
            let count = self.put(&piece);
            for _ in 0..count {
                self.kept.pop_front();
            }
            moved += count;
            if count < piece.len() {
                break;
            }
        }
        moved > 0
    }

    /// Writes `text`, or as much of it as there is room for.
    pub fn write(&mut self, text: &str, on_full: OnFull<'_>) {
        self.flush();
        match on_full {
            OnFull::Keep => self.keep(text),
            OnFull::Wait(wait) => self.write_waiting(text, wait),
        }
    }

    /// Returns the note about lost text, which comes before all other text.
    fn note(&self) -> heapless::String<48> {
        let mut note = heapless::String::new();
        if self.lost > 0 {
            // The longest number fits.
            let _ = write!(note, "\r\n[{} bytes of output lost]\r\n", self.lost);
        }
        note
    }

    fn keep(&mut self, text: &str) {
        let note = self.note();
        let free = self.room() + (KEPT - self.kept.len());
        let mut lost = text.len();
        if free >= note.len() {
            self.lost = 0;
            self.put_or_keep(note.as_bytes());
            lost -= self.put_or_keep(text.as_bytes());
        }
        self.lost = self.lost.saturating_add(lost as u32);
    }

    /// Puts bytes into the ring, or behind those that wait for it. Returns the number of bytes for which
    /// there was room.
    fn put_or_keep(&mut self, bytes: &[u8]) -> usize {
        let put = if self.kept.is_empty() {
            self.put(bytes)
        } else {
            0
        };
        let rest = bytes[put..].iter();
        put + rest
            .take_while(|byte| self.kept.push_back(**byte).is_ok())
            .count()
    }

    fn write_waiting(&mut self, text: &str, wait: &mut dyn FnMut() -> bool) {
        while !self.kept.is_empty() {
            if !self.is_worth_waiting(wait) {
                self.lost = self.lost.saturating_add(self.kept.len() as u32);
                self.kept.clear();
            }
            self.flush();
        }
        let note = self.note();
        while self.room() < note.len() {
            if !self.is_worth_waiting(wait) {
                self.lost = self.lost.saturating_add(text.len() as u32);
                return;
            }
        }
        self.put(note.as_bytes());
        self.lost = 0;
        let mut rest = text.as_bytes();
        loop {
            rest = &rest[self.put(rest)..];
            if rest.is_empty() {
                return;
            }
            if !self.is_worth_waiting(wait) {
                self.lost = self.lost.saturating_add(rest.len() as u32);
                return;
            }
        }
    }

    /// Waits for the reader. Returns false if the wait was given up, now or before.
    fn is_worth_waiting(&mut self, wait: &mut dyn FnMut() -> bool) -> bool {
        let reader = self.out_cons().load(Ordering::Acquire);
        let worth = self.gave_up_at != Some(reader) && wait();
        self.gave_up_at = (!worth).then_some(reader);
        worth
    }

    /// Returns whether there is input to read.
    pub fn has_input(&self) -> bool {
        let (consumed, produced) = self.input_indices();
        produced.load(Ordering::Acquire) != consumed.load(Ordering::Relaxed)
    }

    fn input_indices(&self) -> (&AtomicU32, &AtomicU32) {
        let ring = self.ring();
        // SAFETY: within the ring; both sides access the indices atomically.
        unsafe { (&(*ring).in_cons, &(*ring).in_prod) }
    }

    /// Takes one byte of input.
    pub fn read(&mut self) -> Option<u8> {
        if !self.has_input() {
            return None;
        }
        let ring = self.ring();
        let consumed = self.input_indices().0;
        let at = consumed.load(Ordering::Relaxed);
        // SAFETY: within the ring; the other side has written this byte and leaves it alone now.
        let byte = unsafe {
            (&raw const (*ring).input)
                .cast::<u8>()
                .add(at as usize % IN_BYTES)
                .read_volatile()
        };
        consumed.store(at.wrapping_add(1), Ordering::Release);
        Some(byte)
    }
}

/// Passes pieces of text on, with `\n` turned into the `\r\n` that terminals expect.
pub struct Lines<F: FnMut(&str)>(pub F);

impl<F: FnMut(&str)> Write for Lines<F> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut parts = text.split('\n');
        if let Some(first) = parts.next() {
            (self.0)(first);
        }
        for part in parts {
            (self.0)("\r\n");
            (self.0)(part);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
