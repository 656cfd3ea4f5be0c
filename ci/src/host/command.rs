//! Commands in dom0: a script in the shared folder, taken up when its number is sent to dom0's
//! command server.

use super::domain::TOOLSTACK;
use super::{Host, TICK, dom0_diagnosis};
use crate::fault;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The result of a command in dom0 or in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 and a signal's number if that signal ended the command.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error (empty for guests: there it is part of `out`).
    pub err: String,
}

/// A command in dom0 that takes longer than it may.
#[derive(Debug)]
pub(super) struct Late {
    what: &'static str,
    limit: Duration,
    script: String,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Late {
            what,
            limit,
            script,
        } = self;
        write!(f, "dom0 {what} within {limit:?}: {script}")
    }
}

impl std::error::Error for Late {}

impl Host {
    /// Runs a shell script in dom0. An error means that it could not be run or did not end in time,
    /// not that it failed.
    pub fn exec(&self, script: &str, limit: Duration) -> Result<Output> {
        let begin = Instant::now();
        let output = match self.run(script, limit) {
            Err(error) if error.is::<Late>() => {
                self.diagnose_dom0(script);
                return Err(error);
            }
            result => result?,
        };
        self.log_command(script, &output, begin.elapsed())?;
        let faults = fault::in_command(script, &output);
        self.seen().emulator_faults.extend(faults);
        Ok(output)
    }

    /// Examines a host on which a command was late, once, and keeps the findings.
    fn diagnose_dom0(&self, script: &str) {
        if self.seen().diagnosis.is_some() {
            return;
        }
        let finding = dom0_diagnosis::diagnose(self);
        let since = first_line(script);
        if finding.dead {
            let fault = format!("dom0 runs nothing any more, since: {since}");
            self.seen().emulator_faults.push(fault);
        }
        self.seen().diagnosis = Some(format!("late was: {since}\n{}", finding.report));
    }

    /// Returns the findings of the first time that a command in dom0 or in a guest was late.
    pub fn take_diagnosis(&self) -> Option<String> {
        self.seen().diagnosis.take()
    }

    pub(super) fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        let dir = self.instance.share().join("cmd");
        let id = format!(
            "{}-{}",
            std::process::id(),
            self.next.fetch_add(1, Ordering::Relaxed)
        );
        let file = |end: &str| dir.join(format!("{id}.{end}"));
        fs::write(file("sh"), script)?;
        let deadline = Instant::now() + limit;
        let wait_for = |there: &dyn Fn() -> bool, what: &'static str| -> Result<()> {
            while !there() {
                if Instant::now() > deadline {
                    return Err(Late {
                        what,
                        limit,
                        script: first_line(script).to_owned(),
                    }
                    .into());
                }
                self.tick(deadline + TICK)?;
            }
            Ok(())
        };
        let mut socket = UnixStream::connect(self.instance.command_socket())
            .context("the host's command channel is gone")?;
        writeln!(socket, "{id}")?;
        wait_for(&|| file("started").exists(), "did not take up a command")?;
        drop(socket);
        // The file is there a moment before the line.
        let status = || fs::read_to_string(file("rc")).unwrap_or_default();
        wait_for(&|| status().ends_with('\n'), "did not finish a command")?;
        let read = |end: &str| -> Result<String> {
            Ok(String::from_utf8_lossy(&fs::read(file(end))?).into_owned())
        };
        Ok(Output {
            status: status().trim().parse()?,
            out: read("out")?,
            err: read("err")?,
        })
    }

    fn log_command(&self, script: &str, output: &Output, took: Duration) -> Result<()> {
        let path = self.instance.command_log();
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        let Output { status, out, err } = output;
        writeln!(
            log,
            "$ {}\n{out}{err}[status {status}, {:.1} s]",
            script.trim(),
            took.as_secs_f32()
        )?;
        Ok(())
    }

    /// Runs a shell script in dom0 that has to succeed, and returns what it printed.
    pub fn ok(&self, script: &str) -> Result<String> {
        let output = self.exec(script, TOOLSTACK)?;
        if output.status != 0 {
            bail!(
                "in dom0: {}: status {}\n{}{}",
                first_line(script),
                output.status,
                output.out,
                output.err
            );
        }
        Ok(output.out)
    }
}

fn first_line(script: &str) -> &str {
    script.trim().lines().next().unwrap_or_default()
}
