//! The state of a queue that shares a device's queue, a ring or a connection with others.

/// The state of such a queue. Its place among the others is its own until it is dropped: it is asked more than once
/// whether it is closed, and closed by its drop. If the place were another queue's by then, that one would be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// It takes requests.
    Open,
    /// It was closed: what completes is told to nobody.
    Closed,
    /// It was dropped: another queue may have its place, once nothing works on its requests any more.
    Dropped,
}

impl QueueState {
    /// Returns whether it takes requests.
    #[inline]
    pub fn is_open(self) -> bool {
        self == QueueState::Open
    }

    /// Returns whether it was dropped.
    pub fn is_dropped(self) -> bool {
        self == QueueState::Dropped
    }
}
