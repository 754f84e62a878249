//! What holds whatever a domain does with its address space, in any order.

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
    ]
}

fn run(one_to_one: bool, steps: &[Step]) {
    let system = fake::system(1536);
    let untouched = system.memory.free_frames();
    let total = fake::all_frames(system);
    let domain = fake::add(system, Wanted { pages: 20, max_pages: 1300, one_to_one, ..Wanted::default() });
    let other = fake::add_domain(system, 5, 4);
    let mut held = Vec::new();
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
        }
        fake::check_address_space(system, &domain);
        assert_eq!(fake::all_frames(system), total);
    }
    fake::destroy(system, domain);
    drop(held);
    fake::destroy(system, other);
    assert_eq!(system.memory.free_frames(), untouched, "nothing is left of the domains");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

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
