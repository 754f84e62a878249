//! The VMCS's fields by width and kind (SDM Vol. 3, appendix B). The width is in the type, so that a read yields what the field holds.

use core::marker::PhantomData;

/// The encoding of a field that holds a `T`.
pub struct Field<T> {
    pub encoding: u32,
    width: PhantomData<fn() -> T>,
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Field<T> {}

impl<T> Field<T> {
    const fn new(encoding: u32) -> Self {
        Field { encoding, width: PhantomData }
    }
}

/// What a field can hold.
pub trait FieldValue: Copy {
    fn from_raw(raw: u64) -> Self;
    fn into_raw(self) -> u64;
}

macro_rules! field_values {
    ($($kind:ty),*) => {
        $(impl FieldValue for $kind {
            #[inline(always)]
            fn from_raw(raw: u64) -> Self {
                raw as $kind
            }
            #[inline(always)]
            fn into_raw(self) -> u64 {
                u64::from(self)
            }
        })*
    };
}

field_values!(u16, u32, u64);

macro_rules! fields {
    ($($kind:ty { $($name:ident = $encoding:literal,)* })*) => {
        $($(pub const $name: Field<$kind> = Field::new($encoding);)*)*

        /// Every field with its name, for the dump of a VMCS.
        pub const ALL: &[(&str, u32)] = &[$($((stringify!($name), $encoding)),*),*];
    };
}

fields! {
    u16 {
        VPID = 0x0000,
        GUEST_ES_SELECTOR = 0x0800,
        GUEST_CS_SELECTOR = 0x0802,
        GUEST_SS_SELECTOR = 0x0804,
        GUEST_DS_SELECTOR = 0x0806,
        GUEST_FS_SELECTOR = 0x0808,
        GUEST_GS_SELECTOR = 0x080a,
        GUEST_LDTR_SELECTOR = 0x080c,
        GUEST_TR_SELECTOR = 0x080e,
        GUEST_INTERRUPT_STATUS = 0x0810,
        HOST_ES_SELECTOR = 0x0c00,
        HOST_CS_SELECTOR = 0x0c02,
        HOST_SS_SELECTOR = 0x0c04,
        HOST_DS_SELECTOR = 0x0c06,
        HOST_FS_SELECTOR = 0x0c08,
        HOST_GS_SELECTOR = 0x0c0a,
        HOST_TR_SELECTOR = 0x0c0c,
    }
    u64 {
        IO_BITMAP_A = 0x2000,
        IO_BITMAP_B = 0x2002,
        MSR_BITMAP = 0x2004,
        EXIT_MSR_STORE_ADDRESS = 0x2006,
        EXIT_MSR_LOAD_ADDRESS = 0x2008,
        ENTRY_MSR_LOAD_ADDRESS = 0x200a,
        TSC_OFFSET = 0x2010,
        VIRTUAL_APIC_ADDRESS = 0x2012,
        APIC_ACCESS_ADDRESS = 0x2014,
        EPT_POINTER = 0x201a,
        EOI_EXIT_BITMAP_0 = 0x201c,
        EOI_EXIT_BITMAP_1 = 0x201e,
        EOI_EXIT_BITMAP_2 = 0x2020,
        EOI_EXIT_BITMAP_3 = 0x2022,
        XSS_EXIT_BITMAP = 0x202c,
        GUEST_PHYSICAL_ADDRESS = 0x2400,
        VMCS_LINK_POINTER = 0x2800,
        GUEST_DEBUGCTL = 0x2802,
        GUEST_PAT = 0x2804,
        GUEST_EFER = 0x2806,
        GUEST_PDPTE_0 = 0x280a,
        GUEST_PDPTE_1 = 0x280c,
        GUEST_PDPTE_2 = 0x280e,
        GUEST_PDPTE_3 = 0x2810,
        HOST_PAT = 0x2c00,
        HOST_EFER = 0x2c02,
        // Natural width.
        CR0_GUEST_HOST_MASK = 0x6000,
        CR4_GUEST_HOST_MASK = 0x6002,
        CR0_READ_SHADOW = 0x6004,
        CR4_READ_SHADOW = 0x6006,
        EXIT_QUALIFICATION = 0x6400,
        GUEST_LINEAR_ADDRESS = 0x640a,
        GUEST_CR0 = 0x6800,
        GUEST_CR3 = 0x6802,
        GUEST_CR4 = 0x6804,
        GUEST_ES_BASE = 0x6806,
        GUEST_CS_BASE = 0x6808,
        GUEST_SS_BASE = 0x680a,
        GUEST_DS_BASE = 0x680c,
        GUEST_FS_BASE = 0x680e,
        GUEST_GS_BASE = 0x6810,
        GUEST_LDTR_BASE = 0x6812,
        GUEST_TR_BASE = 0x6814,
        GUEST_GDTR_BASE = 0x6816,
        GUEST_IDTR_BASE = 0x6818,
        GUEST_DR7 = 0x681a,
        GUEST_RSP = 0x681c,
        GUEST_RIP = 0x681e,
        GUEST_RFLAGS = 0x6820,
        GUEST_PENDING_DEBUG = 0x6822,
        GUEST_SYSENTER_ESP = 0x6824,
        GUEST_SYSENTER_EIP = 0x6826,
        HOST_CR0 = 0x6c00,
        HOST_CR3 = 0x6c02,
        HOST_CR4 = 0x6c04,
        HOST_FS_BASE = 0x6c06,
        HOST_GS_BASE = 0x6c08,
        HOST_TR_BASE = 0x6c0a,
        HOST_GDTR_BASE = 0x6c0c,
        HOST_IDTR_BASE = 0x6c0e,
        HOST_SYSENTER_ESP = 0x6c10,
        HOST_SYSENTER_EIP = 0x6c12,
        HOST_RSP = 0x6c14,
        HOST_RIP = 0x6c16,
    }
    u32 {
        PIN_CONTROLS = 0x4000,
        PRIMARY_CONTROLS = 0x4002,
        EXCEPTION_BITMAP = 0x4004,
        PAGE_FAULT_MASK = 0x4006,
        PAGE_FAULT_MATCH = 0x4008,
        CR3_TARGET_COUNT = 0x400a,
        EXIT_CONTROLS = 0x400c,
        EXIT_MSR_STORE_COUNT = 0x400e,
        EXIT_MSR_LOAD_COUNT = 0x4010,
        ENTRY_CONTROLS = 0x4012,
        ENTRY_MSR_LOAD_COUNT = 0x4014,
        ENTRY_EVENT = 0x4016,
        ENTRY_EVENT_ERROR = 0x4018,
        ENTRY_INSTRUCTION_LENGTH = 0x401a,
        TPR_THRESHOLD = 0x401c,
        SECONDARY_CONTROLS = 0x401e,
        INSTRUCTION_ERROR = 0x4400,
        EXIT_REASON = 0x4402,
        EXIT_EVENT = 0x4404,
        EXIT_EVENT_ERROR = 0x4406,
        VECTORING_EVENT = 0x4408,
        VECTORING_EVENT_ERROR = 0x440a,
        EXIT_INSTRUCTION_LENGTH = 0x440c,
        EXIT_INSTRUCTION_INFO = 0x440e,
        PREEMPTION_TIMER = 0x482e,
        GUEST_ES_LIMIT = 0x4800,
        GUEST_CS_LIMIT = 0x4802,
        GUEST_SS_LIMIT = 0x4804,
        GUEST_DS_LIMIT = 0x4806,
        GUEST_FS_LIMIT = 0x4808,
        GUEST_GS_LIMIT = 0x480a,
        GUEST_LDTR_LIMIT = 0x480c,
        GUEST_TR_LIMIT = 0x480e,
        GUEST_GDTR_LIMIT = 0x4810,
        GUEST_IDTR_LIMIT = 0x4812,
        GUEST_ES_ACCESS = 0x4814,
        GUEST_CS_ACCESS = 0x4816,
        GUEST_SS_ACCESS = 0x4818,
        GUEST_DS_ACCESS = 0x481a,
        GUEST_FS_ACCESS = 0x481c,
        GUEST_GS_ACCESS = 0x481e,
        GUEST_LDTR_ACCESS = 0x4820,
        GUEST_TR_ACCESS = 0x4822,
        GUEST_INTERRUPTIBILITY = 0x4824,
        GUEST_ACTIVITY = 0x4826,
        GUEST_SYSENTER_CS = 0x482a,
        HOST_SYSENTER_CS = 0x4c00,
    }
}

/// The fields of one segment register.
#[derive(Clone, Copy)]
pub struct SegmentFields {
    pub selector: Field<u16>,
    pub base: Field<u64>,
    pub limit: Field<u32>,
    pub access: Field<u32>,
}

/// The fields of segment register `index`: ES, CS, SS, DS, FS, GS, LDTR, TR in the order of their encodings.
pub const fn segment(index: u8) -> SegmentFields {
    let step = index as u32 * 2;
    SegmentFields {
        selector: Field::new(GUEST_ES_SELECTOR.encoding + step),
        base: Field::new(GUEST_ES_BASE.encoding + step),
        limit: Field::new(GUEST_ES_LIMIT.encoding + step),
        access: Field::new(GUEST_ES_ACCESS.encoding + step),
    }
}
