//! Reads a tar archive in place: finds the members, copies nothing.
//!
//! It understands what Debian's `tar` writes: ustar, GNU and pax headers, long names in all three, and sizes beyond 8
//! GiB. Crates that read tar without an operating system know neither GNU's nor pax's long names and show no offsets,
//! and would serve a sparse member's packed bytes as if they were the image.
//!
//! The format: blocks of 512 bytes. A member is a header block with name, size and checksum,
//! followed by its data filled up to whole blocks; the last is followed by blocks of zeros. Extra
//! members before the real one carry what its header has no room for.
//!
//! ```
//! use bulkhead_images::archive::{self, ArchiveError};
//!
//! let error = archive::members(&[0; 100]).unwrap_err();
//! assert_eq!(error, ArchiveError::Truncated { offset: 0 });
//! ```

mod error;
mod header;
mod pax;

pub use error::ArchiveError;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use header::{Header, Kind};
use litemap::LiteMap;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path, without leading `./`.
    pub name: String,
    /// The offset of its data in the archive, in bytes: a multiple of 512.
    pub offset: usize,
    /// Its size in bytes; all of them lie within the archive.
    pub size: usize,
}

/// Returns whether `bytes` are meant to be a tar archive: the first block has tar's magic, even if it is damaged
/// otherwise, or it is an intact header from before there was a magic.
pub fn is_archive(bytes: &[u8]) -> bool {
    bytes
        .first_chunk()
        .is_some_and(|block| header::has_magic(block) || header::check(block, 0).is_ok())
}

/// Returns the program that compressed these bytes, if one did. Xen's domain builder unpacks what gzip made
/// before 4.20, and nothing since.
pub fn compressed_by(bytes: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 6] = [
        (&[0x1f, 0x8b, 8], "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[4, 0x22, 0x4d, 0x18], "lz4"),
        // The older format, which kernels use.
        (&[2, 0x21, 0x4c, 0x18], "lz4"),
        (b"\x89LZO\0\r\n", "lzop"),
    ];
    let is = |(magic, _): &&(&[u8], &str)| bytes.starts_with(magic);
    if let Some((_, by)) = MAGICS.iter().find(is) {
        return Some(by);
    }
    // A level, and pi, with which every block begins.
    let bzip2 = bytes.first_chunk::<10>()?;
    (bzip2.starts_with(b"BZh") && bzip2[4..] == *b"1AY&SY").then_some("bzip2")
}

/// Returns all regular files of an archive, in its order. Directories, links and devices are passed over.
pub fn members(archive: &[u8]) -> Result<Vec<Member>, ArchiveError> {
    let mut members: Vec<Member> = Vec::new();
    let mut names = LiteMap::<String, usize>::default();
    let mut reader = Reader { archive, offset: 0 };
    while let Some(member) = reader.next()? {
        if let Some(first) = names.insert(member.name.clone(), member.offset) {
            return Err(ArchiveError::Duplicate {
                name: member.name,
                first,
                second: member.offset,
            });
        }
        members.push(member);
    }
    Ok(members)
}

/// Goes from header to header.
struct Reader<'a> {
    archive: &'a [u8],
    offset: usize,
}

/// The attributes that extra members give to the member after them.
#[derive(Default)]
struct Extra {
    name: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

impl Reader<'_> {
    /// Returns the next regular file; `None` at the end of the archive.
    fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extra = Extra::default();
        loop {
            let offset = self.offset;
            let block = self
                .archive
                .get(offset..)
                .and_then(|rest| rest.first_chunk::<BLOCK>())
                .ok_or(ArchiveError::Truncated { offset })?;
            if block.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            let header = Header::parse(block, offset)?;
            if header.kind == Kind::LongName || header.kind == Kind::Pax {
                self.extra(&header, &mut extra)?;
                continue;
            }
            let name = match extra.name.take() {
                Some(name) => name,
                None => header.name(offset)?,
            };
            let size = match header.kind {
                // A link's size is that of its destination; a link has no data itself.
                Kind::Link => 0,
                _ => extra.size.unwrap_or(header.size),
            };
            let sparse = extra.sparse || header.kind == Kind::Unsupported;
            if sparse {
                return Err(ArchiveError::Unsupported {
                    name,
                    offset,
                    kind: header.type_flag.into(),
                });
            }
            let (start, size) = self.skip_data(&name, size)?;
            if header.kind == Kind::Regular && !name.ends_with('/') {
                return Ok(Some(Member {
                    name: normal(&name, offset)?,
                    offset: start,
                    size,
                }));
            }
            extra = Extra::default();
        }
    }

    /// Reads the data of an extra member.
    fn extra(&mut self, header: &Header<'_>, extra: &mut Extra) -> Result<(), ArchiveError> {
        let offset = self.offset;
        let (start, size) = self.skip_data("an extended header", header.size)?;
        let data = &self.archive[start..start + size];
        if header.kind == Kind::LongName {
            extra.name = Some(header::text(data, offset)?.to_string());
            return Ok(());
        }
        let bad = ArchiveError::ExtendedHeader { offset };
        for record in pax::records(data) {
            let (key, value) = record.ok_or_else(|| bad.clone())?;
            match key {
                b"path" => extra.name = Some(header::text(value, offset)?.to_string()),
                b"size" => {
                    let digits = core::str::from_utf8(value).ok();
                    let size = digits.and_then(|digits| digits.parse().ok());
                    extra.size = Some(size.ok_or_else(|| bad.clone())?);
                }
                key if key.starts_with(b"GNU.sparse.") => extra.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves from a header past its data, and returns where the data lies.
    fn skip_data(&mut self, name: &str, size: u64) -> Result<(usize, usize), ArchiveError> {
        let start = self.offset + BLOCK;
        let end = usize::try_from(size)
            .ok()
            .and_then(|size| start.checked_add(size))
            .filter(|&end| end <= self.archive.len())
            .ok_or_else(|| ArchiveError::BeyondEnd {
                name: name.to_string(),
                offset: self.offset,
                size,
                archive: self.archive.len(),
            })?;
        // No overflow: the archive is a slice, so its length is well below the largest number.
        self.offset = end.next_multiple_of(BLOCK);
        Ok((start, end - start))
    }
}

/// Returns a member's path in the form in which it is named: `tar -C dir .` puts `./` before each.
fn normal(name: &str, offset: usize) -> Result<String, ArchiveError> {
    let mut name = name;
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.trim_start_matches('/');
    }
    match name {
        "" => Err(ArchiveError::Name { offset }),
        name => Ok(name.to_string()),
    }
}
