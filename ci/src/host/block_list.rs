//! The output of `xl block-list`.

use anyhow::{Context, Result, ensure};

/// A disk of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of the virtual device.
    pub device: u32,
    /// The state of its frontend (`XenbusState` in Xen's io/xenbus.h): 4 is connected.
    pub state: u32,
}

/// Reads what `xl block-list` prints: a heading, then `VDEV BE HANDLE STATE EVT-CH RING-REF BE-PATH`.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let heading = lines.next().unwrap_or_default();
    ensure!(
        heading.starts_with("Vdev"),
        "xl block-list printed {text:?}"
    );
    lines
        .map(|line| row(line).with_context(|| format!("xl block-list printed {line:?}")))
        .collect()
}

fn row(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Some(Row {
        device: words.first()?.parse().ok()?,
        state: words.get(3)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n";

    #[test]
    fn disks_are_read_with_their_states() {
        let text = format!(
            "{HEADING}51712 3   4      4     15     8        /local/domain/3/backend/vbd/4/51712\n\
             51728 3   4      3     -1     -1       /local/domain/3/backend/vbd/4/51728\n"
        );
        let row = |device, state| Row { device, state };
        assert_eq!(parse(&text).unwrap(), [row(51712, 4), row(51728, 3)]);
        assert_eq!(parse(HEADING).unwrap(), []);
    }

    #[test]
    fn anything_else_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("guest is an invalid domain identifier\n").is_err());
        assert!(parse(&format!("{HEADING}51712 3\n")).is_err());
    }
}
