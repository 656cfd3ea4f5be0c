//! A server, as a user names it.

use alloc::string::String;
use core::fmt;

/// The longest name of a host that there is.
const LONGEST: usize = 253;

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its address, or its name. IPv6 addresses are without brackets here.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    pub fn parse(text: &str, default_port: u16) -> Result<Endpoint, EndpointError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(EndpointError::Bracket)?;
                let port = match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':').ok_or(EndpointError::Bracket)?),
                };
                if !host
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b":.".contains(&b))
                {
                    return Err(EndpointError::Host(shown(host)));
                }
                (host, port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                let letter = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
                if !host.bytes().all(letter) {
                    return Err(EndpointError::Host(shown(host)));
                }
                (host, port)
            }
        };
        if host.is_empty() {
            return Err(EndpointError::NoHost);
        }
        if host.len() > LONGEST {
            return Err(EndpointError::Host(shown(host)));
        }
        let port = match port {
            None => default_port,
            Some(port) => number(port).ok_or_else(|| EndpointError::Port(shown(port)))?,
        };
        Ok(Endpoint {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

/// Reads a port; 0 is none.
fn number(text: &str) -> Option<u16> {
    // `parse` alone would let a sign pass.
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// Returns a text for a message: its beginning, in printable letters.
fn shown(text: &str) -> String {
    text.chars()
        .take(64)
        .flat_map(char::escape_default)
        .collect()
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The reason why a text names no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointError {
    /// There is nothing before the port.
    NoHost,
    /// The text is not the name of a host.
    Host(String),
    /// The text is not a port.
    Port(String),
    /// An address in brackets does not end as it should.
    Bracket,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = "expected HOST, HOST:PORT or [IPV6]:PORT";
        match self {
            EndpointError::NoHost => write!(f, "it names no server, {expected}"),
            EndpointError::Host(host) => {
                write!(f, "'{host}' is not a server's address or name, {expected}")
            }
            EndpointError::Port(port) => write!(f, "'{port}' is not a port, {expected}"),
            EndpointError::Bracket => write!(f, "the bracket is not closed, {expected}"),
        }
    }
}

impl core::error::Error for EndpointError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    #[test]
    fn endpoints_are_read_and_shown() {
        for (text, shown) in [
            ("10.0.0.2", "10.0.0.2:10809"),
            ("10.0.0.2:1", "10.0.0.2:1"),
            ("Ceph-gw.example:65535", "ceph-gw.example:65535"),
            ("[FD00::1]", "[fd00::1]:10809"),
            ("[::ffff:1.2.3.4]:99", "[::ffff:1.2.3.4]:99"),
        ] {
            let endpoint = Endpoint::parse(text, 10809).expect(text);
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(Endpoint::parse(shown, 1), Ok(endpoint));
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_a_reason() {
        let long = "a".repeat(254);
        for (text, reason) in [
            ("", "it names no server"),
            (":10809", "it names no server"),
            ("[]:1", "it names no server"),
            ("[fd00::1", "the bracket"),
            ("[fd00::1]x", "the bracket"),
            ("[host]:1", "'host' is not a server's"),
            ("fd00::1", "':1' is not a port"),
            ("host:", "'' is not a port"),
            ("host:0", "'0' is not a port"),
            ("host:+1", "'+1' is not a port"),
            ("host:65536", "'65536' is not a port"),
            ("ho st:1", "'ho st' is not a server's"),
            ("ho\u{1b}st:1", "'ho\\u{1b}st' is not a server's"),
            (&long, "is not a server's address or name"),
        ] {
            let error = Endpoint::parse(text, 10809).expect_err(text);
            let error = format!("{error}");
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("expected HOST"), "{error}");
        }
    }
}
