//! The reasons why there is no connection, or no longer one.

use core::fmt;

/// The reason why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no network, or it has no address yet.
    NoNetwork,
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
    /// What came cannot be genuine (TLS).
    Forged,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::Closed => "the server closed the connection",
            Ended::Reset => "the server reset the connection",
            Ended::TimedOut => "the connection has timed out",
            Ended::NoNetwork => "the network is gone",
            Ended::Forged => "what arrived was not sent by the server",
        })
    }
}

impl core::error::Error for Ended {}
