//! The table of MSRs: a row each, and the way from a number to its row.

use super::msr::{DeviceMsr, XEN_HYPERCALL_PAGE};
use super::mtrr::{self, MtrrRegister};

/// How a row reads.
#[derive(Clone, Copy)]
pub enum Read {
    Const(u64),
    /// The host's value at the time the policy was made; the index is into [`HOST`].
    Host(usize),
    MiscEnable,
    Mtrr(MtrrRegister),
    Device(DeviceMsr),
    Gp,
}

/// What a written value must be like.
#[derive(Clone, Copy)]
pub enum Check {
    Any,
    Canonical,
    /// These bits must be clear.
    Reserved(u64),
    Pat,
}

/// How a row writes.
#[derive(Clone, Copy)]
pub enum Write {
    /// Accepted without effect.
    Ignore(Check),
    MiscEnable,
    Mtrr(MtrrRegister),
    Device(DeviceMsr, Check),
    HypercallPage,
    Gp,
}

/// What must hold for a row to be there. A bit each, so that a row can ask for several.
pub mod when {
    pub const ALWAYS: u16 = 0;
    pub const INTEL: u16 = 1 << 0;
    pub const AMD: u16 = 1 << 1;
    pub const HARDWARE_DOMAIN: u16 = 1 << 2;
    pub const RDTSCP: u16 = 1 << 3;
    pub const SPEC_CONTROL: u16 = 1 << 4;
    pub const PREDICTOR_COMMAND: u16 = 1 << 5;
    pub const FLUSH_COMMAND: u16 = 1 << 6;
    pub const ARCH_CAPABILITIES: u16 = 1 << 7;
    pub const XSAVES: u16 = 1 << 8;
    pub const TSC_ADJUST: u16 = 1 << 9;
    pub const PAT_SWITCHED: u16 = 1 << 10;
}

/// Which accesses need no exit, where the engine has a bitmap of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    No,
    Read,
    Write,
    Both,
}

/// One MSR.
#[derive(Clone, Copy)]
pub struct Row {
    pub msr: u32,
    pub when: u16,
    pub through: Through,
    /// What must hold besides `when` for the access to need no exit.
    pub through_when: u16,
    pub read: Read,
    pub write: Write,
}

/// The host's MSRs that a guest reads, and which bits of them.
pub const HOST: [(u32, u64); 6] = [
    (PLATFORM_ID, u64::MAX),
    (MICROCODE_REVISION, u64::MAX),
    (IA32_ARCH_CAPABILITIES, ARCH_CAPABILITIES_SHOWN),
    (TOP_MEM, u64::MAX),
    (TOP_MEM2, u64::MAX),
    // LFENCE serialises.
    (DE_CFG, 1 << 1),
];

const PLATFORM_ID: u32 = 0x17;
const MICROCODE_REVISION: u32 = 0x8b;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const TOP_MEM: u32 = 0xc001_001a;
const TOP_MEM2: u32 = 0xc001_001d;
const DE_CFG: u32 = 0xc001_1029;

/// What may be shown of IA32_ARCH_CAPABILITIES: that a flaw is absent, or that VERW helps. No bit that promises another MSR: so neither that
/// enhanced IBRS does, nor what goes with it (1, 19, 20, 24), since IA32_SPEC_CTRL is not switched.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
const ARCH_CAPABILITIES_SHOWN: u64 = {
    const BITS: &[u8] = &[0, 2, 4, 5, 6, 8, 13, 14, 15, 17, 26, 27, 28, 62];
    let mut mask = 0;
    let mut i = 0;
    while i < BITS.len() {
        mask |= 1 << BITS[i];
        i += 1;
    }
    mask
};

