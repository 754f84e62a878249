//! Numbers that look random, the same on every machine.

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.any() % limit
    }

    /// A number of the kinds that break things: small, at an edge, an address within the two pages at `scratch`, or anything.
    pub fn argument(&mut self, scratch: u64) -> u64 {
        match self.below(10) {
            0..=2 => self.below(64),
            3 => [0, 1, u64::MAX, 1 << 63, 0xffff_ffff, 0x7fff_ffff, 0x7ff0, 1 << 32][self.below(8) as usize],
            4..=6 => scratch + self.below(512) * 8,
            7 => 0x8000_0000_0000 + self.below(1 << 20),
            8 => scratch + 4096 * 2 - self.below(16),
            _ => self.any(),
        }
    }

    /// A word of an argument structure.
    pub fn word(&mut self, scratch: u64) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => self.below(64) | self.below(64) << 32,
            2 => self.argument(scratch),
            _ => self.any(),
        }
    }
}
