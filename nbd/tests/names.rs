//! Targets, as users write them.

use bulkhead_nbd::ExportName;
use bulkhead_nbd_testing::Config;
use bulkhead_nbd_testing::world::World;
use bulkhead_volumes::{NameError, VolumePart};
use proptest::prelude::*;

#[test]
fn exports_and_volumes_are_told_apart() {
    let label = |label: &str| VolumePart::Label(label.into());
    let logical = VolumePart::Logical {
        group: "vg0".into(),
        volume: "alice".into(),
    };
    for (text, disk, part) in [
        ("10.0.0.2/a", "10.0.0.2:10809/a", VolumePart::Whole),
        ("10.0.0.2:10809/a", "10.0.0.2:10809/a", VolumePart::Whole),
        ("Host:7/p/i/x", "host:7/p/i/x", VolumePart::Whole),
        ("host", "host:10809/", VolumePart::Whole),
        ("host/#root", "host:10809/", label("root")),
        ("[fd00::2]/d#root", "[fd00::2]:10809/d", label("root")),
        ("h/p/d#vg0/alice", "h:10809/p/d", logical),
        ("h/a%23b#c", "h:10809/a%23b", label("c")),
    ] {
        let name = ExportName::parse_volume(text).expect(text);
        assert_eq!((name.disk.as_str(), name.part), (disk, part), "{text}");
    }
}

#[test]
fn what_names_no_export_is_refused_with_a_reason() {
    for (text, reason) in [
        ("/export", "it names no server"),
        ("host:x/export", "'x' is not a port"),
        ("host/a%2", "'a%2' has a % without two hexadecimal digits"),
        ("host/a%zz", "has a % without two hexadecimal digits"),
        ("host/%ff", "'%ff' is not text"),
        ("host/%00", "'%00' is not text"),
        ("host/e#", "has nothing behind the slash"),
        (
            "host/e#vg/..",
            "no volume group or logical volume can be named '..'",
        ),
    ] {
        let error = ExportName::parse_volume(text).expect_err(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let long = format!("host/{}", "%C3%A9".repeat(170));
    let error = ExportName::parse_volume(&long).expect_err("too long");
    assert!(
        matches!(error, NameError::Disk(reason) if reason.contains("has 1031 bytes as a target has it"))
    );
}

#[test]
fn a_store_tells_how_its_targets_are_written() {
    let world = World::new(Config::default());
    assert_eq!(
        world.refusal("nbd:"),
        "'nbd:' names no disk, expected nbd:10.0.0.2:10809/root-alice"
    );
    assert_eq!(
        world.refusal("nbd:10.0.0.2/disk,sector-size=512"),
        "nbd: shows a disk as it is, expected it without sector-size="
    );
    assert_eq!(world.server.connections().0, 0);
    world.end();
}

proptest! {
    #[test]
    fn a_name_is_read_as_it_was_shown(export in "\\PC{0,40}", port in 1..=u16::MAX) {
        let name = ExportName {
            server: bulkhead_stream::Endpoint { host: "h".into(), port },
            export,
        };
        let shown = name.to_string();
        prop_assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() && !b",#'\"".contains(&byte)));
        prop_assert_eq!(ExportName::parse(&shown), Ok(name));
    }

    #[test]
    fn any_text_is_a_name_or_refused(text in "\\PC{0,60}") {
        if let Ok(name) = ExportName::parse_volume(&text) {
            prop_assert!(ExportName::parse(&name.disk).is_ok());
        }
    }
}
