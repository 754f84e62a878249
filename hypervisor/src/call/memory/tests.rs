//! XENMEM as a guest makes it, with both widths of caller.

use xen_abi::handle::GuestHandle;
use xen_abi::numbers::MEMORY_OP;

use super::*;
use crate::fake::{self, DEVICE, RAM, Running, Wanted, page};

const WIDTHS: [Width; 2] = [Width::Bits64, Width::Bits32];
/// Where nothing is.
const HOLE: u64 = 0x8000;
const GUEST: u16 = 5;

fn dom0() -> Running {
    let system = fake::system(4096);
    Running::new(system, &fake::add(system, Wanted { max_pages: 2048, ..Wanted::default() }))
}

/// An ordinary domain beside Dom0.
fn pair() -> (Running, Running) {
    let dom0 = dom0();
    let guest = fake::add_domain(dom0.system, GUEST, 16);
    let guest = Running::new(dom0.system, &guest);
    (dom0, guest)
}

fn no(errno: Errno) -> i64 {
    errno.as_return()
}

/// Puts a list of frame numbers into page 1, as the caller's `unsigned long`s.
fn list(running: &Running, numbers: &[u64]) -> GuestHandle<u64> {
    for (index, number) in numbers.iter().enumerate() {
        match running.context.width {
            Width::Bits64 => running.poke(page(1) + index as u64 * 8, number),
            Width::Bits32 => running.poke(page(1) + index as u64 * 4, &(*number as u32)),
        }
    }
    GuestHandle::new(page(1))
}

fn reservation(running: &Running, gfns: &[u64], order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start: list(running, gfns),
        nr_extents: gfns.len() as u64,
        extent_order: order,
        domid: DomainId::SELF,
        ..Default::default()
    }
}

fn populate(running: &mut Running, gfns: &[u64], order: u32) -> i64 {
    let mut argument = reservation(running, gfns, order);
    running.op_arg(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument)
}

fn decrease(running: &mut Running, gfns: &[u64], order: u32) -> i64 {
    let mut argument = reservation(running, gfns, order);
    running.op_arg(MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut argument)
}

fn held(running: &mut Running) -> i64 {
    running.op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId::SELF })
}

fn add(running: &mut Running, space: u32, idx: u64, gpfn: u64) -> i64 {
    let mut argument = AddToPhysmap { domid: DomainId::SELF, size: 0, space, idx, gpfn };
    running.op_arg(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut argument)
}

fn remove_page(running: &mut Running, gpfn: u64) -> i64 {
    let mut argument = RemoveFromPhysmap { domid: DomainId::SELF, pad: [0; 3], gpfn };
    running.op_arg(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut argument)
}

/// Maps `idxs` at [`HOLE`] and on; the result and the status of each.
fn batch(running: &mut Running, space: u32, foreign: DomainId, idxs: &[u64]) -> (i64, Vec<i32>) {
    let (idx_list, gfn_list, errs) = (page(1), page(2), page(3));
    let width = running.context.width;
    for (index, idx) in (0u64..).zip(idxs) {
        let gfn = HOLE + index;
        match width {
            Width::Bits64 => {
                running.poke(idx_list + index * 8, idx);
                running.poke(gfn_list + index * 8, &gfn);
            }
            Width::Bits32 => {
                running.poke(idx_list + index * 4, &(*idx as u32));
                running.poke(gfn_list + index * 4, &(gfn as u32));
            }
        }
        running.poke(errs + index * 4, &77i32);
    }
    let mut argument = AddToPhysmapBatch {
        domid: DomainId::SELF,
        space: space as u16,
        size: idxs.len() as u16,
        foreign_domid: foreign,
        idxs: GuestHandle::new(idx_list),
        gpfns: GuestHandle::new(gfn_list),
        errs: GuestHandle::new(errs),
    };
    let result = running.op_arg(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP_BATCH, &mut argument);
    (result, (0..idxs.len() as u64).map(|index| running.peek(errs + index * 4)).collect())
}

fn mapped(running: &Running, gfn: u64) -> Option<(Mfn, PageKind)> {
    running.domain.p2m.lookup(Gfn(gfn)).map(|mapping| (mapping.mfn, mapping.kind))
}

// ---- reservations ----

#[test]
fn pages_are_given_back_and_had_again() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        let free = dom0.system.memory.free_frames();
        let pages = [RAM + 9, RAM + 10, RAM + 12];
        assert_eq!(decrease(&mut dom0, &pages, 0), 3);
        assert_eq!((held(&mut dom0), dom0.system.memory.free_frames()), (13, free + 3));
        assert_eq!(dom0.system.machine.flushes.load(Ordering::Relaxed), 1, "one flush for all");
        assert_eq!(decrease(&mut dom0, &pages, 0), 0, "they are gone");
        assert_eq!(populate(&mut dom0, &pages, 0), 3);
        assert_eq!((held(&mut dom0), dom0.system.memory.free_frames()), (16, free));
        assert_eq!(dom0.peek::<[u64; 2]>(page(9)), [0, 0], "it is clean memory");
    }
}

#[test]
fn a_batch_ends_at_the_first_extent_that_cannot_be() {
    let mut dom0 = dom0();
    assert_eq!(decrease(&mut dom0, &[RAM + 9, RAM + 10, HOLE, RAM + 11], 0), 2);
    assert_eq!(decrease(&mut dom0, &[DEVICE], 0), 0);
    assert_eq!(decrease(&mut dom0, &[1 << 60], 0), 0);
    assert_eq!(populate(&mut dom0, &[RAM + 9, 1 << 60], 0), 1);
    assert_eq!(held(&mut dom0), 15);
    // The list itself ends where the guest's memory does.
    let mut argument = MemoryReservation { extent_start: GuestHandle::new(page(16) - 8), ..reservation(&dom0, &[], 0) };
    dom0.poke(page(16) - 8, &(RAM + 10));
    argument.nr_extents = 2;
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument), 1);
    argument.extent_start = GuestHandle::new(u64::MAX - 7);
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument), 0);
}

