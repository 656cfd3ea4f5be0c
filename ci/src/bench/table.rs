//! The results as tables: cells of text, for the terminal and for Markdown.

use super::contestant::Contestant;
use super::ratios::ratios;
use super::results::{Cell, Results};
use super::store::Store;
use comfy_table::{Table, presets};

/// A table of text.
pub struct Grid {
    /// The title of the table.
    pub title: &'static str,
    /// The first line.
    pub header: Vec<String>,
    /// The other lines.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// Returns the table for a terminal.
    pub fn terminal(&self) -> String {
        format!("{}\n{}", self.title, self.table(presets::UTF8_BORDERS_ONLY))
    }

    /// Returns the table for Markdown.
    pub fn markdown(&self) -> String {
        let table = self.table(presets::ASCII_MARKDOWN);
        format!("## {}\n\n{table}\n", self.title)
    }

    fn table(&self, preset: &str) -> Table {
        let mut table = Table::new();
        table.load_preset(preset);
        table.set_header(&self.header);
        table.add_rows(&self.rows);
        table
    }
}

/// Returns all tables, the most important one first.
pub fn all(results: &Results) -> Vec<Grid> {
    let mut grids = vec![
        ratios(results),
        by_job(
            results,
            "IOPS, or MB/s from 64k on: median (least..most)",
            figure,
        ),
        by_job(
            results,
            "Latency in microseconds: mean / 99th percentile",
            |cell| format!("{:.0} / {:.0}", cell.mean_us, cell.p99_us),
        ),
        by_job(results, processor_time_title(results), processor_time),
    ];
    if results.plan.guests > 1 {
        let title = "All guests together, times one of them alone / the least share that one got, 1 being a fair one";
        grids.push(by_job(results, title, |cell| {
            format!("{:.2}x / {:.2}", cell.times_alone, cell.least_share)
        }));
    }
    grids.extend(instructions(results));
    grids.extend(counts(results));
    grids.push(contenders(results));
    grids
}

pub(super) fn contestants(results: &Results) -> impl Iterator<Item = Contestant> {
    results
        .contenders
        .iter()
        .map(|contender| contender.contestant)
}

fn figure(cell: &Cell) -> String {
    let spread = &cell.figure;
    let range = if spread.count > 1 {
        format!(" ({:.0}..{:.0})", spread.min, spread.max)
    } else {
        String::new()
    };
    format!("{:.0}{}{range}", spread.median, cell.mark())
}

fn processor_time_title(results: &Results) -> &'static str {
    match results.plan.store {
        Store::Ram | Store::Nvme => {
            "Processor time for an operation, in microseconds: backend / guest"
        }
        Store::Vbd | Store::Nbd => {
            "Processor time for an operation, in microseconds: backend / guest / dom0 beneath the backend, + the server's domain"
        }
    }
}

fn processor_time(cell: &Cell) -> String {
    let beneath = cell.dom0_us.map(|dom0| format!(" / {dom0:.0}"));
    let server = cell.nbd_server_us.map(|server| format!(" + {server:.0}"));
    let (backend, guest) = (cell.backend_us, cell.guest_us);
    let (beneath, server) = (beneath.unwrap_or_default(), server.unwrap_or_default());
    format!("{backend:.0} / {guest:.0}{beneath}{server}")
}

fn by_job(results: &Results, title: &'static str, show: impl Fn(&Cell) -> String) -> Grid {
    let header = std::iter::once("job".to_owned())
        .chain(contestants(results).map(|contestant| contestant.to_string()));
    let row = |&job| {
        let cells = contestants(results).map(|contestant| {
            results
                .cell(contestant, job)
                .map_or_else(|| "-".to_owned(), |cell| show(&cell))
        });
        std::iter::once(job.to_string()).chain(cells).collect()
    };
    Grid {
        title,
        header: header.collect(),
        rows: results.plan.jobs.iter().map(row).collect(),
    }
}

/// Returns the table of instructions for an operation, with the latency that each contestant reached for them.
fn instructions(results: &Results) -> Option<Grid> {
    let mut rows = Vec::new();
    for &job in &results.plan.jobs {
        for contestant in contestants(results) {
            let Some(cell) = results.cell(contestant, job) else {
                continue;
            };
            let Some(cost) = cell.instructions else {
                continue;
            };
            let count = |count: f64| format!("{count:.0}");
            rows.push(vec![
                job.to_string(),
                contestant.to_string(),
                count(cost.server),
                count(cost.xen),
                count(cost.guest),
                cost.dom0.map_or("-".to_owned(), count),
                count(cost.sum),
                format!("{:.2}", cost.entries),
                format!("{:.2}", cost.guest_entries),
                format!("{:.1} / {:.1}", cell.mean_us / 1e3, cell.p99_us / 1e3),
            ]);
        }
    }
    let header = [
        "job",
        "contestant",
        "server",
        "its Xen",
        "guest and its Xen",
        "dom0 and its Xen",
        "sum",
        "entries into Xen: server",
        "guest",
        "mean / p99 ms",
    ];
    (!rows.is_empty()).then(|| Grid {
        title: "Instructions for an operation (dom0 \"-\": it is the server)",
        header: header.map(str::to_owned).to_vec(),
        rows,
    })
}

