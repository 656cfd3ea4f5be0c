//! Interrupts of functions: which kind is enabled, and where each arrives.

use crate::machine::{Machine, TIMEOUT, VCPUS};
use bulkhead_pci::{Delivery, Function, Interrupt, OperationError, PciError, Vectors};
use bulkhead_xen::{Errno, Interrupts, Pirq};
use bulkhead_xen_sim::SimVcpu;
use bulkhead_xen_sim::pci::{FunctionConfig, SimFunction};
use std::cell::Cell;
use std::rc::Rc;

/// A machine with one function, after its driver has asked for that many interrupts.
fn enabled(
    config: &FunctionConfig,
    wanted: usize,
) -> (
    Machine,
    SimFunction,
    Function<SimVcpu>,
    Result<Vectors, PciError>,
) {
    let (machine, mut functions) = Machine::with(std::slice::from_ref(config));
    let function = machine.take();
    let (function, vectors) = machine.finish(async move {
        let vectors = function.enable_interrupts(wanted).await;
        let mastering = function.set_bus_mastering(true).await;
        mastering.expect("pciback passes that on");
        (function, vectors)
    });
    (machine, functions.remove(0), function, vectors)
}

/// Binds an interrupt on a vCPU, and counts how often it is raised.
fn count(machine: &Machine, vectors: &Vectors, number: usize, vcpu: usize) -> Rc<Cell<usize>> {
    let handle = machine.handle_of(vcpu);
    let interrupt = Rc::new(
        vectors
            .get(number)
            .bind(&handle)
            .expect("an interrupt of ours"),
    );
    let raised = Rc::new(Cell::new(0));
    let counter = raised.clone();
    handle.spawn(async move {
        loop {
            interrupt.raised().await;
            counter.set(counter.get() + 1);
            interrupt.handled();
        }
    });
    machine.run();
    raised
}

#[test]
fn msix_has_an_interrupt_for_each_vcpu() {
    let wanted = VCPUS as usize;
    let (machine, function, _driver, vectors) = enabled(&FunctionConfig::default(), wanted);
    let vectors = vectors.expect("interrupts");
    assert_eq!(
        (vectors.delivery(), vectors.count()),
        (Delivery::Msix, wanted)
    );
    assert_eq!(function.messages(), wanted);
    let counts: Vec<_> = (0..wanted)
        .map(|number| count(&machine, &vectors, number, number))
        .collect();
    let before = machine.domain.stats();
    for (entry, times) in [(0, 1), (1, 3), (2, 2)] {
        for _ in 0..times {
            function.interrupt(entry);
            machine.run();
        }
    }
    let raised: Vec<_> = counts.iter().map(|count| count.get()).collect();
    assert_eq!(raised, [1, 3, 2]);
    assert_eq!((machine.domain.stats() - before).eoi_calls, 0);
    // An entry that is not enabled interrupts nobody.
    function.interrupt(3);
    assert!(!machine.sim.run_until_idle(|| false));
}

#[test]
fn no_more_interrupts_than_the_table_has() {
    let (_machine, _, _driver, vectors) = enabled(&FunctionConfig::default(), 1000);
    assert_eq!(vectors.expect("interrupts").count(), 65);
}

#[test]
fn an_interrupt_is_bound_once_and_only_by_its_domain() {
    let (machine, _, _driver, vectors) = enabled(&FunctionConfig::default(), 2);
    let vectors = vectors.expect("interrupts");
    let (first, handle) = (vectors.get(0), machine.handle());
    let bound = first.bind(&handle).expect("bound");
    assert_eq!(first.bind(&handle).err(), Some(Errno::EXIST));
    assert_eq!(vectors.get(2).bind(&handle).err(), Some(Errno::EXIST));
    drop(bound);
    let again = first.bind(&handle);
    assert!(again.is_ok());
    let hypervisor = machine.domain.hypervisor();
    let unknown = hypervisor.bind_pirq(Pirq(first.pirq().0 + 2), false);
    assert_eq!(unknown, Err(Errno::PERM));
    let theirs = machine
        .sim
        .dom0()
        .hypervisor()
        .bind_pirq(first.pirq(), false);
    assert_eq!(theirs, Err(Errno::PERM));
    let guest = machine.sim.add_domain();
    let refused = guest.hypervisor().bind_pirq(first.pirq(), false);
    assert_eq!(refused, Err(Errno::NOSYS));
}

#[test]
fn msix_that_dom0_has_not_prepared_is_not_enabled() {
    let config = FunctionConfig {
        prepared: false,
        msi: true,
        ..FunctionConfig::default()
    };
    // That it would end the domain, the machine notes.
    let (machine, function, _driver, vectors) = enabled(&config, 4);
    let vectors = vectors.expect("interrupts");
    assert_eq!((vectors.delivery(), vectors.count()), (Delivery::Msi, 1));
    assert_eq!(function.messages(), 1);
    assert_eq!(machine.domain.mapped_registers(), 0);
}

