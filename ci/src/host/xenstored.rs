//! The two implementations of xenstored that Xen has.

use std::fmt;

/// The two implementations of xenstored. They differ in their answers about quotas, long listings and
/// conflicting transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xenstored {
    /// The older implementation, in C.
    #[default]
    Xenstored,
    /// The implementation in OCaml, which Debian's start scripts prefer.
    Oxenstored,
}

impl Xenstored {
    /// Returns the other implementation.
    pub fn other(self) -> Self {
        match self {
            Self::Xenstored => Self::Oxenstored,
            Self::Oxenstored => Self::Xenstored,
        }
    }

    /// Returns a scenario's name for a run with this xenstored, so that the same scenario with both has two
    /// rows and two folders.
    pub fn title(self, scenario: &str) -> String {
        match self == Self::default() {
            true => scenario.to_owned(),
            false => format!("{scenario}-{self}"),
        }
    }

    /// Returns the word on dom0's kernel command line by which its init knows which one to start.
    pub fn dom0_option(self) -> String {
        format!("lab.xenstored={self}")
    }
}

impl fmt::Display for Xenstored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xenstored => "xenstored",
            Self::Oxenstored => "oxenstored",
        })
    }
}
