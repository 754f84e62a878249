//! What holds whatever a domain does with its address space, in any order.

use core::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::fake::{self, DEVICE, RAM, Wanted};

/// Gfns that steps are about: the domain's first pages, two stretches that 2 MiB fit into, a device, one that does not exist.
fn gfn() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => RAM..RAM + 24,
        2 => (0u64..3).prop_map(|large| 0x400 + large * 512),
        2 => 0x400u64..0x400 + 1100,
        1 => Just(DEVICE),
        1 => Just(1 << 60),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Populate {
        gfn: u64,
        order: u8,
    },
    Remove {
        gfn: u64,
        frames: u64,
    },
    Move {
        from: u64,
        to: u64,
    },
    /// The page that another domain has at its own [`RAM`] and on.
    Foreign {
        page: u64,
        at: u64,
    },
    Shared {
        at: u64,
    },
    /// Somebody else comes to use a page, or ceases to.
    Hold {
        gfn: u64,
    },
    LetGo,
    OnDemand {
        gfn: u64,
        order: u8,
    },
    /// The guest uses a page.
    Touch {
        gfn: u64,
    },
    /// As [`Touch`](Step::Touch), but nothing is written, and pages of zeroes are looked for if the cache is empty.
    Look {
        gfn: u64,
    },
    /// How much it is to have.
    Target {
        pages: u64,
    },
    Claim {
        pages: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (gfn(), prop_oneof![3 => Just(0u8), 1 => 1u8..4, 1 => Just(9)])
            .prop_map(|(gfn, order)| Step::Populate { gfn, order }),
        3 => (gfn(), prop_oneof![3 => Just(1u64), 1 => 1u64..40, 1 => Just(512)])
            .prop_map(|(gfn, frames)| Step::Remove { gfn, frames }),
        2 => (gfn(), gfn()).prop_map(|(from, to)| Step::Move { from, to }),
        1 => (0u64..4, gfn()).prop_map(|(page, at)| Step::Foreign { page, at }),
        1 => gfn().prop_map(|at| Step::Shared { at }),
        1 => gfn().prop_map(|gfn| Step::Hold { gfn }),
        1 => Just(Step::LetGo),
        3 => (gfn(), prop_oneof![2 => Just(0u8), 1 => 1u8..4, 3 => Just(9)])
            .prop_map(|(gfn, order)| Step::OnDemand { gfn, order }),
        3 => gfn().prop_map(|gfn| Step::Touch { gfn }),
        3 => gfn().prop_map(|gfn| Step::Look { gfn }),
        2 => (0u64..1400).prop_map(|pages| Step::Target { pages }),
        1 => (0u64..700).prop_map(|pages| Step::Claim { pages }),
    ]
}

/// What becomes of a page that is populated on demand when it is used, and only of that.
fn touch(system: &'static System<fake::Fake>, domain: &Domain<fake::Fake>, gfn: Gfn) {
    let (before, pod) = (domain.p2m.lookup(gfn), domain.p2m.pod());
    let touched = domain.p2m.populate(gfn);
    let (after, left) = (domain.p2m.lookup(gfn), domain.p2m.pod());
    match before {
        Some(Mapping { kind: PageKind::OnDemand, size, .. }) if touched.is_ok() => {
            let found = after.unwrap();
            let count = pod.cache - left.cache;
            assert_eq!((found.kind, pod.entries - left.entries), (PageKind::Ram, count));
            assert!(count == found.size.frames() && found.size <= size);
            let mut bytes = [1; mm::PAGE_SIZE];
            system.memory.window().copy_from(found.mfn.phys(), &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "it is all zeroes");
            // Somebody's secret.
            system.memory.window().copy_to(found.mfn.phys(), &[7; 64]).unwrap();
        }
        before => {
            assert_eq!((before, pod), (after, left));
            let refused = touched == Err(Errno::ENOMEM);
            assert_eq!(refused, before.is_some_and(|found| found.kind == PageKind::OnDemand));
            assert!(!refused || pod.cache == 0);
        }
    }
}

/// The pages of the domain's own memory that nobody else uses: those that begin with `byte`, and where they are.
fn begin_with(system: &'static System<fake::Fake>, domain: &Domain<fake::Fake>, byte: u8) -> Vec<(u64, Mfn)> {
    let mut found = Vec::new();
    let _ = domain.p2m.visit(Gfn(0), u64::MAX, |extent| -> ControlFlow<()> {
        for index in (0..extent.frames).filter(|_| extent.mapping.kind == PageKind::Ram) {
            let mfn = Mfn(extent.mapping.mfn.0 + index);
            let state = system.memory.state(mfn);
            let mut first = [0];
            system.memory.window().copy_from(mfn.phys(), &mut first).unwrap();
            if state.kind() == FrameKind::Owned && state.count() == 0 && first == [byte] {
                found.push((extent.gfn.0 + index, mfn));
            }
        }
        ControlFlow::Continue(())
    });
    found
}

