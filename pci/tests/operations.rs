//! Operations that pciback is asked for: one at a time, within a time, and its answers.

use crate::machine::{Machine, TIMEOUT};
use bulkhead_pci::{OperationError, PciError};
use bulkhead_xen::Errno;
use bulkhead_xen_sim::pci::FunctionConfig;
use std::rc::Rc;
use std::time::Duration;

fn machine() -> Machine {
    Machine::with(&[FunctionConfig::default()]).0
}

#[test]
fn answers_are_told_apart() {
    let machine = machine();
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    for (err, expected) in [
        (-1, OperationError::NotFound),
        (-2, OperationError::InvalidOffset),
        (-3, OperationError::AccessDenied),
        (-4, OperationError::NotImplemented),
        (-5, OperationError::Failed),
        (-22, OperationError::Errno(Errno::INVAL)),
        (-114, OperationError::Errno(Errno::ALREADY)),
        (7, OperationError::Meaningless(7)),
    ] {
        machine
            .sim
            .pciback(id, |pciback| pciback.errors.push_back(err));
        let asking = function.clone();
        let answer = machine.finish(async move { asking.config().read32(0).await });
        assert_eq!(answer, Err(expected));
    }
    let asking = function.clone();
    let odd = machine.finish(async move { asking.config().read32(2).await });
    assert_eq!(odd, Err(OperationError::InvalidOffset));
    let class = machine.finish(async move { function.config().read16(10).await });
    assert_eq!(class, Ok(0x0108));
}

#[test]
fn two_tasks_have_their_own_answers() {
    let machine = machine();
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    machine.sim.pciback(id, |pciback| pciback.stalled = true);
    let offsets = [0_u16, 8, 0x60, 0x64, 0x10];
    let asked: Vec<_> = offsets
        .map(|offset| {
            let function = function.clone();
            machine.start(async move { function.config().read32(offset).await })
        })
        .into();
    machine.pass(TIMEOUT / 2);
    assert!(asked.iter().all(|answer| answer.borrow().is_none()));
    machine.sim.pciback(id, |pciback| pciback.stalled = false);
    machine.run();
    let answers: Vec<_> = asked
        .iter()
        .map(|answer| answer.take().expect("answered"))
        .collect();
    let expected = [0x0010_1b36, 0x0108_0202, 0x0040_0011, 0x2000, 0xc000_0004].map(Ok);
    assert_eq!(answers, expected);
}

#[test]
fn an_operation_that_takes_too_long_is_given_up_and_its_answer_is_nobody_elses() {
    let machine = machine();
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    machine.sim.pciback(id, |pciback| pciback.stalled = true);
    let asking = function.clone();
    let first = machine.start(async move { asking.config().read32(0).await });
    machine.pass(TIMEOUT - Duration::from_millis(1));
    assert!(first.borrow().is_none());
    machine.pass(Duration::from_millis(1));
    assert_eq!(first.take(), Some(Err(OperationError::TimedOut)));
    // The next one waits for pciback to have done with it.
    let asking = function.clone();
    let second = machine.start(async move { asking.config().read32(8).await });
    machine.pass(TIMEOUT / 2);
    assert!(second.borrow().is_none());
    machine.sim.pciback(id, |pciback| pciback.stalled = false);
    machine.run();
    assert_eq!(second.take(), Some(Ok(0x0108_0202)));
    // And is given up in its turn.
    machine.sim.pciback(id, |pciback| pciback.stalled = true);
    let asking = function.clone();
    let third = machine.start(async move { asking.config().read32(0).await });
    machine.pass(TIMEOUT);
    let fourth = machine.start(async move { function.config().read32(8).await });
    machine.pass(TIMEOUT);
    assert_eq!(third.take(), Some(Err(OperationError::TimedOut)));
    assert_eq!(fourth.take(), Some(Err(OperationError::TimedOut)));
}

#[test]
fn a_task_that_gives_up_by_itself_leaves_the_channel_to_others() {
    let machine = machine();
    let id = machine.domain.id();
    let function = Rc::new(machine.take());
    machine.sim.pciback(id, |pciback| pciback.stalled = true);
    let asking = function.clone();
    let task = machine.handle().spawn(async move {
        let answer = asking.config().read32(0).await;
        panic!("answered: {answer:?}");
    });
    machine.run();
    task.stop();
    machine.run();
    let next = machine.start(async move { function.config().read32(8).await });
    machine.sim.pciback(id, |pciback| pciback.stalled = false);
    machine.run();
    assert_eq!(next.take(), Some(Ok(0x0108_0202)));
}

#[test]
fn an_error_that_a_function_reports_is_answered_and_nothing_else_happens() {
    let machine = machine();
    let id = machine.domain.id();
    let function = machine.take();
    machine.sim.report_error(id);
    machine.run();
    let result = machine.sim.pciback(id, |pciback| pciback.error_result);
    assert_eq!(result, Some(1), "PCI_ERS_RESULT_NONE");
    assert_eq!(function.departing(), None);
    let answer = machine.finish(async move { function.config().read32(8).await });
    assert_eq!(answer, Ok(0x0108_0202));
}

#[test]
fn a_function_that_does_not_answer_at_boot_is_left_alone() {
    let machine = Machine::new();
    let silent = machine.add(&FunctionConfig::default());
    silent.set_config(0, u32::MAX);
    machine.attach(&[&silent]);
    assert!(machine.names().is_empty());
    let second = machine.add(&crate::machine::second());
    machine.attach(&[&second]);
    assert_eq!(machine.names(), ["0001:05:1f.7"]);
    let function = machine.take();
    let missing = machine.finish(async move { function.bar(2).await });
    assert!(matches!(missing, Err(PciError::Bar(_))), "{missing:?}");
}
