//! Grants of the guest's own pages to itself: mapped, written, copied, taken back.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU16, Ordering};
use tests_qemu::hypercall::grant_op;
use tests_qemu::memory::{self, add_to_physmap, gfn, reserve};
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, say};
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::handle::GuestHandle;
use xen_abi::memory::{XENMAPSPACE_GRANT_TABLE, XENMEM_DECREASE_RESERVATION};
use xen_abi::types::{DomainId, GrantRef};

tests_qemu::guest!(main);

const REF: u32 = 8;

/// The guest's grant table (version 1), and an empty place to map grants at.
struct Table {
    entries: u64,
    hole: u64,
}

impl Table {
    fn grant(&self, gref: u32, flags: u16, domid: u16, frame: u64) {
        cpu::write32(self.entries + u64::from(gref) * 8 + 4, frame as u32);
        cpu::write32(self.entries + u64::from(gref) * 8, u32::from(domid) << 16 | u32::from(flags));
    }

    fn flags(&self, gref: u32) -> u16 {
        // SAFETY: a word of the shared table, touched by atomics.
        unsafe { AtomicU16::from_ptr((self.entries + u64::from(gref) * 8) as *mut u16) }.load(Ordering::SeqCst)
    }

    fn map(&self, gref: u32, flags: u32) -> MapGrantRef {
        let mut map = [MapGrantRef {
            host_addr: self.hole,
            flags,
            gref: GrantRef(gref),
            dom: DomainId::DOM0,
            status: 99,
            ..Default::default()
        }];
        assert!(grant_op(GNTTABOP_MAP_GRANT_REF, &mut map) == 0, "the batch itself is fine");
        map[0]
    }

    fn unmap(&self, handle: u32) -> i16 {
        let mut unmap = [UnmapGrantRef { host_addr: self.hole, handle, status: 99, ..Default::default() }];
        assert!(grant_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap) == 0, "the batch itself is fine");
        unmap[0].status
    }
}

fn main(t: &mut Tests) {
    let mut size = [QuerySize { dom: DomainId::SELF, ..Default::default() }];
    t.returns("asking for the table's size", grant_op(GNTTABOP_QUERY_SIZE, &mut size), 0);
    say!("{} frames of {}", size[0].nr_frames, size[0].max_nr_frames);
    t.equal("its status", size[0].status, GNTST_OKAY);
    t.within("its limit", size[0].max_nr_frames.into(), 32, 1024);
    let mut version = [SetVersion { version: 1 }];
    t.returns("version 1", grant_op(GNTTABOP_SET_VERSION, &mut version), 0);
    let mut version = [GetVersion { dom: DomainId::SELF, ..Default::default() }];
    t.returns("asking for the version", grant_op(GNTTABOP_GET_VERSION, &mut version), 0);
    t.equal("it is 1", version[0].version, 1);

    let table = Table { entries: memory::page(), hole: memory::spare_ram() };
    t.returns("placing the table", add_to_physmap(XENMAPSPACE_GRANT_TABLE, 0, gfn(table.entries)), 0);
    let hole = [gfn(table.hole)];
    t.returns("making room for mappings", reserve(XENMEM_DECREASE_RESERVATION, &hole, 0), 1);
    mapping(t, &table);
    refusals(t, &table);
    copying(t, &table);
    listing(t, &table);
}

/// A table's frames are listed where they were placed. A translated domain's status frames are not listed: it places them itself.
fn listing(t: &mut Tests, table: &Table) {
    let list = memory::page();
    let setup = |nr_frames| {
        cpu::write64(list, 7);
        cpu::write64(list + 8, 7);
        let frame_list = GuestHandle::new(list);
        let mut op = [SetupTable { dom: DomainId::SELF, nr_frames, frame_list, status: 99, ..Default::default() }];
        let result = grant_op(GNTTABOP_SETUP_TABLE, &mut op);
        (result, op[0].status, cpu::read64(list), cpu::read64(list + 8))
    };
    t.equal("one frame is listed", setup(1), (0, GNTST_OKAY, gfn(table.entries), 7));
    t.equal("one that is nowhere", setup(2), (0, GNTST_OKAY, gfn(table.entries), u64::MAX));
    t.equal("too many frames", setup(100_000), (0, GNTST_GENERAL_ERROR, 7, 7));
    let mut version = [SetVersion { version: 2 }];
    t.returns("version 2", grant_op(GNTTABOP_SET_VERSION, &mut version), 0);
    let op = GetStatusFrames { nr_frames: 1, dom: DomainId::SELF, status: 99, frame_list: GuestHandle::new(list) };
    t.returns("status frames", grant_op(GNTTABOP_GET_STATUS_FRAMES, &mut [op]), Errno::ENOSYS.as_return());
}

