//! The domain's clock: system time, calculated from the processor's counter by the rules of xen.h.

use bulkhead_xen::Instant;
use bulkhead_xen::abi::shared_info::{SharedInfo, VcpuTimeInfo};
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

/// Returns the system time at the counter value `tsc`, by one consistent copy of the time page.
///
/// The counter may be a little older than the page (it was read on another processor, or before
/// an update): the result is then before the page's own time.
pub fn instant_at(info: &VcpuTimeInfo, tsc: u64) -> Instant {
    let scale = |ticks: u64| {
        let shifted = if info.tsc_shift >= 0 {
            u128::from(ticks) << info.tsc_shift
        } else {
            u128::from(ticks) >> info.tsc_shift.unsigned_abs()
        };
        ((shifted * u128::from(info.tsc_to_system_mul)) >> 32) as u64
    };
    let ticks = tsc.wrapping_sub(info.tsc_timestamp) as i64;
    Instant(if ticks >= 0 {
        info.system_time.wrapping_add(scale(ticks as u64))
    } else {
        info.system_time.saturating_sub(scale(ticks.unsigned_abs()))
    })
}

/// Returns a consistent copy of a time page, together with a counter value read within it.
///
/// # Safety
/// `page` points at a `vcpu_time_info` that Xen keeps up to date for the calling vCPU.
pub unsafe fn sample(page: *const VcpuTimeInfo, counter: impl Fn() -> u64) -> (VcpuTimeInfo, u64) {
    loop {
        // SAFETY: by the contract; volatile, because Xen writes it meanwhile.
        let before = unsafe { (&raw const (*page).version).read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above. What is torn is thrown away below.
        let copy = unsafe { page.read_volatile() };
        let tsc = counter();
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let after = unsafe { (&raw const (*page).version).read_volatile() };
        if before == after && before & 1 == 0 {
            return (copy, tsc);
        }
        core::hint::spin_loop();
    }
}

/// Returns the time of day at system time 0, UTC, as the time since the beginning of 1970, by one consistent copy.
///
/// # Safety
/// `page` points at a `shared_info` that Xen keeps up to date.
pub unsafe fn wall_clock_at_zero(page: *const SharedInfo) -> Duration {
    loop {
        // SAFETY: by the contract; volatile, because Xen writes it meanwhile.
        let before = unsafe { (&raw const (*page).wc_version).read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above. What is torn is thrown away below.
        let (low, high, nanoseconds) = unsafe {
            (
                (&raw const (*page).wc_sec).read_volatile(),
                (&raw const (*page).wc_sec_hi).read_volatile(),
                (&raw const (*page).wc_nsec).read_volatile(),
            )
        };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let after = unsafe { (&raw const (*page).wc_version).read_volatile() };
        if before == after && before & 1 == 0 {
            let seconds = u64::from(high) << 32 | u64::from(low);
            return Duration::from_secs(seconds)
                .saturating_add(Duration::from_nanos(nanoseconds.into()));
        }
        core::hint::spin_loop();
    }
}

/// Returns the processor's time stamp counter, which is not read before the loads that precede it.
pub fn counter() -> u64 {
    // SAFETY: plain instructions of every x86-64 processor; Xen lets guests use them.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    fn page(shift: i8, mul: u32) -> VcpuTimeInfo {
        VcpuTimeInfo {
            version: 2,
            tsc_timestamp: 1_000_000,
            system_time: 5_000_000_000,
            tsc_to_system_mul: mul,
            tsc_shift: shift,
            ..VcpuTimeInfo::default()
        }
    }

    #[test]
    fn a_gigahertz_counter_counts_nanoseconds() {
        // 2^31 / 2^32 with a shift of one to the left: one nanosecond per tick.
        let page = page(1, 1 << 31);
        assert_eq!(instant_at(&page, 1_000_000), Instant(5_000_000_000));
        assert_eq!(instant_at(&page, 1_000_123), Instant(5_000_000_123));
        assert_eq!(instant_at(&page, 999_900), Instant(4_999_999_900));
    }

    #[test]
    fn a_fast_counter_is_shifted_right() {
        // 4 GHz: two to the right would be a whole; one to the right leaves a factor of one half.
        let page = page(-1, 1 << 31);
        assert_eq!(instant_at(&page, 1_000_000 + 4_000), Instant(5_000_001_000));
    }

    #[test]
    fn long_uptimes_do_not_overflow() {
        let page = page(-1, 0xffff_ffff);
        let year_of_ticks = 365 * 24 * 3600 * 3_000_000_000u64;
        let at = instant_at(&page, 1_000_000 + year_of_ticks);
        assert!(at.0 > year_of_ticks / 2 && at.0 < year_of_ticks);
    }

    #[test]
    fn the_wall_clock_has_two_halves() {
        let mut page = Box::<SharedInfo>::new_zeroed();
        // SAFETY: a page of zeros is one.
        let info = unsafe { page.assume_init_mut() };
        (info.wc_sec, info.wc_sec_hi, info.wc_nsec) = (5, 1, 999_999_999);
        info.wc_version = 8;
        // SAFETY: the page outlives the call.
        let time = unsafe { wall_clock_at_zero(page.as_ptr()) };
        assert_eq!(time, Duration::new((1 << 32) + 5, 999_999_999));
    }

    #[test]
    fn an_update_under_the_reader_is_read_again() {
        let shared = std::cell::UnsafeCell::new(page(0, 1));
        let reads = Cell::new(0);
        let counter = || {
            reads.set(reads.get() + 1);
            if reads.get() == 1 {
                // Xen updates the page in the middle of the first try.
                // SAFETY: a single thread, and no reference to the cell is alive.
                unsafe {
                    (*shared.get()).version = 4;
                    (*shared.get()).system_time = 7;
                }
            }
            42
        };
        // SAFETY: the cell outlives the call.
        let (copy, tsc) = unsafe { sample(shared.get(), counter) };
        assert_eq!((copy.system_time, tsc, reads.get()), (7, 42, 2));
    }
}
