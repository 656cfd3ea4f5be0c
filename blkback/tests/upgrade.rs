//! An operator asks for a new version to take over: the requests that are refused, and the file that the runtime gets.

use super::recovery::{collect_all, held, push_writes};
use super::recovery_devices::{NVME, nvme_setup};
use bulkhead_blkback::upgrade::{ERROR_NODE, NODE, Runtime, answer_upgrades};
use bulkhead_blkback_testkit::{Guest, Setup, World};
use bulkhead_nvme_testing::Treatment;
use bulkhead_upgrade::request::InjectedFault;
use bulkhead_upgrade::testing::{NOTE, file, running};
use bulkhead_upgrade::{Candidate, GuestType, Running, Version, WITH_DEVICES};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A runtime that notes the file that it gets, and has no way to hand over.
#[derive(Default)]
struct Fake {
    obstacle: Cell<Option<&'static str>>,
    handed: RefCell<Vec<(Version, InjectedFault)>>,
    faults: Cell<bool>,
    with_devices: Cell<bool>,
}

const STAYS: &str = "the test has no other version";

/// The same runtime, as the task has it.
struct Shared(Rc<Fake>);

impl Runtime for Shared {
    fn obstacle(&self) -> Option<&'static str> {
        self.0.obstacle.get()
    }

    fn running(&self) -> Running {
        match self.0.with_devices.get() {
            true => Running {
                guest_type: GuestType::Pv,
                format: WITH_DEVICES,
                ..running()
            },
            false => running(),
        }
    }

    fn allows_faults(&self) -> bool {
        self.0.faults.get()
    }

    fn take_over(&self, candidate: &Candidate<'_>, fault: InjectedFault) -> &'static str {
        self.0
            .handed
            .borrow_mut()
            .push((candidate.note.version, fault));
        STAYS
    }
}

/// Makes a driver domain with these images, and its runtime.
fn with_images(images: Vec<(String, Vec<u8>)>) -> (World, Rc<Fake>) {
    with(Setup {
        images,
        ..Setup::default()
    })
}

fn with(setup: Setup) -> (World, Rc<Fake>) {
    let world = World::with(setup);
    let runtime = Rc::new(Fake::default());
    let (backend, asked) = (world.backend.clone(), Shared(runtime.clone()));
    world.backend.services.handle.spawn(async move {
        let Err(error) = answer_upgrades(&backend.services, &asked).await;
        panic!("{error}");
    });
    world.run();
    (world, runtime)
}

/// Asks, and returns the reason why no version has taken over.
fn ask(world: &World, request: &str) -> String {
    let error = world.own_path(ERROR_NODE);
    world.sim.store().remove(&error);
    world.write(&world.own_path(NODE), request);
    world.run();
    assert_eq!(world.read(&world.own_path(NODE)).as_deref(), Some(""));
    world.read(&error).expect("there is a reason")
}

fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns an image with that file, which is larger than the file.
fn image(file: &[u8]) -> Vec<u8> {
    let mut image = file.to_vec();
    image.resize(64 << 10, 0xee);
    image
}

const NEW: Version = Version([0, 3, 0]);
const OLD: Version = Version([0, 1, 0]);

/// The time within which a disk is served again.
const SOON: Duration = Duration::from_millis(100);

#[test]
fn a_version_that_was_checked_is_handed_to_the_runtime() {
    let (new, old) = (file(NEW), file(OLD));
    let images = vec![("new".into(), image(&new)), ("old".into(), image(&old))];
    let (world, runtime) = with_images(images);
    let guest = Guest::new(&world);
    let request = format!("ram:new sha256={}", sum(&new));
    assert_eq!(ask(&world, &request), format!("ram:new: {STAYS}"));
    let older = format!("ram:old sha256={}", sum(&old));
    assert!(ask(&world, &older).contains("older than 0.2.0"));
    assert!(ask(&world, &format!("{older} force")).contains(STAYS));
    let handed = runtime.handed.take();
    assert_eq!(
        handed,
        [(NEW, InjectedFault::None), (OLD, InjectedFault::None)]
    );
    // The images are free again.
    let disk = guest.attach("xvda", "ram:new").connected();
    assert!(ask(&world, &request).contains("is open for writing"));
    disk.detach();
}

