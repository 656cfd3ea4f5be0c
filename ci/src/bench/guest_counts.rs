//! What a guest's Linux counts around a job: the data that its disk moved, and the notifications that
//! came from the backend.

use anyhow::{Context, Result};

/// How its kernel names the interrupt of a block frontend's event channel.
const INTERRUPT: &str = "blkif";

/// What shows on a guest's console at the first I/O of a job.
pub const BUSY: &str = "@@busy";

/// What a guest counted while a job ran, warming up included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounts {
    /// Notifications from its backends.
    pub notifications: u64,
    /// Sectors of 512 bytes that its disk read and wrote.
    pub sectors: u64,
}

impl GuestCounts {
    /// Two guests together.
    pub fn and(self, other: Self) -> Self {
        Self {
            notifications: self.notifications + other.notifications,
            sectors: self.sectors + other.sectors,
        }
    }
}

/// A command that does the same, prints the counts before it and after it, and shows [`BUSY`].
/// `device` is the disk that it is about.
pub fn around(device: &str, command: &str) -> String {
    let disk = format!("/sys/block/{device}/stat");
    let counts = format!("grep -w {INTERRUPT} /proc/interrupts; echo disk $(cat {disk})");
    // How long fio takes until it moves data depends on how busy the machine is.
    let busy = format!(
        "idle=$(cat {disk}); while [ \"$idle\" = \"$(cat {disk})\" ]; do usleep 20000; done; \
         echo {BUSY} >/dev/console"
    );
    format!(
        "echo before:; {counts}; ({busy}) & watch=$!; ({command}); s=$?; kill $watch 2>/dev/null; \
         echo; echo after:; {counts}; exit $s"
    )
}

/// What was counted in between, from what such a command printed.
pub fn parse(text: &str) -> Result<GuestCounts> {
    let (_, rest) = text.split_once("before:\n").context("no counts before")?;
    let (before, after) = rest.rsplit_once("after:\n").context("no counts after")?;
    let (before, after) = (moment(before)?, moment(after)?);
    Ok(GuestCounts {
        notifications: after.notifications.saturating_sub(before.notifications),
        sectors: after.sectors.saturating_sub(before.sectors),
    })
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
        disk 110 0 880 5 3 0 24 1 0 4 4\n";

    #[test]
    fn counts_are_what_came_between() {
        let counts = parse(OUTPUT).unwrap();
        assert_eq!((counts.notifications, counts.sectors), (62, 808));
        assert_eq!(counts.and(counts).sectors, 1616);
        assert!(parse("fio: no such file").is_err());
        assert!(parse(&OUTPUT.replace("disk 110", "disc 110")).is_err());
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
