//! The console ring (`io/console.h`): text out, never waiting for long; keys in.

use bulkhead_xen::abi::console::{ConsoleRing, IN_BYTES, OUT_BYTES};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// Our end of a console ring.
///
/// If nobody reads, the ring fills up; then each write waits once, and later ones do not wait at
/// all until somebody reads again. What does not fit is dropped, and counted in the output.
#[derive(Debug)]
pub struct Console {
    ring: NonNull<ConsoleRing>,
    lost: u32,
    /// Where the reader stood when waiting for it was given up.
    gave_up_at: Option<u32>,
}

// SAFETY: the ring is shared memory that any thread may access; the indices are atomic.
unsafe impl Send for Console {}

/// Waits a little for the reader; false if it has waited long enough.
pub type Wait<'a> = &'a mut dyn FnMut() -> bool;

impl Console {
    /// # Safety
    /// `ring` is a console ring for as long as the result is used, and this is its only user on
    /// this side.
    pub const unsafe fn new(ring: NonNull<ConsoleRing>) -> Self {
        Console {
            ring,
            lost: 0,
            gave_up_at: None,
        }
    }

    fn out_cons(&self) -> &AtomicU32 {
        // SAFETY: within the ring; both sides access it atomically.
        unsafe { &(*self.ring.as_ptr()).out_cons }
    }

    fn out_prod(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &(*self.ring.as_ptr()).out_prod }
    }

    /// True if everything written has been read.
    pub fn is_drained(&self) -> bool {
        self.out_cons().load(Ordering::Acquire) == self.out_prod().load(Ordering::Relaxed)
    }

    fn room(&self) -> usize {
        let used = self
            .out_prod()
            .load(Ordering::Relaxed)
            .wrapping_sub(self.out_cons().load(Ordering::Acquire));
        OUT_BYTES.saturating_sub(used as usize)
    }

    /// Puts in what fits, and returns how much that was.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let start = self.out_prod().load(Ordering::Relaxed);
        for (offset, byte) in bytes[..count].iter().enumerate() {
            let position = start.wrapping_add(offset as u32) as usize % OUT_BYTES;
            // SAFETY: within the ring, in the part that the reader leaves to us.
            unsafe {
                (&raw mut (*self.ring.as_ptr()).output)
                    .cast::<u8>()
                    .add(position)
                    .write_volatile(*byte);
            }
        }
        self.out_prod()
            .store(start.wrapping_add(count as u32), Ordering::Release);
        count
    }

    /// Writes `text`, or as much of it as the reader gives room for.
    pub fn write(&mut self, text: &str, wait: Wait<'_>) {
        if self.lost > 0 {
            let mut note = heapless::String::<48>::new();
            // The longest number fits.
            let _ = write!(note, "\r\n[{} bytes of output lost]\r\n", self.lost);
            if self.room() < note.len() {
                self.lost = self.lost.saturating_add(text.len() as u32);
                return;
            }
            self.put(note.as_bytes());
            self.lost = 0;
        }
        let mut rest = text.as_bytes();
        loop {
            rest = &rest[self.put(rest)..];
            if rest.is_empty() {
                return;
            }
            let reader = self.out_cons().load(Ordering::Acquire);
            if self.gave_up_at == Some(reader) || !wait() {
                self.gave_up_at = Some(reader);
                self.lost = self.lost.saturating_add(rest.len() as u32);
                return;
            }
            self.gave_up_at = None;
        }
    }

    /// True if there is input to read.
    pub fn has_input(&self) -> bool {
        let (consumed, produced) = self.input_indices();
        produced.load(Ordering::Acquire) != consumed.load(Ordering::Relaxed)
    }

    fn input_indices(&self) -> (&AtomicU32, &AtomicU32) {
        let ring = self.ring.as_ptr();
        // SAFETY: within the ring; both sides access the indices atomically.
        unsafe { (&(*ring).in_cons, &(*ring).in_prod) }
    }

    /// Takes one byte of input.
    pub fn read(&mut self) -> Option<u8> {
        if !self.has_input() {
            return None;
        }
        let ring = self.ring.as_ptr();
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

/// Turns line ends into what terminals expect, and hands pieces of text on.
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
mod tests {
    use super::*;

    struct Reader(Box<core::mem::MaybeUninit<ConsoleRing>>);

    impl Reader {
        fn new() -> (Reader, Console) {
            let mut ring = Box::<ConsoleRing>::new_zeroed();
            let pointer = NonNull::new(ring.as_mut_ptr()).unwrap();
            // SAFETY: the tests keep the reader as long as the console.
            (Reader(ring), unsafe { Console::new(pointer) })
        }

        fn read(&mut self, most: usize) -> String {
            let ring = self.0.as_mut_ptr();
            let mut text = String::new();
            // SAFETY: zeroed integers are valid; one thread.
            unsafe {
                while text.len() < most
                    && (*ring).out_cons.load(Ordering::Relaxed)
                        != (*ring).out_prod.load(Ordering::Relaxed)
                {
                    let at = (*ring).out_cons.fetch_add(1, Ordering::Relaxed);
                    text.push(char::from((*ring).output[at as usize % OUT_BYTES]));
                }
            }
            text
        }

        fn type_in(&mut self, keys: &[u8]) {
            let ring = self.0.as_mut_ptr();
            for key in keys {
                // SAFETY: as above.
                unsafe {
                    let at = (*ring).in_prod.fetch_add(1, Ordering::Relaxed);
                    (*ring).input[at as usize % IN_BYTES] = *key;
                }
            }
        }
    }

    #[test]
    fn text_arrives_across_the_end_of_the_ring() {
        let (mut reader, mut console) = Reader::new();
        for round in 0..500 {
            let line = format!("line {round}\r\n");
            console.write(&line, &mut || panic!("there is room"));
            assert_eq!(reader.read(usize::MAX), line);
        }
        assert!(console.is_drained());
    }

    #[test]
    fn a_slow_reader_is_waited_for() {
        let (mut reader, mut console) = Reader::new();
        let text = "0123456789".repeat(1000);
        let mut seen = String::new();
        console.write(&text, &mut || {
            seen += &reader.read(100);
            true
        });
        seen += &reader.read(usize::MAX);
        assert!(seen == text);
    }

    #[test]
    fn an_absent_reader_costs_one_wait_and_is_told_what_it_missed() {
        let (mut reader, mut console) = Reader::new();
        let mut waits = 0;
        for _ in 0..5 {
            console.write(&"x".repeat(1000), &mut || {
                waits += 1;
                false
            });
        }
        assert_eq!(waits, 1);
        assert_eq!(reader.read(usize::MAX).len(), OUT_BYTES);
        console.write("back\r\n", &mut || panic!("there is room"));
        assert_eq!(
            reader.read(usize::MAX),
            format!(
                "\r\n[{} bytes of output lost]\r\nback\r\n",
                5000 - OUT_BYTES
            )
        );
    }

    #[test]
    fn keys_come_in_order() {
        let (mut reader, mut console) = Reader::new();
        assert!(!console.has_input());
        assert_eq!(console.read(), None);
        for _ in 0..300 {
            reader.type_in(b"help\r");
            let keys: Vec<u8> = std::iter::from_fn(|| console.read()).collect();
            assert_eq!(keys, b"help\r");
        }
    }

    #[test]
    fn line_ends_are_those_of_terminals() {
        let (mut text, line) = (String::new(), "c\n");
        write!(Lines(|part: &str| text += part), "a\nb{}\n", line).unwrap();
        assert_eq!(text, "a\r\nbc\r\n\r\n");
    }
}
