//! Counters of a backend: Bulkhead's in the node `statistics` of a disk's backend directory, Linux's in
//! /proc/interrupts and in the files of xen-blkback in /sys.

use super::contestant::Contestant;
use super::field::{DEVICE, Field};
use super::guest_counts::GuestCounts;
use super::job::Job;
use super::store::Store;
use crate::host::Host;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;

/// The prefix of the names of dom0's counters, where dom0 serves the backend's own disks.
const BENEATH: &str = "beneath_";

/// A backend's counters, by Bulkhead's names for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads lines of `name value`, and adds up those of the same name. Words whose value is not a number are left out.
    pub fn parse(text: &str) -> Self {
        // xenstore-read shows the end of a line as a C program would write it.
        let text = text.replace("\\n", "\n");
        let words: Vec<&str> = text
            .split(|c: char| c.is_whitespace() || matches!(c, '=' | ':' | ','))
            .filter(|word| !word.is_empty())
            .collect();
        let mut counters = Self::default();
        for pair in words.windows(2) {
            let is_name = pair[0].starts_with(|c: char| c.is_ascii_alphabetic());
            if let (true, Ok(value)) = (is_name, pair[1].parse::<u64>()) {
                *counters.0.entry(pair[0].replace('-', "_")).or_default() += value;
            }
        }
        counters
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Adds the counters of another disk.
    pub fn add(&mut self, other: &Counters) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }

    /// Adds the counters of dom0, which serves the disks of the backend.
    fn add_beneath(&mut self, dom0: &Counters) {
        for (name, value) in &dom0.0 {
            *self.0.entry(format!("{BENEATH}{name}")).or_default() += value;
        }
    }

    fn since(&self, earlier: &Counters) -> Counters {
        let difference = |(name, value): (&String, &u64)| {
            (
                name.clone(),
                value.saturating_sub(earlier.get(name).unwrap_or(0)),
            )
        };
        Counters(self.0.iter().map(difference).collect())
    }
}

/// The cost of one operation of a job. `None`: this backend does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PerOperation {
    /// Requests that the backend found: the frontend splits large operations.
    pub requests: Option<f64>,
    /// Hypercalls of the backend except those by which it sleeps: for grants, and for notifications.
    pub hypercalls: Option<f64>,
    /// Hypercalls that mapped, unmapped or copied.
    pub grant_calls: Option<f64>,
    /// Hypercalls that copied.
    pub copy_calls: Option<f64>,
    /// Hypercalls that mapped or unmapped.
    pub remap_calls: Option<f64>,
    /// Notifications that the frontend sent, as the backend counted them.
    pub to_backend: Option<f64>,
    /// Notifications that the backend sent, as the guest counted them.
    pub to_guest: f64,
    /// Pages mapped.
    pub maps: Option<f64>,
    /// Bytes copied by the hypervisor.
    pub bytes_copied: Option<f64>,
    /// Number of times that the backend slept.
    pub sleeps: Option<f64>,
    /// Requests found by one look at the ring.
    pub per_sweep: Option<f64>,
    /// Requests that dom0 found, if the backend's own disks are dom0's.
    pub requests_beneath: Option<f64>,
    /// Notifications that the backend sent to dom0 for its own disks or its network, as dom0 counted them.
    pub notifications_beneath: Option<f64>,
    /// Packets that dom0 sent to the backend, and those that dom0 got from it, if the data is reached over a network. A
    /// packet that is to be cut into segments is one.
    pub packets_received: Option<f64>,
    /// The same in the other direction.
    pub packets_sent: Option<f64>,
    /// Writes to the doorbells of the NVMe controller behind the disk.
    pub doorbells: Option<f64>,
    /// Interrupts that the controller raised.
    pub interrupts: Option<f64>,
}

/// The counters of requests.
const REQUESTS: [&str; 5] = ["reads", "writes", "barriers", "flushes", "discards"];

