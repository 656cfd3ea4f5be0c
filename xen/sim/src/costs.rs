//! The time that grant operations take: none, unless a test sets one.

use super::faults::Hypercall;
use super::world::World;
use bulkhead_xen::DomId;
use std::time::Duration;

/// The time that a kind of grant operation takes: for the hypercall itself, and for each of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCost {
    /// The time for the hypercall.
    pub call: Duration,
    /// The time for each entry.
    pub entry: Duration,
}

/// The costs that tests have set.
#[derive(Default)]
pub(super) struct Costs(Vec<(DomId, Hypercall, CallCost)>);

impl Costs {
    pub(super) fn set(&mut self, caller: DomId, call: Hypercall, cost: CallCost) {
        self.0
            .retain(|(domain, other, _)| (*domain, *other) != (caller, call));
        self.0.push((caller, call, cost));
    }
}

impl World {
    /// Lets the time pass that a hypercall of so many entries takes.
    pub(super) fn spend(&mut self, caller: DomId, call: Hypercall, entries: usize) {
        let known = self
            .costs
            .0
            .iter()
            .find(|(domain, other, _)| (*domain, *other) == (caller, call));
        if let Some((_, _, cost)) = known {
            let entries = u32::try_from(entries).expect("few");
            self.now = self.now + cost.call + cost.entry * entries;
            self.wake_sleepers();
        }
    }
}
