//! The pauses that a guest notices while fio is at work: the longest time that one of fio's requests took, between one
//! mark and the next.

use crate::host::guest::Guest;
use crate::testbed::MINUTE;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// fio's options for a log of the longest latency in each tenth of a second, by the guest's clock.
pub const LOGGED: &str =
    "--write_lat_log=/tmp/latency --log_avg_msec=100 --log_max_value=1 --log_unix_epoch=1";

/// Appends the log of one run of fio to that of all.
pub const KEEP_LOG: &str = "cat /tmp/latency_clat.1.log >>/tmp/latencies";

/// A command that waits until the disk answers, a second more, and marks that time in whole seconds: whatever was answered
/// before comes before the mark.
pub const MARK: &str = "answered() { read -r reads _ _ _ writes _ </sys/block/xvda/stat; echo $((reads + writes)); }; \
    before=$(answered); until [ $(answered) -gt $before ]; do usleep 20000; done; \
    usleep 1000000; date +%s >>/tmp/marks";

/// Prints the longest latency after each mark, in nanoseconds.
const LONGEST: &str = "awk -F, 'BEGIN { at = 0 } NR == FNR { mark[marks++] = $1 * 1000; next } \
    { while (at + 1 < marks && $1 + 0 >= mark[at + 1]) at++; \
      if ($1 + 0 >= mark[0] && $2 + 0 > longest[at]) longest[at] = $2 + 0 } \
    END { for (n = 0; n < marks; n++) printf \"%.0f\\n\", longest[n] }' /tmp/marks /tmp/latencies";

/// Returns the longest latency between each of a guest's marks and the next one, or the end.
pub fn longest(guest: &Guest) -> Result<Vec<Duration>> {
    let text = guest.ok(LONGEST, MINUTE)?;
    let numbers: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
    let numbers = numbers.with_context(|| format!("no latencies: {text:?}"))?;
    Ok(numbers.into_iter().map(Duration::from_nanos).collect())
}

/// Returns the median and the longest of some pauses.
pub fn median_and_worst(mut pauses: Vec<Duration>) -> Result<(Duration, Duration)> {
    pauses.sort();
    let worst = pauses.last().copied().context("no pause was measured")?;
    let median = pauses[pauses.len() / 2];
    ensure!(
        !median.is_zero(),
        "no request was answered after most marks"
    );
    Ok((median, worst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn the_longest_latency_after_each_mark_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("marks"), "10\n12\n20\n21\n").unwrap();
        let log = "9999, 900, 0, 0, 0\n10000, 5, 0, 0, 0\n11999, 7, 1, 0, 0\n11999, 6, 0, 0, 0\n\
            12000, 3000000000000, 1, 0, 0\n21000, 4, 0, 0, 0\n22000, 2, 0, 0, 0\n";
        fs::write(path("latencies"), log).unwrap();
        let script = LONGEST.replace("/tmp", folder.path().to_str().unwrap());
        let shown = Command::new("sh").args(["-c", &script]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert_eq!(shown, "7\n3000000000000\n0\n4\n");
    }

    #[test]
    fn the_median_and_the_longest_are_found() {
        let seconds = |numbers: &[u64]| numbers.iter().map(|&n| Duration::from_secs(n)).collect();
        let (median, worst) = median_and_worst(seconds(&[5, 1, 3])).unwrap();
        assert_eq!([median.as_secs(), worst.as_secs()], [3, 5]);
        assert!(median_and_worst(seconds(&[])).is_err());
        assert!(median_and_worst(seconds(&[0, 0, 3])).is_err());
    }
}
