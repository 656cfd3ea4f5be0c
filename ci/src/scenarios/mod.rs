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

use crate::testbed::Scenario;
use crate::testbed::own_host::OwnHostScenario;

/// Scenarios that show what others of the suite show, too: with the other kind of driver domain, with another store, or
/// with another way to lose and find it again. They run by name only, or with `--long`.
const BY_NAME: &[&str] = &[
    "comes-back-pvh",
    "detach-pvh",
    "discard-pvh",
    "disks-on-vcpus-pvh",
    "ends-with-guests-pv",
    "growth-pv",
    "guest-first-pv",
    "lasting-disk-pvh",
    "lasting-qdisk",
    "memory-target-pv",
    "nbds-life",
    "queues-pv",
    "rebooted-storage",
    "refused-requests-pv",
    "restart-in-place-pvh",
    "restart-in-place-vcpus-pv",
    "saved-pv-guest",
    "statistics-pvh",
    "two-guests",
];

/// Returns whether a scenario of [`plain`] is part of the suite.
fn in_suite(scenario: &Scenario) -> bool {
    !BY_NAME.contains(&scenario.name)
}

/// Returns the scenarios of the suite that share hosts, in the order in which they begin. The last ones are short, so
/// that all hosts are in use until the end.
pub fn suite() -> Vec<Scenario> {
    plain().into_iter().filter(in_suite).collect()
}

fn plain() -> Vec<Scenario> {
    [
        main_job::SCENARIOS,
        filesystem::SCENARIOS,
        endings::SCENARIOS,
        crowd::SCENARIOS,
        attaching::SCENARIOS,
        lasting::SCENARIOS,
        volume_disks::SCENARIOS,
        nbd::SCENARIOS,
        nbd_addresses::SCENARIOS,
        nbd_hang::SCENARIOS,
        nbd_tls::SCENARIOS,
        power_cut::SCENARIOS,
        several::SCENARIOS,
        queues::SCENARIOS,
        leaving::SCENARIOS,
        driver_life::SCENARIOS,
        recovery::SCENARIOS,
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

/// Returns the scenarios that show what others of the suite do, those that do more of it (more rounds, guests or disks),
/// those that need further builds, and one for which the emulation has most faults.
pub fn long() -> Vec<Scenario> {
    let mut long = plain();
    long.retain(|scenario| !in_suite(scenario));
    let more = [
        main_job::LONG,
        endings::LONG,
        restarting::LONG,
        attaching::LONG,
        crowd::LONG,
        lasting::LONG,
        nbd::LONG,
        nbd_queues::LONG,
        recovery::LONG,
        many_restarts::LONG,
        many_crashes::LONG,
        upgrade::SCENARIOS,
    ];
    long.extend(more.concat());
    long
}

/// Returns the scenarios that share hosts with devices of their own ([`pci::LAB`](crate::host::pci::LAB)).
pub fn with_devices() -> Vec<Scenario> {
    [
        passed_through::SCENARIOS,
        nvme::SCENARIOS,
        nvme_panic::SCENARIOS,
        power_cut::WITH_DEVICES,
        virtio::SCENARIOS,
    ]
    .concat()
}

/// Returns the scenarios of [`long`] for hosts with devices of their own.
pub fn long_with_devices() -> Vec<Scenario> {
    [
        nvme::LONG_WITH_DEVICES,
        recovery::LONG_WITH_DEVICES,
        many_crashes::LONG_WITH_DEVICES,
        upgrade::WITH_DEVICES,
    ]
    .concat()
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
    fn what_runs_by_name_is_there() {
        let there = |name: &&&str| super::plain().iter().any(|one| one.name == **name);
        assert!(super::BY_NAME.iter().all(|name| there(&name)));
        assert_eq!(
            super::suite().len() + super::BY_NAME.len(),
            super::plain().len()
        );
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
