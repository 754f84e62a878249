//! Costs: pages taken, given and placed; grants.

#![no_std]
#![no_main]

use core::cell::Cell;
use tests_qemu::cpu;
use tests_qemu::hypercall::grant_op;
use tests_qemu::measure::path_after;
use tests_qemu::memory::{self, add_to_physmap, gfn, reserve};
use tests_qemu::tests::Tests;
use xen_abi::grant::*;
use xen_abi::memory::*;
use xen_abi::types::{DomainId, GrantRef};

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    let page = [gfn(memory::spare_ram())];
    // The first one splits a large page.
    reserve(XENMEM_DECREASE_RESERVATION, &page, 0);
    reserve(XENMEM_POPULATE_PHYSMAP, &page, 0);
    let mut done = 0;
    path_after(
        "decrease-reservation",
        || {
            reserve(XENMEM_POPULATE_PHYSMAP, &page, 0);
        },
        || {
            done += reserve(XENMEM_DECREASE_RESERVATION, &page, 0);
        },
    );
    path_after(
        "populate",
        || {
            reserve(XENMEM_DECREASE_RESERVATION, &page, 0);
        },
        || {
            done += reserve(XENMEM_POPULATE_PHYSMAP, &page, 0);
        },
    );
    t.equal("every page went and came", done, 100);
    let places = [gfn(memory::spare_ram()) + 1, gfn(memory::spare_ram()) + 2];
    reserve(XENMEM_DECREASE_RESERVATION, &places, 0);
    let (next, mut failed) = (Cell::new(0), 0);
    path_after(
        "add-to-physmap",
        || next.set(next.get() ^ 1),
        || {
            failed += add_to_physmap(XENMAPSPACE_SHARED_INFO, 0, places[next.get()]);
        },
    );
    t.equal("the shared page was placed each time", failed, 0);
    grants(t);
}

const REF: u64 = 8;

fn grants(t: &mut Tests) {
    grant_op(GNTTABOP_SET_VERSION, &mut [SetVersion { version: 1 }]);
    let table = memory::page();
    t.returns("the table", add_to_physmap(XENMAPSPACE_GRANT_TABLE, 0, gfn(table)), 0);
    // Xen takes a page that its owner maps away from where it was: a new page for each round.
    let pages = gfn(memory::spare_ram()) + 1024;
    let hole = memory::spare_ram();
    reserve(XENMEM_DECREASE_RESERVATION, &[gfn(hole)], 0);
    let mut round = 0;
    let mut grant = || {
        cpu::write32(table + REF * 8 + 4, (pages + round) as u32);
        cpu::write32(table + REF * 8, GTF_PERMIT_ACCESS.into());
        round += 1;
    };
    let request = MapGrantRef {
        host_addr: hole,
        flags: GNTMAP_HOST_MAP,
        gref: GrantRef(REF as u32),
        dom: DomainId::DOM0,
        ..Default::default()
    };
    let map_it = || {
        let mut map = [request];
        grant_op(GNTTABOP_MAP_GRANT_REF, &mut map);
        map[0]
    };
    let unmap = |handle: u32| {
        let mut unmap = [UnmapGrantRef { host_addr: hole, handle, ..Default::default() }];
        grant_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap);
        unmap[0].status
    };
    let mapped = Cell::new(MapGrantRef::default());
    path_after(
        "grant-map",
        || {
            unmap(mapped.get().handle);
            grant();
        },
        || mapped.set(map_it()),
    );
    t.equal("the last map", mapped.get().status, GNTST_OKAY);
    unmap(mapped.get().handle);
    let mut status = 0;
    path_after(
        "grant-unmap",
        || {
            grant();
            mapped.set(map_it());
        },
        || status = unmap(mapped.get().handle),
    );
    t.equal("the last unmap", status, GNTST_OKAY);

    let (from, to) = (memory::page(), memory::page());
    cpu::write32(table + REF * 8 + 4, gfn(from) as u32);
    cpu::write32(table + REF * 8, GTF_PERMIT_ACCESS.into());
    for (name, len) in [("grant-copy-4096", 4096), ("grant-copy-1", 1)] {
        let mut copy = [GrantCopy {
            source: CopyPtr { frame_or_ref: REF, domid: DomainId::SELF, offset: 0, pad: 0 },
            dest: CopyPtr { frame_or_ref: gfn(to), domid: DomainId::SELF, offset: 0, pad: 0 },
            len,
            flags: GNTCOPY_SOURCE_GREF,
            status: 99,
            pad: 0,
        }];
        path_after(
            name,
            || {},
            || {
                grant_op(GNTTABOP_COPY, &mut copy);
            },
        );
        t.equal(name, copy[0].status, GNTST_OKAY);
    }
}
