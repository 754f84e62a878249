//! Two domains on a fake machine, one of which grants.

use std::vec::Vec;

use mm::addr::{Gfn, Mfn, PAGE_SIZE};
use mm::fake::{self, CachingTlb};
use mm::table::{MemoryType, PageKind};
use mm::{Memory, P2m};
use proptest::prelude::*;
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::types::{DomainId, GrantRef};
use zerocopy::{FromBytes, IntoBytes};

use super::copy::{self, CopyRequest};
use super::map::{self, MapRequest, UnmapRequest};
use super::{GrantTable, Kind, Limits, Party, Purpose, Refused, Wanted};

const FRONT: DomainId = DomainId(5);
const BACK: DomainId = DomainId(0);
/// Where the tests' domains have their memory.
const RAM: u64 = 0x100;
/// Where the tests map what was granted.
const HOLE: u64 = 0x8000;

struct Guest {
    memory: &'static Memory,
    id: DomainId,
    p2m: P2m<fake::Format>,
    grants: GrantTable,
    tlb: CachingTlb,
}

impl Guest {
    fn new(memory: &'static Memory, id: DomainId, pages: u64, limits: Limits) -> Self {
        let p2m = P2m::new(fake::Format::default(), memory, id).unwrap();
        for page in 0..pages {
            let mfn = memory.allocate(0, None).unwrap().scrub().give_to(id);
            let flush = p2m.map(Gfn(RAM + page), mfn, 1, PageKind::Ram, MemoryType::WriteBack).unwrap();
            assert!(flush.is_none());
        }
        let grants = GrantTable::new(id, limits, 2).unwrap();
        Guest { memory, id, p2m, grants, tlb: CachingTlb::new() }
    }

    fn party(&self) -> Party<'_, fake::Format> {
        Party { id: self.id, p2m: &self.p2m, grants: &self.grants }
    }

    fn mfn(&self, gfn: u64) -> Mfn {
        self.p2m.lookup(Gfn(gfn)).unwrap().mfn
    }

    /// Writes into the frame of the table that holds these bytes, as the guest would.
    fn poke(&self, kind: Kind, at: usize, bytes: &[u8]) {
        let frame = self.grants.table().frame(self.memory, kind, (at / PAGE_SIZE) as u32).unwrap();
        let address = mm::HostPhys(frame.phys().0 + (at % PAGE_SIZE) as u64);
        self.memory.window().copy_to(address, bytes).unwrap();
    }

    fn peek<T: FromBytes + IntoBytes>(&self, kind: Kind, at: usize) -> T {
        let frame = self.grants.table().frame(self.memory, kind, (at / PAGE_SIZE) as u32).unwrap();
        let mut value = T::new_zeroed();
        let address = mm::HostPhys(frame.phys().0 + (at % PAGE_SIZE) as u64);
        self.memory.window().copy_from(address, value.as_mut_bytes()).unwrap();
        value
    }

    fn grant(&self, gref: u32, flags: u16, to: DomainId, gfn: u64) {
        let entry = EntryV1 { flags: GTF_PERMIT_ACCESS | flags, domid: to, frame: gfn as u32 };
        self.poke(Kind::Entries, gref as usize * 8, entry.as_bytes());
    }

    fn entry(&self, gref: u32) -> EntryV1 {
        self.peek(Kind::Entries, gref as usize * 8)
    }

    fn grant_v2(&self, gref: u32, entry: EntryV2) {
        self.poke(Kind::Entries, gref as usize * 16, entry.as_bytes());
    }

    fn status_v2(&self, gref: u32) -> u16 {
        self.peek(Kind::Status, gref as usize * 2)
    }

    fn map(&self, granter: &Guest, gref: u32, at: u64, write: bool) -> Result<u32, Refused> {
        let request = MapRequest { gref: GrantRef(gref), at: Gfn(at), write };
        map::map(self.party(), 0, granter.party(), request).map(|(handle, _)| handle)
    }

    fn unmap(&mut self, handle: u32, at: u64) -> Result<(), Refused> {
        let (unmapped, flush) = map::unmap(self.party(), UnmapRequest { handle, at: Gfn(at) })?;
        let mut tlb = core::mem::take(&mut self.tlb);
        tlb.spend(&self.p2m, flush);
        self.tlb = tlb;
        unmapped.finish(&self.grants);
        Ok(())
    }

    fn fill(&self, gfn: u64, byte: u8) {
        self.memory.window().copy_to(self.mfn(gfn).phys(), &[byte; PAGE_SIZE]).unwrap();
    }

    fn contents(&self, gfn: u64) -> Vec<u8> {
        let mut page = std::vec![0; PAGE_SIZE];
        self.memory.window().copy_from(self.mfn(gfn).phys(), &mut page).unwrap();
        page
    }
}

