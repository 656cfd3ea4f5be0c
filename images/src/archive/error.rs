//! The faults of an archive.

use alloc::string::String;
use core::fmt;

/// The reason why an archive cannot be read. Offsets are those of the header in question, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// The archive is compressed: images are served in place, so it has to come unpacked.
    Compressed {
        /// The program that made it.
        by: &'static str,
    },
    /// The archive ends where a header or its end mark, a block of zeros, should be.
    Truncated {
        /// The offset at which it was expected.
        offset: usize,
    },
    /// A header's checksum does not match its bytes.
    Checksum {
        /// The header's offset.
        offset: usize,
        /// The checksum that it carries, if that is a number at all.
        stored: Option<u64>,
        /// The checksum of its bytes.
        computed: u64,
    },
    /// A header's size is not a number.
    Size {
        /// The header's offset.
        offset: usize,
    },
    /// A member's data would reach past the end of the archive.
    BeyondEnd {
        /// The member.
        name: String,
        /// The offset of its header.
        offset: usize,
        /// Its size in bytes, as the header has it.
        size: u64,
        /// The size of the whole archive in bytes.
        archive: usize,
    },
    /// A name is empty or not text.
    Name {
        /// The header's offset.
        offset: usize,
    },
    /// Two members have the same name.
    Duplicate {
        /// The name of both.
        name: String,
        /// The offset of the first one's data.
        first: usize,
        /// The offset of the second one's data.
        second: usize,
    },
    /// A member's data is not its file's content: a sparse file, or a part of several volumes.
    Unsupported {
        /// The member.
        name: String,
        /// The offset of its header.
        offset: usize,
        /// Its type flag.
        kind: char,
    },
    /// A pax extended header is not valid.
    ExtendedHeader {
        /// Its offset.
        offset: usize,
    },
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ArchiveError::Compressed { by } = self {
            return write!(
                f,
                "compressed by {by}, and images are served in place: unpack it before the domain is \
                 created"
            );
        }
        f.write_str("damaged archive: ")?;
        match self {
            ArchiveError::Compressed { .. } => Ok(()),
            ArchiveError::Truncated { offset } => {
                write!(f, "it ends at {offset}, without an end mark")
            }
            ArchiveError::Checksum {
                offset,
                stored: Some(stored),
                computed,
            } => write!(
                f,
                "the header at {offset} has checksum {stored}, its bytes sum up to {computed}"
            ),
            ArchiveError::Checksum {
                offset,
                stored: None,
                ..
            } => write!(f, "there is no header at {offset}"),
            ArchiveError::Size { offset } => {
                write!(f, "the size in the header at {offset} is not a number")
            }
            ArchiveError::BeyondEnd {
                name,
                offset,
                size,
                archive,
            } => write!(
                f,
                "{name} (header at {offset}) has {size} bytes, past the end of the archive's {archive}"
            ),
            ArchiveError::Name { offset } => {
                write!(
                    f,
                    "the name in the header at {offset} is empty or not UTF-8"
                )
            }
            ArchiveError::Duplicate {
                name,
                first,
                second,
            } => write!(
                f,
                "two members are called {name}, with data at {first} and {second}"
            ),
            ArchiveError::Unsupported { name, offset, kind } => write!(
                f,
                "{name} (header at {offset}, type '{kind}') is a sparse file or of a kind \
                 that cannot be served in place; make the archive without --sparse"
            ),
            ArchiveError::ExtendedHeader { offset } => {
                write!(f, "the extended header at {offset} makes no sense")
            }
        }
    }
}

impl core::error::Error for ArchiveError {}
