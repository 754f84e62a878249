//! Numbers for calls that nearly make sense.

use xen_abi::types::DomainId;

use super::{BYSTANDER, GUEST, HOLE, PAGES, SCRATCH, TABLE_AT};
use crate::fake::{DEVICE, RAM, page};

/// xorshift64*: the same calls each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    pub fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    pub fn domain(&mut self) -> DomainId {
        let ids = [
            DomainId::SELF,
            DomainId::SELF,
            DomainId(0),
            DomainId(GUEST),
            DomainId(BYSTANDER),
            DomainId::XEN,
            DomainId(99),
        ];
        self.choose(&ids)
    }

    pub fn gfn(&mut self) -> u64 {
        match self.below(10) {
            0..=3 => RAM + SCRATCH + self.below(PAGES - SCRATCH),
            4..=6 => HOLE + self.below(24),
            7 => HOLE + 512 * self.below(3),
            8 => self.choose(&[DEVICE, TABLE_AT, RAM, u64::MAX, u64::MAX >> 12, 1 << 36, 0]),
            _ => self.below(1 << 12),
        }
    }

    pub fn address(&mut self) -> u64 {
        match self.below(8) {
            0..=4 => page(self.below(SCRATCH)) + self.below(512) * 8,
            5 => page(self.below(PAGES)) + self.below(4096),
            6 => self.gfn().wrapping_shl(12).wrapping_add(self.below(4096)),
            _ => self.choose(&[0, u64::MAX, u64::MAX - 7, 1 << 47, 0xffff_8000_0000_0000, 1 << 60]),
        }
    }

    pub fn number(&mut self) -> u64 {
        match self.below(8) {
            0..=2 => self.below(8),
            3 => self.below(64),
            4 => self.gfn(),
            5 => self.address(),
            6 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    pub fn count(&mut self) -> u64 {
        match self.below(6) {
            0..=3 => self.below(8),
            4 => self.below(700),
            _ => self.number(),
        }
    }
}
