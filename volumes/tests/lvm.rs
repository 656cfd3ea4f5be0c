//! Volume groups of LVM: labels, circular texts, several disks, and what cannot be served.

mod support;

use bulkhead_images::{Access, Sector, SectorSize};
use bulkhead_volumes::Volumes;
use bulkhead_volumes::lvm::{GroupFault, VolumeGroup};
use bulkhead_volumes::testing::{
    Disk, NewPartition, NewPhysical, mend_physical, now, write_gpt, write_physical,
};
use support::{LVM, MIB, PV0, PV1, VG0, find, guid, open, partition, physical, refusal};

const TYPES: &str = include_str!("fixtures/types.txt");

/// Where the extents of both physical volumes begin, and how many bytes an extent has.
const FIRST: usize = MIB;
const EXTENT: usize = 4 * MIB;

fn pv(new: &NewPhysical<'_>) -> Disk {
    let disk = Disk::new(64 * MIB, SectorSize::B512);
    write_physical(&disk, new);
    disk
}

fn volumes(disks: &[&Disk]) -> Volumes {
    let volumes = Volumes::default();
    for (name, disk) in ["xvda", "xvdb", "xvdc"].into_iter().zip(disks) {
        assert!(support::add(&volumes, name, disk));
    }
    volumes
}

fn both(text: &str) -> [Disk; 2] {
    [pv(&physical(PV0, text)), pv(&physical(PV1, text))]
}

#[test]
fn linear_and_striped_volumes_lie_where_lvm_has_them() {
    let [a, b] = both(VG0);
    let disks = [&a, &b];
    let volumes = volumes(&disks);
    let alice = open(&volumes, "xvda/vg0/alice");
    assert_eq!(alice.geometry().sectors, Sector(3 * 8192));
    for (sector, place) in [
        (0, FIRST),
        (8192 * 2 - 1, FIRST + 2 * EXTENT - 512),
        (8192 * 2, FIRST + 3 * EXTENT),
    ] {
        assert_eq!(find(&*alice, sector, &disks), Some((0, place)));
    }
    let bob = open(&volumes, "xvdb/vg0/bob");
    for (sector, disk, place) in [
        (0, 0, FIRST + 2 * EXTENT),
        (127, 0, FIRST + 2 * EXTENT + 127 * 512),
        (128, 1, FIRST),
        (256, 0, FIRST + 2 * EXTENT + 128 * 512),
        (16383, 1, FIRST + EXTENT - 512),
    ] {
        assert_eq!(find(&*bob, sector, &disks), Some((disk, place)), "{sector}");
    }
    assert_eq!(
        refusal(&volumes, "xvda/vg0/carol"),
        "xvda/vg0/carol is read-only, expected access=ro"
    );
    assert_eq!(
        refusal(&volumes, "xvda/vg0/dave"),
        "there is no xvda/vg0/dave, there are: alice, bob, carol"
    );
    assert_eq!(
        refusal(&volumes, "xvda/vg9/alice"),
        "there is no xvda/vg9/alice, there are: vg0/alice, vg0/bob, vg0/carol"
    );
}

#[test]
fn a_text_goes_on_at_the_start_of_its_area() {
    for text_start in [512, 8191, 8192 - 600, 1024] {
        let disk = pv(&NewPhysical {
            area: (4096, 8192),
            text_start,
            ..physical(PV0, VG0)
        });
        open(&volumes(&[&disk]), "xvda/vg0/alice");
    }
}

#[test]
fn missing_physical_volumes_are_named_and_concern_only_who_lies_there() {
    let [a, b] = both(VG0);
    let alone = volumes(&[&a]);
    open(&alone, "xvda/vg0/alice");
    assert_eq!(
        refusal(&alone, "xvda/vg0/bob"),
        "xvda/vg0/bob cannot be used: none of the disks has its physical volume pv1 \
         (0DmZTb-gQnq-u4UP-A7eF-sUmX-Avig-E5hosB)"
    );
    let twice = volumes(&[&a, &b, &b]);
    assert_eq!(
        refusal(&twice, "xvda/vg0/bob"),
        "xvda/vg0/bob cannot be used: its physical volume pv1 (0DmZTb-gQnq-u4UP-A7eF-sUmX-Avig-E5hosB) is there \
         twice"
    );
}

