//! Targets: those that are understood, and the errors for all others.

use bulkhead_images::target::{NullTarget, RamTarget, Target, TargetError};
use bulkhead_images::{Access, DiscardMode, Sector, SectorSize, Stores};
use proptest::prelude::*;

/// A target that was understood.
#[derive(Debug, PartialEq)]
enum Understood {
    Ram(RamTarget),
    Null(NullTarget),
}

fn understand(text: &str) -> Result<Understood, TargetError> {
    let target = Target::parse(text).expect("it names a store");
    match target.scheme {
        "ram" => RamTarget::parse(target).map(Understood::Ram),
        "null" => NullTarget::parse(target).map(Understood::Null),
        other => panic!("no store {other}"),
    }
}

/// Returns the reason why a target cannot be opened.
fn mistake(text: &str) -> Option<String> {
    let opened = Stores::default().open_now(text, Access::ReadWrite, "a test");
    opened.err().map(|error| error.to_string())
}

fn ram(name: &str, sector_size: SectorSize) -> Understood {
    Understood::Ram(RamTarget {
        name: name.into(),
        sector_size,
        physical_sector_size: sector_size,
        discard: None,
        shared: false,
    })
}

fn null(sectors: u64, sector_size: SectorSize) -> Understood {
    Understood::Null(NullTarget {
        sectors: Sector(sectors),
        sector_size,
        physical_sector_size: sector_size,
    })
}

#[test]
fn stores_and_their_options_are_understood() {
    let cases = [
        ("ram:disk0", ram("disk0", SectorSize::B512)),
        ("ram:a/b:c.img", ram("a/b:c.img", SectorSize::B512)),
        ("ram:x,sector-size=512", ram("x", SectorSize::B512)),
        ("ram:x,sector-size=4096", ram("x", SectorSize::B4096)),
        ("null:512", null(1, SectorSize::B512)),
        ("null:64k", null(128, SectorSize::B512)),
        ("null:64M", null(131_072, SectorSize::B512)),
        ("null:1G,sector-size=4096", null(1 << 21, SectorSize::B4096)),
        ("null:3T", null(3 << 31, SectorSize::B512)),
    ];
    for (text, target) in cases {
        assert_eq!(understand(text), Ok(target), "{text}");
    }
}

#[test]
fn physical_sectors_may_be_larger() {
    let text = "null:8K,physical-sector-size=4096";
    let target = Understood::Null(NullTarget {
        sectors: Sector(16),
        sector_size: SectorSize::B512,
        physical_sector_size: SectorSize::B4096,
    });
    assert_eq!(understand(text), Ok(target));
    let text = "ram:x,physical-sector-size=4096,sector-size=512";
    let target = Understood::Ram(RamTarget {
        name: "x".into(),
        sector_size: SectorSize::B512,
        physical_sector_size: SectorSize::B4096,
        discard: None,
        shared: false,
    });
    assert_eq!(understand(text), Ok(target));
}

#[test]
fn what_becomes_of_discarded_memory_is_an_option_of_an_image() {
    for (word, mode) in [
        ("keep", DiscardMode::Keep),
        ("release", DiscardMode::Release),
    ] {
        let text = format!("ram:x,discard={word},sector-size=4096");
        let target = Understood::Ram(RamTarget {
            name: "x".into(),
            sector_size: SectorSize::B4096,
            physical_sector_size: SectorSize::B4096,
            discard: Some(mode),
            shared: false,
        });
        assert_eq!(understand(&text), Ok(target));
        assert_eq!(mode.to_string(), word);
    }
}

#[test]
fn an_image_may_be_shared() {
    for (text, shared) in [
        ("ram:x", false),
        ("ram:x,shared=no", false),
        ("ram:x,shared=yes", true),
    ] {
        let Ok(Understood::Ram(target)) = understand(text) else {
            panic!("{text} is a target");
        };
        assert_eq!(target.shared, shared, "{text}");
    }
}

#[test]
fn mistakes_are_answered_with_what_was_expected() {
    let size = |size| {
        format!(
            "'{size}' is not a valid size, expected whole sectors in bytes or with K, M, G or T, as in null:64M"
        )
    };
    let store = |store| format!("unknown store '{store}', expected ram:NAME or null:SIZE");
    let unknown = |option| {
        format!(
            "unknown option {option}, expected sector-size=512|4096, physical-sector-size=512|4096, \
             discard=keep|release or shared=yes|no"
        )
    };
    let cases = [
        ("", store("")),
        ("disk0", store("disk0")),
        ("foo:bar", store("foo:")),
        ("RAM:disk0", store("RAM:")),
        ("/dev/vg/lv", store("/dev/vg/lv")),
        (
            "ram:",
            "'ram:' needs an image name, expected ram:NAME".into(),
        ),
        (
            "ram:,sector-size=512",
            "'ram:' needs an image name, expected ram:NAME".into(),
        ),
        ("ram:x,", unknown("''")),
        ("ram:x,fast", unknown("'fast'")),
        ("ram:x,speed=9", unknown("'speed=9'")),
        (
            "ram:x,sector-size=",
            "'' is not a valid sector size, expected 512 or 4096".into(),
        ),
        (
            "ram:x,sector-size=1024",
            "'1024' is not a valid sector size, expected 512 or 4096".into(),
        ),
        (
            "ram:x,sector-size=512,sector-size=4096",
            "option sector-size is given twice".into(),
        ),
        (
            "ram:x,physical-sector-size=4096,physical-sector-size=4096",
            "option physical-sector-size is given twice".into(),
        ),
        (
            "ram:x,physical-sector-size=8192",
            "'8192' is not a valid sector size, expected 512 or 4096".into(),
        ),
        (
            "ram:x,sector-size=4096,physical-sector-size=512",
            "physical-sector-size=512 is smaller than sector-size=4096, expected 4096".into(),
        ),
        (
            "ram:x,discard=yes",
            "discard=yes: expected keep or release".into(),
        ),
        (
            "ram:x,discard=keep,discard=release",
            "option discard is given twice".into(),
        ),
        (
            "null:1M,discard=keep",
            "null: holds no data, expected it without discard=".into(),
        ),
        ("ram:x,shared", unknown("'shared'")),
        ("ram:x,shared=1", "shared=1: expected yes or no".into()),
        (
            "ram:x,shared=yes,shared=yes",
            "option shared is given twice".into(),
        ),
        (
            "null:1M,shared=yes",
            "null: holds no data, expected it without shared=".into(),
        ),
        ("null:1K,physical-sector-size=4096", size("1K")),
        ("null:", size("")),
        ("null:0", size("0")),
        ("null:0M", size("0M")),
        ("null:M", size("M")),
        ("null:+1M", size("+1M")),
        ("null:-1", size("-1")),
        ("null:100", size("100")),
        ("null:1K,sector-size=4096", size("1K")),
        ("null:16777216T", size("16777216T")),
        ("null:99999999999999999999", size("99999999999999999999")),
        ("null:1ü", size("1ü")),
    ];
    for (text, expected) in cases {
        assert_eq!(mistake(text), Some(expected), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(text in ".*", store in "(ram|null):[0-9KMGT,=a-z-]*") {
        for text in [text, store] {
            if let Some(error) = mistake(&text) {
                prop_assert!(!error.is_empty());
            }
        }
    }
}
