//! The units in which a frontend counts sectors that are not of 512 bytes.
//!
//! Xen's header has said different things over the years, and frontends follow different versions of it:
//! - all positions and lengths in units of 512 bytes: Linux, NetBSD, and Xen's header since 4.20;
//! - all of them in units of the sector: Windows, which announces `feature-large-sector-size`;
//! - positions in units of the sector, lengths in units of 512 bytes: FreeBSD before 2024, which announces
//!   nothing.
//!
//! The same request means different places to different frontends. So a disk of large sectors is served only
//! to a frontend that is known to be of the first kind, because it publishes `feature-persistent` (with any
//! value), as Linux has done since 3.8. The frontends of Windows and FreeBSD never have.

use core::fmt;

/// The reason why a disk of large sectors is not served to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorUnits {
    /// The frontend counts in units of the sector.
    OfTheSector,
    /// The frontend does not say how it counts.
    Unknown,
}

impl fmt::Display for SectorUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfTheSector => {
                "the frontend counts in sectors of 4096 bytes (feature-large-sector-size), not in units of 512"
            }
            Self::Unknown => {
                "the frontend does not show whether it counts sectors of 4096 bytes in units of 512"
            }
        })?;
        f.write_str(": attach the disk with physical-sector-size=4096 instead of sector-size=4096")
    }
}

impl core::error::Error for SectorUnits {}
