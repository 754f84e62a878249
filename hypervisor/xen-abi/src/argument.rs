//! Arguments of which the operation decides the type.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// 128 bytes, aligned to 8: the `u` of `domctl`, `sysctl` and `platform_op`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Union128(pub [u64; 16]);

impl Union128 {
    /// These bytes read as a `T`, which must not be larger (a compile-time error).
    #[inline]
    pub fn get<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= size_of::<Self>()) };
        T::read_from_prefix(self.as_bytes()).map_or_else(|_| T::new_zeroed(), |(value, _)| value)
    }

    /// Overwrites the first bytes with `value`; the rest stays as it was.
    #[inline]
    pub fn set<T: IntoBytes + Immutable>(&mut self, value: &T) {
        const { assert!(size_of::<T>() <= size_of::<Self>()) };
        let written = value.write_to_prefix(self.as_mut_bytes());
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_what_is_read_and_the_rest_stays() {
        let mut union = Union128([u64::MAX; 16]);
        union.set(&0x1234_5678_u32);
        assert_eq!(union.get::<u32>(), 0x1234_5678);
        assert_eq!(union.get::<[u32; 2]>()[1], u32::MAX);
    }
}
