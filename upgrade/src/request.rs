//! The operator's request: `TARGET sha256=SUM [force] [test=panic|wait|late]`.

use core::fmt;

/// The way in which a new version is to fail, to try the way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum InjectedFault {
    /// It does not.
    #[default]
    None = 0,
    /// It panics while it boots.
    Panic = 1,
    /// It waits for ever before it serves.
    Wait = 2,
    /// It panics on its last vCPU when it could say that it serves.
    Late = 3,
}

impl InjectedFault {
    /// Returns the fault of that number; an unknown number is none.
    pub fn of(number: u32) -> InjectedFault {
        match number {
            1 => InjectedFault::Panic,
            2 => InjectedFault::Wait,
            3 => InjectedFault::Late,
            _ => InjectedFault::None,
        }
    }
}

/// The operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The store's target that has the file.
    pub target: &'a str,
    /// The file's SHA-256.
    pub sha256: [u8; 32],
    /// An older version is taken, too.
    pub force: bool,
    /// The way in which the new version is to fail.
    pub fault: InjectedFault,
}

/// The reason why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError<'a> {
    /// It names no target.
    NoTarget,
    /// It has no checksum.
    NoChecksum,
    /// The checksum is none.
    Checksum,
    /// A word that means nothing.
    Word(&'a str),
}

impl fmt::Display for RequestError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::NoTarget => f.write_str("no target"),
            RequestError::NoChecksum => f.write_str("no checksum"),
            RequestError::Checksum => f.write_str("sha256= has not 64 hexadecimal digits"),
            RequestError::Word(word) => {
                let start: heapless::String<32> = word.chars().take(8).collect();
                write!(f, "unknown word {start:?}")
            }
        }?;
        f.write_str(": expected \"TARGET sha256=SUM [force]\"")
    }
}

impl core::error::Error for RequestError<'_> {}

impl<'a> Request<'a> {
    /// Reads a request.
    pub fn parse(text: &'a str) -> Result<Request<'a>, RequestError<'a>> {
        let mut words = text.split_ascii_whitespace();
        let target = words.next().ok_or(RequestError::NoTarget)?;
        let (mut sha256, mut force, mut fault) = (None, false, InjectedFault::None);
        for word in words {
            match word.split_once('=') {
                Some(("sha256", sum)) => {
                    sha256 = Some(checksum(sum).ok_or(RequestError::Checksum)?);
                }
                Some(("test", "panic")) => fault = InjectedFault::Panic,
                Some(("test", "wait")) => fault = InjectedFault::Wait,
                Some(("test", "late")) => fault = InjectedFault::Late,
                None if word == "force" => force = true,
                _ => return Err(RequestError::Word(word)),
            }
        }
        Ok(Request {
            target,
            sha256: sha256.ok_or(RequestError::NoChecksum)?,
            force,
            fault,
        })
    }
}

/// Reads 64 hexadecimal digits.
fn checksum(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pairs: &[[u8; 2]; 32] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
    let mut sum = [0; 32];
    for (byte, [high, low]) in sum.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
    }
    Some(sum)
}
