//! The part of a virtual local APIC that other CPUs write: the interrupts requested of it, an NMI, INIT and start-up.
//!
//! Posting takes no lock and never waits. The one word `attention` says whether there is anything at all, so that the
//! run loop asks with one load before every entry.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::message::{Delivery, Identity};

/// Bits 7:0 of the attention word: which words of the IRR may not be empty.
const IRR_WORDS: u32 = 0xff;
const NMI: u32 = 1 << 8;
const STARTUP: u32 = 1 << 9;

/// The start-up word. INIT and SIPI change it at once, in the sender's context: a SIPI that follows an INIT finds the
/// vCPU waiting even if the CPU that runs it has not yet noticed.
const WAITING: u32 = 1 << 0;
const RESET_DUE: u32 = 1 << 1;
const START_DUE: u32 = 1 << 2;
const START_PAGE_SHIFT: u32 = 8;

/// Whether a posted message gives the receiver something new to look at.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use = "a vCPU that is not told may sleep through its interrupt"]
pub enum Posted {
    /// Wake the vCPU if it sleeps, kick it out of the guest if it runs.
    New,
    /// It had been told before, or does not listen.
    Nothing,
}

/// What INIT and SIPI ask of the CPU that runs the vCPU, in this order.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// INIT: put registers and local APIC into their INIT state.
    pub reset: bool,
    /// SIPI: begin in real mode at this page (CS selector = page << 8, IP = 0).
    pub start_page: Option<u8>,
}

#[derive(Debug)]
#[repr(align(64))]
pub struct LapicInbox {
    attention: AtomicU32,
    startup: AtomicU32,
    /// An [`Identity`], written by the owner whenever it changes.
    identity: AtomicU64,
    irr: [AtomicU32; 8],
    tmr: [AtomicU32; 8],
}

#[inline]
const fn bit(vector: u8) -> u32 {
    1 << (vector & 31)
}

#[inline]
const fn word(vector: u8) -> usize {
    (vector >> 5) as usize
}

impl LapicInbox {
    /// For the vCPU with this identity: the boot vCPU runs at once, the others wait for INIT and SIPI.
    pub const fn new(identity: Identity, waits_for_sipi: bool) -> LapicInbox {
        LapicInbox {
            attention: AtomicU32::new(0),
            startup: AtomicU32::new(if waits_for_sipi { WAITING } else { 0 }),
            identity: AtomicU64::new(identity.bits()),
            irr: [const { AtomicU32::new(0) }; 8],
            tmr: [const { AtomicU32::new(0) }; 8],
        }
    }

    // What anyone may do.

    #[inline]
    pub fn identity(&self) -> Identity {
        Identity::from_bits(self.identity.load(Ordering::Relaxed))
    }

    /// Requests an interrupt. Vectors below 16 are the sender's error and never get here; the request is dropped.
    #[inline]
    pub fn post(&self, vector: u8, level: bool) -> Posted {
        let (Some(irr), Some(tmr)) = (self.irr.get(word(vector)), self.tmr.get(word(vector))) else {
            return Posted::Nothing;
        };
        if vector < 16 {
            return Posted::Nothing;
        }
        // The trigger mode is in place before the request, so that whoever accepts the one sees the other.
        if level {
            tmr.fetch_or(bit(vector), Ordering::Relaxed);
        } else if tmr.load(Ordering::Relaxed) & bit(vector) != 0 {
            tmr.fetch_and(!bit(vector), Ordering::Relaxed);
        }
        if irr.fetch_or(bit(vector), Ordering::AcqRel) & bit(vector) != 0 {
            return Posted::Nothing;
        }
        self.attention.fetch_or(1 << word(vector), Ordering::AcqRel);
        Posted::New
    }

    pub fn post_nmi(&self) -> Posted {
        match self.attention.fetch_or(NMI, Ordering::AcqRel) & NMI {
            0 => Posted::New,
            _ => Posted::Nothing,
        }
    }

