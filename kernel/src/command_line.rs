//! The domain's command line: words, some of them `key=value`.

/// A word of the command line that is `key=value`; the last one wins. A word that is `key` alone
/// has an empty value.
///
/// ```
/// use bulkhead_kernel::command_line::value;
///
/// let line = "log=info root=/dev/none quiet log=debug";
/// assert_eq!(value(line, "log"), Some("debug"));
/// assert_eq!(value(line, "quiet"), Some(""));
/// assert_eq!(value(line, "lo"), None);
/// ```
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .filter_map(|word| {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            (name == key).then_some(value)
        })
        .next_back()
}

/// The log level that the command line asks for (`log=off|error|warn|info|debug|trace`), or what
/// is wrong with it.
pub fn log_level(line: &str) -> Result<log::LevelFilter, &str> {
    match value(line, "log") {
        None => Ok(log::LevelFilter::Info),
        Some(level) => level.parse().map_err(|_| level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::LevelFilter;

    #[test]
    fn the_level_is_info_unless_asked_otherwise() {
        assert_eq!(log_level(""), Ok(LevelFilter::Info));
        assert_eq!(log_level("a log=debug b"), Ok(LevelFilter::Debug));
        assert_eq!(log_level("log=off"), Ok(LevelFilter::Off));
        assert_eq!(log_level("log=loud"), Err("loud"));
        assert_eq!(log_level("log"), Err(""));
    }

    #[test]
    fn values_may_contain_equals_signs() {
        assert_eq!(value("x=a=b", "x"), Some("a=b"));
    }
}
