//! Reading fio's report of a measurement.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The result of one guest, or of all guests together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// The 99th percentile of latency in microseconds; of the worse direction, or guest.
    pub p99_us: f64,
}

impl Rate {
    /// Returns the sum of two results that were measured at the same time.
    fn and(self, other: Rate) -> Rate {
        let iops = self.iops + other.iops;
        let weighted = self.mean_us * self.iops + other.mean_us * other.iops;
        Rate {
            iops,
            bytes_per_second: self.bytes_per_second + other.bytes_per_second,
            mean_us: if iops > 0.0 { weighted / iops } else { 0.0 },
            p99_us: self.p99_us.max(other.p99_us),
        }
    }
}

/// Returns the sum of all guests' results, and the share of the guest that got least, 1 being its fair share.
pub fn together(rates: &[Rate]) -> Option<(Rate, f64)> {
    let sum = rates.iter().copied().reduce(Rate::and)?;
    let least = rates.iter().map(|rate| rate.iops).fold(f64::MAX, f64::min);
    let fair = sum.iops / rates.len() as f64;
    Some((sum, if fair > 0.0 { least / fair } else { 0.0 }))
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    bw_bytes: f64,
    total_ios: u64,
    lat_ns: Latency,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

impl Direction {
    fn rate(&self) -> Result<Option<Rate>> {
        if self.total_ios == 0 {
            return Ok(None);
        }
        let p99 = self.clat_ns.percentile.get("99.000000");
        Ok(Some(Rate {
            iops: self.iops,
            bytes_per_second: self.bw_bytes,
            mean_us: self.lat_ns.mean / 1e3,
            p99_us: p99.context("fio reports no 99th percentile")? / 1e3,
        }))
    }
}

/// Reads fio's JSON. A job with an error, or one that did nothing, is an error.
pub fn parse(text: &str) -> Result<Rate> {
    let start = text.find('{').context("fio printed no JSON")?;
    let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter();
    let report: Report = values.next().context("fio printed no JSON")??;
    let [job] = &report.jobs[..] else {
        bail!("fio reports {} jobs", report.jobs.len());
    };
    ensure!(job.error == 0, "fio reports error {}", job.error);
    let rates = [job.read.rate()?, job.write.rate()?];
    let rate = rates.into_iter().flatten().reduce(Rate::and);
    rate.context("fio reports no operation")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(reads: u64, writes: u64) -> String {
        let direction = |ios: u64, percentile: &str| {
            format!(
                "{{\"iops\": {ios}.5, \"bw_bytes\": {}, \"total_ios\": {ios}, \
                 \"lat_ns\": {{\"mean\": 2000.0}}, \"clat_ns\": {{\"mean\": 1500.0{percentile}}}}}",
                ios * 4096
            )
        };
        format!(
            "fio: a note\n{{\"jobs\": [{{\"error\": 0, \"read\": {}, \"write\": {}}}]}}\nmore",
            direction(
                reads,
                ", \"percentile\": {\"50.000000\": 1000, \"99.000000\": 9000}"
            ),
            direction(
                writes,
                ", \"percentile\": {\"50.000000\": 1000, \"99.000000\": 7000}"
            )
        )
    }

    #[test]
    fn both_directions_are_added_up() {
        let rate = parse(&report(70, 30)).unwrap();
        assert!((rate.iops - 101.0).abs() < 1e-9);
        assert!((rate.bytes_per_second - 409_600.0).abs() < 1e-9);
        assert!((rate.mean_us - 2.0).abs() < 1e-9);
        assert!((rate.p99_us - 9.0).abs() < 1e-9);
        let writes = parse(&report(0, 30)).unwrap();
        assert!((writes.p99_us - 7.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_done_or_an_error_is_no_rate() {
        assert!(parse(&report(0, 0)).is_err());
        assert!(parse(&report(1, 1).replace("\"error\": 0", "\"error\": 5")).is_err());
        assert!(parse(&report(1, 1).replace("99.0", "95.0")).is_err());
        assert!(parse("fio: engine libaio not loadable").is_err());
    }

    #[test]
    fn the_least_share_shows_an_unfair_backend() {
        let rate = |iops| Rate {
            iops,
            bytes_per_second: iops * 4096.0,
            mean_us: 1.0,
            p99_us: 2.0,
        };
        let (sum, least) = together(&[rate(100.0), rate(300.0)]).unwrap();
        assert!((sum.iops - 400.0).abs() < 1e-9);
        assert!((least - 0.5).abs() < 1e-9);
        assert!(together(&[]).is_none());
    }
}
