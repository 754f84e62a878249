//! What differs for a 32-bit caller: structures with handles, frame numbers or `unsigned long`s, and those whose 64-bit
//! fields are aligned to 4 only, as i386 has it.
//!
//! Everything else, `domctl` and `sysctl` above all, has one layout for both. Each structure here is named as its wide
//! counterpart, and [`Compat`] goes from one to the other.

use crate::handle::GuestHandle;
use crate::types::{DomainId, GrantRef};
use crate::{grant, memory, multicall, physdev, sched, vcpu, version};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A structure with a narrow counterpart.
pub trait Compat: Sized {
    type Narrow: FromBytes + IntoBytes + Immutable + Copy;

    /// What the 32-bit caller meant.
    fn widen(narrow: Self::Narrow) -> Self;

    /// What the 32-bit caller is told; numbers are cut to the width that there is.
    fn narrow(&self) -> Self::Narrow;
}

/// An `unsigned long`, or a frame number: what lists of frames are made of.
impl Compat for u64 {
    type Narrow = u32;

    #[inline]
    fn widen(narrow: u32) -> u64 {
        narrow as u64
    }

    #[inline]
    fn narrow(&self) -> u32 {
        *self as u32
    }
}

/// A field's wide type, as `N` in the narrow structure.
trait Field<N>: Copy {
    fn widen(narrow: N) -> Self;
    fn narrow(self) -> N;
}

macro_rules! same {
    ($($ty:ty),*) => {$(
        impl Field<$ty> for $ty {
            #[inline]
            fn widen(narrow: $ty) -> $ty {
                narrow
            }
            #[inline]
            fn narrow(self) -> $ty {
                self
            }
        }
    )*};
}
same!(u16, u32, u64, i16, i32, [u64; 4], DomainId, GrantRef);

impl Field<u32> for u64 {
    #[inline]
    fn widen(narrow: u32) -> u64 {
        narrow as u64
    }
    #[inline]
    fn narrow(self) -> u32 {
        self as u32
    }
}

impl Field<[u32; 6]> for [u64; 6] {
    #[inline]
    fn widen(narrow: [u32; 6]) -> Self {
        narrow.map(u64::from)
    }
    #[inline]
    fn narrow(self) -> [u32; 6] {
        self.map(|word| word as u32)
    }
}

impl<T> Field<u32> for GuestHandle<T> {
    #[inline]
    fn widen(narrow: u32) -> Self {
        Self::new(narrow as u64)
    }
    #[inline]
    fn narrow(self) -> u32 {
        self.address() as u32
    }
}

/// A `u64` that i386 aligns to 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct U64 {
    pub low: u32,
    pub high: u32,
}
const _: () = assert!(size_of::<U64>() == 8 && align_of::<U64>() == 4);

impl Field<U64> for u64 {
    #[inline]
    fn widen(narrow: U64) -> u64 {
        narrow.low as u64 | (narrow.high as u64) << 32
    }
    #[inline]
    fn narrow(self) -> U64 {
        U64 { low: self as u32, high: (self >> 32) as u32 }
    }
}

impl Field<[U64; 4]> for [u64; 4] {
    #[inline]
    fn widen(narrow: [U64; 4]) -> Self {
        narrow.map(<u64 as Field<U64>>::widen)
    }
    #[inline]
    fn narrow(self) -> [U64; 4] {
        self.map(<u64 as Field<U64>>::narrow)
    }
}

macro_rules! compat {
    ($($wide:ty => $narrow:ident { $($field:ident),* })*) => {$(
        impl Compat for $wide {
            type Narrow = $narrow;

            #[inline]
            #[allow(clippy::needless_update)]
            fn widen(narrow: $narrow) -> Self {
                Self { $($field: Field::widen(narrow.$field),)* ..Self::default() }
            }

            #[inline]
            #[allow(clippy::needless_update)]
            fn narrow(&self) -> $narrow {
                $narrow { $($field: Field::narrow(self.$field),)* ..$narrow::default() }
            }
        }
    )*};
}

impl Compat for memory::MemoryExchange {
    type Narrow = MemoryExchange;

    fn widen(narrow: MemoryExchange) -> Self {
        Self {
            r#in: Compat::widen(narrow.r#in),
            out: Compat::widen(narrow.out),
            nr_exchanged: narrow.nr_exchanged as u64,
        }
    }

