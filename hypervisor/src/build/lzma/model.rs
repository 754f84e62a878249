//! What an LZMA decoder has learnt: the probability of each binary decision being 0, in parts of 2048.

use alloc::boxed::Box;
use alloc::vec::Vec;

pub type Probability = u16;
/// Before anything is known.
const EVEN: Probability = 1024;

/// A literal has three trees of 256: without a guess, and with a guess whose next bit is 0 or 1. The rest makes up a power of two.
pub type Literal = [Probability; 1024];
/// `lc + lp` is at most 4.
const LITERALS: usize = 16;

// 12 states, but 16 make a power of two.
const STATES: usize = 16;
const POSITIONS: usize = 16;
const BOTH: usize = STATES * POSITIONS;
type ByState = [Probability; STATES];
type ByStateAndPosition = [Probability; BOTH];

#[derive(Clone)]
pub struct Lengths {
    pub choice: Probability,
    pub choice_2: Probability,
    pub low: [[Probability; 8]; POSITIONS],
    pub middle: [[Probability; 8]; POSITIONS],
    pub high: [Probability; 256],
}

#[derive(Clone)]
pub struct Distances {
    /// Slots, by the match's length: 2, 3, 4, or more.
    pub slots: [[Probability; 64]; 4],
    /// Lower bits of distances up to 127.
    pub special: [Probability; 128],
    /// The lowest four bits of all others.
    pub align: [Probability; 16],
}

/// The decisions between kinds of symbols, lengths and distances.
#[derive(Clone)]
pub struct Model {
    is_match: ByStateAndPosition,
    is_repeat: ByState,
    is_latest: ByState,
    is_second: ByState,
    is_third: ByState,
    is_long: ByStateAndPosition,
    pub match_lengths: Lengths,
    pub repeat_lengths: Lengths,
    pub distances: Distances,
}

impl Lengths {
    const START: Lengths = Lengths {
        choice: EVEN,
        choice_2: EVEN,
        low: [[EVEN; 8]; POSITIONS],
        middle: [[EVEN; 8]; POSITIONS],
        high: [EVEN; 256],
    };
}

/// The accessors cut their arguments to what there is, which costs less than a check.
impl Model {
    const START: Model = Model {
        is_match: [EVEN; BOTH],
        is_repeat: [EVEN; STATES],
        is_latest: [EVEN; STATES],
        is_second: [EVEN; STATES],
        is_third: [EVEN; STATES],
        is_long: [EVEN; BOTH],
        match_lengths: Lengths::START,
        repeat_lengths: Lengths::START,
        distances: Distances { slots: [[EVEN; 64]; 4], special: [EVEN; 128], align: [EVEN; 16] },
    };

    // BOOT: kernels are unpacked then.
    pub fn boxed() -> Box<Model> {
        Box::new(Model::START)
    }

    pub fn reset(&mut self) {
        self.clone_from(&Model::START);
    }

    #[inline(always)]
    pub fn is_match(&mut self, state: usize, position: usize) -> &mut Probability {
        cell(&mut self.is_match, state << 4 | position)
    }

    #[inline(always)]
    pub fn is_repeat(&mut self, state: usize) -> &mut Probability {
        cell(&mut self.is_repeat, state)
    }

    #[inline(always)]
    pub fn is_latest(&mut self, state: usize) -> &mut Probability {
        cell(&mut self.is_latest, state)
    }

    #[inline(always)]
    pub fn is_second(&mut self, state: usize) -> &mut Probability {
        cell(&mut self.is_second, state)
    }

    #[inline(always)]
    pub fn is_third(&mut self, state: usize) -> &mut Probability {
        cell(&mut self.is_third, state)
    }

    #[inline(always)]
    pub fn is_long(&mut self, state: usize, position: usize) -> &mut Probability {
        cell(&mut self.is_long, state << 4 | position)
    }
}

/// The element of index `at & (N - 1)`, for an `N` that is a power of two.
#[inline(always)]
#[allow(clippy::indexing_slicing)] // the mask keeps the index below N; `get_mut` would need an answer for what cannot be
pub fn cell<T, const N: usize>(cells: &mut [T; N], at: usize) -> &mut T {
    const { assert!(N.is_power_of_two()) };
    &mut cells[at & const { N - 1 }]
}

/// The trees of literals, by what came before.
pub struct Literals {
    trees: Vec<Literal>,
}

impl Literals {
    /// `None` if memory runs out.
    pub fn new() -> Option<Literals> {
        let mut trees = Vec::new();
        trees.try_reserve_exact(LITERALS).ok()?;
        trees.resize(LITERALS, [EVEN; 1024]);
        Some(Literals { trees })
    }

    pub fn reset(&mut self) {
        self.trees.iter_mut().for_each(|tree| tree.fill(EVEN));
    }

    #[inline(always)]
    pub fn tree(&mut self, context: usize) -> Option<&mut Literal> {
        self.trees.get_mut(context)
    }
}
