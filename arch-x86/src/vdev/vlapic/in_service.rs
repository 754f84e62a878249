//! The interrupts in service. Each has a higher priority class than the one that it interrupted, and there are fifteen
//! classes: so they are a short stack, and the in-service register is a view of it.

/// A byte a vector, the highest lowest; none is 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct InService(u128);

impl InService {
    pub const NONE: InService = InService(0);

    /// The highest vector in service, or 0.
    #[inline]
    pub const fn highest(self) -> u8 {
        self.0 as u8
    }

    /// Begins to serve a vector, whose class is above all others here.
    #[inline]
    pub const fn begin(&mut self, vector: u8) {
        debug_assert!(vector >> 4 > self.highest() >> 4);
        self.0 = self.0 << 8 | vector as u128;
    }

    /// Ends the highest, which is returned, or 0.
    #[inline]
    pub const fn end(&mut self) -> u8 {
        let highest = self.highest();
        self.0 >>= 8;
        highest
    }

    /// One of the eight words of the in-service register.
    pub fn word(self, index: u32) -> u32 {
        self.0
            .to_le_bytes()
            .into_iter()
            .filter(|&vector| vector != 0 && u32::from(vector >> 5) == index)
            .fold(0, |word, vector| word | 1 << (vector & 31))
    }

    /// From the eight words. None: a vector below 16, or two of one class.
    pub fn from_words(words: [u32; 8]) -> Option<InService> {
        let mut in_service = InService::NONE;
        for vector in 0..=u8::MAX {
            let word = words.get(usize::from(vector >> 5)).copied().unwrap_or(0);
            if word & 1 << (vector & 31) == 0 {
                continue;
            }
            if vector >> 4 <= in_service.highest() >> 4 {
                return None;
            }
            in_service.begin(vector);
        }
        Some(in_service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fifteen_classes_nest() {
        let mut in_service = InService::NONE;
        for class in 1..=15u8 {
            in_service.begin(class << 4 | class);
        }
        for class in (1..=15u8).rev() {
            assert_eq!(in_service.end(), class << 4 | class);
        }
        assert_eq!(in_service, InService::NONE);
        assert_eq!(in_service.end(), 0);
    }

    #[test]
    fn the_register_is_a_view_of_the_stack() {
        let mut in_service = InService::NONE;
        for vector in [0x1f, 0x20, 0x41, 0x5f, 0xff] {
            in_service.begin(vector);
        }
        let words = core::array::from_fn(|index| in_service.word(index as u32));
        assert_eq!(words, [1 << 31, 1, 1 << 31 | 1 << 1, 0, 0, 0, 0, 1 << 31]);
        assert_eq!(InService::from_words(words), Some(in_service));
    }

    #[test]
    fn what_no_apic_could_be_serving_is_refused() {
        assert_eq!(InService::from_words([1 << 5, 0, 0, 0, 0, 0, 0, 0]), None, "below 16");
        assert_eq!(InService::from_words([0, 0, 0b11, 0, 0, 0, 0, 0]), None, "two of one class");
    }
}
