//! Paths: checked before anything is sent.

use crate::error::{Error, Fault};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use bulkhead_xen::abi::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};
use core::fmt;

/// The mistake in a path (`docs/misc/xenstore.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// Nothing at all.
    Empty,
    /// Neither letter nor digit nor one of `-/_@`.
    Character(char),
    /// Two slashes next to each other.
    DoubleSlash,
    /// A slash at the end.
    TrailingSlash,
    /// Too many bytes.
    TooLong(usize),
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathFault::Empty => f.write_str("it is empty"),
            PathFault::Character(found) => write!(f, "{found:?} is not allowed"),
            PathFault::DoubleSlash => f.write_str("a part is empty"),
            PathFault::TrailingSlash => f.write_str("it ends in a slash"),
            PathFault::TooLong(length) => write!(f, "{length} bytes are too many"),
        }
    }
}

/// Checks a path.
pub(crate) fn check(path: &str) -> Result<(), Error> {
    match fault(path) {
        None => Ok(()),
        Some(fault) => Err(Fault::Path {
            path: path.chars().take(ABS_PATH_MAX).collect(),
            fault,
        }
        .into()),
    }
}

fn fault(path: &str) -> Option<PathFault> {
    let allowed = |found: &char| found.is_ascii_alphanumeric() || "-/_@".contains(*found);
    let most = if path.starts_with('/') {
        ABS_PATH_MAX
    } else {
        REL_PATH_MAX
    };
    if path.is_empty() {
        Some(PathFault::Empty)
    } else if path.len() > most {
        Some(PathFault::TooLong(path.len()))
    } else if let Some(found) = path.chars().find(|found| !allowed(found)) {
        Some(PathFault::Character(found))
    } else if path.as_bytes().windows(2).any(|two| two == b"//") {
        Some(PathFault::DoubleSlash)
    } else if path.len() > 1 && path.ends_with('/') {
        Some(PathFault::TrailingSlash)
    } else {
        None
    }
}

/// A path that has been checked: absolute, relative to the domain's own directory, or the name of
/// a special watch (`@releaseDomain`).
///
/// ```
/// use bulkhead_xenstore_client::Path;
///
/// let vbd = Path::new("backend/vbd")?.join("5")?.join(51712)?;
/// assert_eq!(vbd.as_str(), "backend/vbd/5/51712");
/// assert_eq!(vbd.name(), "51712");
/// assert_eq!(vbd.below("backend/vbd"), Some("5/51712"));
/// assert_eq!(vbd.below("backend/v"), None);
/// assert!(Path::new("backend//vbd").is_err());
/// # Ok::<(), bulkhead_xenstore_client::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    /// Checks a path.
    pub fn new(path: &str) -> Result<Path, Error> {
        check(path)?;
        Ok(Path(path.to_owned()))
    }

    /// Returns the path of a node below, by name or by several names.
    pub fn join(&self, below: impl fmt::Display) -> Result<Path, Error> {
        let path = match self.0.as_str() {
            "/" => format!("/{below}"),
            path => format!("{path}/{below}"),
        };
        check(&path)?;
        Ok(Path(path))
    }

    /// Returns the path of the node above, if the path names one.
    pub fn parent(&self) -> Option<Path> {
        match self.0.rfind('/')? {
            0 if self.0.len() == 1 => None,
            0 => Some(Path("/".to_owned())),
            slash => Some(Path(self.0[..slash].to_owned())),
        }
    }

    /// Returns the last part.
    pub fn name(&self) -> &str {
        &self.0[self.0.rfind('/').map_or(0, |slash| slash + 1)..]
    }

    /// Returns what follows `top`, if this path lies below; empty if it is `top` itself.
    pub fn below(&self, top: &str) -> Option<&str> {
        let rest = self.0.strip_prefix(top)?;
        if rest.is_empty() || top == "/" {
            return Some(rest);
        }
        rest.strip_prefix('/')
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Path {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