/// The guest reads a page, again and again if need be.
fn look(system: &'static System<fake::Fake>, domain: &Domain<fake::Fake>, gfn: Gfn) {
    let (before, written) = (domain.p2m.lookup(gfn), begin_with(system, domain, 7));
    if before.is_none_or(|found| found.kind != PageKind::OnDemand) {
        return;
    }
    for turn in 0.. {
        assert!(turn < 20, "there is no end to it");
        if on_demand::touched(system, domain, gfn).is_err() {
            // As good as none are left.
            let left = domain.p2m.pod().cache + begin_with(system, domain, 0).len() as u64;
            assert!(domain.shutdown_reason().is_some() && left < 32, "{left}");
            break;
        }
        match domain.p2m.lookup(gfn) {
            Some(found) if found.kind == PageKind::Ram => {
                assert_eq!(system.memory.window().read_u64(found.mfn.phys()), Ok(0));
                break;
            }
            found => assert_eq!(found.unwrap().kind, PageKind::OnDemand),
        }
    }
    assert_eq!(begin_with(system, domain, 7), written, "nothing is lost");
}

#[test]
fn what_others_still_use_of_a_domains_memory_is_charged_to_it() {
    let system = fake::system(256);
    let domain = fake::add(system, Wanted { pages: 4, max_pages: 6, ..Wanted::default() });
    let mut held = Vec::new();
    for turn in 0.. {
        held.push(domain.p2m.reference(Gfn(RAM)).unwrap().0);
        Changes::new(system, &domain).remove(Gfn(RAM)).unwrap();
        if populate(system, &domain, Gfn(RAM), 0).is_err() {
            assert_eq!(turn, 2, "it has three, and three that it gave up");
            break;
        }
    }
    assert_eq!((domain.pages.load(Ordering::Relaxed), system.memory.lingering(domain.id)), (3, 3));
    held.pop();
    assert_eq!(populate(system, &domain, Gfn(RAM), 0), Ok(()));
    drop(held);
    assert_eq!((domain.pages.load(Ordering::Relaxed), system.memory.lingering(domain.id)), (4, 0));
}

fn run(one_to_one: bool, steps: &[Step]) {
    let system = fake::system(1536);
    let untouched = system.memory.free_frames();
    let total = fake::all_frames(system);
    let domain = fake::add(system, Wanted { pages: 20, max_pages: 1300, one_to_one, ..Wanted::default() });
    let other = fake::add_domain(system, 5, 4);
    let mut held = Vec::new();
    // While a domain is built, its cache may be there before what it is for.
    let mut is_built = true;
    for step in steps {
        match *step {
            Step::Populate { gfn, order } => _ = populate(system, &domain, Gfn(gfn), order),
            Step::Remove { gfn, frames } => _ = Changes::new(system, &domain).remove_extent(Gfn(gfn), frames),
            Step::Move { from, to } => _ = move_page(system, &domain, Gfn(from), Gfn(to)),
            Step::Foreign { page, at } => {
                let (reference, _) = other.p2m.reference(Gfn(RAM + page)).unwrap();
                let placed = Changes::new(system, &domain).place(Gfn(at), reference.mfn(), PageKind::Foreign);
                if placed.is_ok() {
                    reference.keep();
                }
            }
            Step::Shared { at } => {
                _ = Changes::new(system, &domain).place(Gfn(at), domain.shared_info.mfn(), PageKind::Ram);
            }
            Step::Hold { gfn } => held.extend(domain.p2m.reference(Gfn(gfn)).ok()),
            Step::LetGo => drop(held.pop()),
            Step::OnDemand { gfn, order } => _ = on_demand::mark(system, &domain, Gfn(gfn), order),
            Step::Touch { gfn } => touch(system, &domain, Gfn(gfn)),
            Step::Look { gfn } => look(system, &domain, Gfn(gfn)),
            Step::Target { pages } => {
                is_built &= domain.pages.load(Ordering::Relaxed) > domain.p2m.pod().cache;
                while let Ok(false) = on_demand::approach(system, &domain, pages, 300) {}
            }
            Step::Claim { pages } => _ = system.claim(&domain, pages),
        }
        let pod = domain.p2m.pod();
        assert!(!is_built || pod.cache <= pod.entries, "{pod:?}");
        assert!(domain.pages.load(Ordering::Relaxed) + system.memory.lingering(domain.id) <= 1300);
        assert!(system.claimed() <= system.memory.free_frames());
        assert_eq!(system.claimed(), domain.control.claim.load(Ordering::Relaxed));
        fake::check_address_space(system, &domain);
        assert_eq!(fake::all_frames(system), total);
    }
    fake::destroy(system, domain);
    drop(held);
    fake::destroy(system, other);
    assert_eq!(system.memory.free_frames(), untouched, "nothing is left of the domains");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_is_in_one_place_and_none_is_lost(steps in prop::collection::vec(step(), 1..60)) {
        run(false, &steps);
    }

    #[test]
    fn a_one_to_one_domains_frames_stay_where_they_are(steps in prop::collection::vec(step(), 1..60)) {
        run(true, &steps);
    }
}

