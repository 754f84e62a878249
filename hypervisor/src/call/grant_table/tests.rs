//! GNTTABOP as a guest makes it.

use core::sync::atomic::Ordering;

use mm::table::PageKind;
use xen_abi::compat::{self, Compat};
use xen_abi::grant::*;
use xen_abi::handle::GuestHandle;
use xen_abi::memory::{AddToPhysmap, XENMAPSPACE_GRANT_TABLE, XENMEM_ADD_TO_PHYSMAP};
use xen_abi::numbers::{GRANT_TABLE_OP, MEMORY_OP};
use xen_abi::types::{DomainId, GrantRef};

use super::*;
use crate::fake::{self, RAM, Running, page};
use crate::grant::Refused;

const FRONT: u16 = 5;
/// Where the front sees its table, and where the back maps.
const TABLE: u64 = 0x4000;
const HOLE: u64 = 0x8000;

/// A front that sees its grant table at [`TABLE`], and a back that is the control domain.
fn pair() -> (Running, Running) {
    let system = fake::system(2048);
    let (front, back) = (fake::add_domain(system, FRONT, 16), fake::add_domain(system, 0, 32));
    let (mut front, back) = (Running::new(system, &front), Running::new(system, &back));
    let place = AddToPhysmap { domid: DomainId::SELF, size: 0, space: XENMAPSPACE_GRANT_TABLE, idx: 0, gpfn: TABLE };
    front.poke(page(15), &place);
    assert_eq!(front.call(MEMORY_OP, &[XENMEM_ADD_TO_PHYSMAP.into(), page(15)]).0, 0);
    (front, back)
}

fn grant(front: &Running, gref: u32, page: u64) {
    let entry = EntryV1 { flags: GTF_PERMIT_ACCESS, domid: DomainId(0), frame: (RAM + page) as u32 };
    front.poke((TABLE << 12) + u64::from(gref) * 8, &entry);
}

fn map_op(gref: u32, at: u64) -> MapGrantRef {
    MapGrantRef {
        host_addr: at << 12,
        flags: GNTMAP_HOST_MAP,
        gref: GrantRef(gref),
        dom: DomainId(FRONT),
        status: 77,
        ..Default::default()
    }
}

fn table_op(running: &mut Running, command: u32, at: u64, count: u64) -> (i64, usize) {
    running.call(GRANT_TABLE_OP, &[command.into(), at, count])
}

const MAP: usize = size_of::<MapGrantRef>();
const UNMAP: usize = size_of::<UnmapGrantRef>();

#[test]
fn each_element_of_a_batch_gets_a_status_of_its_own() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    let at = page(0);
    let mut ops = [map_op(8, HOLE), map_op(9, HOLE + 1), map_op(8, HOLE + 2), map_op(8, HOLE + 3)];
    ops[2].dom = DomainId(33);
    back.poke(at, &ops);
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 4), (0, 0));
    let ops: [MapGrantRef; 4] = back.peek(at);
    assert_eq!(ops.map(|op| op.status), [0, GNTST_GENERAL_ERROR, GNTST_BAD_DOMAIN, 0]);
    assert_ne!(ops[0].handle, ops[3].handle);
    let found = back.domain.p2m.lookup(mm::Gfn(HOLE)).unwrap();
    assert_eq!((found.kind, ops[0].dev_bus_addr), (PageKind::GrantRw, found.mfn.phys().0));
    // What the guest asked is left as it was.
    assert_eq!((ops[3].host_addr, ops[3].gref), ((HOLE + 3) << 12, GrantRef(8)));
}

#[test]
fn who_grants_is_to_be_named_and_what_kind_of_mapping_it_is() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    let at = page(0);
    let ops = [
        MapGrantRef { dom: DomainId::SELF, ..map_op(8, HOLE) },
        MapGrantRef { flags: 0, ..map_op(8, HOLE) },
        MapGrantRef { flags: GNTMAP_DEVICE_MAP, ..map_op(8, HOLE) },
    ];
    back.poke(at, &ops);
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 3), (0, 0));
    let statuses = back.peek::<[MapGrantRef; 3]>(at).map(|op| op.status);
    assert_eq!(statuses, [GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF, GNTST_GENERAL_ERROR]);
}

