//! Binding of ports, and delivery of notifications.

use crate::{DomainConfig, Hypercall, Sim, SimDomain, SimVcpu, Violation};
use bulkhead_xen::{DomId, Errno, Hypervisor, Port, VcpuId};

fn pending(hypervisor: &SimVcpu) -> Vec<Port> {
    let mut ports = Vec::new();
    hypervisor.take_pending(&mut |port| ports.push(port));
    ports
}

/// Two domains and a channel between them, nothing pending.
fn channel() -> (Sim, (SimDomain, Port), (SimDomain, Port)) {
    let sim = Sim::new();
    let (backend, frontend) = (sim.add_domain(), sim.add_domain());
    let theirs = frontend.hypervisor().alloc_unbound(backend.id()).unwrap();
    let ours = backend.hypervisor().bind_interdomain(frontend.id(), theirs);
    let ours = ours.unwrap();
    pending(&backend.hypervisor());
    pending(&frontend.hypervisor());
    (sim, (backend, ours), (frontend, theirs))
}

#[test]
fn binding_sets_the_local_end_pending() {
    let sim = Sim::new();
    let (backend, frontend) = (sim.add_domain(), sim.add_domain());
    let theirs = frontend.hypervisor().alloc_unbound(backend.id()).unwrap();
    // Sent before the other end is bound: dropped.
    assert_eq!(frontend.hypervisor().notify(theirs), Ok(()));
    let ours = backend.hypervisor().bind_interdomain(frontend.id(), theirs);
    assert_eq!(pending(&backend.hypervisor()), [ours.unwrap()]);
    assert_eq!(pending(&frontend.hypervisor()), []);
}

#[test]
fn only_the_named_domain_binds_and_only_once() {
    let sim = Sim::new();
    let (backend, frontend, other) = (sim.add_domain(), sim.add_domain(), sim.add_domain());
    let theirs = frontend.hypervisor().alloc_unbound(backend.id()).unwrap();
    let bind =
        |domain: &SimDomain, remote, port| domain.hypervisor().bind_interdomain(remote, port);
    assert_eq!(bind(&other, frontend.id(), theirs), Err(Errno::INVAL));
    assert_eq!(bind(&backend, frontend.id(), Port(77)), Err(Errno::INVAL));
    assert_eq!(bind(&backend, frontend.id(), Port(0)), Err(Errno::INVAL));
    assert_eq!(bind(&backend, DomId(77), theirs), Err(Errno::SRCH));
    assert!(bind(&backend, frontend.id(), theirs).is_ok());
    assert_eq!(bind(&backend, frontend.id(), theirs), Err(Errno::INVAL));
    sim.assert_no_violations();
}

#[test]
fn notifications_fall_together() {
    let (_sim, (backend, ours), (frontend, theirs)) = channel();
    let before = (backend.stats(), frontend.stats());
    for _ in 0..3 {
        frontend.hypervisor().notify(theirs).unwrap();
    }
    assert_eq!(pending(&backend.hypervisor()), [ours]);
    assert_eq!(pending(&backend.hypervisor()), []);
    backend.hypervisor().notify(ours).unwrap();
    assert_eq!(pending(&frontend.hypervisor()), [theirs]);
    assert_eq!((backend.stats() - before.0).notifications_received, 1);
    assert_eq!((frontend.stats() - before.1).notifications_sent, 3);
}

#[test]
fn closing_drops_what_is_pending_and_leaves_the_other_end_unbound() {
    let (sim, (backend, ours), (frontend, theirs)) = channel();
    frontend.hypervisor().notify(theirs).unwrap();
    backend.hypervisor().close_port(ours).unwrap();
    assert_eq!(pending(&backend.hypervisor()), []);
    assert_eq!(frontend.hypervisor().notify(theirs), Ok(()));
    sim.assert_no_violations();
    let again = backend.hypervisor().bind_interdomain(frontend.id(), theirs);
    assert_eq!(again, Ok(ours), "the lowest free port");

    frontend.hypervisor().close_port(theirs).unwrap();
    assert_eq!(backend.hypervisor().notify(ours), Ok(()));
    backend.hypervisor().close_port(ours).unwrap();
    sim.assert_no_violations();
    assert_eq!(backend.hypervisor().notify(ours), Err(Errno::INVAL));
    assert_eq!(backend.hypervisor().close_port(ours), Err(Errno::INVAL));
    let mistake = Violation::ClosedPort {
        domain: backend.id(),
        port: ours,
    };
    assert_eq!(sim.violations(), [mistake.clone(), mistake]);
}

#[test]
fn ports_belong_to_the_vcpu_that_bound_them() {
    let sim = Sim::new();
    let frontend = sim.add_domain();
    let backend = sim.add_domain_with(DomainConfig {
        vcpus: 2,
        ..DomainConfig::default()
    });
    let theirs = frontend.hypervisor().alloc_unbound(backend.id()).unwrap();
    let second = backend.hypervisor_of(VcpuId(1));
    assert_eq!(second.vcpu(), VcpuId(1));
    let ours = second.bind_interdomain(frontend.id(), theirs).unwrap();
    assert!(!pending(&backend.hypervisor()).contains(&ours));
    assert_eq!(pending(&second), [ours]);

    second.block(None);
    assert!(backend.is_blocked(VcpuId(1)));
    backend.hypervisor().wake_vcpu(VcpuId(1));
    assert!(!backend.is_blocked(VcpuId(1)));
    // An interrupt that came before the wait ends it, once.
    second.block(None);
    assert!(!backend.is_blocked(VcpuId(1)));
    second.block(None);
    assert!(backend.is_blocked(VcpuId(1)));
    frontend.hypervisor().notify(theirs).unwrap();
    assert!(!backend.is_blocked(VcpuId(1)));
}

#[test]
fn masked_ports_hold_their_notifications_back() {
    let (_sim, (backend, ours), (frontend, theirs)) = channel();
    backend.mask_port(ours, true);
    frontend.hypervisor().notify(theirs).unwrap();
    backend.hypervisor().block(None);
    assert!(backend.is_blocked(VcpuId(0)));
    assert_eq!(pending(&backend.hypervisor()), []);
    backend.mask_port(ours, false);
    assert!(!backend.is_blocked(VcpuId(0)));
    assert_eq!(pending(&backend.hypervisor()), [ours]);
}

#[test]
fn the_sink_may_call_the_hypervisor() {
    let (_sim, (backend, ours), (frontend, theirs)) = channel();
    frontend.hypervisor().notify(theirs).unwrap();
    let hypervisor = backend.hypervisor();
    hypervisor.take_pending(&mut |port| hypervisor.notify(port).unwrap());
    assert_eq!(pending(&frontend.hypervisor()), [theirs]);
    backend.hypervisor().close_port(ours).unwrap();
}

#[test]
fn a_domain_has_4095_ports() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    for _ in domain.open_ports()..4095 {
        domain.hypervisor().alloc_unbound(DomId(0)).unwrap();
    }
    let refused = domain.hypervisor().alloc_unbound(DomId(0));
    assert_eq!(refused, Err(Errno::NOSPC));
}

#[test]
fn hypercalls_fail_on_demand() {
    let (_sim, (backend, _), (frontend, _)) = channel();
    let (hypervisor, no_room) = (backend.hypervisor(), Errno::NOMEM);
    backend.fail_call(Hypercall::AllocUnbound, no_room, 1);
    assert_eq!(hypervisor.alloc_unbound(frontend.id()), Err(no_room));
    assert!(hypervisor.alloc_unbound(frontend.id()).is_ok());
}