#[test]
fn several_changes_are_flushed_once_and_only_then_are_the_frames_free() {
    let system = fake::system(1024);
    let domain = fake::add_domain(system, 0, 16);
    let free = system.memory.free_frames();
    let mut changes = Changes::new(system, &domain);
    for page in 0..10 {
        changes.remove(Gfn(RAM + page)).unwrap();
    }
    assert_eq!((system.memory.free_frames(), domain.p2m.lookup(Gfn(RAM))), (free, None));
    drop(changes);
    assert_eq!(system.memory.free_frames(), free + 10);
    assert_eq!(system.machine.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn of_several_who_empty_a_place_one_has_the_frame() {
    let system = fake::system(1024);
    let domain = fake::add_domain(system, 0, 64);
    let removed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let domain = &domain;
                scope.spawn(move || {
                    (0..64).filter(|page| Changes::new(system, domain).remove(Gfn(RAM + page)).is_ok()).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((removed, domain.pages.load(Ordering::Relaxed)), (64, 0));
}

#[test]
fn empty_tables_make_for_more_steps_when_a_domain_is_taken_down() {
    let system = fake::system(2048);
    let domain = fake::add_domain(system, 5, 16);
    for table in 64..364 {
        let gfn = Gfn(table * 512);
        domain.p2m.insert(gfn, Mfn(1), PageKind::Foreign, MemoryType::WriteBack).unwrap();
        let flush = domain.p2m.remove(gfn, Mfn(1), PageKind::Foreign);
        system.machine.flush(&domain, flush);
    }
    let mut at = Gfn(64 * 512);
    let steps = core::iter::repeat_with(|| relinquish(system, &domain, &mut at, 9)).take_while(|done| !done).count();
    assert!((300 / 40..300 / 30).contains(&steps), "{steps}");
}

#[test]
fn what_is_claimed_stays_so_while_it_comes_back() {
    let system = fake::system(1024);
    let [first, second] =
        [5, 6].map(|id| fake::add(system, Wanted { id, pages: 20, max_pages: 1000, ..Wanted::default() }));
    // Tables for what is to come.
    populate(system, &second, Gfn(0x400), 0).unwrap();
    let claimed = system.memory.free_frames();
    system.claim(&first, 20 + claimed).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for _ in 0..5000 {
                assert_eq!(populate(system, &first, Gfn(RAM), 3), Err(Errno::EEXIST), "there is something");
            }
        });
        while !other.is_finished() {
            assert_eq!(populate(system, &second, Gfn(0x401), 0), Err(Errno::ENOMEM));
        }
    });
    assert_eq!((system.claimed(), system.memory.free_frames()), (claimed, claimed));
}

#[test]
fn a_page_that_is_withheld_is_moved_though_nothing_is_to_be_populated_any_more() {
    let system = fake::system(1024);
    let domain = fake::add_domain(system, 5, 16);
    on_demand::mark(system, &domain, Gfn(0x400), 0).unwrap();
    let (withheld, flush) = domain.p2m.withhold_zeroes(100).unwrap();
    system.machine.flush(&domain, flush);
    Changes::new(system, &domain).remove(Gfn(0x400)).unwrap();
    assert_eq!(domain.p2m.pod().entries, 0);
    assert_eq!(domain.p2m.lookup(Gfn(RAM + 9)).map(|found| found.kind), Some(PageKind::Withheld));
    move_page(system, &domain, Gfn(RAM + 9), Gfn(0x500)).unwrap();
    assert_eq!(domain.p2m.lookup(Gfn(0x500)).map(|found| found.kind), Some(PageKind::Ram));
    domain.p2m.reclaim_zeroes(withheld);
    fake::check_address_space(system, &domain);
}
