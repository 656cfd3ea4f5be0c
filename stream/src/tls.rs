//! TLS, as a protocol asks for it that begins it in the middle of a connection.

use crate::Stream;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::future::Future;
use core::pin::Pin;

/// The future that begins TLS on a stream ([`Tls::start`]).
pub type StartingTls<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, StartTlsError>> + 'a>>;

/// Begins TLS on connections.
pub trait Tls {
    /// Returns the stream on which everything goes from now on, after the server of that name or address has shown who
    /// it is.
    fn start<'a>(&'a self, stream: Box<dyn Stream>, server: &'a str) -> StartingTls<'a>;
}

/// The reason why a connection has no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartTlsError {
    /// A sentence for the operator.
    pub reason: String,
    /// The next attempt may well go otherwise.
    pub passes: bool,
}

impl fmt::Display for StartTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl core::error::Error for StartTlsError {}
