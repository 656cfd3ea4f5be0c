//! The options with which disks are served: the operator may set them on the domain's command line.

use bulkhead_images::DiscardMode;
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
    /// Returns whether frontends are offered to keep their pages granted.
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

/// The options with which queues are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// The way to the frontend's pages (`data-path=`).
    pub data_path: DataPath,
    /// The longest time that an idle queue is polled before its task sleeps, in microseconds on the command line
    /// (`poll=`). Without the option, it is the measured cost of blocking, and 100 at most.
    pub poll: Option<Duration>,
    /// The longest time that a response is held back for others to join it (`hold=`, likewise). Without the option, it
    /// is 2,000, or 500 for a frontend that is slow to ask for more.
    pub hold: Option<Duration>,
    /// The treatment of memory whose content guests discard (`discard=`), where a target does not say it.
    pub discard: DiscardMode,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions {
            data_path: DataPath::Auto,
            poll: None,
            hold: None,
            discard: DiscardMode::Keep,
        }
    }
}

impl QueueOptions {
    /// The keys of these options on the command line.
    pub const KEYS: [&str; 4] = [DATA_PATH, POLL, HOLD, DISCARD];

    /// Reads the options from a command line: `value` looks up the value of a key. An option with a mistake has its
    /// default; the others are not affected.
    pub fn parse<'a>(
        value: impl Fn(&str) -> Option<&'a str>,
        mut mistaken: impl FnMut(OptionError<'a>),
    ) -> QueueOptions {
        let mut options = QueueOptions::default();
        if let Some(word) = value(DATA_PATH) {
            match DataPath::parse(word) {
                Some(data_path) => options.data_path = data_path,
                None => mistaken(OptionError {
                    key: DATA_PATH,
                    value: word,
                    expected: "auto, map, copy or persistent",
                }),
            }
        }
        if let Some(word) = value(DISCARD) {
            match DiscardMode::parse(word) {
                Some(discard) => options.discard = discard,
                None => mistaken(OptionError {
                    key: DISCARD,
                    value: word,
                    expected: DiscardMode::EXPECTED,
                }),
            }
        }
        for (key, span) in [(POLL, &mut options.poll), (HOLD, &mut options.hold)] {
            let Some(word) = value(key) else { continue };
            match word.parse() {
                Ok(micros @ ..=MOST_MICROS) => *span = Some(Duration::from_micros(micros)),
                _ => mistaken(OptionError {
                    key,
                    value: word,
                    expected: "0 to 10000 (microseconds)",
                }),
            }
        }
        options
    }
}

const DATA_PATH: &str = "data-path";
const POLL: &str = "poll";
const HOLD: &str = "hold";
const DISCARD: &str = "discard";

/// The largest accepted value: a longer time is not polling any more.
const MOST_MICROS: u64 = 10_000;

/// An option on the command line whose value is not valid.
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
        write!(f, "{key}={value}: expected {expected}; the default is used")
    }
}

impl core::error::Error for OptionError<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    /// Returns the options in `words`, and the messages about the mistaken ones.
    fn parse(words: &[(&str, &'static str)]) -> (QueueOptions, Vec<String>) {
        let mut mistakes = Vec::new();
        let value = |key: &str| {
            words
                .iter()
                .find(|(name, _)| *name == key)
                .map(|word| word.1)
        };
        let options = QueueOptions::parse(value, |mistake| mistakes.push(mistake.to_string()));
        (options, mistakes)
    }

    #[test]
    fn options_are_read() {
        assert_eq!(parse(&[]), (QueueOptions::default(), Vec::new()));
        let (options, mistakes) = parse(&[("data-path", "copy"), ("poll", "50")]);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(options.data_path, DataPath::Copy);
        assert_eq!(options.poll, Some(Duration::from_micros(50)));
        assert_eq!(options.hold, QueueOptions::default().hold);
        assert_eq!(options.discard, DiscardMode::Keep);
        let (options, mistakes) = parse(&[("discard", "release")]);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(options.discard, DiscardMode::Release);
    }

    #[test]
    fn a_mistake_costs_its_own_option_alone() {
        let (options, mistakes) = parse(&[("data-path", "fast"), ("poll", "10000"), ("hold", "")]);
        let expected = QueueOptions {
            poll: Some(Duration::from_millis(10)),
            ..QueueOptions::default()
        };
        assert_eq!(options, expected);
        assert_eq!(
            mistakes,
            [
                "data-path=fast: expected auto, map, copy or persistent; the default is used",
                "hold=: expected 0 to 10000 (microseconds); the default is used",
            ]
        );
        for wrong in ["10001", "-1", "5us"] {
            let (options, mistakes) = parse(&[("poll", wrong), ("data-path", "map")]);
            assert_eq!((options.poll, options.data_path), (None, DataPath::Map));
            assert_eq!(mistakes.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn every_option_has_its_key() {
        for key in QueueOptions::KEYS {
            assert_eq!(parse(&[(key, "?")]).1.len(), 1, "{key}");
        }
    }
}