#[test]
fn memory_never_comes_over_what_is_there() {
    let mut dom0 = dom0();
    let before = mapped(&dom0, RAM + 9);
    let free = dom0.system.memory.free_frames();
    assert_eq!(populate(&mut dom0, &[RAM + 9], 0), 0);
    assert_eq!(populate(&mut dom0, &[DEVICE], 0), 0);
    // 2 MiB around the guest's memory.
    assert_eq!(populate(&mut dom0, &[0], 9), 0);
    assert_eq!((mapped(&dom0, RAM + 9), held(&mut dom0)), (before, 16));
    assert!(dom0.system.memory.free_frames() + 4 >= free, "but for page tables, nothing is used");
}

#[test]
fn a_domain_gets_no_more_than_it_may_have() {
    let (_, mut guest) = pair();
    assert_eq!(populate(&mut guest, &[HOLE], 0), 0);
    assert_eq!(decrease(&mut guest, &[RAM + 9], 0), 1);
    assert_eq!(populate(&mut guest, &[HOLE, HOLE + 1], 0), 1);
    let mut ask = MemoryDomain { domid: DomainId::SELF };
    assert_eq!(guest.op(MEMORY_OP, XENMEM_MAXIMUM_RESERVATION, &mut ask), 16);
    guest.domain.max_pages.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(guest.op(MEMORY_OP, XENMEM_MAXIMUM_RESERVATION, &mut ask), u32::MAX.into());
    assert_eq!(guest.op(MEMORY_OP, XENMEM_MAXIMUM_GPFN, &mut ask), HOLE as i64);
}

#[test]
fn large_extents_come_and_go_whole() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        let free = dom0.system.memory.free_frames();
        assert_eq!(populate(&mut dom0, &[HOLE, HOLE + 512], 9), 2);
        assert_eq!(held(&mut dom0), 16 + 1024);
        let size = dom0.domain.p2m.lookup(Gfn(HOLE + 700)).unwrap().size;
        assert_eq!(size, mm::PageSize::Size2M);
        assert_eq!(decrease(&mut dom0, &[HOLE + 512], 9), 1);
        assert_eq!(decrease(&mut dom0, &[HOLE], 9), 1);
        assert_eq!(held(&mut dom0), 16);
        assert!(dom0.system.memory.free_frames() + 4 >= free);
        // One that is not aligned is made of small pages.
        assert_eq!(populate(&mut dom0, &[HOLE + 7], 9), 1);
        assert_eq!(mapped(&dom0, HOLE + 7 + 511).map(|(_, kind)| kind), Some(PageKind::Ram));
        assert_eq!(decrease(&mut dom0, &[HOLE + 7], 9), 1);
        assert_eq!(held(&mut dom0), 16);
    }
}

#[test]
fn an_extent_with_a_hole_loses_the_pages_before_the_hole() {
    let mut dom0 = dom0();
    assert_eq!(populate(&mut dom0, &[HOLE], 9), 1);
    assert_eq!(decrease(&mut dom0, &[HOLE + 300], 0), 1);
    // As Xen does it, though the extent does not count as done.
    assert_eq!(decrease(&mut dom0, &[HOLE], 9), 0);
    assert_eq!(held(&mut dom0), 16 + 211);
    assert!(mapped(&dom0, HOLE + 299).is_none() && mapped(&dom0, HOLE + 301).is_some());
    assert_eq!(populate(&mut dom0, &[HOLE], 9), 0, "the rest is in the way");
    assert_eq!(decrease(&mut dom0, &(HOLE + 301..HOLE + 512).collect::<Vec<_>>(), 0), 211);
    assert_eq!(populate(&mut dom0, &[HOLE], 9), 1, "an empty table is not");
}

#[test]
fn who_may_ask_for_how_large_an_extent() {
    let (mut dom0, mut guest) = pair();
    assert_eq!(decrease(&mut guest, &[RAM], 10), 0);
    assert_eq!(decrease(&mut dom0, &[RAM], 19), 0);
    assert_eq!(populate(&mut dom0, &[HOLE], 18), 0, "there is no memory for it");
    assert_eq!(populate(&mut guest, &[HOLE], u32::MAX), 0);
}

#[test]
fn a_long_batch_lets_others_run_and_goes_on_where_it_was() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        let gfns: Vec<u64> = (HOLE..HOLE + BATCH * 2 - 10).collect();
        for operation in [XENMEM_POPULATE_PHYSMAP, XENMEM_DECREASE_RESERVATION] {
            let argument = reservation(&dom0, &gfns, 0);
            match width {
                Width::Bits64 => dom0.poke(page(0), &argument),
                Width::Bits32 => dom0.poke(page(0), &xen_abi::compat::Compat::narrow(&argument)),
            }
            let (result, times) = dom0.call(MEMORY_OP, &[operation.into(), page(0)]);
            assert_eq!((result, times), (gfns.len() as i64, 1));
        }
        assert_eq!(held(&mut dom0), 16);
    }
}

