//! Grants: a domain lets another one map, or copy to and from, frames of its own.
//!
//! The granting domain writes an entry into its [`table`], in one of two formats ([`v1`], [`v2`]); whoever uses the entry pins it
//! ([`pins`]), which the granter sees in the entry's status bits. A mapping ([`map`]) is remembered in the mapper's [`maptrack`]
//! with a reference to the frame, so the frame outlives it whatever becomes of the granter; a [`mod@copy`] holds its pins only while
//! it lasts.
//!
//! Grant references, entries and handles all come from guests. Entries are shared memory: each is read once and what was read is
//! what is used, and its status bits change by atomic operations only.

pub mod copy;
pub mod map;
mod maptrack;
mod pins;
mod table;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use alloc::sync::Arc;

use mm::p2m::P2m;
use mm::table::PageFormat;
use xen_abi::domctl::{CreateDomain, XEN_DOMCTL_GRANT_VERSION_MASK};
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::types::DomainId;

pub use maptrack::Maptrack;
pub use table::{Kind, Table};

/// How much a domain may have of each, as `XEN_DOMCTL_createdomain` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames of its table.
    pub max_frames: u32,
    /// Chunks of [`Maptrack::CHUNK`] mappings of others' frames.
    pub max_maptrack_frames: u32,
    /// The highest format of entries: 1 or 2.
    pub max_version: u8,
}

impl Limits {
    /// Those that the toolstack asks for; what it leaves open is as by default.
    pub fn of(config: &CreateDomain) -> Self {
        let default = Limits::default();
        let or = |wanted: i32, default: u32| u32::try_from(wanted).unwrap_or(default);
        Limits {
            max_frames: or(config.max_grant_frames, default.max_frames),
            max_maptrack_frames: or(config.max_maptrack_frames, default.max_maptrack_frames),
            max_version: (config.grant_opts & XEN_DOMCTL_GRANT_VERSION_MASK) as u8,
        }
    }
}

impl Default for Limits {
    /// Xen's own limits.
    fn default() -> Self {
        Limits { max_frames: 64, max_maptrack_frames: 1024, max_version: 2 }
    }
}

/// What a domain has to do with grants: those that it gives, and its mappings of those that others gave.
pub struct GrantTable {
    table: Arc<Table>,
    maptrack: Maptrack,
}

impl GrantTable {
    /// An empty table of version 1. `vcpus` is the most that the domain can have.
    ///
    /// # Errors
    /// EINVAL if a limit makes no sense, ENOMEM.
    pub fn new(owner: DomainId, limits: Limits, vcpus: usize) -> Result<Self, Errno> {
        Ok(GrantTable {
            table: mm::try_arc(Table::new(owner, limits)?)?,
            maptrack: Maptrack::new(limits.max_maptrack_frames, vcpus)?,
        })
    }

    /// The entries that the domain grants with.
    #[inline]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Its mappings of others' frames.
    #[inline]
    pub fn maptrack(&self) -> &Maptrack {
        &self.maptrack
    }
}

/// A domain as an operation on grants sees it.
pub struct Party<'a, F: PageFormat> {
    pub id: DomainId,
    pub p2m: &'a P2m<F>,
    pub grants: &'a GrantTable,
}

impl<F: PageFormat> Clone for Party<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: PageFormat> Copy for Party<'_, F> {}

/// Why one element of a batch was refused: the `GNTST_*` that its status field gets.
#[repr(i16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Anything that has no number of its own, such as an entry that does not say what it should.
    General = GNTST_GENERAL_ERROR,
    /// There is no such domain.
    BadDomain = GNTST_BAD_DOMAIN,
    /// The reference lies beyond the table.
    BadReference = GNTST_BAD_GNTREF,
    /// The handle is no mapping of the caller's.
    BadHandle = GNTST_BAD_HANDLE,
    /// The handle is not mapped at this address.
    BadAddress = GNTST_BAD_VIRT_ADDR,
    /// No room for another mapping.
    NoRoom = GNTST_NO_DEVICE_SPACE,
    /// It is not the caller's to ask for.
    Denied = GNTST_PERMISSION_DENIED,
    /// The granter has no memory of its own there.
    BadPage = GNTST_BAD_PAGE,
    /// A copy that crosses the end of a page.
    BadCopy = GNTST_BAD_COPY_ARG,
    /// Not now.
    Again = GNTST_EAGAIN,
}

/// What goes into the status field.
#[inline]
pub const fn status(result: Result<(), Refused>) -> i16 {
    match result {
        Ok(()) => GNTST_OKAY,
        Err(refused) => refused as i16,
    }
}

/// What a grant is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Map,
    /// Only then will a grant of a part of a page do.
    Copy,
}

/// Who wants to use a grant, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub by: DomainId,
    pub write: bool,
    pub purpose: Purpose,
}

/// What an entry grants: these bytes of one frame of the granter's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub frame: mm::addr::Gfn,
    pub offset: u16,
    /// At most a page; `offset + length` may claim to be more.
    pub length: u16,
}

impl Granted {
    /// All of a page.
    pub(crate) const fn whole(frame: u64) -> Self {
        Granted { frame: mm::addr::Gfn(frame), offset: 0, length: mm::PAGE_SIZE as u16 }
    }

    /// Whether the bytes asked for are among those granted.
    pub(crate) fn covers(&self, offset: u16, length: u16) -> bool {
        let end = u32::from(offset).wrapping_add(u32::from(length));
        offset >= self.offset && end <= u32::from(self.offset).wrapping_add(u32::from(self.length))
    }
}
