//! Volumes on an export.

use bulkhead_images::{Access, SectorSize};
use bulkhead_nbd::nbd_store;
use bulkhead_nbd_testing::world::{Buffer, World, pattern, read, write};
use bulkhead_nbd_testing::{Config, FakeExport, FakeTls, TlsMode};
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{Disk, NewPartition, write_gpt};

use std::rc::Rc;
use std::time::Duration;

const BYTES: usize = 1 << 20;

/// The time after which an export that no disk uses is let go of.
const UNUSED: Duration = Duration::from_secs(62);

#[test]
fn partitions_of_an_export_are_disks() {
    let world = World::new(Config::default());
    let refused = world.refusal("nbd:10.0.0.2/disk#root");
    assert!(
        refused.contains("its disk has no GUID partition table"),
        "{refused}"
    );
    world.end();

    let world = World::new(Config::default());
    let table = Disk::new(BYTES, SectorSize::B512);
    let kind = Guid::try_parse("0fc63daf-8483-4772-8e79-3d69d8477de4").expect("a GUID");
    let partition = |label, id: &str, first| NewPartition {
        label,
        kind,
        id: Guid::try_parse(id).expect("a GUID"),
        first,
        last: first + 255,
    };
    write_gpt(
        &table,
        &[
            partition("alice", "11111111-8483-4772-8e79-3d69d8477de4", 512),
            partition("bob", "22222222-8483-4772-8e79-3d69d8477de4", 768),
        ],
    );
    let bytes = table.change(|bytes| bytes.clone());
    world
        .server
        .change(|config| config.exports[0].bytes = bytes);
    let mut alice = world.open("nbd:10.0.0.2/disk#alice");
    let mut bob = world.open("nbd:10.0.0.2/disk#22222222-8483-4772-8e79-3d69d8477de4");
    let refused = world.refusal("nbd:10.0.0.2/disk");
    assert!(
        refused.contains("open for writing by domain 5, xvda"),
        "{refused}"
    );
    assert_eq!(alice.device.geometry().sectors.0, 256);
    let (from, to) = (Buffer::new(&world, 2), Buffer::new(&world, 2));
    for (disk, seed, first) in [(&mut alice, 1, 512), (&mut bob, 2, 768)] {
        let data = pattern(seed, 8192);
        from.fill(&data);
        assert_eq!(disk.does(write(7), &from.whole(8192)), Ok(()));
        assert_eq!(disk.does(read(7), &to.whole(8192)), Ok(()));
        assert!(to.bytes(0, 8192) == data);
        let start = (first + 7) * 512;
        assert!(world.server.bytes("disk")[start..start + 8192] == data);
        assert!(disk.does(read(255), &to.whole(1024)).is_err());
    }
    // All of them over one connection.
    assert_eq!(world.server.connections(), (1, 1));
    drop((alice, bob, from, to));
    world.end();
}

/// The rules for sharing an export hold for all of its users, whether they reach the server with TLS or without it.
#[test]
fn an_export_is_reached_with_tls_or_without_it() {
    let mut world = World::new(Config {
        tls: TlsMode::Offered,
        ..Config::default()
    });
    let tls = Rc::new(FakeTls(vec!["10.0.0.2".to_string()]));
    let by_tls = world.exports.by_tls(tls);
    let stores = [world.store.clone(), Rc::new(nbd_store(by_tls.clone()))];
    let targets = ["nbd:10.0.0.2/disk", "nbds:10.0.0.2/disk"];
    for (first, second) in [(0, 1), (1, 0)] {
        world.store = stores[first].clone();
        let writer = world.try_open(targets[first], Access::ReadWrite);
        let writer = writer.expect("nobody has it");
        world.store = stores[second].clone();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let refused = world.try_open(targets[second], access);
            let reason = refused.err().expect("somebody has it");
            let (scheme, _) = targets[first].split_once(':').expect("a target");
            let expected = format!("it is in use as {scheme}:10.0.0.2:10809/disk");
            assert!(reason.contains(&expected), "{reason}");
        }
        drop(writer);
        let opened = world.try_open(targets[second], Access::ReadWrite);
        drop(opened.expect("nobody has it any more"));
    }
    world.wait(UNUSED);
    assert_eq!((by_tls.count(), world.exports.count()), (0, 0));
    world.end();
}

#[test]
fn an_export_is_reached_by_one_of_the_names_that_its_server_has_for_it() {
    let named = |name: &str, own: &str| FakeExport {
        canonical: Some(own.into()),
        ..FakeExport::new(name, BYTES)
    };
    let mut world = World::new(Config {
        exports: vec![
            named("", "disk"),
            FakeExport::new("disk", BYTES),
            named("latest", "disk"),
            named("other", "other"),
        ],
        tls: TlsMode::Offered,
        ..Config::default()
    });
    let tls = Rc::new(FakeTls(vec!["10.0.0.2".to_string()]));
    let by_tls = world.exports.by_tls(tls);
    let names = ["10.0.0.2/", "10.0.0.2/disk", "10.0.0.2/latest"];
    for first in names {
        let writer = world.try_open(&format!("nbd:{first}"), Access::ReadWrite);
        let writer = writer.expect("nobody has it");
        for second in names.iter().filter(|second| **second != first) {
            let refused = world.refusal(&format!("nbd:{second}"));
            let (host, export) = first.split_once('/').expect("a server");
            let expected = format!("it is in use as nbd:{host}:10809/{export}, expected one");
            assert!(refused.contains(&expected), "{second}: {refused}");
        }
        // Another export, and another server, are others.
        drop(world.open("nbd:10.0.0.2/other"));
        drop(world.open("nbd:10.0.0.3/disk"));
        drop(writer);
    }
    let writer = world.open("nbd:10.0.0.2/latest").device.clone();
    let plain = std::mem::replace(&mut world.store, Rc::new(nbd_store(by_tls.clone())));
    let refused = world.refusal("nbds:10.0.0.2/disk");
    let expected = "it is in use as nbd:10.0.0.2:10809/latest, expected one";
    assert!(refused.contains(expected), "{refused}");
    drop(writer);
    world.store = plain;
    world.wait(UNUSED);
    assert_eq!(by_tls.count(), 0);
    world.end();
}
