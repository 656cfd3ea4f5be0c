//! The guests' work: fio jobs.

use super::guest_counts::GATE;
use serde::{Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// The time that a job runs before it measures.
pub const RAMP: Duration = Duration::from_secs(1);

/// The access pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads at random places.
    RandomRead,
    /// Writes at random places.
    RandomWrite,
    /// Both, seven reads for three writes.
    RandomMixed,
    /// Reads one after the other.
    Read,
    /// Writes one after the other.
    Write,
}

impl Pattern {
    /// Returns fio's name for it.
    pub fn fio_name(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
            Self::RandomMixed => "randrw",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its pattern.
    pub pattern: Pattern,
    /// The size of a block, in KiB.
    pub block_kib: u32,
    /// Number of operations under way at a time.
    pub depth: u32,
    /// Number of operations begun in a second, at random moments (a Poisson process); without it, they begin
    /// as fast as possible.
    pub rate: Option<u32>,
    /// True if a quick bench has it.
    pub quick: bool,
}

const fn job(pattern: Pattern, block_kib: u32, depth: u32, quick: bool) -> Job {
    Job {
        pattern,
        block_kib,
        depth,
        rate: None,
        quick,
    }
}

const fn offered(rate: u32, depth: u32) -> Job {
    Job {
        rate: Some(rate),
        ..job(Pattern::RandomRead, 4, depth, false)
    }
}

impl Job {
    /// All jobs: first those that go as fast as they can, then those at offered rates.
    pub const ALL: [Self; 18] = [
        job(Pattern::RandomRead, 4, 1, true),
        job(Pattern::RandomWrite, 4, 1, false),
        job(Pattern::RandomRead, 4, 32, true),
        job(Pattern::RandomWrite, 4, 32, true),
        job(Pattern::RandomMixed, 4, 32, false),
        job(Pattern::Read, 64, 8, true),
        job(Pattern::Write, 64, 8, false),
        job(Pattern::Read, 1024, 4, true),
        job(Pattern::Write, 1024, 4, false),
        offered(50, 1),
        offered(50, 8),
        offered(50, 32),
        offered(300, 1),
        offered(300, 8),
        offered(300, 32),
        offered(800, 1),
        offered(800, 8),
        offered(800, 32),
    ];

    /// Returns whether its figure is bandwidth, not operations per second.
    pub fn is_bandwidth(self) -> bool {
        self.block_kib >= 64
    }

    /// Returns the number of operations that move a number of sectors of 512 bytes.
    pub fn operations(self, sectors: u64) -> f64 {
        sectors as f64 * 512.0 / (f64::from(self.block_kib) * 1024.0)
    }

    /// Returns the command that runs it on a disk of a guest, after [`GATE`], and prints fio's JSON.
    pub fn command(self, device: &str, runtime: Duration) -> String {
        let rate = self.rate.map_or(String::new(), |rate| {
            format!("--rate_iops={rate} --rate_process=poisson")
        });
        format!(
            "fio --name=job --filename=/dev/{device} --rw={} --rwmixread=70 --bs={}k --iodepth={} \
             --direct=1 --ioengine=libaio --norandommap {rate} --time_based --ramp_time={} --runtime={} \
             --percentile_list=50:99 --exec_prerun={GATE} --output-format=json \
             --output=/tmp/fio.json >/tmp/fio.err 2>&1; s=$?; \
             cat /tmp/fio.json; [ $s = 0 ] || cat /tmp/fio.err; exit $s",
            self.pattern.fio_name(),
            self.block_kib,
            self.depth,
            RAMP.as_secs(),
            runtime.as_secs(),
        )
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block = match self.block_kib {
            1024 => "1m".to_owned(),
            kib => format!("{kib}k"),
        };
        let name = self.pattern.fio_name();
        let rate = self.rate.map_or(String::new(), |rate| format!("@{rate}"));
        f.pad(&format!("{name}-{block}-qd{}{rate}", self.depth))
    }
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Returns the jobs whose names are or contain one of these words. Without any word, those that go as fast as they can;
/// if instructions are counted, the quick ones of these, and those at offered rates.
pub fn choose(words: &[String], counts: bool) -> Result<Vec<Job>, String> {
    let mut jobs = choose_by(words, &Job::ALL, ToString::to_string)?;
    if words.is_empty() {
        jobs.retain(|job| match counts {
            true => job.quick || job.rate.is_some(),
            false => job.rate.is_none(),
        });
    }
    Ok(jobs)
}

/// Returns the items whose names contain one of these words, in their own order. Only a word with an `@` matches names
/// that have one.
pub(super) fn choose_by<T: Copy>(
    words: &[String],
    all: &[T],
    name: impl Fn(&T) -> String,
) -> Result<Vec<T>, String> {
    // A whole name means itself alone, and none that goes on behind it.
    let contains = |item: &T, word: &String| match all.iter().any(|one| name(one) == *word) {
        true => name(item) == *word,
        false => {
            let name = name(item);
            name.contains(word.as_str()) && (word.contains('@') || !name.contains('@'))
        }
    };
    for word in words {
        if !all.iter().any(|item| contains(item, word)) {
            let names: Vec<String> = all.iter().map(&name).collect();
            return Err(format!(
                "nothing is called {word:?}; known: {}",
                names.join(", ")
            ));
        }
    }
    Ok(all
        .iter()
        .filter(|item| words.is_empty() || words.iter().any(|word| contains(item, word)))
        .copied()
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_names_of_their_own_and_are_chosen_by_them() {
        let names: std::collections::BTreeSet<_> = Job::ALL.iter().map(Job::to_string).collect();
        assert_eq!(names.len(), Job::ALL.len());
        assert!(names.contains("randrw-4k-qd32") && names.contains("write-1m-qd4"));
        let choose = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            super::choose(&words, false)
        };
        assert_eq!(choose(&["1m", "qd1"]).unwrap().len(), 4);
        assert_eq!(choose(&["@300", "qd1@"]).unwrap().len(), 5);
        assert_eq!(choose(&["randread-4k-qd8@50"]).unwrap().len(), 1);
        assert!(choose(&["8m"]).is_err());
        assert_eq!(choose(&[]).unwrap(), Job::ALL[..9]);
        let counted = super::choose(&[], true).unwrap();
        assert!(counted.contains(&Job::ALL[0]) && counted.ends_with(&Job::ALL[9..]));
    }

    #[test]
    fn the_command_says_what_the_name_says() {
        let command = Job::ALL[2].command("xvda", Duration::from_secs(3));
        for word in [
            "--rw=randread",
            "--bs=4k",
            "--iodepth=32",
            "--runtime=3",
            "--direct=1",
        ] {
            assert!(command.contains(word), "{command}");
        }
        assert!(!command.contains("--rate"));
        let command = Job::ALL[17].command("xvda", Duration::from_secs(3));
        assert!(command.contains("--rate_iops=800 --rate_process=poisson"));
    }
}