fn pair() -> (Guest, Guest) {
    let memory = fake::memory(512);
    let front = Guest::new(memory, FRONT, 16, Limits::default());
    let back = Guest::new(memory, BACK, 16, Limits::default());
    front.grants.table().grow(memory, 1).unwrap();
    (front, back)
}

const WRITE: Wanted = Wanted { by: BACK, write: true, purpose: Purpose::Map };

#[test]
fn a_granted_frame_is_seen_by_the_other_domain_and_its_entry_says_so() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    let handle = back.map(&front, 8, HOLE, true).unwrap();
    let found = back.p2m.lookup(Gfn(HOLE)).unwrap();
    assert_eq!((found.mfn, found.kind), (front.mfn(RAM), PageKind::GrantRw));
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(back.p2m.lookup(Gfn(HOLE)), None);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
    assert!(back.grants.maptrack().is_empty());
}

#[test]
fn a_granted_frame_cannot_be_freed() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    let mfn = front.mfn(RAM);
    let handle = back.map(&front, 8, HOLE, true).unwrap();
    assert_eq!(front.memory.free_owned(mfn, 0, FRONT), Err(Errno::EBUSY));
    back.unmap(handle, HOLE).unwrap();
    let _ = front.p2m.unmap(Gfn(RAM), 1).unwrap();
    assert_eq!(front.memory.free_owned(mfn, 0, FRONT), Ok(()));
}

#[test]
fn a_frame_outlives_the_granter_until_the_last_mapping_goes() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    front.fill(RAM, 0x5a);
    let (memory, mfn) = (front.memory, front.mfn(RAM));
    let handle = back.map(&front, 8, HOLE, true).unwrap();
    let _ = front.p2m.unmap(Gfn(RAM), 1).unwrap();
    memory.abandon(mfn, FRONT).unwrap();
    drop(front);
    assert_eq!(back.contents(HOLE), [0x5a; PAGE_SIZE]);
    let before = memory.free_frames();
    back.unmap(handle, HOLE).unwrap();
    assert!(memory.free_frames() > before, "the last reference frees the frame");
}

#[test]
fn an_unmapped_frame_is_not_released_before_the_flush() {
    let (front, back) = pair();
    front.grant(8, 0, BACK, RAM);
    let mfn = front.mfn(RAM);
    let handle = back.map(&front, 8, HOLE, true).unwrap();
    let (unmapped, flush) = map::unmap(back.party(), UnmapRequest { handle, at: Gfn(HOLE) }).unwrap();
    assert_eq!(front.memory.free_owned(mfn, 0, FRONT), Err(Errno::EBUSY));
    assert_ne!(front.entry(8).flags & GTF_WRITING, 0);
    let generation = flush.spend();
    assert!(generation.is_some());
    unmapped.finish(&back.grants);
    assert_eq!(front.memory.free_owned(mfn, 0, FRONT), Ok(()));
}

#[test]
fn two_maps_need_two_unmaps_until_the_pin_is_gone() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    let first = back.map(&front, 8, HOLE, true).unwrap();
    let second = back.map(&front, 8, HOLE + 1, false).unwrap();
    assert_ne!(first, second);
    back.unmap(first, HOLE).unwrap();
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS | GTF_READING, "the writer is gone, the reader is not");
    assert_eq!(front.memory.free_owned(front.mfn(RAM), 0, FRONT), Err(Errno::EBUSY));
    back.unmap(second, HOLE + 1).unwrap();
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
}

