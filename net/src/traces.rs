//! Traces of connections that a server may have and this domain does not: the addresses and ports by which they are
//! ended there.
//!
//! A server does not notice a crash, and the one packet by which it learns that a connection was given up may be lost.
//! A server that has nothing to say on a connection keeps it for good, and may accept no other one as long as it does;
//! one that has read requests from it goes on with those. The trace of each connection survives a crash; those that
//! this boot has given up are remembered besides.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::net::{IpAddr, Ipv6Addr};
use core::sync::atomic::{AtomicU32, Ordering};

/// The memory of one connection that survives a crash. Zeros are no connection.
pub type Numbers = [AtomicU32; 10];

/// The trace of a connection: its own end, and the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub own: (IpAddr, u16),
    pub server: (IpAddr, u16),
}

impl Trace {
    fn numbers(&self) -> [u32; 9] {
        let mut numbers = [0; 9];
        numbers[0] = u32::from(self.own.1) << 16 | u32::from(self.server.1);
        for (place, address) in [(1, self.own.0), (5, self.server.0)] {
            let bits = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
                IpAddr::V6(address) => address.to_bits(),
            };
            for part in 0..4 {
                numbers[place + part] = (bits >> (32 * part)) as u32;
            }
        }
        numbers
    }

    fn of(numbers: [u32; 9]) -> Trace {
        let [ports, ..] = numbers;
        let address = |place: usize| {
            let parts = numbers[place..place + 4].iter().rev();
            let bits = parts.fold(0, |bits: u128, part| bits << 32 | u128::from(*part));
            Ipv6Addr::from_bits(bits).to_canonical()
        };
        Trace {
            own: (address(1), (ports >> 16) as u16),
            server: (address(5), ports as u16),
        }
    }
}

/// Returns a checksum over the numbers of a trace, which is never zero. It need not withstand forgery: only this domain
/// writes traces.
fn mark_of(numbers: &[u32; 9]) -> u32 {
    // FNV-1a, by words.
    let mix = |mark: u32, number: &u32| (mark ^ number).wrapping_mul(0x0100_0193);
    numbers.iter().fold(0x811c_9dc5, mix) | 1
}

/// A place in the memory that survives.
struct TraceSlot {
    numbers: &'static Numbers,
    /// The trace that a boot before this one has left there.
    left: Option<Trace>,
    taken: bool,
}

impl TraceSlot {
    fn new(numbers: &'static Numbers) -> TraceSlot {
        let [mark, rest @ ..] = numbers.each_ref().map(|one| one.load(Ordering::Relaxed));
        let left = (mark == mark_of(&rest)).then(|| Trace::of(rest));
        let taken = left.is_some();
        TraceSlot {
            numbers,
            left,
            taken,
        }
    }

    fn keep(&mut self, trace: &Trace) {
        self.clear();
        let numbers = trace.numbers();
        for (place, number) in self.numbers[1..].iter().zip(numbers) {
            place.store(number, Ordering::Relaxed);
        }
        // A crash finds all of it, or nothing.
        self.numbers[0].store(mark_of(&numbers), Ordering::Release);
        self.taken = true;
    }

    fn clear(&mut self) {
        self.numbers[0].store(0, Ordering::Release);
        (self.left, self.taken) = (None, false);
    }
}

/// The most connections of this boot that are remembered after they were given up: more than an export has lines, for
/// several exports. The oldest is forgotten if there are more.
const MOST_LEFT: usize = 16;

#[derive(Default)]
struct All {
    places: Vec<TraceSlot>,
    /// The connections that this boot has given up.
    left: VecDeque<Trace>,
}

/// The traces of all connections. Connections for which there is no place do not survive a crash.
#[derive(Clone, Default)]
pub struct Traces(Rc<RefCell<All>>);

impl Traces {
    /// Returns the traces in memory that survives.
    pub fn new(memory: &'static [Numbers]) -> Traces {
        Traces(Rc::new(RefCell::new(All {
            places: memory.iter().map(TraceSlot::new).collect(),
            left: VecDeque::new(),
        })))
    }

