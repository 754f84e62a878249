//! Bits of the control registers that the engines and the rules about them speak of (SDM Vol. 3, 2.5; APM Vol. 2, 3.1).

pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// All that there are: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
    pub const DEFINED: u64 = 0xe005_003f;
}

pub mod cr4 {
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const VMXE: u64 = 1 << 13;
}

pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
}

pub mod rflags {
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
}

/// The page-attribute table at reset (SDM Vol. 3, 13.12.4).
pub const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;