#[test]
fn a_mapping_is_unmapped_once() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    let handle = back.map(&front, 8, HOLE, true).unwrap();
    assert_eq!(back.unmap(handle, HOLE + 1), Err(Refused::BadAddress));
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(back.unmap(handle, HOLE), Err(Refused::BadHandle));
    assert_eq!(back.unmap(u32::MAX, HOLE), Err(Refused::BadHandle));
}

#[test]
fn a_read_only_grant_cannot_be_mapped_writable() {
    let (front, back) = pair();
    front.grant(8, GTF_READONLY, BACK, RAM);
    assert_eq!(back.map(&front, 8, HOLE, true), Err(Refused::General));
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS | GTF_READONLY);
    back.map(&front, 8, HOLE, false).unwrap();
    assert_eq!(back.p2m.lookup(Gfn(HOLE)).unwrap().kind, PageKind::GrantRo);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING);
}

#[test]
fn a_read_only_page_cannot_be_mapped_writable_whatever_the_entry_says() {
    let (front, back) = pair();
    let _ = front.p2m.change_kind(Gfn(RAM), 1, PageKind::Ram, PageKind::RamReadOnly).unwrap();
    front.grant(8, 0, BACK, RAM);
    assert_eq!(back.map(&front, 8, HOLE, true), Err(Refused::General));
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS, "nothing stays pinned");
    back.map(&front, 8, HOLE, false).unwrap();
}

#[test]
fn only_the_domain_that_is_named_may_map() {
    let (front, back) = pair();
    front.grant(8, 0, DomainId(7), RAM);
    assert_eq!(back.map(&front, 8, HOLE, false), Err(Refused::General));
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
}

#[test]
fn entries_that_do_not_permit_access_are_refused() {
    let (front, back) = pair();
    for flags in [GTF_INVALID, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE] {
        let entry = EntryV1 { flags, domid: BACK, frame: RAM as u32 };
        front.poke(Kind::Entries, 8 * 8, entry.as_bytes());
        assert_eq!(back.map(&front, 8, HOLE, false), Err(Refused::General));
        assert_eq!(front.entry(8), entry);
    }
}

#[test]
fn references_beyond_the_table_are_refused() {
    let (front, back) = pair();
    for gref in [512, 0x8000_0000, u32::MAX] {
        assert_eq!(back.map(&front, gref, HOLE, false), Err(Refused::BadReference));
    }
    let memory = front.memory;
    front.grants.table().set_version(memory, 2).unwrap();
    assert_eq!(back.map(&front, 256, HOLE, false), Err(Refused::BadReference), "version 2 has half the entries");
}

#[test]
fn a_frame_that_is_not_the_granters_own_cannot_be_granted_on() {
    let (front, back) = pair();
    let third = Guest::new(front.memory, DomainId(9), 1, Limits::default());
    front.grant(8, 0, BACK, RAM);
    back.map(&front, 8, HOLE, true).unwrap();
    back.grant(8, 0, third.id, HOLE);
    assert_eq!(third.map(&back, 8, HOLE, false), Err(Refused::BadPage));
    // Nor one where nothing is, or a device.
    back.grant(9, 0, third.id, HOLE + 5);
    assert_eq!(third.map(&back, 9, HOLE, false), Err(Refused::BadPage));
    let _ = back.p2m.map(Gfn(HOLE + 6), Mfn(400), 1, PageKind::Mmio, MemoryType::Uncacheable).unwrap();
    back.grant(10, 0, third.id, HOLE + 6);
    assert_eq!(third.map(&back, 10, HOLE, false), Err(Refused::BadPage));
    assert_eq!(back.entry(8).flags | back.entry(9).flags | back.entry(10).flags, GTF_PERMIT_ACCESS);
}

#[test]
fn nothing_is_mapped_where_something_is() {
    let (front, back) = pair();
    front.grant(8, 0, BACK, RAM);
    assert_eq!(back.map(&front, 8, RAM + 3, true), Err(Refused::General));
    assert_eq!(back.p2m.lookup(Gfn(RAM + 3)).unwrap().kind, PageKind::Ram);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
    assert!(back.grants.maptrack().is_empty());
    assert_eq!(back.map(&front, 8, u64::MAX >> 12, true), Err(Refused::General));
}

