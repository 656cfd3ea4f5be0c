//! Executors of several vCPUs, each on a thread of its own.

use bulkhead_executor::{Executor, Handle, VcpuSpawner};
use bulkhead_xen::{Hypervisor, VcpuId};
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use futures_util::task::AtomicWaker;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

fn domain(vcpus: u32) -> SimDomain {
    Sim::new().add_domain_with(DomainConfig {
        vcpus,
        ..DomainConfig::default()
    })
}

/// Runs the executor until `done`. Where a real vCPU sleeps, its thread waits until the simulated
/// Xen would let it run again.
fn run(domain: &SimDomain, spawner: &VcpuSpawner<SimVcpu>, done: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    let mut executor = Executor::of(spawner, domain.hypervisor_of(spawner.vcpu()));
    while !done() {
        executor.run_until_idle();
        executor.sleep();
        while domain.is_blocked(spawner.vcpu()) && !done() {
            assert!(Instant::now() < limit, "vCPU {} sleeps", spawner.vcpu());
            thread::yield_now();
        }
    }
}

/// A count that one task waits for and another raises.
#[derive(Default)]
struct Mailbox {
    count: AtomicUsize,
    waiter: AtomicWaker,
}

impl Mailbox {
    fn post(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.waiter.wake();
    }

    async fn wait_for(&self, count: usize) {
        std::future::poll_fn(|context| {
            self.waiter.register(context.waker());
            match self.count.load(Ordering::Acquire) >= count {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// Messages go round all vCPUs; none may get lost, whether its vCPU sleeps or runs when it comes.
#[test]
fn words_go_round() {
    const VCPUS: usize = 4;
    const ROUNDS: usize = 3000;
    let domain = domain(VCPUS as u32);
    let spawners: Vec<_> = (0..VCPUS as u32)
        .map(|vcpu| VcpuSpawner::new(domain.hypervisor(), VcpuId(vcpu)))
        .collect();
    let boxes: Arc<[Mailbox; VCPUS]> = Arc::default();
    let finished = Arc::new(AtomicUsize::new(0));
    for (number, spawner) in spawners.iter().enumerate() {
        let (boxes, finished) = (boxes.clone(), finished.clone());
        spawner.send(move |handle| {
            handle.spawn(async move {
                for round in 1..=ROUNDS {
                    boxes[number].wait_for(round).await;
                    boxes[(number + 1) % VCPUS].post();
                }
                finished.fetch_add(1, Ordering::Release);
            });
        });
    }
    boxes[0].post();
    thread::scope(|scope| {
        for spawner in &spawners {
            let (domain, finished) = (&domain, &finished);
            let done = move || finished.load(Ordering::Acquire) == VCPUS;
            scope.spawn(move || run(domain, spawner, done));
        }
    });
    assert_eq!(boxes[0].count.load(Ordering::Acquire), ROUNDS + 1);
}

/// Work is sent while its vCPU runs, sleeps, or is about to.
#[test]
fn work_that_is_sent_is_done_there() {
    const WORKS: usize = 2000;
    let domain = domain(2);
    let spawner = VcpuSpawner::new(domain.hypervisor(), VcpuId(1));
    let done = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        let (domain, spawner, count) = (&domain, &spawner, &done);
        let all_done = move || count.load(Ordering::Acquire) == WORKS;
        scope.spawn(move || run(domain, spawner, all_done));
        for work in 0..WORKS {
            let done = done.clone();
            spawner.send(move |handle: &Handle<SimVcpu>| {
                assert_eq!(handle.hypervisor().vcpu(), VcpuId(1));
                // Nothing of this could go to another vCPU.
                let own = Rc::new(Cell::new(work));
                let other = handle.clone();
                handle.spawn(async move {
                    other.yield_now().await;
                    own.set(own.get() + 1);
                    done.fetch_add(1, Ordering::Release);
                });
            });
            if work % 64 == 0 {
                // Time for it to fall asleep.
                thread::sleep(Duration::from_micros(50));
            }
        }
    });
    assert_eq!(done.load(Ordering::Acquire), WORKS);
}

/// A vCPU that runs is never interrupted: neither by its own tasks nor by others.
#[test]
fn only_sleepers_are_interrupted() {
    let domain = domain(2);
    let mut executor = Executor::new(domain.hypervisor());
    let handle = executor.handle();
    let ready = Arc::new(AtomicBool::new(false));
    let seen = ready.clone();
    handle.spawn(async move {
        let mut waker = None;
        std::future::poll_fn(|context| {
            waker = Some(context.waker().clone());
            context.waker().wake_by_ref();
            match seen.load(Ordering::Acquire) {
                true => Poll::Ready(()),
                false => {
                    seen.store(true, Ordering::Release);
                    Poll::Pending
                }
            }
        })
        .await;
    });
    executor.run_until_idle();
    executor.spawner().send(|_| ());
    assert_eq!(domain.stats().wake_calls, 0);
    // Woken before it lay down: it does not.
    executor.sleep();
    assert!(!domain.is_blocked(VcpuId(0)));
    executor.run_until_idle();
    executor.sleep();
    assert!(domain.is_blocked(VcpuId(0)));
    executor.spawner().send(|_| ());
    executor.spawner().send(|_| ());
    assert!(!domain.is_blocked(VcpuId(0)));
    assert_eq!(domain.stats().wake_calls, 1, "one interrupt is enough");
}

/// A notification ends the sleep by itself: what it wakes is not woken by an interrupt again.
#[test]
fn a_notification_costs_no_interrupt() {
    let (domain, other) = {
        let sim = Sim::new();
        (sim.add_domain(), sim.add_domain())
    };
    let mut executor = Executor::new(domain.hypervisor());
    let theirs = other.hypervisor().alloc_unbound(domain.id()).unwrap();
    let ours = domain
        .hypervisor()
        .bind_interdomain(other.id(), theirs)
        .unwrap();
    let channel = executor.handle().event_channel(ours);
    let heard = Rc::new(Cell::new(0));
    let count = heard.clone();
    executor.handle().spawn(async move {
        loop {
            channel.notified().await;
            count.set(count.get() + 1);
        }
    });
    executor.run_until_idle();
    let before = heard.get();
    executor.sleep();
    assert!(domain.is_blocked(VcpuId(0)));
    other.hypervisor().notify(theirs).unwrap();
    executor.run_until_idle();
    assert_eq!((heard.get() - before, domain.stats().wake_calls), (1, 0));
}