/// Each page is mapped once: Xen takes a page that its owner maps by a grant away from where it was.
fn mapping(t: &mut Tests, table: &Table) {
    let page = memory::page();
    cpu::write64(page, 0x1111);
    table.grant(REF, GTF_PERMIT_ACCESS, 0, gfn(page));
    let map = table.map(REF, GNTMAP_HOST_MAP);
    t.equal("mapping", map.status, GNTST_OKAY);
    t.equal("the page's content is there", cpu::read64(table.hole), 0x1111);
    cpu::write64(table.hole + 8, 0x2222);
    t.equal("it can be written", cpu::read64(table.hole + 8), 0x2222);
    t.equal("the entry is in use", table.flags(REF), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    t.equal("unmapping", table.unmap(map.handle), GNTST_OKAY);
    t.equal("the entry is free", table.flags(REF), GTF_PERMIT_ACCESS);
    t.equal("the place is empty", cpu::read64(table.hole), u64::MAX);
    t.equal("unmapping again", table.unmap(map.handle), GNTST_BAD_HANDLE);

    let page = memory::page();
    cpu::write64(page, 0x1111);
    table.grant(REF, GTF_PERMIT_ACCESS | GTF_READONLY, 0, gfn(page));
    let map = table.map(REF, GNTMAP_HOST_MAP | GNTMAP_READONLY);
    t.equal("mapping to read", map.status, GNTST_OKAY);
    t.equal("it reads", cpu::read64(table.hole), 0x1111);
    t.equal("the entry is being read", table.flags(REF), GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING);
    t.equal("unmapping what is read", table.unmap(map.handle), GNTST_OKAY);

    for index in 1..100 {
        table.grant(REF, GTF_PERMIT_ACCESS, 0, gfn(table.hole) + index);
        let map = table.map(REF, GNTMAP_HOST_MAP);
        if map.status != GNTST_OKAY || table.unmap(map.handle) != GNTST_OKAY {
            t.check("a hundred times", false);
            return;
        }
    }
    t.check("a hundred times", true);
}

fn refusals(t: &mut Tests, table: &Table) {
    let page = memory::page();
    t.equal("an entry that is not set", table.map(REF + 1, GNTMAP_HOST_MAP).status, GNTST_GENERAL_ERROR);
    t.equal("an entry beyond the table", table.map(1 << 20, GNTMAP_HOST_MAP).status, GNTST_BAD_GNTREF);
    table.grant(REF + 1, GTF_PERMIT_ACCESS, 5, gfn(page));
    t.equal("an entry for another domain", table.map(REF + 1, GNTMAP_HOST_MAP).status, GNTST_GENERAL_ERROR);
    table.grant(REF + 1, GTF_PERMIT_ACCESS | GTF_READONLY, 0, gfn(page));
    t.equal("writing what may be read", table.map(REF + 1, GNTMAP_HOST_MAP).status, GNTST_GENERAL_ERROR);
    table.grant(REF + 1, GTF_PERMIT_ACCESS, 0, 0xffff_ff00);
    t.equal("an entry of no frame", table.map(REF + 1, GNTMAP_HOST_MAP).status, GNTST_BAD_PAGE);
    t.equal("and it is free again", table.flags(REF + 1), GTF_PERMIT_ACCESS);
    t.equal("a mapping of no kind", table.map(REF, 0).status, GNTST_BAD_GNTREF);
    let mut by_self = [MapGrantRef { dom: DomainId::SELF, flags: GNTMAP_HOST_MAP, ..Default::default() }];
    t.returns("of the caller as such", grant_op(GNTTABOP_MAP_GRANT_REF, &mut by_self), 0);
    t.equal("is of no domain", by_self[0].status, GNTST_BAD_DOMAIN);
    let mut elsewhere = [MapGrantRef { dom: DomainId(1234), flags: GNTMAP_HOST_MAP, ..Default::default() }];
    t.returns("of a domain that is not there", grant_op(GNTTABOP_MAP_GRANT_REF, &mut elsewhere), 0);
    t.equal("its status is so", elsewhere[0].status, GNTST_BAD_DOMAIN);
    t.equal("unmapping what was never mapped", table.unmap(77), GNTST_BAD_HANDLE);
    t.returns("an operation that does not exist", grant_op(77, &mut [0u64]), -38);
    t.returns("no element at all", grant_op::<MapGrantRef>(GNTTABOP_MAP_GRANT_REF, &mut []), 0);
}

fn copying(t: &mut Tests, table: &Table) {
    let (from, to) = (memory::page(), memory::page());
    for word in 0..512 {
        cpu::write64(from + word * 8, word * 0x0101);
    }
    table.grant(REF + 2, GTF_PERMIT_ACCESS | GTF_READONLY, 0, gfn(from));
    let side = |frame_or_ref, offset| CopyPtr { frame_or_ref, domid: DomainId::SELF, offset, pad: 0 };
    let copy = |source: CopyPtr, dest: CopyPtr, len: u16, flags: u16| {
        let mut batch = [GrantCopy { source, dest, len, flags, status: 99, pad: 0 }];
        (grant_op(GNTTABOP_COPY, &mut batch), batch[0].status)
    };
    let gref = side((REF + 2).into(), 0);
    t.equal("copying a page", copy(gref, side(gfn(to), 0), 4096, GNTCOPY_SOURCE_GREF), (0, GNTST_OKAY));
    t.check("it is the same", (0..512).all(|word| cpu::read64(to + word * 8) == word * 0x0101));
    t.equal("the entry is free", table.flags(REF + 2), GTF_PERMIT_ACCESS | GTF_READONLY);
    let piece = copy(CopyPtr { offset: 9, ..gref }, side(gfn(to), 100), 3, GNTCOPY_SOURCE_GREF);
    t.equal("copying three bytes", piece, (0, GNTST_OKAY));
    t.equal("they are there", cpu::read32(to + 100) & 0xff_ffff, cpu::read32(from + 9) & 0xff_ffff);
    let own = copy(side(gfn(from), 0), side(gfn(to), 0), 8, 0);
    t.equal("between two own frames", own, (0, GNTST_OKAY));
    let beyond = copy(CopyPtr { offset: 4090, ..gref }, side(gfn(to), 0), 8, GNTCOPY_SOURCE_GREF);
    t.equal("across the end of a page", beyond, (0, GNTST_BAD_COPY_ARG));
    let written = copy(side(gfn(to), 0), gref, 8, GNTCOPY_DEST_GREF);
    t.equal("to what may be read", written, (0, GNTST_GENERAL_ERROR));
    let none = copy(side(1 << 40, 0), side(gfn(to), 0), 8, 0);
    t.equal("from no frame", none, (0, GNTST_BAD_PAGE));
}
