//! Records of an HVM context (`hvm/save.h`, `arch-x86/hvm/save.h`): the form in which a virtual device's state is saved,
//! restored and migrated. A context is a sequence of [`Descriptor`] and record, from `HEADER` to `END`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Precedes each record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Descriptor {
    /// `*_CODE`.
    pub typecode: u16,
    /// The vCPU, or which of several devices.
    pub instance: u16,
    /// Bytes of the record.
    pub length: u32,
}

/// The last descriptor's code; its record is empty.
pub const END_CODE: u16 = 0;
pub const HEADER_CODE: u16 = 1;
pub const CPU_CODE: u16 = 2;
pub const PIC_CODE: u16 = 3;
pub const IOAPIC_CODE: u16 = 4;
pub const LAPIC_CODE: u16 = 5;
pub const LAPIC_REGS_CODE: u16 = 6;
pub const PCI_IRQ_CODE: u16 = 7;
pub const ISA_IRQ_CODE: u16 = 8;
pub const PCI_LINK_CODE: u16 = 9;
pub const PIT_CODE: u16 = 10;
pub const RTC_CODE: u16 = 11;
pub const HPET_CODE: u16 = 12;
pub const PMTIMER_CODE: u16 = 13;
pub const MTRR_CODE: u16 = 14;
pub const VIRIDIAN_DOMAIN_CODE: u16 = 15;
pub const CPU_XSAVE_CODE: u16 = 16;
pub const VIRIDIAN_VCPU_CODE: u16 = 17;
pub const VMCE_VCPU_CODE: u16 = 18;
pub const TSC_ADJUST_CODE: u16 = 19;
pub const CPU_MSR_CODE: u16 = 20;
pub const HVM_SAVE_CODE_MAX: u16 = 20;

/// The first record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// [`HVM_FILE_MAGIC`].
    pub magic: u32,
    /// [`HVM_FILE_VERSION`].
    pub version: u32,
    /// Of the hypervisor that wrote it.
    pub changeset: u64,
    /// CPUID leaf 1, EAX, of the host.
    pub cpuid: u32,
    /// The guest's TSC frequency.
    pub gtsc_khz: u32,
}
pub const HVM_FILE_MAGIC: u32 = 0x5438_1286;
pub const HVM_FILE_VERSION: u32 = 1;

/// A vCPU's registers. Segment attributes are 12 bits: type, S, DPL, P, AVL, L, D/B, G; a segment that is not present cannot be used.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cpu {
    pub fpu_regs: [u8; 512],
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr0: u64,
    pub dr1: u64,
    pub dr2: u64,
    pub dr3: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub cs_sel: u32,
    pub ds_sel: u32,
    pub es_sel: u32,
    pub fs_sel: u32,
    pub gs_sel: u32,
    pub ss_sel: u32,
    pub tr_sel: u32,
    pub ldtr_sel: u32,
    pub cs_limit: u32,
    pub ds_limit: u32,
    pub es_limit: u32,
    pub fs_limit: u32,
    pub gs_limit: u32,
    pub ss_limit: u32,
    pub tr_limit: u32,
    pub ldtr_limit: u32,
    pub idtr_limit: u32,
    pub gdtr_limit: u32,
    pub cs_base: u64,
    pub ds_base: u64,
    pub es_base: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ss_base: u64,
    pub tr_base: u64,
    pub ldtr_base: u64,
    pub idtr_base: u64,
    pub gdtr_base: u64,
    pub cs_arbytes: u32,
    pub ds_arbytes: u32,
    pub es_arbytes: u32,
    pub fs_arbytes: u32,
    pub gs_arbytes: u32,
    pub ss_arbytes: u32,
    pub tr_arbytes: u32,
    pub ldtr_arbytes: u32,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub shadow_gs: u64,
    pub msr_flags: u64,
    pub msr_lstar: u64,
    pub msr_star: u64,
    pub msr_cstar: u64,
    pub msr_syscall_mask: u64,
    pub msr_efer: u64,
    pub msr_tsc_aux: u64,
    pub tsc: u64,
    /// An event to be delivered: bits 0-7 vector, 8-10 type, 11 has an error code, 31 valid (as VMX has it).
    pub pending_event: u32,
    pub error_code: u32,
    /// [`XEN_X86_FPU_INITIALISED`].
    pub flags: u32,
    pub pad0: u32,
}
pub const XEN_X86_FPU_INITIALISED: u32 = 1 << 0;

