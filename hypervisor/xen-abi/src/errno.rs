//! The errors that hypercalls return, numbered as Linux on x86 numbers them.

/// Why a hypercall was refused. A guest sees the negated number.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::upper_case_acronyms)]
pub enum Errno {
    /// The caller may not do this.
    EPERM = 1,
    /// What was named does not exist.
    ENOENT = 2,
    /// There is no such domain.
    ESRCH = 3,
    /// Interrupted; never seen by a guest.
    EINTR = 4,
    /// A device or an internal operation failed.
    EIO = 5,
    /// No such device or address.
    ENXIO = 6,
    /// The argument is too big.
    E2BIG = 7,
    /// Not an executable image.
    ENOEXEC = 8,
    /// A bad descriptor.
    EBADF = 9,
    /// There is none below.
    ECHILD = 10,
    /// Not now; try again.
    EAGAIN = 11,
    /// Out of memory, or over the domain's limit.
    ENOMEM = 12,
    /// Refused, or an interface version that is not spoken.
    EACCES = 13,
    /// A guest address cannot be accessed.
    EFAULT = 14,
    /// In use.
    EBUSY = 16,
    /// It exists already.
    EEXIST = 17,
    /// Across what must not be crossed.
    EXDEV = 18,
    /// No such device.
    ENODEV = 19,
    ENOTDIR = 20,
    EISDIR = 21,
    /// An argument makes no sense.
    EINVAL = 22,
    ENFILE = 23,
    EMFILE = 24,
    /// No room left.
    ENOSPC = 28,
    EROFS = 30,
    EMLINK = 31,
    EDOM = 33,
    /// Out of range.
    ERANGE = 34,
    EDEADLK = 35,
    ENAMETOOLONG = 36,
    ENOLCK = 37,
    /// Not implemented here.
    ENOSYS = 38,
    ENOTEMPTY = 39,
    /// There is no data.
    ENODATA = 61,
    ETIME = 62,
    EBADMSG = 74,
    /// The value does not fit.
    EOVERFLOW = 75,
    EILSEQ = 84,
    /// To be continued: the hypercall runs again; never seen by a guest.
    ERESTART = 85,
    /// Too many users.
    EUSERS = 87,
    ENOTSOCK = 88,
    EMSGSIZE = 90,
    /// Not supported in this configuration.
    EOPNOTSUPP = 95,
    EADDRINUSE = 98,
    EADDRNOTAVAIL = 99,
    /// The caller's buffer is too small.
    ENOBUFS = 105,
    EISCONN = 106,
    ENOTCONN = 107,
    /// It took too long.
    ETIMEDOUT = 110,
    ECONNREFUSED = 111,
}

/// What nearly every fallible function of the hypervisor returns.
pub type Result<T = ()> = core::result::Result<T, Errno>;

impl Errno {
    /// The value that goes into the guest's return register.
    #[inline]
    pub const fn as_return(self) -> i64 {
        -(self as i32 as i64)
    }

    /// The same, where an interface has a 32-bit status field.
    #[inline]
    pub const fn as_status(self) -> i32 {
        -(self as i32)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_sees_the_negated_number() {
        assert_eq!(Errno::ENOSYS.as_return(), -38);
        assert_eq!(Errno::EFAULT.as_status(), -14);
    }
}
