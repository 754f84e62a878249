use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;

use core::ops::ControlFlow;

use super::*;
use crate::fake::{self, CachingTlb};

const OWNER: DomainId = DomainId(9);
const WB: MemoryType = MemoryType::WriteBack;

/// Shared by the many runs of the property, so that they do not eat up the host's memory.
static LARGE_MEMORY: LazyLock<&Memory> = LazyLock::new(|| fake::memory(16384));

fn p2m(largest: PageSize, frames: u64) -> P2m<fake::Format> {
    P2m::new(fake::Format::new(largest), fake::memory(frames), OWNER).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Map { gfn: u64, mfn: u64, frames: u64, kind: PageKind, memory: MemoryType },
    Unmap { gfn: u64, frames: u64 },
    Visit { gfn: u64, frames: u64 },
    Change { gfn: u64, frames: u64, from: PageKind, to: PageKind },
}

fn kind() -> impl Strategy<Value = PageKind> {
    prop::sample::select(vec![PageKind::Ram, PageKind::LogDirty, PageKind::Mmio])
}

/// Addresses and lengths that are often, but not always, at the edges of large pages, two 1 GiB pages wide.
fn edge() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..4, prop_oneof![3 => Just(0u64), 1 => 0u64..512])
        .prop_map(|(giga, mega, page)| (giga << 18) + (mega << 9) + page)
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![1u64..20, Just(512), Just(1024), Just(512 * 512), 400u64..1200];
    prop_oneof![
        3 => (edge(), edge(), length.clone(), kind(), prop::sample::select(vec![WB, MemoryType::Uncacheable]))
            .prop_map(|(gfn, mfn, frames, kind, memory)| Step::Map { gfn, mfn, frames, kind, memory }),
        2 => (edge(), length.clone()).prop_map(|(gfn, frames)| Step::Unmap { gfn, frames }),
        1 => (edge(), length.clone()).prop_map(|(gfn, frames)| Step::Visit { gfn, frames }),
        1 => (edge(), length, kind(), kind())
            .prop_map(|(gfn, frames, from, to)| Step::Change { gfn, frames, from, to }),
    ]
}

/// What the p2m should hold: for the gfns where anything begins or ends, and around them. (A map of each of the up to 800
/// thousand gfns would take too long, so the model keeps extents, cut at every edge that occurs.)
#[derive(Default)]
struct Model {
    extents: BTreeMap<u64, (u64, u64, PageKind, MemoryType)>,
}

impl Model {
    fn cut(&mut self, at: u64) {
        if let Some((&first, &(end, mfn, kind, memory))) = self.extents.range(..at).next_back()
            && at < end
        {
            self.extents.insert(first, (at, mfn, kind, memory));
            self.extents.insert(at, (end, mfn + (at - first), kind, memory));
        }
    }

    fn remove(&mut self, gfn: u64, frames: u64) -> Vec<(u64, u64, u64)> {
        self.cut(gfn);
        self.cut(gfn + frames);
        let keys: Vec<u64> = self.extents.range(gfn..gfn + frames).map(|(&key, _)| key).collect();
        keys.into_iter().map(|key| (key, self.extents.remove(&key).unwrap())).map(|(k, e)| (k, e.0, e.1)).collect()
    }

    fn lookup(&self, gfn: u64) -> Option<(Mfn, PageKind, MemoryType)> {
        let (&first, &(end, mfn, kind, memory)) = self.extents.range(..=gfn).next_back()?;
        (gfn < end).then(|| (Mfn(mfn + (gfn - first)), kind, memory))
    }

    fn frames_in(&self, gfn: u64, frames: u64) -> u64 {
        let inside = |(&first, extent): (&u64, &(u64, u64, PageKind, MemoryType))| {
            extent.0.min(gfn + frames).saturating_sub(first.max(gfn))
        };
        self.extents.iter().map(inside).sum()
    }

