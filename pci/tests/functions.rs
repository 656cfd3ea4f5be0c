//! Functions that a domain is given, from its start on and later.

use crate::machine::{Machine, TIMEOUT, network, second, states};
use bulkhead_pci::{COMMAND_MASTER, MSIX};
use bulkhead_xen::{DmaMemory, Errno, Mfn};
use bulkhead_xen_sim::Hypercall;
use bulkhead_xen_sim::pci::FunctionConfig;
use std::time::Duration;

#[test]
fn functions_are_found_at_boot_and_named_as_in_dom0() {
    let configs = [FunctionConfig::default(), network(), second()];
    let (machine, _) = Machine::with(&configs);
    assert_eq!(machine.states(), states("4", "4"));
    assert_eq!(machine.names(), ["03:00.0", "0001:05:1f.7"]);
    let function = machine.take_named("03:00.0");
    assert_eq!(
        function.identity().to_string(),
        "1b36:0010, class 010802 (NVMe controller)"
    );
    assert_eq!(function.departing(), None);
}

#[test]
fn a_domain_without_functions_shares_nothing() {
    let machine = Machine::new();
    assert_eq!(machine.domain.grants_in_use(), 0);
    let ports = machine.domain.open_ports();
    let function = machine.add(&FunctionConfig::default());
    machine.attach(&[&function]);
    assert_eq!(machine.domain.open_ports(), ports + 1);
    assert_eq!(machine.domain.grants_in_use(), 1);
}

#[test]
fn functions_are_found_when_they_are_attached_later() {
    let machine = Machine::new();
    assert!(machine.names().is_empty());
    let first = machine.add(&FunctionConfig::default());
    machine.attach(&[&first]);
    assert_eq!(machine.names(), ["03:00.0"]);
    let later = machine.add(&second());
    machine.attach(&[&later]);
    assert_eq!(machine.states(), states("4", "4"));
    assert_eq!(machine.names(), ["03:00.0", "0001:05:1f.7"]);
    let function = machine.take_named("0001:05:1f.7");
    let id = machine.finish(async move { function.config().read32(0).await });
    assert_eq!(id, Ok(0x0010_1b36));
}

#[test]
fn functions_for_which_dom0_has_no_time_are_found_later() {
    let (machine, _) = Machine::with(&[network()]);
    let id = machine.domain.id();
    machine.sim.pciback(id, |pciback| pciback.stalled = true);
    let functions = [
        machine.add(&FunctionConfig::default()),
        machine.add(&second()),
    ];
    machine.attach(&[&functions[0], &functions[1]]);
    machine.pass(TIMEOUT);
    machine.pass(TIMEOUT);
    assert!(machine.names().is_empty());
    assert_eq!(machine.states(), states("4", "4"));
    // Not only once.
    machine.pass(TIMEOUT * 3);
    machine.sim.pciback(id, |pciback| pciback.stalled = false);
    for _ in 0..4 {
        machine.pass(TIMEOUT / 2);
    }
    assert_eq!(machine.names(), ["03:00.0", "0001:05:1f.7"]);
    // Each is met once.
    machine.pass(TIMEOUT * 2);
    assert_eq!(machine.names().len(), 2);
}

#[test]
fn a_channel_for_which_there_is_no_room_is_made_later() {
    let machine = Machine::new();
    let full = Errno::NOSPC;
    machine.domain.fail_call(Hypercall::AllocUnbound, full, 20);
    machine.attach(&[&machine.add(&FunctionConfig::default())]);
    assert!(machine.names().is_empty());
    for _ in 0..20 {
        machine.pass(Duration::from_secs(10));
    }
    assert_eq!(machine.names(), ["03:00.0"]);
}

#[test]
fn a_function_accesses_memory_as_the_iommu_has_it() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let function = machine.take();
    let page = machine.domain.alloc_page();
    let address = machine.domain.hypervisor().dma_addr(page.as_ptr());
    let address = address.expect("own memory");
    let function = machine.finish(async move {
        function.enable_interrupts(2).await.expect("interrupts");
        function
    });
    let refused = functions[0].read(address, &mut [0]);
    assert!(refused.is_err(), "bus mastering is off");
    let function = machine.finish(async move {
        let mastering = function.set_bus_mastering(true).await;
        mastering.expect("pciback passes that on");
        function
    });
    functions[0].write(address, &[7]).expect("own memory");
    // SAFETY: a page of the domain's, which nothing else uses.
    assert_eq!(unsafe { page.read_volatile() }, 7);
    let other = machine.sim.dom0().alloc_page();
    let frame = Mfn(machine.sim.dom0().frame_of(other).0);
    let theirs = frame.dma_addr().expect("not page 0");
    assert!(functions[0].write(theirs, &[7]).is_err());
    assert_eq!(machine.domain.violations().len(), 1);
    drop(function);
    // That was the test's mistake, not the domain's.
    machine.allow_violations();
}

#[test]
fn capabilities_are_listed_once_however_they_are_linked() {
    let (machine, functions) = Machine::with(&[FunctionConfig {
        msi: true,
        ..FunctionConfig::default()
    }]);
    // MSI-X at 0x60 goes back to MSI at 0x40.
    let head = functions[0].config(0x60);
    functions[0].set_config(0x60, head | 0x4000);
    let function = machine.take();
    let found = machine.finish(async move {
        let found = function.capabilities().await.expect("a list");
        (found, function)
    });
    let (found, function) = found;
    assert_eq!(found.len(), 2);
    assert!(found.iter().any(|capability| capability.id == MSIX));
    let command = machine.finish(async move { function.config().read16(4).await });
    assert_eq!(command.expect("a register") & COMMAND_MASTER, 0);
}
