//! Counts of a guest's Linux around a job: the data that its disk moved, the notifications that came from the
//! backend, and its processor time from the first I/O on.

use anyhow::{Context, Result};

/// The kernel's name for the interrupt of a block frontend's event channel.
const INTERRUPT: &str = "blkif";

/// Printed on a guest's console when a job is ready for its first I/O, and waits for [`OPEN`].
pub const WAITS: &str = "@@waits";

/// The command after which it goes on.
pub const OPEN: &str = "echo go 1<>/tmp/job-gate";

/// The program that has to run before a job's first I/O.
pub const GATE: &str = "/tmp/job-before";

/// Printed on a guest's console when a job is over.
pub const OVER: &str = "@@over";

/// A guest's counts while a job ran, including its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestCounts {
    /// Notifications from its backends.
    pub notifications: u64,
    /// Sectors of 512 bytes that its disk read and wrote.
    pub sectors: u64,
    /// Seconds of processor time from the first I/O to the end.
    pub busy: f64,
    /// Sectors that were moved meanwhile.
    pub busy_sectors: u64,
}

impl GuestCounts {
    /// Returns the sum of two guests' counts.
    pub fn and(self, other: Self) -> Self {
        Self {
            notifications: self.notifications + other.notifications,
            sectors: self.sectors + other.sectors,
            busy: self.busy + other.busy,
            busy_sectors: self.busy_sectors + other.busy_sectors,
        }
    }
}

/// Returns a command that runs `command`, prints the counts before and after it, and shows [`OVER`] at its end, a
/// moment before it prints anything. `command` runs [`GATE`] before its first I/O: several guests begin at once,
/// however long each of them takes to start. `device` is the disk that it uses.
pub fn around(device: &str, command: &str) -> String {
    let disk = format!("/sys/block/{device}/stat");
    let counts = format!("grep -w {INTERRUPT} /proc/interrupts; echo disk $(cat {disk})");
    let moment = format!("time $(nproc) $(cat /proc/uptime {disk})");
    format!(
        "echo before:; {counts}; rm -f /tmp/job-*; mkfifo /tmp/job-gate
         echo '#!/bin/sh
         exec 3<>/tmp/job-gate; echo {WAITS} >/dev/console; read go <&3; echo {moment} >/tmp/job-first' >{GATE}
         chmod +x {GATE}
         ({command}) >/tmp/job-out 2>&1; s=$?
         last=$(echo {moment}); [ -e /tmp/job-first ] || echo {WAITS} >/dev/console
         echo {OVER} >/dev/console; sleep 1
         cat /tmp/job-out; echo; echo after:; {counts}; cat /tmp/job-first; echo $last; exit $s"
    )
}

/// Parses the output of such a command, and returns the counts of the time in between.
pub fn parse(text: &str) -> Result<GuestCounts> {
    let (_, rest) = text.split_once("before:\n").context("no counts before")?;
    let (before, after) = rest.rsplit_once("after:\n").context("no counts after")?;
    let mut times = after.lines().filter_map(|line| line.strip_prefix("time "));
    let (first, last) = (times.next(), times.next());
    let (first, last) = (
        time(first.context("no time of the first I/O")?)?,
        time(last.context("no time of the end")?)?,
    );
    let (before, after) = (moment(before)?, moment(after)?);
    Ok(GuestCounts {
        notifications: after.notifications.saturating_sub(before.notifications),
        sectors: after.sectors.saturating_sub(before.sectors),
        busy: last.busy - first.busy,
        busy_sectors: last.sectors.saturating_sub(first.sectors),
    })
}

/// Reads the number of processors, /proc/uptime (seconds since the start, and seconds of idleness, summed over all
/// processors; see proc(5)), and the disk's counts behind these.
fn time(text: &str) -> Result<GuestCounts> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [processors, uptime, idle, disk @ ..] = &words[..] else {
        anyhow::bail!("{text:?} is not a time");
    };
    let mut counts = moment(&format!("disk {}", disk.join(" ")))?;
    counts.busy = processors.parse::<f64>()? * uptime.parse::<f64>()? - idle.parse::<f64>()?;
    Ok(counts)
}

fn moment(text: &str) -> Result<GuestCounts> {
    let mut counts = GuestCounts::default();
    let mut disk = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // Documentation/admin-guide/iostats.rst: sectors read and written are the third and seventh.
            ["disk", _, _, read, _, _, _, written, ..] => {
                disk = disk.or(Some(read.parse::<u64>()? + written.parse::<u64>()?));
            }
            // "29:  1234  0  xen-dyn  -event  blkif": a number for each processor.
            [_, .., INTERRUPT] => {
                let each = words[1..].iter().map_while(|word| word.parse::<u64>().ok());
                counts.notifications += each.sum::<u64>();
            }
            _ => {}
        }
    }
    counts.sectors = disk.context("no counts of the disk")?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "before:\n\
        \x2029:        100         20  xen-dyn    -event     blkif\n\
        \x2030:          5          0  xen-dyn    -event     blkif\n\
        disk 10 0 80 5 2 0 16 1 0 4 4\n\
        {\"jobs\": [\"disk 1 2 3\"]}\n\
        \n\
        after:\n\
        \x2029:        150         30  xen-dyn    -event     blkif\n\
        \x2030:          7          0  xen-dyn    -event     blkif\n\
        disk 110 0 880 5 3 0 24 1 0 4 4\n\
        time 2 100.50 180.00 20 0 160 5 2 0 16 1 0 4 4\n\
        time 2 104.50 185.50 110 0 880 5 3 0 24 1 0 4 4\n";

    #[test]
    fn counts_are_what_came_between() {
        let counts = parse(OUTPUT).unwrap();
        assert_eq!((counts.notifications, counts.sectors), (62, 808));
        assert!((counts.busy - 2.5).abs() < 1e-9);
        assert_eq!(counts.busy_sectors, 728);
        assert_eq!(counts.and(counts).sectors, 1616);
        assert!(parse("fio: no such file").is_err());
        assert!(parse(&OUTPUT.replace("disk 110", "disc 110")).is_err());
        assert!(parse(&OUTPUT.replace("time 2 104", "tune 2 104")).is_err());
    }

    #[test]
    fn the_command_keeps_its_status() {
        let script = around("xvda", "false; exit 7");
        let status = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        assert_eq!(status.unwrap().status.code(), Some(7));
    }
}