    /// Keeps the trace of a connection for as long as the result.
    pub fn keep(&self, trace: &Trace) -> Kept {
        let places = &mut self.0.borrow_mut().places;
        let free = places.iter().position(|place| !place.taken);
        if let Some(free) = free {
            places[free].keep(trace);
        }
        Kept {
            traces: self.clone(),
            trace: *trace,
            place: free,
        }
    }

    /// Returns the connections to a server that it may still have: those of a boot before this one, and those that were
    /// given up.
    pub fn left_to(&self, server: (IpAddr, u16)) -> Vec<Trace> {
        let all = self.0.borrow();
        let left = all.places.iter().filter_map(|place| place.left);
        let left = left.chain(all.left.iter().copied());
        left.filter(|trace| trace.server == server).collect()
    }

    /// Notes that the server has ended such a connection.
    pub fn forget(&self, trace: &Trace) {
        let mut all = self.0.borrow_mut();
        let places = all.places.iter_mut();
        let that = places.filter(|place| place.left == Some(*trace));
        that.for_each(TraceSlot::clear);
        all.left.retain(|other| other != trace);
    }
}

/// A trace that is kept.
pub struct Kept {
    traces: Traces,
    trace: Trace,
    place: Option<usize>,
}

impl Kept {
    /// Notes that the connection is not used any more, and that its server may not know that.
    pub fn leave(self) {
        let left = &mut self.traces.0.borrow_mut().left;
        if left.len() == MOST_LEFT {
            left.pop_front();
        }
        left.push_back(self.trace);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.traces.0.borrow_mut().places[place].clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;

    fn memory() -> &'static [Numbers] {
        Box::leak(Box::new([const { [const { AtomicU32::new(0) }; 10] }; 2]))
    }

    fn trace(own: &str, port: u16) -> Trace {
        Trace {
            own: (own.parse().expect("an address"), port),
            server: ("10.0.0.2".parse().expect("an address"), 10809),
        }
    }

    #[test]
    fn what_was_kept_is_found_by_the_next_boot_alone() {
        let memory = memory();
        let first = Traces::new(memory);
        let (one, six) = (trace("10.0.0.7", 50000), trace("fd00::7", 50001));
        let kept = first.keep(&one);
        core::mem::forget(first.keep(&six));
        drop(kept);
        core::mem::forget(first.keep(&one));
        assert_eq!(first.left_to(one.server), []);
        // There is no place for more.
        core::mem::forget(first.keep(&trace("10.0.0.7", 50002)));
        let next = Traces::new(memory);
        assert_eq!(next.left_to(one.server), [one, six]);
        let other = (one.server.0, 10810);
        assert_eq!(next.left_to(other), []);
        next.forget(&one);
        core::mem::forget(next.keep(&trace("10.0.0.7", 50003)));
        let last = Traces::new(memory);
        assert_eq!(last.left_to(one.server), [trace("10.0.0.7", 50003), six]);
    }

    #[test]
    fn what_was_left_is_found_by_the_same_boot_and_is_bounded() {
        let traces = Traces::new(memory());
        let server = trace("10.0.0.7", 0).server;
        let all: Vec<_> = (0..20)
            .map(|number| trace("10.0.0.7", 50000 + number))
            .collect();
        all.iter().for_each(|one| traces.keep(one).leave());
        assert_eq!(traces.left_to(server), all[4..]);
        traces.forget(&all[4]);
        assert_eq!(traces.left_to(server), all[5..]);
        // Its place is free again.
        assert!(traces.keep(&all[0]).place.is_some());
    }

    #[test]
    fn each_number_that_changes_is_noticed() {
        let memory = memory();
        let trace = trace("10.0.0.7", 50000);
        core::mem::forget(Traces::new(memory).keep(&trace));
        for number in &memory[0] {
            for bit in 1..32 {
                number.fetch_xor(1 << bit, Ordering::Relaxed);
                assert_eq!(Traces::new(memory).left_to(trace.server), [], "bit {bit}");
                number.fetch_xor(1 << bit, Ordering::Relaxed);
            }
        }
        assert_eq!(Traces::new(memory).left_to(trace.server), [trace]);
    }
}
