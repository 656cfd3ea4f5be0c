//! Targets: the words after `target=` by which a user names a store.
//!
//! ```
//! use bulkhead_images::target::{RamTarget, Target};
//! use bulkhead_images::SectorSize;
//!
//! let target = Target::parse("ram:root.img,sector-size=4096")?;
//! assert_eq!((target.scheme, target.value), ("ram", "root.img"));
//! assert_eq!(
//!     RamTarget::parse(target)?,
//!     RamTarget {
//!         name: "root.img".into(),
//!         sector_size: SectorSize::B4096,
//!         physical_sector_size: SectorSize::B4096,
//!         discard: None,
//!         shared: false,
//!     }
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::device::SectorSize;
use crate::discard::DiscardMode;
pub use crate::stores::null::NullTarget;
pub use crate::stores::ram::RamTarget;
use alloc::string::{String, ToString};
use core::fmt;

/// A target, taken apart. The store decides what its value and its options mean ([`Store::open`](crate::Store::open)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The kind of store, before the colon.
    pub scheme: &'a str,
    /// The text after the colon.
    pub value: &'a str,
    /// The text after the first comma, if there is one.
    pub options: Option<&'a str>,
}

/// A target that names no kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoScheme;

impl<'a> Target<'a> {
    /// Takes a target apart.
    pub fn parse(text: &'a str) -> Result<Target<'a>, NoScheme> {
        let (store, options) = match text.split_once(',') {
            Some((store, options)) => (store, Some(options)),
            None => (text, None),
        };
        let (scheme, value) = store.split_once(':').ok_or(NoScheme)?;
        Ok(Target {
            scheme,
            value,
            options,
        })
    }
}

impl fmt::Display for NoScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the target names no store, expected STORE:NAME")
    }
}

impl core::error::Error for NoScheme {}

/// Options that follow the store, each after a comma. A store refuses those that have no meaning for it.
#[derive(Default)]
pub struct TargetOptions {
    /// `sector-size=`
    pub sector_size: Option<SectorSize>,
    /// `physical-sector-size=`
    pub physical_sector_size: Option<SectorSize>,
    /// `discard=`
    pub discard: Option<DiscardMode>,
    /// `shared=`
    pub shared: Option<bool>,
}

impl TargetOptions {
    /// Reads the options.
    pub fn parse(text: Option<&str>) -> Result<TargetOptions, TargetError> {
        let mut options = TargetOptions::default();
        for option in text.into_iter().flat_map(|text| text.split(',')) {
            match option.split_once('=') {
                Some(("sector-size", value)) => {
                    once("sector-size", &mut options.sector_size, sector_size(value)?)?;
                }
                Some(("physical-sector-size", value)) => {
                    let size = sector_size(value)?;
                    once(
                        "physical-sector-size",
                        &mut options.physical_sector_size,
                        size,
                    )?;
                }
                Some(("discard", value)) => {
                    let mode = DiscardMode::parse(value);
                    let mode = mode.ok_or_else(|| TargetError::Discard(value.to_string()))?;
                    once("discard", &mut options.discard, mode)?;
                }
                Some(("shared", value)) => {
                    let shared = match value {
                        "yes" => true,
                        "no" => false,
                        other => return Err(TargetError::Shared(other.to_string())),
                    };
                    once("shared", &mut options.shared, shared)?;
                }
                _ => return Err(TargetError::UnknownOption(option.to_string())),
            }
        }
        Ok(options)
    }

    /// Returns the size of the sectors, and of the physical ones.
    pub(crate) fn sizes(&self) -> Result<(SectorSize, SectorSize), TargetError> {
        let size = self.sector_size.unwrap_or_default();
        let physical = self.physical_sector_size.unwrap_or(size);
        if physical < size {
            return Err(TargetError::PhysicalSize(physical, size));
        }
        Ok((size, physical))
    }
}

/// Sets an option that may be given once.
fn once<T>(name: &'static str, option: &mut Option<T>, value: T) -> Result<(), TargetError> {
    match option.replace(value) {
        Some(_) => Err(TargetError::Twice(name)),
        None => Ok(()),
    }
}

fn sector_size(value: &str) -> Result<SectorSize, TargetError> {
    match value {
        "512" => Ok(SectorSize::B512),
        "4096" => Ok(SectorSize::B4096),
        other => Err(TargetError::SectorSize(other.to_string())),
    }
}

/// Returns the bytes that a text like `65536`, `64K`, `64M`, `1G` or `2T` means; not zero.
pub(crate) fn parse_size(text: &str) -> Result<u64, TargetError> {
    let wrong = || TargetError::Size(text.to_string());
    let unit = match text.as_bytes().last().ok_or_else(wrong)? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        _ => 0,
    };
    let digits = if unit == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    // `parse` alone would let a sign pass.
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    match digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << unit))
    {
        Some(0) | None => Err(wrong()),
        Some(size) => Ok(size),
    }
}

/// The fault of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// There is no such store.
    UnknownStore {
        /// The word that the target begins with.
        store: String,
        /// The forms of all kinds of targets.
        expected: String,
    },
    /// `ram:` without a name.
    NoName,
    /// A size that is not valid.
    Size(String),
    /// There is no such option.
    UnknownOption(String),
    /// A sector size that is not possible.
    SectorSize(String),
    /// The physical sectors would be smaller than those that are addressed.
    PhysicalSize(SectorSize, SectorSize),
    /// `discard=` with another word.
    Discard(String),
    /// `shared=` with another word.
    Shared(String),
    /// An option that has no meaning for a store without data.
    WithoutData(&'static str),
    /// An option given twice.
    Twice(&'static str),
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetError::UnknownStore { store, expected } => {
                write!(f, "unknown store '{store}', expected {expected}")
            }
            TargetError::NoName => f.write_str("'ram:' needs an image name, expected ram:NAME"),
            TargetError::Size(size) => write!(
                f,
                "'{size}' is not a valid size, expected whole sectors in bytes or with K, M, G or T, \
                 as in null:64M"
            ),
            TargetError::UnknownOption(option) => {
                write!(
                    f,
                    "unknown option '{option}', expected sector-size=512|4096, \
                     physical-sector-size=512|4096, discard=keep|release or shared=yes|no"
                )
            }
            TargetError::SectorSize(size) => {
                write!(
                    f,
                    "'{size}' is not a valid sector size, expected 512 or 4096"
                )
            }
            TargetError::PhysicalSize(physical, size) => write!(
                f,
                "physical-sector-size={physical} is smaller than sector-size={size}, expected {size}"
            ),
            TargetError::Discard(word) => {
                let expected = DiscardMode::EXPECTED;
                write!(f, "discard={word}: expected {expected}")
            }
            TargetError::Shared(word) => write!(f, "shared={word}: expected yes or no"),
            TargetError::WithoutData(option) => {
                write!(f, "null: holds no data, expected it without {option}=")
            }
            TargetError::Twice(option) => write!(f, "option {option} is given twice"),
        }
    }
}

impl core::error::Error for TargetError {}
