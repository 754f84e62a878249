//! What must hold of memory whatever domains do, and their end.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mm::addr::{Gfn, Mfn};
use mm::table::PageKind;
use mm::{FrameKind, FrameState};

use super::Fake;
use crate::domain::Domain;
use crate::system::System;
use crate::teardown::Teardown;

/// Frames that are neither free nor on their way, by what the frame table says.
pub fn frames_in_use(system: &System<Fake>) -> impl Iterator<Item = (Mfn, FrameState)> + '_ {
    let states = (0..system.memory.max_frame().0).map(|mfn| (Mfn(mfn), system.memory.state(Mfn(mfn))));
    states.filter(|(_, state)| !matches!(state.kind(), FrameKind::None | FrameKind::Free | FrameKind::Host))
}

/// Frames that are free and those that are in use: always as many.
pub fn all_frames(system: &System<Fake>) -> u64 {
    system.memory.free_frames() + frames_in_use(system).count() as u64
}

/// Every frame that a domain owns is mapped by it once, or waits to be populated; it is charged for each, and what it sees of others is kept for
/// it.
pub fn check_address_space(system: &System<Fake>, domain: &Domain<Fake>) {
    let (mut seen, mut on_demand) = (BTreeSet::new(), 0);
    let _ = domain.p2m.visit(Gfn(0), u64::MAX, |extent| -> ControlFlow<()> {
        if extent.mapping.kind == PageKind::OnDemand {
            on_demand += extent.frames;
            return ControlFlow::Continue(());
        }
        for index in 0..extent.frames {
            let mfn = Mfn(extent.mapping.mfn.0 + index);
            let state = system.memory.state(mfn);
            match extent.mapping.kind {
                PageKind::Ram if state.kind() == FrameKind::Owned => {
                    assert_eq!(state.owner(), domain.id);
                    assert!(seen.insert(mfn), "{mfn} is mapped twice");
                    assert!(!domain.one_to_one || mfn.0 == extent.gfn.0 + index);
                }
                PageKind::Ram => assert!(state.kind() == FrameKind::Shared && state.owner() == domain.id),
                PageKind::Foreign => assert!(state.owner() != domain.id && state.count() > 0),
                PageKind::GrantRw | PageKind::GrantRo => assert!(state.count() > 0),
                kind => assert_eq!(kind, PageKind::Mmio),
            }
        }
        ControlFlow::Continue(())
    });
    let own = |kind: FrameKind| {
        let is = move |state: FrameState| state.owner() == domain.id && state.kind() == kind;
        frames_in_use(system).filter(move |(_, state)| is(*state)).map(|(mfn, _)| mfn)
    };
    assert_eq!(own(FrameKind::Owned).collect::<BTreeSet<Mfn>>(), seen);
    let pod = domain.p2m.pod();
    assert_eq!(pod.entries, on_demand);
    if !domain.one_to_one {
        assert_eq!(own(FrameKind::Parked).count() as u64, pod.cache);
    }
    assert_eq!(domain.pages.load(Ordering::Relaxed), seen.len() as u64 + pod.cache);
}

/// Takes a domain down as a toolstack does, while others live on.
pub fn destroy(system: &System<Fake>, domain: Arc<Domain<Fake>>) {
    system.remove(domain.id);
    let mut teardown = Teardown::default();
    while !teardown.step(system, &domain) {}
    let parked = |state: FrameState| state.owner() == domain.id && state.kind() == FrameKind::Parked;
    for (mfn, _) in frames_in_use(system).filter(|(_, state)| parked(*state)).collect::<Vec<_>>() {
        system.memory.abandon(mfn, domain.id).unwrap();
    }
}
