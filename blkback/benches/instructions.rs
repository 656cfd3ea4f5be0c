//! Instructions and allocations for each request, counted by callgrind in the simulated Xen and
//! compared with `instructions.baseline`.
//!
//! ```text
//! cargo bench -p bulkhead-blkback --bench instructions              compare; fails above +5 %
//! cargo bench -p bulkhead-blkback --bench instructions -- --save    make a new baseline
//! ```
//!
//! With `--features recover`, requests are kept for the time after a crash. These counts have a baseline of their own,
//! `instructions-recover.baseline`, and what they add to the other one is shown; only some cases are counted.
//!
//! Counts depend on the compiler, so a baseline of another one is shown but fails nothing. They do
//! not depend on the machine: its C library is told to use no special instructions.
//!
//! The counts are those of the driver domain: the instructions that the simulated Xen executes in place of the real one
//! are shown beside them and taken off, since they are neither ours nor as many as the real one's. The disks are
//! `null:` ones, which copy nothing: a count is the cost of a request beyond its copy.
//!
//! The goal is at most 500 instructions at depth 32 and 1,500 at depth 1, for 4 KiB reads with
//! persistent grants. Where 426 and 1,429 go:
//!
//! | what | depth 32 | depth 1 |
//! |---|---:|---:|
//! | taking the request off the ring, checking it, handing it to the device (`Queue::sweep`) | 210 | 316 |
//! | finding its page among those that are mapped (`PersistentCache::revisit`) | 60 | 60 |
//! | the `null:` device | 50 | 50 |
//! | counting it, putting the response (`Dispatcher::conclude`) | 63 | 63 |
//! | the queue's task (`serve`, `Coalescer`): when to answer, publishing, what it waits for; the executor's wake and poll; the test machine's turn | 43 | 940 |
//!
//! A request whose pages are mapped is served as it comes off the ring. One that the store completes later, or whose
//! pages are mapped for it or copied, has an entry and pages of its own, which the `direct` cases show. At depth 1
//! everything is paid once a request: the task is polled once, decides twice (to answer, and to sleep), looks at the
//! ring before and after it, and has what wakes it noted in three places.

mod callgrind;
mod load;

use load::{Case, Kind, Load, Taken, driver_domains_turn};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The part by which a count may grow.
const TOLERANCE: f64 = 0.05;

/// The least number of requests for one count.
const REQUESTS: u64 = 1000;

/// The cost of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    instructions: f64,
    allocations: f64,
    /// Instructions of the simulated Xen, which are not compared.
    simulated: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, ..] = &arguments[..]
        && flag == "--case"
    {
        return run_case(name);
    }
    match count_and_compare(arguments.iter().any(|argument| argument == "--save")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case under callgrind.
fn run_case(name: &str) -> ExitCode {
    let case = Case::all().into_iter().find(|case| case.name() == name);
    let Some(mut load) = Load::new(case.expect("a known case")) else {
        println!("not offered");
        return ExitCode::SUCCESS;
    };
    let mut sum = Taken::default();
    while sum.requests < REQUESTS {
        let taken = load.batch(driver_domains_turn);
        sum.requests += taken.requests;
        sum.allocations += taken.allocations;
    }
    println!("requests {} allocations {}", sum.requests, sum.allocations);
    // What a machine gives back at its end is of no interest.
    std::process::exit(0)
}

fn count_and_compare(save: bool) -> Result<bool, String> {
    let compiler = compiler()?;
    let mut costs = BTreeMap::new();
    println!(
        "{:32} {:>12} {:>11} {:>14}",
        "for each request", "instructions", "allocations", "simulated Xen"
    );
    for case in Case::all().into_iter().filter(is_counted) {
        let name = case.name();
        match count(&name)? {
            Some(cost) => {
                let Cost {
                    instructions,
                    allocations,
                    simulated,
                } = cost;
                println!("{name:32} {instructions:12.1} {allocations:11.3} {simulated:14.1}");
                costs.insert(name, cost);
            }
            None => println!("{name:32}  not offered by the backend"),
        }
    }
    if save {
        let text = baseline_text(&compiler, &costs);
        let path = baseline_path(KEPT);
        std::fs::write(&path, text).map_err(|error| error.to_string())?;
        println!("saved in {}", path.display());
        return Ok(true);
    }
    let (made_by, baseline) = read_baseline(&baseline_path(KEPT))?;
    if KEPT {
        show_added(&read_baseline(&baseline_path(false))?.1, &costs);
    }
    let faults = compare(&baseline, &costs);
    for fault in &faults {
        println!("{fault}");
    }
    if made_by != compiler {
        println!("the baseline was made by {made_by}, this is {compiler}: nothing fails");
        return Ok(true);
    }
    Ok(faults.is_empty())
}

/// True if requests are kept for the time after a crash.
const KEPT: bool = cfg!(feature = "recover");

/// Connecting 200 disks takes long under callgrind: one kind of request has to do. Keeping a request costs reads and
/// writes the same, which of disks of our own are counted for their sake: the ELF with those keeps requests.
fn is_counted(case: &Case) -> bool {
    if let Kind::OwnDisk(_) = case.kind {
        return KEPT;
    }
    if KEPT {
        return case.disks == 1 && !case.write;
    }
    case.disks < 200 || case.kind == Kind::Direct
}

/// Returns the cases that are worse than the baseline, a line each.
fn compare(baseline: &BTreeMap<String, Cost>, costs: &BTreeMap<String, Cost>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, known) in baseline {
        let Some(cost) = costs.get(name) else {
            faults.push(format!("{name}: in the baseline, but was not counted"));
            continue;
        };
        let growth = cost.instructions / known.instructions - 1.0;
        if growth > TOLERANCE {
            faults.push(format!(
                "{name}: {:.1} % more instructions than the baseline's {:.1}",
                growth * 100.0,
                known.instructions
            ));
        } else if growth < -TOLERANCE {
            println!(
                "{name}: {:.1} % fewer instructions than the baseline; save a new one",
                -growth * 100.0
            );
        }
        if cost.allocations > known.allocations + 0.001 {
            faults.push(format!(
                "{name}: {:.3} allocations for each request, {:.3} in the baseline",
                cost.allocations, known.allocations
            ));
        }
    }
    let new = costs.keys().filter(|name| !baseline.contains_key(*name));
    faults.extend(new.map(|name| format!("{name}: not in the baseline; save a new one")));
    faults
}