#[test]
fn many_mappings_end_with_few_flushes() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    let at = page(0);
    for index in 0..64 {
        back.poke(at + (MAP as u64) * index, &map_op(8, HOLE + index));
    }
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 64).0, 0);
    assert_eq!(back.system.machine.flushes.load(Ordering::Relaxed), 0, "what was absent needs no flush");
    for index in 0..64 {
        let mapped: MapGrantRef = back.peek(at + (MAP as u64) * index);
        assert_eq!(mapped.status, 0);
        let op = UnmapGrantRef { host_addr: mapped.host_addr, handle: mapped.handle, status: 77, ..Default::default() };
        back.poke(page(8) + (UNMAP as u64) * index, &op);
    }
    assert_eq!(table_op(&mut back, GNTTABOP_UNMAP_GRANT_REF, page(8), 64).0, 0);
    assert_eq!(back.system.machine.flushes.load(Ordering::Relaxed), 2);
    let statuses = (0..64).map(|index| back.peek::<UnmapGrantRef>(page(8) + (UNMAP as u64) * index).status);
    assert!(statuses.into_iter().all(|status| status == 0));
    assert!(back.domain.grants.maptrack().is_empty());
    let entry: EntryV1 = front.peek((TABLE << 12) + 64);
    assert_eq!(entry.flags, GTF_PERMIT_ACCESS);
}

#[test]
fn an_unmapping_that_faults_half_way_has_flushed_and_released_what_it_unmapped() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    let at = page(0);
    back.poke(at, &map_op(8, HOLE));
    table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 1);
    let handle = back.peek::<MapGrantRef>(at).handle;
    // The second element lies beyond the end of memory.
    let last = page(32) - UNMAP as u64;
    back.poke(last, &UnmapGrantRef { host_addr: HOLE << 12, handle, ..Default::default() });
    let result = table_op(&mut back, GNTTABOP_UNMAP_GRANT_REF, last, 2).0;
    assert_eq!(result, Errno::EFAULT.as_return());
    assert_eq!(back.system.machine.flushes.load(Ordering::Relaxed), 1);
    let mfn = front.domain.p2m.lookup(mm::Gfn(RAM)).unwrap().mfn;
    assert_eq!(front.system.memory.state(mfn).count(), 0);
}

#[test]
fn a_long_batch_lets_others_run_and_goes_on_where_it_was() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    front.poke(page(0), &[0x5au8; 4096]);
    let op = GrantCopy {
        source: CopyPtr { frame_or_ref: 8, domid: DomainId(FRONT), offset: 0, pad: 0 },
        dest: CopyPtr { frame_or_ref: RAM + 31, domid: DomainId::SELF, offset: 0, pad: 0 },
        len: 1,
        flags: GNTCOPY_SOURCE_GREF,
        status: 77,
        pad: 0,
    };
    let count = u64::from(TURN) * 2 + 3;
    let size = size_of::<GrantCopy>() as u64;
    for index in 0..count {
        back.poke(page(0) + size * index, &GrantCopy { dest: CopyPtr { offset: index as u16, ..op.dest }, ..op });
    }
    assert_eq!(table_op(&mut back, GNTTABOP_COPY, page(0), count), (0, 2));
    assert!((0..count).all(|index| back.peek::<GrantCopy>(page(0) + size * index).status == 0));
    let bytes: [u8; 300] = back.peek(page(31));
    assert!(bytes[..count as usize].iter().all(|byte| *byte == 0x5a) && bytes[count as usize] == 0);
}