#[test]
fn continuations_that_nobody_began_do_nothing() {
    let mut dom0 = dom0();
    let argument = reservation(&dom0, &[RAM + 9], 0);
    dom0.poke(page(0), &argument);
    let start = |start: u64| u64::from(XENMEM_DECREASE_RESERVATION) | start << MEMOP_EXTENT_SHIFT;
    assert_eq!(dom0.call(MEMORY_OP, &[start(1), page(0)]).0, 1);
    assert_eq!(dom0.call(MEMORY_OP, &[start(99), page(0)]).0, 99);
    dom0.poke(page(0), &MemoryReservation { nr_extents: 1 << 58, ..argument });
    assert_eq!(dom0.call(MEMORY_OP, &[start(3), page(0)]).0, 3);
    assert_eq!(held(&mut dom0), 16);
}

#[test]
fn memory_without_a_place_and_memory_on_demand_of_ones_own_are_not_to_be_had() {
    let mut dom0 = dom0();
    let mut argument = reservation(&dom0, &[0], 0);
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_INCREASE_RESERVATION, &mut argument), 0);
    argument = MemoryReservation { mem_flags: XENMEMF_POPULATE_ON_DEMAND, ..reservation(&dom0, &[HOLE], 0) };
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument), 0);
}

#[test]
fn the_toolstack_gives_others_memory_and_nobody_else_does() {
    let (mut dom0, mut guest) = pair();
    guest.domain.max_pages.store(20, Ordering::Relaxed);
    let mut theirs = MemoryReservation { domid: DomainId(GUEST), ..reservation(&dom0, &[HOLE], 0) };
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut theirs), 1);
    assert_eq!(mapped(&guest, HOLE).map(|(_, kind)| kind), Some(PageKind::Ram));
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId(GUEST) }), 17);
    let mut nobodys = MemoryReservation { domid: DomainId(99), ..theirs };
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut nobodys), 0);
    let mut dom0s = MemoryReservation { domid: DomainId(0), ..reservation(&guest, &[RAM], 0) };
    assert_eq!(guest.op(MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut dom0s), 0);
    let mut ask = MemoryDomain { domid: DomainId(0) };
    assert_eq!(guest.op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut ask), no(Errno::EPERM));
    assert_eq!(
        dom0.op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId(99) }),
        no(Errno::ESRCH)
    );
}

// ---- placing ----

#[test]
fn the_shared_page_is_seen_in_one_place_and_what_it_covers_goes() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        let mfn = dom0.domain.shared_info.mfn();
        let free = dom0.system.memory.free_frames();
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, RAM + 9), 0);
        assert_eq!(mapped(&dom0, RAM + 9), Some((mfn, PageKind::Ram)));
        assert_eq!((held(&mut dom0), dom0.system.memory.free_frames()), (15, free + 1));
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, RAM + 9), 0, "again at the same place");
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, RAM + 10), 0);
        assert_eq!((mapped(&dom0, RAM + 9), mapped(&dom0, RAM + 10)), (None, Some((mfn, PageKind::Ram))));
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 1, RAM + 11), no(Errno::EINVAL));
        // Where it cannot be, it stays where it was.
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, DEVICE), no(Errno::EPERM));
        assert_eq!(mapped(&dom0, RAM + 10), Some((mfn, PageKind::Ram)));
        assert_eq!(remove_page(&mut dom0, RAM + 10), 0);
        assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, RAM + 9), 0);
    }
}

#[test]
fn a_page_moves_and_leaves_a_hole() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        dom0.poke(page(9), &0xabcdu64);
        let (mfn, free) = (mapped(&dom0, RAM + 9).unwrap().0, dom0.system.memory.free_frames());
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, RAM + 10), 0);
        assert_eq!((mapped(&dom0, RAM + 9), mapped(&dom0, RAM + 10)), (None, Some((mfn, PageKind::Ram))));
        assert_eq!((held(&mut dom0), dom0.system.memory.free_frames()), (15, free + 1), "the covered page is free");
        assert_eq!(dom0.peek::<u64>(page(10)), 0xabcd);
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 10, RAM + 10), 0, "onto itself");
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, RAM + 11), no(Errno::EACCES));
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, RAM + 9), no(Errno::EACCES));
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, DEVICE, RAM + 9), no(Errno::EACCES));
        assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 10, DEVICE), no(Errno::EPERM));
        assert_eq!(mapped(&dom0, RAM + 10), Some((mfn, PageKind::Ram)), "a page that cannot move stays");
        assert_eq!(held(&mut dom0), 15);
    }
}

#[test]
fn a_one_to_one_domains_pages_move_by_their_content() {
    let system = fake::system(4096);
    let domain = fake::add(system, Wanted { one_to_one: true, ..Wanted::default() });
    let mut dom0 = Running::new(system, &domain);
    dom0.poke(page(9), &0xabcdu64);
    let free = system.memory.free_frames();
    assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, RAM + 10), 0);
    assert_eq!(mapped(&dom0, RAM + 10), Some((Mfn(RAM + 10), PageKind::Ram)));
    assert_eq!((mapped(&dom0, RAM + 9), dom0.peek::<u64>(page(10))), (None, 0xabcd));
    assert_eq!((held(&mut dom0), system.memory.free_frames()), (15, free), "its frames are nobody else's");
    assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 10, RAM + 9), 0, "into the hole");
    assert_eq!((mapped(&dom0, RAM + 10), dom0.peek::<u64>(page(9))), (None, 0xabcd));
    assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, HOLE), no(Errno::ENOMEM), "no frame of its own is there");
    assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN, RAM + 9, DEVICE), no(Errno::EPERM));
    assert_eq!(held(&mut dom0), 15);
}

