//! What is open: who shares it, and what becomes of it when the tables change.

mod support;

use bulkhead_images::testing::Delayed;
use bulkhead_images::{Access, BlockDevice, Sector, SectorSize};
use bulkhead_volumes::testing::{Disk, NewPartition, write_gpt, write_physical};
use bulkhead_volumes::{Guid, NameError, Opening, VolumeName, Volumes};
use bulkhead_xen::VcpuId;
use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use support::{
    LVM, MIB, PV0, PV1, VG0, find, guid, open, open_for, partition, physical, refusal, rescan,
};

/// A disk with two partitions and a physical volume, and another with its sibling.
fn two() -> (Volumes, [Disk; 2]) {
    let disk = Disk::new(128 * MIB, SectorSize::B512);
    write_gpt(&disk, &layout(4095));
    let pv0 = bulkhead_volumes::testing::NewPhysical {
        start: 8192 * 512,
        ..physical(PV0, VG0)
    };
    write_physical(&disk, &pv0);
    let other = Disk::new(64 * MIB, SectorSize::B512);
    write_physical(&other, &physical(PV1, VG0));
    let volumes = Volumes::default();
    assert!(support::add(&volumes, "vbd:xvda", &disk));
    assert!(support::add(&volumes, "vbd:xvdb", &other));
    assert!(!support::add(&volumes, "vbd:xvdb", &other));
    (volumes, [disk, other])
}

/// The first partition ends with that block.
fn layout(last: u64) -> [NewPartition<'static>; 3] {
    [
        partition("one", 1, (2048, last)),
        partition("two", 2, (6144, 8191)),
        NewPartition {
            kind: guid(LVM),
            ..partition("pv", 3, (8192, 8192 + 130_000))
        },
    ]
}

