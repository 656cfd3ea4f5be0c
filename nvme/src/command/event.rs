//! Asynchronous events, which a controller reports by itself.

/// The completion of an asynchronous event request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// The kind of event.
    pub kind: EventKind,
    /// The number of the log that says more. The controller reports the next event of that type once the log was read.
    pub log: u8,
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An error that belongs to no command.
    Error,
    /// The health of the controller has changed.
    Health,
    /// Namespaces were added or removed, or have changed.
    Namespaces,
    /// Anything else.
    Other,
}

impl AsyncEvent {
    /// Reads dword 0 of the completion.
    pub const fn parse(result: u32) -> AsyncEvent {
        let kind = match (result & 7, result >> 8 & 0xff) {
            (0, _) => EventKind::Error,
            (1, _) => EventKind::Health,
            (2, 0) => EventKind::Namespaces,
            _ => EventKind::Other,
        };
        AsyncEvent {
            kind,
            log: (result >> 16) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let kind = |result| AsyncEvent::parse(result).kind;
        assert_eq!(kind(0x0001_0000), EventKind::Error);
        assert_eq!(kind(0x0002_0101), EventKind::Health);
        assert_eq!(kind(0x0004_0002), EventKind::Namespaces);
        assert_eq!(AsyncEvent::parse(0x0004_0002).log, 4);
        assert_eq!(kind(0x0003_0102), EventKind::Other);
        assert_eq!(kind(u32::MAX), EventKind::Other);
    }
}
