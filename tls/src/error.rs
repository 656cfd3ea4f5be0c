//! The reasons why there is no TLS, in the operator's words.

use crate::buffer::NoMemory;
use crate::clock::Date;
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_stream::Ended;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use rustls::pki_types::{IpAddr, ServerName};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// The most names of a certificate that are shown, and the most letters of each.
const SHOWN_NAMES: usize = 8;
const SHOWN_LETTERS: usize = 64;

/// The reason why there is no client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The authority's file holds no certificate.
    NoAuthority,
    /// A certificate of the authority cannot be used.
    Authority(String),
    /// The domain's own certificate cannot be used.
    Certificate(String),
    /// The key of the domain's own certificate cannot be used.
    Key(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NoAuthority => f.write_str(
                "the CA's file has no certificate, expected -----BEGIN CERTIFICATE-----",
            ),
            ConfigError::Authority(reason) => write!(f, "the CA's certificate: {reason}"),
            ConfigError::Certificate(reason) => write!(f, "the client's certificate: {reason}"),
            ConfigError::Key(reason) => write!(f, "the client's key: {reason}"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// The reason why a connection has no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// The connection is over, or the server has ended it.
    Ended(Ended),
    /// The server is called by no name that a certificate can have.
    Name(String),
    /// The server's certificate is not valid any more.
    Expired {
        /// Since then.
        since: Date,
        /// It is that time here.
        now: Date,
    },
    /// The server's certificate is not valid yet.
    NotYetValid {
        /// Until then.
        until: Date,
        /// It is that time here.
        now: Date,
    },
    /// The server's certificate is another server's.
    OtherNames {
        /// The name that was asked for.
        wanted: String,
        /// Those in the certificate.
        names: String,
    },
    /// The server's certificate does not come from the authority.
    UnknownIssuer,
    /// A signature is not that of the authority, or not made with the certificate's key.
    BadSignature,
    /// The server's certificate cannot be used.
    Certificate(String),
    /// Server and client have nothing in common.
    Incompatible(String),
    /// The server does not speak TLS.
    NotTls,
    /// The server does not keep to the protocol.
    Protocol(String),
    /// The handshake has no end.
    TooLong,
    /// There are no random numbers.
    NoRandomness,
    /// The time is not known.
    NoTime,
    /// There is no memory.
    NoMemory {
        /// The bytes that were asked for.
        bytes: usize,
    },
}

impl TlsError {
    /// Returns whether the next attempt may well go otherwise.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            TlsError::Ended(Ended::Closed | Ended::Reset | Ended::TimedOut | Ended::NoNetwork)
                | TlsError::Ended(Ended::Truncated | Ended::AddressLost)
                | TlsError::NoMemory { .. }
        )
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Ended(ended) => ended.fmt(f),
            TlsError::Name(name) => {
                write!(
                    f,
                    "'{name}' is neither a name nor an address that a certificate can be for"
                )
            }
            TlsError::Expired { since, now } => {
                write!(
                    f,
                    "the server's certificate expired on {since} (it is {now} here)"
                )
            }
            TlsError::NotYetValid { until, now } => {
                write!(
                    f,
                    "the server's certificate is not valid before {until} (it is {now} here)"
                )
            }
            TlsError::OtherNames { wanted, names } if names.is_empty() => {
                write!(
                    f,
                    "the server's certificate has no subjectAltName, which should be {wanted}"
                )
            }
            TlsError::OtherNames { wanted, names } => {
                write!(
                    f,
                    "the server's certificate is not for {wanted}, but for other names: {names}"
                )
            }
            TlsError::UnknownIssuer => {
                f.write_str("the server's certificate is not signed by the CA given")
            }
            TlsError::BadSignature => f.write_str(
                "the server's certificate is not signed by the CA given, but by another one of the same name (or the \
                 server does not have the certificate's key)",
            ),
            TlsError::Certificate(reason) => write!(f, "the server's certificate {reason}"),
            TlsError::Incompatible(reason) => write!(f, "the server {reason}"),
            TlsError::NotTls => f.write_str("what the server sends is not TLS"),
            TlsError::Protocol(reason) => write!(f, "the server breaks the protocol: {reason}"),
            TlsError::TooLong => f.write_str("the server's part of the handshake has no end"),
            TlsError::NoRandomness => f.write_str("the driver domain has no random numbers"),
            TlsError::NoTime => f.write_str("the driver domain does not know what time it is"),
            TlsError::NoMemory { bytes } => write!(
                f,
                "the driver domain has no {bytes} bytes of memory for the connection (memory= in its configuration)"
            ),
        }
    }
}

