//! Ports that stay open when a domain starts again in place.

use crate::Port;
use core::sync::atomic::{AtomicU32, Ordering};

/// The ports that a domain leaves open when it crashes and starts again in place, noted in memory that survives that.
/// The fault that made it crash may have damaged the notes, so a note counts only if its two halves agree: the port's
/// number, and its complement.
#[derive(Clone, Copy, Debug)]
pub struct KeptPorts(&'static [AtomicU32]);

impl KeptPorts {
    /// Returns an empty list, for a domain that leaves no port open.
    pub const NONE: KeptPorts = KeptPorts(&[]);

    /// Returns the list in these words of memory, one for each port.
    pub const fn new(notes: &'static [AtomicU32]) -> KeptPorts {
        KeptPorts(notes)
    }

    /// Adds a port. If there is no room for it, it does not stay open after a crash.
    pub fn add(self, port: Port) {
        let Some(new) = note_of(port) else {
            return;
        };
        for note in self.0 {
            let old = note.load(Ordering::Relaxed);
            let order = Ordering::Relaxed;
            if port_of(old).is_none() && note.compare_exchange(old, new, order, order).is_ok() {
                return;
            }
        }
    }

    /// Removes a port. Must be called before the port is closed, since Xen may give its number to another one then.
    pub fn remove(self, port: Port) {
        let of_it = |note: &&AtomicU32| port_of(note.load(Ordering::Relaxed)) == Some(port);
        let notes = self.0.iter().filter(of_it);
        notes.for_each(|note| note.store(0, Ordering::Relaxed));
    }

    /// Removes all ports.
    pub fn clear(self) {
        let notes = self.0.iter();
        notes.for_each(|note| note.store(0, Ordering::Relaxed));
    }

    /// Returns all ports.
    pub fn iter(self) -> impl Iterator<Item = Port> {
        let notes = self.0.iter();
        notes.filter_map(|note| port_of(note.load(Ordering::Relaxed)))
    }
}

/// Returns the note of a port; `None` for a number that is 0 or does not fit 16 bits. Ports of a domain that uses the
/// two-level interface are below 4096.
fn note_of(port: Port) -> Option<u32> {
    let number = u16::try_from(port.0).ok().filter(|number| *number > 0)?;
    Some(u32::from(!number) << 16 | u32::from(number))
}

/// Returns the port in a note; `None` if there is none, or the note is damaged.
fn port_of(note: u32) -> Option<Port> {
    let port = Port(note & 0xffff);
    (note_of(port) == Some(note)).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec::Vec;

    #[test]
    fn ports_are_kept_until_they_are_removed_as_far_as_there_is_room() {
        let notes: &'static [AtomicU32; 3] = Box::leak(Box::default());
        let kept = KeptPorts::new(notes);
        let all = || kept.iter().map(|port| port.0).collect::<Vec<_>>();
        assert_eq!(all(), []);
        for port in [7, 4095, 0x1_0000, 0, 9, 10] {
            kept.add(Port(port));
        }
        assert_eq!(all(), [7, 4095, 9]);
        kept.remove(Port(4095));
        kept.remove(Port(10));
        kept.add(Port(11));
        assert_eq!(all(), [7, 11, 9]);
        // What a crash has damaged is none, and makes room.
        notes[0].fetch_xor(1 << 3, Ordering::Relaxed);
        assert_eq!(all(), [11, 9]);
        kept.add(Port(12));
        assert_eq!(all(), [12, 11, 9]);
        kept.clear();
        assert_eq!(all(), []);
        KeptPorts::NONE.add(Port(7));
        assert_eq!(KeptPorts::NONE.iter().count(), 0);
    }

    #[test]
    fn a_note_with_any_bit_changed_is_none() {
        let note = note_of(Port(0x123)).expect("it fits");
        assert_eq!(port_of(note), Some(Port(0x123)));
        for bit in 0..32 {
            assert_eq!(port_of(note ^ 1 << bit), None, "bit {bit}");
        }
        assert_eq!(port_of(u32::MAX << 16), None, "port 0 is none");
    }
}
