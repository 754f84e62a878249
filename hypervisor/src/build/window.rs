//! The output of a decoder, which is also what it copies from: bytes that were put come again at a distance.

/// A buffer that fills from its beginning.
pub struct Window<'a> {
    bytes: &'a mut [u8],
    filled: usize,
}

const TOO_MUCH: &str = "it unpacks to more than it says";

impl<'a> Window<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Window<'a> {
        Window { bytes, filled: 0 }
    }

    pub fn filled(&self) -> usize {
        self.filled
    }

    /// What was put since `start` bytes were filled.
    pub fn since(&self, start: usize) -> &[u8] {
        self.bytes.get(start..self.filled).unwrap_or_default()
    }

    pub fn since_mut(&mut self, start: usize) -> &mut [u8] {
        self.bytes.get_mut(start..self.filled).unwrap_or_default()
    }

    /// Lets `decode` put exactly `size` bytes: it is given what was put since `start`, room for them behind that, and how much is there already,
    /// and returns how much is there then.
    pub fn decode(
        &mut self,
        start: usize,
        size: usize,
        decode: impl FnOnce(&mut [u8], usize) -> Result<usize, &'static str>,
    ) -> Result<(), &'static str> {
        let end = self.filled.saturating_add(size);
        let area = self.bytes.get_mut(start..end).ok_or(TOO_MUCH)?;
        let there = decode(area, self.filled.wrapping_sub(start))?;
        if there != area.len() {
            return Err("it unpacks to less than it says");
        }
        self.filled = end;
        Ok(())
    }

    /// Puts `bytes`.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.bytes
            .get_mut(self.filled..)
            .and_then(|rest| rest.get_mut(..bytes.len()))
            .ok_or(TOO_MUCH)?
            .copy_from_slice(bytes);
        self.filled = self.filled.wrapping_add(bytes.len());
        Ok(())
    }

    /// Puts `byte` `count` times.
    pub fn fill(&mut self, byte: u8, count: usize) -> Result<(), &'static str> {
        self.bytes.get_mut(self.filled..).and_then(|rest| rest.get_mut(..count)).ok_or(TOO_MUCH)?.fill(byte);
        self.filled = self.filled.wrapping_add(count);
        Ok(())
    }

    /// The same window, for a loop of its own. What it comes to is told by [`resume`](Self::resume).
    #[inline(always)]
    pub fn reborrow(&mut self) -> Window<'_> {
        Window { bytes: self.bytes, filled: self.filled }
    }

    /// Takes over how far a reborrowed window was filled.
    pub fn resume(&mut self, filled: usize) {
        self.filled = filled;
    }

    /// Puts the first `count` of `bytes` and returns the rest. More may be written behind them, if there is room; so there should be
    /// [`PIECE`] bytes more that do not count. `None` if there are fewer than `count`, or no room for them.
    #[inline(always)]
    pub fn put_padded<'b>(&mut self, bytes: &'b [u8], count: usize) -> Option<&'b [u8]> {
        if count <= PIECE
            && let Some(from) = piece::<PIECE>(bytes, 0)
            && let Some(to) = piece_mut::<PIECE>(self.bytes, self.filled)
        {
            *to = *from;
        } else {
            self.bytes.get_mut(self.filled..)?.get_mut(..count)?.copy_from_slice(bytes.get(..count)?);
        }
        self.filled = self.filled.wrapping_add(count);
        bytes.get(count..)
    }

    /// Puts the `count` bytes again that begin `distance` back; they may run into what they put. False if they begin before the beginning
    /// or go beyond the end.
    #[inline(always)]
    pub fn repeat(&mut self, distance: usize, count: usize) -> bool {
        match repeat(self.bytes, self.filled, distance, count) {
            Some(end) => {
                self.filled = end;
                true
            }
            None => false,
        }
    }
}

/// Writes to `to` the `count` bytes again that begin `distance` before, and returns where they end. `None` if they begin before the beginning
/// or go beyond the end.
#[inline(always)]
pub fn repeat(bytes: &mut [u8], to: usize, distance: usize, count: usize) -> Option<usize> {
    // Wraps, and is then beyond the end, if the distance is too far.
    let from = to.wrapping_sub(distance);
    if distance >= PIECE
        && count <= PIECE
        && let Some(source) = piece::<PIECE>(bytes, from).copied()
        && let Some(target) = piece_mut::<PIECE>(bytes, to)
    {
        *target = source;
        return Some(to.wrapping_add(count));
    }
    repeat_any(bytes, to, distance, count)
}