#[test]
fn a_one_to_one_domain_gets_back_what_it_gave_and_nothing_else() {
    let system = fake::system(4096);
    let domain = fake::add(system, Wanted { one_to_one: true, max_pages: 32, ..Wanted::default() });
    let mut dom0 = Running::new(system, &domain);
    let free = system.memory.free_frames();
    assert_eq!(decrease(&mut dom0, &[RAM + 9, RAM + 10], 0), 2);
    assert_eq!((held(&mut dom0), system.memory.free_frames()), (14, free));
    assert_eq!(populate(&mut dom0, &[HOLE], 0), 0);
    assert_eq!(populate(&mut dom0, &[RAM + 8], 3), 0, "not all of it was given up");
    assert_eq!(populate(&mut dom0, &[RAM + 10, RAM + 9], 0), 2);
    assert_eq!(mapped(&dom0, RAM + 9), Some((Mfn(RAM + 9), PageKind::Ram)));
    // Something else may have come to where the frame was.
    assert_eq!(decrease(&mut dom0, &[RAM + 9], 0), 1);
    assert_eq!(add(&mut dom0, XENMAPSPACE_SHARED_INFO, 0, RAM + 9), 0);
    assert_eq!(populate(&mut dom0, &[RAM + 9], 0), 0);
    assert_eq!(remove_page(&mut dom0, RAM + 9), 0);
    assert_eq!(populate(&mut dom0, &[RAM + 9], 0), 1);
}

#[test]
fn many_pages_move_by_one_call_that_others_can_interrupt() {
    let mut dom0 = dom0();
    let count = BATCH + 20;
    assert_eq!(populate(&mut dom0, &(HOLE..HOLE + count).collect::<Vec<_>>(), 0), count as i64);
    let move_all = AddToPhysmap {
        domid: DomainId::SELF,
        size: count as u16,
        space: XENMAPSPACE_GMFN_RANGE,
        idx: HOLE,
        gpfn: HOLE + 0x1000,
    };
    dom0.poke(page(0), &move_all);
    assert_eq!(dom0.call(MEMORY_OP, &[XENMEM_ADD_TO_PHYSMAP.into(), page(0)]), (0, 1));
    assert!((HOLE..HOLE + count).all(|gfn| mapped(&dom0, gfn).is_none() && mapped(&dom0, gfn + 0x1000).is_some()));
    let beyond = u64::from(XENMEM_ADD_TO_PHYSMAP) | (count + 1) << MEMOP_EXTENT_SHIFT;
    assert_eq!(dom0.call(MEMORY_OP, &[beyond, page(0)]).0, no(Errno::EILSEQ));
    dom0.poke(page(0), &AddToPhysmap { idx: u64::MAX, size: 2, ..move_all });
    assert_eq!(dom0.call(MEMORY_OP, &[XENMEM_ADD_TO_PHYSMAP.into(), page(0)]).0, no(Errno::EINVAL));
}

#[test]
fn removing_frees_what_is_the_domains_and_only_that() {
    let mut dom0 = dom0();
    let free = dom0.system.memory.free_frames();
    assert_eq!(remove_page(&mut dom0, RAM + 9), 0);
    assert_eq!((held(&mut dom0), dom0.system.memory.free_frames()), (15, free + 1));
    for gfn in [RAM + 9, DEVICE, HOLE] {
        assert_eq!(remove_page(&mut dom0, gfn), no(Errno::ENOENT));
    }
    assert_eq!(remove_page(&mut dom0, 1 << 60), no(Errno::EINVAL));
}

#[test]
fn a_page_that_somebody_uses_is_freed_when_they_are_done() {
    let mut dom0 = dom0();
    let memory = dom0.system.memory;
    let (reference, _) = dom0.domain.p2m.reference(Gfn(RAM + 9)).unwrap();
    let free = memory.free_frames();
    assert_eq!(decrease(&mut dom0, &[RAM + 9], 0), 1);
    assert_eq!(memory.free_frames(), free);
    drop(reference);
    assert_eq!(memory.free_frames(), free + 1);
}

#[test]
fn another_domains_page_is_kept_alive_by_its_mapping() {
    for width in WIDTHS {
        let (mut dom0, mut guest) = pair();
        dom0.context.width = width;
        let memory = dom0.system.memory;
        let theirs = mapped(&guest, RAM + 3).unwrap().0;
        guest.poke(page(3), &0x1234u64);
        let (result, statuses) = batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, DomainId(GUEST), &[RAM + 3, HOLE, RAM + 4]);
        assert_eq!((result, &*statuses), (0, &[0, Errno::EINVAL.as_status(), 0][..]));
        assert_eq!(mapped(&dom0, HOLE), Some((theirs, PageKind::Foreign)));
        assert_eq!(dom0.peek::<u64>(HOLE << 12), 0x1234);
        assert_eq!(memory.state(theirs).count(), 1);
        // The same again replaces itself.
        assert_eq!(batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, DomainId(GUEST), &[RAM + 3]).1, [0]);
        assert_eq!(memory.state(theirs).count(), 1);
        let free = memory.free_frames();
        assert_eq!(decrease(&mut guest, &[RAM + 3], 0), 1);
        assert_eq!(memory.free_frames(), free, "Dom0 still sees it");
        assert_eq!(remove_page(&mut dom0, HOLE), 0);
        assert_eq!(memory.free_frames(), free + 1);
        assert_eq!(decrease(&mut dom0, &[HOLE + 2], 0), 1, "a foreign page is unmapped");
        assert_eq!(memory.state(mapped(&guest, RAM + 4).unwrap().0).count(), 0);
        assert_eq!(held(&mut dom0), 16);
    }
}

