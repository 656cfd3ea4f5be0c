//! The files that an operator gives the driver domain: the CA's certificate, and what the domain shows of itself.

use crate::client::{Identity, TlsClient};
use crate::clock::Clock;
use crate::error::ConfigError;
use crate::random::Random;
use alloc::string::{String, ToString};
use core::fmt;

/// The most bytes of a file: more than all authorities of the world take.
const MOST: usize = 1 << 20;

/// The names of the files, by default those that GnuTLS's users have: libvirt, qemu-nbd, nbdkit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNames<'a> {
    authorities: Name<'a>,
    certificates: Name<'a>,
    key: Name<'a>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    name: &'a str,
    /// The operator has named it: it has to be there.
    named: bool,
}

impl<'a> FileNames<'a> {
    /// The keys on the command line.
    pub const KEYS: [&'static str; 3] = ["tls-ca", "tls-cert", "tls-key"];

    /// Reads the names. `value` returns the value of a key on the command line.
    ///
    /// ```
    /// use bulkhead_tls::FileNames;
    ///
    /// let names = FileNames::parse(|key| (key == "tls-ca").then_some("authority.der"));
    /// assert_eq!(names.all(), ["authority.der", "client-cert.pem", "client-key.pem"]);
    /// ```
    pub fn parse(value: impl Fn(&str) -> Option<&'a str>) -> FileNames<'a> {
        let name = |key, default| match value(key) {
            Some(name) => Name { name, named: true },
            None => Name {
                name: default,
                named: false,
            },
        };
        let [authorities, certificates, key] = Self::KEYS;
        FileNames {
            authorities: name(authorities, "ca-cert.pem"),
            certificates: name(certificates, "client-cert.pem"),
            key: name(key, "client-key.pem"),
        }
    }

    /// Returns the names: of the authorities' certificates, of the domain's own certificate, of the key of it.
    pub fn all(&self) -> [&'a str; 3] {
        [self.authorities.name, self.certificates.name, self.key.name]
    }
}

/// The reason why these files make no client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// There is no certificate of an authority.
    NoAuthority {
        /// The file that would have it.
        file: String,
    },
    /// A file is not there.
    Missing {
        /// Its name.
        file: String,
        /// The option that names it, or the file that is of no use without it.
        wanted_by: String,
    },
    /// A file is larger than any that makes sense.
    TooLarge {
        /// Its name.
        file: String,
        /// Its size in bytes.
        size: usize,
    },
    /// A file cannot be used.
    Unfit {
        /// Its name.
        file: String,
        /// Its fault.
        error: ConfigError,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileError::NoAuthority { file } => {
                write!(
                    f,
                    "the ramdisk has no file {file}, the certificate of the CA"
                )
            }
            FileError::Missing { file, wanted_by } => {
                write!(f, "the ramdisk has no file {file}, which {wanted_by} needs")
            }
            FileError::TooLarge { file, size } => write!(
                f,
                "{file} of the ramdisk has {size} bytes, expected a certificate or a key"
            ),
            FileError::Unfit { file, error } => write!(f, "{file} of the ramdisk: {error}"),
        }
    }
}

impl core::error::Error for FileError {}

impl TlsClient {
    /// Returns a client that trusts the authorities in one file, and that shows servers the certificate in another one,
    /// if that is there. `take` returns the content of a file of the ramdisk.
    pub fn from_files<F: AsRef<[u8]>>(
        names: &FileNames<'_>,
        mut take: impl FnMut(&str) -> Option<F>,
        random: &'static dyn Random,
        clock: impl Clock + 'static,
    ) -> Result<TlsClient, FileError> {
        // All are taken before one is looked at: none of them is to stay behind.
        let [authorities, certificates, key] = names.all().map(&mut take);
        for (file, content) in names.all().iter().zip([&authorities, &certificates, &key]) {
            let size = content.as_ref().map_or(0, |content| content.as_ref().len());
            if size > MOST {
                let file = file.to_string();
                return Err(FileError::TooLarge { file, size });
            }
        }
        let Some(authorities) = authorities else {
            let file = names.authorities.name.to_string();
            return Err(FileError::NoAuthority { file });
        };
        let missing = |name: Name<'_>, wanted_by: &str| FileError::Missing {
            file: name.name.to_string(),
            wanted_by: wanted_by.to_string(),
        };
        let identity = match (&certificates, &key) {
            (Some(certificates), Some(key)) => Some(Identity {
                certificates: certificates.as_ref(),
                key: key.as_ref(),
            }),
            (Some(_), None) => return Err(missing(names.key, names.certificates.name)),
            (None, Some(_)) => return Err(missing(names.certificates, names.key.name)),
            (None, None) if names.certificates.named => {
                return Err(missing(names.certificates, FileNames::KEYS[1]));
            }
            (None, None) if names.key.named => {
                return Err(missing(names.key, FileNames::KEYS[2]));
            }
            (None, None) => None,
        };
        TlsClient::new(authorities.as_ref(), identity, random, clock).map_err(|error| {
            let file = match &error {
                ConfigError::NoAuthority | ConfigError::Authority(_) => names.authorities.name,
                ConfigError::Certificate(_) => names.certificates.name,
                ConfigError::Key(_) => names.key.name,
            };
            let file = file.to_string();
            FileError::Unfit { file, error }
        })
    }
}
