//! Ports that stay open when a domain starts again in place.

use crate::Port;
use core::sync::atomic::{AtomicU32, Ordering};

/// The ports that a domain leaves open when it crashes and starts again in place, noted in memory that survives. Whatever
/// made it crash may have written there, too: a note counts only if both of its halves tell of the same port.
#[derive(Clone, Copy, Debug)]
pub struct KeptPorts(&'static [AtomicU32]);

impl KeptPorts {
    /// Returns them for a domain that leaves no port open.
    pub const NONE: KeptPorts = KeptPorts(&[]);

    /// Returns those that are noted there.
    pub const fn new(notes: &'static [AtomicU32]) -> KeptPorts {
        KeptPorts(notes)
    }

    /// Adds a port. One for which there is no room is closed by a crash.
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

    /// Removes a port: to be called before it is closed, as its number may be another one's then.
    pub fn remove(self, port: Port) {
        let of_it = |note: &&AtomicU32| port_of(note.load(Ordering::Relaxed)) == Some(port);
        let notes = self.0.iter().filter(of_it);
        notes.for_each(|note| note.store(0, Ordering::Relaxed));
    }

    /// Removes all.
    pub fn clear(self) {
        let notes = self.0.iter();
        notes.for_each(|note| note.store(0, Ordering::Relaxed));
    }

    /// Returns all.
    pub fn iter(self) -> impl Iterator<Item = Port> {
        let notes = self.0.iter();
        notes.filter_map(|note| port_of(note.load(Ordering::Relaxed)))
    }
}

/// Returns the note of a port; `None` if it is too large a number, which those of a domain without the FIFO interface
/// never are.
fn note_of(port: Port) -> Option<u32> {
    let number = u16::try_from(port.0).ok().filter(|number| *number > 0)?;
    Some(u32::from(!number) << 16 | u32::from(number))
}

/// Returns the port that a note tells of.
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
