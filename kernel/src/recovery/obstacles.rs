//! Reasons why a restart would be impossible. Once there is one of these, a crash of the domain is final.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A reason why a crash is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Obstacle {
    /// A page is mapped for a PCI device, and there is no memory to remember that.
    Devices = 1,
    /// Memory went to Xen or to another domain, or was never there.
    Memory = 2,
    /// An image has memory beside that of the ramdisk.
    Growth = 4,
    /// There are other vCPUs that a restart could not start again.
    Vcpus = 8,
}

static FOUND: AtomicU32 = AtomicU32::new(0);

/// True once restarts are enabled, so that the first obstacle is logged.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Makes the first obstacle that comes from now on be logged: until then, a crash is not final.
pub fn tell() {
    TOLD.store(true, Ordering::Relaxed);
}

/// Notes an obstacle, for good.
pub fn add(obstacle: Obstacle) {
    let before = FOUND.fetch_or(obstacle as u32, Ordering::Relaxed);
    if before == 0
        && TOLD.load(Ordering::Relaxed)
        && let Some(reason) = first()
    {
        log::info!("from now on, a crash ends this domain: {reason}");
    }
}

/// Returns one of the obstacles, in words.
pub fn first() -> Option<&'static str> {
    let found = FOUND.load(Ordering::Relaxed);
    let reasons = [
        (
            Obstacle::Devices,
            "there is no memory to remember what is mapped for its PCI devices",
        ),
        (Obstacle::Memory, "memory was given back to Xen"),
        (Obstacle::Growth, "an image has grown"),
        (Obstacle::Vcpus, "more than one vCPU runs"),
    ];
    let reason = reasons.iter().find(|(one, _)| found & *one as u32 != 0);
    reason.map(|(_, text)| *text)
}
