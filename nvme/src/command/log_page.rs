//! Logs that a controller keeps (Get Log Page).

use super::PAGE;
use super::entry::NamespaceId;
use super::field::{u16_at, u32_at, u128_at};
use core::fmt;

/// The health of a controller (log 2, "SMART").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmartLog {
    /// The bits of the critical warnings; see [`warnings`](Self::warnings).
    pub critical: u8,
    /// The temperature, in kelvins.
    pub kelvins: u16,
    /// The spare that is left, in percent of what there was.
    pub spare: u8,
    /// The vendor's estimate of the life that is used up, in percent. May be more than 100.
    pub used: u8,
    /// Data read, in units of 512,000 bytes.
    pub data_units_read: u128,
    /// Data written, in the same unit.
    pub data_units_written: u128,
    /// Hours of operation.
    pub power_on_hours: u128,
    /// The number of times that it lost power without a shutdown before.
    pub unsafe_shutdowns: u128,
    /// The number of unrecovered errors of the data.
    pub media_errors: u128,
}

impl SmartLog {
    /// The number of its bytes.
    pub const BYTES: usize = 512;

    /// Reads the log.
    pub fn parse(bytes: &[u8; SmartLog::BYTES]) -> SmartLog {
        SmartLog {
            critical: bytes[0],
            kelvins: u16_at(bytes, 1),
            spare: bytes[3],
            used: bytes[5],
            data_units_read: u128_at(bytes, 32),
            data_units_written: u128_at(bytes, 48),
            power_on_hours: u128_at(bytes, 128),
            unsafe_shutdowns: u128_at(bytes, 144),
            media_errors: u128_at(bytes, 160),
        }
    }

    /// Returns the critical warnings in words.
    pub fn warnings(&self) -> impl Iterator<Item = &'static str> {
        const WARNINGS: [&str; 5] = [
            "the spare is nearly used up",
            "too hot or too cold",
            "the medium is no longer reliable",
            "the medium can only be read",
            "the backup of its volatile memory has failed",
        ];
        let critical = self.critical;
        let told = move |(bit, _): &(usize, &str)| critical >> bit & 1 == 1;
        WARNINGS
            .into_iter()
            .enumerate()
            .filter(told)
            .map(|(_, warning)| warning)
    }
}

impl fmt::Display for SmartLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} degrees, {} % spare, {} % used, {} hours, {} unsafe shutdowns, {} media errors",
            i32::from(self.kelvins) - 273,
            self.spare,
            self.used,
            self.power_on_hours,
            self.unsafe_shutdowns,
            self.media_errors
        )?;
        for warning in self.warnings() {
            write!(f, "; warning: {warning}")?;
        }
        Ok(())
    }
}

/// Reads the log of changed namespaces (log 4). `None`: there are more than the log can name.
pub fn changed_namespaces(bytes: &[u8; PAGE]) -> Option<impl Iterator<Item = NamespaceId>> {
    let numbers = (0..PAGE / 4).map(|index| NamespaceId(u32_at(bytes, index * 4)));
    let changed = numbers.take_while(|number| *number != NamespaceId::NONE);
    (u32_at(bytes, 0) != u32::MAX).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn health_is_told_in_words() {
        let mut bytes = [0; SmartLog::BYTES];
        bytes[0] = 0b1001;
        bytes[1..3].copy_from_slice(&313_u16.to_le_bytes());
        (bytes[3], bytes[5]) = (88, 3);
        bytes[128] = 200;
        bytes[160..176].fill(0xff);
        let log = SmartLog::parse(&bytes);
        assert_eq!(log.media_errors, u128::MAX);
        let text = log.to_string();
        assert!(
            text.starts_with("40 degrees, 88 % spare, 3 % used, 200 hours"),
            "{text}"
        );
        assert!(
            text.contains("nearly used up; warning: the medium can only be read"),
            "{text}"
        );
    }

    #[test]
    fn changed_namespaces_end_with_the_first_that_is_none() {
        let mut bytes = [0; PAGE];
        assert_eq!(changed_namespaces(&bytes).expect("few").count(), 0);
        (bytes[0], bytes[4], bytes[12]) = (1, 3, 9);
        let changed: Vec<_> = changed_namespaces(&bytes).expect("few").collect();
        assert_eq!(changed, [NamespaceId(1), NamespaceId(3)]);
        bytes[..4].fill(0xff);
        assert!(changed_namespaces(&bytes).is_none());
    }
}
