//! The properties of an export, as its server reports them.

use crate::name::shown;
use crate::wire::TransmissionFlags;
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_images::{DiscardLimits, Geometry, Sector, SectorSize, identity_of};
use core::fmt;

/// The most bytes of a request: 32 pages.
const MOST_BYTES: u32 = 128 << 10;

/// The most bytes of a request to a server that reports no maximum.
const USUAL_MAXIMUM: u32 = 32 << 20;

/// The sizes of requests that a server takes, as it reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// The smallest, and the unit of all.
    pub minimum: u32,
    /// The size that the server prefers.
    pub preferred: u32,
    /// The largest size of a request with data.
    pub maximum: u32,
}

impl BlockSizes {
    /// The sizes if a server reports none.
    pub const USUAL: BlockSizes = BlockSizes {
        minimum: 1,
        preferred: 4096,
        maximum: USUAL_MAXIMUM,
    };
}

/// The reason why an export cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The sizes contradict each other.
    Sizes(BlockSizes),
    /// The unit of requests is larger than that of guests.
    Unit(u32),
    /// The server takes less than a sector in a request.
    Maximum(u32),
    /// The export has no whole sector.
    Empty(u64),
    /// The export is larger than sector numbers allow.
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

/// The properties of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its size.
    pub sectors: Sector,
    /// The operations that it supports.
    pub flags: TransmissionFlags,
    /// The unit of its requests.
    pub sector_size: SectorSize,
    /// The unit that the server prefers.
    pub physical_sector_size: SectorSize,
    /// The most bytes of a request that has data.
    pub most_bytes: u32,
    /// The server's own name for it, if the server tells it.
    pub name: Option<String>,
}

impl Properties {
    /// Checks the properties of an export that a server reports.
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

    /// Returns whether the server can discard data.
    pub fn discards(&self) -> bool {
        let either = TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
        self.flags.intersects(either) && !self.is_read_only()
    }

    /// Returns whether the export can only be read.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// Returns the properties that a guest is told.
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
            discard: self.discards().then_some(limits),
        }
    }

    /// Returns a number that tells the export from another one that the server could have in its place, after a boot that
    /// [`check_same`](Self::check_same) does not remember.
    pub fn identity(&self) -> u32 {
        // A guest that was told of flushes takes a disk without them for one that needs none.
        let flags = TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_FLUSH;
        let numbers = [
            self.sectors.0,
            self.sector_size.bytes() as u64,
            u64::from((self.flags & flags).bits()),
        ];
        let name = self.name.iter().flat_map(|name| name.bytes());
        identity_of(numbers.into_iter().flat_map(u64::to_le_bytes).chain(name))
    }

    /// Checks that the export, which has the properties `now`, is the one that it was. The error names the difference.
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

/// Returns the flags that the client uses.
fn known() -> TransmissionFlags {
    TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::READ_ONLY
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::CAN_MULTI_CONN
}
