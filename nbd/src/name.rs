//! The names of exports in targets, and of volumes on them.

use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_stream::Endpoint;
use bulkhead_volumes::{NameError, VolumeName};
use core::fmt::{self, Write};

/// The port of NBD servers, if a target names none.
const PORT: u16 = 10809;

/// The longest name, as a target has it: messages that have it are to fit a node of xenstore's. (The specification lets
/// servers have names of exports of up to 4096 bytes.)
const LONGEST: usize = 1024;

/// An export of a server: `HOST:PORT/EXPORT`.
///
/// All that follows the first slash is the export's name, slashes too. As in URIs, letters that mean something
/// elsewhere in a target are written as `%2C` (a comma), `%23` (`#`) and `%25` (`%`). Without a slash, or without
/// anything behind it, the server's default export is meant.
///
/// ```
/// use bulkhead_nbd::ExportName;
///
/// let name = ExportName::parse("ceph-gw/pool/image%2Cold")?;
/// assert_eq!(name.server.to_string(), "ceph-gw:10809");
/// assert_eq!(name.export, "pool/image,old");
/// assert_eq!(name.to_string(), "ceph-gw:10809/pool/image%2Cold");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportName {
    /// The server.
    pub server: Endpoint,
    /// The server's name for it.
    pub export: String,
}

impl ExportName {
    /// Reads a name. The error is a sentence for the operator.
    pub fn parse(text: &str) -> Result<ExportName, String> {
        let (server, export) = text.split_once('/').unwrap_or((text, ""));
        let name = ExportName {
            server: Endpoint::parse(server, PORT).map_err(|error| error.to_string())?,
            export: decoded(export)?,
        };
        match name.to_string().len() {
            ..=LONGEST => Ok(name),
            len => Err(format!(
                "the name of the export has {len} bytes as a target has it, expected at most {LONGEST}"
            )),
        }
    }

    /// Reads the part of a target after the colon: an export and, after a `#`, the volume on it.
    pub fn parse_volume(text: &str) -> Result<VolumeName, NameError> {
        let (disk, part) = match text.split_once('#') {
            Some((disk, part)) => (disk, Some(part)),
            None => (text, None),
        };
        let disk = ExportName::parse(disk)
            .map_err(NameError::Disk)?
            .to_string();
        let name: VolumeName = match part {
            None => "disk".parse()?,
            Some(part) => format!("disk/{part}").parse()?,
        };
        Ok(VolumeName {
            disk,
            part: name.part,
        })
    }
}

/// Returns the name that a text in a target stands for.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("'{}' has a % without two hexadecimal digits", shown(text));
    let mut bytes = alloc::vec::Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let byte = match first {
            b'%' => {
                let [high, low, after @ ..] = rest else {
                    return Err(wrong());
                };
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
                (digit(*high)? << 4 | digit(*low)?) as u8
            }
            byte => *byte,
        };
        bytes.push(byte);
    }
    match String::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(format!("'{}' is not text", shown(text))),
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.server)?;
        for letter in self.export.chars() {
            match letter {
                '%' | ',' | '#' | ' ' | '\'' | '"' => write!(f, "%{:02X}", letter as u32)?,
                _ if letter.is_ascii_graphic() => f.write_char(letter)?,
                _ => {
                    let mut bytes = [0; 4];
                    for byte in letter.encode_utf8(&mut bytes).bytes() {
                        write!(f, "%{byte:02X}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The most letters of a name in a message. The message has to fit a node of xenstore's, and says more than names.
const MOST_SHOWN: usize = 64;

/// Returns a text of another origin in the form for a message: its beginning, in printable letters.
pub(crate) fn shown(text: &str) -> String {
    let mut room = MOST_SHOWN;
    let fits = |letter: &char| {
        let left = room.checked_sub(letter.escape_default().len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let letters = text.chars().take_while(fits);
    letters.flat_map(char::escape_default).collect()
}

/// Returns the name of a disk in the form for a message: its beginning.
pub(crate) fn abridged(name: &str) -> &str {
    // It is ASCII: see `ExportName`.
    name.get(..4 * MOST_SHOWN).unwrap_or(name)
}
