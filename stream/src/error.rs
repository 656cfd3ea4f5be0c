//! The reasons why there is no connection, or no longer one.

use core::fmt;

/// The reason why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no network, or it has no address yet.
    NoNetwork,
    /// No DHCP server has given the driver domain an address yet.
    NoLease,
    /// The server has a name, and there is no name server.
    NoNameServer,
    /// No name server answers.
    NameServerSilent,
    /// Name servers answer, and none of them can tell.
    NameServerFails,
    /// The server's name has no address.
    NoAddress,
    /// There is no way to the server.
    Unreachable,
    /// The server's machine is there, and nothing listens on the port.
    Refused,
    /// Nothing answered in time.
    TimedOut,
    /// There is no memory for the buffers.
    NoMemory {
        /// The bytes that were asked for.
        bytes: usize,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::NoNetwork => {
                f.write_str("the driver domain has no network (vif= in its configuration)")
            }
            ConnectError::NoLease => {
                f.write_str("the driver domain has no address yet (no DHCP server answers)")
            }
            ConnectError::NoNameServer => {
                f.write_str("it is named, and there is no name server (dns= on the command line)")
            }
            ConnectError::NameServerSilent => f.write_str("no name server answers"),
            ConnectError::NameServerFails => {
                f.write_str("the name server cannot tell its address now")
            }
            ConnectError::NoAddress => f.write_str("its name has no address"),
            ConnectError::Unreachable => f.write_str("there is no route to it"),
            ConnectError::Refused => f.write_str("it refuses the connection"),
            ConnectError::TimedOut => f.write_str("it does not answer"),
            ConnectError::NoMemory { bytes } => write!(
                f,
                "the driver domain has no {bytes} bytes of memory for the connection (memory= in its configuration)"
            ),
        }
    }
}

impl core::error::Error for ConnectError {}

/// The reason why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The other end has closed it in order: no more bytes come.
    Closed,
    /// The other end has reset it.
    Reset,
    /// The other end has not acknowledged anything for too long.
    TimedOut,
    /// The network is gone.
    NoNetwork,
    /// The driver domain does not have the address any more that it had.
    AddressLost,
    /// The data that came cannot be genuine (TLS).
    Forged,
    /// The connection was closed, and the other end has not said that no more bytes come (TLS).
    Truncated,
    /// The other end has ended the connection by that alert (TLS, RFC 8446, section 6).
    Alert(u8),
    /// The other end had asked for a certificate of ours, was told that there is none, and has closed the connection (TLS).
    NoIdentity,
    /// The keys were used for as many bytes as they may be (TLS 1.2): a new connection has new ones.
    KeysUsedUp,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::Alert(alert) => {
                return match meaning(*alert) {
                    Some(meaning) => write!(f, "the server ended TLS: {meaning}"),
                    None => write!(f, "the server ended TLS by alert {alert}"),
                };
            }
            Ended::Closed => "the server closed the connection",
            Ended::Reset => "the server reset the connection",
            Ended::TimedOut => "the connection has timed out",
            Ended::NoNetwork => "the network is gone",
            Ended::AddressLost => "the driver domain's address has changed",
            Ended::Forged => "what arrived was not sent by the server",
            Ended::Truncated => "the connection was cut off before the server had ended TLS",
            Ended::NoIdentity => {
                "the server closed the connection after it had asked for a client's certificate, and there is none"
            }
            Ended::KeysUsedUp => "the keys of the connection are used up",
        })
    }
}

impl Ended {
    /// Returns whether the next connection may well go otherwise, although this one was of no use.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Ended::Forged | Ended::Alert(_) | Ended::NoIdentity)
    }
}

/// Returns what an alert means to the operator of the end that receives it.
fn meaning(alert: u8) -> Option<&'static str> {
    Some(match alert {
        40 => "it has nothing in common with the driver domain (handshake_failure)",
        42 => "it cannot use the client's certificate (bad_certificate)",
        43 => "it does not support the client's certificate (unsupported_certificate)",
        44 => "the client's certificate was revoked (certificate_revoked)",
        45 => "the client's certificate is not valid at this time (certificate_expired)",
        46 => "it does not accept the client's certificate (certificate_unknown)",
        48 => "the client's certificate is not signed by a CA that it knows (unknown_ca)",
        49 => "it does not permit the client's certificate (access_denied)",
        70 => "it has neither TLS 1.2 nor TLS 1.3 (protocol_version)",
        71 => {
            "what it has is too weak, or too strong, for the driver domain (insufficient_security)"
        }
        80 => "it has a fault of its own (internal_error)",
        112 => "it is not called that (unrecognized_name)",
        116 => "it wants a client's certificate (certificate_required)",
        _ => return None,
    })
}

impl core::error::Error for Ended {}
