//! The report: the tables and charts, with the facts that are needed to repeat and to judge them.

use super::network::ServerDomain;
use super::results::Results;
use super::store::Store;
use super::{DATA, Plan, job, table};

/// Returns the report; `charts` are the files of the charts beside it.
pub fn report(results: &Results, xen: &str, repeat: &str, charts: &[String]) -> String {
    let plan = &results.plan;
    let persistent = if plan.persistent { "on" } else { "off" };
    let mut text = format!(
        "# Block backends side by side\n\n\
         One boot of Xen {xen} in QEMU's software emulation ({} processors, ERMS and FSRM hidden from \
         everyone). Guests: {} x {}, {} queue(s), persistent grants {persistent} in their frontends. \
         They have processor 2, a driver domain has processor 1, where all others are paused, and dom0 has \
         processor 0. {} fio, libaio, direct I/O: {} s after {} s of \
         warming up, {} round(s), contestants in turn.\n\n\
         Repeat it: `{repeat}`\n\n\
         `!`: every run was disturbed, the figure is not to be trusted. `~`: the runs lie far apart.\n\n",
        plan.server.processors(),
        plan.guests,
        plan.guest_kind,
        plan.queues,
        data(plan),
        plan.runtime.as_secs(),
        job::RAMP.as_secs(),
        plan.rounds,
    );
    for grid in table::all(results) {
        text += &grid.markdown();
        text.push('\n');
    }
    let remarks = table::remarks(results);
    if !remarks.is_empty() {
        text += "## Remarks\n\n";
        for remark in remarks {
            text += &format!("- {}\n", remark.replace('\n', "\n  "));
        }
        text.push('\n');
    }
    for chart in charts {
        text += &format!("![{chart}]({chart})\n");
    }
    text
}

/// Returns a description of the place of the data.
fn data(plan: &Plan) -> String {
    match plan.store {
        Store::Ram => format!("Each has {DATA} MiB of data in memory."),
        Store::Vbd => format!(
            "The data, {DATA} MiB each, is in RAM disks of dom0's, which its xen-blkback serves to the driver \
             domains: these serve their disks on, Bulkhead as `vbd:`, Linux by its own xen-blkback. \
             dom0-blkback serves such a RAM disk to the guest itself, a layer less."
        ),
        Store::Nbd => {
            let (place, time) = match plan.server {
                ServerDomain::Dom0 => ("dom0", ", and includes the server's"),
                ServerDomain::Domain => (
                    "a Linux domain of its own with processor 3, on a bridge of dom0's",
                    "",
                ),
            };
            format!(
                "The data, {DATA} MiB, is the export of an NBD server in {place} (nbdkit, in memory), the same one for all. \
                 Driver domains reach it over a bridge of dom0's: Bulkhead as `nbd:`, Linux by its kernel's client and \
                 its xen-blkback. dom0's own backends serve what dom0's kernel's client makes of it; their processor \
                 time is dom0's{time}."
            )
        }
        Store::Nvme => format!(
            "The data, {DATA} MiB each, is on NVMe controllers, all alike, that QEMU emulates. Each driver domain has one \
             passed through and serves it on; dom0's own backends serve another one; linux-bare is a PV Linux that \
             has one itself, on processor 2, and no guest."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::{ServerDomain, Store};

    #[test]
    fn the_report_says_how_to_repeat_it_and_shows_every_table() {
        let charts = ["randread.svg".to_owned()];
        let text = super::report(&example(), "4.17", "cargo lab bench", &charts);
        for part in [
            "`cargo lab bench`",
            "3.05x",
            "## The contestants",
            "randread.svg",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn the_report_says_where_the_data_is() {
        let mut results = example();
        let report = |results: &_| super::report(results, "4.17", "cargo lab bench", &[]);
        assert!(report(&results).contains("Each has 64 MiB of data in memory."));
        results.plan.store = Store::Vbd;
        assert!(report(&results).contains("Bulkhead as `vbd:`"));
        results.plan.store = Store::Nbd;
        assert!(report(&results).contains("and includes the server's"));
        results.plan.server = ServerDomain::Domain;
        let text = report(&results);
        assert!(text.contains("a Linux domain of its own"), "{text}");
        results.plan.store = Store::Nvme;
        assert!(report(&results).contains("NVMe controllers"));
    }
}