/// Returns the cost of each operation between two readings of a backend's counters, between which the guests
/// counted `guests`; `None` if there was no operation.
pub fn per_operation(
    job: Job,
    before: &Counters,
    after: &Counters,
    guests: GuestCounts,
) -> Option<PerOperation> {
    let operations = job.operations(guests.sectors);
    if operations == 0.0 {
        return None;
    }
    let change = after.since(before);
    // The sum of those that are counted; nothing if none of them is.
    let sum = |names: &[&str]| {
        let known = names.iter().filter_map(|name| change.get(name));
        known.reduce(|a, b| a + b).map(|sum| sum as f64)
    };
    let per = |names: &[&str]| sum(names).map(|sum| sum / operations);
    let requests = sum(&REQUESTS);
    let beneath = REQUESTS.map(|name| format!("{BENEATH}{name}"));
    let grant_calls = per(&["map_calls", "unmap_calls", "copy_calls"]);
    let sent = per(&["notifications_sent"]);
    Some(PerOperation {
        requests: requests.map(|requests| requests / operations),
        hypercalls: grant_calls.zip(sent).map(|(calls, sent)| calls + sent),
        grant_calls,
        copy_calls: per(&["copy_calls"]),
        remap_calls: per(&["map_calls", "unmap_calls"]),
        to_backend: per(&["notifications_received"]),
        to_guest: guests.notifications as f64 / operations,
        maps: per(&["maps"]),
        bytes_copied: per(&["bytes_copied"]),
        sleeps: per(&["sleeps"]),
        per_sweep: requests
            .zip(sum(&["sweeps"]))
            .and_then(|(requests, sweeps)| (sweeps > 0.0).then(|| requests / sweeps)),
        requests_beneath: per(&beneath.each_ref().map(String::as_str)),
        notifications_beneath: per(&[&format!("{BENEATH}notifications_received")]),
        packets_received: per(&[&format!("{BENEATH}packets_received")]),
        packets_sent: per(&[&format!("{BENEATH}packets_sent")]),
        doorbells: per(&[DOORBELLS]),
        interrupts: per(&[INTERRUPTS]),
    })
}

/// The names of the counters of an NVMe controller.
const DOORBELLS: &str = "doorbells";
const INTERRUPTS: &str = "interrupts";

/// Prints Linux's counters of xen-blkback, its interrupts and its requests, and the interrupts of its NVMe controller.
/// Nothing else of dom0's QEMU is counted: its event channels serve its disks and xenstore alike.
const LINUX: &str = r#"
awk '/blkif-backend/ { counted = 1; for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i }
     / nvme[0-9]+q[0-9]+/ { device = 1; for (i = 2; $i ~ /^[0-9]+$/; i++) m += $i }
     END { if (counted) print "notifications_received", n; if (device) print "interrupts", m }' /proc/interrupts
