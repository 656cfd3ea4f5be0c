//! Disks that answer when a test lets them.

use super::{Setup, World};
use bulkhead_blkback::engine::DataPath;
use bulkhead_images::testing::{Delayed, Layer};
use bulkhead_xen_sim::xenstore::toolstack::Vbd;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The devices behind disks that answer late, until the disk is detached: holding on to one here keeps its image open.
#[derive(Clone, Default)]
pub struct LateDisks(Rc<RefCell<Vec<(String, Delayed)>>>);

impl LateDisks {
    /// Adds a device that was opened for that owner.
    pub fn add(&self, owner: &str, disk: Delayed) {
        self.0.borrow_mut().push((owner.to_string(), disk));
    }

    /// Returns the device that was opened last.
    pub fn last(&self) -> Delayed {
        let disks = self.0.borrow();
        disks.last().expect("a disk is attached").1.clone()
    }

    /// Returns the device behind a disk, if that is a late one.
    pub fn of(&self, vbd: &Vbd) -> Option<Delayed> {
        let disks = self.0.borrow();
        let disk = disks.iter().rfind(|(owner, _)| is_of(owner, vbd));
        disk.map(|(_, delayed)| delayed.clone())
    }

    /// Lets go of the store behind a disk.
    pub fn forget(&self, vbd: &Vbd) {
        self.0.borrow_mut().retain(|(owner, _)| !is_of(owner, vbd));
    }
}

/// Returns whether the backend names the owner of the disk's image so.
fn is_of(owner: &str, vbd: &Vbd) -> bool {
    owner.starts_with(&format!("vbd {}/{} ", vbd.frontend, vbd.device_number()))
}

impl World {
    /// Returns a machine where requests to every disk named `xvdd` are held back until the test lets them through.
    pub fn with_late_disks() -> (World, LateDisks) {
        World::with_late_disks_on(DataPath::Auto)
    }

    /// Returns such a machine, with one way to guests' pages.
    pub fn with_late_disks_on(data_path: DataPath) -> (World, LateDisks) {
        World::with_late_disks_and(Setup::on_path(data_path))
    }

    /// Returns such a machine with the configuration `setup`.
    pub fn with_late_disks_and(setup: Setup) -> (World, LateDisks) {
        let late = LateDisks::default();
        let seen = late.clone();
        let layer = Layer::new(move |device, owner| {
            if !owner.contains("xvdd") {
                return device;
            }
            let delayed = Delayed::new(device);
            seen.add(owner, delayed.clone());
            Arc::new(delayed)
        });
        let setup = Setup {
            layer: Some(layer),
            reservation: true,
            ..setup
        };
        let mut world = World::with(setup);
        world.late = late.clone();
        (world, late)
    }
}
