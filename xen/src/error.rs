//! Errors of hypercalls, and the status of grant operations.

use core::fmt;

/// An error number of a hypercall (`errno.h`), as a positive number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u16);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($value);)*

            fn text(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// EPERM
    PERM = 1, "operation not permitted";
    /// ENOENT
    NOENT = 2, "no such entry";
    /// ESRCH
    SRCH = 3, "no such domain";
    /// ENXIO
    NXIO = 6, "no such device or address";
    /// EAGAIN
    AGAIN = 11, "try again";
    /// ENOMEM
    NOMEM = 12, "out of memory";
    /// EACCES
    ACCES = 13, "permission denied";
    /// EFAULT
    FAULT = 14, "bad address";
    /// EBUSY
    BUSY = 16, "busy";
    /// EEXIST
    EXIST = 17, "already there";
    /// ENODEV
    NODEV = 19, "no such device";
    /// EINVAL
    INVAL = 22, "invalid argument";
    /// ENOSPC
    NOSPC = 28, "no space left";
    /// ENOSYS
    NOSYS = 38, "not implemented";
    /// EOPNOTSUPP
    OPNOTSUPP = 95, "not supported";
    /// EALREADY
    ALREADY = 114, "already in progress";
}

impl Errno {
    /// Reads a hypercall's return value: a negative one is an error.
    pub fn from_return(value: i64) -> Result<u64, Errno> {
        if value < 0 {
            Err(Errno(value.unsigned_abs().min(u64::from(u16::MAX)) as u16))
        } else {
            Ok(value as u64)
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => write!(f, "{text} (errno {})", self.0),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl core::error::Error for Errno {}

/// The status of one grant operation in a batch (`GNTST_*`, grant_table.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// The operation was done.
    pub const OKAY: GrantStatus = GrantStatus(0);
    /// An error without a code of its own, also returned if there is no grant table.
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    /// The granting domain does not exist.
    pub const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
    /// The reference is out of range, or grants this domain nothing.
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    /// The handle is unknown.
    pub const BAD_HANDLE: GrantStatus = GrantStatus(-4);
    /// The address to map at, or to unmap, is unusable.
    pub const BAD_VIRT_ADDR: GrantStatus = GrantStatus(-5);
    /// A device address is unusable.
    pub const BAD_DEV_ADDR: GrantStatus = GrantStatus(-6);
    /// The hypervisor has no room for the I/O mapping.
    pub const NO_DEVICE_SPACE: GrantStatus = GrantStatus(-7);
    /// The grant does not permit this access (for instance writing a read-only one).
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);
    /// The granted frame is not a page that can be mapped.
    pub const BAD_PAGE: GrantStatus = GrantStatus(-9);
    /// A copy would cross the end of a page.
    pub const BAD_COPY_ARG: GrantStatus = GrantStatus(-10);
    /// A transferred page's address is too large.
    pub const ADDRESS_TOO_BIG: GrantStatus = GrantStatus(-11);
    /// The granted page is paged out for the moment: try again.
    pub const EAGAIN: GrantStatus = GrantStatus(-12);
    /// The hypervisor has no room for another mapping.
    pub const NO_SPACE: GrantStatus = GrantStatus(-13);

    /// Returns whether the operation was done.
    pub fn is_okay(self) -> bool {
        self == GrantStatus::OKAY
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            GrantStatus::OKAY => "okay",
            GrantStatus::GENERAL_ERROR => "general error",
            GrantStatus::BAD_DOMAIN => "no such domain",
            GrantStatus::BAD_GNTREF => "bad grant reference",
            GrantStatus::BAD_HANDLE => "bad handle",
            GrantStatus::BAD_VIRT_ADDR => "bad virtual address",
            GrantStatus::BAD_DEV_ADDR => "bad device address",
            GrantStatus::NO_DEVICE_SPACE => "no I/O space",
            GrantStatus::PERMISSION_DENIED => "permission denied",
            GrantStatus::BAD_PAGE => "bad page",
            GrantStatus::BAD_COPY_ARG => "copy out of the page",
            GrantStatus::ADDRESS_TOO_BIG => "address too big",
            GrantStatus::EAGAIN => "page not available yet",
            GrantStatus::NO_SPACE => "out of map slots",
            GrantStatus(other) => return write!(f, "grant status {other}"),
        };
        f.write_str(text)
    }
}

impl fmt::Debug for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantStatus({self})")
    }
}

impl core::error::Error for GrantStatus {}
