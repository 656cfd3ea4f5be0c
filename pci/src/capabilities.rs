//! The list of a function's capabilities (PCI Local Bus Specification 3.0, section 6.7), and the MSI-X capability
//! (section 6.8.2). The list lies in the function's registers, so that a faulty function's may loop, or point at
//! nothing.

use bulkhead_xen::PAGE_SIZE;

/// The register whose upper half, `STATUS`, says whether there is a list. The lower half is `COMMAND`.
pub const STATUS_AND_COMMAND: u16 = 0x04;
/// The bit of that register which says so.
pub const HAS_LIST: u32 = 1 << 20;
/// The register with the offset of the first capability.
pub const POINTER: u16 = 0x34;

/// Message-signalled interrupts (MSI).
pub const MSI: u8 = 0x05;
/// A capability that its vendor defines (virtio devices have several).
pub const VENDOR_SPECIFIC: u8 = 0x09;
/// MSI-X.
pub const MSIX: u8 = 0x11;

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its kind: [`MSI`], [`MSIX`], [`VENDOR_SPECIFIC`], or another one.
    pub id: u8,
    /// Its offset in configuration space.
    pub offset: u8,
    /// The two bytes after the kind and the pointer to the next capability.
    pub head: u16,
}

/// A walk along the list. Each place is visited once at most.
#[derive(Debug)]
pub struct Walk {
    /// A bit for each register that was visited.
    visited: u64,
}

impl Walk {
    /// Begins at the offset that the register `POINTER` holds. Returns the offset to read first; `None` if the list is
    /// empty.
    pub fn begin(pointer: u32) -> (Walk, Option<u8>) {
        let mut walk = Walk { visited: 0 };
        let first = walk.visit(pointer as u8);
        (walk, first)
    }

    /// Takes the four bytes at an offset. Returns the capability there, and the offset to read next, if there is one.
    pub fn read(&mut self, offset: u8, value: u32) -> (Option<Capability>, Option<u8>) {
        let [id, next, ..] = value.to_le_bytes();
        // A function that is gone reads as all ones.
        if id == 0xff {
            return (None, None);
        }
        let head = (value >> 16) as u16;
        (Some(Capability { id, offset, head }), self.visit(next))
    }

    fn visit(&mut self, pointer: u8) -> Option<u8> {
        // The two lowest bits are reserved, and the header is no place for a capability.
        let offset = pointer & !3;
        let bit = 1 << (offset / 4);
        if offset < 0x40 || self.visited & bit != 0 {
            return None;
        }
        self.visited |= bit;
        Some(offset)
    }
}

/// The place and the size of a function's MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// The number of its entries, 1 to 2048.
    pub entries: u16,
    /// The BAR that it is in, below 6.
    pub bar: u8,
    /// Its offset there in bytes, a multiple of 8.
    pub offset: u32,
    /// The BAR of the bits for pending interrupts, below 6.
    pub pending_bar: u8,
    /// Their offset there in bytes, a multiple of 8.
    pub pending_offset: u32,
}

impl MsixTable {
    /// The size of an entry in bytes.
    const ENTRY: u64 = 16;

    /// Reads a capability of the kind [`MSIX`], and the two registers after it. `None` if they name a BAR that no
    /// function has.
    pub fn new(capability: Capability, table: u32, pending: u32) -> Option<MsixTable> {
        let [bar, pending_bar] = [table, pending].map(|place| (place & 7) as u8);
        (bar < 6 && pending_bar < 6).then_some(MsixTable {
            entries: (capability.head & 0x7ff) + 1,
            bar,
            offset: table & !7,
            pending_bar,
            pending_offset: pending & !7,
        })
    }

