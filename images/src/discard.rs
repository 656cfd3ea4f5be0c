//! The effect of a discard on the memory of an image.

use core::fmt;

/// The use of the memory behind data that a guest discards (`discard=` on the domain's command line, or as an
/// option of a target). Either way the discarded data reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DiscardMode {
    /// The memory is cleared and stays the image's, so that a later write always has memory.
    #[default]
    Keep,
    /// The memory goes back to Xen, page by page, and is asked for again by the first write to it. Xen may have given
    /// it to another domain by then: that write fails.
    Release,
}

impl DiscardMode {
    /// The words that [`parse`](Self::parse) understands, for messages.
    pub const EXPECTED: &str = "keep or release";

    /// Returns the mode that `word` names.
    pub fn parse(word: &str) -> Option<DiscardMode> {
        match word {
            "keep" => Some(DiscardMode::Keep),
            "release" => Some(DiscardMode::Release),
            _ => None,
        }
    }
}

impl fmt::Display for DiscardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiscardMode::Keep => "keep",
            DiscardMode::Release => "release",
        })
    }
}
