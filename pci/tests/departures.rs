//! Functions that are taken away, and a backend that goes.

use crate::journal::lines_of;
use crate::machine::{Machine, second, states};
use bulkhead_pci::{Departure, OperationError, PciError};
use bulkhead_xen_sim::pci::FunctionConfig;
use bulkhead_xen_sim::pci::toolstack::{backend_path, frontend_path};
use std::time::Duration;

#[test]
fn a_function_is_given_back_when_its_driver_has_dropped_all_of_it() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default(), second()]);
    let function = machine.take_named("03:00.0");
    let (function, registers, vectors) = machine.finish(async move {
        let vectors = function.enable_interrupts(2).await.expect("interrupts");
        let mastering = function.set_bus_mastering(true).await;
        mastering.expect("pciback passes that on");
        let registers = function.open_registers(0, 0..0x1000).await;
        (function, registers.expect("registers"), vectors)
    });
    let interrupt = vectors.get(1).bind(&machine.handle_of(1)).expect("bound");
    assert_eq!(
        (functions[0].is_master(), functions[0].messages()),
        (true, 2)
    );
    machine.sim.detach_function(&machine.domain, &functions[0]);
    machine.run();
    assert_eq!(function.departing(), Some(Departure::Detached));
    assert_eq!(registers.read32(0), u32::MAX, "Xen has it already");
    // Each part of it keeps it, on whatever vCPU that is.
    for part in [
        Box::new(function) as Box<dyn std::any::Any>,
        Box::new(registers),
        Box::new(vectors),
    ] {
        assert_eq!(machine.states(), states("7", "4"));
        drop(part);
        machine.run();
    }
    assert_eq!(machine.states(), states("7", "4"));
    drop(interrupt);
    machine.run();
    assert_eq!(machine.states(), states("4", "4"));
    assert_eq!(
        (functions[0].is_master(), functions[0].messages()),
        (false, 0)
    );
    assert!(machine.sim.finish_detach(&machine.domain, &functions[0]));
    machine.run();
    assert_eq!(machine.domain.mapped_registers(), 0);
    // The other one has another number now, and goes on.
    let other = machine.take_named("0001:05:1f.7");
    assert_eq!(other.departing(), None);
    let class = machine.finish(async move { other.config().read32(8).await });
    assert_eq!(class, Ok(0x0108_0202));
    // It may come back.
    machine.attach(&[&functions[0]]);
    assert_eq!(machine.names(), ["03:00.0"]);
}

#[test]
fn a_driver_is_woken_when_its_function_is_to_go() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let function = machine.take();
    let left = machine.start(async move { function.departure().await });
    assert!(left.borrow().is_none());
    machine.sim.detach_function(&machine.domain, &functions[0]);
    machine.run();
    assert_eq!(left.take(), Some(Departure::Detached));
    assert_eq!(machine.states(), states("4", "4"));
    assert!(machine.sim.finish_detach(&machine.domain, &functions[0]));
}

#[test]
fn a_function_in_use_is_kept_as_long_as_it_is() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default(), second()]);
    let function = machine.take_named("03:00.0");
    machine.sim.detach_function(&machine.domain, &functions[0]);
    machine.pass(Duration::from_secs(10));
    let gave_up = !machine.sim.finish_detach(&machine.domain, &functions[0]);
    assert!(gave_up, "libxl waits no longer");
    machine.pass(Duration::from_secs(600));
    assert_eq!(machine.states(), states("7", "4"));
    // The other one is served meanwhile.
    let other = machine.take_named("0001:05:1f.7");
    let class = machine.finish(async move { other.config().read32(8).await });
    assert_eq!(class, Ok(0x0108_0202));
    drop(function);
    machine.run();
    assert_eq!(machine.states(), states("4", "4"));
}

#[test]
fn a_function_that_no_driver_takes_can_be_detached() {
    let (machine, functions) = Machine::with(&[crate::machine::network()]);
    assert!(machine.names().is_empty());
    machine.sim.detach_function(&machine.domain, &functions[0]);
    machine.run();
    assert_eq!(machine.states(), states("4", "4"));
    assert!(machine.sim.finish_detach(&machine.domain, &functions[0]));
}

#[test]
fn a_backend_that_goes_takes_all_functions_with_it() {
    for (state, gone) in [("5", false), ("6", false), ("", true)] {
        let (machine, _) = Machine::with(&[FunctionConfig::default()]);
        let function = machine.take();
        let (ports, id) = (machine.domain.open_ports(), machine.domain.id());
        match gone {
            true => machine.sim.store().remove(&backend_path(id)),
            false => {
                let path = format!("{}/state", backend_path(id));
                machine.sim.store().write(&path, state);
            }
        }
        machine.run();
        assert_eq!(machine.states().1, "6");
        assert_eq!(function.departing(), Some(Departure::Gone));
        let (answer, opened, function) = machine.finish(async move {
            let answer = function.config().read32(0).await;
            let opened = function.open_registers(0, 0..8).await.err();
            (answer, opened, function)
        });
        assert_eq!(answer, Err(OperationError::Disconnected));
        let disconnected = PciError::Operation(OperationError::Disconnected);
        assert_eq!(opened, Some(disconnected));
        drop(function);
        machine.pass(Duration::from_secs(1));
        assert_eq!(machine.domain.open_ports(), ports - 1);
        if !gone {
            assert_eq!(machine.domain.grants_in_use(), 0);
        }
    }
}

#[test]
fn a_directory_that_is_removed_is_forgotten() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let function = machine.take();
    let id = machine.domain.id();
    machine.sim.store().remove(&frontend_path(id));
    machine.run();
    assert_eq!(function.departing(), Some(Departure::Gone));
    assert_eq!(machine.states().1, "");
    drop((function, functions));
    machine.pass(Duration::from_secs(1));
    assert_eq!(machine.domain.grants_in_use(), 0);
}

#[test]
fn a_domain_that_ends_leaves_the_function_off() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let function = machine.take();
    let vectors = machine.finish(async move {
        let vectors = function.enable_interrupts(2).await;
        let mastering = function.set_bus_mastering(true).await;
        mastering.expect("pciback passes that on");
        (function, vectors)
    });
    let id = machine.domain.id();
    machine.sim.destroy_domain(id);
    assert_eq!(functions[0].owner(), Some(id), "Xen unmaps first");
    machine.sim.release_devices(id);
    assert_eq!(functions[0].owner(), None);
    assert_eq!(
        (functions[0].is_master(), functions[0].messages()),
        (false, 0)
    );
    drop(vectors);
}

#[test]
fn a_domain_that_ends_with_functions_has_nothing_to_say_about_it() {
    let (machine, _) = Machine::with(&[FunctionConfig::default()]);
    assert_eq!(machine.domain.grants_in_use(), 1);
    let lines = lines_of(|| drop(machine));
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn the_log_names_each_function_and_its_driver() {
    let mut machine = None;
    let configs = [FunctionConfig::default(), crate::machine::network()];
    let lines = lines_of(|| machine = Some(Machine::with(&configs)));
    let expected = [
        "INFO function 03:00.0: 1b36:0010, class 010802 (NVMe controller), driver test",
        "WARN function 04:00.1: 8086:10d3, class 020000 (network controller): no driver for it",
    ];
    assert_eq!(lines, expected);
}
