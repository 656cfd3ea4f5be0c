//! The images of a ramdisk, and the rules for opening them.

mod support;

use bulkhead_images::testing::OpenNow;
use bulkhead_images::{Access, Catalog, Op, OpenError, RamdiskKind, Sector, SectorSize, Stores};
use support::{Folder, Guest, memory, submit, visible_memory};

/// Returns a ramdisk with `a.img` of 8 KiB, `b.img` of 1 KiB and `odd.img` of 1000 bytes.
fn ramdisk() -> Vec<u8> {
    let folder = Folder::new();
    folder.file("a.img", &[b'a'; 8192]);
    folder.file("b.img", &[b'b'; 1024]);
    folder.file("odd.img", &[b'o'; 1000]);
    folder.file("none.img", &[]);
    folder.tar(&["a.img", "b.img", "odd.img", "none.img"])
}

fn refusal(stores: &Stores, name: &str, access: Access) -> String {
    let refused = stores.open_now(name, access, "domain 9, xvdz");
    refused.err().expect("a refusal").to_string()
}

#[test]
fn files_of_an_archive_are_images_in_place() {
    let archive = ramdisk();
    let (memory, base) = visible_memory(&archive);
    let stores = Stores::new(Catalog::from_module(memory));
    assert_eq!(stores.catalog().damage(), None);
    let images: Vec<_> = stores.catalog().images().collect();
    let expected = [
        ("a.img", 8192, 0),
        ("b.img", 1024, 0),
        ("odd.img", 1000, 0),
        ("none.img", 0, 0),
    ];
    assert_eq!(images, expected);

    let disk = stores.open_now("ram:b.img", Access::ReadWrite, "test");
    let disk = disk.expect("free");
    assert_eq!(disk.geometry().sectors, Sector(2));
    let mut queue = disk.queue();
    let mut guest = Guest::filled(&[512, 512]);
    let segments = guest.segments();
    let read = Op::Read { sector: Sector(0) };
    assert_eq!(submit(&mut *queue, read, &segments), Ok(()));
    assert_eq!(guest.content(), [b'b'; 1024]);

    let mut guest = Guest::with(&[&[b'X'; 512]]);
    let segments = guest.segments();
    let write = Op::write(Sector(1));
    assert_eq!(submit(&mut *queue, write, &segments), Ok(()));
    let place = archive
        .windows(1024)
        .position(|window| window == [b'b'; 1024]);
    let place = place.expect("b.img is in the archive");
    let mut expected = archive;
    expected[place + 512..place + 1024].fill(b'X');
    // SAFETY: the memory is leaked and no request is pending.
    let now = unsafe { std::slice::from_raw_parts(base, expected.len()) };
    assert!(now == expected, "that sector has changed and nothing else");
}

#[test]
fn a_file_that_is_taken_is_no_image_and_is_wiped() {
    let archive = ramdisk();
    let (ramdisk, base) = visible_memory(&archive);
    let mut catalog = Catalog::from_module(ramdisk);
    assert!(catalog.take_file("c.img").is_none());
    let file = catalog.take_file("b.img").expect("it is there");
    assert_eq!(file.as_ref(), [b'b'; 1024]);
    assert!(catalog.take_file("b.img").is_none());
    drop(file);
    let place = archive
        .windows(1024)
        .position(|window| window == [b'b'; 1024]);
    let place = place.expect("b.img is in the archive");
    let mut expected = archive;
    expected[place..place + 1024].fill(0);
    // SAFETY: the memory is leaked and no request is pending.
    let now = unsafe { std::slice::from_raw_parts(base, expected.len()) };
    assert!(now == expected, "that file was wiped and nothing else");
    let stores = Stores::new(catalog);
    assert_eq!(
        refusal(&stores, "ram:b.img", Access::ReadOnly),
        "no image b.img, there are: a.img, odd.img, none.img"
    );
    // In a damaged archive there are no files either.
    let mut damaged = Catalog::from_module(memory(b"\x1f\x8b\x08"));
    assert!(damaged.take_file("a").is_none());
}

