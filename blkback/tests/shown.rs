//! The lines that an operator is shown of images and of disks of the driver domain's own: `data/show` in xenstore.

use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, Lower, Setup, World, content};
use bulkhead_images::SectorSize;
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{self, NewPartition, write_gpt};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use std::time::Duration;

/// The time for a request to the domain below and its response; both may be held back for others to join them.
const THERE_AND_BACK: Duration = Duration::from_millis(5);

/// Asks for the lines that contain `request`, or all.
fn show(world: &World, request: &str) -> String {
    world.write(&world.own_path("data/show"), request);
    world.wait(THERE_AND_BACK);
    let answer = world.own_path("data/show-answer");
    world.read(&answer).expect("there is an answer")
}

/// Returns an image of another driver domain, with a partition.
fn partitioned() -> Vec<(String, Vec<u8>)> {
    let disk = testing::Disk::of(content(70, IMAGE_SIZE), SectorSize::B512);
    let partition = NewPartition {
        label: "one",
        kind: Guid::from_bytes([9; 16]),
        id: Guid::from_bytes([1; 16]),
        first: 40,
        last: 79,
    };
    write_gpt(&disk, &[partition]);
    vec![("disk".to_string(), disk.change(|bytes| bytes.clone()))]
}

/// Returns the number after `name=` in a line.
fn count(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!(" {name}=")).expect(line);
    let digits = rest.split(' ').next().unwrap_or_default();
    digits.parse().expect(line)
}

#[test]
fn disks_volumes_and_who_uses_them_are_shown_on_request() {
    let world = World::with(Setup {
        own_disks: true,
        ..Setup::default()
    });
    let lower = Lower::new(&world, &partitioned());
    let vbd = lower.attach("xvda", &Disk::new("ram:disk"));
    let disk = || show(&world, "disk vbd:xvda");
    let connected = format!(
        "disk vbd:xvda, connected to domain {}, 256 sectors, connections=1 ",
        lower.domain.id()
    );
    assert!(disk().starts_with(&connected), "{}", disk());
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut writer = guests[0].attach("xvda", "vbd:xvda/one").connected();
    let reader = guests[1].attach_read_only("xvdb", "ram:disk3").connected();
    let users = [
        format!(
            "vbd:xvda/one is open for writing by vbd {}/51712 (xvda)",
            guests[0].domain.id()
        ),
        format!(
            "ram:disk3 is open for reading by vbd {}/51728 (xvdb)",
            guests[1].domain.id()
        ),
    ];
    let all = show(&world, "all");
    for line in ["volume vbd:xvda/one, 40 sectors", &users[0], &users[1]] {
        assert!(all.lines().any(|shown| shown == line), "{line}: {all}");
    }
    assert!(all.contains("image ram:disk3, 131072 bytes, open 1 time(s)"));
    assert_eq!(show(&world, "ram:disk3 "), users[1]);
    let journal = world.journal();
    assert!(
        journal.iter().any(|line| line.ends_with(&users[0])),
        "so says the log: {journal:#?}"
    );

    // What the guest asks for is counted, and what nobody answers is seen to wait.
    let before = disk();
    let request = |writer: &mut Frontend<'_>, count: u64| {
        for sector in 0..count {
            writer.link().push_write(sector, &[7; 512]);
        }
        writer.link().kick();
        world.wait(THERE_AND_BACK);
    };
    request(&mut writer, 3);
    assert_eq!(writer.link().collect().len(), 3);
    let after = disk();
    assert_eq!(count(&after, "requests"), count(&before, "requests") + 3);
    assert_eq!(count(&after, "errors"), 0);
    lower.pause(true);
    request(&mut writer, 2);
    assert_eq!(count(&disk(), "outstanding"), 2);

    // The backend starts anew: its number of connections says so, and no count begins again.
    let state = format!("{}/state", vbd.backend_path());
    world.sim.store().write(&state, "5");
    // It is given time to flush first.
    world.wait(Duration::from_secs(12));
    let away = disk();
    assert!(away.starts_with("disk vbd:xvda, not connected, 256 sectors, connections=1 "));
    assert_eq!(
        (count(&away, "outstanding"), count(&away, "waiting")),
        (0, 2)
    );
    lower.pause(false);
    world.wait(Duration::from_secs(5));
    assert_eq!(writer.link().collect().len(), 2);
    let again = disk();
    assert_eq!(count(&again, "connections"), 2);
    // Those two were sent twice.
    assert!(count(&again, "requests") >= count(&after, "requests") + 4);
    assert_eq!(count(&again, "waiting"), 0);

    [writer, reader].into_iter().for_each(Frontend::detach);
    assert_eq!(
        show(&world, " is open for "),
        "nothing is called  is open for ; all shows everything"
    );
    forget_requests(&world);
    world.sim.assert_no_violations();
}

#[test]
fn what_a_node_has_no_room_for_is_in_the_log() {
    let images = (0..100).map(|number| (format!("image-{number:03}"), vec![0; 512]));
    let world = World::with(Setup {
        images: images.collect(),
        ..Setup::default()
    });
    let all = show(&world, "all");
    assert!(all.len() <= 1900, "{}", all.len());
    let (lines, end) = all.rsplit_once('\n').expect("several lines");
    assert_eq!(end, "the log has more");
    let whole = |line: &str| line.starts_with("image ram:image-") && line.ends_with(" time(s)");
    assert!(lines.lines().count() > 20 && lines.lines().all(whole));
    let last = |line: &String| line.contains("ram:image-099, ");
    assert!(world.journal().iter().any(last));
    assert!(show(&world, "image-099").starts_with("image ram:image-099, 512 bytes"));
    forget_requests(&world);
    world.nothing_left();
}

#[test]
fn the_memory_that_is_left_for_disks_is_shown() {
    let world = World::new();
    let nothing = show(&world, "memory, ");
    assert!(nothing.starts_with("nothing is called"), "{nothing}");
    world.backend.services.admission.watch_memory(|| 123_456);
    let left = "memory, 123456 bytes are free beside the reserve";
    assert_eq!(show(&world, "memory, "), left);
    assert_eq!(show(&world, "all").lines().next(), Some(left));
    forget_requests(&world);
    world.nothing_left();
}

/// Removes what an operator leaves behind.
fn forget_requests(world: &World) {
    for node in ["data/show", "data/show-answer"] {
        world.sim.store().remove(&world.own_path(node));
    }
    world.run();
}
