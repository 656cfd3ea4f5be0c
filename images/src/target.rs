//! Targets: what a user writes after `target=` to name a store.
//!
//! ```
//! use bulkhead_images::target::{RamTarget, Target};
//! use bulkhead_images::SectorSize;
//!
//! let target: Target = "ram:root.img,sector-size=4096".parse()?;
//! assert_eq!(
//!     target,
//!     Target::Ram(RamTarget {
//!         name: "root.img".into(),
//!         sector_size: SectorSize::B4096,
//!         physical_sector_size: SectorSize::B4096,
//!         discard: None,
//!         shared: false,
//!     })
//! );
//! assert_eq!(
//!     "foo:x".parse::<Target>().unwrap_err().to_string(),
//!     "unknown store 'foo:', expected ram:NAME or null:SIZE"
//! );
//! # Ok::<(), bulkhead_images::TargetError>(())
//! ```

use crate::device::SectorSize;
use crate::discard::DiscardMode;
use crate::io::Sector;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

/// A store, as a guest's configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `ram:NAME`: an image of the ramdisk.
    Ram(RamTarget),
    /// `null:SIZE`: no data at all.
    Null(NullTarget),
}

/// `ram:NAME[,sector-size=512|4096][,physical-sector-size=512|4096][,discard=keep|release][,shared=yes|no]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamTarget {
    /// The image's name: the file's path in the archive.
    pub name: String,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that it is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
    /// What becomes of discarded memory, if not what the driver domain does with all of it.
    pub discard: Option<DiscardMode>,
    /// The image may be open for others too, writers among them, whose targets say the same.
    pub shared: bool,
}

/// `null:SIZE[,sector-size=512|4096][,physical-sector-size=512|4096]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullTarget {
    /// The size, in units of 512 bytes.
    pub sectors: Sector,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that it is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
}

/// Options that follow the store, each after a comma.
#[derive(Default)]
struct Options {
    sector_size: Option<SectorSize>,
    physical_sector_size: Option<SectorSize>,
    discard: Option<DiscardMode>,
    shared: Option<bool>,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let (store, options) = match text.split_once(',') {
            Some((store, options)) => (store, Some(options)),
            None => (text, None),
        };
        let (kind, value) = match store.split_once(':') {
            Some((kind @ ("ram" | "null"), value)) => (kind, value),
            Some((kind, _)) => return Err(TargetError::UnknownStore(kind.to_string() + ":")),
            None => return Err(TargetError::UnknownStore(store.to_string())),
        };
        // The store itself comes first: a mistake in it explains more than one in its options.
        if kind == "ram" && value.is_empty() {
            return Err(TargetError::NoName);
        }
        let size = (kind == "null").then(|| parse_size(value)).transpose()?;
        let options = Options::parse(options)?;
        let (sector_size, physical_sector_size) = options.sizes()?;
        let Some(size) = size else {
            return Ok(Target::Ram(RamTarget {
                name: value.to_string(),
                sector_size,
                physical_sector_size,
                discard: options.discard,
                shared: options.shared.unwrap_or(false),
            }));
        };
        for (option, given) in [
            ("discard", options.discard.is_some()),
            ("shared", options.shared.is_some()),
        ] {
            if given {
                return Err(TargetError::WithoutData(option));
            }
        }
        // The physical sectors are not smaller than the others.
        if !size.is_multiple_of(physical_sector_size.bytes() as u64) {
            return Err(TargetError::Size(value.to_string()));
        }
        Ok(Target::Null(NullTarget {
            sectors: Sector(size / Sector::SIZE as u64),
            sector_size,
            physical_sector_size,
        }))
    }
}

impl Options {
    fn parse(text: Option<&str>) -> Result<Options, TargetError> {
        let mut options = Options::default();
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

    /// The size of the sectors, and of the physical ones.
    fn sizes(&self) -> Result<(SectorSize, SectorSize), TargetError> {
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

/// Bytes, as `65536`, `64K`, `64M`, `1G` or `2T`; not zero.
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

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// No such store.
    UnknownStore(String),
    /// `ram:` without a name.
    NoName,
    /// A size that is none.
    Size(String),
    /// No such option.
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
            TargetError::UnknownStore(store) => {
                write!(f, "unknown store '{store}', expected ram:NAME or null:SIZE")
            }
            TargetError::NoName => f.write_str("'ram:' names no image, expected ram:NAME"),
            TargetError::Size(size) => write!(
                f,
                "'{size}' is no size, expected whole sectors in bytes or with K, M, G or T, \
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
                write!(f, "'{size}' is no sector size, expected 512 or 4096")
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
