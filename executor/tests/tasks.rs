//! Which tasks an executor polls, and in which order.

use bulkhead_executor::{Executor, Flag};
use bulkhead_xen_sim::{DomainConfig, Sim};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Tasks of more than one group.
const TASKS: usize = 200;

#[test]
fn in_each_round_every_woken_task_is_polled_once() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    // The second time in the places of the first ones.
    for _ in 0..2 {
        let polled = Rc::new(RefCell::new(Vec::new()));
        for number in 0..TASKS {
            let (handle, polled) = (executor.handle(), polled.clone());
            executor.handle().spawn(async move {
                for _ in 0..3 {
                    polled.borrow_mut().push(number);
                    handle.yield_now().await;
                }
            });
        }
        assert!(executor.run_until_idle());
        let round: Vec<usize> = (0..TASKS).collect();
        assert_eq!(*polled.borrow(), round.repeat(3));
        assert!(!executor.run_until_idle(), "all have ended");
    }
}

#[test]
fn a_task_that_waits_is_not_polled_and_one_that_was_woken_is() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let flags: Vec<Flag> = (0..TASKS).map(|_| Flag::default()).collect();
    let ended = Rc::new(Cell::new(0));
    let polls = Rc::new(Cell::new(0));
    for flag in flags.clone() {
        let (ended, polls) = (ended.clone(), polls.clone());
        executor.handle().spawn(async move {
            let mut wait = std::pin::pin!(flag.wait());
            poll_fn(|context| {
                polls.set(polls.get() + 1);
                wait.as_mut().poll(context)
            })
            .await;
            ended.set(ended.get() + 1);
        });
    }
    executor.run_until_idle();
    assert_eq!((polls.get(), ended.get()), (TASKS, 0));
    for number in [0, 63, 64, TASKS - 1] {
        flags[number].set();
    }
    executor.run_until_idle();
    assert_eq!((polls.get(), ended.get()), (TASKS + 4, 4));
}

#[test]
fn the_waker_of_a_task_that_has_ended_harms_no_other() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let left: Rc<RefCell<Option<Waker>>> = Rc::default();
    let leaving = left.clone();
    executor.handle().spawn(poll_fn(move |context| {
        *leaving.borrow_mut() = Some(context.waker().clone());
        Poll::Ready(())
    }));
    executor.run_until_idle();
    let waker = left.take().expect("it was polled");
    waker.wake_by_ref();
    executor.run_until_idle();
    // In the same place.
    let (flag, ended) = (Flag::default(), Rc::new(Cell::new(false)));
    let (waited, told) = (flag.clone(), ended.clone());
    executor.handle().spawn(async move {
        waited.wait().await;
        told.set(true);
    });
    executor.run_until_idle();
    waker.wake();
    executor.run_until_idle();
    assert!(!ended.get(), "it waits on");
    flag.set();
    executor.run_until_idle();
    assert!(ended.get());
}

#[test]
fn a_task_that_wakes_itself_while_it_is_polled_is_polled_again() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let polls = Rc::new(Cell::new(0));
    let count = polls.clone();
    executor.handle().spawn(poll_fn(move |context| {
        count.set(count.get() + 1);
        context.waker().wake_by_ref();
        match count.get() {
            5 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }));
    executor.run_until_idle();
    assert_eq!(polls.get(), 5);
}

#[test]
fn a_task_that_is_stopped_drops_what_it_owns() {
    let domain = Sim::new().add_domain_with(DomainConfig::default());
    let mut executor = Executor::new(domain.hypervisor());
    let owned = Rc::new(());
    let held = owned.clone();
    let task = executor.handle().spawn(async move {
        let _held = held;
        Flag::default().wait().await;
    });
    executor.run_until_idle();
    assert_eq!(Rc::strong_count(&owned), 2);
    task.stop();
    executor.run_until_idle();
    assert_eq!(Rc::strong_count(&owned), 1);
}
