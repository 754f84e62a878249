//! What CPUs say to one another about a vCPU: that it is wanted, that it is to come out of the guest, that its translations are out of use.
//!
//! Each of these is one word with one rule about who looks at what afterwards. They are here, apart from all that they are used for, so that
//! every interleaving of them can be tried (`tests/interleavings.rs`).

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// The reasons for which a vCPU does not run, a bit each; it runs when there is none.
///
/// *Who blocks* sets a bit and then looks at what would wake it. *Who wakes* leaves something to be found and then clears the bit. Of the two
/// changes of this word one comes second, and whoever makes it finds what the other did before. Who only looks at the word (is it polling?) needs
/// the one order of all that is sequentially consistent, which costs nothing more here.
#[derive(Debug)]
pub struct Hold(AtomicU32);

impl Hold {
    pub fn new(bits: u32) -> Hold {
        Hold(AtomicU32::new(bits))
    }

    #[inline]
    pub fn bits(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Nothing holds it back.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bits() == 0
    }

    /// Adds reasons; what there was before.
    #[inline]
    pub fn set(&self, bits: u32) -> u32 {
        self.0.fetch_or(bits, Ordering::SeqCst)
    }

    /// Takes reasons away; true if they were the last.
    #[inline]
    pub fn clear(&self, bits: u32) -> bool {
        let before = self.0.fetch_and(!bits, Ordering::SeqCst);
        before & bits != 0 && before & !bits == 0
    }
}

/// Whether a vCPU is in the guest, or past its last look at what waits for it.
///
/// *Who runs it* says so and then looks at what waits. *Who leaves something* for it does that, and then asks here whether to interrupt its CPU.
/// Between the two steps of each is a full fence, so that one of them sees the other.
#[derive(Debug)]
pub struct Presence(AtomicBool);

impl Default for Presence {
    fn default() -> Presence {
        Presence::new()
    }
}

impl Presence {
    /// Not in the guest.
    pub fn new() -> Presence {
        Presence(AtomicBool::new(false))
    }

    /// It goes into the guest. What waits for it is looked at after this, and after each exit.
    #[inline]
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// It stays out.
    #[inline]
    pub fn end(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether its CPU must be interrupted for it to see what was left before.
    #[inline]
    pub fn must_be_told(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a CPU is with the translations of the domain that it runs.
///
/// A CPU that runs a vCPU uses its domain's translations, in the guest and in the host's own copies; between two entries it looks at their
/// generation and drops what is older. Whoever takes translations away raises the generation and then waits until each CPU has passed by there
/// once more, or uses none at all. The count tells both: it is odd while none is used, and grows at each passage. Only its own CPU changes it.
#[derive(Debug)]
pub struct Passage(AtomicU64);

/// A point that a CPU is to go beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milestone(u64);

impl Default for Passage {
    fn default() -> Passage {
        Passage::new()
    }
}

impl Passage {
    /// None is in use.
    pub fn new() -> Passage {
        Passage(AtomicU64::new(1))
    }

    #[inline]
    fn advance(&self, by: u64) {
        // What the CPU did with its translations is done before; which it uses next is decided after the fence.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The CPU begins to use translations. It looks at the generation after this.
    #[inline]
    pub fn begin(&self) {
        self.advance(1);
    }

    /// It holds none any more.
    #[inline]
    pub fn end(&self) {
        self.advance(1);
    }

    /// It holds none at this moment, and looks at the generation after this.
    #[inline]
    pub fn pass(&self) {
        self.advance(2);
    }

    /// For whoever has raised the generation: what to wait for before translations of the earlier one are out of use. `None` if they are.
    #[inline]
    pub fn ahead(&self) -> Option<Milestone> {
        fence(Ordering::SeqCst);
        self.now()
    }

    #[inline]
    fn now(&self) -> Option<Milestone> {
        let count = self.0.load(Ordering::Acquire);
        count.is_multiple_of(2).then_some(Milestone(count))
    }

    /// Whether the CPU is beyond.
    #[inline]
    pub fn is_beyond(&self, milestone: Milestone) -> bool {
        self.now() != Some(milestone)
    }

    /// The CPU uses translations. For that CPU itself.
    #[inline]
    pub fn is_in_use(&self) -> bool {
        self.now().is_some()
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_that_goes_makes_it_runnable() {
        let hold = Hold::new(0b101);
        assert!(!hold.clear(0b001));
        assert!(!hold.clear(0b001), "it was gone");
        assert!(hold.clear(0b100));
        assert_eq!((hold.set(0b10), hold.bits(), hold.is_empty()), (0, 0b10, false));
    }

    #[test]
    fn a_cpu_is_waited_for_until_it_passes_or_uses_nothing() {
        let passage = Passage::new();
        assert_eq!(passage.ahead(), None, "it uses nothing");
        passage.begin();
        let milestone = passage.ahead().expect("it is in use");
        assert!(!passage.is_beyond(milestone));
        passage.pass();
        assert!(passage.is_beyond(milestone) && passage.is_in_use());
        let milestone = passage.ahead().expect("it is in use");
        passage.end();
        assert!(passage.is_beyond(milestone) && !passage.is_in_use());
        passage.begin();
        assert!(passage.is_beyond(milestone), "it has begun anew since");
    }
}
