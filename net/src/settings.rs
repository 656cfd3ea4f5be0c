//! The addresses and queues of an interface, as the command line sets them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU8;
use smoltcp::wire::{IpAddress, IpCidr};

/// The most addresses, and the most name servers: the stack's limits, less the address that an interface makes for
/// itself.
const MOST: usize = 2;

/// The keys of these settings on the command line.
const IP: &str = "ip";
const GATEWAY: &str = "gateway";
const DNS: &str = "dns";
const QUEUES: &str = "net-queues";

/// The most queues of an interface: each takes memory.
const MOST_QUEUES: u8 = 4;

/// The addresses and queues of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// True if a server is asked for an IPv4 address (`ip=dhcp`).
    pub dhcp: bool,
    /// Its addresses (`ip=10.0.0.7/24`, `ip=10.0.0.7/24,fd00::7/64`).
    pub addresses: Vec<IpCidr>,
    /// The gateways to other networks (`gateway=`), one for each kind of address.
    pub gateways: Vec<IpAddress>,
    /// The name servers (`dns=`).
    pub name_servers: Vec<IpAddress>,
    /// The most queues (`net-queues=`), if that is set.
    pub queues: Option<NonZeroU8>,
}

/// The reason why a setting is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// The text is not an address with the length of its network's prefix.
    Network(String),
    /// The text is not an address.
    Address(String),
    /// There are too many addresses for the setting with that key.
    TooMany(&'static str),
    /// The text is not a number of queues.
    Queues(String),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(text) => write!(
                f,
                "ip={text} is neither dhcp nor an address with its network, as in ip=10.0.0.7/24"
            ),
            Self::Address(text) => write!(f, "'{text}' is not an address"),
            Self::Queues(text) => {
                write!(f, "{QUEUES}={text} is not a number from 1 to {MOST_QUEUES}")
            }
            Self::TooMany(word) => write!(f, "{word} has more than {MOST} addresses"),
        }
    }
}

impl core::error::Error for SettingsError {}

impl InterfaceSettings {
    /// The keys of these settings on a command line.
    pub const KEYS: [&str; 4] = [IP, GATEWAY, DNS, QUEUES];

    /// Reads the settings from a command line. A word with a mistake is left out; the others are not affected.
    pub fn parse(line: &str, mut mistaken: impl FnMut(SettingsError)) -> InterfaceSettings {
        let mut settings = InterfaceSettings::default();
        for word in line.split_ascii_whitespace() {
            let before = settings.clone();
            if let Err(error) = settings.take(word) {
                mistaken(error);
                settings = before;
            }
        }
        settings
    }

    /// Takes a word of the command line. Returns whether it is one of these settings.
    pub fn take(&mut self, word: &str) -> Result<bool, SettingsError> {
        let shown = |text: &str| {
            text.chars()
                .take(64)
                .flat_map(char::escape_default)
                .collect()
        };
        let address = |text: &str| {
            let read: Result<IpAddress, ()> = text.parse();
            let read = read.ok().filter(IpAddress::is_unicast);
            read.ok_or_else(|| SettingsError::Address(shown(text)))
        };
        let Some((name, value)) = word.split_once('=') else {
            return Ok(false);
        };
        match name {
            IP => {
                for part in value.split(',') {
                    if part == "dhcp" {
                        self.dhcp = true;
                        continue;
                    }
                    let network: Result<IpCidr, ()> = part.parse();
                    let network = network
                        .ok()
                        .filter(|network| network.address().is_unicast());
                    let network = network.ok_or_else(|| SettingsError::Network(shown(part)))?;
                    self.addresses.push(network);
                }
            }
            GATEWAY => {
                for part in value.split(',') {
                    self.gateways.push(address(part)?);
                }
            }
            DNS => {
                for part in value.split(',') {
                    self.name_servers.push(address(part)?);
                }
            }
            QUEUES => {
                let queues: Option<NonZeroU8> = value.parse().ok();
                let queues = queues.filter(|queues| queues.get() <= MOST_QUEUES);
                self.queues = Some(queues.ok_or_else(|| SettingsError::Queues(shown(value)))?);
            }
            _ => return Ok(false),
        }
        for (word, count) in [
            ("ip=", self.addresses.len() + usize::from(self.dhcp)),
            ("gateway=", self.gateways.len()),
            ("dns=", self.name_servers.len()),
        ] {
            if count > MOST {
                return Err(SettingsError::TooMany(word));
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    #[test]
    fn the_command_line_gives_addresses() {
        let mut settings = InterfaceSettings::default();
        for word in [
            "ip=10.0.0.7/24,fd00::7/64",
            "gateway=10.0.0.1",
            "dns=fd00::1",
        ] {
            assert_eq!(settings.take(word), Ok(true), "{word}");
        }
        for word in ["poll=50", "quiet", "ips=1"] {
            assert_eq!(settings.take(word), Ok(false), "{word}");
        }
        assert_eq!(format!("{}", settings.addresses[0]), "10.0.0.7/24");
        assert_eq!(format!("{}", settings.addresses[1]), "fd00::7/64");
        assert_eq!(settings.gateways.len() + settings.name_servers.len(), 2);
        let mut dhcp = InterfaceSettings::default();
        assert_eq!(dhcp.take("ip=dhcp"), Ok(true));
        assert!(dhcp.dhcp && dhcp.addresses.is_empty());
        assert_eq!(dhcp.queues, None);
        assert_eq!(dhcp.take("net-queues=4"), Ok(true));
        assert_eq!(dhcp.queues.map(NonZeroU8::get), Some(4));
    }

    #[test]
    fn a_mistake_costs_its_own_word_alone() {
        let mut mistakes = Vec::new();
        let line = "log=debug ip=10.0.0.7/24,rubbish ip=10.0.0.8/24 gateway=? watchdog=0";
        let settings = InterfaceSettings::parse(line, |mistake| mistakes.push(mistake.to_string()));
        assert_eq!(settings.addresses.len(), 1);
        assert_eq!(settings.addresses[0].to_string(), "10.0.0.8/24");
        assert!(settings.gateways.is_empty() && !settings.dhcp);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        for key in InterfaceSettings::KEYS {
            let mut mistakes = 0;
            InterfaceSettings::parse(&format!("{key}=?"), |_| mistakes += 1);
            assert_eq!(mistakes, 1, "{key}");
        }
    }

    #[test]
    fn other_values_are_refused_with_a_reason() {
        for (word, reason) in [
            ("ip=", "ip= is neither dhcp"),
            ("ip=10.0.0.7", "ip=10.0.0.7 is neither dhcp"),
            ("ip=10.0.0.7/33", "is neither dhcp"),
            ("ip=0.0.0.0/0", "is neither dhcp"),
            ("ip=255.255.255.255/8", "is neither dhcp"),
            ("gateway=host", "'host' is not an address"),
            ("gateway=224.0.0.1", "is not an address"),
            ("dns=\u{1b}", "'\\u{1b}' is not an address"),
            ("dns=1.1.1.1,2.2.2.2,3.3.3.3", "dns= has more than 2"),
            ("net-queues=0", "net-queues=0 is not a number from 1 to 4"),
            ("net-queues=5", "net-queues=5 is not a number from 1 to 4"),
            ("net-queues=", "net-queues= is not a number from 1 to 4"),
        ] {
            let error = InterfaceSettings::default()
                .take(word)
                .expect_err(word)
                .to_string();
            assert!(error.contains(reason), "{word}: {error}");
        }
    }
}