#[test]
fn what_overlaps_a_writers_is_refused_and_names_it() {
    let (volumes, _) = two();
    let pairs = [
        ("vbd:xvda", "vbd:xvda"),
        ("vbd:xvda", "vbd:xvda/one"),
        ("vbd:xvda", "vbd:xvda/vg0/alice"),
        ("vbd:xvda/pv", "vbd:xvda/vg0/alice"),
        (
            "vbd:xvda/one",
            "vbd:xvda/01010101-0101-0101-0101-010101010101",
        ),
        ("vbd:xvda/vg0/bob", "vbd:xvdb/vg0/bob"),
        ("vbd:xvdb", "vbd:xvda/vg0/bob"),
    ];
    use Access::{ReadOnly, ReadWrite};
    let try_open = |name: &str, access| open_for(&volumes, name, access, false, "dom0");
    let refusal = |name: &str| {
        let opened = try_open(name, ReadWrite);
        opened.err().expect("refused").to_string()
    };
    for (first, second) in pairs {
        for (one, other) in [(first, second), (second, first)] {
            let held = try_open(one, ReadWrite).expect("it can be opened");
            for access in [ReadWrite, ReadOnly] {
                let refused = try_open(other, access);
                let refused = refused.err().expect("refused").to_string();
                let which = match one == other {
                    true => String::new(),
                    false => format!("in use: it has sectors of {one}, which is "),
                };
                assert_eq!(
                    refused,
                    format!(
                        "{other} is {which}open for writing by dom0; two that write, or write and read, need \
                         shared=yes in the target of each"
                    )
                );
            }
            drop(held);
            let reader = try_open(one, ReadOnly).expect("free again");
            assert!(refusal(other).contains("open for reading"));
            try_open(other, ReadOnly).expect("readers share");
            drop(reader);
            let shares = open_for(&volumes, one, ReadWrite, true, "dom0");
            let with = open_for(&volumes, other, ReadWrite, true, "dom0");
            with.expect("both say that they share");
            assert!(refusal(other).contains("open for writing"));
            drop(shares);
        }
    }
    let _held = [
        "vbd:xvda/one",
        "vbd:xvda/two",
        "vbd:xvda/vg0/alice",
        "vbd:xvda/vg0/bob",
    ]
    .map(|name| open(&volumes, name));
    let users: Vec<_> = volumes.disks()[1].users.clone();
    let bob = ("vbd:xvda/vg0/bob".to_string(), "domain 5, xvda".to_string());
    assert_eq!(users, [(bob.0, bob.1, ReadWrite)]);
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn watch(device: &dyn BlockDevice) -> Arc<Wakes> {
    let wakes = Arc::new(Wakes::default());
    device.on_change(&Waker::from(wakes.clone()));
    wakes
}

#[test]
fn a_volume_that_has_grown_is_larger_for_its_user() {
    let (volumes, [disk, other]) = two();
    let one = open(&volumes, "vbd:xvda/one");
    let alice = open(&volumes, "vbd:xvda/vg0/alice");
    let (of_one, of_alice) = (watch(&*one), watch(&*alice));
    assert_eq!(rescan(&volumes, "vbd:xvda"), [""; 0], "nothing has changed");

    write_gpt(&disk, &layout(6143));
    assert_eq!(
        rescan(&volumes, "vbd:xvda"),
        ["vbd:xvda/one of domain 5, xvda has grown from 2048 to 4096 sectors of 512 bytes"]
    );
    assert_eq!(one.geometry().sectors, Sector(4096));
    assert_eq!(
        (
            of_one.0.load(Ordering::SeqCst),
            of_alice.0.load(Ordering::SeqCst)
        ),
        (1, 0)
    );
    assert_eq!(find(&*one, 4095, &[&disk]), Some((0, 6143 * 512)));

    let text = VG0.replace("seqno = 6", "seqno = 7").replacen(
        "extent_count = 1\n",
        "extent_count = 3\n",
        1,
    );
    let pv0 = bulkhead_volumes::testing::NewPhysical {
        start: 8192 * 512,
        ..physical(PV0, &text)
    };
    write_physical(&disk, &pv0);
    assert_eq!(
        rescan(&volumes, "vbd:xvda"),
        ["vbd:xvda/vg0/alice of domain 5, xvda has grown from 24576 to 40960 sectors of 512 bytes"]
    );
    assert_eq!(of_alice.0.load(Ordering::SeqCst), 1);
    let place = 8192 * 512 + MIB + 6 * 4 * MIB - 512;
    assert_eq!(find(&*alice, 40959, &[&disk, &other]), Some((0, place)));
    // What it has grown by is its own.
    assert!(refusal(&volumes, "vbd:xvda").contains("in use"));
}

#[test]
fn a_volume_has_the_same_size_on_each_of_its_disks() {
    let (volumes, [disk, other]) = two();
    let sizes = || -> Vec<_> {
        let all = volumes.disks().into_iter().flat_map(|disk| disk.volumes);
        all.filter(|(name, _)| name.ends_with("/vg0/alice"))
            .collect()
    };
    let both = |sectors| {
        ["vbd:xvda", "vbd:xvdb"].map(|disk| (format!("{disk}/vg0/alice"), Sector(sectors)))
    };
    assert_eq!(rescan(&volumes, "vbd:xvda"), [""; 0]);
    assert_eq!(sizes(), both(24576));
    let text = VG0.replace("seqno = 6", "seqno = 7").replacen(
        "extent_count = 1\n",
        "extent_count = 3\n",
        1,
    );
    let pv0 = bulkhead_volumes::testing::NewPhysical {
        start: 8192 * 512,
        ..physical(PV0, &text)
    };
    write_physical(&disk, &pv0);
    write_physical(&other, &physical(PV1, &text));
    // One disk is read again; the other's own copy is older by what is known of it.
    assert_eq!(rescan(&volumes, "vbd:xvdb"), [""; 0], "nobody has it open");
    assert_eq!(sizes(), both(40960));
}

#[test]
fn what_has_vanished_or_moved_or_become_smaller_stays_as_it_was_and_is_told() {
    let (volumes, [disk, _]) = two();
    let one = open(&volumes, "vbd:xvda/one");
    let kept =
        |reason: &str| format!("vbd:xvda/one of domain 5, xvda is served as it was: {reason}");
    let cases = [
        (
            partition("one", 1, (2049, 4096)),
            kept("it lies elsewhere now"),
        ),
        (partition("one", 1, (2048, 4000)), kept("it is smaller now")),
        (
            partition("new", 9, (2048, 4095)),
            kept("there is no vbd:xvda/one, there are: new"),
        ),
        (
            partition("one", 1, (2048, 1 << 40)),
            kept("vbd:xvda/one cannot be used: it lies outside of where partitions may be"),
        ),
    ];
    for (changed, told) in cases {
        write_gpt(&disk, &[changed]);
        assert_eq!(rescan(&volumes, "vbd:xvda"), [told]);
        assert_eq!(one.geometry().sectors, Sector(2048));
        assert_eq!(find(&*one, 2047, &[&disk]), Some((0, 4095 * 512)));
    }
    // The new one has its sectors.
    write_gpt(&disk, &[partition("new", 9, (2048, 4095))]);
    let refused = refusal(&volumes, "vbd:xvda/new");
    assert!(
        refused.contains("it has sectors of vbd:xvda/one"),
        "{refused}"
    );
    drop(one);
    open(&volumes, "vbd:xvda/new");
    // Another name is no change.
    let one = open(&volumes, "vbd:xvda/new");
    write_gpt(&disk, &[partition("renamed", 9, (2048, 4095))]);
    assert_eq!(rescan(&volumes, "vbd:xvda"), [""; 0]);
    drop(one);
}

#[test]
fn a_volume_does_not_grow_into_what_somebody_else_has_open() {
    let (volumes, [disk, _]) = two();
    let one = open(&volumes, "vbd:xvda/one");
    let two = open(&volumes, "vbd:xvda/two");
    write_gpt(&disk, &[partition("one", 1, (2048, 8191))]);
    let told = rescan(&volumes, "vbd:xvda");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("cannot have what it has grown by"),
        "{told:?}"
    );
    assert!(told[0].contains("sectors of vbd:xvda/two"), "{told:?}");
    assert!(told[1].contains("vbd:xvda/two of domain 5"), "{told:?}");
    assert_eq!(one.geometry().sectors, Sector(2048));
    drop(two);
    assert_eq!(rescan(&volumes, "vbd:xvda").len(), 1);
    assert_eq!(one.geometry().sectors, Sector(6144));
}