impl core::error::Error for TlsError {}

impl From<Ended> for TlsError {
    fn from(ended: Ended) -> Self {
        TlsError::Ended(ended)
    }
}

impl From<NoMemory> for TlsError {
    fn from(NoMemory { bytes }: NoMemory) -> Self {
        TlsError::NoMemory { bytes }
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => error.into(),
            Error::NoCertificatesPresented => TlsError::Certificate("is missing".to_string()),
            Error::AlertReceived(alert) => TlsError::Ended(alerted(alert)),
            Error::DecryptError => TlsError::Ended(Ended::Forged),
            Error::FailedToGetCurrentTime => TlsError::NoTime,
            Error::FailedToGetRandomBytes => TlsError::NoRandomness,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => TlsError::NotTls,
            Error::PeerIncompatible(reason) => TlsError::Incompatible(match reason {
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
                    "has neither TLS 1.2 nor TLS 1.3".to_string()
                }
                other => format!("and the driver domain have no way to talk in common: {other:?}"),
            }),
            other => TlsError::Protocol(other.to_string()),
        }
    }
}

impl From<CertificateError> for TlsError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::ExpiredContext { time, not_after } => TlsError::Expired {
                since: Date(not_after.as_secs()),
                now: Date(time.as_secs()),
            },
            CertificateError::NotValidYetContext { time, not_before } => TlsError::NotYetValid {
                until: Date(not_before.as_secs()),
                now: Date(time.as_secs()),
            },
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => TlsError::OtherNames {
                wanted: named(&expected),
                names: listed(&presented),
            },
            CertificateError::UnknownIssuer => TlsError::UnknownIssuer,
            // The authority of that name has another kind of key than the one that has signed.
            CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                TlsError::BadSignature
            }
            CertificateError::BadEncoding => {
                TlsError::Certificate("cannot be read".to_string())
            }
            CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
                TlsError::Certificate(
                    "is signed in a way that is not supported, expected ECDSA (P-256, P-384), Ed25519 or RSA (2048 to \
                     4096 bits) with SHA-2"
                        .to_string(),
                )
            }
            CertificateError::InvalidPurposeContext { .. } => {
                TlsError::Certificate("is not for a TLS server (its extended key usage)".to_string())
            }
            other => TlsError::Certificate(format!("is not accepted: {other}")),
        }
    }
}

/// Returns how a connection ended that the server ended by an alert.
pub fn alerted(alert: AlertDescription) -> Ended {
    Ended::Alert(u8::from(alert))
}

/// Returns the name that was asked for.
fn named(name: &ServerName<'_>) -> String {
    match name {
        ServerName::DnsName(name) => name.as_ref().to_string(),
        ServerName::IpAddress(IpAddr::V4(it)) => Ipv4Addr::from(*it.as_ref()).to_string(),
        ServerName::IpAddress(IpAddr::V6(it)) => Ipv6Addr::from(*it.as_ref()).to_string(),
        _ => String::new(),
    }
}

/// Returns names for a message: few, short, in printable letters.
fn listed(names: &[String]) -> String {
    let shown = |name: &String| -> String {
        bare(name)
            .chars()
            .take(SHOWN_LETTERS)
            .flat_map(char::escape_default)
            .collect()
    };
    let some: alloc::vec::Vec<String> = names.iter().take(SHOWN_NAMES).map(shown).collect();
    match names.len().saturating_sub(SHOWN_NAMES) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

/// Returns a name of a certificate without rustls' word for its kind: `DnsName("a.example")`, `IpAddress(10.0.0.2)`.
fn bare(name: &str) -> &str {
    let inner = |kind| name.strip_prefix(kind)?.strip_suffix(')');
    let address = || inner("IpAddress(");
    let name_of_host = || inner("DnsName(")?.strip_prefix('"')?.strip_suffix('"');
    name_of_host().or_else(address).unwrap_or(name)
}
