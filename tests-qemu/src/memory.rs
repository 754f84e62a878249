//! Pages to play with, the shared page, and what the memory map says.

use crate::hypercall;
use core::sync::atomic::{AtomicU64, Ordering};
use xen_abi::handle::GuestHandle;
use xen_abi::memory::{
    AddToPhysmap, E820_RAM, E820Entry, MemoryMap, MemoryReservation, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP,
    XENMEM_MEMORY_MAP,
};
use xen_abi::numbers;
use xen_abi::types::DomainId;

pub const PAGE_SIZE: u64 = 4096;

#[repr(C, align(4096))]
struct Pool([u8; 64 * 4096]);
const _: () = assert!(size_of::<Pool>() == 64 * 4096);
static mut POOL: Pool = Pool([0; 64 * 4096]);
static USED: AtomicU64 = AtomicU64::new(0);
static SHARED_INFO: AtomicU64 = AtomicU64::new(0);

/// A page of the guest's own memory, zeroed. Addresses are guest-physical and linear at once.
pub fn page() -> u64 {
    let index = USED.fetch_add(1, Ordering::Relaxed);
    assert!(index < 64, "the pool has 64 pages");
    (&raw mut POOL) as u64 + index * PAGE_SIZE
}

/// The frame number of an address.
pub fn gfn(address: u64) -> u64 {
    address / PAGE_SIZE
}

pub fn add_to_physmap(space: u32, idx: u64, gpfn: u64) -> i64 {
    let mut argument = AddToPhysmap { domid: DomainId::SELF, size: 0, space, idx, gpfn };
    hypercall::op(numbers::MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut argument)
}

/// XENMEM_populate_physmap and its like for blocks of `2^extent_order` pages of the guest's own.
#[inline]
pub fn reserve(operation: u32, gfns: &[u64], extent_order: u32) -> i64 {
    let mut argument = MemoryReservation {
        extent_start: GuestHandle::new(gfns.as_ptr() as u64),
        nr_extents: gfns.len() as u64,
        extent_order,
        domid: DomainId::SELF,
        ..Default::default()
    };
    hypercall::op(numbers::MEMORY_OP, operation, &mut argument)
}

/// The address of the shared page, which is mapped the first time over a page of the guest's own.
pub fn shared_info() -> u64 {
    let known = SHARED_INFO.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let address = page();
    let result = add_to_physmap(XENMAPSPACE_SHARED_INFO, 0, gfn(address));
    assert!(result == 0, "the shared page could not be mapped: {result}");
    SHARED_INFO.store(address, Ordering::Relaxed);
    address
}

/// The memory map as the hypervisor tells it: entries and how many.
pub fn memory_map() -> ([E820Entry; 64], usize, i64) {
    let mut entries = [E820Entry::default(); 64];
    let mut map = MemoryMap { nr_entries: 64, pad: 0, buffer: GuestHandle::new(entries.as_mut_ptr() as u64) };
    let result = hypercall::op(numbers::MEMORY_OP, XENMEM_MEMORY_MAP, &mut map);
    (entries, map.nr_entries as usize, result)
}

/// Whether `address..address + size` is RAM.
pub fn is_ram(address: u64, size: u64) -> bool {
    let (entries, count, _) = memory_map();
    entries.iter().take(count).any(|entry| {
        let (start, length, kind) = (entry.addr, entry.size, entry.r#type);
        kind == E820_RAM && start <= address && address + size <= start + length
    })
}

/// A 2 MiB-aligned stretch of RAM above the guest, which nothing uses.
pub fn spare_ram() -> u64 {
    let wanted = 32 << 20;
    assert!(is_ram(wanted, 16 << 20), "32-48 MiB is RAM in every test machine");
    wanted
}