#[test]
fn a_volume_that_goes_on_on_another_disk_has_to_be_attached_again() {
    let (volumes, [disk, _]) = two();
    let alice = open(&volumes, "vbd:xvda/vg0/alice");
    let text =
        VG0.replace("seqno = 6", "seqno = 7")
            .replacen("segment_count = 2", "segment_count = 3", 1);
    let more = "segment3 {\nstart_extent = 3\nextent_count = 1\ntype = \"striped\"\nstripe_count = 1\n\
                stripes = [\n\"pv1\", 9\n]\n}\n}\n\nbob {";
    let text = text.replacen("}\n\nbob {", more, 1);
    let pv0 = bulkhead_volumes::testing::NewPhysical {
        start: 8192 * 512,
        ..physical(PV0, &text)
    };
    write_physical(&disk, &pv0);
    assert_eq!(
        rescan(&volumes, "vbd:xvda"),
        [
            "vbd:xvda/vg0/alice of domain 5, xvda is served as it was: it goes on on another disk, and has to be \
          attached again for that"
        ]
    );
    assert_eq!(alice.geometry().sectors, Sector(3 * 8192));
    drop(alice);
    let alice = open(&volumes, "vbd:xvda/vg0/alice");
    assert_eq!(alice.geometry().sectors, Sector(4 * 8192));
}

