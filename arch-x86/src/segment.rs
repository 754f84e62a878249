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

/// The registers that a vCPU starts with; whatever is not said is as after INIT.
#[derive(Clone, Copy, Debug)]
pub struct StartState {
    pub rip: u64,
    pub rbx: u64,
    pub cr0: u64,
    pub code: Segment,
    pub data: Segment,
    pub task: Segment,
}

impl StartState {
    /// The PVH entry: 32-bit flat protected mode without paging, `ebx` at the start_info (Xen's `docs/misc/pvh`).
    pub fn pvh(entry: u32, start_info: u32) -> StartState {
        let flat = |access| Segment { selector: 0, base: 0, limit: u32::MAX, access: SegmentAccess(access) };
        StartState {
            rip: u64::from(entry),
            rbx: u64::from(start_info),
            cr0: 0x11,
            code: flat(0xc09b),
            data: flat(0xc093),
            task: Segment { selector: 0, base: 0, limit: 0x67, access: SegmentAccess(0x8b) },
        }
    }

    /// Real mode at `vector` × 4 KiB, as a SIPI starts a CPU (SDM Vol. 3, 9.1.4).
    pub fn sipi(vector: u8) -> StartState {
        StartState {
            rip: 0,
            rbx: 0,
            cr0: 0x6000_0010,
            code: Segment {
                selector: u16::from(vector) << 8,
                base: u64::from(vector) << 12,
                limit: 0xffff,
                access: SegmentAccess(0x9b),
            },
            data: Segment { selector: 0, base: 0, limit: 0xffff, access: SegmentAccess(0x93) },
            task: Segment { selector: 0, base: 0, limit: 0xffff, access: SegmentAccess(0x8b) },
        }
    }
}
