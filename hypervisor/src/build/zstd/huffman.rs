//! Huffman codes of literals (RFC 8878, 4.2).

use super::bits::Backward;
use super::fse::Distribution;
use super::{Broken, Input};

/// The longest code; the table is always for this many bits, so that looking up is a shift by a constant.
const MAX_BITS: u32 = 11;
const TABLE: usize = 1 << MAX_BITS;
/// Weights go from 0 to as many bits as there may be.
const WEIGHTS: usize = MAX_BITS as usize + 1;
const MAX_WEIGHTS: usize = 255;
const WEIGHT_LOG: u32 = 6;
const WEIGHT_STATES: usize = 1 << WEIGHT_LOG;

/// Symbols that can be decoded between two refills.
const A_REFILL: usize = 5;

const BAD: Broken = "a Huffman table is broken";

/// For each 11 bits that may come: the symbol that they begin with (upper byte), and the bits that it takes (lower byte).
pub struct Huffman {
    table: [u16; TABLE],
}

impl Default for Huffman {
    fn default() -> Huffman {
        Huffman { table: [0; TABLE] }
    }
}

impl Huffman {
    /// Reads a description of a code.
    pub fn read(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        let mut weights = [0u8; MAX_WEIGHTS];
        let header = input.u8()?;
        let count = if header >= 128 {
            let count = usize::from(header).wrapping_sub(127);
            let bytes = input.take(count.div_ceil(2))?;
            for (pair, byte) in weights.chunks_mut(2).zip(bytes) {
                for (weight, value) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                    *weight = value;
                }
            }
            count
        } else {
            packed_weights(input.take(header.into())?, &mut weights)?
        };
        self.fill(weights.get(..count).ok_or(BAD)?)
    }

    /// A symbol of weight w > 0 has 2^(w-1) parts of a whole that is a power of two; the last symbol has what is missing to that.
    fn fill(&mut self, weights: &[u8]) -> Result<(), Broken> {
        let sum = weights.iter().try_fold(0u32, |sum, weight| match *weight {
            0 => Some(sum),
            weight if u32::from(weight) <= MAX_BITS => sum.checked_add(1 << weight.wrapping_sub(1)),
            _ => None,
        });
        let sum = sum.filter(|sum| *sum != 0).ok_or(BAD)?;
        let log = sum.ilog2().wrapping_add(1);
        let missing = (1u32 << log).wrapping_sub(sum);
        if log > MAX_BITS || !missing.is_power_of_two() {
            return Err(BAD);
        }
        let last = missing.ilog2().wrapping_add(1) as u8;

        // The lowest weights, the longest codes, come first; within a weight the symbols are in order.
        let mut places = self.table.iter_mut();
        let mut of_weight = [0usize; WEIGHTS];
        for weight in weights.iter().chain([&last]) {
            if let Some(count) = of_weight.get_mut(usize::from(*weight)) {
                *count = count.wrapping_add(1);
            }
        }
        for (weight, count) in of_weight.iter().enumerate().skip(1).filter(|(_, count)| **count != 0) {
            let bits = log.wrapping_add(1).wrapping_sub(weight as u32);
            let run = 1usize << MAX_BITS.wrapping_sub(bits);
            let symbols = weights.iter().chain([&last]).enumerate().filter(|(_, w)| usize::from(**w) == weight);
            for (symbol, _) in symbols.take(*count) {
                let entry = (symbol as u16) << 8 | bits as u16;
                places.by_ref().take(run).for_each(|place| *place = entry);
            }
        }
        if places.next().is_some() { Err(BAD) } else { Ok(()) }
    }

    /// Decodes one stream, which must end where `out` does.
    pub fn decode(&self, packed: &[u8], out: &mut [u8]) -> Result<(), Broken> {
        let mut stream = Backward::new(packed)?;
        let (whole, rest) = out.as_chunks_mut::<A_REFILL>();
        for group in whole {
            stream.refill();
            for symbol in group {
                *symbol = self.symbol(&mut stream);
            }
        }
        stream.refill();
        for symbol in rest {
            *symbol = self.symbol(&mut stream);
        }
        stream.refill();
        if stream.finished() { Ok(()) } else { Err("a stream of literals does not end where it should") }
    }

    #[inline(always)]
    fn symbol(&self, stream: &mut Backward<'_>) -> u8 {
        let entry = self.table.get(stream.peek_11()).copied().unwrap_or(0);
        stream.skip((entry & 0xff).into());
        (entry >> 8) as u8
    }

    /// Decodes the four streams that longer literals are split into.
    pub fn decode_four(&self, mut packed: Input<'_>, out: &mut [u8]) -> Result<(), Broken> {
        let sizes = [packed.number(2)?, packed.number(2)?, packed.number(2)?];
        let quarter = out.len().div_ceil(4);
        let mut rest = out;
        for size in sizes {
            let (part, after) = rest.split_at_mut_checked(quarter).ok_or("too few literals for four streams")?;
            self.decode(packed.take(size as usize)?, part)?;
            rest = after;
        }
        self.decode(packed.0, rest)
    }
}

/// Weights are themselves compressed: by FSE, two states in turn (RFC 8878, 4.2.1.2).
fn packed_weights(packed: &[u8], weights: &mut [u8; MAX_WEIGHTS]) -> Result<usize, Broken> {
    let mut input = Input(packed);
    let distribution = Distribution::read(&mut input, WEIGHTS, WEIGHT_LOG)?;
    let mut table = [(0u8, 0u16, 0u8); WEIGHT_STATES];
    distribution.spread(|index, symbol, next, bits| {
        if let Some(entry) = table.get_mut(index) {
            *entry = (symbol, next, bits);
        }
    });

    let mut stream = Backward::new(input.0)?;
    let log = distribution.log as u8;
    let mut states = [stream.read(log), stream.read(log)];
    let mut count = 0usize;
    let mut put = |weight: u8| {
        *weights.get_mut(count).ok_or(BAD)? = weight;
        count = count.wrapping_add(1);
        Ok::<(), Broken>(())
    };
    loop {
        let [now, other] = states;
        let (weight, next, bits) = table.get(now as usize).copied().ok_or(BAD)?;
        put(weight)?;
        stream.refill();
        let next = u64::from(next).wrapping_add(stream.read(bits));
        if stream.overrun() {
            let (last, ..) = table.get(other as usize).copied().ok_or(BAD)?;
            put(last)?;
            return Ok(count);
        }
        states = [other, next];
    }
}
