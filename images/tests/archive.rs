//! Archives as `tar` makes them, damaged ones, and any bytes at all.

mod support;

use bulkhead_images::archive::{ArchiveError, Member, is_archive, members};
use proptest::prelude::*;
use support::Folder;

const BLOCK: usize = 512;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

/// Returns the archive's files with their content.
fn contents(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let members = members(archive).expect("an intact archive");
    let content = |member: Member| {
        assert!(member.offset.is_multiple_of(BLOCK));
        let bytes = &archive[member.offset..member.offset + member.size];
        (member.name, bytes.to_vec())
    };
    members.into_iter().map(content).collect()
}

/// Returns a ustar archive of two files: headers at 0 and 1536, the end mark at 3072.
fn two_files() -> Vec<u8> {
    let folder = Folder::new();
    folder.file("a.img", &pattern(1024));
    folder.file("b.img", &pattern(700));
    folder.tar(&["--format=ustar", "a.img", "b.img"])
}

const SECOND_HEADER: usize = 1536;

/// Writes a field of a header and makes its checksum right again.
fn forge(archive: &mut [u8], header: usize, field: usize, value: &[u8]) {
    let block = &mut archive[header..header + BLOCK];
    block[field..field + value.len()].copy_from_slice(value);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn every_format_of_tar_is_read() {
    let folder = Folder::new();
    folder.file("disk.img", &pattern(4096));
    folder.file("odd.img", &pattern(1000));
    folder.file("empty.img", &[]);
    let expected = vec![
        ("disk.img".to_string(), pattern(4096)),
        ("odd.img".to_string(), pattern(1000)),
        ("empty.img".to_string(), vec![]),
    ];
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let format = format!("--format={format}");
        let archive = folder.tar(&[&format, "disk.img", "odd.img", "empty.img"]);
        assert!(is_archive(&archive), "{format}");
        assert_eq!(contents(&archive), expected, "{format}");
    }
}

#[test]
fn names_are_paths_without_a_leading_dot() {
    let folder = Folder::new();
    folder.file("guests/web/root.img", &pattern(512));
    for arguments in [&["."][..], &["./guests"], &["guests"]] {
        let found = contents(&folder.tar(arguments));
        assert_eq!(found, [("guests/web/root.img".to_string(), pattern(512))]);
    }
}

#[test]
fn long_names_are_read_in_every_format_that_has_them() {
    let folder = Folder::new();
    // ustar splits a path of up to 255 bytes; GNU and pax take any.
    let medium = format!("{}/{}", "d".repeat(120), "f".repeat(90));
    let long = format!("{0}/{0}/{1}", "e".repeat(200), "ü".repeat(100));
    folder.file(&medium, &pattern(512));
    folder.file(&long, &pattern(1024));
    for format in ["ustar", "gnu", "oldgnu", "posix"] {
        let found = contents(&folder.tar(&[&format!("--format={format}"), &medium]));
        assert_eq!(found, [(medium.clone(), pattern(512))], "{format}");
    }
    for format in ["gnu", "oldgnu", "posix"] {
        let found = contents(&folder.tar(&[&format!("--format={format}"), &long, &medium]));
        let expected = [
            (long.clone(), pattern(1024)),
            (medium.clone(), pattern(512)),
        ];
        assert_eq!(found, expected, "{format}");
    }
}

#[test]
fn folders_and_links_are_no_images() {
    let folder = Folder::new();
    folder.file("folder/disk.img", &pattern(512));
    std::fs::hard_link(
        folder.path().join("folder/disk.img"),
        folder.path().join("folder/hard"),
    )
    .expect("a hard link");
    std::os::unix::fs::symlink("disk.img", folder.path().join("folder/soft")).expect("a link");
    for format in ["gnu", "posix", "ustar"] {
        let archive = folder.tar(&[
            &format!("--format={format}"),
            "folder/disk.img",
            "folder/hard",
            "folder/soft",
            "--no-recursion",
            "folder",
        ]);
        assert_eq!(
            contents(&archive),
            [("folder/disk.img".to_string(), pattern(512))]
        );
    }
}