    /// The gfns at which something may go wrong.
    fn probes(&self) -> Vec<u64> {
        let edges = self.extents.iter().flat_map(|(&first, extent)| [first, extent.0]);
        let grid = (0..12).map(|i| (i % 3) << 18 | (i / 3) << 9);
        edges.chain(grid).flat_map(|at| [at.saturating_sub(1), at, at + 1, at + 511]).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_p2m_and_a_tlb_agree_with_a_map_of_extents(
        largest in prop::sample::select(PageSize::DESCENDING.to_vec()),
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let p2m = P2m::new(fake::Format::new(largest), *LARGE_MEMORY, OWNER).unwrap();
        let free_before = p2m.memory().free_frames() + p2m.table_frames();
        let (mut model, mut tlb) = (Model::default(), CachingTlb::new());
        for step in steps {
            match step {
                Step::Map { gfn, mfn, frames, kind, memory } => {
                    let frames = if largest == PageSize::Size4K { frames.min(2000) } else { frames };
                    let flush = p2m.map(Gfn(gfn), Mfn(mfn), frames, kind, memory).unwrap();
                    tlb.spend(&p2m, flush);
                    model.remove(gfn, frames);
                    model.extents.insert(gfn, (gfn + frames, mfn, kind, memory));
                }
                Step::Unmap { gfn, frames } => {
                    let mut shown = Vec::new();
                    let flush = p2m.unmap_each(Gfn(gfn), frames, |extent| shown.push(extent)).unwrap();
                    tlb.spend(&p2m, flush);
                    let mut at = gfn;
                    for extent in &shown {
                        prop_assert!(extent.gfn.0 >= at, "shown out of order");
                        at = extent.gfn.0 + extent.frames;
                        let expected = model.lookup(extent.gfn.0).map(|found| found.0);
                        prop_assert_eq!(expected, Some(extent.mapping.mfn));
                    }
                    prop_assert!(at <= gfn + frames);
                    let total: u64 = shown.iter().map(|extent| extent.frames).sum();
                    prop_assert_eq!(total, model.frames_in(gfn, frames));
                    model.remove(gfn, frames);
                }
                Step::Visit { gfn, frames } => {
                    let mut total = 0;
                    let _ = p2m.visit(Gfn(gfn), frames, |extent| -> ControlFlow<()> {
                        assert_eq!(model.lookup(extent.gfn.0).map(|found| found.0), Some(extent.mapping.mfn));
                        total += extent.frames;
                        ControlFlow::Continue(())
                    });
                    prop_assert_eq!(total, model.frames_in(gfn, frames));
                    let next = p2m.next_mapped(Gfn(gfn), &mut 1000).unwrap().map(|extent| extent.gfn.0);
                    let expected = match model.lookup(gfn) {
                        Some(_) => Some(gfn),
                        None => model.extents.range(gfn..).next().map(|(&first, _)| first),
                    };
                    prop_assert_eq!(next, expected);
                }
                Step::Change { gfn, frames, from, to } => {
                    let flush = p2m.change_kind(Gfn(gfn), frames, from, to).unwrap();
                    tlb.spend(&p2m, flush);
                    model.cut(gfn);
                    model.cut(gfn + frames);
                    for (_, extent) in model.extents.range_mut(gfn..gfn + frames) {
                        if extent.2 == from {
                            extent.2 = to;
                        }
                    }
                }
            }
            for gfn in model.probes() {
                let got = p2m.lookup(Gfn(gfn)).map(|found| (found.mfn, found.kind, found.memory));
                prop_assert_eq!(got, model.lookup(gfn), "gfn {:#x}", gfn);
                let cached = tlb.access(&p2m, Gfn(gfn)).map(|found| (found.mfn, found.kind, found.memory));
                prop_assert_eq!(cached, got, "a flush for gfn {:#x} is missing", gfn);
            }
            let memory = p2m.memory();
            prop_assert_eq!(memory.free_frames() + p2m.table_frames(), free_before, "a table is lost or not counted");
        }
        let memory = p2m.memory();
        drop(p2m);
        prop_assert_eq!(memory.free_frames(), free_before, "destroying frees every table");
    }
}

#[test]
fn the_largest_pages_that_fit_are_used() {
    let p2m = p2m(PageSize::Size1G, 64);
    let giga = 1 << 18;
    assert!(p2m.map(Gfn(giga - 512 - 3), Mfn(5 * giga - 512 - 3), 2 * giga, PageKind::Ram, WB).unwrap().is_none());
    let size = |gfn| p2m.lookup(Gfn(gfn)).unwrap().size;
    assert_eq!(size(giga - 512 - 1), PageSize::Size4K);
    assert_eq!(size(giga - 512), PageSize::Size2M);
    assert_eq!(size(giga), PageSize::Size1G);
    assert_eq!(size(2 * giga), PageSize::Size2M);
    assert_eq!(size(3 * giga - 512 - 4), PageSize::Size4K);
}

#[test]
fn frames_that_are_not_aligned_alike_are_mapped_by_small_pages() {
    let p2m = p2m(PageSize::Size1G, 64);
    assert!(p2m.map(Gfn(512), Mfn(1), 1024, PageKind::Ram, WB).unwrap().is_none());
    assert_eq!(
        p2m.lookup(Gfn(1024)),
        Some(Mapping { mfn: Mfn(513), size: PageSize::Size4K, kind: PageKind::Ram, memory: WB })
    );
}

#[test]
fn mapping_where_nothing_was_needs_no_flush_and_the_same_again_neither() {
    let p2m = p2m(PageSize::Size1G, 64);
    assert!(p2m.map(Gfn(0), Mfn(0), 5000, PageKind::Ram, WB).unwrap().is_none());
    assert!(p2m.map(Gfn(0), Mfn(0), 5000, PageKind::Ram, WB).unwrap().is_none());
    assert!(p2m.unmap(Gfn(6000), 1 << 30).unwrap().is_none());
    let before = p2m.generation();
    let flush = p2m.unmap(Gfn(17), 1).unwrap();
    assert_eq!(flush.spend(), Some(p2m.generation()));
    assert_eq!(p2m.generation(), before + 1);
    assert!(p2m.map(Gfn(17), Mfn(99), 1, PageKind::Ram, WB).unwrap().is_none());
}

#[test]
fn merged_flushes_are_one() {
    assert!(Flush::none().merge(Flush::none()).is_none());
    let (early, late) = (Flush { generation: 3 }, Flush { generation: 5 });
    assert_eq!(late.merge(early).merge(Flush::none()).spend(), Some(5));
}

#[test]
fn running_out_of_tables_changes_nothing() {
    let p2m = p2m(PageSize::Size1G, 64);
    assert!(p2m.map(Gfn(0), Mfn(1 << 18), 1 << 18, PageKind::Ram, WB).unwrap().is_none());
    p2m.set_table_limit(p2m.table_frames() + 1);
    assert_eq!(p2m.map(Gfn(700), Mfn(3), 1, PageKind::Mmio, WB), Err(Errno::ENOMEM));
    assert_eq!(p2m.unmap(Gfn(700), 1), Err(Errno::ENOMEM));
    assert_eq!(p2m.change_kind(Gfn(700), 1, PageKind::Ram, PageKind::Mmio), Err(Errno::ENOMEM));
    for gfn in [0, 699, 700, 701, (1 << 18) - 1] {
        let found = p2m.lookup(Gfn(gfn)).unwrap();
        assert_eq!((found.mfn, found.kind), (Mfn((1 << 18) + gfn), PageKind::Ram));
    }
    assert_eq!(p2m.generation(), 1);
}

#[test]
fn ranges_that_do_not_exist_are_refused() {
    let p2m = p2m(PageSize::Size1G, 64);
    for (gfn, mfn, frames) in [(0, 0, 0), ((1 << 36) - 1, 0, 2), (u64::MAX, 0, 1), (0, 1 << 40, 1), (0, u64::MAX, 2)] {
        assert_eq!(p2m.map(Gfn(gfn), Mfn(mfn), frames, PageKind::Ram, WB), Err(Errno::EINVAL));
    }
    assert_eq!(p2m.unmap(Gfn(0), u64::MAX), Err(Errno::EINVAL));
    assert_eq!(p2m.lookup(Gfn(1 << 36)), None);
    assert_eq!(p2m.lookup(Gfn(u64::MAX)), None);
}

#[test]
fn a_table_taken_out_stays_until_its_generation_is_flushed() {
    let p2m = p2m(PageSize::Size2M, 64);
    assert!(p2m.map(Gfn(0), Mfn(3), 512, PageKind::Ram, WB).unwrap().is_none());
    assert_eq!(p2m.table_frames(), 4);
    let flush = p2m.map(Gfn(0), Mfn(512), 512, PageKind::Ram, WB).unwrap();
    p2m.reclaim(1);
    assert_eq!(p2m.table_frames(), 4);
    p2m.reclaim(flush.spend().unwrap());
    assert_eq!(p2m.table_frames(), 3);
}

#[test]
fn one_page_of_a_large_one_is_made_small() {
    let p2m = p2m(PageSize::Size1G, 256);
    assert!(p2m.map(Gfn(0), Mfn(1 << 18), 1 << 18, PageKind::Ram, WB).unwrap().is_none());
    let generation = p2m.generation();
    p2m.split_at(Gfn(1000)).unwrap();
    let size = |gfn| p2m.lookup(Gfn(gfn)).unwrap().size;
    assert_eq!(
        (size(1000), size(1023), size(511), size(1024)),
        (PageSize::Size4K, PageSize::Size4K, PageSize::Size2M, PageSize::Size2M)
    );
    let tables = p2m.table_frames();
    assert_eq!((p2m.split_at(Gfn(1000)), p2m.split_at(Gfn(1 << 20))), (Ok(()), Ok(())));
    assert_eq!(p2m.split_at(Gfn(1 << 60)), Err(Errno::EINVAL));
    assert_eq!((p2m.table_frames(), p2m.generation()), (tables, generation), "what translates to what is the same");
    p2m.set_table_limit(tables);
    assert_eq!(p2m.split_at(Gfn(0)), Err(Errno::ENOMEM));
    assert_eq!((p2m.lookup(Gfn(1000)).unwrap().mfn, size(0)), (Mfn((1 << 18) + 1000), PageSize::Size2M));
}

#[test]
fn a_map_that_nobody_uses_goes_bit_by_bit() {
    let mut p2m = p2m(PageSize::Size2M, 256);
    let free = p2m.memory().free_frames();
    for at in 0..20 {
        assert!(p2m.map(Gfn(at << 9 | at << 18), Mfn(at), 1, PageKind::Ram, WB).unwrap().is_none());
    }
    assert!(p2m.map(Gfn(1 << 30), Mfn(512), 512, PageKind::Ram, WB).unwrap().is_none());
    let mut tables = p2m.table_frames();
    while !p2m.take_apart(7) {
        let freed = tables - p2m.table_frames();
        assert!((7..7 + 3).contains(&freed), "{freed}, with those above the last");
        tables -= freed;
    }
    assert_eq!((p2m.table_frames(), p2m.memory().free_frames()), (1, free));
    assert!(p2m.take_apart(0));
    drop(p2m);
}

#[test]
fn a_reference_is_to_the_domains_own_memory() {
    let p2m = p2m(PageSize::Size4K, 64);
    let memory = p2m.memory();
    let own = memory.allocate(0, None).unwrap().scrub().give_to(OWNER);
    let foreign = memory.allocate(0, None).unwrap().scrub().give_to(DomainId(1));
    let map = |gfn, mfn, kind| assert!(p2m.map(Gfn(gfn), mfn, 1, kind, WB).unwrap().is_none());
    map(1, own, PageKind::Ram);
    map(2, foreign, PageKind::Foreign);
    map(3, Mfn(0xfee00), PageKind::Mmio);
    assert_eq!(p2m.reference(Gfn(1)).unwrap().0.mfn(), own);
    assert_eq!(p2m.reference(Gfn(2)).unwrap_err(), Errno::EPERM);
    assert_eq!(p2m.reference(Gfn(3)).unwrap_err(), Errno::EINVAL);
    assert_eq!(p2m.reference(Gfn(4)).unwrap_err(), Errno::EINVAL);
}

#[test]
fn lookups_during_changes_see_the_old_or_the_new_mapping() {
    let p2m = p2m(PageSize::Size1G, 4096);
    assert!(p2m.map(Gfn(0), Mfn(0), 4096, PageKind::Ram, WB).unwrap().is_none());
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for round in 1..200u64 {
                let shift = if round % 2 == 0 { 0 } else { 512 * round };
                // Nothing is reclaimed: no grace period has passed for the readers.
                let _ = p2m.map(Gfn(0), Mfn(shift), 4096, PageKind::Ram, WB).unwrap().spend();
                let _ = p2m.map(Gfn(5), Mfn(shift + 5), 600, PageKind::Ram, WB).unwrap().spend();
            }
        });
        while !changer.is_finished() {
            for gfn in (0..4096).step_by(101) {
                let found = p2m.lookup(Gfn(gfn)).expect("never unmapped");
                assert_eq!(found.mfn.0 % 512, gfn % 512);
            }
        }
    });
}