#[test]
fn other_types_are_refused_by_their_names() {
    let disk = pv(&physical(PV0, TYPES));
    let volumes = volumes(&[&disk]);
    let only = "and only linear and striped volumes can be served";
    for (name, reason) in [
        ("r", format!("it is of type raid1, {only}")),
        ("r_rimage_0", "it is a part of another volume".into()),
        ("pool", format!("it is of type thin-pool, {only}")),
        ("thin", format!("it is of type thin, {only}")),
        ("cached", format!("it is of type cache+METADATA_FORMAT, {only}")),
        ("origin", format!("it has a snapshot or is one, {only}")),
        ("snap", format!("it has a snapshot or is one, {only}")),
        (
            "moving",
            "a part of it lies on pvmove0, which is no physical volume of its group: is it being moved?".into(),
        ),
    ] {
        let name = format!("xvda/vg1/{name}");
        assert_eq!(
            refusal(&volumes, &name),
            format!("{name} cannot be used: {reason}")
        );
    }
    let plain = open(&volumes, "xvda/vg1/plain");
    let place = FIRST + 12 * EXTENT;
    assert_eq!(find(&*plain, 0, &[&disk]), Some((0, place)));
}

#[test]
fn the_newest_description_counts_wherever_a_member_has_it() {
    // It has been moved by what the second disk knows.
    let newer = VG0
        .replace("seqno = 6", "seqno = 7")
        .replace("\"pv0\", 0\n", "\"pv0\", 8\n");
    let [a, b] = [pv(&physical(PV0, VG0)), pv(&physical(PV1, &newer))];
    let disks = [&a, &b];
    let known = volumes(&disks);
    // It is known once the second disk was read: bob lies there.
    open(&known, "xvda/vg0/bob");
    let alice = open(&known, "xvda/vg0/alice");
    assert_eq!(find(&*alice, 0, &disks), Some((0, FIRST + 8 * EXTENT)));

    // One that is no member says so too, and is not believed.
    let other = "EvilEvEvilEvilEvilEvilEvilEvilEv";
    let liar = pv(&physical(other, &newer));
    let [a, b] = both(VG0);
    let disks = [&a, &b, &liar];
    let known = volumes(&disks);
    for disk in ["xvdb", "xvdc"] {
        support::rescan(&known, disk);
    }
    let alice = open(&known, "xvda/vg0/alice");
    assert_eq!(find(&*alice, 0, &disks), Some((0, FIRST)));
}

/// What messages say of places that guests could write to.
const UNSEARCHED: &str =
    "; not searched, as guests could write to it since data/rescan named its disk: ";

#[test]
fn what_a_guest_writes_on_a_disk_of_its_own_is_not_looked_at_for_others() {
    // It calls its disk pv1, and says that alice lies where bob does.
    let newer = VG0
        .replace("seqno = 6", "seqno = 7")
        .replace("\"pv0\", 0\n", "\"pv0\", 8\n");
    let [a, b] = both(VG0);
    let own = pv(&physical(PV1, &newer));
    let disks = [&a, &own];
    let known = volumes(&disks);
    let guest = open(&known, "xvdb");
    support::rescan(&known, "xvda");
    let alice = open(&known, "xvda/vg0/alice");
    assert_eq!(find(&*alice, 0, &disks), Some((0, FIRST)));
    drop(alice);
    // Nobody gets a volume by what it says, wherever that is.
    assert_eq!(
        refusal(&known, "xvdb/vg0/alice"),
        "xvdb/vg0/alice is in use: it has sectors of xvdb, which is open for writing by domain 5, xvda; two \
         that write, or write and read, need shared=yes in the target of each"
    );
    // The same when the guest has gone, and what it wrote has stayed; and with the real one beside it.
    let missing = format!(
        "xvda/vg0/bob cannot be used: none of the disks has its physical volume pv1 \
         (0DmZTb-gQnq-u4UP-A7eF-sUmX-Avig-E5hosB){UNSEARCHED}xvdb"
    );
    assert_eq!(refusal(&known, "xvda/vg0/bob"), missing);
    drop(guest);
    assert_eq!(refusal(&known, "xvda/vg0/bob"), missing);
    assert_eq!(
        refusal(&known, "xvdb/vg0/alice"),
        format!("there is no xvdb/vg0/alice, there are: none{UNSEARCHED}xvdb")
    );
    assert!(support::add(&known, "xvdc", &b));
    support::rescan(&known, "xvda");
    let bob = open(&known, "xvda/vg0/bob");
    assert_eq!(find(&*bob, 128, &[&a, &own, &b]), Some((2, FIRST)));
    drop(bob);
    // The operator says that the content of the disk is good.
    support::rescan(&known, "xvdb");
    assert!(refusal(&known, "xvda/vg0/bob").ends_with("is there twice"));
}