#[test]
fn a_file_that_is_to_be_kept_is_found_by_the_next_boot() {
    let archive = ramdisk();
    let (ramdisk, base) = visible_memory(&archive);
    let mut catalog = Catalog::from_module(ramdisk);
    catalog.keep_files();
    drop(catalog.take_file("b.img").expect("it is there"));
    assert!(catalog.take_file("b.img").is_none());
    // SAFETY: the memory is leaked and no request is pending.
    let now = unsafe { std::slice::from_raw_parts(base, archive.len()) };
    assert!(now == archive);
}

#[test]
fn a_ramdisk_that_is_no_archive_is_one_image() {
    let stores = Stores::new(Catalog::from_module(memory(&[7; 4096])));
    assert_eq!(
        stores.catalog().images().collect::<Vec<_>>(),
        [("disk0", 4096, 0)]
    );
    assert!(
        stores
            .open_now("ram:disk0", Access::ReadOnly, "test")
            .is_ok()
    );
    assert_eq!(
        refusal(&stores, "ram:disk1", Access::ReadOnly),
        "no image disk1, there are: disk0"
    );
}

#[test]
fn what_a_guest_writes_makes_no_archive_of_its_image() {
    let archive = ramdisk();
    for header in [&archive[..512], b"\x1f\x8b\x08", b"070701"] {
        let (mut ramdisk, base) = visible_memory(&[7; 4096]);
        let kind = RamdiskKind::of(&mut ramdisk).expect("one image");
        assert_eq!(kind, RamdiskKind::Whole);
        // SAFETY: the memory is leaked, as large as that, and no request is pending.
        unsafe {
            base.cast_mut()
                .copy_from_nonoverlapping(header.as_ptr(), header.len())
        };
        let catalog = Catalog::of_kind(kind, ramdisk);
        assert_eq!(catalog.damage(), None);
        let images: Vec<_> = catalog.images().collect();
        assert_eq!(images, [("disk0", 4096, 0)]);
    }
    let kind = RamdiskKind::of(&mut memory(&archive));
    assert_eq!(kind, Ok(RamdiskKind::Archive));
    assert!(RamdiskKind::of(&mut memory(b"\x1f\x8b\x08")).is_err());
}

#[test]
fn without_a_ramdisk_there_are_no_images_but_other_stores() {
    let folder = Folder::new();
    folder.file("folder/x", &[]);
    let without_files = folder.tar(&["--no-recursion", "folder"]);
    for catalog in [
        Catalog::empty(),
        Catalog::from_module(memory(&without_files)),
    ] {
        let stores = Stores::new(catalog);
        let expected = "no image disk0: the driver domain has no images";
        assert_eq!(refusal(&stores, "ram:disk0", Access::ReadOnly), expected);
        let grown = stores.catalog().grow("disk0", 1 << 20);
        assert_eq!(grown.unwrap_err().to_string(), expected);
    }
    let stores = Stores::new(Catalog::empty());
    let null = stores.open_now("null:1M", Access::ReadWrite, "test");
    assert_eq!(null.expect("no claim").geometry().sectors, Sector(2048));
}

#[test]
fn a_damaged_ramdisk_is_refused_to_everyone() {
    let mut archive = ramdisk();
    archive[0] ^= 0x20;
    let stores = Stores::new(Catalog::from_module(memory(&archive)));
    assert!(stores.catalog().damage().is_some());
    assert_eq!(stores.catalog().images().count(), 0);
    let refused = refusal(&stores, "ram:a.img", Access::ReadWrite);
    let expected = "the ramdisk cannot be read: damaged archive: the header at 0 has checksum";
    assert!(refused.starts_with(expected), "{refused}");
    assert!(
        stores
            .open_now("null:1M", Access::ReadWrite, "test")
            .is_ok()
    );
}

