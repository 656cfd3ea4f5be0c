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

use crate::catalog::{Catalog, OpenError};
use crate::claim::Access;
use crate::device::{BlockDevice, SectorSize};
use crate::discard::DiscardMode;
pub use crate::stores::null::NullTarget;
pub use crate::stores::ram::RamTarget;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

/// A kind of store: how its targets are written, and opening what they name.
pub trait StoreTarget: Sized {
    /// What targets of this kind begin with, before the colon.
    const KIND: &'static str;

    /// How such a target is written, for messages: `ram:NAME`.
    const EXPECTED: &'static str;

    /// Reads what follows the colon: `value`, and the options after the first comma. A mistake in the value
    /// comes first: it explains more than one in the options.
    fn parse(value: &str, options: Option<&str>) -> Result<Self, TargetError>;

    /// Opens the device that the target names. `owner` is told to others that want it.
    fn open(
        &self,
        catalog: &Catalog,
        access: Access,
        owner: &str,
    ) -> Result<Arc<dyn BlockDevice>, OpenError>;
}

/// Makes [`Target`] of the kinds of stores.
macro_rules! stores {
    ($($(#[$doc:meta])* $kind:ident($target:ty),)*) => {
        /// A store, as a guest's configuration names it.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Target {
            $($(#[$doc])* $kind($target),)*
        }

        /// How the targets of every kind are written.
        const EXPECTED: &[&str] = &[$(<$target>::EXPECTED),*];

        impl Target {
            fn parse(kind: &str, value: &str, options: Option<&str>) -> Result<Target, TargetError> {
                match kind {
                    $(<$target>::KIND => <$target>::parse(value, options).map(Target::$kind),)*
                    _ => Err(TargetError::UnknownStore(kind.to_string() + ":")),
                }
            }

            /// Opens the device that the target names ([`StoreTarget::open`]).
            pub(crate) fn open(
                &self,
                catalog: &Catalog,
                access: Access,
                owner: &str,
            ) -> Result<Arc<dyn BlockDevice>, OpenError> {
                match self {
                    $(Target::$kind(target) => target.open(catalog, access, owner),)*
                }
            }
        }
    };
}

// Every store: its folder below `stores`, and its line here.
stores! {
    /// `ram:NAME`: an image of the ramdisk.
    Ram(RamTarget),
    /// `null:SIZE`: no data at all.
    Null(NullTarget),
}

/// Options that follow the store, each after a comma.
#[derive(Default)]
pub(crate) struct Options {
    sector_size: Option<SectorSize>,
    physical_sector_size: Option<SectorSize>,
    pub(crate) discard: Option<DiscardMode>,
    pub(crate) shared: Option<bool>,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let (store, options) = match text.split_once(',') {
            Some((store, options)) => (store, Some(options)),
            None => (text, None),
        };
        match store.split_once(':') {
            Some((kind, value)) => Target::parse(kind, value, options),
            None => Err(TargetError::UnknownStore(store.to_string())),
        }
    }
}

impl Options {
    pub(crate) fn parse(text: Option<&str>) -> Result<Options, TargetError> {
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
                write!(
                    f,
                    "unknown store '{store}', expected {}",
                    EXPECTED.join(" or ")
                )
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
