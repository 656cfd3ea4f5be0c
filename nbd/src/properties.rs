//! What a server says of an export.

use crate::name::shown;
use crate::wire::TransmissionFlags;
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_images::{DiscardLimits, Geometry, Sector, SectorSize};
use core::fmt;

/// The most bytes of a request: 32 pages.
const MOST_BYTES: u32 = 128 << 10;

/// The most bytes of a request to a server that says nothing of it.
const USUAL_MAXIMUM: u32 = 32 << 20;

/// The sizes of requests that a server takes, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// The smallest, and the unit of all.
    pub minimum: u32,
    /// The one that it likes best.
    pub preferred: u32,
    /// The largest that has data.
    pub maximum: u32,
}

impl BlockSizes {
    /// What is so if a server says nothing.
    pub const USUAL: BlockSizes = BlockSizes {
        minimum: 1,
        preferred: 4096,
        maximum: USUAL_MAXIMUM,
    };
}

/// The reason why an export cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its sizes contradict each other.
    Sizes(BlockSizes),
    /// Its unit is larger than a guest's.
    Unit(u32),
    /// It takes less than a sector.
    Maximum(u32),
    /// It has no whole sector.
    Empty(u64),
    /// It is larger than what can be addressed.
    Large(u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Sizes(BlockSizes {
                minimum,
                preferred,
                maximum,
            }) => write!(
                f,
                "the server names impossible block sizes: {minimum}, {preferred} and {maximum}"
            ),
            Unusable::Unit(unit) => write!(
                f,
                "the server takes requests in units of {unit} bytes only, and guests have 512 or 4096"
            ),
            Unusable::Maximum(bytes) => {
                write!(
                    f,
                    "the server takes {bytes} bytes at a time, less than a sector"
                )
            }
            Unusable::Empty(bytes) => write!(f, "the export has {bytes} bytes, less than a sector"),
            Unusable::Large(bytes) => write!(f, "the export says that it has {bytes} bytes"),
        }
    }
}

/// What an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its size.
    pub sectors: Sector,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// The unit of its requests.
    pub sector_size: SectorSize,
    /// The unit that it likes best.
    pub physical_sector_size: SectorSize,
    /// The most bytes of a request that has data.
    pub most_bytes: u32,
    /// Its name as the server has it, if it says so.
    pub name: Option<String>,
}

impl Properties {
    /// Checks what a server says of an export.
    pub fn new(
        bytes: u64,
        flags: TransmissionFlags,
        sizes: BlockSizes,
        name: Option<String>,
    ) -> Result<Properties, Unusable> {
        let BlockSizes {
            minimum,
            preferred,
            maximum,
        } = sizes;
        let possible = minimum.is_power_of_two()
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= minimum
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
        if !possible {
            return Err(Unusable::Sizes(sizes));
        }
        let sector_size = match minimum {
            ..=512 => SectorSize::B512,
            513..=4096 => SectorSize::B4096,
            unit => return Err(Unusable::Unit(unit)),
        };
        let unit = sector_size.bytes() as u32;
        let most_bytes = maximum.min(MOST_BYTES) / unit * unit;
        if most_bytes == 0 {
            return Err(Unusable::Maximum(maximum));
        }
        // Signed everywhere else: no file, and no block device, is larger.
        if bytes > i64::MAX as u64 {
            return Err(Unusable::Large(bytes));
        }
        let whole = bytes / u64::from(unit) * u64::from(unit);
        if whole == 0 {
            return Err(Unusable::Empty(bytes));
        }
        // Without that flag the others say nothing.
        let flags = match flags.contains(TransmissionFlags::HAS_FLAGS) {
            true => flags & known(),
            false => TransmissionFlags::empty(),
        };
        Ok(Properties {
            sectors: Sector(whole / Sector::SIZE as u64),
            flags,
            sector_size,
            physical_sector_size: match preferred {
                ..4096 => sector_size,
                _ => SectorSize::B4096,
            },
            most_bytes,
            name,
        })
    }

    /// Returns whether it can forget data.
    pub fn forgets(&self) -> bool {
        let either = TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
        self.flags.intersects(either) && !self.is_read_only()
    }

    /// Returns whether it can only be read.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// Returns what a guest is told of it.
    pub fn geometry(&self) -> Geometry {
        let limits = DiscardLimits {
            granularity: self.physical_sector_size.sectors(),
            alignment: Sector(0),
            secure: false,
        };
        Geometry {
            sectors: self.sectors,
            sector_size: self.sector_size,
            physical_sector_size: self.physical_sector_size,
            read_only: self.is_read_only(),
            flush: self.flags.contains(TransmissionFlags::SEND_FLUSH),
            discard: self.forgets().then_some(limits),
        }
    }

    /// Checks that what the server has now is what it had before. The error says what is not.
    pub fn check_same(&self, now: &Properties) -> Result<(), String> {
        let another = "the server has another export in its place: ";
        if now.sectors != self.sectors {
            return Err(format!(
                "{another}it has {} sectors, and had {}",
                now.sectors, self.sectors
            ));
        }
        if let (Some(name), Some(was)) = (&now.name, &self.name)
            && name != was
        {
            return Err(format!(
                "{another}it is called '{}', and was '{}'",
                shown(name),
                shown(was)
            ));
        }
        if now.sector_size != self.sector_size || now.most_bytes < self.most_bytes {
            return Err(format!("{another}it takes requests of other sizes"));
        }
        // What it can do besides is not used.
        if now.is_read_only() != self.is_read_only() || !now.flags.contains(self.flags) {
            return Err(another.to_string() + "it cannot do what it could");
        }
        Ok(())
    }
}

/// Returns the flags that are looked at.
fn known() -> TransmissionFlags {
    TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::READ_ONLY
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::CAN_MULTI_CONN
}