    fn narrow(&self) -> MemoryExchange {
        MemoryExchange { r#in: self.r#in.narrow(), out: self.out.narrow(), nr_exchanged: self.nr_exchanged as u32 }
    }
}

impl Compat for memory::ForeignMemoryMap {
    type Narrow = ForeignMemoryMap;

    fn widen(narrow: ForeignMemoryMap) -> Self {
        Self { domid: narrow.domid, pad: [0; 3], map: Compat::widen(narrow.map) }
    }

    fn narrow(&self) -> ForeignMemoryMap {
        ForeignMemoryMap { domid: self.domid, pad: 0, map: self.map.narrow() }
    }
}

impl Compat for grant::GrantCopy {
    type Narrow = GrantCopy;

    #[inline]
    fn widen(narrow: GrantCopy) -> Self {
        Self {
            source: Compat::widen(narrow.source),
            dest: Compat::widen(narrow.dest),
            len: narrow.len,
            flags: narrow.flags,
            status: narrow.status,
            pad: 0,
        }
    }

    #[inline]
    fn narrow(&self) -> GrantCopy {
        GrantCopy {
            source: self.source.narrow(),
            dest: self.dest.narrow(),
            len: self.len,
            flags: self.flags,
            status: self.status,
            pad: 0,
        }
    }
}

compat! {
    memory::MemoryReservation => MemoryReservation { extent_start, nr_extents, extent_order, mem_flags, domid }
    memory::MachphysMfnList => MachphysMfnList { max_extents, extent_start, nr_extents }
    memory::MachphysMapping => MachphysMapping { v_start, v_end, max_mfn }
    memory::AddToPhysmap => AddToPhysmap { domid, size, space, idx, gpfn }
    memory::AddToPhysmapBatch => AddToPhysmapBatch { domid, space, size, foreign_domid, idxs, gpfns, errs }
    memory::RemoveFromPhysmap => RemoveFromPhysmap { domid, gpfn }
    memory::MemoryMap => MemoryMap { nr_entries, buffer }
    memory::AcquireResource => AcquireResource { domid, r#type, id, nr_frames, pad, frame, frame_list }
    memory::PodTarget => PodTarget { target_pages, tot_pages, pod_cache_pages, pod_entries, domid }
    grant::CopyPtr => CopyPtr { frame_or_ref, domid, offset }
    grant::SetupTable => SetupTable { dom, nr_frames, status, frame_list }
    grant::GetStatusFrames => GetStatusFrames { nr_frames, dom, status, frame_list }
    grant::Transfer => Transfer { mfn, domid, gref, status }
    sched::Poll => Poll { ports, nr_ports, timeout }
    vcpu::RunstateInfo => RunstateInfo { state, state_entry_time, time }
    vcpu::SetSingleshotTimer => SetSingleshotTimer { timeout_abs_ns, flags }
    version::PlatformParameters => PlatformParameters { virt_start }
    physdev::PirqEoiGmfn => PirqEoiGmfn { gmfn }
    physdev::MapPirq => MapPirq { domid, r#type, index, pirq, bus, devfn, entry_nr, table_base }
    physdev::Apic => Apic { apic_physbase, reg, value }
    multicall::MulticallEntry => MulticallEntry { op, result, args }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryReservation {
    pub extent_start: u32,
    pub nr_extents: u32,
    pub extent_order: u32,
    pub mem_flags: u32,
    pub domid: DomainId,
    pub pad: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryExchange {
    pub r#in: MemoryReservation,
    pub out: MemoryReservation,
    pub nr_exchanged: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMfnList {
    pub max_extents: u32,
    pub extent_start: u32,
    pub nr_extents: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMapping {
    pub v_start: u32,
    pub v_end: u32,
    pub max_mfn: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddToPhysmap {
    pub domid: DomainId,
    pub size: u16,
    pub space: u32,
    pub idx: u32,
    pub gpfn: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddToPhysmapBatch {
    pub domid: DomainId,
    pub space: u16,
    pub size: u16,
    pub foreign_domid: DomainId,
    pub idxs: u32,
    pub gpfns: u32,
    pub errs: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoveFromPhysmap {
    pub domid: DomainId,
    pub pad: u16,
    pub gpfn: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryMap {
    pub nr_entries: u32,
    pub buffer: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ForeignMemoryMap {
    pub domid: DomainId,
    pub pad: u16,
    pub map: MemoryMap,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AcquireResource {
    pub domid: DomainId,
    pub r#type: u16,
    pub id: u32,
    pub nr_frames: u32,
    pub pad: u32,
    pub frame: U64,
    pub frame_list: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PodTarget {
    pub target_pages: U64,
    pub tot_pages: U64,
    pub pod_cache_pages: U64,
    pub pod_entries: U64,
    pub domid: DomainId,
    pub pad: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyPtr {
    pub frame_or_ref: u32,
    pub domid: DomainId,
    pub offset: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GrantCopy {
    pub source: CopyPtr,
    pub dest: CopyPtr,
    pub len: u16,
    pub flags: u16,
    pub status: i16,
    pub pad: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupTable {
    pub dom: DomainId,
    pub pad0: u16,
    pub nr_frames: u32,
    pub status: i16,
    pub pad1: u16,
    pub frame_list: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetStatusFrames {
    pub nr_frames: u32,
    pub dom: DomainId,
    pub status: i16,
    pub frame_list: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Transfer {
    pub mfn: u32,
    pub domid: DomainId,
    pub pad0: u16,
    pub gref: GrantRef,
    pub status: i16,
    pub pad1: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Poll {
    pub ports: u32,
    pub nr_ports: u32,
    pub timeout: U64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RunstateInfo {
    pub state: u32,
    pub state_entry_time: U64,
    pub time: [U64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetSingleshotTimer {
    pub timeout_abs_ns: U64,
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlatformParameters {
    pub virt_start: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PirqEoiGmfn {
    pub gmfn: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapPirq {
    pub domid: DomainId,
    pub pad0: u16,
    pub r#type: i32,
    pub index: i32,
    pub pirq: i32,
    pub bus: i32,
    pub devfn: i32,
    pub entry_nr: i32,
    pub table_base: U64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Apic {
    pub apic_physbase: u32,
    pub reg: u32,
    pub value: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MulticallEntry {
    pub op: u32,
    pub result: u32,
    pub args: [u32; 6],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ArchVcpuInfo {
    pub cr2: u32,
    pub pad: [u32; 5],
}

/// A 32-bit guest's `vcpu_info`: the same size, but the selector has 32 bits and stands at 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuInfo {
    pub evtchn_upcall_pending: u8,
    pub evtchn_upcall_mask: u8,
    pub pad: u16,
    pub evtchn_pending_sel: u32,
    pub arch: ArchVcpuInfo,
    pub time: VcpuTimeInfo,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuTimeInfo {
    pub version: u32,
    pub pad0: u32,
    pub tsc_timestamp: U64,
    pub system_time: U64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub pad1: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ArchSharedInfo {
    pub max_pfn: u32,
    pub pfn_to_mfn_frame_list_list: u32,
    pub nmi_reason: u32,
    pub p2m_cr3: u32,
    pub p2m_vaddr: u32,
    pub p2m_generation: u32,
    pub wc_sec_hi: u32,
}

/// A 32-bit guest's shared page: 1024 event channels.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SharedInfo {
    pub vcpu_info: [VcpuInfo; crate::x86::XEN_LEGACY_MAX_VCPUS],
    pub evtchn_pending: [u32; 32],
    pub evtchn_mask: [u32; 32],
    pub wc_version: u32,
    pub wc_sec: u32,
    pub wc_nsec: u32,
    pub arch: ArchSharedInfo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_argument_means_the_same_as_the_wide_one() {
        let wide = memory::AddToPhysmap { domid: DomainId::SELF, size: 3, space: 1, idx: 7, gpfn: 0xfedcb };
        assert_eq!(memory::AddToPhysmap::widen(wide.narrow()), wide);
        let poll = sched::Poll { ports: GuestHandle::new(0xc000_1000), nr_ports: 2, pad: 0, timeout: 1 << 40 };
        assert_eq!(sched::Poll::widen(poll.narrow()), poll);
        let map = physdev::MapPirq { pirq: -1, table_base: u64::MAX - 5, ..Default::default() };
        assert_eq!(physdev::MapPirq::widen(map.narrow()), map);
    }
}