#[test]
fn nothing_is_mapped_over_where_absence_is_asked_for() {
    let p2m = p2m(PageSize::Size2M, 64);
    let absent = |gfn, frames| p2m.map_absent(Gfn(gfn), Mfn(gfn), frames, PageKind::Ram, WB);
    assert!(absent(512, 512).unwrap().is_none());
    assert_eq!(absent(1000, 100), Err(Errno::EEXIST));
    assert_eq!(p2m.lookup(Gfn(1024)), None);
    for gfn in 512..1024 {
        let _ = p2m.unmap(Gfn(gfn), 1).unwrap();
    }
    // The table of 4 KiB pages is empty now, and gives way to one page.
    assert!(!absent(512, 512).unwrap().is_none());
    assert_eq!(p2m.lookup(Gfn(700)).map(|found| found.size), Some(PageSize::Size2M));
}

#[test]
fn the_highest_gfn_that_was_ever_mapped_is_known() {
    let p2m = p2m(PageSize::Size1G, 64);
    assert_eq!(p2m.highest_mapped(), None);
    for (gfn, frames) in [(5, 1), (1 << 18, 1 << 18), (3 << 27, 7)] {
        assert!(p2m.map(Gfn(gfn), Mfn(gfn), frames, PageKind::Mmio, WB).unwrap().is_none());
        assert_eq!(p2m.highest_mapped(), Some(Gfn(gfn + frames - 1)));
    }
    let _ = p2m.unmap(Gfn(1 << 10), 1 << 30).unwrap();
    assert_eq!(p2m.highest_mapped(), Some(Gfn((3 << 27) + 6)));
    p2m.insert(Gfn(1 << 30), Mfn(1), PageKind::Ram, WB).unwrap();
    assert_eq!(p2m.highest_mapped(), Some(Gfn(1 << 30)));
}