#[test]
fn foreign_pages_are_for_who_controls_others() {
    let (mut dom0, mut guest) = pair();
    let status = |errno: Errno| (0, vec![errno.as_status()]);
    assert_eq!(batch(&mut guest, XENMAPSPACE_GMFN_FOREIGN, DomainId(0), &[RAM]), status(Errno::EPERM));
    assert_eq!(batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, DomainId(0), &[RAM]), status(Errno::EPERM));
    for nobody in [DomainId::SELF, DomainId::IO, DomainId(99)] {
        assert_eq!(batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, nobody, &[RAM]), status(Errno::ESRCH));
    }
    assert_eq!(batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, DomainId::XEN, &[RAM]), status(Errno::EINVAL));
    assert_eq!(add(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, RAM, HOLE), no(Errno::ENOSYS));
}

#[test]
fn spaces_that_do_not_exist_or_come_another_way_are_refused() {
    let mut dom0 = dom0();
    for space in [XENMAPSPACE_DEV_MMIO, 6, 99, u32::MAX] {
        assert_eq!(add(&mut dom0, space, 0, HOLE), no(Errno::EINVAL));
    }
    assert_eq!(batch(&mut dom0, 99, DomainId(0), &[0]), (0, vec![Errno::EINVAL.as_status()]));
    assert_eq!(batch(&mut dom0, XENMAPSPACE_DEV_MMIO, DomainId(0), &[0]), (0, vec![Errno::EINVAL.as_status()]));
    for (space, domain) in [(XENMAPSPACE_GMFN_RANGE, 0), (XENMAPSPACE_DEV_MMIO, 1)] {
        assert_eq!(batch(&mut dom0, space, DomainId(domain), &[0]), (no(Errno::EOPNOTSUPP), vec![77]));
    }
    assert_eq!(add(&mut dom0, XENMAPSPACE_GRANT_TABLE, 1 << 40, HOLE), no(Errno::EINVAL));
    assert_eq!(add(&mut dom0, XENMAPSPACE_GRANT_TABLE, 64, HOLE), no(Errno::EINVAL), "beyond the table's limit");
    assert_eq!(add(&mut dom0, XENMAPSPACE_GRANT_TABLE, 1 << 31, HOLE), no(Errno::EINVAL), "version 1 has no status");
}

#[test]
fn a_batch_tells_each_element_its_status_and_can_be_interrupted() {
    let mut dom0 = dom0();
    let gfns: Vec<u64> = (HOLE + 0x1000..HOLE + 0x1000 + BATCH + 5).collect();
    assert_eq!(populate(&mut dom0, &gfns, 0), gfns.len() as i64);
    let (result, statuses) = batch(&mut dom0, XENMAPSPACE_GMFN, DomainId(0), &gfns);
    assert_eq!((result, statuses), (0, vec![0; gfns.len()]));
    let beyond = u64::from(XENMEM_ADD_TO_PHYSMAP_BATCH) | 7 << MEMOP_EXTENT_SHIFT;
    dom0.poke(page(0), &AddToPhysmapBatch { domid: DomainId::SELF, size: 6, ..Default::default() });
    assert_eq!(dom0.call(MEMORY_OP, &[beyond, page(0)]).0, no(Errno::EILSEQ));
}

// ---- asking ----

#[test]
fn the_memory_map_is_told_as_far_as_there_is_room() {
    for width in WIDTHS {
        let mut dom0 = dom0();
        dom0.context.width = width;
        let buffer = GuestHandle::new(page(1));
        let mut ask = |operation, nr_entries, buffer| {
            let mut map = MemoryMap { nr_entries, pad: 0, buffer };
            (dom0.op_arg(MEMORY_OP, operation, &mut map), map.nr_entries)
        };
        assert_eq!(ask(XENMEM_MEMORY_MAP, 9, buffer), (0, 2));
        assert_eq!(ask(XENMEM_MEMORY_MAP, 1, buffer), (0, 1));
        assert_eq!(ask(XENMEM_MEMORY_MAP, 9, GuestHandle::NULL), (0, 2));
        assert_eq!(ask(XENMEM_MACHINE_MEMORY_MAP, 0, GuestHandle::NULL), (0, 2));
        assert_eq!(ask(XENMEM_MACHINE_MEMORY_MAP, 1, buffer), (no(Errno::EINVAL), 1));
        assert_eq!(ask(XENMEM_MACHINE_MEMORY_MAP, 2, buffer), (0, 2));
        let entries: [E820Entry; 2] = dom0.peek(page(1));
        assert_eq!(entries, [0, 1].map(|index| dom0.domain.control.map_entry(index).unwrap()));
    }
    let (_, mut guest) = pair();
    let mut map = MemoryMap::default();
    assert_eq!(guest.op(MEMORY_OP, XENMEM_MACHINE_MEMORY_MAP, &mut map), no(Errno::EPERM));
}

