//! Telling faults of the emulation apart from faults of our own domains.
//!
//! QEMU's emulation of a Xen host has faults of its own (`docs/emulator-faults.md` counts them): a stock Linux guest
//! dies of a triple fault or is interrupted where no processor would do so, or a program in dom0 dies of a signal. Only
//! such lines justify a rerun; the acts of our own domains are never among them. A triple fault is not an act of
//! theirs: all that a domain needs to report an exception of its own is read-only from boot on
//! (`kernel/src/cpu/pvh.rs`). Before that there are a few instructions that are the same each time, and so would be the
//! fault.

use crate::host::{KnownDomain, Output};
use std::collections::BTreeMap;
use std::time::Duration;

/// The time without output after which a guest counts as stopped in its boot: its kernel and its init take seconds, and
/// a task of the kernel's that waits says so before.
const SILENT: Duration = Duration::from_secs(60);

/// The signals by which a program ends because of its own error: ILL, TRAP, ABRT, BUS, FPE, SEGV.
const FATAL_SIGNALS: &[i32] = &[4, 5, 6, 7, 8, 11];

/// The words of bash and glibc about a program that such a signal ended.
const CRASH_WORDS: &[&str] = &[
    "Segmentation fault",
    "Illegal instruction",
    "Bus error",
    "Aborted",
    "malloc():",
    "free():",
    "realloc():",
    "double free",
    "corrupted size vs. prev_size",
    "malloc_consolidate():",
    "stack smashing detected",
    "sysmalloc:",
];

/// The words of dom0's kernel about such a program.
const KERNEL_CRASH_WORDS: &[&str] = &[
    " segfault at ",
    "general protection fault",
    "traps: ",
    "invalid opcode",
    "Kernel panic",
    "BUG: ",
    "Oops: ",
];

/// The words of fio and cmp when a disk does not hold what was written to it.
const WRONG_DATA: &[&str] = &["verify failed at ", "verify: bad ", " differ: "];

/// The words of a driver domain whose interrupt handler was interrupted while interrupts were off, by the same
/// interrupt. Its registers show that, and nothing that it does can cause it.
const DELIVERED_TWICE: &str = "an interrupt was delivered twice";

/// The words of a driver domain that has crashed and serves again.
const RESTARTED: &str = "started again in place";

/// Finds signs of a program's death in the result of a command in dom0.
pub fn in_command(script: &str, output: &Output) -> Vec<String> {
    let script = script.trim().lines().next().unwrap_or_default();
    let mut found: Vec<String> = output
        .err
        .lines()
        .filter(|line| CRASH_WORDS.iter().any(|death| line.contains(death)))
        .map(|line| format!("dom0: {script}: {line}"))
        .collect();
    let signal = output.status - 128;
    if found.is_empty() && FATAL_SIGNALS.contains(&signal) {
        found.push(format!("dom0: {script}: ended by signal {signal}"));
    }
    found
}

/// The evidence in the logs of a scenario.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Faults of the emulation: each the line that shows it.
    pub emulator: Vec<String>,
    /// Faults of our own domains.
    pub own: Vec<String>,
}

impl Verdict {
    /// Returns whether a scenario that failed with `error` may be run again: the emulation was at fault, none
    /// of our own domains failed, and there was no wrong data on a disk.
    pub fn allows_rerun(&self, error: &str) -> bool {
        let wrong_data = WRONG_DATA.iter().any(|sign| error.contains(sign));
        !self.emulator.is_empty() && self.own.is_empty() && !wrong_data
    }
}

/// The place of a vCPU that has not come to its first far jump: its code segment has no selector. It has neither an
/// interrupt table nor interrupts, so what it took was chosen for it before, and it should not have been started
/// (`kernel/src/cpu/halting.rs`).
const NOT_BEGUN: &str = ", at 0000:[";