#[test]
fn a_32_bit_caller_copies_with_its_own_layout() {
    let (front, mut back) = pair();
    grant(&front, 8, 0);
    front.poke(page(0), &[0x5au8; 16]);
    let op = GrantCopy {
        source: CopyPtr { frame_or_ref: 8, domid: DomainId(FRONT), offset: 0, pad: 0 },
        dest: CopyPtr { frame_or_ref: RAM + 31, domid: DomainId::SELF, offset: 8, pad: 0 },
        len: 16,
        flags: GNTCOPY_SOURCE_GREF,
        status: 77,
        pad: 0,
    };
    back.context.width = Width::Bits32;
    back.poke(page(0), &[op.narrow(), GrantCopy { len: 5000, ..op }.narrow()]);
    assert_eq!(table_op(&mut back, GNTTABOP_COPY, page(0), 2).0, 0);
    let ops: [compat::GrantCopy; 2] = back.peek(page(0));
    assert_eq!(ops.map(|op| op.status), [0, GNTST_BAD_COPY_ARG]);
    assert_eq!(back.peek::<[u8; 25]>(page(31))[7..], [&[0][..], &[0x5a; 16], &[0]].concat());
}

#[test]
fn counts_that_make_no_sense_are_refused_and_nothing_is_nothing() {
    let (_, mut back) = pair();
    let at = page(0);
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 0), (0, 0));
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 0x8000_0000).0, Errno::EINVAL.as_return());
    for command in [GNTTABOP_QUERY_SIZE, GNTTABOP_SETUP_TABLE, GNTTABOP_SET_VERSION, GNTTABOP_GET_VERSION] {
        assert_eq!(table_op(&mut back, command, at, 2).0, Errno::EINVAL.as_return());
    }
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, 0xdead_0000, 1).0, Errno::EFAULT.as_return());
    assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, u64::MAX - 8, 1).0, Errno::EFAULT.as_return());
}

#[test]
fn operations_for_others_or_for_nobody_are_refused() {
    let (_, mut back) = pair();
    let at = page(0);
    for command in [GNTTABOP_DUMP_TABLE, GNTTABOP_GET_STATUS_FRAMES, GNTTABOP_CACHE_FLUSH, 13, u32::MAX] {
        assert_eq!(table_op(&mut back, command, at, 1).0, Errno::ENOSYS.as_return());
    }
    assert_eq!(table_op(&mut back, GNTTABOP_TRANSFER, at, 1).0, Errno::EOPNOTSUPP.as_return());
}

#[test]
fn a_table_says_how_large_it_is_and_may_be() {
    let (mut front, mut back) = pair();
    let ask = |running: &mut Running, dom| {
        let at = page(1);
        running.poke(at, &QuerySize { dom, status: 77, ..Default::default() });
        assert_eq!(table_op(running, GNTTABOP_QUERY_SIZE, at, 1).0, 0);
        let op: QuerySize = running.peek(at);
        (op.status, op.nr_frames, op.max_nr_frames)
    };
    assert_eq!(ask(&mut front, DomainId::SELF), (0, 1, 64));
    assert_eq!(ask(&mut back, DomainId(FRONT)), (0, 1, 64));
    assert_eq!(ask(&mut back, DomainId(99)).0, GNTST_BAD_DOMAIN);
    assert_eq!(ask(&mut front, DomainId(0)).0, GNTST_PERMISSION_DENIED);
}

#[test]
fn setting_a_table_up_grows_it_and_lists_where_it_is_seen() {
    let (mut front, _) = pair();
    let (at, list) = (page(1), page(2));
    let op = SetupTable {
        dom: DomainId::SELF,
        nr_frames: 3,
        status: 77,
        frame_list: GuestHandle::new(list),
        ..Default::default()
    };
    front.poke(at, &op);
    assert_eq!(table_op(&mut front, GNTTABOP_SETUP_TABLE, at, 1).0, 0);
    assert_eq!(front.peek::<SetupTable>(at).status, 0);
    assert_eq!(front.peek::<[u64; 4]>(list), [TABLE, u64::MAX, u64::MAX, 0]);
    front.poke(at, &SetupTable { nr_frames: 65, ..op });
    assert_eq!(table_op(&mut front, GNTTABOP_SETUP_TABLE, at, 1).0, 0);
    assert_eq!(front.peek::<SetupTable>(at).status, Refused::General as i16);
}

