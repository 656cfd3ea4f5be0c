//! The manual page (`docs/bulkhead.7`) names every target, every option and every node.

use bulkhead_blkback::availability::{online, refuse_changes};
use bulkhead_blkback::control::shutdown_requested;
use bulkhead_blkback::engine::{QueueCounts, QueueOptions};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, Style, World};
use bulkhead_images::{Access, Stores};
use bulkhead_xen::VcpuId;
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../docs/bulkhead.7");

/// Returns whether the page has that word, whole.
fn names(word: &str) -> bool {
    let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    PAGE.match_indices(word).any(|(at, _)| {
        let before = PAGE[..at].chars().next_back();
        let after = PAGE[at + word.len()..].chars().next();
        !before.is_some_and(belongs) && !after.is_some_and(belongs)
    })
}

fn assert_named<'a>(words: impl IntoIterator<Item = &'a str>) {
    let missing: Vec<&str> = words.into_iter().filter(|word| !names(word)).collect();
    assert!(missing.is_empty(), "docs/bulkhead.7 lacks {missing:?}");
}

/// Returns the words before `=` or `:` in the part of a target's error that says what was expected.
fn expected_by(target: &str, end: char) -> Vec<String> {
    let opened = Stores::default().open_now(target, Access::ReadWrite, "a test");
    let error = opened.err().expect("a mistake").to_string();
    let (_, expected) = error.split_once("expected ").expect("what was expected");
    let words = expected.split([' ', ',']);
    words
        .filter_map(|word| Some(word.split_once(end)?.0.to_owned()))
        .collect()
}

/// Returns the keys of a command line that a source file has constants for.
fn constants(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter_map(|line| {
        let (_, value) = line
            .trim_start_matches("pub ")
            .strip_prefix("const ")?
            .split_once(": &str = \"")?;
        value.strip_suffix("\";")
    })
}

#[test]
fn a_word_that_the_page_lacks_is_found_out() {
    assert!(names("sector-size") && names("control/shutdown"));
    assert!(!names("sector-siz") && !names("ector-size") && !names("no-such-option"));
}

#[test]
fn every_store_and_every_option_of_a_target() {
    let stores = expected_by("nothing:x", ':');
    assert!(stores.len() >= 2, "{stores:?}");
    let options = expected_by("ram:x,nothing=1", '=');
    assert!(options.len() >= 4, "{options:?}");
    assert_named(stores.iter().chain(&options).map(String::as_str));
}

#[test]
fn every_option_of_the_command_line() {
    let mut keys: BTreeSet<&str> = QueueOptions::KEYS.into();
    keys.extend(constants(include_str!("../src/unikernel/main.rs")));
    keys.extend(constants(include_str!("../src/unikernel/network.rs")));
    keys.extend(constants(include_str!("../../net/src/settings.rs")));
    keys.extend(constants(include_str!("../../kernel/src/command_line.rs")));
    assert!(
        keys.contains("watchdog") && keys.contains("log"),
        "{keys:?}"
    );
    assert_named(keys);
}

#[test]
fn every_counter() {
    assert_named(QueueCounts::default().named().map(|(name, _)| name));
}

/// Returns the name by which the page calls a path: that of the node, without the numbers of guests, devices, queues
/// and pages.
fn node(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (!name.is_empty() && !path.starts_with('@')).then_some(name.trim_end_matches('-'))
}

#[test]
fn every_node_that_is_read_or_written() {
    let world = World::with(Setup {
        vcpus: 2,
        ..Setup::default()
    });
    let store = world.backend.services.store.clone();
    world.spawn(async move {
        online(&store, 2).await;
        let Err(error) = refuse_changes(&store, 2, &[VcpuId(0), VcpuId(1)]).await;
        panic!("{error}");
    });
    let store = world.backend.services.store.clone();
    world.spawn(async move { drop(shutdown_requested(&store).await) });
    world.write(&world.own_path("memory/target"), "65536");
    world.write(&world.own_path("data/grow"), "disk0 192K");
    world.write(&world.own_path("data/show"), "all");

    let guest = Guest::new(&world);
    let large = Style {
        queues: 2,
        ring_pages: 4,
        ..Style::default()
    };
    let connected = |name: &str, target: &str, style: Style| -> Frontend<'_> {
        guest.attach(name, target).styled(style).connected()
    };
    let disks = [
        connected("xvda", "ram:disk0", Style::default()),
        connected("xvdb", "ram:disk1", large),
    ];
    world.write(&disks[0].backend_path("statistics"), "refresh");
    let sectors = guest.attach("xvdc", "null:1M,sector-size=4096").connected();
    guest.attach("xvdd", "nothing:");
    guest.attach_as("xvde", &Disk::new("aio:ram:disk2"));
    world.run();
    for disk in disks.into_iter().chain([sectors]) {
        disk.detach();
    }
    world.write(&world.own_path("control/shutdown"), "poweroff");

    let paths = world.sim.store().named_paths(world.storage.id());
    let nodes: BTreeSet<&str> = paths.iter().filter_map(|path| node(path)).collect();
    assert!(nodes.len() >= 40, "{nodes:?}");
    assert_named(nodes);
}
