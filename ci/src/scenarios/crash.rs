//! Crashes of a driver domain on purpose (`test-crash=`), after each of which it starts again in place.

use crate::testbed::MINUTE;
use crate::testbed::storage::{BOOT, READY, Running};
use anyhow::{Context, Result, bail, ensure};

/// A crash on purpose.
#[derive(Clone, Debug)]
pub(super) struct Crash {
    /// What is written into `data/crash`.
    lever: String,
    /// A part of the report.
    report: String,
}

impl Crash {
    /// Returns the crash in that way on that vCPU.
    pub(super) fn by(way: &str, vcpu: u32) -> Self {
        let report = match way {
            "panic" => format!("panic on vCPU {vcpu}"),
            "null" | "page-table" => "CPU exception 14: page fault".to_owned(),
            "stack" => "the stack has overflowed".to_owned(),
            "heap" => "memory allocation of".to_owned(),
            "hang" => format!("watchdog: vCPU {vcpu} has run for 2 s"),
            other => unreachable!("no crash is called {other}"),
        };
        let lever = format!("{way} {vcpu}");
        Self { lever, report }
    }

    /// Crashes the domain.
    pub(super) fn happen(&self, storage: &Running) -> Result<()> {
        let (lever, node) = (
            &self.lever,
            format!("/local/domain/{}/data/crash", storage.id),
        );
        let script = format!("xenstore-write {node} '{lever}'");
        storage.host.ok(&script).map(drop)
    }

    /// Crashes the domain and waits until the same domain serves again, and tells of that crash and that many restarts.
    pub(super) fn and_return(&self, storage: &Running, restarts: u32) -> Result<()> {
        let (Self { lever, report }, seen) = (self, storage.console_length());
        self.happen(storage)?;
        storage.wait_console_from(seen, "started again in place", BOOT)?;
        storage.wait_console_from(seen, READY, BOOT)?;
        let id = storage.host.ok(&format!("xl domid {}", storage.name))?;
        ensure!(
            id.trim() == storage.id.to_string(),
            "domain {} became {id}",
            storage.id
        );
        // Both nodes, once they tell of this restart.
        let data = format!("/local/domain/{}/data", storage.id);
        let script = format!(
            "for n in $(seq 50); do {} && xenstore-read {data}/last-crash && exit; sleep 0.1; done; exit 1",
            restarted(storage, restarts)
        );
        let told = storage
            .host
            .ok(&script)
            .with_context(|| format!("data/restarts is not {restarts} after {lever}"))?;
        ensure!(
            told.contains(report),
            "after {lever}, data/last-crash says {told:?} instead of {report:?}"
        );
        Ok(())
    }

    /// Crashes the domain, and returns whether it has ended. If not, it serves again, after that many restarts.
    pub(super) fn ends(&self, storage: &mut Running, restarts: u32) -> Result<bool> {
        let seen = storage.console_length();
        self.happen(storage)?;
        let name = &storage.name;
        let script = format!(
            "for n in $(seq 300); do {} && exit 0; xl domid '{name}' >/dev/null 2>&1 || exit 3; sleep 0.1; done; exit 1",
            restarted(storage, restarts)
        );
        match storage.host.exec(&script, MINUTE)?.status {
            0 => {
                storage.wait_console_from(seen, READY, BOOT)?;
                Ok(false)
            }
            3 => {
                storage.wait_gone(MINUTE)?;
                Ok(true)
            }
            _ => bail!("{name} has neither ended nor started again after a crash"),
        }
    }
}

/// Returns the shell's test of whether a driver domain tells of that many restarts.
fn restarted(storage: &Running, restarts: u32) -> String {
    let node = format!("/local/domain/{}/data/restarts", storage.id);
    format!("[ \"$(xenstore-read {node} 2>/dev/null)\" = {restarts} ]")
}
