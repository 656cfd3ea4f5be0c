//! The states of a xenbus device (`enum xenbus_state`, io/xenbus.h).

use core::fmt;

/// The state that one end of a split device has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenbusState {
    /// No state, or one that the header does not know.
    Unknown = 0,
    /// The toolstack has made the directory.
    Initialising = 1,
    /// The backend has published its features and waits for the frontend's details.
    InitWait = 2,
    /// The frontend has published its rings and waits for the backend to connect.
    Initialised = 3,
    /// Connected.
    Connected = 4,
    /// Closing: no new requests.
    Closing = 5,
    /// Closed: everything shared is given back.
    Closed = 6,
    /// The device is being reconfigured (only PCI uses it).
    Reconfiguring = 7,
    /// The device has been reconfigured (only PCI uses it).
    Reconfigured = 8,
}

impl XenbusState {
    /// Reads a `state` node. A missing node, and a value that is no state, are `Unknown`.
    pub fn parse(node: Option<&str>) -> Self {
        use XenbusState::*;
        match node.map(str::trim) {
            Some("1") => Initialising,
            Some("2") => InitWait,
            Some("3") => Initialised,
            Some("4") => Connected,
            Some("5") => Closing,
            Some("6") => Closed,
            Some("7") => Reconfiguring,
            Some("8") => Reconfigured,
            _ => Unknown,
        }
    }
}

/// Formats the state as it is written into a `state` node.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (*self as u8).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::XenbusState;
    use alloc::string::ToString;

    #[test]
    fn a_state_reads_back_as_it_was_written() {
        for number in 1..=8u8 {
            let text = number.to_string();
            assert_eq!(XenbusState::parse(Some(&text)).to_string(), text);
        }
        for rubbish in [
            None,
            Some(""),
            Some("0"),
            Some("9"),
            Some("four"),
            Some("44"),
        ] {
            assert_eq!(XenbusState::parse(rubbish), XenbusState::Unknown);
        }
    }
}
