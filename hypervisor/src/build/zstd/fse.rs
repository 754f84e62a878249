//! Finite state entropy: tables of states, each of which says a symbol and how to find the next state (RFC 8878, 4.1).

use super::bits::{Backward, Forward};
use super::sequences::Kind;
use super::{Broken, Input};

/// The largest table: 2^9 states.
pub const MAX_LOG: u32 = 9;
pub const STATES: usize = 1 << MAX_LOG;

/// The most symbols that any alphabet has.
pub const MAX_SYMBOLS: usize = 53;

/// A state: what it stands for, a base and the number of bits to be added to it; and where the next state is, told in the same way.
/// Packed, as one load is less than four: base (32 bits), base of the next state (16), bits of the next state (8), bits (8).
#[derive(Clone, Copy, Default)]
pub struct Entry(u64);

impl Entry {
    fn new(base: u32, bits: u8, next: u16, next_bits: u8) -> Entry {
        Entry(u64::from(base) | u64::from(next) << 32 | u64::from(next_bits) << 48 | u64::from(bits) << 56)
    }

    #[inline(always)]
    fn base(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub fn bits(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The value: the base and the bits to be added.
    #[inline(always)]
    pub fn value(self, stream: &mut Backward<'_>) -> u32 {
        self.base().wrapping_add(stream.read(self.bits()) as u32)
    }

    #[inline(always)]
    pub fn next(self, stream: &mut Backward<'_>) -> usize {
        let bits = (self.0 >> 48) as u8;
        ((self.0 >> 32) as usize & 0xffff).wrapping_add(stream.read(bits) as usize)
    }
}

/// How probable each symbol is, in parts of `1 << log`; -1 is less than one part.
#[derive(Clone)]
pub struct Distribution {
    pub log: u32,
    pub counts: [i16; MAX_SYMBOLS],
    pub symbols: usize,
}

impl Distribution {
    pub fn of(log: u32, counts: &[i16]) -> Distribution {
        let mut all = [0; MAX_SYMBOLS];
        for (to, from) in all.iter_mut().zip(counts) {
            *to = *from;
        }
        Distribution { log, counts: all, symbols: counts.len() }
    }

    /// Reads the description of a distribution: of at most `symbols` symbols, in at most `1 << max_log` parts (RFC 8878, 4.1.1).
    pub fn read(input: &mut Input<'_>, symbols: usize, max_log: u32) -> Result<Distribution, Broken> {
        const BAD: Broken = "an FSE table is broken";
        let mut stream = Forward::new(input.0);
        let log = stream.peek(4).wrapping_add(5);
        stream.skip(4);
        if log > max_log {
            return Err(BAD);
        }
        let mut read = Distribution { log, counts: [0; MAX_SYMBOLS], symbols: 0 };
        let mut left = 1i32 << log;
        while left > 0 {
            // A number up to left + 1, in as few bits as that takes: the lowest values in one bit less.
            let limit = left.wrapping_add(1) as u32;
            let bits = limit.ilog2().wrapping_add(1);
            let spared = (1u32 << bits).wrapping_sub(1).wrapping_sub(limit);
            let half = (1u32 << bits.wrapping_sub(1)).wrapping_sub(1);
            let value = stream.peek(bits);
            let value = if value & half < spared {
                stream.skip(bits.wrapping_sub(1));
                value & half
            } else {
                stream.skip(bits);
                if value > half { value.wrapping_sub(spared) } else { value }
            };
            let count = (value as i32).wrapping_sub(1);
            *read.counts.get_mut(..symbols).and_then(|c| c.get_mut(read.symbols)).ok_or(BAD)? = count as i16;
            read.symbols = read.symbols.wrapping_add(1);
            left = left.wrapping_sub(count.abs());
            if count == 0 {
                loop {
                    let more = stream.peek(2);
                    stream.skip(2);
                    read.symbols = read.symbols.wrapping_add(more as usize);
                    if more < 3 {
                        break;
                    }
                }
            }
        }
        if left != 0 || read.symbols > symbols {
            return Err(BAD);
        }
        input.take(stream.bytes_read().ok_or(BAD)?)?;
        Ok(read)
    }

    /// Hands out the states: calls `state` for each with its symbol, the base of the next state and the bits to add to that.
    pub fn spread(&self, mut state: impl FnMut(usize, u8, u16, u8)) {
        let size = 1usize << self.log;
        let mask = size.wrapping_sub(1);
        let step = (size >> 1).wrapping_add(size >> 3).wrapping_add(3);
        let mut symbols = [0u8; STATES];
        let mut next = [0u16; MAX_SYMBOLS];
        let counts = self.counts.iter().take(self.symbols).enumerate();
        // Those of less than one part have one state each, from the top down.
        let mut high = size;
        for (symbol, count) in counts.clone() {
            if let Some(next) = next.get_mut(symbol) {
                *next = count.unsigned_abs();
            }
            if *count == -1 {
                high = high.wrapping_sub(1);
                if let Some(place) = symbols.get_mut(high) {
                    *place = symbol as u8;
                }
            }
        }
        let mut at = 0usize;
        for (symbol, count) in counts {
            for _ in 0..(*count).max(0) {
                if let Some(place) = symbols.get_mut(at) {
                    *place = symbol as u8;
                }
                at = at.wrapping_add(step) & mask;
                while at >= high {
                    at = at.wrapping_add(step) & mask;
                }
                if high == 0 {
                    break;
                }
            }
        }
        for (index, symbol) in symbols.iter().take(size).enumerate() {
            let Some(next) = next.get_mut(usize::from(*symbol)) else { continue };
            let bits = self.log.wrapping_sub(u32::from(*next).max(1).ilog2());
            let base = (usize::from(*next) << bits).wrapping_sub(size);
            state(index, *symbol, base as u16, bits as u8);
            *next = next.wrapping_add(1);
        }
    }
}

/// A table for one of the three parts of a sequence.
pub struct Table {
    pub entries: [Entry; STATES],
    /// Bits of the first state; `None` while there is no table.
    pub log: Option<u8>,
}

impl Default for Table {
    fn default() -> Table {
        Table { entries: [Entry::default(); STATES], log: None }
    }
}

impl Table {
    pub fn clear(&mut self) {
        self.log = None;
    }

    /// Makes the table that a block's `mode` for this part asks for.
    pub fn update(&mut self, kind: Kind, mode: u8, input: &mut Input<'_>) -> Result<(), Broken> {
        match mode {
            0 => self.fill(kind, &kind.predefined())?,
            1 => {
                let symbol = input.u8()?;
                let (base, bits) = kind.value(symbol).ok_or("a code is unknown")?;
                if let Some(only) = self.entries.first_mut() {
                    *only = Entry::new(base, bits, 0, 0);
                }
                self.log = Some(0);
            }
            2 => {
                let distribution = Distribution::read(input, kind.symbols(), kind.max_log())?;
                self.fill(kind, &distribution)?;
            }
            _ if self.log.is_none() => return Err("a block refers to a table that there is not"),
            _ => {}
        }
        Ok(())
    }

    fn fill(&mut self, kind: Kind, distribution: &Distribution) -> Result<(), Broken> {
        let mut known = true;
        distribution.spread(|index, symbol, next, next_bits| match (self.entries.get_mut(index), kind.value(symbol)) {
            (Some(entry), Some((base, bits))) => *entry = Entry::new(base, bits, next, next_bits),
            _ => known = false,
        });
        self.log = Some(distribution.log as u8);
        if known { Ok(()) } else { Err("a code is unknown") }
    }
}
