//! The scenarios, by subject.

mod attaching;
mod boot;
mod crash;
mod crowd;
mod data_paths;
mod driver_life;
mod endings;
mod examples;
mod filesystem;
mod hostile;
mod lasting;
mod leaving;
mod main_job;
mod many_crashes;
mod many_restarts;
mod memory;
mod nbd;
mod nbd_addresses;
mod nbd_hang;
mod nbd_queues;
mod nbd_tls;
mod nvme;
mod nvme_panic;
mod operator;
mod options;
mod other_kernels;
mod package;
mod passed_through;
mod power_cut;
mod queues;
mod recovery;
mod refusal;
mod replaced_storage;
mod restarting;
mod runtime;
mod several;
mod stores;
mod suspension;
mod thirty_two_bit;
mod upgrade;
mod virtio;
mod volume_disks;

use crate::testbed::own_host::OwnHostScenario;
use crate::testbed::{Part, Scenario};

/// Returns the scenarios that share hosts, in the order in which they begin. The last ones of the suite are short, so that
/// all hosts are in use until the end.
fn shared() -> Vec<Scenario> {
    [
        main_job::SCENARIOS,
        filesystem::SCENARIOS,
        endings::SCENARIOS,
        crowd::SCENARIOS,
        restarting::SCENARIOS,
        attaching::SCENARIOS,
        lasting::SCENARIOS,
        volume_disks::SCENARIOS,
        nbd::SCENARIOS,
        nbd_addresses::SCENARIOS,
        nbd_hang::SCENARIOS,
        nbd_queues::SCENARIOS,
        nbd_tls::SCENARIOS,
        power_cut::SCENARIOS,
        several::SCENARIOS,
        queues::SCENARIOS,
        leaving::SCENARIOS,
        driver_life::SCENARIOS,
        recovery::SCENARIOS,
        many_restarts::SCENARIOS,
        many_crashes::SCENARIOS,
        upgrade::SCENARIOS,
        replaced_storage::SCENARIOS,
        operator::SCENARIOS,
        package::SCENARIOS,
        examples::SCENARIOS,
        memory::SCENARIOS,
        suspension::SCENARIOS,
        refusal::SCENARIOS,
        hostile::SCENARIOS,
        data_paths::SCENARIOS,
        options::SCENARIOS,
        other_kernels::SCENARIOS,
        boot::SCENARIOS,
        runtime::SCENARIOS,
    ]
    .concat()
}

/// Returns the scenarios that share hosts with devices of their own ([`pci::LAB`](crate::host::pci::LAB)).
fn shared_with_devices() -> Vec<Scenario> {
    [
        passed_through::SCENARIOS,
        nvme::SCENARIOS,
        nvme_panic::SCENARIOS,
        power_cut::WITH_DEVICES,
        virtio::SCENARIOS,
        recovery::WITH_DEVICES,
        many_crashes::WITH_DEVICES,
        upgrade::WITH_DEVICES,
    ]
    .concat()
}

/// Returns those of the suite if `suite`, else those that run by name only.
fn only(mut scenarios: Vec<Scenario>, suite: bool) -> Vec<Scenario> {
    scenarios.retain(|scenario| (scenario.part != Part::ByName) == suite);
    scenarios
}

/// Returns the scenarios of the suite that share hosts.
pub fn suite() -> Vec<Scenario> {
    only(shared(), true)
}

/// Returns the scenarios that share hosts and run by name only ([`Part::ByName`]).
pub fn long() -> Vec<Scenario> {
    only(shared(), false)
}

/// Returns the scenarios of the suite for hosts with devices of their own.
pub fn with_devices() -> Vec<Scenario> {
    only(shared_with_devices(), true)
}

/// Returns the scenarios of [`long`] for hosts with devices of their own.
pub fn long_with_devices() -> Vec<Scenario> {
    only(shared_with_devices(), false)
}

/// The scenarios that `cargo lab test` runs under each of the two implementations of xenstored: attaching and
/// detaching, refusals and their nodes, and the end of a driver domain in use. Everything else that scenarios test is
/// the same under both.
pub const UNDER_BOTH: &[&str] = &["detach", "refused-targets", "ends-with-guests"];

/// Returns the scenarios that run under both implementations.
pub fn under_both() -> Vec<Scenario> {
    let mut both = suite();
    both.retain(|scenario| UNDER_BOTH.contains(&scenario.name));
    both
}

/// Returns the scenarios that bring a host of their own. All of them take long.
pub fn long_own_host() -> Vec<OwnHostScenario> {
    thirty_two_bit::SCENARIOS.to_vec()
}

/// Returns the names of all scenarios.
pub fn names() -> Vec<&'static str> {
    let with_devices = with_devices().into_iter().chain(long_with_devices());
    let shared = suite().into_iter().chain(long()).chain(with_devices);
    let shared = shared.map(|scenario| scenario.name);
    let own_host = long_own_host().into_iter().map(|scenario| scenario.name);
    shared.chain(own_host).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn what_runs_under_both_is_there() {
        assert_eq!(super::under_both().len(), super::UNDER_BOTH.len());
    }

    #[test]
    fn names_are_unique_and_fit_for_a_folder() {
        let all = super::names();
        let names: BTreeSet<_> = all.iter().collect();
        assert_eq!(names.len(), all.len());
        let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(fit)));
    }
}
