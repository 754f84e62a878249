//! Memory operations: the map, giving pages back and getting them again, placing pages in the address space.

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, op};
use tests_qemu::memory::{self, add_to_physmap, gfn, reserve};
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, say};
use xen_abi::handle::GuestHandle;
use xen_abi::memory::*;
use xen_abi::numbers::MEMORY_OP;
use xen_abi::types::DomainId;

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    map(t);
    sizes(t);
    pages(t);
    batches(t);
    physmap(t);
    refusals(t);
}

fn map(t: &mut Tests) {
    let (entries, count, result) = memory::memory_map();
    t.returns("the memory map", result, 0);
    let entries = &entries[..count.min(64)];
    for entry in entries {
        let (start, size, kind) = (entry.addr, entry.size, entry.r#type);
        say!("{start:#x}..{:#x} type {kind}", start + size);
    }
    t.check("has entries", (2..64).contains(&count));
    t.check("in order, without overlaps", entries.windows(2).all(|pair| pair[0].addr + pair[0].size <= pair[1].addr));
    t.check("the guest's own memory is RAM", memory::is_ram(16 << 20, 1 << 20));
    let ram: u64 = entries.iter().filter(|entry| entry.r#type == E820_RAM).map(|entry| entry.size).sum();
    t.within("RAM is what dom0_mem says", ram >> 20, 126, 130);
    let mut one = MemoryMap { nr_entries: 1, pad: 0, buffer: GuestHandle::new(memory::page()) };
    t.returns("room for one entry", op(MEMORY_OP, XENMEM_MEMORY_MAP, &mut one), 0);
    t.equal("is filled with one", one.nr_entries, 1);
    t.equal("the first", cpu::read64(one.buffer.address()), entries[0].addr);
}

fn reservation() -> i64 {
    op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId::SELF })
}

fn sizes(t: &mut Tests) {
    t.within("pages that Dom0 has", reservation() as u64, 32_000, 33_000);
    let most = op(MEMORY_OP, XENMEM_MAXIMUM_RESERVATION, &mut MemoryDomain { domid: DomainId::SELF });
    t.check("pages that it may have", most >= reservation());
    let highest = op(MEMORY_OP, XENMEM_MAXIMUM_GPFN, &mut MemoryDomain { domid: DomainId::SELF });
    t.check("its highest frame", highest as u64 >= gfn(memory::spare_ram()));
    t.check("the machine's highest frame", call(MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE.into(), 0, 0, 0, 0]) > 0x1_0000);
}

fn pages(t: &mut Tests) {
    let before = reservation();
    let address = memory::spare_ram();
    cpu::write64(address, 0x1234);
    t.returns("giving a page back", reserve(XENMEM_DECREASE_RESERVATION, &[gfn(address)], 0), 1);
    t.returns("leaves one less", reservation(), before - 1);
    t.equal("it is a hole", cpu::read64(address), u64::MAX);
    t.returns("giving it back again", reserve(XENMEM_DECREASE_RESERVATION, &[gfn(address)], 0), 0);
    t.returns("getting a page there", reserve(XENMEM_POPULATE_PHYSMAP, &[gfn(address)], 0), 1);
    t.returns("has as many as before", reservation(), before);
    cpu::write64(address, 0x5678);
    t.equal("it is memory", cpu::read64(address), 0x5678);

    let large = address + (2 << 20);
    cpu::write64(large + 4096 * 511, 1);
    t.returns("giving 2 MiB back", reserve(XENMEM_DECREASE_RESERVATION, &[gfn(large)], 9), 1);
    t.equal("all of it is a hole", cpu::read64(large + 4096 * 511), u64::MAX);
    t.returns("has 512 less", reservation(), before - 512);
    t.returns("getting 2 MiB", reserve(XENMEM_POPULATE_PHYSMAP, &[gfn(large)], 9), 1);
    cpu::write64(large + 4096 * 511, 77);
    t.equal("all of it is memory", cpu::read64(large + 4096 * 511), 77);
    t.returns("has as many as before, again", reservation(), before);
}