#[test]
fn a_domain_may_map_its_own_grant() {
    let (mut front, _) = pair();
    front.grant(8, 0, FRONT, RAM);
    let request = MapRequest { gref: GrantRef(8), at: Gfn(HOLE), write: true };
    let (handle, mfn) = map::map(front.party(), 0, front.party(), request).unwrap();
    assert_eq!(mfn, front.mfn(RAM));
    front.unmap(handle, HOLE).unwrap();
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
}

#[test]
fn mappings_are_limited_and_handles_come_back() {
    let memory = fake::memory(1024);
    let front = Guest::new(memory, FRONT, 1, Limits::default());
    let limits = Limits { max_maptrack_frames: 1, ..Limits::default() };
    let mut back = Guest::new(memory, BACK, 0, limits);
    front.grant(8, 0, BACK, RAM);
    let handles: Vec<u32> = (0..256).map(|index| back.map(&front, 8, HOLE + index, false).unwrap()).collect();
    assert_eq!(back.map(&front, 8, HOLE + 256, false), Err(Refused::NoRoom));
    assert_eq!(back.p2m.lookup(Gfn(HOLE + 256)), None);
    back.unmap(handles[17], HOLE + 17).unwrap();
    assert_eq!(back.map(&front, 8, HOLE + 256, false), Ok(handles[17]));
}

#[test]
fn a_vcpu_without_handles_takes_anothers() {
    let memory = fake::memory(1024);
    let front = Guest::new(memory, FRONT, 1, Limits::default());
    let back = Guest::new(memory, BACK, 0, Limits { max_maptrack_frames: 1, ..Limits::default() });
    front.grant(8, 0, BACK, RAM);
    back.map(&front, 8, HOLE, false).unwrap();
    let request = MapRequest { gref: GrantRef(8), at: Gfn(HOLE + 1), write: false };
    assert!(map::map(back.party(), 1, front.party(), request).is_ok());
}

#[test]
fn taking_a_domain_down_lets_go_of_everything_bit_by_bit() {
    let (front, back) = pair();
    front.grant(8, 0, BACK, RAM);
    for index in 0..10 {
        back.map(&front, 8, HOLE + index, true).unwrap();
    }
    let mut from = Some(0);
    let mut rounds = 0;
    while let Some(at) = from {
        from = map::release_all(&back.grants, at, 4);
        rounds += 1;
    }
    assert_eq!(rounds, 3);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
    assert_eq!(front.memory.free_owned(front.mfn(RAM), 0, FRONT), Ok(()));
}

#[test]
fn dropping_the_mappers_table_releases_its_mappings() {
    let (front, back) = pair();
    front.grant(8, 0, BACK, RAM);
    back.map(&front, 8, HOLE, true).unwrap();
    drop(back);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
    assert_eq!(front.memory.free_owned(front.mfn(RAM), 0, FRONT), Ok(()));
}

#[test]
fn flags_that_only_make_sense_in_page_tables_are_refused() {
    let decode = |flags| MapRequest::decode(&MapGrantRef { flags, host_addr: 0x5123, ..Default::default() });
    let request = decode(GNTMAP_HOST_MAP | GNTMAP_READONLY).unwrap();
    assert_eq!((request.at, request.write), (Gfn(5), false));
    assert!(decode(GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP).unwrap().write);
    for flags in [GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP | GNTMAP_APPLICATION_MAP] {
        assert_eq!(decode(flags), Err(Refused::General));
    }
    for flags in [0, GNTMAP_READONLY] {
        assert_eq!(decode(flags), Err(Refused::BadReference));
    }
    let replace = UnmapAndReplace { new_addr: 0x1000, ..Default::default() };
    assert_eq!(UnmapRequest::decode_replace(&replace), Err(Refused::General));
}

// ---- the table ----