#[test]
fn a_shared_disk_that_guests_write_to_describes_no_other_disks() {
    let newer = VG0
        .replace("seqno = 6", "seqno = 7")
        .replace("\"pv0\", 0\n", "\"pv0\", 8\n");
    let [a, own] = [pv(&physical(PV0, VG0)), pv(&physical(PV1, VG0))];
    let disks = [&a, &own];
    for (owner, place) in [("domain 5, xvda", FIRST), ("dom0", FIRST + 8 * EXTENT)] {
        let known = volumes(&disks);
        let whole = support::open_for(&known, "xvdb", Access::ReadWrite, true, owner);
        let whole = whole.expect("it can be opened");
        write_physical(&own, &physical(PV1, &newer));
        // Also while the operator looks at the disk.
        support::rescan(&known, "xvdb");
        let alice = open(&known, "xvda/vg0/alice");
        assert_eq!(find(&*alice, 0, &disks), Some((0, place)), "{owner}");
        drop(whole);
    }
}

#[test]
fn a_volume_does_not_grow_by_what_a_guest_writes_on_the_disk_it_was_named_by() {
    let elsewhere = VG0
        .replace("\"pv0\", 0\n", "\"pv1\", 5\n")
        .replace("\"pv0\", 3\n", "\"pv1\", 7\n");
    let [a, b] = both(&elsewhere);
    let known = volumes(&[&a, &b]);
    let alice = open(&known, "xvda/vg0/alice");
    let guest = open(&known, "xvda");
    let larger = elsewhere.replace("seqno = 6", "seqno = 7").replacen(
        "extent_count = 1\n",
        "extent_count = 3\n",
        1,
    );
    write_physical(&a, &physical(PV0, &larger));
    assert_eq!(
        support::rescan(&known, "xvda"),
        [format!(
            "xvda/vg0/alice of domain 5, xvda is served as it was: there is no xvda/vg0/alice, there are: \
             none{UNSEARCHED}xvda"
        )]
    );
    assert_eq!(alice.geometry().sectors, Sector(3 * 8192));
    drop(guest);
    assert!(support::rescan(&known, "xvda")[0].contains("has grown"));
}

/// A disk with a physical volume on its second partition, and a first one of that type.
fn partitioned(kind: &str) -> (Disk, [usize; 2]) {
    let disk = Disk::new(192 * MIB, SectorSize::B512);
    let blocks = 66 * 2048;
    let parts = [("guest", 1, 2048, kind), ("lvm", 2, 2048 + blocks, LVM)];
    let parts = parts.map(|(label, number, first, kind)| NewPartition {
        kind: guid(kind),
        ..partition(label, number, (first, first + blocks - 1))
    });
    write_gpt(&disk, &parts);
    let starts = parts.map(|part| part.first as usize * 512);
    write_physical(
        &disk,
        &NewPhysical {
            start: starts[1],
            ..physical(PV0, VG0)
        },
    );
    (disk, starts)
}

#[test]
fn a_guest_does_not_write_to_a_partition_that_is_searched_for_physical_volumes() {
    let (disk, _) = partitioned(LVM);
    let known = volumes(&[&disk]);
    assert_eq!(
        refusal(&known, "xvda/guest"),
        "xvda/guest has the partition type of LVM, whose volumes other guests may have: expected access=ro, or \
         another type (sgdisk --typecode)"
    );
    support::try_open(&known, "xvda/guest", Access::ReadOnly).expect("it may be read");
    let dom0 = support::open_for(&known, "xvda/guest", Access::ReadWrite, false, "dom0");
    dom0.expect("the operator makes volumes there");
    open(&known, "xvda/vg0/alice");
}

