//! Addresses and frame numbers, each a type of its own, so that a guest's and the machine's never mix.

use core::fmt;

/// log2 of the bytes in a page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl $name {
            /// The number `count` further on, if there is one.
            #[inline]
            pub const fn checked_add(self, count: u64) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Whether the number is a multiple of `unit`, a power of two.
            #[inline]
            pub const fn is_aligned(self, unit: u64) -> bool {
                self.0 & unit.wrapping_sub(1) == 0
            }
        }
    };
}

number!(
    /// A frame of the machine's memory (machine frame number).
    Mfn
);
number!(
    /// A frame of a guest's physical memory (guest frame number).
    Gfn
);
number!(
    /// An address in the machine's physical memory.
    HostPhys
);
number!(
    /// An address in a guest's physical memory.
    GuestPhys
);

macro_rules! plus {
    ($($name:ident)*) => {$(
        impl $name {
            /// As [`checked_add`](Self::checked_add), for sums that were checked before.
            #[inline]
            pub(crate) const fn plus(self, count: u64) -> Self {
                Self(self.0.wrapping_add(count))
            }
        }
    )*};
}

plus!(Mfn GuestPhys);

macro_rules! frames_and_addresses {
    ($frame:ident, $address:ident, $method:ident) => {
        impl $frame {
            /// The address of the frame's first byte.
            #[inline]
            pub const fn phys(self) -> $address {
                $address(self.0 << PAGE_SHIFT)
            }
        }

        impl $address {
            /// The frame that the address lies in.
            #[inline]
            pub const fn $method(self) -> $frame {
                $frame(self.0 >> PAGE_SHIFT)
            }

            /// The bytes between the frame's beginning and the address.
            #[inline]
            pub const fn page_offset(self) -> usize {
                self.0 as usize & (PAGE_SIZE - 1)
            }
        }
    };
}

frames_and_addresses!(Mfn, HostPhys, mfn);
frames_and_addresses!(Gfn, GuestPhys, gfn);

/// The sizes that a mapping comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    Size4K,
    Size2M,
    Size1G,
}

impl PageSize {
    /// Every size, the largest first.
    pub const DESCENDING: [Self; 3] = [Self::Size1G, Self::Size2M, Self::Size4K];

    /// log2 of the frames in a page of this size.
    #[inline]
    pub const fn order(self) -> u8 {
        match self {
            Self::Size4K => 0,
            Self::Size2M => 9,
            Self::Size1G => 18,
        }
    }

    /// The 4 KiB frames in a page of this size.
    #[inline]
    pub const fn frames(self) -> u64 {
        1u64.wrapping_shl(self.order() as u32)
    }

    /// The bytes in a page of this size.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.frames() << PAGE_SHIFT
    }

    /// The level of the table whose leaves have this size; a table of 4 KiB pages is level 1.
    #[inline]
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }

    /// The size of a leaf in a table of this level, where leaves exist at that level.
    #[inline]
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_addresses_convert_both_ways() {
        assert_eq!(Mfn(0x123).phys(), HostPhys(0x123_000));
        assert_eq!(HostPhys(0x123_fff).mfn(), Mfn(0x123));
        assert_eq!(GuestPhys(0x123_456).page_offset(), 0x456);
        assert_eq!(Gfn(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn numbers_print_as_hex() {
        assert_eq!(format!("{:?} {}", Gfn(255), HostPhys(4096)), "Gfn(0xff) 0x1000");
    }

    #[test]
    fn sizes_agree_with_their_levels() {
        for size in PageSize::DESCENDING {
            assert_eq!(PageSize::of_level(size.level()), Some(size));
            assert_eq!(size.bytes(), 4096 << size.order());
        }
    }
}
