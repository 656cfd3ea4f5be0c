//! The choice between the ways to a frontend's pages: the one that was measured to be faster while serving.

use core::time::Duration;

/// A way to the pages of one sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Map them, let the device copy, unmap them.
    Map = 0,
    /// Let the hypervisor copy.
    Copy = 1,
}

impl Method {
    fn other(self) -> Method {
        match self {
            Method::Map => Method::Copy,
            Method::Copy => Method::Map,
        }
    }
}

/// The number of sweeps of a size after which the slower way is tried again, a few times: costs change.
const TRY_AGAIN: u32 = 1024;
const TRIES: u32 = 4;
/// The number of size classes: sweeps of up to 1, 8, 64, and more pages. The fixed cost of a hypercall weighs
/// differently in each.
const SIZES: usize = 4;

/// Learns the cost of each way, and picks one.
#[derive(Debug, Default)]
pub struct CostModel {
    forced: Option<Method>,
    sizes: [Costs; SIZES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    /// The cost of a page in picoseconds, by way; 0 while unknown.
    page: [u64; 2],
    since_tried: u32,
}

impl CostModel {
    /// Returns a model that always picks the `forced` way or, if there is none, the faster one.
    pub fn new(forced: Option<Method>) -> Self {
        CostModel {
            forced,
            ..CostModel::default()
        }
    }

    /// Returns whether the model has a choice, so that costs are worth measuring.
    pub fn is_free(&self) -> bool {
        self.forced.is_none()
    }

    /// Returns the way for a sweep of `pages` pages.
    pub fn pick(&mut self, pages: usize) -> Method {
        if let Some(method) = self.forced {
            return method;
        }
        let costs = &mut self.sizes[size(pages)];
        if let Some(unknown) = [Method::Copy, Method::Map]
            .into_iter()
            .find(|&method| costs.page[method as usize] == 0)
        {
            return unknown;
        }
        let faster = match costs.page[Method::Copy as usize] <= costs.page[Method::Map as usize] {
            true => Method::Copy,
            false => Method::Map,
        };
        costs.since_tried += 1;
        if costs.since_tried > TRY_AGAIN {
            if costs.since_tried == TRY_AGAIN + TRIES {
                costs.since_tried = 0;
            }
            return faster.other();
        }
        faster
    }

    /// Learns that a sweep of `pages` pages by that way took so long.
    pub fn learn(&mut self, method: Method, pages: usize, took: Duration) {
        let page = took.as_nanos() as u64 * 1000 / pages.max(1) as u64;
        self.sizes[size(pages)].learn(method, page.max(1));
    }

    /// Notes that a way does not exist: the device has no memory to copy from.
    pub fn rule_out(&mut self, method: Method, pages: usize) {
        self.sizes[size(pages)].page[method as usize] = u64::MAX;
    }
}

impl Costs {
    fn learn(&mut self, method: Method, page: u64) {
        let known = &mut self.page[method as usize];
        *known = match *known {
            0 | u64::MAX => page,
            // A vCPU that was not scheduled meanwhile says nothing: such outliers count less.
            known if page > known => known - known / 8 + page.min(known * 4) / 8,
            known => (known + page) / 2,
        };
    }
}

fn size(pages: usize) -> usize {
    match pages {
        0..=1 => 0,
        2..=8 => 1,
        9..=64 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `sweeps` sweeps and returns the number of those that were copied.
    fn copied(model: &mut CostModel, sweeps: u32, pages: usize, map: u64, copy: u64) -> u32 {
        let mut copied = 0;
        for _ in 0..sweeps {
            let method = model.pick(pages);
            let nanos = match method {
                Method::Map => map,
                Method::Copy => copy,
            };
            copied += u32::from(method == Method::Copy);
            model.learn(method, pages, Duration::from_nanos(nanos));
        }
        copied
    }

    #[test]
    fn the_faster_way_is_taken_and_the_other_hardly_ever() {
        let mut model = CostModel::default();
        assert!(copied(&mut model, 10_000, 4, 5000, 3000) > 9_950);
        // Large sweeps are another matter.
        assert!(copied(&mut model, 10_000, 100, 5000, 9000) < 50);
        assert!(copied(&mut model, 1000, 4, 5000, 3000) > 995);
    }

    #[test]
    fn the_choice_follows_when_costs_change() {
        let mut model = CostModel::default();
        copied(&mut model, 1000, 4, 5000, 3000);
        copied(&mut model, 5000, 4, 1000, 3000);
        assert!(copied(&mut model, 1000, 4, 1000, 3000) < 10);
    }

    #[test]
    fn a_way_that_does_not_exist_is_looked_for_seldom() {
        let mut model = CostModel::default();
        let mut ruled_out = 0;
        for _ in 0..10_000 {
            match model.pick(1) {
                Method::Copy => {
                    ruled_out += 1;
                    model.rule_out(Method::Copy, 1);
                }
                Method::Map => model.learn(Method::Map, 1, Duration::from_nanos(10)),
            }
        }
        assert!(ruled_out < 45, "{ruled_out} times");
        assert_eq!(CostModel::new(Some(Method::Copy)).pick(1), Method::Copy);
    }
}