#[test]
fn msi_and_lines_are_ended_where_that_is_needed() {
    let msi = FunctionConfig {
        msix: None,
        msi: true,
        ..FunctionConfig::default()
    };
    let line = FunctionConfig {
        msix: None,
        ..FunctionConfig::default()
    };
    for (config, delivery) in [(msi, Delivery::Msi), (line, Delivery::Line)] {
        let (machine, function, _driver, vectors) = enabled(&config, 4);
        let vectors = vectors.expect("interrupts");
        assert_eq!((vectors.delivery(), vectors.count()), (delivery, 1));
        let count = count(&machine, &vectors, 3, 1);
        for round in 1..=3 {
            function.interrupt(0);
            machine.run();
            assert_eq!(count.get(), round);
            assert_eq!(machine.domain.stats().eoi_calls, round as u64);
        }
        // Xen holds it back until it was ended, and has it once more then.
        function.interrupt(0);
        function.interrupt(0);
        machine.run();
        assert_eq!(count.get(), 5);
    }
}

#[test]
fn a_function_without_interrupts_is_polled() {
    let config = FunctionConfig {
        msix: None,
        line: false,
        ..FunctionConfig::default()
    };
    let (_machine, _, _driver, vectors) = enabled(&config, 4);
    assert_eq!(vectors.err(), Some(PciError::NoInterrupts));
}

#[test]
fn interrupts_that_make_no_sense_are_not_used() {
    for vectors in [vec![0, 70], vec![70, 70], vec![]] {
        let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
        let id = machine.domain.id();
        machine
            .sim
            .pciback(id, |pciback| pciback.vectors = Some(vectors));
        let function = machine.take();
        let vectors = machine.finish(async move { function.enable_interrupts(2).await });
        assert_eq!(vectors.expect("interrupts").delivery(), Delivery::Line);
        assert_eq!(functions[0].messages(), 0, "disabled again");
    }
}

#[test]
fn interrupts_are_enabled_once() {
    let (machine, _, driver, vectors) = enabled(&FunctionConfig::default(), 2);
    assert_eq!(vectors.expect("interrupts").count(), 2);
    let again = machine.finish(async move { driver.enable_interrupts(2).await });
    assert_eq!(again.err(), Some(PciError::Enabled));
}

#[test]
fn messages_that_were_enabled_too_late_are_enabled_anew() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    let preparing = function.clone();
    machine.finish(async move {
        preparing.enable().await.expect("enabled");
        preparing.capabilities().await.expect("a list");
        preparing.bar(0).await.expect("a BAR");
    });
    // The fourth operation, which enables MSI-X, is done when nobody waits for it any more.
    let enabling = function.clone();
    machine
        .sim
        .pciback(id, |pciback| pciback.stall_after = Some(3));
    let first = machine.start(async move { enabling.enable_interrupts(2).await.err() });
    machine.pass(TIMEOUT);
    let timed_out = PciError::Operation(OperationError::TimedOut);
    assert_eq!(first.take(), Some(Some(timed_out)));
    machine.sim.pciback(id, |pciback| pciback.stalled = false);
    machine.run();
    assert_eq!(functions[0].messages(), 2);
    let vectors = machine.finish(async move { function.enable_interrupts(3).await });
    let vectors = vectors.expect("interrupts");
    assert_eq!((vectors.delivery(), vectors.count()), (Delivery::Msix, 3));
    assert_eq!(functions[0].messages(), 3);
}

#[test]
fn pciback_that_refuses_msix_leaves_the_line() {
    let (machine, _) = Machine::with(&[FunctionConfig::default()]);
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    let preparing = function.clone();
    machine.finish(async move {
        preparing.enable().await.expect("enabled");
        preparing.capabilities().await.expect("a list");
        preparing.bar(0).await.expect("a BAR");
    });
    // Of COMMAND, the places of the table and the pending bits, and MSI-X itself, the last fails.
    let errors = [0, 0, 0, -28];
    machine
        .sim
        .pciback(id, |pciback| pciback.errors.extend(errors));
    let vectors = machine.finish(async move { function.enable_interrupts(2).await });
    assert_eq!(vectors.expect("interrupts").delivery(), Delivery::Line);
}

#[test]
fn a_masked_interrupt_waits() {
    let (machine, function, _driver, vectors) = enabled(&FunctionConfig::default(), 1);
    let vectors = vectors.expect("interrupts");
    let bound = vectors.get(0).bind(&machine.handle());
    let interrupt: Rc<Interrupt<SimVcpu>> = Rc::new(bound.expect("bound"));
    interrupt.mask();
    let waiting = interrupt.clone();
    let raised = machine.start(async move { waiting.raised().await });
    function.interrupt(0);
    machine.run();
    assert!(raised.borrow().is_none());
    interrupt.unmask();
    machine.run();
    assert!(raised.borrow().is_some());
}