/// IA32_DEBUGCTL: LBR and BTF.
const DEBUG_CONTROL_RESERVED: u64 = !0b11;
/// IBRS, STIBP, SSBD, and the newer ones for which CPUID leaf 7.2 stands. Bits that the host lacks fault when they are loaded.
const SPEC_CONTROL_RESERVED: u64 = !0b101_1111_1111;
/// IBPB, SBPB.
const PREDICTOR_COMMAND_RESERVED: u64 = !0b1000_0001;
/// IA32_FEATURE_CONTROL: locked, with VMX off.
const LOCKED: u64 = 1;
/// IA32_MISC_ENABLE: neither branch trace store nor PEBS.
pub const MISC_ENABLE: u64 = 1 << 12 | 1 << 11;
pub const FAST_STRINGS: u64 = 1;
/// IA32_MCG_CAP: this many banks, nothing else.
const BANKS: u64 = 2;
/// VM_CR: SVM is off, and locked so.
const VM_CR: u64 = 1 << 4 | 1 << 3;
/// HWCR.TscFreqSel: the TSC counts at P0's rate; Linux calls a clear bit a firmware bug.
const HWCR: u64 = 1 << 24;

const fn row(msr: u32, when: u16, read: Read, write: Write) -> Row {
    Row { msr, when, through: Through::No, through_when: when::ALWAYS, read, write }
}

/// A register of the machine that is switched with the vCPU and needs no exit.
const fn switched(msr: u32, when: u16, device: DeviceMsr, check: Check) -> Row {
    Row {
        msr,
        when,
        through: Through::Both,
        through_when: when::ALWAYS,
        read: Read::Device(device),
        write: Write::Device(device, check),
    }
}

const fn command(msr: u32, when: u16, device: DeviceMsr, reserved: u64) -> Row {
    let write = Write::Device(device, Check::Reserved(reserved));
    Row { msr, when, through: Through::Write, through_when: when::ALWAYS, read: Read::Gp, write }
}

const fn device(msr: u32, when: u16, device: DeviceMsr, check: Check) -> Row {
    row(msr, when, Read::Device(device), Write::Device(device, check))
}

/// Reads as a constant; writes are accepted without effect.
const fn inert(msr: u32, when: u16, value: u64) -> Row {
    row(msr, when, Read::Const(value), Write::Ignore(Check::Any))
}

const fn mtrr_row(msr: u32, register: MtrrRegister) -> Row {
    row(msr, when::ALWAYS, Read::Mtrr(register), Write::Mtrr(register))
}

