//! How the engine is to serve, as the operator may choose it on the domain's command line.

use core::fmt;
use core::time::Duration;

/// The ways to a frontend's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataPath {
    /// Persistent grants with frontends that have them; else what was measured to be faster.
    #[default]
    Auto,
    /// Each request's pages are mapped and unmapped.
    Map,
    /// The hypervisor copies between the pages and the device's memory; pages are mapped where a
    /// device has none to copy from.
    Copy,
    /// As `Auto`, but what would be copied is mapped: to compare persistent grants with mapping.
    Persistent,
}

impl DataPath {
    /// Whether frontends are offered to keep their pages granted.
    pub fn offers_persistent(self) -> bool {
        matches!(self, DataPath::Auto | DataPath::Persistent)
    }

    fn parse(word: &str) -> Option<DataPath> {
        match word {
            "auto" => Some(DataPath::Auto),
            "map" => Some(DataPath::Map),
            "copy" => Some(DataPath::Copy),
            "persistent" => Some(DataPath::Persistent),
            _ => None,
        }
    }
}

/// How queues are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The way to the frontend's pages (`data-path=`).
    pub data_path: DataPath,
    /// The longest that an idle queue is looked at before its task sleeps, in
    /// microseconds on the command line (`poll=`). Without it, it follows from what a
    /// notification costs.
    pub poll: Option<Duration>,
    /// The longest that an answer waits for company (`hold=`, likewise).
    pub hold: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            data_path: DataPath::Auto,
            poll: None,
            hold: None,
        }
    }
}

impl Options {
    /// Reads them from a command line, given a way to look up the value of a key.
    pub fn parse<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Options, OptionError<'a>> {
        let mut options = Options::default();
        if let Some(word) = value("data-path") {
            options.data_path = DataPath::parse(word).ok_or(OptionError {
                key: "data-path",
                value: word,
                expected: "auto, map, copy or persistent",
            })?;
        }
        for (key, span) in [("poll", &mut options.poll), ("hold", &mut options.hold)] {
            if let Some(word) = value(key) {
                let micros = word.parse().ok().filter(|&micros| micros <= MOST_MICROS);
                let micros = micros.ok_or(OptionError {
                    key,
                    value: word,
                    expected: "0 to 10000 (microseconds)",
                })?;
                *span = Some(Duration::from_micros(micros));
            }
        }
        Ok(options)
    }
}

/// Longer than that is not polling any more.
const MOST_MICROS: u64 = 10_000;

/// An option on the command line that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionError<'a> {
    key: &'static str,
    value: &'a str,
    expected: &'static str,
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OptionError {
            key,
            value,
            expected,
        } = self;
        write!(f, "{key}={value}: expected {expected}")
    }
}

impl core::error::Error for OptionError<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn options_are_read_and_mistakes_answered() {
        assert_eq!(Options::parse(|_| None), Ok(Options::default()));
        let given = |key: &str| match key {
            "data-path" => Some("copy"),
            "poll" => Some("50"),
            _ => None,
        };
        let options = Options::parse(given).unwrap();
        assert_eq!(options.data_path, DataPath::Copy);
        assert_eq!(options.poll, Some(Duration::from_micros(50)));
        assert_eq!(options.hold, Options::default().hold);
        let wrong = Options::parse(|key| (key == "data-path").then_some("fast"));
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "data-path=fast: expected auto, map, copy or persistent"
        );
        let wrong = Options::parse(|key| (key == "hold").then_some("1000000"));
        assert!(wrong.unwrap_err().to_string().contains("0 to 10000"));
    }
}
