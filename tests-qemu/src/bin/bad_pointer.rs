//! Arguments that cannot be read or written: -EFAULT, for every hypercall that takes one.

#![no_std]
#![no_main]

use tests_qemu::hypercall::call;
use tests_qemu::memory;
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, start};
use xen_abi::numbers::*;

tests_qemu::guest!(main);

/// Hypercalls that read the structure at their second argument.
const READERS: &[(u64, u32, &str)] = &[
    (EVENT_CHANNEL_OP, 4, "EVTCHNOP_send"),
    (EVENT_CHANNEL_OP, 6, "EVTCHNOP_alloc_unbound"),
    (EVENT_CHANNEL_OP, 5, "EVTCHNOP_status"),
    (SCHED_OP, 3, "SCHEDOP_poll"),
    (MEMORY_OP, 7, "XENMEM_add_to_physmap"),
    (MEMORY_OP, 9, "XENMEM_memory_map"),
    (MEMORY_OP, 3, "XENMEM_current_reservation"),
    (HVM_OP, 0, "HVMOP_set_param"),
    (HVM_OP, 1, "HVMOP_get_param"),
    (HVM_OP, 23, "HVMOP_set_evtchn_upcall_vector"),
    (XEN_VERSION, 6, "XENVER_get_features"),
    (PHYSDEV_OP, 25, "PHYSDEVOP_pci_device_add"),
];

fn main(t: &mut Tests) {
    // Beyond the 4 GiB that the guest maps; an address that is not canonical; the highest.
    let places = [1 << 40, 0x8000_0000_0000, u64::MAX - 7, 0xffff_8000_0000_0000];
    for (number, operation, name) in READERS {
        let results = places.map(|place| call(*number, [(*operation).into(), place, 0, 0, 0]));
        t.equal(name, results, [-14; 4]);
    }
    // These return how many extents they did: none.
    t.returns("XENMEM_populate_physmap", call(MEMORY_OP, [6, 1 << 40, 0, 0, 0]), 0);
    t.returns("XENMEM_decrease_reservation", call(MEMORY_OP, [1, 1 << 40, 0, 0, 0]), 0);
    t.returns("a grant batch", call(GRANT_TABLE_OP, [0, 1 << 40, 1, 0, 0]), -14);
    t.returns("a grant copy", call(GRANT_TABLE_OP, [5, 1 << 40, 1, 0, 0]), -14);
    t.returns("a vCPU operation", call(VCPU_OP, [8, 0, 1 << 40, 0, 0]), -14);
    t.returns("a platform operation", call(PLATFORM_OP, [1 << 40, 0, 0, 0, 0]), -14);
    t.returns("text for the console", call(CONSOLE_IO, [0, 16, 1 << 40, 0, 0]), -14);
    t.returns("a multicall", call(MULTICALL, [1 << 40, 1, 0, 0, 0]), -14);
    t.returns("a place for the extra version", call(XEN_VERSION, [1, 1 << 40, 0, 0, 0]), -14);

    // The last bytes of a page whose neighbour is not mapped: half the structure is there.
    let edge = last_mapped_page() + 4096 - 8;
    t.returns("a structure that ends beyond what is mapped", call(MEMORY_OP, [7, edge, 0, 0, 0]), -14);
    t.returns("a structure that just fits", call(EVENT_CHANNEL_OP, [4, edge + 4, 0, 0, 0]), -22);

    // A page that may only be read takes no result.
    let page = read_only_page();
    t.returns("a result to a page that may only be read", call(XEN_VERSION, [1, page, 0, 0, 0]), -14);
    t.returns("reading from it is fine", call(EVENT_CHANNEL_OP, [4, page, 0, 0, 0]), -22);
    // A page of the p2m that is not there.
    t.returns("a structure in a hole of memory", call(EVENT_CHANNEL_OP, [4, 0xd000_0000, 0, 0, 0]), -14);
    t.check("nothing was written where nothing may be", cpu::read64(page) == 0);
}

/// The last page that is mapped is at 4 GiB, which is no RAM: a mapping of RAM is put there.
fn last_mapped_page() -> u64 {
    let table = memory::page();
    for entry in 0..512u64 {
        cpu::write64(table + entry * 8, 0);
    }
    let page = memory::page();
    cpu::write64(table + 511 * 8, page | 3);
    start::map_table(0xffe0_0000, table);
    0xffff_f000
}

fn read_only_page() -> u64 {
    let table = memory::page();
    let page = memory::page();
    cpu::write64(table, page | 1);
    start::map_table(0xffc0_0000, table);
    cpu::invlpg(0xffc0_0000);
    0xffc0_0000
}