/// Returns the table of counts taken while the jobs ran.
fn counts(results: &Results) -> Option<Grid> {
    let store = results.plan.store;
    let mut rows = Vec::new();
    for &job in &results.plan.jobs {
        for contestant in contestants(results) {
            let Some(cost) = results.cell(contestant, job).and_then(|cell| cell.cost) else {
                continue;
            };
            let mut row = vec![job.to_string(), contestant.to_string()];
            let figures = [
                cost.requests,
                cost.hypercalls,
                cost.copy_calls,
                cost.remap_calls,
                cost.to_backend,
                Some(cost.to_guest),
                cost.maps,
                cost.bytes_copied,
                cost.sleeps,
                cost.per_sweep,
            ];
            let figures = figures.into_iter().chain(match store {
                Store::Vbd => vec![cost.requests_beneath, cost.notifications_beneath],
                Store::Nbd => vec![
                    cost.packets_received,
                    cost.packets_sent,
                    cost.notifications_beneath,
                ],
                Store::Nvme => vec![cost.doorbells, cost.interrupts],
                Store::Ram => Vec::new(),
            });
            row.extend(figures.map(|figure| match figure {
                Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
                Some(figure) => format!("{figure:.2}"),
                None => "-".to_owned(),
            }));
            rows.push(row);
        }
    }
    let header = [
        "job",
        "contestant",
        "requests",
        "hypercalls",
        "of these copies",
        "of these maps and unmaps",
        "notifications to backend",
        "to guest",
        "pages mapped",
        "bytes copied",
        "sleeps",
        "requests in a sweep",
    ];
    let header = header.into_iter().chain(match store {
        Store::Vbd => vec!["requests to dom0", "notifications to dom0"],
        Store::Nbd => vec!["packets received", "packets sent", "notifications to dom0"],
        Store::Nvme => vec!["doorbell writes", "interrupts"],
        Store::Ram => Vec::new(),
    });
    (!rows.is_empty()).then(|| Grid {
        title: "Counted for each operation (-: this backend does not count it)",
        header: header.map(str::to_owned).collect(),
        rows,
    })
}

fn contenders(results: &Results) -> Grid {
    let milliseconds = |value: Option<f64>| {
        value.map_or("-".to_owned(), |seconds| format!("{:.0} ms", seconds * 1e3))
    };
    let row = |contender: &super::results::Contender| {
        vec![
            contender.contestant.to_string(),
            milliseconds(contender.boot),
            milliseconds(contender.attach),
            contender
                .memory
                .map_or("-".to_owned(), |mib| format!("{mib} MiB")),
            contender
                .steady_memory
                .map_or("-".to_owned(), |memory| memory.to_string()),
            contender.kernel.map_or("-".to_owned(), |bytes| {
                format!("{} KiB", bytes.div_ceil(1024))
            }),
            contender
                .idle
                .map_or("-".to_owned(), |part| format!("{:.2} %", part * 100.0)),
        ]
    };
    let header = [
        "contestant",
        "boot to ready",
        "attach",
        "memory",
        "in the steady state",
        "kernel and initramfs",
        "idle",
    ];
    Grid {
        title: "The contestants",
        header: header.map(str::to_owned).to_vec(),
        rows: results.contenders.iter().map(row).collect(),
    }
}