    /// Returns the offset of the first page of a BAR that holds a part of the table or of the pending bits. `None` if
    /// neither is in that BAR.
    pub fn first_page(&self, bar: u8) -> Option<u64> {
        let places = [
            (self.bar, self.offset),
            (self.pending_bar, self.pending_offset),
        ];
        let here = places.into_iter().filter(|place| place.0 == bar);
        let offset = here.map(|place| u64::from(place.1)).min()?;
        Some(offset & !(PAGE_SIZE as u64 - 1))
    }

    /// Returns whether the table is within its BAR, if that has `size` bytes.
    pub fn is_inside(&self, size: u64) -> bool {
        u64::from(self.offset) + u64::from(self.entries) * Self::ENTRY <= size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Walks along the list in a function's registers.
    fn walk(registers: &[u32; 64], pointer: u32) -> Vec<Capability> {
        let mut found = Vec::new();
        let (mut walk, mut next) = Walk::begin(pointer);
        while let Some(offset) = next {
            let (capability, after) = walk.read(offset, registers[usize::from(offset) / 4]);
            found.extend(capability);
            next = after;
        }
        found
    }

    #[test]
    fn the_emulated_nvme_has_msix_and_more() {
        let mut registers = [0; 64];
        registers[0x40 / 4] = 0x0040_8011;
        registers[0x80 / 4] = 0x0002_6010;
        registers[0x60 / 4] = 0x0003_0001;
        let found = walk(&registers, 0x40);
        let ids: Vec<u8> = found.iter().map(|capability| capability.id).collect();
        assert_eq!(ids, [MSIX, 0x10, 0x01]);
        let table = MsixTable::new(found[0], 0x2000, 0x3000).expect("a table");
        let expected = MsixTable {
            entries: 65,
            bar: 0,
            offset: 0x2000,
            pending_bar: 0,
            pending_offset: 0x3000,
        };
        assert_eq!(table, expected);
        assert!(table.is_inside(0x4000));
        assert!(table.is_inside(0x2000 + 65 * 16));
        assert!(!table.is_inside(0x2000 + 65 * 16 - 1));
        assert_eq!(table.first_page(0), Some(0x2000));
        assert_eq!(table.first_page(1), None);
        assert_eq!(MsixTable::new(found[0], 6, 0), None);
        assert_eq!(MsixTable::new(found[0], 0, 7), None);
        let apart = MsixTable::new(found[0], 0x1802, 0x1004).expect("a table");
        assert_eq!(
            [2, 4].map(|bar| apart.first_page(bar)),
            [Some(0x1000), Some(0x1000)]
        );
    }

    #[test]
    fn a_list_that_goes_nowhere_ends() {
        let registers = [0; 64];
        assert!(walk(&registers, 0).is_empty());
        assert!(walk(&registers, 0x3c).is_empty(), "inside the header");
        assert_eq!(walk(&registers, 0x43).len(), 1, "reserved bits");
        assert!(
            walk(&[u32::MAX; 64], 0x40).is_empty(),
            "a function that is gone"
        );
        let mut circle = [0; 64];
        circle[0x40 / 4] = 0x5005;
        circle[0x50 / 4] = 0x4009;
        assert_eq!(walk(&circle, 0x40).len(), 2);
    }

    proptest! {
        #[test]
        fn no_list_is_without_end(
            registers in prop::array::uniform32((any::<u32>(), any::<u32>())),
            pointer: u32,
        ) {
            let mut all = [0; 64];
            for (pair, (low, high)) in all.chunks_mut(2).zip(registers) {
                pair.copy_from_slice(&[low, high]);
            }
            let found = walk(&all, pointer);
            prop_assert!(found.len() <= 48);
            for capability in &found {
                prop_assert!(capability.offset >= 0x40 && capability.offset.is_multiple_of(4));
                if let Some(table) = MsixTable::new(*capability, all[0], all[2]) {
                    prop_assert!(table.bar < 6 && (1..=2048).contains(&table.entries));
                    let size = u64::from(all[1]);
                    prop_assert!(!table.is_inside(size) || u64::from(table.offset) < size);
                }
            }
        }
    }
}