#[test]
fn a_volume_that_was_made_meanwhile_is_found_and_a_disk_that_is_gone_is_not() {
    let (volumes, [disk, _]) = two();
    assert!(refusal(&volumes, "vbd:xvda/three").starts_with("there is no"));
    let mut layout = layout(4095).to_vec();
    layout.push(partition("three", 4, (5000, 5999)));
    write_gpt(&disk, &layout);
    let three = open(&volumes, "vbd:xvda/three");
    assert_eq!(three.geometry().sectors, Sector(1000));
    let names = |volumes: &Volumes| {
        let disks = volumes.disks();
        let disk = disks.into_iter().find(|disk| disk.name == "vbd:xvda");
        disk.map(|disk| disk.volumes)
    };
    let named = |name: &str, sectors| (format!("vbd:xvda/{name}"), Sector(sectors));
    assert_eq!(
        names(&volumes),
        Some(vec![
            named("one", 2048),
            named("two", 2048),
            named("pv", 130_001),
            named("three", 1000),
            named("vg0/alice", 24_576),
            named("vg0/bob", 16_384),
            named("vg0/carol", 8192),
        ])
    );
    assert!(volumes.remove("vbd:xvda"));
    assert!(!volumes.remove("vbd:xvda"));
    assert_eq!(names(&volumes), None);
    assert!(refusal(&volumes, "vbd:xvda/one").starts_with("there is no disk vbd:xvda"));
    assert_eq!(
        find(&*three, 0, &[&disk]),
        Some((0, 5000 * 512)),
        "it stays"
    );
}

#[test]
fn a_disk_that_does_not_answer_holds_up_only_who_needs_it() {
    let (volumes, [_, other]) = two();
    assert!(volumes.remove("vbd:xvdb"));
    let silent = Delayed::new(Arc::new(other));
    let disk: Arc<dyn BlockDevice> = Arc::new(silent.clone());
    assert!(volumes.add("vbd:xvdb", move || Ok(disk.clone())));
    open(&volumes, "vbd:xvda/one");
    open(&volumes, "vbd:xvda/vg0/alice");
    let name: VolumeName = "vbd:xvda/vg0/bob".parse().expect("a name");
    let opening = Opening {
        access: Access::ReadWrite,
        shared: false,
        owner: "domain 5, xvda",
        administrator: false,
    };
    let mut waiting = pin!(volumes.open(VcpuId(0), &name, opening));
    for _ in 0..100 {
        let polled = waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Pending if silent.held() == 0 => {}
            Poll::Pending => silent.release(0),
            Poll::Ready(opened) => {
                opened.expect("it is there after all");
                return;
            }
        }
    }
    panic!("it does not end");
}

/// The silent one comes before, between or after the others in the list.
#[test]
fn a_disk_that_nobody_needs_holds_up_neither_rescans_nor_volumes_on_several_disks() {
    for place in 0..3 {
        let (_, [disk, other]) = two();
        let silent = Delayed::new(Arc::new(Disk::new(MIB, SectorSize::B512)));
        silent.hold_on();
        // A disk that answers does so sooner.
        let volumes = Volumes::new(core::mem::forget, |_| {
            let mut polls = 0;
            Box::pin(std::future::poll_fn(move |context| {
                polls += 1;
                context.waker().wake_by_ref();
                match polls < 1000 {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                }
            }))
        });
        let add_silent = |at: usize| {
            let device: Arc<dyn BlockDevice> = Arc::new(silent.clone());
            if at == place {
                assert!(volumes.add("vbd:xvdc", move || Ok(device.clone())));
            }
        };
        add_silent(0);
        assert!(support::add(&volumes, "vbd:xvda", &disk));
        add_silent(1);
        assert!(support::add(&volumes, "vbd:xvdb", &other));
        add_silent(2);
        // Its other disk is none that anybody has looked at.
        open(&volumes, "vbd:xvda/vg0/bob");
        let one = open(&volumes, "vbd:xvda/one");
        write_gpt(&disk, &layout(5000));
        assert_eq!(
            rescan(&volumes, "vbd:xvda"),
            ["vbd:xvda/one of domain 5, xvda has grown from 2048 to 2953 sectors of 512 bytes"]
        );
        assert_eq!(one.geometry().sectors, Sector(2953));
        assert_eq!(silent.held(), 1, "it is asked once");
        let missing = refusal(&volumes, "vbd:xvdc/one");
        assert!(missing.contains("has not answered"), "{missing}");
    }
}