#[test]
fn images_that_are_not_whole_sectors_are_refused_and_the_others_served() {
    let stores = Stores::new(Catalog::from_module(memory(&ramdisk())));
    assert_eq!(
        refusal(&stores, "ram:odd.img", Access::ReadOnly),
        "image odd.img has 1000 bytes, which is not a multiple of 512"
    );
    assert_eq!(
        refusal(&stores, "ram:b.img,sector-size=4096", Access::ReadOnly),
        "image b.img has 1024 bytes, which is not a multiple of 4096"
    );
    assert_eq!(
        refusal(&stores, "ram:none.img", Access::ReadOnly),
        "image none.img is empty"
    );
    let disk = stores.open_now("ram:a.img,sector-size=4096", Access::ReadOnly, "test");
    let geometry = disk.expect("two sectors of 4096").geometry();
    assert_eq!(geometry.sectors, Sector(16));
    assert_eq!(geometry.sector_size, SectorSize::B4096);
    assert!(geometry.read_only);
}

#[test]
fn a_writer_is_alone() {
    let stores = Stores::new(Catalog::from_module(memory(&ramdisk())));
    let image = "ram:a.img";
    let writer = stores.open_now(image, Access::ReadWrite, "domain 5, xvda");
    let writer = writer.expect("free");
    for access in [Access::ReadWrite, Access::ReadOnly] {
        assert_eq!(
            refusal(&stores, "ram:a.img", access),
            "image a.img is open for writing by domain 5, xvda; two that write, or write and read, need \
             shared=yes in the target of each"
        );
    }
    assert!(
        stores
            .open_now("ram:b.img", Access::ReadWrite, "test")
            .is_ok()
    );
    drop(writer);
    assert!(stores.open_now(image, Access::ReadWrite, "test").is_ok());
}

#[test]
fn readers_share_and_keep_writers_out() {
    let stores = Stores::new(Catalog::from_module(memory(&ramdisk())));
    let image = "ram:a.img";
    let open = |owner| stores.open_now(image, Access::ReadOnly, owner);
    let first = open("domain 5, xvda").expect("free");
    let second = open("domain 6, xvda").expect("shared");
    assert_eq!(stores.catalog().images().next(), Some(("a.img", 8192, 2)));
    drop(first);
    assert_eq!(
        refusal(&stores, "ram:a.img", Access::ReadWrite),
        "image a.img is open for reading by domain 6, xvda; two that write, or write and read, need \
         shared=yes in the target of each"
    );
    drop(second);
    assert!(stores.open_now(image, Access::ReadWrite, "test").is_ok());
}

#[test]
fn all_who_say_so_share_an_image_with_writers() {
    let stores = Stores::new(Catalog::from_module(memory(&ramdisk())));
    let open = |text, access, owner| stores.open_now(text, access, owner);
    let shared = "ram:a.img,shared=yes";
    let first = open(shared, Access::ReadWrite, "domain 5, xvda").expect("free");
    let second = open(shared, Access::ReadWrite, "domain 6, xvda").expect("shared");
    let reader = open(shared, Access::ReadOnly, "domain 7, xvda").expect("shared");
    assert_eq!(stores.catalog().images().next(), Some(("a.img", 8192, 3)));
    // What one writes, the others read.
    let mut guest = Guest::with(&[&[b'X'; 512]]);
    let segments = guest.segments();
    let write = Op::write(Sector(1));
    assert_eq!(submit(&mut *first.queue(), write, &segments), Ok(()));
    for device in [&second, &reader] {
        let mut guest = Guest::filled(&[512]);
        let segments = guest.segments();
        let read = Op::Read { sector: Sector(1) };
        assert_eq!(submit(&mut *device.queue(), read, &segments), Ok(()));
        assert_eq!(guest.content(), [b'X'; 512]);
    }
    // Who does not say so is alone, or reads among readers.
    for (text, access) in [
        ("ram:a.img", Access::ReadWrite),
        ("ram:a.img,shared=no", Access::ReadOnly),
    ] {
        assert_eq!(
            refusal(&stores, text, access),
            "image a.img is open for writing by domain 5, xvda; two that write, or write and read, need \
             shared=yes in the target of each"
        );
    }
    drop((first, second));
    assert!(open("ram:a.img", Access::ReadOnly, "domain 8, xvda").is_ok());
    assert_eq!(
        refusal(&stores, "ram:a.img", Access::ReadWrite),
        "image a.img is open for reading by domain 7, xvda; two that write, or write and read, need \
         shared=yes in the target of each"
    );
    drop(reader);
    let alone = open("ram:a.img", Access::ReadWrite, "domain 9, xvda").expect("free");
    assert_eq!(
        refusal(&stores, shared, Access::ReadWrite),
        "image a.img is open for writing by domain 9, xvda; two that write, or write and read, need \
         shared=yes in the target of each"
    );
    drop(alone);
}

