//! The unikernel's runtime, shown by its own demo (`kernel/demo/hello.rs`): domains that do forbidden things, and are
//! ended for it.

use crate::commands::build;
use crate::config::{Config, Kind};
use crate::host::{length, read_from};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Instant;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory-rights",
        about: "PVH and PV: data cannot be executed, wherever it is, and code cannot be written",
        part: Part::Suite,
        run: memory_rights,
    },
    Scenario {
        name: "watchdog",
        about: "PVH and PV: a vCPU that hangs ends its domain, with a reason; so does one whose interrupted state is lost",
        part: Part::Suite,
        run: watchdog,
    },
    Scenario {
        name: "bus-addresses",
        about: "a page that a PV domain grants is mapped, as PVH and as PV, with its machine address for devices",
        part: Part::Suite,
        run: bus_addresses,
    },
    Scenario {
        name: "device-stop",
        about: "PVH and PV: a domain that crashes or ends stops its devices first, also if one of their drivers fails",
        part: Part::Suite,
        run: device_stop,
    },
];

/// The lines that a domain left in the logs until it was gone.
struct Left {
    console: String,
    xen: String,
    xl: String,
}

/// Runs the demo until it ends. It is meant to crash, so the host does not watch for its crash.
fn run(testbed: &Testbed, kind: Kind, vcpus: u32, test: &str) -> Result<Left> {
    let host = testbed.host;
    let (here, there) = testbed.shared_file("demo");
    fs::copy(build::build_demo()?, here)?;
    let (module, _) = testbed.shared_file("demo-module");
    fs::write(module, [0x5a; 10_000])?;
    let mut config = Config::new("demo", kind, &there);
    config.ramdisk = Some("/lab/demo-module".to_owned());
    config.memory = 32;
    config.vcpus = vcpus;
    config.cmdline = format!("test={test}");
    let (here, there) = testbed.shared_file("demo.cfg");
    fs::write(here, config.to_string())?;
    testbed.step(format!("{kind}: {test}"));
    let console = host.console_log("demo");
    let (console_start, xen_log) = (length(&console), host.instance().xen_log());
    let xen_start = length(&xen_log);
    host.ok(&format!("xl create -q {there}"))?;
    let deadline = Instant::now() + MINUTE;
    while host.exec("xl domid demo", MINUTE)?.status == 0 {
        host.tick(deadline)
            .with_context(|| format!("test={test} does not end"))?;
    }
    // xl begins a new one for each domain of the name.
    let xl_log = host.instance().share().join("xl/xl-demo.log");
    Ok(Left {
        console: read_from(&console, console_start),
        xen: read_from(&xen_log, xen_start),
        xl: read_from(&xl_log, 0),
    })
}

/// The bits of a page fault's error code that tell what was refused (Intel SDM volume 3, figure 4-12): the fetch of an
/// instruction, and a write to a page that is there.
const EXECUTED: u64 = 1 << 4;
const WRITTEN: u64 = 1 << 0 | 1 << 1;

/// Returns whether a domain ended with a page fault for this reason, at the very address that it has logged after `what`.
fn is_refused(console: &str, what: &str, reason: u64) -> bool {
    let fault = console.split_once("CPU exception 14: page fault");
    let Some((before, report)) = fault else {
        return false;
    };
    let number = |text: &str, after: &str| {
        let (_, rest) = text.split_once(after)?;
        let digits = rest.strip_prefix("0x")?;
        let end = digits.find(|next: char| !next.is_ascii_hexdigit());
        u64::from_str_radix(&digits[..end.unwrap_or(digits.len())], 16).ok()
    };
    let address = number(report, "address ");
    let code = number(report, "error code ");
    address.is_some()
        && address == number(before, what)
        && code.is_some_and(|code| code & reason == reason)
}

fn memory_rights(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        for data in ["heap", "page", "module", "stack"] {
            let left = run(testbed, kind, 1, &format!("execute-{data}"))?;
            ensure!(
                is_refused(&left.console, "data at ", EXECUTED),
                "{kind}: {data} was executed, or something else failed:\n{}",
                left.console
            );
        }
        let left = run(testbed, kind, 1, "write-code")?;
        ensure!(
            is_refused(&left.console, "code at ", WRITTEN),
            "{kind}: code was written, or something else failed:\n{}",
            left.console
        );
    }
    Ok(())
}