#[test]
fn a_domains_grant_table_is_had_by_its_toolstack() {
    for width in WIDTHS {
        let (mut dom0, mut guest) = pair();
        dom0.context.width = width;
        let gfns: Vec<u64> = (HOLE..HOLE + 3).collect();
        let request = AcquireResource {
            domid: DomainId(GUEST),
            r#type: XENMEM_RESOURCE_GRANT_TABLE as u16,
            id: XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
            nr_frames: 3,
            pad: 0,
            frame: 0,
            frame_list: list(&dom0, &gfns),
        };
        let mut ask = |request: AcquireResource| {
            let mut argument = request;
            (dom0.op_arg(MEMORY_OP, XENMEM_ACQUIRE_RESOURCE, &mut argument), argument.nr_frames)
        };
        let size = AcquireResource { nr_frames: 0, frame_list: GuestHandle::NULL, ..request };
        assert_eq!(ask(size), (0, 64));
        let status = AcquireResource { id: XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS, ..request };
        assert_eq!(ask(AcquireResource { id: status.id, ..size }), (0, 8), "eight for each of these");
        assert_eq!(ask(AcquireResource { frame: 6, ..status }).0, no(Errno::EINVAL), "beyond the end");
        assert_eq!(ask(AcquireResource { nr_frames: 1, ..size }), (no(Errno::EINVAL), 1));
        assert_eq!(ask(request), (0, 3));
        assert_eq!(ask(AcquireResource { frame: 62, ..request }).0, no(Errno::EINVAL), "beyond the end");
        assert_eq!(ask(AcquireResource { frame: u64::MAX, ..request }).0, no(Errno::EINVAL));
        assert_eq!(ask(AcquireResource { pad: 1, ..request }).0, no(Errno::EINVAL));
        assert_eq!(ask(AcquireResource { id: 9, ..request }).0, no(Errno::EINVAL));
        assert_eq!(ask(AcquireResource { r#type: 0, ..request }).0, no(Errno::EOPNOTSUPP));
        assert_eq!(ask(AcquireResource { domid: DomainId(99), ..request }).0, no(Errno::ESRCH));
        assert_eq!(ask(AcquireResource { domid: DomainId::SELF, ..request }).0, no(Errno::ESRCH));
        assert_eq!(ask(AcquireResource { domid: DomainId(0), ..request }).0, no(Errno::EPERM));
        assert_eq!(guest.op(MEMORY_OP, XENMEM_ACQUIRE_RESOURCE, &mut { request }), no(Errno::EPERM));
        // What Dom0 writes there is what the guest grants with.
        dom0.poke(HOLE << 12, &0x55aau64);
        assert_eq!(add(&mut guest, XENMAPSPACE_GRANT_TABLE, 0, HOLE), 0);
        assert_eq!(guest.peek::<u64>(HOLE << 12), 0x55aa);
    }
}

#[test]
fn what_does_not_exist_is_not_implemented() {
    let (mut dom0, _) = pair();
    for operation in [XENMEM_EXCHANGE, XENMEM_MACHPHYS_MFN_LIST, XENMEM_PAGING_OP, XENMEM_SHARING_OP, 29, 63] {
        assert_eq!(dom0.call(MEMORY_OP, &[operation.into(), page(0)]).0, no(Errno::ENOSYS));
    }
    let mut ask = MemoryDomain { domid: DomainId::SELF };
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_GET_VNUMAINFO, &mut ask), no(Errno::EOPNOTSUPP));
    assert_eq!(dom0.call(MEMORY_OP, &[XENMEM_MAXIMUM_RAM_PAGE.into()]).0, 4096);
    assert_eq!(dom0.call(MEMORY_OP, &[XENMEM_GET_SHARING_FREED_PAGES.into()]).0, 0);
    for operation in [XENMEM_ADD_TO_PHYSMAP, XENMEM_ADD_TO_PHYSMAP_BATCH, XENMEM_MEMORY_MAP, XENMEM_CURRENT_RESERVATION]
    {
        assert_eq!(dom0.call(MEMORY_OP, &[operation.into(), 0xdead_0000]).0, no(Errno::EFAULT));
    }
    for operation in [XENMEM_POPULATE_PHYSMAP, XENMEM_DECREASE_RESERVATION] {
        assert_eq!(dom0.call(MEMORY_OP, &[operation.into(), 0xdead_0000]).0, 0, "nothing was done");
    }
}

// ---- populate on demand ----

#[test]
fn a_target_for_a_domain_without_pages_on_demand_changes_nothing() {
    let system = fake::system(256);
    let mut dom0 = Running::new(system, &fake::add_domain(system, 0, 16));
    let mut guest = Running::new(system, &fake::add_domain(system, GUEST, 17));
    guest.domain.max_pages.store(50, Ordering::Relaxed);
    let target =
        |domid| PodTarget { target_pages: 50, pod_cache_pages: 9, pod_entries: 9, domid, ..Default::default() };
    for operation in [XENMEM_SET_POD_TARGET, XENMEM_GET_POD_TARGET] {
        let mut request = target(DomainId(GUEST));
        assert_eq!(dom0.op(MEMORY_OP, operation, &mut request), 0);
        assert_eq!((request.tot_pages, request.pod_cache_pages, request.pod_entries), (17, 0, 0));
        assert_eq!(dom0.op(MEMORY_OP, operation, &mut target(DomainId(99))), Errno::ESRCH.as_return());
        assert_eq!(guest.op(MEMORY_OP, operation, &mut target(DomainId(GUEST))), Errno::EPERM.as_return());
    }
}

/// Sets a target for the guest: how many pages it has then, how many of them are in its cache, and how many are to be populated.
fn set_target(dom0: &mut Running, target_pages: u64) -> Result<[u64; 3], i64> {
    let mut request = PodTarget { target_pages, domid: DomainId(GUEST), ..Default::default() };
    match dom0.op(MEMORY_OP, XENMEM_SET_POD_TARGET, &mut request) {
        0 => Ok([request.tot_pages, request.pod_cache_pages, request.pod_entries]),
        error => Err(error),
    }
}

fn told(running: &Running) -> [u64; 3] {
    let pod = running.domain.p2m.pod();
    [running.domain.pages.load(Ordering::Relaxed), pod.cache, pod.entries]
}

/// Dom0, and a guest as a toolstack makes one: 2816 pages from [`RAM`] on, of which it has `target`, and uses the first 16.
fn ballooned(target: u64) -> (Running, Running) {
    let dom0 = fake::system(8192);
    let mut dom0 = Running::new(dom0, &fake::add(dom0, Wanted { max_pages: 2048, ..Wanted::default() }));
    let guest = fake::add(dom0.system, Wanted { id: GUEST, pages: 0, max_pages: target, ..Wanted::default() });
    assert_eq!(set_target(&mut dom0, target), Ok([target, target, 0]));
    for (gfns, order) in [([RAM].as_slice(), 8), (&[512, 1024, 1536, 2048, 2560], 9)] {
        let argument = reservation(&dom0, gfns, order);
        let mem_flags = XENMEMF_POPULATE_ON_DEMAND;
        let mut argument = MemoryReservation { domid: DomainId(GUEST), mem_flags, ..argument };
        assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument), gfns.len() as i64);
        // Once more is nothing new.
        assert_eq!(dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut argument), gfns.len() as i64);
    }
    let guest = Running::new(dom0.system, &guest);
    assert_eq!(told(&guest), [target, target, 2816]);
    for page in RAM..RAM + 16 {
        guest.domain.p2m.populate(Gfn(page)).unwrap();
    }
    assert_eq!(told(&guest), [target, target - 16, 2800]);
    (dom0, guest)
}