#[test]
fn the_table_grows_up_to_its_limit_and_says_where_it_is_seen() {
    let memory = fake::memory(256);
    let limits = Limits { max_frames: 3, ..Limits::default() };
    let front = Guest::new(memory, FRONT, 0, limits);
    let table = front.grants.table();
    assert_eq!((table.frame_count(), table.max_frames()), (0, 3));
    let third = table.frame(memory, Kind::Entries, 2).unwrap();
    assert_eq!(table.frame_count(), 3);
    assert_eq!(table.frame(memory, Kind::Entries, 2), Ok(third));
    assert_eq!(table.frame(memory, Kind::Entries, 3), Err(Errno::EINVAL));
    assert_eq!(table.frame(memory, Kind::Entries, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(table.frame(memory, Kind::Status, 0), Err(Errno::EINVAL), "version 1 has no status frames");
    assert_eq!(table.moved_to(Kind::Entries, 2, Some(Gfn(7))), None);
    assert_eq!(table.moved_to(Kind::Entries, 2, Some(Gfn(8))), Some(Gfn(7)));
    assert_eq!(table.gfn(Kind::Entries, 2), Some(Gfn(8)));
    assert_eq!(table.gfn(Kind::Entries, 1), None);
}

#[test]
fn new_frames_of_a_table_hold_no_grants() {
    let (front, back) = pair();
    for gref in 0..512 {
        assert_eq!(back.map(&front, gref, HOLE, false), Err(Refused::General));
    }
}

#[test]
fn the_version_changes_only_while_no_entry_is_in_use() {
    let (front, mut back) = pair();
    let (table, memory) = (front.grants.table(), front.memory);
    front.grant(8, 0, BACK, RAM);
    let handle = back.map(&front, 8, HOLE, false).unwrap();
    assert_eq!(table.set_version(memory, 2), Err(Errno::EBUSY));
    assert_eq!(table.version(), 1);
    assert_eq!(table.set_version(memory, 1), Ok(()), "no change is no trouble");
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(table.set_version(memory, 2), Ok(()));
    assert_eq!(table.version(), 2);
    assert_eq!(back.map(&front, 8, HOLE, false), Err(Refused::General), "ordinary entries are emptied");
    assert_eq!(table.set_version(memory, 3), Err(Errno::EINVAL));
    assert_eq!(table.set_version(memory, 0), Err(Errno::EINVAL));
}

#[test]
fn a_domain_held_to_version_1_cannot_change() {
    let memory = fake::memory(64);
    let front = Guest::new(memory, FRONT, 0, Limits { max_version: 1, ..Limits::default() });
    assert_eq!(front.grants.table().set_version(memory, 2), Err(Errno::ENOSYS));
}

#[test]
fn reserved_entries_survive_a_change_of_version_even_in_use() {
    let (front, mut back) = pair();
    let (table, memory) = (front.grants.table(), front.memory);
    front.grant(1, 0, BACK, RAM + 2);
    let handle = back.map(&front, 1, HOLE, true).unwrap();
    table.set_version(memory, 2).unwrap();
    let entry: EntryV2 = front.peek(Kind::Entries, 16);
    assert_eq!((entry.flags, entry.domid, entry.frame), (GTF_PERMIT_ACCESS, BACK, RAM + 2));
    assert_eq!(front.status_v2(1), GTF_READING | GTF_WRITING);
    table.set_version(memory, 1).unwrap();
    assert_eq!(front.entry(1).flags, GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(front.entry(1), EntryV1 { flags: GTF_PERMIT_ACCESS, domid: BACK, frame: RAM as u32 + 2 });
}

#[test]
fn version_2_keeps_the_status_beside_the_entries() {
    let (front, mut back) = pair();
    front.grants.table().set_version(front.memory, 2).unwrap();
    let entry = EntryV2 { flags: GTF_PERMIT_ACCESS, domid: BACK, frame: RAM + 1, ..Default::default() };
    front.grant_v2(200, entry);
    let handle = back.map(&front, 200, HOLE, true).unwrap();
    assert_eq!(back.mfn(HOLE), front.mfn(RAM + 1));
    assert_eq!(front.status_v2(200), GTF_READING | GTF_WRITING);
    assert_eq!(front.peek::<EntryV2>(Kind::Entries, 200 * 16), entry, "the entry itself is the granter's alone");
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(front.status_v2(200), 0);
    // What is refused leaves no trace.
    front.grant_v2(201, EntryV2 { flags: GTF_PERMIT_ACCESS | GTF_READONLY, ..entry });
    assert_eq!(back.map(&front, 201, HOLE, true), Err(Refused::General));
    assert_eq!(front.status_v2(201), 0);
}

#[test]
fn entries_are_swapped_unless_in_use() {
    let (front, mut back) = pair();
    front.grant(8, 0, BACK, RAM);
    front.grant(9, GTF_READONLY, BACK, RAM + 1);
    let table = front.grants.table();
    table.swap(GrantRef(9), GrantRef(8)).unwrap();
    assert_eq!(front.entry(8).frame, RAM as u32 + 1);
    assert_eq!(front.entry(9).flags, GTF_PERMIT_ACCESS);
    let handle = back.map(&front, 9, HOLE, true).unwrap();
    assert_eq!(table.swap(GrantRef(8), GrantRef(9)), Err(Refused::Again));
    back.unmap(handle, HOLE).unwrap();
    assert_eq!(table.swap(GrantRef(8), GrantRef(8)), Ok(()));
    assert_eq!(table.swap(GrantRef(8), GrantRef(5000)), Err(Refused::BadReference));
}

#[test]
fn a_granter_that_keeps_changing_an_entry_cannot_hang_the_host() {
    let (front, _) = pair();
    front.grant(8, 0, BACK, RAM);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let frame = front.grants.table().frame(front.memory, Kind::Entries, 0).unwrap();
    let word = front.memory.window().atomic_u32(mm::HostPhys(frame.phys().0 + 64)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The granter flips a bit that is its own; the status bits must survive that, or be refused.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                word.fetch_xor(u32::from(GTF_PAT), std::sync::atomic::Ordering::SeqCst);
            }
        });
        for _ in 0..20_000 {
            match front.grants.table().pin(GrantRef(8), WRITE) {
                Ok(_) => {
                    let flags = word.load(std::sync::atomic::Ordering::SeqCst) as u16;
                    assert_eq!(flags & (GTF_READING | GTF_WRITING), GTF_READING | GTF_WRITING);
                    front.grants.table().unpin(GrantRef(8), true);
                }
                Err(refused) => assert_eq!(refused, Refused::General),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(front.entry(8).flags & (GTF_READING | GTF_WRITING), 0);
}

#[test]
fn uses_and_changes_of_version_at_once_leave_no_bit_behind() {
    let (front, _) = pair();
    let table = front.grants.table();
    front.grant(1, 0, BACK, RAM);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300_000 {
                        match table.pin(GrantRef(1), WRITE) {
                            Ok(granted) => {
                                assert_eq!(granted.frame, Gfn(RAM));
                                table.unpin(GrantRef(1), true);
                            }
                            Err(refused) => assert_eq!(refused, Refused::Again),
                        }
                    }
                })
            })
            .collect();
        for turn in 0u32.. {
            table.set_version(front.memory, 1 + turn % 2).unwrap();
            if users.iter().all(|user| user.is_finished()) {
                break;
            }
        }
    });
    table.set_version(front.memory, 1).unwrap();
    assert_eq!(front.entry(1), EntryV1 { flags: GTF_PERMIT_ACCESS, domid: BACK, frame: RAM as u32 });
}

