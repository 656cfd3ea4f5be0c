//! The signs of life of a vCPU, and its record of another vCPU's, by which it notices that the other one hangs.

use bulkhead_xen::VcpuId;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// The last sign of life of a vCPU, as another one has seen it.
#[derive(Debug)]
pub struct Seen {
    vcpu: AtomicU32,
    /// The number of times that the other one had come back to its work.
    beats: AtomicU32,
    /// The time for which it had run by then, in nanoseconds.
    ran: AtomicU64,
}

impl Seen {
    /// Returns a record of a vCPU of which no sign was seen yet.
    pub const fn new() -> Seen {
        Seen {
            vcpu: AtomicU32::new(u32::MAX),
            beats: AtomicU32::new(0),
            ran: AtomicU64::new(0),
        }
    }

    /// Returns whether `vcpu`, which came back `beats` times and has run for `ran` in all, has now run for
    /// `limit` without coming back. Only the vCPU that owns this record calls it.
    pub fn hangs(&self, vcpu: VcpuId, beats: u32, ran: Duration, limit: Duration) -> bool {
        let ran = ran.as_nanos() as u64;
        let same = self.vcpu.swap(vcpu.0, Ordering::Relaxed) == vcpu.0;
        let silent = self.beats.swap(beats, Ordering::Relaxed) == beats;
        if !(same && silent) {
            self.ran.store(ran, Ordering::Relaxed);
            return false;
        }
        let since = ran.saturating_sub(self.ran.load(Ordering::Relaxed));
        Duration::from_nanos(since) >= limit
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self::new()
    }
}

/// Per-vCPU state of the watchdog.
#[derive(Debug)]
pub struct Liveness {
    /// The number of times that the vCPU came back to show that it lives.
    pub beats: AtomicU32,
    /// The number of times that the vCPU woke since then.
    pub wakes: AtomicU32,
    /// The signs of life seen of its neighbour.
    pub neighbour: Seen,
}

impl Liveness {
    /// Returns the state of a vCPU that does not run yet.
    pub const fn new() -> Liveness {
        Liveness {
            beats: AtomicU32::new(0),
            wakes: AtomicU32::new(0),
            neighbour: Seen::new(),
        }
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const VCPU: VcpuId = VcpuId(1);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_vcpu_that_runs_and_does_not_come_back_hangs() {
        let seen = Seen::new();
        assert!(!seen.hangs(VCPU, 1, seconds(500), LIMIT), "seen first");
        assert!(!seen.hangs(VCPU, 1, seconds(529), LIMIT));
        assert!(seen.hangs(VCPU, 1, seconds(530), LIMIT));
    }

    #[test]
    fn a_vcpu_that_comes_back_never_hangs() {
        let seen = Seen::new();
        for beats in 1..100 {
            let ran = seconds(u64::from(beats) * 29);
            assert!(!seen.hangs(VCPU, beats, ran, LIMIT));
        }
    }

    #[test]
    fn a_vcpu_that_does_not_run_does_not_hang() {
        // The domain is paused, or the vCPU waits for a processor, however often it is looked at.
        let seen = Seen::new();
        assert!((0..1000).all(|_| !seen.hangs(VCPU, 7, seconds(3), LIMIT)));
    }

    #[test]
    fn another_neighbour_is_seen_anew() {
        let seen = Seen::new();
        seen.hangs(VCPU, 1, seconds(1), LIMIT);
        assert!(!seen.hangs(VcpuId(2), 1, seconds(100), LIMIT));
        assert!(seen.hangs(VcpuId(2), 1, seconds(130), LIMIT));
    }
}
