//! Guests of either word size: their requests lie differently in the ring.

use bulkhead_blkback_testkit::{Bystander, Guest, IMAGE_SIZE, SECTORS, Style, World, content};
use bulkhead_ring::blkif::{Abi, Status, TransferKind};

fn style(abi: Abi) -> Style {
    Style {
        abi,
        ..Style::default()
    }
}

#[test]
fn every_byte_is_right_in_both() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let world = World::new();
        let mut guest = Bystander::styled(&world, style(abi));
        for _ in 0..50 {
            guest.io();
        }
        guest.leave();
        world.nothing_left();
    }
}

#[test]
fn a_guest_of_each_beside_the_other() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    let mut disk = disk.styled(style(Abi::X86_32)).connected();
    // Twice around the ring: its slots are smaller, and not multiples of eight.
    for round in 0..70 {
        disk.write(round % 30, &[round as u8; 512]);
        assert!(disk.read(round % 30, 1) == [round as u8; 512]);
        other.io();
    }
    let answer = disk.transfer(TransferKind::FlushAndWrite, 31, 8, &[9; 4096]);
    assert_eq!(answer.status, Status::Okay);
    let past = disk.transfer(TransferKind::Read, SECTORS - 1, 2, &[]);
    assert_eq!(past.status, Status::Error);
    let end = disk.read(SECTORS - 8, 8);
    assert!(end == content(0, IMAGE_SIZE)[IMAGE_SIZE - 4096..]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_frontend_that_names_no_protocol_speaks_the_native_one() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    disk.prepare();
    disk.publish();
    disk.remove_node("protocol");
    disk.go(bulkhead_xenbus::XenbusState::Initialised);
    assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    disk.detach();
    world.nothing_left();
}