/// Reads Xen's log and dom0's kernel log of one scenario.
pub fn in_logs(xen: &str, dom0: &str, domains: &[KnownDomain]) -> Verdict {
    let mut verdict = Verdict::default();
    // Others are meant to end so.
    let known = |line: &str| domains.iter().any(|known| is_said_by(line, known.id));
    let twice = xen
        .lines()
        .filter(|line| line.contains(DELIVERED_TWICE) && known(line));
    verdict
        .emulator
        .extend(twice.map(|line| format!("our domain: {}", line.trim())));
    let lines: Vec<&str> = xen.lines().filter(|line| line.contains("(XEN)")).collect();
    for (number, line) in lines.iter().enumerate() {
        if line.contains("Panic on CPU") || line.contains("Xen BUG at") {
            verdict.emulator.push(line.trim().to_owned());
            continue;
        }
        let crash = line.contains("Triple fault") || line.contains("crash");
        let Some(id) = domain_of(line).filter(|_| crash) else {
            continue;
        };
        match domains.iter().rev().find(|known| known.id == id) {
            Some(known) if known.linux && line.contains("Triple fault") => {
                let text = format!("stock guest {}: {}", known.name, line.trim());
                verdict.emulator.push(text);
            }
            // The lines that follow a triple fault.
            Some(known) if known.linux => {}
            Some(known) if line.contains("Triple fault") => {
                let place = registers(&lines[number..], id).unwrap_or_default();
                let text = format!("our domain {}: {}{place}", known.name, line.trim());
                match place.starts_with(NOT_BEGUN) {
                    true => verdict.own.push(text),
                    false => verdict.emulator.push(text),
                }
            }
            Some(known) => verdict.own.push(format!("{}: {}", known.name, line.trim())),
            None => {}
        }
    }
    let deaths = dom0
        .lines()
        .filter(|line| KERNEL_CRASH_WORDS.iter().any(|death| line.contains(death)));
    verdict
        .emulator
        .extend(deaths.map(|line| format!("dom0's kernel: {}", line.trim())));
    verdict
}

/// Returns whether a line of Xen's log is what that domain has said through Xen.
fn is_said_by(line: &str, id: u32) -> bool {
    let said = line
        .split_once("(d")
        .and_then(|(_, rest)| rest.split_once(')'));
    said.is_some_and(|(number, _)| number.parse() == Ok(id))
}

/// Searches the output of a guest's kernel that was stopped by an NMI. If an interrupt arrived while interrupts were
/// off, the emulation has delivered what no processor would; a kernel that held a lock then waits for itself.
pub fn in_dump(guest: &str, console: &str) -> Option<String> {
    const INTERRUPTS: u64 = 1 << 9;
    let mut interrupt = false;
    let mut at = "";
    for line in console.lines() {
        let text = line.split_once("] ").map_or(line, |(_, text)| text).trim();
        // An entry of the kernel's, with what it has interrupted in the lines that follow. The context that
        // the NMI itself has interrupted may have them off.
        if let Some(place) = text.strip_prefix("RIP: ") {
            at = place;
        } else if let Some((_, flags)) = text.split_once(" EFLAGS: ") {
            let on = u64::from_str_radix(flags, 16).map_or(true, |flags| flags & INTERRUPTS != 0);
            if interrupt && !on {
                return Some(format!(
                    "stock guest {guest} was interrupted at {at} while its interrupts were off"
                ));
            }
        } else if !text.starts_with("Code: ") {
            interrupt = text.starts_with("asm_sysvec_");
        }
    }
    None
}

/// Judges a guest that fell silent in its boot by the directories of its disks in xenstore. If it has connected none of
/// them, only a stock kernel, Xen and the emulation were involved, and nothing of ours. An empty listing shows nothing:
/// the guest may be waiting for the xenstored that did not answer.
pub fn in_boot(guest: &str, silence: Duration, disks: &str) -> Option<String> {
    const INITIALISING: &str = "\"1\"";
    let states: Vec<&str> = disks
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(path, _)| path.ends_with("/state"))
        .map(|(_, state)| state.trim())
        .collect();
    let met_nobody = !states.is_empty() && states.iter().all(|&state| state == INITIALISING);
    (silence >= SILENT && met_nobody).then(|| {
        let seconds = silence.as_secs();
        format!(
            "stock guest {guest} fell silent in its boot {seconds} s ago, before it connected a disk"
        )
    })
}

/// Searches a stock guest's console for an overflow of the stack on which Linux enters from user mode. It holds
/// one entry, which runs with interrupts off: to overflow, it was interrupted nevertheless.
fn in_console(guest: &str, console: &str) -> Option<String> {
    let line = console
        .lines()
        .find(|line| line.contains("BUG: ENTRY_TRAMPOLINE stack guard page was hit"))?;
    Some(format!("stock guest {guest}: {}", line.trim()))
}

/// Reads the consoles of one scenario's domains, which are kept by the names of their logs.
pub fn in_consoles(consoles: &BTreeMap<String, String>, domains: &[KnownDomain]) -> Vec<String> {
    let stock = |name: &str| {
        domains
            .iter()
            .any(|known| known.linux && known.name == name)
    };
    consoles
        .iter()
        .filter_map(|(log, console)| {
            let name = log.strip_prefix("console-")?.strip_suffix(".log")?;
            in_console(name, console).filter(|_| stock(name))
        })
        .collect()
}