#[test]
fn a_guest_balloons_down_to_what_it_has() {
    let (mut dom0, mut guest) = ballooned(1500);
    // Without a word about memory that it does not have.
    let mut ask = MemoryDomain { domid: DomainId::SELF };
    assert_eq!(guest.op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut ask), 1500);
    // Pages that it has used go to the cache, as long as that has too few.
    let used: Vec<u64> = (512..1024).collect();
    for gfn in &used {
        guest.domain.p2m.populate(Gfn(*gfn)).unwrap();
    }
    assert_eq!(told(&guest), [1500, 972, 2288]);
    assert_eq!(decrease(&mut guest, &used, 0), 512);
    assert_eq!(told(&guest), [1500, 1484, 2288]);
    let before = dom0.system.memory.free_frames();
    // Those that it has not used just need not be there.
    assert_eq!(decrease(&mut guest, &[1024], 9), 1);
    assert_eq!(told(&guest), [1500, 1484, 1776]);
    assert_eq!(dom0.system.memory.free_frames(), before);
    assert_eq!(decrease(&mut guest, &[1536], 9), 1);
    assert_eq!(told(&guest), [1280, 1264, 1264], "more frames than pages would be too many");
    assert_eq!(dom0.system.memory.free_frames(), before + 220);
    // From now on it gives memory back.
    assert_eq!(decrease(&mut guest, &[2048, 2049], 0), 2);
    assert_eq!(decrease(&mut guest, &[RAM + 15], 0), 1);
    assert_eq!(told(&guest), [1277, 1262, 1262]);
    // And takes it, up to what it may have.
    assert_eq!(populate(&mut guest, &[1024, 1025], 0), 2);
    assert_eq!(told(&guest), [1279, 1262, 1262]);
    assert_eq!(populate(&mut guest, &[512], 9), 0);
    fake::check_address_space(dom0.system, &guest.domain);
    assert_eq!(set_target(&mut dom0, 1000), Ok([1279, 1262, 1262]), "the guest has to get there itself");
    guest.domain.max_pages.store(2000, Ordering::Relaxed);
    assert_eq!(set_target(&mut dom0, 2000), Ok([1279, 1262, 1262]), "nor is it given what is not to be populated");
}

#[test]
fn larger_pages_on_demand_come_apart_whatever_else_takes_memory() {
    let (_dom0, mut guest) = ballooned(1500);
    guest.domain.p2m.set_table_limit(0);
    assert_eq!(populate(&mut guest, &[1 << 18], 0), 0, "there is no table for that");
    guest.domain.p2m.populate(Gfn(512)).unwrap();
    guest.domain.p2m.populate(Gfn(1024)).unwrap();
    assert_eq!(guest.domain.p2m.lookup(Gfn(1024)).map(|found| found.size), Some(mm::PageSize::Size2M));
    // Its block is gone; single pages are left.
    for gfn in [1540, 2048, 2560] {
        guest.domain.p2m.populate(Gfn(gfn)).unwrap();
    }
    assert_eq!(told(&guest), [1500, 457, 1773]);
    assert_eq!(decrease(&mut guest, &[520, 1030], 0), 2);
    assert_eq!(told(&guest), [1500, 459, 1773]);
    fake::check_address_space(guest.system, &guest.domain);
}

#[test]
fn a_target_that_is_raised_fills_the_cache_a_part_at_a_time() {
    let (mut dom0, guest) = ballooned(1500);
    assert_eq!(set_target(&mut dom0, 2700), Err(no(Errno::EINVAL)), "more than it may have");
    assert_eq!(told(&guest), [1500, 1484, 2800]);
    // A control domain's is only for it to know.
    let mut request = PodTarget { target_pages: 1 << 30, domid: DomainId::SELF, ..Default::default() };
    dom0.domain.max_pages.store(16, Ordering::Relaxed);
    assert_eq!(dom0.op(MEMORY_OP, XENMEM_SET_POD_TARGET, &mut request), 0);
    guest.domain.max_pages.store(5000, Ordering::Relaxed);
    let request = PodTarget { target_pages: 2700, domid: DomainId(GUEST), ..Default::default() };
    dom0.poke(page(0), &request);
    assert_eq!(dom0.call(MEMORY_OP, &[XENMEM_SET_POD_TARGET.into(), page(0)]), (0, 2));
    assert_eq!(told(&guest), [2700, 2684, 2800]);
    assert_eq!(set_target(&mut dom0, 4000), Ok([2816, 2800, 2800]));
    fake::check_address_space(dom0.system, &guest.domain);
}