#[test]
fn an_image_stays_open_as_long_as_a_queue_of_it() {
    let stores = Stores::new(Catalog::from_module(memory(&ramdisk())));
    let image = "ram:a.img";
    let device = stores.open_now(image, Access::ReadWrite, "domain 5, xvda");
    let queue = device.expect("free").queue();
    assert!(matches!(
        stores.open_now(image, Access::ReadWrite, "test"),
        Err(OpenError::InUse { .. })
    ));
    drop(queue);
    assert!(stores.open_now(image, Access::ReadWrite, "test").is_ok());
}

#[test]
fn a_compressed_ramdisk_is_refused_with_what_to_do() {
    let archive = ramdisk();
    for (by, arguments) in [
        ("gzip", vec!["--gzip"]),
        ("bzip2", vec!["--bzip2"]),
        ("xz", vec!["--xz"]),
        ("zstd", vec!["--zstd"]),
        ("lz4", vec!["--use-compress-program=lz4"]),
        ("lzop", vec!["--lzop"]),
    ] {
        // What is not installed here is made by hand: the magic alone tells.
        let installed = std::process::Command::new(by)
            .arg("--version")
            .output()
            .is_ok();
        let bytes = if installed {
            let folder = Folder::new();
            folder.file("a.img", &[b'a'; 8192]);
            folder.tar(&[&arguments[..], &["a.img"]].concat())
        } else {
            let magic: &[u8] = match by {
                "zstd" => &[0x28, 0xb5, 0x2f, 0xfd],
                "lz4" => &[4, 0x22, 0x4d, 0x18],
                "lzop" => b"\x89LZO\0\r\n\x1a\n",
                "xz" => b"\xfd7zXZ\0",
                "bzip2" => b"BZh91AY&SY",
                _ => &[0x1f, 0x8b, 8, 0],
            };
            [magic, &[7; 4096]].concat()
        };
        let stores = Stores::new(Catalog::from_module(memory(&bytes)));
        let refused = refusal(&stores, "ram:disk0", Access::ReadOnly);
        assert_eq!(
            refused,
            format!(
                "the ramdisk cannot be read: compressed by {by}, and images are served in place: \
                 unpack it before the domain is created"
            )
        );
        assert_eq!(stores.catalog().images().count(), 0);
    }
    // An image in an archive may be what it likes, and so may a raw one that only begins alike.
    let stores = Stores::new(Catalog::from_module(memory(&archive)));
    assert_eq!(stores.catalog().damage(), None);
    for start in [
        &[0x1f, 0x8b][..],
        b"BZ",
        b"BZh",
        b"\xfd7zX",
        b"BZh9 a disk of text",
    ] {
        let mut image = vec![0; 4096];
        image[..start.len()].copy_from_slice(start);
        let stores = Stores::new(Catalog::from_module(memory(&image)));
        assert_eq!(stores.catalog().damage(), None, "{start:?}");
    }
}
