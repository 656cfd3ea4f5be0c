//! fio in a guest: its command line and its report.

use crate::host::guest::{Guest, Started};
use crate::testbed::MINUTE;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::time::Duration;

/// The result of a run of fio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes read, those read back for verification included.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// The time that it took.
    pub runtime: Duration,
}

impl Report {
    /// Returns the MiB moved per second.
    pub fn mib_per_second(&self) -> f64 {
        let bytes = (self.read + self.written) as f64;
        bytes / f64::from(1 << 20) / self.runtime.as_secs_f64().max(1e-3)
    }
}

/// Returns the command line of the verification that every driver domain has to pass: random reads and writes over the
/// whole disk in blocks of 512 bytes to 64 KiB, each block's checksum verified.
pub fn verify_command(device: &str) -> String {
    verify_command_with(device, "")
}

/// Returns [`verify_command`] with further options.
pub fn verify_command_with(device: &str, options: &str) -> String {
    // Several may run at once, each on its own disk.
    let files = format!("/tmp/fio-{}", device.trim_start_matches("/dev/"));
    format!(
        "fio --name=verify --filename={device} --rw=randrw --bsrange=512-64k --direct=1 \
         --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 {options} \
         --output-format=json --output={files}.json >{files}.err 2>&1; s=$?; \
         cat {files}.json; [ $s = 0 ] || cat {files}.err; exit $s"
    )
}

/// Runs [`verify_command`] in a guest.
pub fn verify(guest: &Guest, device: &str, limit: Duration) -> Result<Report> {
    verify_with(guest, device, "", limit)
}

/// Runs [`verify_command_with`] in a guest.
pub fn verify_with(guest: &Guest, device: &str, options: &str, limit: Duration) -> Result<Report> {
    parse(&guest.ok(&verify_command_with(device, options), limit)?)
}

/// Waits for a verification that was started before, and reads its report.
pub fn finish(guest: &Guest, job: Started, limit: Duration) -> Result<Report> {
    let output = guest.finish(job, limit)?;
    if output.status != 0 {
        bail!("fio failed in {}:\n{}", guest.name, output.out);
    }
    parse(&output.out)
}

/// The result of reading for a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reads {
    /// Reads per second.
    pub per_second: f64,
    /// The longest time that one took.
    pub longest: Duration,
}

/// Returns the command line that reads blocks of 4 KiB all over a disk for some seconds, four at a time.
pub fn reads_command(device: &str, seconds: u32) -> String {
    format!(
        "fio --name=reads --filename={device} --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=4 \
         --time_based --runtime={seconds} --output-format=json"
    )
}

/// Runs [`reads_command`] in a guest.
pub fn reads(guest: &Guest, device: &str, seconds: u32) -> Result<Reads> {
    let limit = Duration::from_secs(u64::from(seconds)) + 2 * MINUTE;
    parse_reads(&guest.ok(&reads_command(device, seconds), limit)?)
}

/// The time after which a guest's read counts as not answered at all. The length of a pause on a host that shares its
/// processors says little (four seconds were seen where 0.2 are usual), so scenarios show it in their tables, and pass
/// with any.
pub const NOT_ANSWERED: Duration = Duration::from_secs(30);

/// Waits for [`reads_command`], which was started before.
pub fn finish_reads(guest: &Guest, job: Started, limit: Duration) -> Result<Reads> {
    let output = guest.finish(job, limit)?;
    if output.status != 0 {
        bail!("fio failed in {}:\n{}", guest.name, output.out);
    }
    parse_reads(&output.out)
}

fn parse_reads(text: &str) -> Result<Reads> {
    #[derive(Deserialize)]
    struct Json {
        jobs: Vec<Job>,
    }
    #[derive(Deserialize)]
    struct Job {
        error: i64,
        read: Direction,
    }
    #[derive(Deserialize)]
    struct Direction {
        iops: f64,
        total_ios: u64,
        clat_ns: Latency,
    }
    #[derive(Deserialize)]
    struct Latency {
        max: u64,
    }
    let json: Json = first_value(text)?;
    match &json.jobs[..] {
        [job] if job.error == 0 && job.read.total_ios > 0 => Ok(Reads {
            per_second: job.read.iops,
            longest: Duration::from_nanos(job.read.clat_ns.max),
        }),
        _ => bail!("fio read nothing:\n{text}"),
    }
}

/// Reads the first JSON value in fio's output, which may have a line before it.
fn first_value<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    let start = text.find('{').context("fio printed no JSON")?;
    let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter();
    Ok(values.next().context("fio printed no JSON")??)
}

#[derive(Deserialize)]
struct Json {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    job_runtime: u64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    io_bytes: u64,
}

/// Reads fio's JSON. A job that reports an error, or that moved nothing, is an error.
pub fn parse(text: &str) -> Result<Report> {
    let json: Json = first_value(text)?;
    let Some(job) = json.jobs.first() else {
        bail!("fio reports no job");
    };
    if job.error != 0 {
        bail!("fio reports error {}", job.error);
    }
    if job.read.io_bytes == 0 || job.write.io_bytes == 0 {
        bail!(
            "fio read {} and wrote {} bytes",
            job.read.io_bytes,
            job.write.io_bytes
        );
    }
    Ok(Report {
        read: job.read.io_bytes,
        written: job.write.io_bytes,
        runtime: Duration::from_millis(job.job_runtime),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "note: something\n{\"fio version\": \"fio-3.33\", \"jobs\": [{\"jobname\": \"verify\", \
        \"error\": 0, \"job_runtime\": 2000, \"read\": {\"io_bytes\": 3145728, \"bw\": 1}, \
        \"write\": {\"io_bytes\": 1048576}}]}\ntrailing";

    #[test]
    fn a_report_is_read() {
        let report = parse(GOOD).unwrap();
        assert_eq!(report.written, 1 << 20);
        assert!((report.mib_per_second() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn reads_are_counted() {
        let text = "a note\n{\"jobs\": [{\"error\": 0, \"read\": {\"iops\": 250.5, \"total_ios\": 1000, \
            \"clat_ns\": {\"min\": 1, \"max\": 3000000, \"mean\": 5.5}}}]}";
        let reads = parse_reads(text).unwrap();
        assert!((reads.per_second - 250.5).abs() < 1e-9);
        assert_eq!(reads.longest, Duration::from_millis(3));
        assert!(parse_reads(&text.replace("1000,", "0,")).is_err());
        assert!(parse_reads(&text.replace("\"error\": 0", "\"error\": 5")).is_err());
    }

    #[test]
    fn an_error_or_an_empty_run_is_no_report() {
        assert!(parse(&GOOD.replace("\"error\": 0", "\"error\": 84")).is_err());
        assert!(parse(&GOOD.replace("3145728", "0")).is_err());
        assert!(parse("fio: bad option").is_err());
    }
}