/// The MSRs that stand alone; what comes in series is in [`SERIES`].
const ROWS: &[Row] = {
    use Check::{Any, Canonical, Reserved};
    use DeviceMsr as D;
    use when::*;
    &[
        Row { through: Through::Read, ..row(0x10, ALWAYS, Read::Device(D::Tsc), Write::Device(D::Tsc, Any)) },
        row(PLATFORM_ID, INTEL, Read::Host(0), Write::Gp),
        device(0x1b, ALWAYS, D::ApicBase, Any),
        // EBL_CR_POWERON.
        inert(0x2a, INTEL, 0),
        // IA32_FEATURE_CONTROL, locked.
        row(0x3a, INTEL, Read::Const(LOCKED), Write::Gp),
        device(0x3b, TSC_ADJUST, D::TscAdjust, Any),
        switched(0x48, SPEC_CONTROL, D::SpecControl, Reserved(SPEC_CONTROL_RESERVED)),
        command(0x49, PREDICTOR_COMMAND, D::PredictorCommand, PREDICTOR_COMMAND_RESERVED),
        // Microcode is the hypervisor's; an update that is asked for here does not happen.
        row(0x79, INTEL | HARDWARE_DOMAIN, Read::Gp, Write::Ignore(Any)),
        // Linux writes zero before CPUID to have the revision latched.
        row(MICROCODE_REVISION, ALWAYS, Read::Host(1), Write::Ignore(Any)),
        // MSR_PLATFORM_INFO, MISC_FEATURES_ENABLES: no CPUID faulting.
        row(0xce, INTEL, Read::Const(0), Write::Gp),
        row(0x140, INTEL, Read::Const(0), Write::Ignore(Reserved(u64::MAX))),
        row(0xfe, ALWAYS, Read::Const(mtrr::CAPABILITY), Write::Gp),
        row(IA32_ARCH_CAPABILITIES, ARCH_CAPABILITIES, Read::Host(2), Write::Gp),
        command(0x10b, FLUSH_COMMAND, D::FlushCommand, !1),
        switched(0x174, ALWAYS, D::SysenterCs, Any),
        switched(0x175, ALWAYS, D::SysenterEsp, Canonical),
        switched(0x176, ALWAYS, D::SysenterEip, Canonical),
        // Machine check: MCG_CAP, MCG_STATUS, MCG_CTL (absent, as MCG_CAP says).
        row(0x179, ALWAYS, Read::Const(BANKS), Write::Gp),
        row(0x17a, ALWAYS, Read::Const(0), Write::Ignore(Reserved(!0b111))),
        row(0x1a0, INTEL, Read::MiscEnable, Write::MiscEnable),
        device(0x1d9, ALWAYS, D::DebugControl, Reserved(DEBUG_CONTROL_RESERVED)),
        // Last branch and last exception, from and to.
        inert(0x1db, ALWAYS, 0),
        inert(0x1dc, ALWAYS, 0),
        inert(0x1dd, ALWAYS, 0),
        inert(0x1de, ALWAYS, 0),
        Row {
            through: Through::Both,
            through_when: PAT_SWITCHED,
            ..row(0x277, ALWAYS, Read::Device(D::Pat), Write::Device(D::Pat, Check::Pat))
        },
        mtrr_row(0x250, MtrrRegister::Fixed(0)),
        mtrr_row(0x258, MtrrRegister::Fixed(1)),
        mtrr_row(0x259, MtrrRegister::Fixed(2)),
        mtrr_row(0x2ff, MtrrRegister::DefaultType),
        device(0x6e0, ALWAYS, D::TscDeadline, Any),
        device(0xda0, XSAVES, D::Xss, Reserved(u64::MAX)),
        row(XEN_HYPERCALL_PAGE, ALWAYS, Read::Const(0), Write::HypercallPage),
        device(0xc000_0080, ALWAYS, D::Efer, Any),
        switched(0xc000_0081, ALWAYS, D::Star, Any),
        switched(0xc000_0082, ALWAYS, D::Lstar, Canonical),
        switched(0xc000_0083, ALWAYS, D::Cstar, Canonical),
        switched(0xc000_0084, ALWAYS, D::SyscallMask, Reserved(u64::MAX << 32)),
        switched(0xc000_0100, ALWAYS, D::FsBase, Canonical),
        switched(0xc000_0101, ALWAYS, D::GsBase, Canonical),
        switched(0xc000_0102, ALWAYS, D::KernelGsBase, Canonical),
        switched(0xc000_0103, RDTSCP, D::TscAux, Reserved(u64::MAX << 32)),
        // SYSCFG: no memory encryption, no MTRR extensions.
        inert(0xc001_0010, AMD, 0),
        inert(0xc001_0015, AMD, HWCR),
        // Where DRAM ends: the hardware domain draws the bridges' windows from it.
        row(TOP_MEM, AMD | HARDWARE_DOMAIN, Read::Host(3), Write::Ignore(Any)),
        row(TOP_MEM2, AMD | HARDWARE_DOMAIN, Read::Host(4), Write::Ignore(Any)),
        // Northbridge configuration: Linux turns on extended cf8 addressing here, which is always on.
        inert(0xc001_001f, AMD | HARDWARE_DOMAIN, 1 << 46),
        // Microcode loader.
        row(0xc001_0020, AMD | HARDWARE_DOMAIN, Read::Gp, Write::Ignore(Any)),
        // Interrupt pending message, and the base of ECAM (disabled: it is in ACPI's MCFG).
        inert(0xc001_0055, AMD, 0),
        inert(0xc001_0058, AMD | HARDWARE_DOMAIN, 0),
        // TSEG, address and mask: none.
        inert(0xc001_0112, AMD, 0),
        inert(0xc001_0113, AMD, 0),
        inert(0xc001_0114, AMD, VM_CR),
        // OS visible workarounds: none are listed.
        inert(0xc001_0140, AMD, 0),
        inert(0xc001_0141, AMD, 0),
        // Configuration of LS, IC, DC, FP, DE and BU, which the hypervisor has set up.
        inert(0xc001_1020, AMD, 0),
        inert(0xc001_1021, AMD, 0),
        inert(0xc001_1022, AMD, 0),
        inert(0xc001_1028, AMD, 0),
        row(DE_CFG, AMD, Read::Host(5), Write::Ignore(Any)),
        inert(0xc001_102a, AMD, 0),
    ]
};