#[test]
fn versions_are_told_and_changed() {
    let (mut front, mut back) = pair();
    let at = page(1);
    front.poke(at, &SetVersion { version: 2 });
    assert_eq!(table_op(&mut front, GNTTABOP_SET_VERSION, at, 1).0, 0);
    back.poke(page(1), &GetVersion { dom: DomainId(FRONT), pad: 0, version: 0 });
    assert_eq!(table_op(&mut back, GNTTABOP_GET_VERSION, page(1), 1).0, 0);
    assert_eq!(back.peek::<GetVersion>(page(1)).version, 2);
    front.poke(at, &SetVersion { version: 7 });
    assert_eq!(table_op(&mut front, GNTTABOP_SET_VERSION, at, 1).0, Errno::EINVAL.as_return());
    assert_eq!(front.peek::<SetVersion>(at).version, 2, "the caller learns what it is");
    front.poke(at, &GetVersion { dom: DomainId(0), pad: 0, version: 0 });
    assert_eq!(table_op(&mut front, GNTTABOP_GET_VERSION, at, 1).0, Errno::EPERM.as_return());
}

#[test]
fn the_table_appears_where_it_was_last_put() {
    let (mut front, _) = pair();
    let mfn = front.domain.p2m.lookup(mm::Gfn(TABLE)).unwrap().mfn;
    let place =
        AddToPhysmap { domid: DomainId::SELF, size: 0, space: XENMAPSPACE_GRANT_TABLE, idx: 0, gpfn: TABLE + 9 };
    front.poke(page(15), &place);
    assert_eq!(front.call(MEMORY_OP, &[XENMEM_ADD_TO_PHYSMAP.into(), page(15)]).0, 0);
    assert_eq!(front.domain.p2m.lookup(mm::Gfn(TABLE)), None);
    assert_eq!(front.domain.p2m.lookup(mm::Gfn(TABLE + 9)).unwrap().mfn, mfn);
}

#[test]
fn a_page_that_cannot_be_populated_yet_is_to_be_asked_for_again_and_memory_for_it_is_found_meanwhile() {
    let (front, mut back) = pair();
    let _ = front.domain.p2m.mark_on_demand(mm::Gfn(512), 4).unwrap();
    let at = page(0);
    for page in 0..4u32 {
        let entry = EntryV1 { flags: GTF_PERMIT_ACCESS, domid: DomainId(0), frame: 512 + page };
        front.poke((TABLE << 12) + 64 + u64::from(page) * 8, &entry);
    }
    // Two pages of zeroes are all that the front has.
    (2..16).for_each(|index| front.poke(page(index), &1u8));
    let mut map = || {
        back.poke(at, &[0, 1, 2, 3].map(|index| map_op(8 + index, HOLE + u64::from(index))));
        assert_eq!(table_op(&mut back, GNTTABOP_MAP_GRANT_REF, at, 4).0, 0);
        back.peek::<[MapGrantRef; 4]>(at).map(|op| op.status)
    };
    // What was found for the first is there for those behind it.
    assert_eq!(map(), [GNTST_EAGAIN, 0, 0, GNTST_EAGAIN]);
    assert_eq!(front.domain.p2m.pod(), mm::Pod { entries: 4, cache: 0 });
    for _ in 0..5 {
        let statuses = map();
        assert_eq!((statuses[0], statuses[3]), (GNTST_EAGAIN, GNTST_EAGAIN));
    }
    let copy = GrantCopy {
        source: CopyPtr { frame_or_ref: 8, domid: DomainId(FRONT), ..Default::default() },
        dest: CopyPtr { frame_or_ref: RAM + 9, domid: DomainId::SELF, ..Default::default() },
        len: 8,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    back.poke(at, &copy);
    assert_eq!(table_op(&mut back, GNTTABOP_COPY, at, 1).0, 0);
    assert_eq!(back.peek::<GrantCopy>(at).status, GNTST_EAGAIN);
    assert_eq!(front.domain.shutdown_reason(), None);
}