// ---- copying ----

fn pointer(frame_or_ref: u64, domid: DomainId, offset: u16) -> CopyPtr {
    CopyPtr { frame_or_ref, domid, offset, pad: 0 }
}

fn copy(back: &Guest, front: &Guest, op: &GrantCopy) -> Result<(), Refused> {
    let request = CopyRequest::decode(op, back.id)?;
    let party = |place: copy::Place| if place.granter().is_some() { front.party() } else { back.party() };
    copy::copy(back.id, party(request.source), party(request.dest), &request)
}

#[test]
fn bytes_are_copied_from_and_to_grants() {
    let (front, back) = pair();
    front.grant(8, 0, BACK, RAM);
    front.fill(RAM, 1);
    back.fill(RAM, 2);
    let from_grant = GrantCopy {
        source: pointer(8, FRONT, 100),
        dest: pointer(RAM, DomainId::SELF, 4000),
        len: 96,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    copy(&back, &front, &from_grant).unwrap();
    let page = back.contents(RAM);
    assert_eq!((page[3999], page[4000], page[4095]), (2, 1, 1));
    let to_grant = GrantCopy {
        source: pointer(RAM, DomainId::SELF, 0),
        dest: pointer(8, FRONT, 0),
        len: 1,
        flags: GNTCOPY_DEST_GREF,
        ..Default::default()
    };
    copy(&back, &front, &to_grant).unwrap();
    assert_eq!(front.contents(RAM)[..2], [2, 1]);
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
    let whole = GrantCopy { len: 4096, ..to_grant };
    copy(&back, &front, &whole).unwrap();
    assert_eq!(front.contents(RAM), back.contents(RAM));
}

#[test]
fn a_copy_stays_within_its_pages_and_its_rights() {
    let (front, back) = pair();
    front.grant(8, GTF_READONLY, BACK, RAM);
    let op = GrantCopy {
        source: pointer(RAM, DomainId::SELF, 1),
        dest: pointer(8, FRONT, 0),
        len: 4096,
        flags: GNTCOPY_DEST_GREF,
        ..Default::default()
    };
    assert_eq!(copy(&back, &front, &op), Err(Refused::BadCopy));
    let op = GrantCopy { len: 4095, ..op };
    assert_eq!(copy(&back, &front, &op), Err(Refused::General), "the grant is read-only");
    let other = GrantCopy { source: pointer(RAM, FRONT, 0), ..op };
    assert_eq!(copy(&back, &front, &other), Err(Refused::Denied), "frames of others need a grant");
    let nowhere = GrantCopy { source: pointer(HOLE, DomainId::SELF, 0), ..op };
    front.grant(8, 0, BACK, RAM);
    assert_eq!(copy(&back, &front, &nowhere), Err(Refused::BadPage));
    assert_eq!(front.entry(8).flags, GTF_PERMIT_ACCESS);
}

#[test]
fn a_grant_of_a_part_is_copied_within_that_part_and_never_mapped() {
    let (front, back) = pair();
    front.grants.table().set_version(front.memory, 2).unwrap();
    front.fill(RAM, 7);
    front.grant_v2(
        8,
        EntryV2 { flags: GTF_PERMIT_ACCESS | GTF_SUB_PAGE, domid: BACK, page_off: 100, length: 50, frame: RAM },
    );
    assert_eq!(back.map(&front, 8, HOLE, false), Err(Refused::General));
    let op = |offset, len| GrantCopy {
        source: pointer(8, FRONT, offset),
        dest: pointer(RAM, DomainId::SELF, 0),
        len,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    assert_eq!(copy(&back, &front, &op(100, 50)), Ok(()));
    assert_eq!(copy(&back, &front, &op(99, 2)), Err(Refused::General));
    assert_eq!(copy(&back, &front, &op(140, 11)), Err(Refused::General));
    assert_eq!(back.contents(RAM)[49..51], [7, 0]);
    assert_eq!(front.status_v2(8), 0);
}

// ---- any sequence ----

#[derive(Clone, Copy, Debug)]
enum Step {
    Grant { gref: u32, page: u64, readonly: bool, to: bool },
    Revoke { gref: u32 },
    Map { gref: u32, at: u64, write: bool },
    Unmap { pick: usize, wrong_address: bool },
    Copy { gref: u32, write: bool },
    SetVersion(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let gref = 0..12u32;
    prop_oneof![
        (gref.clone(), 0..4u64, any::<bool>(), any::<bool>()).prop_map(|(gref, page, readonly, to)| Step::Grant {
            gref,
            page,
            readonly,
            to
        }),
        gref.clone().prop_map(|gref| Step::Revoke { gref }),
        (gref.clone(), 0..6u64, any::<bool>()).prop_map(|(gref, at, write)| Step::Map { gref, at, write }),
        (any::<usize>(), any::<bool>())
            .prop_map(|(pick, wrong_address)| Step::Unmap { pick, wrong_address: wrong_address && pick % 4 == 0 }),
        (gref, any::<bool>()).prop_map(|(gref, write)| Step::Copy { gref, write }),
        (1..3u32).prop_map(Step::SetVersion),
    ]
}

/// What the tests believe about a mapping.
struct Believed {
    handle: u32,
    at: u64,
    mfn: Mfn,
    write: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the granter writes and the mapper asks for: a frame is referenced exactly as often as it is mapped, writable
    /// mappings exist of writable grants only, and in the end nothing is left.
    #[test]
    fn mappings_and_references_stay_in_step(steps in prop::collection::vec(step(), 1..60)) {
        let (front, mut back) = pair();
        let table_memory = front.memory;
        let mut version = 1;
        let mut mapped: Vec<Believed> = Vec::new();
        for step in steps {
            match step {
                Step::Grant { gref, page, readonly, to } => {
                    let flags = if readonly { GTF_READONLY } else { 0 };
                    let domid = if to { BACK } else { DomainId(77) };
                    if version == 1 {
                        front.grant(gref, flags, domid, RAM + page);
                    } else {
                        let flags = GTF_PERMIT_ACCESS | flags;
                        front.grant_v2(gref, EntryV2 { flags, domid, frame: RAM + page, ..Default::default() });
                    }
                }
                Step::Revoke { gref } => {
                    let at = gref as usize * if version == 1 { 8 } else { 16 };
                    front.poke(Kind::Entries, at, &[0, 0]);
                }
                Step::Map { gref, at, write } => {
                    let occupied = back.p2m.lookup(Gfn(HOLE + at)).is_some();
                    if let Ok(handle) = back.map(&front, gref, HOLE + at, write) {
                        prop_assert!(!occupied);
                        let found = back.p2m.lookup(Gfn(HOLE + at)).unwrap();
                        prop_assert_eq!(found.kind, if write { PageKind::GrantRw } else { PageKind::GrantRo });
                        mapped.push(Believed { handle, at: HOLE + at, mfn: found.mfn, write });
                    }
                }
                Step::Unmap { pick, wrong_address } if !mapped.is_empty() => {
                    let pick = pick % mapped.len();
                    if wrong_address {
                        let at = mapped[pick].at + 100;
                        prop_assert_eq!(back.unmap(mapped[pick].handle, at), Err(Refused::BadAddress));
                    } else {
                        let believed = mapped.swap_remove(pick);
                        prop_assert_eq!(back.unmap(believed.handle, believed.at), Ok(()));
                    }
                }
                Step::Unmap { .. } => {}
                Step::Copy { gref, write } => {
                    let (grant, own) = (pointer(gref.into(), FRONT, 0), pointer(RAM, DomainId::SELF, 0));
                    let op = if write {
                        GrantCopy { source: own, dest: grant, len: 64, flags: GNTCOPY_DEST_GREF, ..Default::default() }
                    } else {
                        GrantCopy { source: grant, dest: own, len: 64, flags: GNTCOPY_SOURCE_GREF, ..Default::default() }
                    };
                    let _ = copy(&back, &front, &op);
                }
                Step::SetVersion(wanted) => {
                    if front.grants.table().set_version(table_memory, wanted).is_ok() {
                        version = wanted;
                    }
                    prop_assert_eq!(u32::from(front.grants.table().version()), version);
                }
            }
            prop_assert_eq!(back.grants.maptrack().len(), mapped.len());
            for page in 0..4 {
                let mfn = front.mfn(RAM + page);
                let times = mapped.iter().filter(|believed| believed.mfn == mfn).count();
                prop_assert_eq!(front.memory.state(mfn).count() as usize, times);
            }
            for believed in &mapped {
                let found = back.p2m.lookup(Gfn(believed.at)).unwrap();
                prop_assert_eq!((found.mfn, found.kind.writable()), (believed.mfn, believed.write));
            }
        }
        for believed in mapped.drain(..) {
            prop_assert_eq!(back.unmap(believed.handle, believed.at), Ok(()));
        }
        prop_assert!(back.grants.maptrack().is_empty());
        for gref in 0..12u32 {
            let status = if version == 1 { front.entry(gref).flags } else { front.status_v2(gref) };
            prop_assert_eq!(status & (GTF_READING | GTF_WRITING), 0);
        }
        prop_assert_eq!(front.grants.table().set_version(table_memory, 3 - version), Ok(()));
    }
}
