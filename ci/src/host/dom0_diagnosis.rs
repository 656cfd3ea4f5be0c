//! The reason why a command in dom0 is late: the programs that run there and where each waits, or that nothing runs
//! there.
//!
//! No guest and no driver domain can keep dom0 from running: Xen gives each its share of the
//! processors. A dom0 that does not even run `true` is a fault of the emulation, then.

use super::Host;
use super::command::Late;
use std::fmt::Write as _;
use std::time::Duration;

/// Time limit for a command in dom0 that does nothing. It is thousands of times what the command usually
/// takes.
const NOTHING: Duration = Duration::from_secs(30);

/// Time limit for dom0 to list its processes.
const LOOK: Duration = Duration::from_secs(60);

/// Asks dom0 for its processes, for the places in the kernel at which the toolstack's wait, and whether xenstored
/// answers.
const ASK: &str = "ps axo pid,ppid,stat,time,wchan:24,args | grep -v '\\[.*\\]$'; \
    for pid in $(pidof xl xenstored oxenstored xenconsoled); do \
        echo \"== $pid $(tr '\\0' ' ' </proc/$pid/cmdline)\"; cat /proc/$pid/stack; done; \
    echo '== xenstore'; timeout 10 xenstore-list / || echo \"no answer: $?\"; \
    echo '== domains'; timeout 10 xl list -v || echo \"no answer: $?\"; \
    echo '== kernel'; dmesg | tail -5";

/// The findings about a late dom0.
pub struct Finding {
    /// True if dom0 runs nothing at all any more.
    pub dead: bool,
    /// The details, for the log.
    pub report: String,
}

/// Examines a host on which a command was late.
pub fn diagnose(host: &Host) -> Finding {
    // An error of another kind is the scenario's end, and tells nothing of dom0.
    let dead = matches!(host.run("true", NOTHING), Err(error) if error.is::<Late>());
    if !dead {
        let report = match host.run(ASK, LOOK) {
            Ok(output) => output.out + &output.err,
            Err(error) => format!("dom0 did not say what it does: {error:#}"),
        };
        return Finding { dead, report };
    }
    let mut report = format!("dom0 did not run `true` within {NOTHING:?}\n");
    // Twice: what has moved between the two still runs.
    for _ in 0..2 {
        let seen = registers(host).unwrap_or_else(|error| format!("no registers: {error}"));
        let _ = writeln!(report, "{seen}");
        std::thread::sleep(Duration::from_secs(1));
    }
    Finding { dead, report }
}

/// Returns the registers of the emulated processors, by QEMU's monitor.
fn registers(host: &Host) -> std::io::Result<String> {
    let text = host.monitor("info registers -a")?;
    let telling = ["CPU#", "RIP=", "CR0=", "CR3="];
    let lines = text
        .lines()
        .filter(|line| telling.iter().any(|word| line.contains(word)));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