#[test]
fn a_partition_that_a_guest_has_had_is_not_searched_before_the_operator_says_so() {
    // What it wrote there: a newer group of that name, and a physical volume of that identity.
    let newer = VG0.replace("seqno = 6", "seqno = 7");
    let (disk, starts) = partitioned(support::LINUX);
    let forged = |id| {
        let new = NewPhysical {
            start: starts[0],
            ..physical(id, &newer)
        };
        write_physical(&disk, &new);
    };
    for id in [PV0, "EvilEvEvilEvilEvilEvilEvilEvilEv"] {
        let known = volumes(&[&disk]);
        let guest = open(&known, "xvda/guest");
        forged(id);
        let alice = || {
            let alice = open(&known, "xvda/vg0/alice");
            find(&*alice, 0, &[&disk])
        };
        let real = Some((0, starts[1] + FIRST));
        assert_eq!(alice(), real);
        // The partition is used again, for LVM.
        let (retyped, _) = partitioned(LVM);
        let table = retyped.change(|bytes| bytes.clone());
        let end = table.len() - 33 * 512;
        let old = disk.change(|bytes| bytes.clone());
        for place in [0..34 * 512, end..table.len()] {
            disk.write(place.start, &table[place]);
        }
        assert_eq!(alice(), real);
        drop(guest);
        assert_eq!(alice(), real);
        assert_eq!(
            refusal(&known, "xvda/vg9/alice"),
            format!(
                "there is no xvda/vg9/alice, there are: vg0/alice, vg0/bob, vg0/carol{UNSEARCHED}partition 1 of \
                 xvda"
            )
        );
        support::rescan(&known, "xvda");
        let found = refusal(&known, "xvda/vg9/alice");
        assert!(!found.contains("not searched"), "{found}");
        for place in [0..34 * 512, end..table.len()] {
            disk.write(place.start, &old[place]);
        }
    }
}

#[test]
fn a_volume_that_would_have_its_physical_volumes_metadata_is_refused() {
    let text = VG0.replace("pe_start = 2048", "pe_start = 2040");
    let disk = pv(&physical(PV0, &text));
    assert_eq!(
        refusal(&volumes(&[&disk]), "xvda/vg0/alice"),
        "xvda/vg0/alice cannot be used: a part of it lies where its physical volume has its metadata"
    );
}

#[test]
fn a_guests_partition_is_not_searched_for_physical_volumes() {
    let new = NewPhysical {
        start: 64 * 512,
        ..physical(PV0, VG0)
    };
    for (kind, found) in [(support::LINUX, false), (LVM, true)] {
        let disk = Disk::new(96 * MIB, SectorSize::B512);
        let of_guest = NewPartition {
            kind: guid(kind),
            ..partition("guest", 1, (64, 64 + 65 * 2048))
        };
        write_gpt(&disk, &[of_guest]);
        write_physical(&disk, &new);
        let volumes = volumes(&[&disk]);
        match found {
            false => assert_eq!(
                refusal(&volumes, "xvda/vg0/alice"),
                "there is no xvda/vg0/alice, there are: none"
            ),
            true => {
                let alice = open(&volumes, "xvda/vg0/alice");
                let place = Some((0, 64 * 512 + FIRST));
                assert_eq!(find(&*alice, 0, &[&disk]), place);
            }
        }
    }
}

