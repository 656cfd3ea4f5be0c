//! The first table: Bulkhead's results as multiples of those of the backend that it is compared with.

use super::contestant::Contestant;
use super::results::Results;
use super::store::Store;
use super::table::{Grid, contestants};

/// The measurements that are compared, after the name of the contestant.
const PROCESSOR_TIME: &str = "CPU/op";
const INSTRUCTIONS: &str = "instructions/op";

/// Makes the table.
pub fn ratios(results: &Results) -> Grid {
    let ours: Vec<Contestant> = contestants(results)
        .filter(|contestant| contestant.is_bulkhead())
        .collect();
    let same_kind = results.plan.store == Store::Vbd;
    let mut header = vec!["job".to_owned()];
    if !same_kind {
        header.push("best peer".to_owned());
    }
    for &contestant in &ours {
        if same_kind {
            let peer = results.plan.counterpart(contestant);
            header.push(peer.map_or("-".to_owned(), |peer| peer.to_string()));
        }
        header.push(contestant.to_string());
        header.push(PROCESSOR_TIME.to_owned());
        if results.plan.counts {
            header.push(INSTRUCTIONS.to_owned());
        }
    }
    let (limit, part) = match results.plan.store {
        Store::Nvme => (Contestant::Bare, "part of the bare device's"),
        Store::Ram | Store::Vbd | Store::Nbd => (Contestant::Null, "part of null's"),
    };
    if !same_kind {
        header.push(part.to_owned());
    }
    let times = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"));
    let row = |&job| {
        let mut row = vec![format!("{job}")];
        if !same_kind {
            let best = results.best_peer(job);
            row.push(best.map_or("-".to_owned(), |(contestant, cell)| {
                format!("{contestant}: {:.0}{}", cell.figure.median, cell.mark())
            }));
        }
        for &contestant in &ours {
            if same_kind {
                let peer = results.peer(contestant, job);
                row.push(peer.map_or("-".to_owned(), |(_, cell)| {
                    format!("{:.0}{}", cell.figure.median, cell.mark())
                }));
            }
            let mark = results.cell(contestant, job).map_or("", |cell| cell.mark());
            row.push(times(results.ratio(contestant, job)) + mark);
            row.push(times(results.cpu_ratio(contestant, job)));
            if results.plan.counts {
                row.push(times(results.instruction_ratio(contestant, job)));
            }
        }
        if !same_kind {
            let limit = results.cell(limit, job);
            let first = ours.first().and_then(|&one| results.cell(one, job));
            row.push(limit.zip(first).map_or("-".to_owned(), |(limit, first)| {
                format!("{:.0} %", 100.0 * first.figure.median / limit.figure.median)
            }));
        }
        row
    };
    Grid {
        title: match same_kind {
            true => {
                "Times the IOPS (MB/s from 64k on) of the Linux driver domain of the same kind, and its costs for an operation"
            }
            false => {
                "Times the best peer's IOPS (MB/s from 64k on), and its backend's costs for an operation"
            }
        },
        header,
        rows: results.plan.jobs.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::contestant::Family;
    use super::super::results::tests::{BULKHEAD, JOB, LINUX, cost, example};
    use super::*;

    #[test]
    fn own_disks_are_compared_with_the_linux_of_the_same_kind() {
        let mut results = example();
        results.plan.store = Store::Vbd;
        // dom0's own backend has a layer less to go through: it is no peer, however fast it is.
        for run in &mut results.runs {
            if run.contestant == Contestant::Dom0Blkback {
                run.iops = 50_000.0;
                run.disturbance = None;
            }
        }
        assert_eq!(results.peer(BULKHEAD, JOB).unwrap().0, LINUX);
        let grid = ratios(&results);
        assert_eq!(grid.header, ["job", "linux-pvh", "bulkhead-pvh", "CPU/op"]);
        assert_eq!(grid.rows[0][1..], ["2000", "3.05x", "0.33x"]);
        // Another kind is no replacement.
        results.plan.contestants[1] = Contestant::Linux(Family::Pv);
        for run in &mut results.runs {
            if run.contestant == LINUX {
                run.contestant = Contestant::Linux(Family::Pv);
            }
        }
        assert_eq!(ratios(&results).rows[0][1..], ["-", "-", "-"]);
    }

    #[test]
    fn a_passed_through_device_is_the_limit_for_those_that_serve_it_on() {
        let mut results = example();
        results.plan.store = Store::Nvme;
        for run in &mut results.runs {
            if run.contestant == Contestant::Dom0Blkback {
                run.contestant = Contestant::Bare;
                run.iops = 8000.0;
                run.disturbance = None;
            }
        }
        results.contenders[2].contestant = Contestant::Bare;
        assert_eq!(
            results.peer(BULKHEAD, JOB).unwrap().0,
            LINUX,
            "it is no peer"
        );
        let grid = ratios(&results);
        assert_eq!(grid.header.last().unwrap(), "part of the bare device's");
        assert_eq!(grid.rows[0].last().unwrap(), "76 %");
    }

    #[test]
    fn counted_instructions_of_server_and_xen_are_compared() {
        let mut results = example();
        results.plan.counts = true;
        for run in &mut results.runs {
            let server = match run.contestant {
                BULKHEAD => 3000.0,
                LINUX => 9000.0,
                _ => 1.0,
            };
            run.instructions = Some(cost(server, 1000.0));
        }
        let grid = ratios(&results);
        assert_eq!(grid.header[4], INSTRUCTIONS);
        assert_eq!(grid.rows[0][4], "0.40x");
    }
}