#[test]
fn a_link_has_no_data_whatever_its_size_says() {
    let mut archive = two_files();
    forge(&mut archive, SECOND_HEADER, 156, b"1");
    archive.truncate(SECOND_HEADER + BLOCK);
    archive.extend([0; BLOCK]);
    assert_eq!(contents(&archive), [("a.img".to_string(), pattern(1024))]);
}

#[test]
fn sparse_members_are_refused_by_name() {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path().join("holes.img")).expect("a file");
    file.set_len(8 << 20).expect("a file of holes");
    for format in ["gnu", "posix"] {
        let archive = folder.tar(&[&format!("--format={format}"), "--sparse", "holes.img"]);
        let error = members(&archive).expect_err("its bytes are not the image");
        let ArchiveError::Unsupported { name, .. } = &error else {
            panic!("{error}");
        };
        assert!(name.ends_with("holes.img"), "{error}");
    }
}

#[test]
fn an_archive_without_files_is_one() {
    let folder = Folder::new();
    folder.file("folder/x", &[]);
    let archive = folder.tar(&["--no-recursion", "folder"]);
    assert!(is_archive(&archive));
    assert_eq!(members(&archive), Ok(vec![]));
}

#[test]
fn disks_are_no_archives() {
    let mut boot_sector = pattern(4096);
    boot_sector[510..512].copy_from_slice(&[0x55, 0xAA]);
    for disk in [
        boot_sector,
        vec![0; 8192],
        vec![0xFF; 512],
        vec![0; 100],
        vec![],
    ] {
        assert!(!is_archive(&disk));
    }
}

#[test]
fn a_damaged_header_is_named_by_its_place() {
    for header in [0, SECOND_HEADER] {
        let mut archive = two_files();
        archive[header] ^= 1;
        assert!(is_archive(&archive), "the magic is still there");
        let error = members(&archive).expect_err("damaged");
        assert!(
            matches!(error, ArchiveError::Checksum { offset, stored: Some(_), .. } if offset == header),
            "{error}"
        );
    }
    let mut archive = two_files();
    archive[SECOND_HEADER..SECOND_HEADER + BLOCK].fill(b'?');
    assert_eq!(
        members(&archive).expect_err("damaged").to_string(),
        "damaged archive: there is no header at 1536"
    );
}

