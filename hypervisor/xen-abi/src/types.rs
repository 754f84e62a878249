//! The identifiers that every interface shares.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A domain's number. Values from [`DomainId::FIRST_RESERVED`] up never name a created domain.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DomainId(pub u16);

impl DomainId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// The lowest number that is not a created domain.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// "The caller", in an argument.
    pub const SELF: Self = Self(0x7ff0);
    /// Owner of MMIO frames.
    pub const IO: Self = Self(0x7ff1);
    /// Owner of the hypervisor's own frames, for those who may map them.
    pub const XEN: Self = Self(0x7ff2);
    /// Owner of frames shared copy-on-write (unused here).
    pub const COW: Self = Self(0x7ff3);
    /// No domain at all.
    pub const INVALID: Self = Self(0x7ff4);
    /// The idle vCPUs' domain.
    pub const IDLE: Self = Self(0x7fff);

    /// Whether this number can belong to a created domain.
    #[inline]
    pub const fn is_ordinary(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}

/// A virtual CPU's index in its domain.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VcpuId(pub u32);

/// An event channel port, local to its domain.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Port(pub u32);

/// An index into the granting domain's table.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct GrantRef(pub u32);

/// The toolstack's UUID for a domain (`xen_domain_handle_t`); opaque here.
pub type DomainHandle = [u8; 16];

/// A bitmap in the caller's memory (`struct xenctl_bitmap`): little-endian, bit 0 of byte 0 first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bitmap {
    pub bitmap: crate::handle::GuestHandle<u8>,
    pub nr_bits: u32,
    pub pad: u32,
}