#[test]
fn what_is_claimed_is_what_the_cache_is_made_of() {
    let dom0 = fake::system(2048);
    let mut dom0 = Running::new(dom0, &fake::add_domain(dom0, 0, 16));
    let system = dom0.system;
    for (id, max_pages) in [(GUEST, 900), (6, 900)] {
        fake::add(system, Wanted { id, pages: 0, max_pages, ..Wanted::default() });
    }
    let other = system.domain(DomainId(6)).unwrap();
    let guest = system.domain(DomainId(GUEST)).unwrap();
    system.claim(&other, 900).unwrap();
    system.claim(&guest, 700).unwrap();
    assert_eq!(set_target(&mut dom0, 600), Ok([600, 600, 0]));
    assert_eq!((system.claimed(), guest.control.claim.load(Ordering::Relaxed)), (900 + 100, 100));
    system.release_claim(&guest);
    let left = system.memory.free_frames() - 900;
    guest.max_pages.store(2000, Ordering::Relaxed);
    assert_eq!(set_target(&mut dom0, 600 + left + 1), Err(no(Errno::ENOMEM)), "the rest is another's");
    assert_eq!(system.memory.free_frames(), 900);
}

/// Writes to a page of the guest's, so that it is no page of zeroes.
fn write_to(guest: &Running, gfn: u64) {
    mm::GuestMemory::new(&guest.domain.p2m).copy_to(mm::GuestPhys(gfn << 12), &[1]).unwrap();
}

/// A guest that has used up its 24 pages: those at [`RAM`] and 512 to 519. Of them it has written to all but `zeroes`.
fn exhausted(zeroes: &[u64]) -> (Running, Running) {
    let (dom0, guest) = ballooned(24);
    for gfn in (RAM..RAM + 16).chain(512..520) {
        guest.domain.p2m.populate(Gfn(gfn)).unwrap();
        if !zeroes.contains(&gfn) {
            write_to(&guest, gfn);
        }
    }
    assert_eq!(told(&guest), [24, 0, 2792]);
    (dom0, guest)
}

#[test]
fn who_maps_a_page_of_anothers_populates_it_or_is_to_ask_again() {
    let (mut dom0, guest) = exhausted(&[514, 516]);
    let mut map = |gfn: u64| batch(&mut dom0, XENMAPSPACE_GMFN_FOREIGN, DomainId(GUEST), &[gfn]).1;
    let again = [Errno::ENOENT.as_status()];
    assert_eq!(map(700), again);
    assert_eq!(told(&guest), [24, 2, 2794], "it was looked for meanwhile");
    for gfn in [700, 701] {
        assert_eq!(map(gfn), [0]);
        write_to(&guest, gfn);
    }
    // Nobody waits for ever: with each round there is a time when it is said that there is nothing.
    let answers: Vec<_> = (0..8).map(|_| map(702)).collect();
    assert!(answers.iter().all(|told| *told == again || *told == [Errno::EINVAL.as_status()]), "{answers:?}");
    assert!(answers.contains(&vec![Errno::EINVAL.as_status()]), "{answers:?}");
    assert_eq!((guest.domain.shutdown_reason(), dom0.domain.shutdown_reason()), (None, None));
    fake::check_address_space(dom0.system, &guest.domain);
}

#[test]
fn an_argument_that_nobody_has_touched_yet_is_populated_or_its_domain_is_crashed() {
    let (_dom0, mut guest) = exhausted(&[514, 516]);
    let ask = |gfn: u64| [XENMEM_CURRENT_RESERVATION.into(), gfn << 12];
    // The page says that it is about domain 0.
    for gfn in [600, 601] {
        assert_eq!(guest.call(MEMORY_OP, &ask(gfn)).0, no(Errno::EPERM));
        write_to(&guest, gfn);
    }
    assert_eq!(guest.call(MEMORY_OP, &ask(608)).0, no(Errno::EFAULT));
    assert_eq!(guest.domain.shutdown_reason(), Some(xen_abi::sched::SHUTDOWN_CRASH));
    // Once it goes on, what fails is no reason for that again.
    guest.domain.end_shutdown();
    assert_eq!(guest.call(MEMORY_OP, &ask(9999)).0, no(Errno::EFAULT));
    assert_eq!(guest.domain.shutdown_reason(), None);
}

#[test]
fn a_page_is_moved_though_memory_for_it_has_to_be_found_first() {
    let (_dom0, mut guest) = exhausted(&[514]);
    let mut request =
        AddToPhysmap { domid: DomainId::SELF, size: 1, space: XENMAPSPACE_GMFN_RANGE, idx: 600, gpfn: 5000 };
    assert_eq!(guest.op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut request), 0);
    assert_eq!(guest.domain.p2m.lookup(Gfn(5000)).map(|found| found.kind), Some(PageKind::Ram));
    assert_eq!((told(&guest), guest.domain.shutdown_reason()), ([24, 0, 2792], None));
}

#[test]
fn a_call_whose_argument_takes_long_to_be_found_is_made_again() {
    let (_dom0, mut guest) = exhausted(&[514]);
    // Another vCPU is at it.
    let (withheld, _) = guest.domain.p2m.withhold_zeroes(1).unwrap();
    let ask = [XENMEM_CURRENT_RESERVATION.into(), 600 << 12, 0, 0, 0];
    assert_eq!(guest.call_once(MEMORY_OP, ask), Outcome::Continue(ask));
    guest.domain.p2m.reclaim_zeroes(withheld);
    assert_eq!(guest.call(MEMORY_OP, &ask).0, no(Errno::EPERM));
    assert_eq!(guest.domain.shutdown_reason(), None);
}
