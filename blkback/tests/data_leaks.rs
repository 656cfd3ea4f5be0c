//! No byte reaches a guest but those that it asked for and may have: neither through pages of requests that fail, nor
//! through the ring.

use bulkhead_blkback_testkit::{
    Bystander, Guest, IMAGE_SIZE, Link, PATHS, POISON, Style, World, content,
};
use bulkhead_grant::GrantAccess;
use bulkhead_ring::Format;
use bulkhead_ring::blkif::{
    Abi, Blkif, BlkifSector, Request, SLOT_SIZE, Segment, Status, TransferKind,
};
use bulkhead_xen::{GrantRef, PAGE_SIZE};

/// The offset of the slots in a ring (`DEFINE_RING_TYPES`, io/ring.h).
const SLOTS: usize = 64;

/// Returns the whole memory of a ring of one page.
fn ring_bytes(link: &Link) -> Vec<u8> {
    // SAFETY: the guest's own page, which nothing refers into; no other thread runs.
    unsafe { link.memory.cast::<[u8; PAGE_SIZE]>().read_volatile() }.to_vec()
}

#[test]
fn an_answer_changes_no_byte_of_the_ring_but_its_own() {
    // An answer is an identifier of 8 bytes, an operation, and a status of 2 bytes at byte 10
    // (`struct blkif_response`); what is between and behind is padding.
    for abi in [Abi::X86_64, Abi::X86_32] {
        let world = World::new();
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style {
            abi,
            ..Style::default()
        };
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
        let slot_size = Blkif::new(abi).slot_size();
        for round in 0..100 {
            other.io();
            let slot = SLOTS + round % 32 * slot_size;
            match round % 3 {
                0 => _ = disk.link().push_read(8, 8),
                1 => _ = disk.link().push_write(8, &[1; 512]),
                _ => disk.link().push_slot(&[0xa5; SLOT_SIZE]),
            }
            disk.link().kick();
            let before = ring_bytes(disk.link());
            world.run();
            let after = ring_bytes(disk.link());
            for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                let is_index = at < SLOTS;
                let is_answer = [0..9, 10..12].iter().any(|field| {
                    let offset = at.wrapping_sub(slot);
                    field.contains(&offset)
                });
                let is_padding = (slot..slot + 16).contains(&at) && *after == 0;
                assert!(
                    before == after || is_index || is_answer || is_padding,
                    "byte {at} of the ring in round {round}"
                );
            }
            disk.link().collect_whatever();
        }
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn a_read_that_fails_in_its_middle_shows_what_it_may_and_nothing_else() {
    for (path, persistent) in PATHS {
        let world = World::on_path(path);
        let style = Style::persistent(persistent);
        let mut other = Bystander::styled(&world, style);
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
        let image = content(0, IMAGE_SIZE);
        for bad in 0..11 {
            // Whatever the backend keeps between two requests is the other guest's now.
            other.io();
            let pages: Vec<_> = (0..11)
                .map(|_| disk.link().fresh_page(GrantAccess::ReadWrite))
                .collect();
            pages
                .iter()
                .for_each(|page| page.fill(0, &[POISON; PAGE_SIZE]));
            let mut segments: Vec<_> = pages
                .iter()
                .map(|page| Segment::whole(page.gref()))
                .collect();
            segments[bad] = Segment::whole(GrantRef(900));
            let id = disk.link().new_id();
            let request = Request::transfer(id, TransferKind::Read, BlkifSector(0), &segments);
            disk.link().push(&request.expect("eleven segments"), pages);
            let answer = disk.answer();
            assert_eq!(answer.status, Status::Error, "page {bad}, {path:?}");
            for (number, page) in answer.data.chunks(PAGE_SIZE).enumerate() {
                let untouched = page.iter().all(|byte| *byte == POISON);
                let read = page == &image[number * PAGE_SIZE..][..PAGE_SIZE];
                assert!(untouched || read, "page {number} of {bad}, {path:?}");
            }
        }
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}
