//! Segment registers in no vendor's terms.

/// Which segment register, in the order of the VMCS's encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

impl SegmentRegister {
    pub const ALL: [SegmentRegister; 8] =
        [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// In bytes, granularity applied.
    pub limit: u32,
    pub access: SegmentAccess,
}

/// Access rights as the VMCS has them (SDM Vol. 3, table 25-2): type, S, DPL, P in bits 7:0, AVL, L, D/B, G in 15:12, unusable in 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentAccess(pub u32);

impl SegmentAccess {
    pub const UNUSABLE: SegmentAccess = SegmentAccess(1 << 16);

    pub fn is_unusable(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    pub fn privilege(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// A code segment of 64-bit mode.
    pub fn long(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// A segment of 32-bit default size.
    pub fn big(self) -> bool {
        self.0 & 1 << 14 != 0
    }
}
