//! TLS, as a protocol asks for it that begins it in the middle of a connection.

use crate::Stream;
use alloc::boxed::Box;
use alloc::string::String;
use core::future::Future;
use core::pin::Pin;

/// The future that begins TLS on a stream ([`Tls::start`]).
pub type StartingTls<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, String>> + 'a>>;

/// Begins TLS on connections.
pub trait Tls {
    /// Returns the stream on which everything goes from now on, after the server of that name has shown who it is. The
    /// error is a sentence for the operator.
    fn start<'a>(&'a self, stream: Box<dyn Stream>, server: &'a str) -> StartingTls<'a>;
}
