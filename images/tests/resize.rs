//! Images that grow while they are open.

mod support;

use bulkhead_images::testing::OpenNow;
use bulkhead_images::{Access, GrowError, GrowRequest, IoError, Sector};
use bulkhead_xen::PAGE_SIZE;
use proptest::prelude::*;
use std::sync::Arc;
use std::task::Waker;
use support::domain::{Domain, all, discard, grow, open, pattern, read, write};
use support::{Folder, Wakes, memory};

#[test]
fn an_open_image_grows_and_says_so() {
    let mut content = pattern(8 * PAGE_SIZE);
    let domain = Domain::with(&content);
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    let mut queue = device.queue();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    device.on_change(&waker);
    device.on_change(&waker);
    assert_eq!(write(&mut *queue, 64, &[1; 512]), Err(IoError::OutOfRange));

    assert_eq!(grow(&domain.catalog, "disk0", 65536), Ok(32768));
    assert_eq!(wakes.count(), 1);
    assert_eq!(device.geometry().sectors, Sector(128));
    content.resize(65536, 0);
    assert!(all(&*device) == content);

    // A queue from before, and a request across the border.
    assert_eq!(write(&mut *queue, 62, &[5; 4 * 512]), Ok(()));
    content[62 * 512..66 * 512].fill(5);
    assert!(all(&*device) == content);
    assert_eq!(write(&mut *queue, 128, &[1; 512]), Err(IoError::OutOfRange));

    device.on_change(&waker);
    assert_eq!(grow(&domain.catalog, "disk0", 65536 + 4096), Ok(65536));
    assert_eq!(wakes.count(), 2);
    content.resize(65536 + 4096, 0);
    assert!(all(&*device) == content);
    let images: Vec<_> = domain.catalog.images().collect();
    assert_eq!(images, [("disk0", 65536 + 4096, 1)]);
}

#[test]
fn a_closed_device_keeps_nobody_waiting() {
    let domain = Domain::with(&pattern(PAGE_SIZE));
    let (first, second) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    for _ in 0..3 {
        let device = open(&domain, "ram:disk0", Access::ReadWrite);
        device.on_change(&Waker::from(first.clone()));
        device.on_change(&Waker::from(second.clone()));
        assert_eq!([&first, &second].map(Arc::strong_count), [1, 2]);
    }
    assert_eq!(Arc::strong_count(&second), 1);
    assert!(grow(&domain.catalog, "disk0", 8192).is_ok());
    assert_eq!(second.count(), 0);
}

#[test]
fn what_was_added_can_be_discarded_on_the_same_grid() {
    let folder = Folder::new();
    folder.file("disk", &pattern(5 * PAGE_SIZE));
    let domain = Domain::with(&folder.tar(&["--format=ustar", "disk"]));
    let device = open(&domain, "ram:disk", Access::ReadWrite);
    assert!(grow(&domain.catalog, "disk", 12 * 4096).is_ok());
    let limits = device.geometry().discard.expect("it has pages");
    assert_eq!(limits.alignment, Sector(7));
    let mut queue = device.queue();
    // Across the border too: what the ramdisk has of that page is cleared, what was added to it
    // is a page of its own that goes back.
    for sector in (7..96 - 8).step_by(8) {
        let before = domain.missing();
        assert_eq!(discard(&mut *queue, sector, 8), Ok(()));
        assert_eq!(domain.missing() - before, 1, "{sector}");
    }
    // So does the last one, of which the image has the beginning alone.
    assert_eq!(discard(&mut *queue, 95, 1), Ok(()));
    assert_eq!(domain.missing(), 12);
    let mut expected = vec![0; 12 * 4096];
    expected[..7 * 512].copy_from_slice(&pattern(7 * 512));
    assert!(all(&*device) == expected);
    let data = pattern(12 * 4096);
    assert_eq!(write(&mut *queue, 0, &data), Ok(()));
    assert!(all(&*device) == data);
    assert_eq!(domain.missing(), 0);
}

