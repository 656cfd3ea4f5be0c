//! The images of the ramdisk, and opening them.

use crate::archive::{self, ArchiveError};
use crate::claim::{Access, Claims, InUse};
use crate::device::SectorSize;
use crate::discard::DiscardMode;
use crate::memory::{File, ImageMemory};
use crate::memory_image::{CannotGrow, MemoryImage};
use crate::resize::{GrowError, Resize};
use crate::stores::ram::RamImage;
use crate::target::{RamTarget, TargetError};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::Reservation;
use core::fmt;

/// All images of the driver domain.
///
/// A catalog whose ramdisk is damaged is a catalog all the same: every attempt to open an image gets the fault, and the
/// other stores are served.
#[derive(Debug)]
pub struct Catalog {
    images: Result<Vec<Image>, ArchiveError>,
    /// The discard mode of targets that do not name one.
    discard: DiscardMode,
    /// True if files that are taken stay in the ramdisk.
    keeps_files: bool,
}

/// An image, open or not.
#[derive(Debug)]
struct Image {
    name: String,
    memory: Arc<MemoryImage>,
    claims: Arc<Claims>,
}

impl Image {
    fn new(name: String, memory: ImageMemory) -> Image {
        Image {
            name,
            memory: Arc::new(MemoryImage::new(memory)),
            claims: Arc::default(),
        }
    }
}

/// What a ramdisk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamdiskKind {
    /// An archive, each of whose files is an image.
    Archive,
    /// One image.
    Whole,
}

impl RamdiskKind {
    /// Looks what a ramdisk is that no guest has written to yet. Afterwards, its first bytes may be a guest's: one that is a
    /// single image has whatever they say.
    ///
    /// # Errors
    /// It is neither.
    pub fn of(ramdisk: &mut ImageMemory) -> Result<RamdiskKind, ArchiveError> {
        if archive::is_archive(ramdisk.bytes()) {
            return Ok(RamdiskKind::Archive);
        }
        match archive::compressed_by(ramdisk.bytes()) {
            Some(by) => Err(ArchiveError::Compressed { by }),
            None => Ok(RamdiskKind::Whole),
        }
    }
}

impl Catalog {
    /// Returns the catalog of a driver domain without a ramdisk.
    pub fn empty() -> Catalog {
        Catalog::of(Ok(Vec::new()))
    }

    fn of(images: Result<Vec<Image>, ArchiveError>) -> Catalog {
        Catalog {
            images,
            discard: DiscardMode::default(),
            keeps_files: false,
        }
    }

    /// Returns the images in a ramdisk: the files of an archive or, if it is not an archive, the whole of it as
    /// `disk0`.
    pub fn from_module(mut ramdisk: ImageMemory) -> Catalog {
        match RamdiskKind::of(&mut ramdisk) {
            Ok(kind) => Catalog::of_kind(kind, ramdisk),
            Err(error) => Catalog::of(Err(error)),
        }
    }

    /// The images in a ramdisk of that kind, which was looked at when no guest had written to it yet.
    pub fn of_kind(kind: RamdiskKind, mut ramdisk: ImageMemory) -> Catalog {
        if kind == RamdiskKind::Whole {
            let whole = Image::new("disk0".to_string(), ramdisk);
            return Catalog::of(Ok(alloc::vec![whole]));
        }
        let members = archive::members(ramdisk.bytes());
        let images = members.map(|members| {
            // From the last to the first, so that offsets stay what they are.
            let cut = members.into_iter().rev().map(|member| {
                let mut memory = ramdisk.split_off(member.offset);
                memory.split_off(member.size);
                Image::new(member.name, memory)
            });
            let mut images: Vec<Image> = cut.collect();
            images.reverse();
            images
        });
        Catalog::of(images)
    }

    /// Takes a file of the driver domain's own out of the ramdisk's archive: it is not an image any more. Returns
    /// `None` if there is no file of that name.
    ///
    /// # Panics
    /// If an image is open already.
    pub fn take_file(&mut self, name: &str) -> Option<File> {
        let images = self.images.as_mut().ok()?;
        let place = images.iter().position(|image| image.name == name)?;
        let memory = Arc::into_inner(images.remove(place).memory);
        let memory = memory.expect("files are taken before anyone opens an image");
        Some(File::new(memory.into_memory(), self.keeps_files))
    }

    /// Leaves files that are taken in the ramdisk as they are, for a boot that follows a crash in the same domain.
    pub fn keep_files(&mut self) {
        self.keeps_files = true;
    }

    /// Returns the same catalog, whose images have that discard mode unless their target says otherwise. Memory goes
    /// back to Xen only [with a reservation](Self::with_reservation).
    pub fn with_discard(self, discard: DiscardMode) -> Catalog {
        Catalog { discard, ..self }
    }

    /// Returns the same catalog, whose images can grow, and can give memory back to Xen.
    ///
    /// # Panics
    /// If an image is open already.
    pub fn with_reservation(mut self, reservation: Arc<dyn Reservation>) -> Catalog {
        for image in self.images.iter_mut().flatten() {
            let memory = Arc::get_mut(&mut image.memory);
            let memory = memory.expect("a reservation comes before anyone opens an image");
            memory.take_pages_from(reservation.clone());
        }
        self
    }