#[test]
fn what_is_refused_changes_nothing_and_says_why() {
    let new = file(NEW);
    let cut = new[..0x900].to_vec();
    let images = vec![
        ("new".into(), image(&new)),
        ("cut".into(), cut[..0x800].to_vec()),
        ("zeros".into(), vec![0; 4096]),
        ("huge".into(), {
            let mut huge = image(&new);
            huge[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
            huge[58..62].copy_from_slice(&[64, 0, 1, 0]);
            huge
        }),
    ];
    let (world, runtime) = with_images(images);
    let good = sum(&new);
    for (request, reason) in [
        (String::from(" "), "no target: expected \"TARGET sha256=SUM"),
        ("ram:new".into(), "no checksum"),
        (
            format!("ram:new sha256={}", &good[1..]),
            "64 hexadecimal digits",
        ),
        (
            format!("ram:new sha256={}", sum(b"")),
            "do not have the checksum",
        ),
        (format!("ram:none sha256={good}"), "none"),
        (format!("file:new sha256={good}"), "expected ram:"),
        (
            format!("ram:zeros sha256={good}"),
            "does not begin as an ELF",
        ),
        (format!("ram:cut sha256={good}"), "ends before"),
        (format!("ram:huge sha256={good}"), "more than 4 MiB"),
        (format!("null:1M sha256={good}"), "does not begin as an ELF"),
        (format!("ram:new sha256={good} test=panic"), "test-crash=on"),
    ] {
        let told = ask(&world, &request);
        assert!(told.contains(reason), "{request}: {told}");
    }
    runtime.obstacle.set(Some("an obstacle"));
    assert_eq!(
        ask(&world, &format!("ram:new sha256={good}")),
        "an obstacle"
    );
    assert_eq!(*runtime.handed.borrow(), []);
    runtime.obstacle.set(None);
    runtime.faults.set(true);
    ask(&world, &format!("ram:new sha256={good} test=wait"));
    assert_eq!(*runtime.handed.borrow(), [(NEW, InjectedFault::Wait)]);
}

/// The version that takes over fails, and the one before gets the domain back.
#[test]
fn what_a_controller_was_asked_before_is_answered_by_the_version_that_serves() {
    let (new, mut newer) = (file(NEW), file(NEW));
    newer[NOTE + 40..NOTE + 44].copy_from_slice(&WITH_DEVICES.to_le_bytes());
    let images = vec![("new".into(), image(&new)), ("newer".into(), image(&newer))];
    let (world, runtime) = with(nvme_setup(Setup {
        images,
        ..Setup::default()
    }));
    runtime.with_devices.set(true);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", NVME).connected();
    let fake = &world.nvme.as_ref().expect("it has a controller").fake;
    fake.decide(|_| Treatment::Held);
    let asked = push_writes(&mut disk, 8, 3);
    disk.link().kick();
    let told = ask(&world, &format!("ram:new sha256={}", sum(&new)));
    assert!(told.contains("this one leaves format 2"), "{told}");
    assert_eq!(*runtime.handed.borrow(), []);
    let told = ask(&world, &format!("ram:newer sha256={}", sum(&newer)));
    assert_eq!(told, format!("ram:newer: {STAYS}"));
    assert_eq!(*runtime.handed.borrow(), [(NEW, InjectedFault::None)]);
    for _ in 0..2 {
        assert_eq!(fake.held().len(), 8);
        world.crash_after(0, 0);
        world.restart();
        assert_eq!(fake.held().len(), 0, "it has stopped");
        world.wait(SOON);
        assert_eq!(disk.link().collect().len(), 0);
    }
    fake.decide(|_| Treatment::Done);
    while !fake.held().is_empty() {
        fake.finish(0);
    }
    world.wait(SOON);
    collect_all(&mut disk, &asked, "served again");
    assert_eq!(disk.read(7, 1), [3; 512]);
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}