fn watchdog(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        let alone = run(testbed, kind, 1, "hang")?;
        ensure!(
            alone.console.contains("hanging now") && alone.xen.contains("atchdog timer"),
            "{kind}: the only vCPU hung, but Xen's log names no watchdog:\n{}",
            alone.xen
        );
        let seen = run(testbed, kind, 2, "vcpu-hang")?;
        ensure!(
            seen.console.contains("watchdog: vCPU 1 has run for"),
            "{kind}: a vCPU hung, and the other one did not say so:\n{}",
            seen.console
        );
        for left in [alone, seen] {
            // SHUTDOWN_watchdog (sched.h).
            ensure!(
                left.xl.contains("reason code 4"),
                "{kind}: xl was not told of a watchdog:\n{}",
                left.xl
            );
        }
    }
    let stray = run(testbed, Kind::Pvh, 1, "stray")?;
    ensure!(
        stray
            .console
            .contains("10000 of 10000 stray upcalls changed nothing"),
        "stray upcalls changed something:\n{}",
        stray.console
    );
    let twice = run(testbed, Kind::Pvh, 1, "stray-twice")?;
    let (before, after) = twice
        .console
        .split_once("interrupting the handler now")
        .context("the handler was not interrupted")?;
    ensure!(
        !before.contains("twice, and what")
            && after.contains("an interrupt was delivered twice, and what it interrupted is lost"),
        "an upcall within its handler was not noticed:\n{}",
        twice.console
    );
    Ok(())
}

fn device_stop(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        for test in ["device-panic", "device-page-fault"] {
            let left = run(testbed, kind, 2, test)?;
            let lines = |text: &str| left.console.matches(text).count();
            // The second one's driver fails when it is told.
            let seen = (
                lines("a device is told to stop"),
                lines("a device has stopped"),
            );
            ensure!(
                seen == (3, 2) && left.console.contains("backtrace"),
                "{kind}: {test}: {seen:?} devices were told, and have stopped:\n{}",
                left.console
            );
            // SHUTDOWN_crash (sched.h).
            ensure!(
                left.xl.contains("reason code 3"),
                "{kind}: {test}: xl was not told of a crash:\n{}",
                left.xl
            );
        }
        let left = run(testbed, kind, 2, "device-stuck")?;
        ensure!(
            left.console.contains("1 device(s) do not stop") && left.xl.contains("reason code 0"),
            "{kind}: a device that does not stop held the domain's end up, or was not reported:\n{}\n{}",
            left.console,
            left.xl
        );
    }
    Ok(())
}

/// Has one domain grant a page, and the other one map it and compare Xen's data about it with its owner's.
fn bus_addresses(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let (here, there) = testbed.shared_file("demo");
    fs::copy(build::build_demo()?, here)?;
    let config = |name: &str, kind, test: &str| {
        let mut config = Config::new(name, kind, &there);
        config.memory = 32;
        config.cmdline = format!("test={test}");
        config
    };
    for kind in Kind::ALL {
        testbed.step(format!("a {kind} domain maps a page of a PV domain"));
        // Xen numbers domains one after the other.
        let last = host
            .create_paused(&config("counting", Kind::Pv, "grant peer=0"))?
            .id;
        let (owner, mapper) = (last + 1, last + 2);
        let mut granting = host.create(&config(
            "granting",
            Kind::Pv,
            &format!("grant peer={mapper}"),
        ))?;
        ensure!(granting.id == owner, "Xen numbers domains otherwise");
        let line = granting.wait_console_from(0, "granted to", MINUTE)?;
        let port = line.rsplit(' ').next().unwrap_or_default().trim();
        let test = format!("map peer={owner} port={port}");
        let mut mapping = host.create(&config("mapping", kind, &test))?;
        mapping.wait_console("its owner's is 0x", MINUTE)?;
        mapping.wait_gone(MINUTE)?;
        granting.wait_gone(MINUTE)?;
        let console = mapping.console();
        ensure!(
            !console.contains("panic") && !console.contains("owner's is 0x0"),
            "{kind}:\n{console}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_fault_that_was_meant_counts() {
        let console = |address: u64, code: u64, at: u64| {
            format!(
                "[    0.1] INFO  hello: data at {address:#x} is to be executed\n\n\
                 CPU exception 14: page fault on vCPU 0\n  rip 0x1000, error code {code:#x}, address {at:#x}\n"
            )
        };
        let refused = |text: &str| is_refused(text, "data at ", EXECUTED);
        assert!(refused(&console(0x52_0000, 0x11, 0x52_0000)));
        assert!(refused(&console(0x52_0000, 0x15, 0x52_0000)));
        // A read of it, a fetch elsewhere, and another exception.
        assert!(!refused(&console(0x52_0000, 0x1, 0x52_0000)));
        assert!(!refused(&console(0x52_0000, 0x11, 0x8)));
        assert!(!refused("data at 0x8 is to be executed\nCPU exception 13"));
        assert!(!refused("CPU exception 14: page fault on vCPU 0\n"));
        assert!(!is_refused(&console(8, 0x10, 8), "data at ", WRITTEN));
        assert!(is_refused(&console(8, 0x3, 8), "data at ", WRITTEN));
    }
}