/// Counts one case; `None` if the backend does not offer it.
fn count(name: &str) -> Result<Option<Cost>, String> {
    let (text, file) = callgrind::run(name)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["requests", requests, "allocations", allocations] = words[..] else {
        return Ok(None);
    };
    let number = |word: &str| {
        word.parse::<f64>()
            .map_err(|error| format!("{name} said {text:?}: {error}"))
    };
    let requests = number(requests)?;
    let counts = callgrind::counts(&file, "bulkhead_xen_sim::")?;
    Ok(Some(Cost {
        instructions: (counts.total - counts.part) / requests,
        allocations: number(allocations)? / requests,
        simulated: counts.part / requests,
    }))
}

fn compiler() -> Result<String, String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Shows what keeping requests adds.
fn show_added(without: &BTreeMap<String, Cost>, costs: &BTreeMap<String, Cost>) {
    for (name, cost) in costs {
        if let Some(without) = without.get(name) {
            let added = cost.instructions / without.instructions - 1.0;
            println!("{name}: keeping requests adds {:.1} %", added * 100.0);
        }
    }
}

fn baseline_path(kept: bool) -> PathBuf {
    let name = match kept {
        true => "benches/instructions-recover.baseline",
        false => "benches/instructions.baseline",
    };
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read_baseline(path: &Path) -> Result<(String, BTreeMap<String, Cost>), String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    parse_baseline(&text)
}

fn baseline_text(compiler: &str, costs: &BTreeMap<String, Cost>) -> String {
    let mut text = format!("compiler {compiler}\n");
    for (name, cost) in costs {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{name} {:.1} {:.3}",
            cost.instructions, cost.allocations
        );
    }
    text
}

fn parse_baseline(text: &str) -> Result<(String, BTreeMap<String, Cost>), String> {
    let mut lines = text.lines();
    let compiler = lines
        .next()
        .and_then(|line| line.strip_prefix("compiler "))
        .ok_or("the baseline names no compiler")?;
    let costs = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, instructions, allocations] = words[..] else {
            return Err(format!("the baseline has a line {line:?}"));
        };
        let number = |word: &str| word.parse().map_err(|error| format!("{line:?}: {error}"));
        let cost = Cost {
            instructions: number(instructions)?,
            allocations: number(allocations)?,
            simulated: 0.0,
        };
        Ok((name.to_owned(), cost))
    });
    Ok((compiler.to_owned(), costs.collect::<Result<_, String>>()?))
}
