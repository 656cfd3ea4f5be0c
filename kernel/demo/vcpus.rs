//! Several vCPUs: each runs, has memory and time of its own, wakes others and is woken.

use alloc::boxed::Box;
use alloc::vec::Vec;
use bulkhead_kernel::{Hypercalls, Machine, memory, start_vcpus, watchdog};
use bulkhead_xen::{Hypervisor, VcpuId};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// Rounds in which the word goes from the first vCPU to the last.
const ROUNDS: u32 = 1000;

/// The current turn: rounds times vCPUs, counted up.
static TURN: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
/// The time at which the turn was passed on, in nanoseconds.
static PASSED: AtomicU64 = AtomicU64::new(0);
/// The numbers of hand-overs by the time that each took: each class is up to twice as long as the one before.
static TOOK: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

/// Crashes another vCPU, for `test=vcpu-…`.
pub fn crash_elsewhere(machine: &Machine, crash: fn()) -> ! {
    start_vcpus(machine.other_vcpus(), |id| {
        Box::new(move || {
            if id == VcpuId(1) {
                crash();
            }
            sleep(Duration::from_secs(3600));
        })
    });
    loop {
        log::info!("vCPU {} goes on", Hypercalls.vcpu());
        sleep(Duration::from_millis(100));
    }
}

/// Keeps all vCPUs alive but the last one, which beats once and then hangs, for `test=vcpu-hang`.
pub fn hang_elsewhere(machine: &Machine, seconds: u32, hang: fn()) -> ! {
    watchdog::start(seconds);
    let last = VcpuId(machine.vcpus - 1);
    start_vcpus(machine.other_vcpus(), |id| {
        Box::new(move || {
            if id == last {
                watchdog::beat();
                hang();
            }
            live()
        })
    });
    live()
}

fn live() -> ! {
    loop {
        watchdog::beat();
        sleep(watchdog::interval().expect("started"));
    }
}

/// Starts all vCPUs, has them pass a turn around, and has all of them use the heap at once.
pub fn show(machine: &Machine) {
    let before = memory::statistics().free;
    let all = 1 + start_vcpus(machine.other_vcpus(), |id| {
        Box::new(move || take_part(id, machine_vcpus()))
    });
    let cost = before - memory::statistics().free;
    log::info!(
        "{all} vCPUs run, {} KiB each",
        cost / 1024 / (all.max(2) as usize - 1)
    );
    VCPUS.store(all, Ordering::Release);
    let start = Hypercalls.now();
    take_part(VcpuId(0), all);
    while DONE.load(Ordering::Acquire) < all {
        sleep(Duration::from_millis(1));
    }
    let took = Hypercalls.now().since(start);
    log::info!("{} words passed in {} us", ROUNDS * all, took.as_micros());
    for (class, count) in TOOK.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        if count > 0 {
            log::info!("less than {} us: {count}", 2 << class);
        }
    }
}

static VCPUS: AtomicU32 = AtomicU32::new(0);

fn machine_vcpus() -> u32 {
    loop {
        match VCPUS.load(Ordering::Acquire) {
            0 => core::hint::spin_loop(),
            all => return all,
        }
    }
}

fn take_part(id: VcpuId, all: u32) {
    assert_eq!(Hypercalls.vcpu(), id);
    for round in 0..ROUNDS {
        let mine = round * all + id.0;
        while TURN.load(Ordering::Acquire) != mine {
            Hypercalls.take_pending(&mut |port| log::error!("port {port} on vCPU {id}"));
            if TURN.load(Ordering::Acquire) != mine {
                Hypercalls.block(None);
            }
        }
        let now = Hypercalls.now().0;
        let micros = now.saturating_sub(PASSED.load(Ordering::Relaxed)) / 1000;
        TOOK[(micros.max(1).ilog2() as usize).min(15)].fetch_add(1, Ordering::Relaxed);
        PASSED.store(now, Ordering::Relaxed);
        TURN.store(mine + 1, Ordering::Release);
        Hypercalls.wake_vcpu(VcpuId((mine + 1) % all));
    }
    use_memory(id);
    let before = Hypercalls.now();
    sleep(Duration::from_millis(20));
    let slept = Hypercalls.now().since(before);
    log::info!(
        "vCPU {id} slept {} us, float {:.3}",
        slept.as_micros(),
        f64::from(id.0) / 3.0
    );
    DONE.fetch_add(1, Ordering::Release);
}

/// Takes and gives back memory, and checks that no other vCPU has the same memory.
fn use_memory(id: VcpuId) {
    for round in 0..200u64 {
        let mark = u64::from(id.0) << 32 | round;
        let lists: Vec<Vec<u64>> = (0..50)
            .map(|list| alloc::vec![mark; 1 + list * 17])
            .collect();
        assert!(lists.iter().flatten().all(|word| *word == mark));
        if let Some(pages) = memory::allocate_pages(8) {
            // SAFETY: fresh pages.
            unsafe {
                pages.write_bytes(round as u8, 8 * 4096);
                memory::free_pages(pages, 8);
            }
        }
    }
}

fn sleep(time: Duration) {
    let deadline = Hypercalls.now() + time;
    while Hypercalls.now() < deadline {
        Hypercalls.take_pending(&mut |_| {});
        Hypercalls.block(Some(deadline));
    }
}