    /// INIT: from now on the vCPU waits for a SIPI, and its reset is due.
    pub fn post_init(&self) -> Posted {
        self.startup.store(WAITING | RESET_DUE, Ordering::Release);
        self.attention.fetch_or(STARTUP, Ordering::AcqRel);
        Posted::New
    }

    /// SIPI: starts the vCPU at `page` << 12 if it waits for one. SDM Vol. 3, 9.4.4.1: otherwise it is ignored.
    pub fn post_sipi(&self, page: u8) -> Posted {
        let started = self.startup.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            (old & WAITING != 0).then_some(old & RESET_DUE | START_DUE | u32::from(page) << START_PAGE_SHIFT)
        });
        if started.is_err() {
            return Posted::Nothing;
        }
        self.attention.fetch_or(STARTUP, Ordering::AcqRel);
        Posted::New
    }

    /// Does what a message asks of its receiver. The message's target is resolved already.
    #[inline]
    pub fn accept(&self, delivery: Delivery, vector: u8, level: bool) -> Posted {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.post(vector, level),
            Delivery::Nmi => self.post_nmi(),
            Delivery::Init => self.post_init(),
            Delivery::StartUp => self.post_sipi(vector),
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => Posted::Nothing,
        }
    }

    /// Whether there is anything to look at: an interrupt requested (whatever its priority), an NMI, INIT or SIPI.
    #[inline]
    pub fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::Acquire) != 0
    }

    /// Whether the vCPU has been told to wait for a SIPI and none has come: it must not run.
    #[inline]
    pub fn waits_for_sipi(&self) -> bool {
        self.startup.load(Ordering::Acquire) & WAITING != 0
    }

    /// The vCPU is started otherwise than by a SIPI, and waits for none; it does not run, and nobody posts to it.
    pub fn start(&self) {
        self.startup.store(0, Ordering::Release);
        self.attention.fetch_and(!STARTUP, Ordering::AcqRel);
    }

    // What the CPU that runs the vCPU does.

    /// Publishes a changed identity.
    pub(super) fn publish(&self, identity: Identity) {
        self.identity.store(identity.bits(), Ordering::Release);
    }

    /// Whether an NMI waits to be taken.
    #[inline]
    pub fn nmi_pending(&self) -> bool {
        self.attention.load(Ordering::Acquire) & NMI != 0
    }

    /// Whether INIT or SIPI wait to be taken.
    #[inline]
    pub fn startup_pending(&self) -> bool {
        self.attention.load(Ordering::Acquire) & STARTUP != 0
    }

    /// Whether an NMI was posted. Taking it leaves none.
    #[inline]
    pub fn take_nmi(&self) -> bool {
        self.attention.load(Ordering::Acquire) & NMI != 0 && self.attention.fetch_and(!NMI, Ordering::AcqRel) & NMI != 0
    }

    /// What INIT and SIPI ask for, if anything. Taking it leaves nothing due.
    #[inline]
    pub fn take_startup(&self) -> Option<Startup> {
        if self.attention.load(Ordering::Acquire) & STARTUP == 0 {
            return None;
        }
        // The flag goes first: what is posted after this sets it again.
        self.attention.fetch_and(!STARTUP, Ordering::AcqRel);
        let due = self.startup.fetch_and(WAITING, Ordering::AcqRel);
        let start_page = (due & START_DUE != 0).then_some((due >> START_PAGE_SHIFT) as u8);
        let startup = Startup { reset: due & RESET_DUE != 0, start_page };
        (startup != Startup::default()).then_some(startup)
    }

    /// Whether any interrupt is requested. One load.
    #[inline]
    pub(super) fn any_requested(&self) -> bool {
        self.attention.load(Ordering::Acquire) & IRR_WORDS != 0
    }

    /// The highest requested vector.
    #[inline]
    pub fn highest_requested(&self) -> Option<u8> {
        let mut words = self.attention.load(Ordering::Acquire) & IRR_WORDS;
        while let Some(index) = words.checked_ilog2() {
            if let Some(top) = self.irr_word(index as usize).checked_ilog2() {
                return Some((index << 5 | top) as u8);
            }
            // Its request was served before its sender had marked the word.
            self.unmark(index as usize);
            words &= !(1 << index);
        }
        None
    }

    /// Marks a word as empty, unless it is not. A request that comes between the two lines is seen by the load; one
    /// that comes later marks the word itself.
    fn unmark(&self, index: usize) {
        self.attention.fetch_and(!(1 << index), Ordering::AcqRel);
        if self.irr_word(index) != 0 {
            self.attention.fetch_or(1 << index, Ordering::AcqRel);
        }
    }

    /// Takes a request back, either to serve it or to forget it.
    #[inline]
    pub(super) fn withdraw(&self, vector: u8) {
        let Some(irr) = self.irr.get(word(vector)) else { return };
        if irr.fetch_and(!bit(vector), Ordering::AcqRel) & !bit(vector) == 0 {
            self.unmark(word(vector));
        }
    }

    /// Whether the request for this vector, when it was accepted, was level-triggered.
    #[inline]
    pub(super) fn is_level(&self, vector: u8) -> bool {
        self.tmr_word(word(vector)) & bit(vector) != 0
    }

    pub(super) fn irr_word(&self, index: usize) -> u32 {
        self.irr.get(index).map_or(0, |irr| irr.load(Ordering::Acquire))
    }

    pub(super) fn tmr_word(&self, index: usize) -> u32 {
        self.tmr.get(index).map_or(0, |tmr| tmr.load(Ordering::Relaxed))
    }

    /// Drops every request: the APIC was reset.
    pub(super) fn clear(&self) {
        for (irr, tmr) in self.irr.iter().zip(&self.tmr) {
            irr.store(0, Ordering::Relaxed);
            tmr.store(0, Ordering::Relaxed);
        }
        for index in 0..self.irr.len() {
            self.unmark(index);
        }
    }

    /// Loads one word of both bitmaps from a saved state. Nobody else knows the inbox yet.
    pub(super) fn load(&self, index: usize, requested: u32, level: u32) {
        // Vectors 0 to 15 cannot be requested.
        let requested = if index == 0 { requested & !0xffff } else { requested };
        if let (Some(irr), Some(tmr)) = (self.irr.get(index), self.tmr.get(index)) {
            irr.store(requested, Ordering::Relaxed);
            tmr.store(level, Ordering::Relaxed);
            if requested != 0 {
                self.attention.fetch_or(1 << index, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Mode;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;

    fn inbox(waits_for_sipi: bool) -> LapicInbox {
        let identity = Identity::new(2, Mode::Xapic, true, 0, false);
        LapicInbox::new(identity, waits_for_sipi)
    }

    #[test]
    fn a_second_request_for_the_same_vector_tells_no_one() {
        let inbox = inbox(false);
        assert_eq!(inbox.post(0x41, false), Posted::New);
        assert_eq!(inbox.post(0x41, false), Posted::Nothing);
        assert_eq!(inbox.highest_requested(), Some(0x41));
        inbox.withdraw(0x41);
        assert_eq!(inbox.highest_requested(), None);
        assert!(!inbox.wants_attention());
        assert_eq!(inbox.post(0x41, false), Posted::New);
    }

    #[test]
    fn vectors_below_sixteen_are_never_requested() {
        let inbox = inbox(false);
        for vector in 0..16 {
            assert_eq!(inbox.post(vector, false), Posted::Nothing);
        }
        assert!(!inbox.wants_attention());
        assert_eq!(inbox.post(16, false), Posted::New);
    }

    #[test]
    fn the_last_request_decides_the_trigger_mode() {
        let inbox = inbox(false);
        let _ = inbox.post(0x50, true);
        assert!(inbox.is_level(0x50));
        let _ = inbox.post(0x50, false);
        assert!(!inbox.is_level(0x50));
    }

    #[test]
    fn a_sipi_right_behind_an_init_starts_a_vcpu_that_has_not_noticed_either() {
        let inbox = inbox(false);
        assert_eq!(inbox.post_init(), Posted::New);
        assert!(inbox.waits_for_sipi());
        assert_eq!(inbox.post_sipi(0x9a), Posted::New);
        assert!(!inbox.waits_for_sipi());
        assert_eq!(inbox.take_startup(), Some(Startup { reset: true, start_page: Some(0x9a) }));
        assert_eq!(inbox.take_startup(), None);
    }

    #[test]
    fn a_sipi_to_a_running_vcpu_is_ignored() {
        let inbox = inbox(false);
        assert_eq!(inbox.post_sipi(1), Posted::Nothing);
        assert_eq!(inbox.take_startup(), None);
    }

    #[test]
    fn the_second_sipi_of_the_start_up_protocol_is_ignored() {
        let inbox = inbox(true);
        assert!(inbox.waits_for_sipi());
        assert_eq!(inbox.post_sipi(0x10), Posted::New);
        assert_eq!(inbox.post_sipi(0x20), Posted::Nothing);
        assert_eq!(inbox.take_startup(), Some(Startup { reset: false, start_page: Some(0x10) }));
    }

    #[test]
    fn an_init_undoes_a_start_that_nobody_took() {
        let inbox = inbox(true);
        let _ = inbox.post_sipi(0x10);
        let _ = inbox.post_init();
        assert!(inbox.waits_for_sipi());
        assert_eq!(inbox.take_startup(), Some(Startup { reset: true, start_page: None }));
        assert!(inbox.waits_for_sipi());
    }

    #[test]
    fn an_nmi_is_taken_once() {
        let inbox = inbox(false);
        assert_eq!(inbox.post_nmi(), Posted::New);
        assert_eq!(inbox.post_nmi(), Posted::Nothing);
        assert!(inbox.wants_attention());
        assert!(inbox.take_nmi());
        assert!(!inbox.take_nmi());
        assert!(!inbox.wants_attention());
    }

    #[test]
    fn no_request_is_lost_between_a_posting_and_a_serving_cpu() {
        let inbox = inbox(false);
        let done = AtomicBool::new(false);
        const ROUNDS: u32 = 20_000;
        std::thread::scope(|scope| {
            let poster = scope.spawn(|| {
                let mut told = 0u32;
                for round in 0..ROUNDS {
                    let vector = 0x40 + (round % 4) as u8;
                    told += u32::from(inbox.post(vector, false) == Posted::New);
                }
                done.store(true, Ordering::Release);
                told
            });
            let mut served = 0u32;
            loop {
                let last = done.load(Ordering::Acquire);
                while let Some(vector) = inbox.highest_requested() {
                    inbox.withdraw(vector);
                    served += 1;
                }
                if last {
                    break;
                }
            }
            assert_eq!(served, poster.join().unwrap());
        });
        assert!(!inbox.wants_attention());
    }

    proptest! {
        #[test]
        fn the_inbox_behaves_as_a_set_of_vectors(steps in prop::collection::vec((any::<bool>(), 16u8..), 0..200)) {
            let inbox = inbox(false);
            let mut model = BTreeSet::new();
            for (request, vector) in steps {
                if request {
                    let new = model.insert(vector);
                    prop_assert_eq!(inbox.post(vector, false) == Posted::New, new);
                } else {
                    model.remove(&vector);
                    inbox.withdraw(vector);
                }
                prop_assert_eq!(inbox.highest_requested(), model.last().copied());
                prop_assert_eq!(inbox.any_requested(), !model.is_empty());
            }
        }
    }
}
