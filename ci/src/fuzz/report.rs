//! libFuzzer's report of a run, and its presentation.

use crate::workspace;
use comfy_table::{Table, presets};
use std::fmt::Write;
use std::path::PathBuf;

/// The result of one target's run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The target.
    pub target: String,
    /// Number of inputs that were tried.
    pub executions: u64,
    /// Number of inputs tried in a second.
    pub per_second: u64,
    /// Number of edges between the program's basic blocks that they took.
    pub coverage: u64,
    /// Number of inputs kept, each of which takes an edge, or takes it as often, as no other input does.
    pub corpus: usize,
    /// The failure that ended the run.
    pub crash: Option<Crash>,
}

/// A failure.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The input, as a text that can be a seed.
    pub input: PathBuf,
    /// The target's output for that input alone.
    pub log: PathBuf,
    /// The failure.
    pub reason: String,
    /// True if the input also fails by itself, in a new process.
    pub repeats: bool,
    /// The input as digits, a line; empty if it is too long for a message.
    pub digits: String,
}

/// The most bytes of an input that a message has. Whoever reads it may have nothing but the message: files of a machine that
/// tests a change do not outlive it.
const MOST_IN_MESSAGE: usize = 1024;

impl Outcome {
    /// Reads libFuzzer's output.
    pub fn read(target: &str, log: &str) -> Outcome {
        let statistic = |name: &str| {
            let line = log.lines().rfind(|line| line.contains(name))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        let coverage = log.lines().rev().find_map(|line| {
            let (_, after) = line.strip_prefix('#')?.split_once("cov: ")?;
            after.split(' ').next()?.parse().ok()
        });
        Outcome {
            target: target.to_owned(),
            executions: statistic("stat::number_of_executed_units").unwrap_or(0),
            per_second: statistic("stat::average_exec_per_sec").unwrap_or(0),
            coverage: coverage.unwrap_or(0),
            ..Outcome::default()
        }
    }
}

impl Crash {
    /// Returns a few lines for the engineer who has to fix it.
    pub fn message(&self, target: &str) -> String {
        let alone = if self.repeats {
            "it fails by itself, too"
        } else {
            "IT DOES NOT FAIL BY ITSELF: something of earlier inputs is left in the target, or time plays a part"
        };
        let name = self.input.file_name().unwrap_or_default().to_string_lossy();
        let digits = match self.digits.as_str() {
            "" => String::new(),
            digits => format!("\n    its bytes: {digits}"),
        };
        format!(
            "{target}: {}\n    input: {} ({alone})\n    output: {}\n    to repeat it: cp {} fuzz/seeds/{target}/{name} && \
             cargo test -p bulkhead-fuzz {target}{digits}",
            self.reason,
            self.input.display(),
            self.log.display(),
            self.input.display(),
        )
    }
}

/// Returns the file in which libFuzzer left the input that failed.
pub fn input_of_crash(log: &str) -> Option<PathBuf> {
    let mark = "Test unit written to ";
    let line = log.lines().rfind(|line| line.contains(mark))?;
    let path = line.split_once(mark)?.1.trim();
    Some(workspace::root().join(path))
}

/// Returns the panic's message or, if there is none, libFuzzer's.
pub fn reason(log: &str) -> String {
    let mut lines = log.lines();
    let panic = lines.find_map(|line| {
        let at = line.split_once(" panicked at ")?.1;
        Some(at.trim_end_matches(':').to_owned())
    });
    if let Some(at) = panic {
        let said: Vec<&str> = lines
            .take_while(|line| !line.starts_with("stack backtrace") && !line.starts_with("note:"))
            .take(6)
            .collect();
        return format!("{at}: {}", said.join(" "));
    }
    let error = log.lines().find(|line| line.contains("ERROR: libFuzzer"));
    let error = error.and_then(|line| Some(line.split_once("libFuzzer: ")?.1));
    error.unwrap_or("it ended without a word").to_owned()
}

/// Returns bytes in the form of a seed's text.
pub fn as_seed(target: &str, reason: &str, bytes: &[u8]) -> String {
    let mut text = format!(
        "# Makes {target} fail: {}\n",
        reason.replace(['\n', '\r'], " ")
    );
    for line in bytes.chunks(16) {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "{}", digits.join(" "));
    }
    text
}

/// Returns bytes in the form of a message: as in a seed, in one line, or nothing if they are too many.
pub fn in_message(bytes: &[u8]) -> String {
    match bytes.len() {
        ..=MOST_IN_MESSAGE => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

/// Returns the table at the end.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "target",
        "executions",
        "a second",
        "coverage",
        "corpus",
        "crashes",
    ]);
    for outcome in outcomes {
        table.add_row([
            outcome.target.clone(),
            outcome.executions.to_string(),
            outcome.per_second.to_string(),
            outcome.coverage.to_string(),
            outcome.corpus.to_string(),
            usize::from(outcome.crash.is_some()).to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "\
#2\tINITED cov: 210 ft: 215 corp: 7/21b exec/s: 0 rss: 93Mb
#1024\tpulse  cov: 2442 ft: 11538 corp: 1214/43Kb lim: 144 exec/s: 1297 rss: 42Mb

thread '<unnamed>' (10941) panicked at fuzz/src/backend/mod.rs:271:5:
the queue does not end
stack backtrace:
==10941== ERROR: libFuzzer: deadly signal
artifact_prefix='found/'; Test unit written to /tmp/found/crash-43352af7716e
stat::number_of_executed_units: 19185
stat::average_exec_per_sec:     4796
";

    #[test]
    fn a_run_is_read() {
        let outcome = Outcome::read("backend", FAILED);
        assert_eq!(outcome.executions, 19185);
        assert_eq!(outcome.per_second, 4796);
        assert_eq!(outcome.coverage, 2442);
        let input = input_of_crash(FAILED).unwrap();
        assert_eq!(input, PathBuf::from("/tmp/found/crash-43352af7716e"));
        assert_eq!(
            reason(FAILED),
            "fuzz/src/backend/mod.rs:271:5: the queue does not end"
        );
        assert!(table(&[outcome]).contains("| 19185"));
    }

    #[test]
    fn what_is_no_panic_has_a_reason_too() {
        let hung = "==1== ERROR: libFuzzer: timeout after 20 seconds\n";
        assert_eq!(reason(hung), "timeout after 20 seconds");
        assert_eq!(reason("Killed\n"), "it ended without a word");
        assert_eq!(input_of_crash(hung), None);
    }

    #[test]
    fn a_crash_becomes_a_seed() {
        let text = as_seed("ring", "a\nb", &[0, 255, 16]);
        assert_eq!(text, "# Makes ring fail: a b\n00 ff 10\n");
    }

    #[test]
    fn a_crash_that_does_not_repeat_is_said_to() {
        let mut crash = Crash {
            input: "target/fuzz/crashes/ring-1.hex".into(),
            log: "log".into(),
            reason: "why".into(),
            repeats: true,
            digits: in_message(&[0, 255]),
        };
        assert!(crash.message("ring").contains("fuzz/seeds/ring/ring-1.hex"));
        assert!(crash.message("ring").contains("by itself, too"));
        assert!(crash.message("ring").ends_with("its bytes: 00ff"));
        crash.digits = in_message(&[0; MOST_IN_MESSAGE + 1]);
        assert!(!crash.message("ring").contains("its bytes"));
        crash.repeats = false;
        assert!(crash.message("ring").contains("DOES NOT FAIL BY ITSELF"));
    }
}