/// Returns the remarks beside the tables.
pub fn remarks(results: &Results) -> Vec<String> {
    let mut remarks = Vec::new();
    for contender in &results.contenders {
        for failure in &contender.failures {
            remarks.push(format!("{} failed: {failure}", contender.contestant));
        }
        if contender.unfinished {
            let limit = results.plan.limit.as_secs().div_ceil(60);
            let contestant = contender.contestant;
            remarks.push(format!(
                "{contestant} was not measured in full: the bench's {limit} minutes were over"
            ));
        }
    }
    for &job in &results.plan.jobs {
        for contestant in contestants(results) {
            let Some(cell) = results.cell(contestant, job) else {
                continue;
            };
            if cell.thrown_away > 0 {
                remarks.push(format!(
                    "{contestant}, {job}: {} disturbed run(s) thrown away",
                    cell.thrown_away
                ));
            }
            if cell.disturbed {
                remarks.push(format!("{contestant}, {job}: every run was disturbed (!)"));
            } else if cell.figure.is_wide() {
                let part = cell.figure.relative() * 100.0;
                remarks.push(format!(
                    "{contestant}, {job}: the runs lie {part:.0} % apart (~)"
                ));
            }
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::super::results::tests::{BULKHEAD, example};
    use super::super::statistics::PerOperation;
    use super::*;

    /// Returns the cells of a line of a Markdown table.
    fn cells(line: &str) -> Vec<&str> {
        let inner = line.trim().trim_matches('|');
        inner.split('|').map(str::trim).collect()
    }

    #[test]
    fn the_first_table_is_the_one_of_ratios() {
        let grids = all(&example());
        let text = grids[0].terminal();
        assert!(
            text.contains("3.05x") && text.contains("linux-pvh: 2000"),
            "{text}"
        );
        let text = grids[0].markdown();
        let lines: Vec<&str> = text.lines().collect();
        let columns = [
            "job",
            "best peer",
            "bulkhead-pvh",
            "CPU/op",
            "part of null's",
        ];
        assert_eq!(cells(lines[2]), columns, "{text}");
        assert!(cells(lines[3]).iter().all(|cell| cell.starts_with("---")));
        assert!(grids[1].markdown().contains("6100 (6000..6200)"));
    }

    #[test]
    fn what_a_backend_does_not_count_is_no_zero() {
        let mut results = example();
        results.runs[1].cost = Some(PerOperation {
            requests: Some(1.0),
            to_backend: Some(0.125),
            to_guest: 0.25,
            ..PerOperation::default()
        });
        let grid = counts(&results).unwrap();
        let text = grid.markdown();
        let row = text.lines().find(|line| line.contains("linux-pvh"));
        let expected = [
            "linux-pvh",
            "1.00",
            "-",
            "-",
            "-",
            "0.12",
            "0.25",
            "-",
            "-",
            "-",
            "-",
        ];
        assert_eq!(cells(row.expect("a row"))[1..], expected, "{text}");
    }

    #[test]
    fn remarks_name_what_is_not_to_be_trusted() {
        let mut results = example();
        results.contenders[0].failures.push("it broke".to_owned());
        let text = remarks(&results).join("\n");
        assert!(text.contains(&format!("{BULKHEAD} failed: it broke")));
        assert!(text.contains("1 disturbed run(s) thrown away"));
    }

    #[test]
    fn doorbells_and_interrupts_of_a_controller_are_shown() {
        let mut results = example();
        results.plan.store = Store::Nvme;
        results.runs[0].cost = Some(PerOperation {
            doorbells: Some(0.5),
            interrupts: Some(0.125),
            ..PerOperation::default()
        });
        results.runs.truncate(1);
        let grid = counts(&results).unwrap();
        assert!(grid.rows.iter().all(|row| row.len() == grid.header.len()));
        assert!(
            grid.header
                .ends_with(&["doorbell writes".into(), "interrupts".into()])
        );
        assert!(grid.rows[0].ends_with(&["0.50".into(), "0.12".into()]));
    }

    #[test]
    fn the_part_of_dom0_beneath_own_disks_is_shown() {
        let mut results = example();
        results.plan.store = Store::Vbd;
        let run = &mut results.runs[0];
        run.dom0_us = Some(70.0);
        run.nbd_server_us = Some(30.0);
        run.cost = Some(PerOperation {
            copy_calls: Some(0.25),
            remap_calls: Some(0.0),
            requests_beneath: Some(1.0),
            notifications_beneath: Some(0.5),
            ..PerOperation::default()
        });
        results.runs.truncate(1);
        results.contenders[0].steady_memory = Some(Memory {
            held: 18,
            available: None,
        });
        let grids = all(&results);
        let row = |title: &str| {
            let grid = grids.iter().find(|grid| grid.title.starts_with(title));
            let grid = grid.unwrap_or_else(|| panic!("no table begins with {title:?}"));
            assert!(grid.rows.iter().all(|row| row.len() == grid.header.len()));
            (grid.header.clone(), grid.rows[0].clone())
        };
        assert_eq!(row("Processor time").1[1], "167 / 5 / 70 + 30");
        let (header, counted) = row("Counted");
        let column = |name: &str| {
            let at = header.iter().position(|title| title == name);
            &counted[at.unwrap_or_else(|| panic!("no column is called {name:?}"))]
        };
        assert_eq!(column("of these copies"), "0.25");
        assert_eq!(column("of these maps and unmaps"), "0.00");
        assert_eq!(column("requests to dom0"), "1.00");
        assert_eq!(column("notifications to dom0"), "0.50");
        assert_eq!(row("The contestants").1[4], "18 MiB");
    }
}
