//! Addresses that a guest claims.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A guest-linear address of a `T`, or of the first of an array of them.
///
/// It is an *allegation*: nothing is known of it until a copy through the caller's own page tables succeeds. 32-bit
/// callers' handles are widened with zeros.
#[repr(transparent)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestHandle<T> {
    address: u64,
    what: PhantomData<T>,
}

impl<T> GuestHandle<T> {
    /// The handle that callers pass for "nothing".
    pub const NULL: Self = Self::new(0);

    #[inline]
    pub const fn new(address: u64) -> Self {
        Self { address, what: PhantomData }
    }

    /// The guest-linear address.
    #[inline]
    pub const fn address(self) -> u64 {
        self.address
    }

    /// The same address, differently typed.
    #[inline]
    pub const fn cast<U>(self) -> GuestHandle<U> {
        GuestHandle::new(self.address)
    }

    #[inline]
    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// The handle of element `index`; `None` where the address would wrap.
    #[inline]
    pub const fn element(self, index: u64) -> Option<Self> {
        let Some(offset) = index.checked_mul(size_of::<T>() as u64) else { return None };
        match self.address.checked_add(offset) {
            Some(address) => Some(Self::new(address)),
            None => None,
        }
    }

    /// The handle `bytes` further on; `None` where the address would wrap.
    #[inline]
    pub const fn byte_add(self, bytes: u64) -> Option<Self> {
        match self.address.checked_add(bytes) {
            Some(address) => Some(Self::new(address)),
            None => None,
        }
    }
}

impl<T> Clone for GuestHandle<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for GuestHandle<T> {}

impl<T> Default for GuestHandle<T> {
    #[inline]
    fn default() -> Self {
        Self::NULL
    }
}

impl<T> PartialEq for GuestHandle<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl<T> Eq for GuestHandle<T> {}

impl<T> Hash for GuestHandle<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

impl<T> fmt::Debug for GuestHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestHandle({:#x})", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_would_wrap_has_no_handle() {
        let handle = GuestHandle::<u64>::new(0xffff_ffff_ffff_fff0);
        assert_eq!(handle.element(1), Some(GuestHandle::new(0xffff_ffff_ffff_fff8)));
        assert_eq!(handle.element(2), None);
        assert_eq!(handle.element(u64::MAX), None);
    }
}
