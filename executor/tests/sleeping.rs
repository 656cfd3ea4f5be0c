//! The end of an executor, and what it measures of its vCPU's sleeps.

use bulkhead_executor::Executor;
use bulkhead_xen::VcpuId;
use bulkhead_xen_sim::{BLOCK_COST, DomainConfig, Sim};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn a_task_that_never_rests_keeps_nobody_from_ending() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let handle = executor.handle();
    let turns = Rc::new(Cell::new(0));
    let count = turns.clone();
    handle.clone().spawn(async move {
        loop {
            count.set(count.get() + 1);
            assert!(count.get() < 1_000_000, "it goes on for ever");
            handle.yield_now().await;
        }
    });
    executor.run_until(|| turns.get() >= 3);
}

#[test]
fn only_sleeps_tell_what_a_sleep_costs() {
    let sim = Sim::new();
    let domain = sim.add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let handle = executor.handle();
    let sleeper = handle.clone();
    handle.spawn(async move {
        for _ in 0..2 {
            sleeper.sleep(MILLISECOND).await;
        }
    });
    executor.run_until_idle();
    // The time is over before the vCPU could sleep.
    sim.advance(2 * MILLISECOND);
    executor.sleep();
    assert!(!domain.is_blocked(VcpuId(0)));
    assert_eq!(executor.handle().wakeup_latency(), None);
    // Here it sleeps. The simulated clock stands still meanwhile, so it wakes before its time.
    executor.run_until_idle();
    executor.sleep();
    assert!(domain.is_blocked(VcpuId(0)));
    assert_eq!(executor.handle().wakeup_latency(), None);
}

#[test]
fn what_blocking_costs_is_processor_time_and_not_how_late_it_ends() {
    let sim = Sim::new();
    let domain = sim.add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let handle = executor.handle();
    assert_eq!(handle.block_cost(), None);
    let sleeper = handle.clone();
    handle.clone().spawn(async move {
        loop {
            sleeper.sleep(MILLISECOND).await;
        }
    });
    for _ in 0..100 {
        executor.run_until_idle();
        executor.sleep();
        // Late by far.
        sim.advance(20 * MILLISECOND);
    }
    assert_eq!(handle.block_cost(), Some(BLOCK_COST));
}