/// Short copies are of so many bytes, whatever their length.
pub const PIECE: usize = 16;
const WORD: usize = 8;

/// From here on a call of `memcpy` costs less than pieces.
const LONG: usize = 128;

#[inline(always)]
fn piece<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[inline(always)]
fn piece_mut<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

/// [`repeat`] for all lengths and distances.
#[inline(never)]
fn repeat_any(bytes: &mut [u8], to: usize, distance: usize, count: usize) -> Option<usize> {
    let end = to.checked_add(count)?;
    let from = to.checked_sub(distance).filter(|_| distance != 0)?;
    if end.saturating_add(PIECE) > bytes.len() || count > LONG {
        repeat_long(bytes.get_mut(from..end)?, distance);
        return Some(end);
    }
    let (mut from, mut to) = (from, to);
    if distance >= PIECE {
        while to < end {
            let source = *piece::<PIECE>(bytes, from)?;
            *piece_mut(bytes, to)? = source;
            from = from.wrapping_add(PIECE);
            to = to.wrapping_add(PIECE);
        }
        return Some(end);
    }
    // A word of the bytes that come again and again, as often as they fit.
    let mut word = u64::from_le_bytes(*piece(bytes, from)?);
    let mut step = WORD;
    if distance < WORD {
        let mut bits = (distance as u32).wrapping_mul(8);
        word &= (1u64 << (bits & 63)).wrapping_sub(1);
        while bits < u64::BITS {
            word |= word << (bits & 63);
            bits = bits.wrapping_mul(2);
        }
        step = WORD.wrapping_sub(WORD.checked_rem(distance).unwrap_or(0));
        while to < end {
            *piece_mut(bytes, to)? = word.to_le_bytes();
            to = to.wrapping_add(step);
        }
        return Some(end);
    }
    while to < end {
        *piece_mut(bytes, to)? = word.to_le_bytes();
        from = from.wrapping_add(step);
        to = to.wrapping_add(step);
        word = u64::from_le_bytes(*piece(bytes, from)?);
    }
    Some(end)
}

/// Fills `area` with repeats of its first `distance` bytes.
fn repeat_long(area: &mut [u8], distance: usize) {
    if distance == 1
        && let [byte, run @ ..] = area
    {
        run.fill(*byte);
        return;
    }
    // Each round copies all that there is already, and so doubles it.
    let mut there = distance;
    while let Some((source, target)) = area.split_at_mut_checked(there).filter(|(_, target)| !target.is_empty()) {
        let now = source.len().min(target.len());
        if let (Some(source), Some(target)) = (source.get(..now), target.get_mut(..now)) {
            target.copy_from_slice(source);
        }
        there = there.wrapping_add(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_put_beyond_the_end_or_from_before_the_beginning() {
        let mut bytes = [0xaa; 12];
        let mut window = Window::new(&mut bytes);
        assert!(!window.repeat(1, 1));
        window.put(b"0123456789").unwrap();
        assert!(!window.repeat(11, 1) && !window.repeat(0, 1) && !window.repeat(9, 3));
        assert_eq!(window.put(b"abc"), Err(TOO_MUCH));
        assert_eq!(window.fill(0, 3), Err(TOO_MUCH));
        assert!(window.repeat(9, 2));
        assert_eq!(window.since(0), b"012345678912");
    }

    proptest! {
        #[test]
        fn putting_and_repeating_is_as_if_byte_by_byte(
            steps in proptest::collection::vec((0usize..20, 1usize..300, 0usize..300), 0..20),
            size in 0usize..3000,
        ) {
            let source: Vec<u8> = (0..40u8).collect();
            let mut expected: Vec<u8> = Vec::new();
            let mut bytes = vec![0xaa; size];
            let mut window = Window::new(&mut bytes);
            for (put, distance, count) in steps {
                if expected.len() + put > size {
                    prop_assert!(window.put_padded(&source, put).is_none());
                    break;
                }
                prop_assert_eq!(window.put_padded(&source, put), Some(&source[put..]));
                expected.extend(&source[..put]);
                if distance == 0 || distance > expected.len() || expected.len() + count > size {
                    prop_assert!(!window.repeat(distance, count));
                    break;
                }
                prop_assert!(window.repeat(distance, count));
                for _ in 0..count {
                    expected.push(expected[expected.len() - distance]);
                }
            }
            prop_assert_eq!(window.since(0), &expected[..]);
        }
    }
}
