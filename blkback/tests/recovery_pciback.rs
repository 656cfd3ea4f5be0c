//! A PV domain that starts again in place while dom0's pciback answers nothing for longer than it is waited for.

use super::recovery::held;
use super::recovery_devices::{NVME, SOON, VIRTIO, nvme_world, operations_of_a_boot, virtio_world};
use bulkhead_blkback_testkit::{Guest, Setup, World};
use std::time::Duration;

/// Longer than any operation of pciback's is waited for.
const LONG: Duration = Duration::from_secs(65);

/// Has pciback answer `operations` more operations, or any number.
fn answers(world: &World, operations: Option<usize>) {
    world.sim.pciback(world.storage.id(), |pciback| {
        (pciback.stalled, pciback.stall_after) = (false, operations);
    });
}

fn is_served(world: &World, target: &str, why: &str) {
    let guest = Guest::new(world);
    let mut disk = guest.attach("xvda", target);
    disk = disk.connected_after(Duration::from_secs(1));
    disk.write(8, &[7; 512]);
    assert_eq!(disk.read(8, 1), [7; 512], "{why}");
    disk.detach();
    guest.destroy(Vec::new());
}

/// pciback stalls after each number of operations that a boot takes, and goes on some time later.
fn no_operation_that_takes_too_long_is_final(world: &World, target: &str) {
    is_served(world, target, "before");
    let before = held(world);
    let operations = operations_of_a_boot(world);
    for operation in 0..operations {
        let why = format!("operation {operation} of {operations}");
        world.crash_after(0, 0);
        answers(world, Some(operation));
        world.restart();
        world.wait(SOON);
        // Not only once.
        world.wait(LONG * 3);
        answers(world, None);
        world.wait(LONG * 2);
        is_served(world, target, &why);
    }
    assert_eq!(held(world), before);
    world.no_mistakes();
}

#[test]
fn a_controller_is_met_however_long_pciback_takes_after_a_crash() {
    no_operation_that_takes_too_long_is_final(&nvme_world(Setup::default()), NVME);
}

#[test]
fn a_virtio_device_is_met_however_long_pciback_takes_after_a_crash() {
    no_operation_that_takes_too_long_is_final(&virtio_world(Setup::default()), VIRTIO);
}

/// What the boot before has left at work is quietened before a driver has it, also if it is met late.
#[test]
fn a_function_that_is_met_late_after_a_crash_is_quietened_first() {
    // Identity and class are read; bus mastering is read and forbidden; both kinds of messages are disabled.
    const OPERATIONS: usize = 6;
    for operation in 0..OPERATIONS {
        let world = nvme_world(Setup::default());
        let function = &world.nvme.as_ref().expect("it has a controller").function;
        let at_work = || (function.is_master(), function.messages() > 0);
        is_served(&world, NVME, "before");
        assert_eq!(at_work(), (true, true));
        world.crash_after(0, 0);
        answers(&world, Some(operation));
        world.restart();
        world.wait(LONG * 2);
        assert_eq!(at_work(), (operation <= 3, operation <= 4), "{operation}");
        // The operation that was given up is done, and all of them are done anew: mastering need not be forbidden twice.
        let all = OPERATIONS - usize::from(operation >= 3);
        answers(&world, Some(1 + all));
        world.wait(LONG * 2);
        assert_eq!(at_work(), (false, false), "{operation}");
        answers(&world, None);
        world.wait(LONG * 2);
        is_served(&world, NVME, "later");
        world.no_mistakes();
    }
}