    /// Begins to make an image larger, attached or not. The bytes added will be zeros. Their memory is free
    /// memory of this domain: it is taken here and cleared step by step ([`Resize::step`]), because clearing
    /// gigabytes takes long. Nothing changes on an error.
    pub fn grow(&self, name: &str, size: u64) -> Result<Resize, GrowError> {
        let image = self.find(name)?;
        let name = image.name.clone();
        if !size.is_multiple_of(SectorSize::B4096.bytes() as u64) {
            return Err(GrowError::Size { name, size });
        }
        let now = image.memory.len() as u64;
        let wanted = size.saturating_sub(now);
        let grown = match usize::try_from(size) {
            Ok(size) => image.memory.begin_resize(size),
            Err(_) => Err(CannotGrow::NoMemory),
        };
        match grown {
            Ok(added) => Ok(Resize::new(image.memory.clone(), added)),
            Err(CannotGrow::NotLarger) => Err(GrowError::NotLarger { name, size, now }),
            Err(CannotGrow::Growing) => Err(GrowError::Growing { name }),
            Err(CannotGrow::NoMemory) => Err(GrowError::NoMemory { name, wanted }),
        }
    }

    /// Returns the number of an image's bytes that were discarded and have no memory behind them now; `None`
    /// if there is no such image.
    pub fn released(&self, name: &str) -> Option<usize> {
        let mut images = self.images.iter().flatten();
        let image = images.find(|image| image.name == name)?;
        Some(image.memory.released())
    }

    /// Returns the fault of the ramdisk, if it is an archive that cannot be read.
    pub fn damage(&self) -> Option<&ArchiveError> {
        self.images.as_ref().err()
    }

    /// Returns every image: its name, its size in bytes, and the number of disks that have it open.
    pub fn images(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let images = self.images.as_deref().unwrap_or_default().iter();
        images.map(|image| {
            (
                image.name.as_str(),
                image.memory.len(),
                image.claims.count(),
            )
        })
    }

    /// Calls `each` for every use of an image: with the image's name, the access, and the name of the owner who has it
    /// open.
    pub fn for_each_use(&self, mut each: impl FnMut(&str, Access, String)) {
        for image in self.images.as_deref().unwrap_or_default() {
            for (access, owner) in image.claims.owners() {
                each(&image.name, access, owner);
            }
        }
    }

    fn find(&self, name: &str) -> Result<&Image, NotFound> {
        let images = self.images.as_ref();
        let images = images.map_err(|error| NotFound::Damaged(error.clone()))?;
        let image = images.iter().find(|image| image.name == name);
        image.ok_or_else(|| NotFound::Unknown {
            name: name.to_string(),
            images: images.iter().map(|image| image.name.clone()).collect(),
        })
    }

    pub(crate) fn open_ram(
        &self,
        target: &RamTarget,
        access: Access,
        owner: &str,
    ) -> Result<RamImage, OpenError> {
        let image = self.find(&target.name)?;
        let name = image.name.clone();
        let sizes = (target.sector_size, target.physical_sector_size);
        // `io/blkif.h`: the whole disk is a multiple of the larger one too.
        let sector_size = sizes.0.max(sizes.1);
        let size = image.memory.len();
        if size == 0 || !size.is_multiple_of(sector_size.bytes()) {
            return Err(OpenError::Size {
                name,
                size,
                sector_size,
            });
        }
        let claim = image.claims.take(access, target.shared, owner);
        let claim = claim.map_err(|in_use| OpenError::InUse { name, in_use })?;
        let discard = target.discard.unwrap_or(self.discard);
        let memory = image.memory.clone();
        Ok(RamImage::claimed(
            memory,
            sizes,
            access,
            discard,
            Some(claim),
        ))
    }
}

/// The reason why an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// There is no such image.
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        images: Vec<String>,
    },
    /// The ramdisk cannot be read.
    Damaged(ArchiveError),
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotFound::Unknown { name, images } if images.is_empty() => {
                write!(f, "no image {name}: the driver domain has no images")
            }
            NotFound::Unknown { name, images } => {
                write!(f, "no image {name}, there are: {}", images.join(", "))
            }
            NotFound::Damaged(error) => write!(f, "the ramdisk cannot be read: {error}"),
        }
    }
}

impl core::error::Error for NotFound {}

/// The reason why a target cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The target is not understood.
    Target(TargetError),
    /// The image is not there.
    NotFound(NotFound),
    /// The image does not consist of whole sectors.
    Size {
        /// Its name.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The sector size asked for, or the physical one where that is larger.
        sector_size: SectorSize,
    },
    /// Another owner has it open, and the two cannot share it.
    InUse {
        /// Its name.
        name: String,
        /// The other owner, and its access.
        in_use: InUse,
    },
    /// The store failed, for this reason, which is a sentence for the operator.
    Store(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Target(error) => error.fmt(f),
            OpenError::NotFound(error) => error.fmt(f),
            OpenError::Size { name, size: 0, .. } => write!(f, "image {name} is empty"),
            OpenError::Size {
                name,
                size,
                sector_size,
            } => write!(
                f,
                "image {name} has {size} bytes, which is not a multiple of {sector_size}"
            ),
            OpenError::InUse { name, in_use } => write!(f, "image {name} is {in_use}"),
            OpenError::Store(reason) => f.write_str(reason),
        }
    }
}

impl core::error::Error for OpenError {}

impl From<NotFound> for OpenError {
    fn from(error: NotFound) -> Self {
        OpenError::NotFound(error)
    }
}

impl From<TargetError> for OpenError {
    fn from(error: TargetError) -> Self {
        OpenError::Target(error)
    }
}