#[test]
fn a_disk_that_lets_go_of_nothing_is_asked_once() {
    let (_, [disk, _]) = two();
    let silent = Delayed::new(Arc::new(disk));
    silent.hold_on();
    let tasks = Rc::new(RefCell::new(Vec::new()));
    let spawned = tasks.clone();
    let volumes = Volumes::new(
        move |task| spawned.borrow_mut().push(task),
        |_| Box::pin(std::future::pending()),
    );
    let device: Arc<dyn BlockDevice> = Arc::new(silent.clone());
    assert!(volumes.add("vbd:xvda", move || Ok(device.clone())));
    let give_up = || {
        let name: VolumeName = "vbd:xvda/one".parse().expect("a name");
        let opening = Opening {
            access: Access::ReadOnly,
            shared: false,
            owner: "domain 5, xvda",
            administrator: false,
        };
        let mut waiting = pin!(volumes.open(VcpuId(0), &name, opening));
        let polled = waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Ready(Err(error)) => Some(error.to_string()),
            Poll::Ready(Ok(_)) => panic!("the disk says nothing"),
            Poll::Pending => None,
        }
    };
    assert_eq!(give_up(), None, "it waits");
    for _ in 0..100 {
        assert_eq!(
            give_up().as_deref(),
            Some("disk vbd:xvda cannot be used: it has not answered what it was asked before")
        );
    }
    assert_eq!(silent.held(), 1, "nothing more is asked of it");
    // It answers, and is asked again.
    silent.release(0);
    silent.be_prompt(true);
    let ended = |task: &mut Pin<Box<dyn Future<Output = ()>>>| {
        let mut context = Context::from_waker(Waker::noop());
        task.as_mut().poll(&mut context).is_ready()
    };
    assert!(tasks.borrow_mut().iter_mut().all(ended), "nothing waits");
    open(&volumes, "vbd:xvda/one");
}

#[test]
fn a_disk_is_open_as_long_as_something_of_it_is() {
    let (_, [disk, _]) = two();
    let volumes = Volumes::default();
    let opened: Arc<dyn BlockDevice> = Arc::new(disk);
    let (there, count) = (Arc::new(AtomicBool::new(true)), Arc::downgrade(&opened));
    let (asked, device) = (there.clone(), opened.clone());
    drop(opened);
    volumes.add("vbd:xvda", move || match asked.load(Ordering::SeqCst) {
        true => Ok(device.clone()),
        false => Err("it is not connected".to_string()),
    });
    let users = || count.strong_count() - 1;
    let one = open(&volumes, "vbd:xvda/one");
    let alice = open(&volumes, "vbd:xvda/vg0/alice");
    assert_eq!(users(), 1, "both share it");
    drop(one);
    assert_eq!(users(), 1);
    drop(alice);
    assert_eq!(users(), 0);
    assert_eq!(volumes.disks()[0].sectors, Sector(128 * 2048));
    there.store(false, Ordering::SeqCst);
    assert_eq!(
        refusal(&volumes, "vbd:xvda/one"),
        "disk vbd:xvda cannot be used: it is not connected"
    );
}

#[test]
fn names_that_are_none_are_refused() {
    for (text, what) in [
        ("", "there is no disk's name"),
        ("/root", "there is no disk's name"),
        ("xvda/", "'xvda/' has nothing behind the slash"),
        ("xvda/vg0/", "'xvda/vg0/' has nothing behind the slash"),
        ("xvda//alice", "'xvda//alice' has nothing behind the slash"),
        (
            "xvda/vg0/a/b",
            "no volume group or logical volume can be named 'a/b'",
        ),
        (
            "xvda/-vg/a",
            "no volume group or logical volume can be named '-vg'",
        ),
    ] {
        let error: NameError = text.parse::<VolumeName>().expect_err("refused");
        let error = error.to_string();
        assert!(error.starts_with(what), "{error}");
        assert!(error.contains("expected DISK"), "{error}");
    }
    let guid = Guid::from_bytes([7; 16]);
    for text in [
        "xvda",
        "xvda/root",
        "xvda/vg0/alice",
        &format!("xvda/{guid}"),
    ] {
        let name: VolumeName = text.parse().expect("a name");
        assert_eq!(name.to_string(), text);
    }
}