#[test]
fn damaged_labels_and_texts_are_not_used() {
    let damage = |at: usize, mend: bool| {
        let disk = pv(&physical(PV0, VG0));
        disk.change(|bytes| bytes[at] ^= 0x10);
        if mend {
            mend_physical(&disk, 0);
        }
        refusal(&volumes(&[&disk]), "xvda/vg0/alice")
    };
    let unknown = "what is on disk xvda is not known: its label of LVM is damaged: ";
    assert_eq!(
        damage(512 + 40, false),
        format!("{unknown}the checksum is wrong")
    );
    assert_eq!(
        damage(512 + 8, true),
        format!("{unknown}it belongs elsewhere")
    );
    assert_eq!(
        damage(512 + 21, true),
        format!("{unknown}the header behind it has no end")
    );
    let none = "there is no xvda/vg0/alice, there are: none";
    // The area's header, its place, its version, and the text.
    for (at, mend) in [
        (4096, false),
        (4096 + 9, true),
        (4096 + 20, true),
        (4096 + 24, true),
        (4096 + 600, false),
    ] {
        assert_eq!(damage(at, mend), none, "{at}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let number = |at: usize, value: u64| {
        let disk = pv(&physical(PV0, VG0));
        disk.write(at, &value.to_le_bytes());
        mend_physical(&disk, 0);
        refusal(&volumes(&[&disk]), "xvda/vg0/alice")
    };
    let none = "there is no xvda/vg0/alice, there are: none";
    for value in [0, 1, 512, 65 << 20, u64::MAX] {
        assert_eq!(number(512 + 112, value), none, "an area of {value} bytes");
    }
    for value in [65 << 20, u64::MAX - 1] {
        assert_eq!(number(512 + 104, value), none, "an area at {value}");
    }
    for value in [1, 511, 2 << 20, u64::MAX] {
        assert_eq!(number(4096 + 40, value), none, "a text at {value}");
    }
    for value in [MIB as u64, u64::MAX] {
        assert_eq!(number(4096 + 48, value), none, "a text of {value} bytes");
    }
    // Not in use, by its flag.
    let disk = pv(&physical(PV0, VG0));
    disk.change(|bytes| bytes[4096 + 60] = 1);
    mend_physical(&disk, 0);
    assert_eq!(refusal(&volumes(&[&disk]), "xvda/vg0/alice"), none);
}

#[test]
fn volumes_that_cannot_be_are_refused_and_the_others_served() {
    let first = "extent_count = 2\n\ntype = \"striped\"\nstripe_count = 1";
    for (what, with, reason) in [
        ("\"pv0\", 3\n", "\"pv0\", 1\n", "overlaps the volume alice"),
        ("\"pv0\", 3\n", "\"pv0\", 2\n", "overlaps the volume bob"),
        (
            "\"pv0\", 3\n",
            "\"pv0\", 15\n",
            "past the end of its physical volume",
        ),
        ("\"pv0\", 3\n", "\"pv0\", -1\n", "no first extent"),
        ("\"pv0\", 3\n", "\"pv7\", 3\n", "lies on pv7"),
        ("\"pv0\", 3\n", "\"pv0\"\n", "no first extent"),
        (
            "\"pv0\", 3\n",
            "\"pv0\", 3, \"pv0\", 4\n",
            "too many stripes",
        ),
        (
            "start_extent = 2\n",
            "start_extent = 3\n",
            "do not follow one another",
        ),
        (
            "segment_count = 2\n",
            "segment_count = 3\n",
            "another number of segments",
        ),
        (
            first,
            "extent_count = 0\ntype = \"striped\"\nstripe_count = 1",
            "do not follow",
        ),
        (
            first,
            "extent_count = 2\ntype = \"striped\"\nstripe_count = 0",
            "number of stripes",
        ),
        (
            first,
            "extent_count = 2\ntype = \"striped\"\nstripe_count = 2",
            "stripes of a size",
        ),
    ] {
        let text = VG0.replacen(what, with, 1);
        assert_ne!(text, VG0);
        let [a, b] = both(&text);
        let volumes = volumes(&[&a, &b]);
        let refusal = refusal(&volumes, "xvda/vg0/alice");
        assert!(refusal.contains(reason), "{what}: {refusal}");
        if !reason.contains("bob") {
            open(&volumes, "xvda/vg0/bob");
        }
    }
    // The group says that the physical volume is larger than the disk.
    let text = VG0.replace("pe_count = 15", "pe_count = 4000000000");
    let text = text.replace("\"pv0\", 3\n", "\"pv0\", 3999999999\n");
    let [a, b] = both(&text);
    let refused = refusal(&volumes(&[&a, &b]), "xvda/vg0/alice");
    assert!(
        refused.ends_with("past the end of its physical volume"),
        "{refused}"
    );
    let exported = VG0.replace("\"RESIZEABLE\", ", "\"RESIZEABLE\", \"EXPORTED\", ");
    let [a, b] = both(&exported);
    let refused = refusal(&volumes(&[&a, &b]), "xvda/vg0/alice");
    assert!(refused.contains("exported"), "{refused}");
}

#[test]
fn a_disk_with_large_sectors_has_volumes_too() {
    let disk = Disk::new(64 * MIB, SectorSize::B4096);
    write_physical(&disk, &physical(PV0, VG0));
    let volumes = volumes(&[&disk]);
    let alice = open(&volumes, "xvda/vg0/alice");
    assert_eq!(alice.geometry().sector_size, SectorSize::B4096);
    assert_eq!(find(&*alice, 8, &[&disk]), Some((0, FIRST + 4096)));

    let odd = VG0.replace("pe_start = 2048", "pe_start = 2049");
    write_physical(&disk, &physical(PV0, &odd));
    let refused = refusal(&volumes, "xvda/vg0/carol");
    assert!(refused.contains("pv1"), "{refused}");
    drop(alice);
    assert_eq!(
        refusal(&volumes, "xvda/vg0/alice"),
        "xvda/vg0/alice cannot be used: a part of it is not in whole sectors of 4096 bytes"
    );
}

fn parsed(text: &str) -> Result<VolumeGroup, GroupFault> {
    now(VolumeGroup::parse(text.as_bytes()))
}

#[test]
fn texts_that_are_none_are_refused_with_the_line() {
    let fault = |text: &str| parsed(text).expect_err("refused").to_string();
    for (text, line) in [
        ("vg0 {\n", "line 2 of its text has no end of a section"),
        ("vg0 {\n}\n}", "line 3 of its text has no name"),
        (
            "a = \n[ 1, \"b\"",
            "line 2 of its text has no end of a list",
        ),
        ("a = [ 1 2 ]", "line 1 of its text has no end of a list"),
        ("a = \"b", "line 1 of its text has no end of a string"),
        ("a = \"b\\\"", "line 1 of its text has no end of a string"),
        ("a b", "line 1 of its text has no value or section"),
        ("a = }", "line 1 of its text has no value"),
        ("a = [[]]", "line 1 of its text has no value in a list"),
        ("\u{e4} = 1", "line 1 of its text has no word"),
        (
            "a{a{a{a{a{a{a{a{a{",
            "line 1 of its text has no section that is less deep",
        ),
    ] {
        let fault = fault(text);
        assert!(fault.starts_with(line), "{text:?}: {fault}");
    }
    assert_eq!(
        now(VolumeGroup::parse(&[0xFF, b'a'])),
        Err(GroupFault::Encoding)
    );
    let field = "its text has no valid";
    for (what, with, named) in [
        ("version = 1\n", "version = 2\n", "version and contents"),
        ("format = \"lvm2\"", "format = \"lvm1\"", "format"),
        ("seqno = 6", "seqno = -6", "seqno"),
        ("extent_size = 8192", "extent_size = 0", "extent_size"),
        (
            "extent_size = 8192",
            "extent_size = 4294967296",
            "extent_size",
        ),
        ("mmJOHT-ehWI", "mmJOHT-ehW", "identity"),
        ("pe_count = 15", "pe_count = 4294967296", "pe_count"),
        ("vg0 {", "-vg0 {", "name"),
    ] {
        let text = VG0.replacen(what, with, 1);
        assert_ne!(text, VG0, "{what}");
        assert_eq!(fault(&text), format!("{field} {named}"));
    }
}

#[test]
fn comments_and_escapes_are_read_as_lvm_writes_them() {
    let text = VG0.replace(
        "status = [\"READ\",",
        "# } \" {\nstatus = [\"\\\"\\\\\", \"READ\",",
    );
    let group = parsed(&text).expect("a group");
    assert_eq!(group.logical.len(), 3);
    assert!(group.logical[0].writable);
    assert_eq!(
        group.physical[1].id.to_string(),
        "0DmZTb-gQnq-u4UP-A7eF-sUmX-Avig-E5hosB"
    );
}