#[test]
fn what_cannot_grow_says_why_and_stays() {
    let domain = Domain::with(&pattern(2 * PAGE_SIZE));
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    let refusal = |name, size| {
        let refused: GrowError = grow(&domain.catalog, name, size).unwrap_err();
        refused.to_string()
    };
    assert_eq!(refusal("disk1", 65536), "no image disk1, there are: disk0");
    assert_eq!(
        refusal("disk0", 8192),
        "image disk0 has 8192 bytes already and cannot grow to 8192"
    );
    assert_eq!(
        refusal("disk0", 10_000),
        "image disk0 cannot have 10000 bytes, which is not a multiple of 4096"
    );
    assert_eq!(
        refusal("disk0", 1 << 40),
        "image disk0 cannot grow: this domain has no 1099511619584 bytes of memory in one piece \
         (memory= in its configuration)"
    );
    assert!(refusal("disk0", u64::MAX - 4095).contains("no 18446744073709539328 bytes"));
    assert_eq!(device.geometry().sectors, Sector(16));

    let catalog = bulkhead_images::Catalog::from_module(memory(&[1; 4096]));
    let refused = catalog.grow("disk0", 8192);
    assert!(matches!(refused, Err(GrowError::NoMemory { .. })));
}

#[test]
fn growing_takes_its_time_and_nobody_elses() {
    const MIB: u64 = 1 << 20;
    let domain = Domain::with(&pattern(PAGE_SIZE));
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    let wakes = Arc::new(Wakes::default());
    device.on_change(&Waker::from(wakes.clone()));
    let mut resize = domain.catalog.grow("disk0", 3 * MIB).unwrap();
    // The image is what it was for a part of the way, and does not begin another one.
    for _ in 0..2 {
        assert_eq!(resize.step(), None);
        assert_eq!(device.geometry().sectors, Sector(8));
        assert_eq!(read(&mut *device.queue(), 0, 8), Ok(pattern(PAGE_SIZE)));
        let refused = domain.catalog.grow("disk0", 4 * MIB).unwrap_err();
        assert_eq!(refused.to_string(), "image disk0 is growing already");
    }
    assert_eq!(wakes.count(), 0);
    // Given up, it can be begun again.
    drop(resize);
    let mut resize = domain.catalog.grow("disk0", 2 * MIB).unwrap();
    let old = (0..3).find_map(|_| resize.step());
    assert_eq!((old, resize.step()), (Some(4096), None));
    assert_eq!(
        (wakes.count(), device.geometry().sectors),
        (1, Sector(4096))
    );
    let mut content = pattern(PAGE_SIZE);
    content.resize(2 << 20, 0);
    assert!(all(&*device) == content);
}

#[test]
fn readers_see_it_too() {
    let domain = Domain::with(&pattern(PAGE_SIZE));
    let first = open(&domain, "ram:disk0", Access::ReadOnly);
    let second = open(&domain, "ram:disk0,sector-size=4096", Access::ReadOnly);
    assert!(grow(&domain.catalog, "disk0", 8192).is_ok());
    for device in [first, second] {
        assert_eq!(device.geometry().sectors, Sector(16));
        assert_eq!(read(&mut *device.queue(), 8, 8), Ok(vec![0; 4096]));
    }
}

#[test]
fn requests_of_an_operator_are_understood() {
    for (text, name, size) in [
        ("disk0 128M", "disk0", 128 << 20),
        ("  ram:disk0   4096 \n", "disk0", 4096),
        ("a file.img 1G", "a file.img", 1 << 30),
    ] {
        let name = name.to_string();
        assert_eq!(text.parse(), Ok(GrowRequest { name, size }), "{text:?}");
    }
    for text in [
        "",
        "disk0",
        "disk0 ",
        " 128M",
        "disk0 0",
        "disk0 big",
        "ram: 4K",
    ] {
        let refused = text.parse::<GrowRequest>().expect_err(text);
        assert!(
            refused.to_string().contains("expected NAME SIZE"),
            "{text:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(text in ".*") {
        if let Err(error) = text.parse::<GrowRequest>() {
            prop_assert!(error.to_string().len() < 500);
        }
    }
}
