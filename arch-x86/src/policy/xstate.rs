//! CPUID leaf 0xD: the extended states that a guest may enable, and how large a save area they need.
//!
//! SDM Vol. 1, 13.2 and 13.4.3.

/// The states that XCR0 can enable and that a guest may be given: x87, SSE, AVX, the three of AVX-512, PKRU.
/// MPX, AMX and LWP are not among them.
pub const XCR0_SHOWN: u64 = 0b10_1110_0111;
/// x87 and SSE, which live in the legacy area and are always there.
pub const XCR0_LEGACY: u64 = 0b11;
/// AVX.
pub const XCR0_AVX: u64 = 1 << 2;
/// Opmask, the upper halves of ZMM0–15, and ZMM16–31: enabled together or not at all.
pub const XCR0_AVX512: u64 = 0b111 << 5;
/// PKRU.
pub const XCR0_PKRU: u64 = 1 << 9;

/// Legacy area and XSAVE header, in bytes.
const HEADER_END: u32 = 576;
/// Components that are described: all that can be shown are below.
const COMPONENTS: usize = 16;

/// Size and place of one component.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    size: u32,
    offset: u32,
    flags: u32,
}

/// What leaf 0xD says to one domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct XState {
    /// The bits of XCR0 that the guest may set.
    pub xcr0: u64,
    /// The largest save area, with everything in `xcr0` enabled.
    largest: u32,
    components: [Component; COMPONENTS],
}

impl XState {
    /// Reads the host's leaf 0xD, limited to the states in `limit`.
    pub fn of_host(host: impl Fn(u32, u32) -> [u32; 4], limit: u64) -> XState {
        let [low, _, _, high] = host(0xd, 0);
        let mut xcr0 = (u64::from(high) << 32 | u64::from(low)) & XCR0_SHOWN & limit;
        if xcr0 & XCR0_AVX512 != XCR0_AVX512 || xcr0 & XCR0_AVX == 0 {
            xcr0 &= !XCR0_AVX512;
        }
        let mut state = XState { xcr0, ..XState::default() };
        for (index, component) in (0u32..).zip(state.components.iter_mut()).skip(2) {
            if xcr0.checked_shr(index).is_some_and(|bits| bits & 1 != 0) {
                let [size, offset, flags, _] = host(0xd, index);
                *component = Component { size, offset, flags };
            }
        }
        state.largest = state.standard_size(xcr0);
        state
    }

    /// The same with no other states than those in `limit`.
    pub fn limited_to(mut self, limit: u64) -> XState {
        self.xcr0 &= limit;
        for (index, component) in self.components.iter_mut().enumerate() {
            if self.xcr0 >> (index & 63) & 1 == 0 {
                *component = Component::default();
            }
        }
        self.largest = self.standard_size(self.xcr0);
        self
    }

    /// Whether the guest may load `value` into XCR0 (SDM Vol. 1, 13.3).
    pub fn may_enable(&self, value: u64) -> bool {
        let avx512 = value & XCR0_AVX512;
        value & !self.xcr0 == 0
            && value & 1 != 0
            && (value & XCR0_AVX == 0 || value & 0b10 != 0)
            && (avx512 == 0 || (avx512 == XCR0_AVX512 && value & XCR0_AVX != 0))
    }

    /// The answer to leaf 0xD. `features` is EAX of subleaf 1; `enabled` the guest's XCR0 and `xss` its IA32_XSS.
    pub fn answer(&self, subleaf: u32, features: u32, enabled: u64, xss: u64) -> [u32; 4] {
        match subleaf {
            0 => {
                let now = if enabled == self.xcr0 { self.largest } else { self.standard_size(enabled) };
                [self.xcr0 as u32, now, self.largest, (self.xcr0 >> 32) as u32]
            }
            // The compacted size is defined only where XSAVEC or XSAVES is.
            1 if features & 0b1010 != 0 => [features, self.compacted_size(enabled | xss), 0, 0],
            1 => [features, 0, 0, 0],
            _ => {
                let component = self.components.get(subleaf as usize).copied().unwrap_or_default();
                [component.size, component.offset, component.flags, 0]
            }
        }
    }

    fn enabled(&self, states: u64) -> impl Iterator<Item = &Component> {
        self.components
            .iter()
            .enumerate()
            .skip(2)
            .filter(move |(index, _)| states >> (index & 63) & 1 != 0)
            .map(|(_, c)| c)
    }

    fn standard_size(&self, states: u64) -> u32 {
        self.enabled(states).map(|c| c.offset.saturating_add(c.size)).fold(HEADER_END, u32::max)
    }

    fn compacted_size(&self, states: u64) -> u32 {
        const ALIGNED_64: u32 = 1 << 1;
        self.enabled(states).fold(HEADER_END, |end, c| {
            let start = if c.flags & ALIGNED_64 != 0 { end.saturating_add(63) & !63 } else { end };
            start.saturating_add(c.size)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of a Skylake server: AVX at 576, MPX, AVX-512, PKRU; and AMX beyond.
    fn skylake(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0xd, 0) => [0x6_02ff, 0xa88, 0xa88, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 3) => [64, 960, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 0, 0],
            (0xd, 7) => [1024, 1664, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            (0xd, 17) => [64, 2752, 2, 0],
            _ => [0; 4],
        }
    }

    #[test]
    fn sizes_follow_what_the_guest_enabled() {
        let state = XState::of_host(skylake, u64::MAX);
        assert_eq!(state.xcr0, 0b10_1110_0111, "neither MPX nor AMX");
        assert_eq!(state.answer(0, 0xf, 1, 0), [0x2e7, 576, 2696, 0]);
        assert_eq!(state.answer(0, 0xf, 0b111, 0), [0x2e7, 832, 2696, 0]);
        assert_eq!(state.answer(0, 0xf, 0x2e7, 0), [0x2e7, 2696, 2696, 0]);
    }

    #[test]
    fn the_compacted_size_leaves_no_holes() {
        let state = XState::of_host(skylake, u64::MAX);
        assert_eq!(state.answer(1, 0xf, 0x2e7, 0), [0xf, 576 + 256 + 64 + 512 + 1024 + 8, 0, 0]);
        assert_eq!(state.answer(1, 0x1, 0x2e7, 0), [0x1, 0, 0, 0], "no XSAVEC, no size");
    }

    #[test]
    fn a_component_that_is_not_offered_is_not_described() {
        let state = XState::of_host(skylake, u64::MAX);
        assert_eq!(state.answer(2, 0, 1, 0), [256, 576, 0, 0]);
        assert_eq!(state.answer(3, 0, 1, 0), [0; 4]);
        assert_eq!(state.answer(17, 0, 1, 0), [0; 4]);
        assert_eq!(state.answer(u32::MAX, 0, 1, 0), [0; 4]);
        assert_eq!(XState::of_host(skylake, 0b11).answer(2, 0, 1, 0), [0; 4]);
    }

    #[test]
    fn xcr0_takes_only_combinations_that_hardware_takes() {
        let state = XState::of_host(skylake, u64::MAX);
        assert!(state.may_enable(1) && state.may_enable(0b111) && state.may_enable(0x2e7));
        assert!(!state.may_enable(0), "x87 is always on");
        assert!(!state.may_enable(0b101), "AVX needs SSE");
        assert!(!state.may_enable(0b10_0111), "AVX-512 comes whole");
        assert!(!state.may_enable(0b1_1111), "MPX is not offered");
    }
}