#[test]
fn a_cut_archive_is_damaged_wherever_it_is_cut() {
    let archive = two_files();
    // The end mark starts at 3072; one block of it is enough.
    for len in BLOCK..3072 + BLOCK {
        let cut = &archive[..len];
        assert!(is_archive(cut));
        let error = members(cut).expect_err("cut");
        match len {
            ..SECOND_HEADER => assert_eq!(
                error,
                ArchiveError::BeyondEnd {
                    name: "a.img".into(),
                    offset: 0,
                    size: 1024,
                    archive: len
                }
            ),
            SECOND_HEADER..2048 => assert_eq!(
                error,
                ArchiveError::Truncated {
                    offset: SECOND_HEADER
                }
            ),
            2048..2748 => assert!(matches!(error, ArchiveError::BeyondEnd { .. })),
            _ => assert_eq!(error, ArchiveError::Truncated { offset: 3072 }),
        }
    }
    assert!(members(&archive[..3072 + BLOCK]).is_ok());
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let beyond = |name: &str, size| ArchiveError::BeyondEnd {
        name: name.into(),
        offset: SECOND_HEADER,
        size,
        archive: two_files().len(),
    };
    let cases: [(&[u8], ArchiveError); 6] = [
        (b"77777777777\0", beyond("b.img", (1 << 33) - 1)),
        // Base 256, as GNU tar writes sizes from 8 GiB on: 2^32, 2^64 - 1, more, and a negative.
        (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", beyond("b.img", 1 << 32)),
        (
            b"\x80\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
            beyond("b.img", u64::MAX),
        ),
        (
            b"\x80\0\0\x01\0\0\0\0\0\0\0\0",
            ArchiveError::Size {
                offset: SECOND_HEADER,
            },
        ),
        (
            b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
            ArchiveError::Size {
                offset: SECOND_HEADER,
            },
        ),
        (
            b"00000001 28\0",
            ArchiveError::Size {
                offset: SECOND_HEADER,
            },
        ),
    ];
    for (field, expected) in cases {
        let mut archive = two_files();
        forge(&mut archive, SECOND_HEADER, 124, field);
        assert_eq!(members(&archive), Err(expected));
    }
}

#[test]
fn sizes_in_base_256_are_read() {
    let mut archive = two_files();
    forge(
        &mut archive,
        SECOND_HEADER,
        124,
        b"\x80\0\0\0\0\0\0\0\0\0\x02\xBC",
    );
    assert_eq!(contents(&archive)[1], ("b.img".to_string(), pattern(700)));
}

#[test]
fn names_that_are_none_are_refused() {
    for name in [&b"\0"[..], b"\xFF\xFE\0"] {
        let mut archive = two_files();
        forge(&mut archive, SECOND_HEADER, 0, name);
        let offset = SECOND_HEADER;
        assert_eq!(members(&archive), Err(ArchiveError::Name { offset }));
    }
}

#[test]
fn two_members_of_one_name_are_refused() {
    let mut archive = two_files();
    forge(&mut archive, SECOND_HEADER, 0, b"././a.img\0");
    let error = members(&archive).expect_err("twice the same");
    assert_eq!(
        error.to_string(),
        "damaged archive: two members are called a.img, with data at 512 and 2048"
    );
}

#[test]
fn extended_headers_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    folder.file(&"n".repeat(150), &pattern(10));
    let intact = folder.tar(&["--format=posix", "."]);
    let record = intact.windows(6).position(|window| window == b" path=");
    let record = record.expect("a record of the path");
    for (at, byte) in [(record - 1, b'9'), (record - 1, b'x'), (record + 5, b'-')] {
        let mut archive = intact.clone();
        archive[at] = byte;
        let error = members(&archive).expect_err("nonsense");
        assert!(
            matches!(error, ArchiveError::ExtendedHeader { .. }),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        if let Err(error) = members(&bytes) {
            prop_assert!(error.to_string().starts_with("damaged archive: "));
        }
        is_archive(&bytes);
    }

    /// Random blocks with a right checksum get past the first check and must not get further than
    /// the archive's end.
    #[test]
    fn members_lie_within_the_archive(
        blocks in prop::collection::vec(
            (
                prop::collection::vec(prop_oneof![Just(0_u8), Just(b'0'), any::<u8>()], 61),
                prop::sample::select(b"0\x007125xgLKSVM9".to_vec()),
                0..3000_u32,
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let mut archive = Vec::new();
        for (block, kind, size, sane) in blocks {
            let start = archive.len();
            archive.extend(block.iter().cycle().take(BLOCK));
            if sane {
                archive[start..start + 3].copy_from_slice(b"abc");
                forge(&mut archive, start, 124, format!("{size:011o}\0").as_bytes());
            }
            forge(&mut archive, start, 156, &[kind]);
        }
        archive.extend([0; BLOCK]);
        if let Ok(members) = members(&archive) {
            let mut end = 0;
            for member in members {
                prop_assert!(member.offset >= end + BLOCK);
                end = member.offset + member.size;
                prop_assert!(end <= archive.len());
                prop_assert!(!member.name.is_empty());
            }
        }
    }

    /// A byte changed in a header is always noticed.
    #[test]
    fn a_changed_header_byte_is_noticed(at in 0..BLOCK, change in 1..=255_u8) {
        let mut archive = two_files_once().to_vec();
        archive[SECOND_HEADER + at] ^= change;
        match members(&archive) {
            Err(_) => {}
            // The checksum's own padding carries nothing, and a changed digit can become padding.
            Ok(members) => {
                prop_assert!((148..156).contains(&at));
                prop_assert_eq!(members.len(), 2);
            }
        }
    }
}

fn two_files_once() -> &'static [u8] {
    static ARCHIVE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    ARCHIVE.get_or_init(two_files)
}
