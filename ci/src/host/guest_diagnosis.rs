//! Diagnosis of a guest that does not answer: whether its processor runs, the backtraces of its kernel and
//! its programs, and our domains' statistics of its disks. The guest does not survive it.

use super::domain::Domain;
use super::{Host, KnownDomain, length, read_from, xen_state};
use crate::fault;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

/// Time limit for dom0's part.
const LOOK: Duration = Duration::from_secs(60);

/// The findings about a silent guest.
pub struct Finding {
    /// The fault of the emulation, if the guest's kernel shows one.
    pub fault: Option<String>,
    /// The details, for the log.
    pub report: String,
}

/// The stage that a silent guest had reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The guest has not taken a command yet.
    Boot,
    /// The guest has taken commands.
    Ready,
}

/// Examines a guest. Its kernel lists the tasks that wait in it, and is then stopped by an NMI, at which it prints its
/// backtraces (`Host::guest_config` enables both).
pub fn diagnose(host: &Host, guest: &Domain, stage: Stage) -> Finding {
    let mut report = String::new();
    let silence = silence(host, guest);
    for key in ['q', 'e'] {
        let text = xen_state::debug_key(host, key).unwrap_or_else(|error| format!("{error:#}"));
        let _ = writeln!(report, "{}", xen_state::about(&text, guest.id).join("\n"));
    }
    let before = guest.console_length();
    let ours: Vec<(KnownDomain, u64)> = host
        .domains()
        .into_iter()
        .filter(|domain| !domain.linux)
        .map(|domain| {
            let shown = length(&host.console_log(&domain.name));
            (domain, shown)
        })
        .collect();
    let id = guest.id;
    let list = format!("timeout 10 xenstore-ls -f /local/domain/{id}/device/vbd");
    let disks = match host.run(&list, LOOK) {
        Ok(output) => output.out,
        Err(error) => format!("dom0 does not list its disks: {error:#}\n"),
    };
    report += &disks;
    let mut ask = "xl list\n".to_owned();
    for (domain, _) in &ours {
        let tty = format!("/local/domain/{}/console/tty", domain.id);
        let _ = writeln!(
            ask,
            "xenstore-exists {tty} && printf s >$(xenstore-read {tty})"
        );
    }
    ask += &format!(
        "for key in 8 w; do sleep 1; xl sysrq {id} $key; done; sleep 1; xl list\n\
         xl trigger {id} nmi 0; sleep 5\n"
    );
    match host.run(&ask, LOOK) {
        Ok(output) => report += &(output.out + &output.err),
        Err(error) => report += &format!("dom0 cannot look at it: {error:#}\n"),
    }
    for (domain, shown) in ours {
        let text = read_from(&host.console_log(&domain.name), shown);
        if !text.is_empty() {
            let _ = writeln!(report, "== {}:\n{text}", domain.name);
        }
    }
    let dump = guest.console_from(before);
    let _ = writeln!(report, "== {}:\n{dump}", guest.name);
    let mut fault = fault::in_dump(&guest.name, &dump);
    if fault.is_none() && stage == Stage::Boot {
        fault = fault::in_boot(&guest.name, silence, &disks);
    }
    Finding { fault, report }
}

/// Returns the time since a domain's console last showed something; zero if that is not known.
fn silence(host: &Host, guest: &Domain) -> Duration {
    let shown = fs::metadata(host.console_log(&guest.name)).and_then(|file| file.modified());
    let since = shown.ok().and_then(|time| time.elapsed().ok());
    since.unwrap_or_default()
}