fn batches(t: &mut Tests) {
    let before = reservation();
    let base = gfn(memory::spare_ram()) + 1024;
    let gfns: [u64; 64] = core::array::from_fn(|index| base + index as u64);
    t.returns("giving 64 pages back", reserve(XENMEM_DECREASE_RESERVATION, &gfns, 0), 64);
    t.returns("getting them again", reserve(XENMEM_POPULATE_PHYSMAP, &gfns, 0), 64);
    t.returns("has as many as before a batch", reservation(), before);
    let mut some = [base, base + 1, 1 << 50, base + 2];
    t.returns("a bad one in the middle ends the batch", reserve(XENMEM_DECREASE_RESERVATION, &some, 0), 2);
    some = [base, base + 1, base, base + 1];
    t.returns("getting those", reserve(XENMEM_POPULATE_PHYSMAP, &some[..2], 0), 2);
    t.returns("none is a batch, too", reserve(XENMEM_DECREASE_RESERVATION, &[], 0), 0);
    t.returns("has as many as before the batches", reservation(), before);
}

fn physmap(t: &mut Tests) {
    let shared = memory::shared_info();
    t.check("the shared page is there", cpu::read32(shared + 32 + 24) != 0);
    let address = memory::spare_ram() + (6 << 20);
    let before = reservation();
    t.returns("placing it over RAM", add_to_physmap(XENMAPSPACE_SHARED_INFO, 0, gfn(address)), 0);
    t.check("it is there", cpu::read32(address + 32 + 24) != 0);
    t.equal("and no longer where it was", cpu::read64(shared), u64::MAX);
    t.returns("the page that it covered is gone", reservation(), before - 1);
    t.returns("a second shared page", add_to_physmap(XENMAPSPACE_SHARED_INFO, 1, gfn(address)), -22);
    let table = address + 4096;
    t.returns("a grant table's page", add_to_physmap(XENMAPSPACE_GRANT_TABLE, 0, gfn(table)), 0);
    t.equal("it is empty", (0..512).map(|word| cpu::read64(table + word * 8)).fold(0, |a, b| a | b), 0);
    t.returns("beyond the table's limit", add_to_physmap(XENMAPSPACE_GRANT_TABLE, 100_000, gfn(table)), -22);

    let (from, to) = (address + 8192, address + 12288);
    cpu::write64(from, 0xabcd);
    t.returns("moving a page", add_to_physmap(XENMAPSPACE_GMFN, gfn(from), gfn(to)), 0);
    t.equal("its content moves", cpu::read64(to), 0xabcd);
    t.equal("and leaves a hole", cpu::read64(from), u64::MAX);
    t.returns("removing a page", remove(gfn(to)), 0);
    t.equal("leaves a hole, too", cpu::read64(to), u64::MAX);
    t.returns("removing a hole", remove(gfn(to)), -2);
    t.returns("filling the holes", reserve(XENMEM_POPULATE_PHYSMAP, &[gfn(from), gfn(to)], 0), 2);
    t.returns("an unknown space", add_to_physmap(99, 0, gfn(to)), -22);
}

fn remove(gpfn: u64) -> i64 {
    op(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut RemoveFromPhysmap { domid: DomainId::SELF, pad: [0; 3], gpfn })
}

fn refusals(t: &mut Tests) {
    t.returns("an operation that does not exist", call(MEMORY_OP, [60, 0, 0, 0, 0]), -38);
    let far = [1u64 << 50];
    t.returns("getting a page beyond the address space", reserve(XENMEM_POPULATE_PHYSMAP, &far, 0), 0);
    t.returns("getting an extent too large", reserve(XENMEM_POPULATE_PHYSMAP, &[0], 40), 0);
    let mut other = MemoryDomain { domid: DomainId(1234) };
    t.returns("of a domain that is not there", op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut other), -3);
}