/// One of the two 8259s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vpic {
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub irq_base: u8,
    /// Bits 0-3: where the initialisation stands; bits 4-7: the highest priority's line.
    pub init_state_priority_add: u8,
    /// Bit 0 `readsel_isr`, 1 `poll`, 2 `auto_eoi`, 3 `rotate_on_auto_eoi`, 4 `special_fully_nested_mode`,
    /// 5 `special_mask_mode`, 6 `is_master`.
    pub flags: u8,
    pub elcr: u8,
    /// The state of the INT pin.
    pub int_output: u8,
}

pub const VIOAPIC_NUM_PINS: usize = 48;

/// An IO-APIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vioapic {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    /// As the hardware has them.
    pub redirtbl: [u64; VIOAPIC_NUM_PINS],
}

/// A local APIC, but for its registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lapic {
    pub apic_base_msr: u64,
    /// Bit 0: by the base MSR, bit 1: by software.
    pub disabled: u32,
    pub timer_divisor: u32,
    pub tdt_msr: u64,
    pub pending_esr: u32,
    pub pad: u32,
}

/// A local APIC's register page; what is not in it is not used.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LapicRegs {
    pub data: [u8; 1024],
}

/// Levels of PCI INTx: 32 devices × 4 lines, one bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciIrqs {
    pub pad: [u64; 2],
}

/// Levels of ISA lines, one bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IsaIrqs {
    pub pad: [u64; 1],
}

/// The ISA line that each PCI link is routed to, 0 for none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciLink {
    pub route: [u8; 4],
    pub pad0: [u8; 4],
}

/// A channel of the 8254.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PitChannel {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
}

/// The 8254.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pit {
    pub channels: [PitChannel; 3],
    pub speaker_data_on: u32,
    pub pad0: u32,
}

/// The real-time clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rtc {
    pub cmos_data: [u8; 14],
    pub cmos_index: u8,
    pub pad0: u8,
    pub rtc_offset: i64,
}

/// A comparator of the HPET.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HpetTimer {
    pub config: u64,
    pub cmp: u64,
    pub fsb: u64,
    pub res4: u64,
}

/// The HPET: its register page, and the periods.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hpet {
    pub capability: u64,
    pub res0: u64,
    pub config: u64,
    pub res1: u64,
    pub isr: u64,
    pub res2: [u64; 25],
    pub mc64: u64,
    pub res3: u64,
    pub timers: [HpetTimer; 3],
    pub res5: [u64; 84],
    pub period: [u64; 3],
}

/// The ACPI timer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PmTimer {
    pub tmr_val: u32,
    pub pm1a_sts: u16,
    pub pm1a_en: u16,
}

/// Memory types, and the PAT, of a vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mtrr {
    pub msr_pat_cr: u64,
    /// Base and mask in turn.
    pub msr_mtrr_var: [u64; 16],
    pub msr_mtrr_fixed: [u64; 11],
    pub msr_mtrr_cap: u64,
    pub msr_mtrr_def_type: u64,
}

/// The fixed part of `CPU_XSAVE`; the state components follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuXsave {
    pub xfeature_mask: u64,
    pub xcr0: u64,
    pub xcr0_accum: u64,
    pub fpu_sse: [u8; 512],
    pub xstate_bv: u64,
    pub xcomp_bv: u64,
    pub reserved: [u64; 6],
}

/// Machine-check state of a vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VmceVcpu {
    pub caps: u64,
    pub mci_ctl2_bank0: u64,
    pub mci_ctl2_bank1: u64,
    pub mcg_ext_ctl: u64,
}

/// `IA32_TSC_ADJUST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TscAdjust {
    pub tsc_adjust: u64,
}

/// The head of `CPU_MSR`; [`OneMsr`]s follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Msr {
    pub count: u32,
    pub pad: u32,
}

/// One MSR of `CPU_MSR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OneMsr {
    pub index: u32,
    pub reserved: u32,
    pub val: u64,
}
