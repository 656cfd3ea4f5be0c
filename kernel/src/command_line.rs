//! The domain's command line: words, some of them `key=value`.

/// Returns the value of a word of the command line that is `key=value`; the last such word counts. A word that is `key`
/// alone has an empty value.
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

/// Returns the words that no code reads; `known` are the keys that `main` reads. Such words are probably mistyped.
///
/// Words that are meant for another kernel are left out: xl turns a configuration's `root` into `root=`, before the
/// words of `extra`; bootloaders add the name of the kernel's file and `BOOT_IMAGE=`; and the configuration of a Linux
/// guest has others, such as module options (`xen_blkfront.max=`).
///
/// ```
/// use bulkhead_kernel::command_line::unknown;
///
/// let line = "root=/dev/none ro log=debug datapath=map data-path=map";
/// assert!(unknown(line, &["data-path"]).eq(["datapath=map"]));
/// ```
pub fn unknown<'a>(line: &'a str, known: &[&str]) -> impl Iterator<Item = &'a str> {
    line.split_ascii_whitespace().filter(move |word| {
        let (key, _) = word.split_once('=').unwrap_or((word, ""));
        let is_foreign = FOREIGN.contains(&key) || key.contains(['.', '/']);
        key != LOG && !known.contains(&key) && !is_foreign
    })
}

/// The kernel's own key.
const LOG: &str = "log";

/// Keys of other kernels that are common in configurations.
const FOREIGN: [&str; 15] = [
    "--",
    "BOOT_IMAGE",
    "console",
    "earlyprintk",
    "init",
    "initrd",
    "ip",
    "loglevel",
    "panic",
    "quiet",
    "ro",
    "root",
    "rootfstype",
    "rw",
    "splash",
];

/// Returns the log level that the command line asks for (`log=off|error|warn|info|debug|trace`), or the word if it is
/// not one of these.
pub fn log_level(line: &str) -> Result<log::LevelFilter, &str> {
    match value(line, LOG) {
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
    fn unknown_words_are_found() {
        let known = ["data-path", "poll", "hold"];
        let of = |line| unknown(line, &known).collect::<Vec<_>>();
        assert_eq!(of(""), [""; 0]);
        assert_eq!(of("log=debug poll=5 hold=0 data-path=copy poll"), [""; 0]);
        assert_eq!(
            of("datapath=map Poll=5 x log.level=1 hold=0 logs"),
            ["datapath=map", "Poll=5", "x", "logs"]
        );
    }

    #[test]
    fn words_for_other_kernels_are_no_mistakes() {
        let known = ["poll"];
        for line in [
            // xl: `root = "/dev/xvda1 ro"` and `extra = "poll=5 quiet"`.
            "root=/dev/xvda1 ro poll=5 quiet",
            // Bootloaders.
            "/boot/bulkhead console=hvc0",
            "(hd0,1)/boot/bulkhead BOOT_IMAGE=/boot/bulkhead rw -- splash",
            // A Linux guest's.
            "console=hvc0 xen_blkfront.max_indirect_segments=64 init=/bin/sh ip=dhcp panic=1",
        ] {
            assert_eq!(unknown(line, &known).next(), None, "{line}");
        }
    }

    #[test]
    fn values_may_contain_equals_signs() {
        assert_eq!(value("x=a=b", "x"), Some("a=b"));
    }
}