for pair in reads:rd_req writes:wr_req flushes:f_req discards:ds_req; do
    for file in /sys/bus/xen-backend/devices/vbd-*-DEVICE/statistics/${pair#*:}; do
        if [ -e "$file" ]; then echo "${pair%:*} $(cat "$file")"; fi
    done
done"#;

/// Prints dom0's counters of a driver domain's network interface: the interrupts of xen-netback (several queues have
/// several), and the packets. Packets that the bridge sends into the interface are those that the domain receives.
const NETWORK: &str = r#"
awk '$NF ~ /^vifDOMAIN\.0-/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i }
     END { print "notifications_received", n + 0 }' /proc/interrupts
cd /sys/class/net/vifDOMAIN.0/statistics && echo "packets_received $(cat tx_packets)" &&     echo "packets_sent $(cat rx_packets)""#;

/// Reads the counters of a contestant's backend for all guests' disks so far, and dom0's counters of the backend's own
/// disks, or of its network.
pub fn of(host: &Host, field: &Field, contestant: Contestant) -> Result<Counters> {
    let mut counters = of_backend(host, field, contestant)?;
    if !field.plan().dom0_is_beneath(contestant) {
        return Ok(counters);
    }
    let domain = field.server_id(contestant)?.to_string();
    let script = match field.plan().store {
        Store::Nbd => NETWORK.replace("DOMAIN", &domain),
        // All other driver domains are paused: the interrupts in between are this one's.
        _ => LINUX.replace("vbd-*-DEVICE", &format!("vbd-{domain}-*")),
    };
    counters.add_beneath(&Counters::parse(&host.ok(&script)?));
    Ok(counters)
}

fn of_backend(host: &Host, field: &Field, contestant: Contestant) -> Result<Counters> {
    if !contestant.is_bulkhead() {
        let script = LINUX.replace("DEVICE", &DEVICE.to_string());
        return Ok(Counters::parse(&field.ask_linux(contestant, &script)?));
    }
    let backend = field.server_id(contestant)?;
    let mut sum = Counters::default();
    if let Some((server, device)) = field.own_device(contestant) {
        let shown = server.domain().ask("show", "all")?;
        sum.add(&of_controller(&shown, &device.short_name())?);
    }
    for guest in field.guest_ids(contestant) {
        sum.add(&Counters(host.vbd_statistics(backend, guest, DEVICE)?.0));
    }
    Ok(sum)
}

/// Finds the counters of an NVMe controller in the lines that Bulkhead shows of all disks.
fn of_controller(shown: &str, name: &str) -> Result<Counters> {
    let mut lines = shown.lines().map(str::trim);
    let line = lines.find_map(|line| {
        line.strip_prefix("nvme:")?
            .strip_prefix(name)?
            .strip_prefix(": ")
            .filter(|rest| rest.contains(" commands, "))
    });
    let line = line.with_context(|| format!("nothing about {name} in {shown:?}"))?;
    let mut counters = Counters::default();
    for counted in line.split(", ") {
        if let Some((value, counter @ (DOORBELLS | INTERRUPTS))) = counted.split_once(' ') {
            counters.0.insert(counter.to_owned(), value.parse()?);
        }
    }
    ensure!(counters.0.len() == 2, "not counted: {line}");
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controllers_counters_are_found_among_those_of_others() {
        let shown = "disks:\n nvme:00:10.0: QEMU NVMe Ctrl, serial 1, firmware 8, 1 queue pair(s)\n \
            nvme:00:10.0: 7 commands, 1 of them parts of requests, 0 failed, 3 doorbells, 2 interrupts, 0 resets\n \
            nvme:00:11.0: 9 commands, 0 of them parts of requests, 0 failed, 5 doorbells, 4 interrupts, 0 resets\n";
        let counters = of_controller(shown, "00:11.0").unwrap();
        assert_eq!(counters.get(DOORBELLS), Some(5));
        assert_eq!(counters.get(INTERRUPTS), Some(4));
        assert!(of_controller(shown, "00:12.0").is_err());
        assert!(of_controller("nvme:00:11.0: 9 commands, 0 failed", "00:11.0").is_err());
        let guests = GuestCounts {
            sectors: 8 * 20,
            ..GuestCounts::default()
        };
        let cost = per_operation(Job::ALL[0], &Counters::default(), &counters, guests).unwrap();
        assert_eq!((cost.doorbells, cost.interrupts), (Some(0.25), Some(0.2)));
    }

    #[test]
    fn counters_are_read_in_lines_or_in_one() {
        let lines = Counters::parse("reads 12\nwrites 3\nmap_calls 5\nbad x\n");
        assert_eq!(
            (lines.get("reads"), lines.get("map_calls")),
            (Some(12), Some(5))
        );
        assert_eq!(lines.get("bad"), None);
        let escaped = Counters::parse("reads 12\\nwrites 3\\nmap_calls 5\\n\n");
        assert_eq!(escaped, lines);
        assert_eq!(Counters::parse("reads=12, writes=3 map-calls: 5"), lines);
        let two = Counters::parse("reads 5\nreads 7\n");
        assert_eq!(two.get("reads"), Some(12));
    }

    #[test]
    fn costs_are_of_the_operations_in_between() {
        let before = Counters::parse("reads 100 writes 0 map_calls 100 notifications_sent 7");
        let after = Counters::parse(
            "reads 130 writes 10 map_calls 110 unmap_calls 10 maps 40 sweeps 10 \
             notifications_sent 17 bytes_copied 163840",
        );
        // 40 operations of 4 KiB.
        let guests = GuestCounts {
            notifications: 10,
            sectors: 320,
            ..GuestCounts::default()
        };
        let job = Job::ALL[0];
        let cost = per_operation(job, &before, &after, guests).unwrap();
        assert_eq!(cost.requests, Some(1.0));
        assert_eq!((cost.hypercalls, cost.grant_calls), (Some(0.75), Some(0.5)));
        assert_eq!((cost.copy_calls, cost.remap_calls), (None, Some(0.5)));
        assert_eq!(
            (cost.requests_beneath, cost.notifications_beneath),
            (None, None)
        );
        assert_eq!(cost.to_guest, 0.25);
        assert_eq!((cost.maps, cost.bytes_copied), (Some(1.0), Some(4096.0)));
        assert_eq!(cost.per_sweep, Some(4.0));
        assert_eq!(cost.to_backend, None);
        let idle = GuestCounts::default();
        assert_eq!(per_operation(job, &after, &after, idle), None);
    }

    #[test]
    fn what_linux_does_not_count_is_left_open() {
        let counters = |n: u32| Counters::parse(&format!("notifications_received {n}\nreads {n}"));
        let guests = GuestCounts {
            notifications: 5,
            sectors: 8 * 256,
            ..GuestCounts::default()
        };
        let cost = per_operation(Job::ALL[7], &counters(10), &counters(18), guests).unwrap();
        assert_eq!((cost.requests, cost.to_backend), (Some(8.0), Some(8.0)));
        assert_eq!((cost.hypercalls, cost.per_sweep), (None, None));
    }

    #[test]
    fn dom0_is_counted_apart_from_the_backend_that_it_serves() {
        let counters = |reads: u32, received: u32| {
            let mut counters = Counters::parse(&format!("reads {}", 100 + reads));
            let dom0 = format!("reads {reads}\nwrites 7\nnotifications_received {received}");
            counters.add_beneath(&Counters::parse(&dom0));
            counters
        };
        let guests = GuestCounts {
            sectors: 8 * 40,
            ..GuestCounts::default()
        };
        let job = Job::ALL[0];
        let cost = per_operation(job, &counters(10, 5), &counters(50, 15), guests).unwrap();
        assert_eq!((cost.requests, cost.to_backend), (Some(1.0), None));
        assert_eq!(cost.requests_beneath, Some(1.0));
        assert_eq!(cost.notifications_beneath, Some(0.25));
        assert!(
            LINUX.contains("vbd-*-DEVICE"),
            "dom0 is asked for other disks"
        );
    }

    #[test]
    fn packets_are_counted_for_an_operation() {
        let counters = |n: u32| {
            let mut counters = Counters::parse(&format!("reads {n}"));
            let dom0 = format!(
                "notifications_received {n}\npackets_received {}\npackets_sent {n}",
                2 * n
            );
            counters.add_beneath(&Counters::parse(&dom0));
            counters
        };
        let guests = GuestCounts {
            sectors: 8 * 40,
            ..GuestCounts::default()
        };
        let cost = per_operation(Job::ALL[0], &counters(10), &counters(50), guests).unwrap();
        let packets = (cost.packets_received, cost.packets_sent);
        assert_eq!(packets, (Some(2.0), Some(1.0)));
        assert_eq!(cost.notifications_beneath, Some(1.0));
        assert_eq!(cost.to_backend, None, "these are of its network");
    }
}
