//! The addresses of a server that has several, as one user of it tries them.

use core::cell::Cell;
use core::net::IpAddr;

/// A user's choice among the addresses of a server. A user keeps it over all of its attempts to connect: none is moved on by
/// the attempts of others.
///
/// ```
/// use bulkhead_stream::AddressChoice;
///
/// let all = ["10.0.0.2", "10.0.0.4"].map(|address| address.parse().unwrap());
/// let choice = AddressChoice::default();
/// assert_eq!(choice.first(&all), 0);
/// choice.begin(all[0]);
/// assert_eq!(choice.first(&all), 1, "it was tried in vain");
/// choice.keep();
/// assert_eq!(choice.first(&all), 0, "the server was of use there");
/// ```
#[derive(Debug, Default)]
pub struct AddressChoice {
    /// The address that was tried last.
    last: Cell<Option<IpAddr>>,
    /// True if it is the one to try first.
    kept: Cell<bool>,
}

impl AddressChoice {
    /// Returns the index of the address that is to be tried first, in a server's list: a name server may give it in
    /// another order each time.
    pub fn first(&self, addresses: &[IpAddr]) -> usize {
        let last = self.last.get();
        let place = addresses.iter().position(|address| last == Some(*address));
        place.map_or(0, |place| match self.kept.get() {
            true => place,
            false => (place + 1) % addresses.len(),
        })
    }

    /// Notes that an address is tried. Unless it is kept, the next attempt begins with the one after it.
    pub fn begin(&self, address: IpAddr) {
        self.last.set(Some(address));
        self.kept.set(false);
    }

    /// Returns the address that was tried last.
    pub fn last(&self) -> Option<IpAddr> {
        self.last.get()
    }

    /// Has the address that was tried last be the first one of the next attempt: the server is of use there.
    pub fn keep(&self) {
        self.kept.set(true);
    }
}