/// Returns a domain's instruction pointer and flags from Xen's dump of its state after its triple fault.
fn registers(lines: &[&str], id: u32) -> Option<String> {
    let context = format!("(d{id}v");
    let dump = &lines[..lines.len().min(8)];
    let value = |name: &str| {
        let found = dump.iter().find_map(|line| line.split_once(name))?.1;
        Some(found.trim())
    };
    let (flags, whose) = value("RFLAGS: ")?.split_once(' ')?;
    whose
        .contains(&context)
        .then(|| Some(format!(", at {}, flags {flags}", value("RIP: ")?)))?
}

/// Returns our own domains that ended with the reason "crash" (3 in Xen's public/sched.h), as xl logged it.
pub fn crashes(xl_log: &str, domains: &[KnownDomain]) -> Vec<String> {
    let crashed = |known: &&KnownDomain| {
        let line = format!("Domain {} has shut down, reason code 3 ", known.id);
        !known.linux && !known.may_crash && xl_log.contains(&line)
    };
    domains
        .iter()
        .filter(crashed)
        .map(|known| format!("{} (domain {}) crashed", known.name, known.id))
        .collect()
}

/// Returns the restart in place that one of our domains reports on its console, unless it is meant to restart: the
/// crash before it is a failure, although guests have not noticed it.
pub fn restart(console: &str, known: &KnownDomain) -> Option<String> {
    let told = console.lines().find(|line| line.contains(RESTARTED))?;
    (!known.linux && !known.may_restart).then(|| {
        let (name, id) = (&known.name, known.id);
        format!("{name} (domain {id}) crashed: {}", told.trim())
    })
}

