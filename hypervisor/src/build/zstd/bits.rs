//! Bit streams that are read from their end, as Huffman's and FSE's are.

use super::Broken;

/// The bytes that are looked at: the last eight of what is left.
const WINDOW: usize = 8;

/// The lowest bits, by how many.
const MASKS: [u64; 256] = {
    let mut masks = [u64::MAX; 256];
    let mut mask = 0u64;
    let mut rest: &mut [u64] = &mut masks;
    let mut count = 0;
    while count < 64
        && let Some((first, others)) = rest.split_first_mut()
    {
        *first = mask;
        mask = mask << 1 | 1;
        rest = others;
        count += 1;
    }
    masks
};

/// A stream read backwards. Reading is done from a window of 64 bits; after 56 bits it must be [`refill`](Self::refill)ed. Reading too far
/// gives zeroes or nonsense, and shows in [`overrun`](Self::overrun).
pub struct Backward<'a> {
    /// What the window has not passed yet; the window is its last bytes.
    left: &'a [u8],
    window: u64,
    /// Bits of the window that were read, from the top.
    used: u32,
}

impl<'a> Backward<'a> {
    /// The stream ends in a 1 behind its last bit, and zeroes.
    pub fn new(bytes: &'a [u8]) -> Result<Backward<'a>, Broken> {
        let last = bytes.last().filter(|last| **last != 0).ok_or("a bit stream has no end")?;
        let window = match bytes.last_chunk() {
            Some(window) => u64::from_le_bytes(*window),
            None => {
                bytes
                    .iter()
                    .rev()
                    .fold((0u64, 56u32), |(w, at), b| (w | u64::from(*b) << (at & 63), at.wrapping_sub(8)))
                    .0
            }
        };
        Ok(Backward { left: bytes, window, used: last.leading_zeros().wrapping_add(1) })
    }

    /// Moves the window so that 56 bits can be read, if there are so many.
    #[inline(always)]
    pub fn refill(&mut self) {
        let passed = (self.used >> 3) as usize;
        let left = self.left.len().wrapping_sub(passed);
        if let Some(fewer) = self.left.get(..left)
            && let Some(window) = fewer.last_chunk()
        {
            self.left = fewer;
            self.window = u64::from_le_bytes(*window);
            self.used &= 7;
        } else {
            self.refill_at_start();
        }
    }

    /// The window comes to its last place, the first bytes.
    #[cold]
    fn refill_at_start(&mut self) {
        if let Some(window) = self.left.first_chunk() {
            let passed = self.left.len().saturating_sub(WINDOW) as u32;
            self.window = u64::from_le_bytes(*window);
            self.left = window;
            self.used = self.used.wrapping_sub(passed.wrapping_mul(8));
        }
    }

    /// Takes the next `count` bits, at most 56.
    #[inline(always)]
    pub fn read(&mut self, count: u8) -> u64 {
        self.used = self.used.wrapping_add(count.into());
        // The bits come to lie lowest, what was above them highest.
        self.window.rotate_left(self.used) & MASKS.get(usize::from(count)).copied().unwrap_or(0)
    }

    /// The next 11 bits; they stay.
    #[inline(always)]
    pub fn peek_11(&self) -> usize {
        ((self.window << (self.used & 63)) >> 53) as usize
    }

    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        self.used = self.used.wrapping_add(count);
    }

    /// More was read than there is.
    pub fn overrun(&self) -> bool {
        self.used as usize > self.left.len().saturating_mul(8)
    }

    /// All was read, and no more.
    pub fn finished(&self) -> bool {
        self.used as usize == self.left.len().saturating_mul(8)
    }
}

/// A stream read forwards, as table descriptions are. Not fast.
pub struct Forward<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Forward<'a> {
    pub fn new(bytes: &'a [u8]) -> Forward<'a> {
        Forward { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16; they stay. Zeroes follow the end.
    pub fn peek(&self, count: u32) -> u32 {
        let byte = |i: usize| u32::from(self.bytes.get((self.at >> 3).wrapping_add(i)).copied().unwrap_or(0));
        let window = byte(0) | byte(1) << 8 | byte(2) << 16;
        window >> (self.at & 7) & (1u32 << (count & 31)).wrapping_sub(1)
    }

    pub fn skip(&mut self, count: u32) {
        self.at = self.at.wrapping_add(count as usize);
    }

    /// How many bytes were begun, if there are so many.
    pub fn bytes_read(&self) -> Option<usize> {
        let read = self.at.div_ceil(8);
        (read <= self.bytes.len()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_from_its_end() {
        let bytes = [0b1010_0101, 0b0001_1100];
        let mut stream = Backward::new(&bytes).unwrap();
        assert_eq!((stream.read(2), stream.read(0), stream.read(4)), (0b11, 0, 0b0010));
        assert_eq!(stream.peek_11(), 0b10_0101 << 5);
        assert!(!stream.finished() && !stream.overrun());
        stream.skip(6);
        assert!(stream.finished());
        stream.skip(1);
        assert!(stream.overrun());
    }

    #[test]
    fn a_long_stream_needs_refills() {
        let bytes: Vec<u8> = (1..=40).collect();
        let mut stream = Backward::new(&bytes).unwrap();
        assert_eq!(stream.read(5), 40 & 31);
        for expected in (1..40u64).rev() {
            stream.refill();
            assert_eq!(stream.read(8), expected);
        }
        stream.refill();
        assert!(stream.finished());
        assert!(Backward::new(&[1, 0]).is_err() && Backward::new(&[]).is_err());
    }
}