/// Rows that differ by their index only: sixteen variable and eight fixed MTRRs, and four MSRs a machine-check bank.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
const SERIES: [Row; 16 + 8 + 4 * BANKS as usize] = {
    let mut rows = [mtrr_row(0x200, MtrrRegister::Variable(0)); 16 + 8 + 4 * BANKS as usize];
    let mut i = 0u8;
    while (i as usize) < rows.len() {
        rows[i as usize] = match i {
            0..16 => mtrr_row(0x200 + i as u32, MtrrRegister::Variable(i)),
            16..24 => mtrr_row(0x268 + (i - 16) as u32, MtrrRegister::Fixed(3 + i - 16)),
            _ => {
                // CTL, on which all errors stay enabled; STATUS, ADDR and MISC, which can only be cleared.
                let (read, check) =
                    if (i - 24).is_multiple_of(4) { (u64::MAX, Check::Any) } else { (0, Check::Reserved(u64::MAX)) };
                row(0x400 + (i - 24) as u32, when::ALWAYS, Read::Const(read), Write::Ignore(check))
            }
        };
        i += 1;
    }
    rows
};

/// How many rows there are.
const TABLE_LEN: usize = ROWS.len() + SERIES.len();

/// Every row.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
static TABLE: [Row; TABLE_LEN] = {
    let mut all = [ROWS[0]; TABLE_LEN];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < ROWS.len() { ROWS[i] } else { SERIES[i - ROWS.len()] };
        i += 1;
    }
    all
};

/// No row.
const NONE: u8 = u8::MAX;
const _: () = assert!(TABLE_LEN < NONE as usize);

/// For each MSR from `first` the index of its row.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
const fn index<const COUNT: usize>(first: u32) -> [u8; COUNT] {
    let mut index = [NONE; COUNT];
    let mut i = 0;
    while i < TABLE_LEN {
        let msr = if i < ROWS.len() { ROWS[i].msr } else { SERIES[i - ROWS.len()].msr };
        if msr >= first && msr - first < COUNT as u32 {
            assert!(index[(msr - first) as usize] == NONE, "an MSR has two rows");
            index[(msr - first) as usize] = i as u8;
        }
        i += 1;
    }
    index
}
const AMD64: u32 = 0xc000_0000;
const AMD_CORE: u32 = 0xc001_0000;
const AMD_CONFIGURATION: u32 = 0xc001_1000;
static LOW: [u8; 0xda1] = index(0);
static HYPERVISOR: [u8; 1] = index(XEN_HYPERCALL_PAGE);
static AMD64_INDEX: [u8; 0x104] = index(AMD64);
static AMD_CORE_INDEX: [u8; 0x142] = index(AMD_CORE);
static AMD_CONFIGURATION_INDEX: [u8; 0x2b] = index(AMD_CONFIGURATION);

/// The row of an MSR, if it has one.
#[inline]
pub fn find(msr: u32) -> Option<&'static Row> {
    let (index, first): (&[u8], u32) = match msr {
        0..XEN_HYPERCALL_PAGE => (&LOW, 0),
        XEN_HYPERCALL_PAGE..AMD64 => (&HYPERVISOR, XEN_HYPERCALL_PAGE),
        AMD64..AMD_CORE => (&AMD64_INDEX, AMD64),
        AMD_CORE..AMD_CONFIGURATION => (&AMD_CORE_INDEX, AMD_CORE),
        _ => (&AMD_CONFIGURATION_INDEX, AMD_CONFIGURATION),
    };
    TABLE.get(usize::from(*index.get(msr.wrapping_sub(first) as usize)?))
}

/// Every row, in no order.
pub fn all() -> impl Iterator<Item = &'static Row> {
    TABLE.iter()
}