/// Returns the domain of a line of Xen's log: `d7v0 …`, `d7: …` or `Domain 7 …`.
fn domain_of(line: &str) -> Option<u32> {
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        if word == "Domain" {
            return words.next()?.trim_end_matches(':').parse().ok();
        }
        if let Some(rest) = word.strip_prefix('d') {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            if digits > 0
                && (rest[digits..].starts_with('v')
                    || rest[digits..] == *":"
                    || rest.len() == digits)
            {
                return rest[..digits].parse().ok();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains() -> Vec<KnownDomain> {
        let known = |id, name: &str, linux| KnownDomain {
            id,
            name: name.to_owned(),
            linux,
            may_crash: false,
            may_restart: false,
            console_start: 0,
        };
        vec![known(7, "guest", true), known(8, "storage", false)]
    }

    #[test]
    fn a_triple_fault_is_the_emulators_and_any_other_crash_of_ours_is_ours() {
        let xen = "(XEN) [   12.1] d7v0 Triple fault - invoking HVM shutdown action 1\n\
                   (XEN) [   13.1] d8v0 Triple fault - invoking HVM shutdown action 1\n\
                   (XEN) [   14.1] Domain 8 (vcpu#0) crashed on cpu#1:\n\
                   (XEN) [   15.1] Domain 7 (vcpu#0) crashed on cpu#1:\n\
                   (d8) a panic: d7v0 Triple fault\n";
        let verdict = in_logs(xen, "", &domains());
        assert_eq!(verdict.emulator.len(), 2);
        assert!(verdict.emulator[0].starts_with("stock guest guest: (XEN) [   12.1] d7v0"));
        assert!(verdict.emulator[1].starts_with("our domain storage: (XEN) [   13.1] d8v0"));
        assert_eq!(verdict.own.len(), 1);
        assert!(verdict.own[0].contains("crashed on cpu#1"));
    }

    #[test]
    fn an_interrupt_that_is_delivered_twice_is_the_emulators() {
        let xen = "(d8) [  369.8] watchdog: an interrupt was delivered twice, and what it interrupted is lost\n\
                   (d8) [  400.0] watchdog: vCPU 0 has run for 2 s without coming back to its work\n";
        let verdict = in_logs(xen, "", &domains());
        assert_eq!(verdict.emulator.len(), 1);
        assert!(verdict.emulator[0].contains("369.8"), "{verdict:?}");
        let meant = in_logs(&xen.replace("(d8)", "(d18)"), "", &domains());
        assert_eq!(meant, Verdict::default(), "a domain that nobody watches");
    }

    #[test]
    fn a_triple_fault_of_a_vcpu_that_has_not_begun_is_ours() {
        let dump = |name: &str, id: u32, selector: &str| {
            let xen = format!(
                "(XEN) [  178.5] d{id}v1 Triple fault - invoking HVM shutdown action 1\n\
                 (XEN) [  178.5] *** Dumping Dom{id} vcpu#1 state: ***\n\
                 (XEN) [  178.5] RIP:    {selector}:[<000000000010003f>]\n\
                 (XEN) [  178.5] RFLAGS: 0000000000000002   CONTEXT: hvm guest (d{id}v1)\n"
            );
            let Verdict { emulator, own } = in_logs(&xen, "", &domains());
            let text = emulator.iter().chain(&own).next().unwrap();
            assert!(text.contains(name), "{text}");
            (emulator.len(), own.len())
        };
        assert_eq!(dump("our domain storage", 8, "0000"), (0, 1));
        assert_eq!(dump("our domain storage", 8, "0008"), (1, 0));
        assert_eq!(dump("stock guest guest", 7, "0000"), (1, 0));
    }

    #[test]
    fn a_triple_fault_of_ours_is_shown_with_its_place() {
        let dump = |domain: u32| {
            format!(
                "(XEN) [  661.8] d8v0 Triple fault - invoking HVM shutdown action 1\n\
                 (XEN) [  661.8] *** Dumping Dom8 vcpu#0 state: ***\n\
                 (XEN) [  661.8] CPU:    0\n\
                 (XEN) [  661.8] RIP:    0008:[<0000000000101371>]\n\
                 (XEN) [  661.8] RFLAGS: 0000000000000202   CONTEXT: hvm guest (d{domain}v0)\n"
            )
        };
        let fault = |domain| in_logs(&dump(domain), "", &domains()).emulator.remove(0);
        let place = ", at 0008:[<0000000000101371>], flags 0000000000000202";
        assert!(fault(8).ends_with(place), "{}", fault(8));
        assert!(
            fault(9).ends_with("shutdown action 1"),
            "another domain's dump"
        );
    }

    /// Returns the dump of a kernel that an NMI has stopped while it served an interrupt.
    fn dump(flags: &str) -> String {
        format!(
            "[  923.218939] Kernel panic - not syncing: NMI: Not continuing\n\
             [  923.266412] Call Trace:\n\
             [  923.300682]  <NMI>\n\
             [  923.363526]  end_repeat_nmi+0x16/0x67\n\
             [  923.370952] RIP: 0010:native_queued_spin_lock_slowpath+0x74/0x90\n\
             [  923.371523] RSP: 0000:ffffc9000008bd68 EFLAGS: 00000046\n\
             [  923.384599]  </NMI>\n\
             [  923.384600]  <IRQ>\n\
             [  923.384601]  __sysvec_xen_hvm_callback+0x4a/0x80\n\
             [  923.384602]  </IRQ>\n\
             [  923.384603]  <TASK>\n\
             [  923.384604]  asm_sysvec_xen_hvm_callback+0x16/0x20\n\
             [  923.384605] RIP: 0010:_raw_spin_lock_irqsave+0x2c/0x40\n\
             [  923.384606] RSP: 0018:ffffc9000008be90 EFLAGS: {flags}\n\
             [  923.384607]  </TASK>\n"
        )
    }

    #[test]
    fn a_guest_that_was_interrupted_with_interrupts_off_shows_it() {
        let fault = in_dump("guest", &dump("00000046")).unwrap();
        let place = "stock guest guest was interrupted at 0010:_raw_spin_lock_irqsave+0x2c/0x40";
        assert!(fault.starts_with(place), "{fault}");
        assert_eq!(in_dump("guest", &dump("00000246")), None);
        assert_eq!(in_dump("guest", "@@ready"), None);
    }

    #[test]
    fn a_guest_that_is_silent_before_it_connects_a_disk_has_met_nothing_of_ours() {
        let disks = |state: &str| {
            format!(
                "/local/domain/7/device/vbd/51712/state = \"1\"\n\
                 /local/domain/7/device/vbd/51728/backend-id = \"8\"\n\
                 /local/domain/7/device/vbd/51728/state = \"{state}\"\n"
            )
        };
        let long = SILENT * 2;
        let fault = in_boot("guest", long, &disks("1")).unwrap();
        assert!(fault.starts_with("stock guest guest fell silent in its boot 120 s ago"));
        assert_eq!(
            in_boot("guest", SILENT / 2, &disks("1")),
            None,
            "it still boots"
        );
        for state in ["3", "4", "5", "6"] {
            assert_eq!(in_boot("guest", long, &disks(state)), None, "state {state}");
        }
        let silent_xenstored = "timeout: no answer\n";
        assert_eq!(in_boot("guest", long, silent_xenstored), None);
    }

    #[test]
    fn an_entry_stack_of_a_stock_guest_that_overflows_is_the_emulators() {
        let line = "[   61.2] BUG: ENTRY_TRAMPOLINE stack guard page was hit at (____ptrval____)\n";
        let consoles =
            ["guest", "storage"].map(|name| (format!("console-{name}.log"), line.to_owned()));
        let found = in_consoles(&consoles.into(), &domains());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("stock guest guest: [   61.2] BUG: ENTRY_TRAMPOLINE"));
        let task = [(
            "console-guest.log".to_owned(),
            line.replace("ENTRY_TRAMPOLINE", "TASK"),
        )];
        assert!(
            in_consoles(&task.into(), &domains()).is_empty(),
            "a kernel's own recursion"
        );
    }

    #[test]
    fn dom0_programs_dying_are_seen_in_the_kernel_log_and_in_the_commands_result() {
        let dom0 = "[ 9.1] xl[312]: segfault at 0 ip 00007f sp 00007f error 4 in libxl\n[ 9.2] loop: module loaded\n";
        assert_eq!(in_logs("", dom0, &[]).emulator.len(), 1);
        let output = |status, err: &str| Output {
            status,
            out: String::new(),
            err: err.to_owned(),
        };
        assert_eq!(in_command("xl list", &output(139, "")).len(), 1);
        assert_eq!(
            in_command(
                "xl list",
                &output(139, "line 1: 12 Segmentation fault xl list\n")
            )
            .len(),
            1
        );
        assert!(in_command("xl list", &output(1, "xl: not found\n")).is_empty());
        assert!(in_command("timeout 1 xl list", &output(143, "")).is_empty());
    }

    #[test]
    fn a_fault_of_the_emulation_excuses_neither_our_own_faults_nor_wrong_data() {
        let emulator = || vec!["Triple fault".to_owned()];
        let hit = Verdict {
            emulator: emulator(),
            own: Vec::new(),
        };
        assert!(hit.allows_rerun("fio: io_u error on file /dev/xvda: Input/output error: read"));
        for wrong in [
            "fio failed in guest:\ncrc32c: verify failed at file /dev/xvda offset 4096, length 512",
            "verify: bad magic header 0, wanted acca at file /dev/xvda",
            "- /tmp/xvdb differ: char 1, line 1",
        ] {
            assert!(!hit.allows_rerun(wrong), "{wrong}");
        }
        assert!(
            !Verdict::default().allows_rerun("time is over"),
            "no fault seen"
        );
        let both = Verdict {
            emulator: emulator(),
            own: vec!["storage (domain 8) crashed".to_owned()],
        };
        assert!(!both.allows_rerun("time is over"));
    }

    #[test]
    fn only_our_own_domains_crashes_count() {
        let log = "Domain 7 has shut down, reason code 3 0x3\n\
                   Domain 8 has shut down, reason code 3 0x3\n\
                   Domain 81 has shut down, reason code 3 0x3\n";
        assert_eq!(crashes(log, &domains()), ["storage (domain 8) crashed"]);
        assert!(crashes("Domain 8 has shut down, reason code 0 0x0\n", &domains()).is_empty());
        let mut meant = domains();
        meant[1].may_crash = true;
        assert!(crashes(log, &meant).is_empty());
    }

    #[test]
    fn a_crash_that_a_domain_of_ours_has_survived_counts() {
        let console = "INFO ready for attach\n\
                       ERROR started again in place, restart 1, after this:\n\
                       ERROR | panic on vCPU 0\n";
        let [guest, mut storage]: [KnownDomain; 2] = domains().try_into().unwrap();
        let told =
            "storage (domain 8) crashed: ERROR started again in place, restart 1, after this:";
        assert_eq!(restart(console, &storage).as_deref(), Some(told));
        assert_eq!(restart("INFO ready for attach\n", &storage), None);
        assert_eq!(restart(console, &guest), None);
        storage.may_restart = true;
        assert_eq!(restart(console, &storage), None);
    }

    #[test]
    fn domain_numbers_are_found_in_every_form() {
        assert_eq!(domain_of("(XEN) d12v3 Triple fault"), Some(12));
        assert_eq!(domain_of("(XEN) d12: crashed"), Some(12));
        assert_eq!(domain_of("(XEN) Domain 4 (vcpu#0) crashed"), Some(4));
        assert_eq!(domain_of("(XEN) Domain 4: crash"), Some(4));
        assert_eq!(domain_of("(XEN) dom0 is fine, d1x"), None);
    }
}
