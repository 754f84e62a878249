//! Fully virtualised guests (`hvm/hvm_op.h`, `hvm/params.h`).

use crate::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `HVMOP_*`: the first argument of `hvm_op`.
pub const HVMOP_SET_PARAM: u32 = 0;
pub const HVMOP_GET_PARAM: u32 = 1;
pub const HVMOP_SET_PCI_INTX_LEVEL: u32 = 2;
pub const HVMOP_SET_ISA_IRQ_LEVEL: u32 = 3;
pub const HVMOP_SET_PCI_LINK_ROUTE: u32 = 4;
pub const HVMOP_FLUSH_TLBS: u32 = 5;
pub const HVMOP_PAGETABLE_DYING: u32 = 9;
pub const HVMOP_GET_TIME: u32 = 10;
pub const HVMOP_XENTRACE: u32 = 11;
pub const HVMOP_SET_MEM_ACCESS: u32 = 12;
pub const HVMOP_GET_MEM_ACCESS: u32 = 13;
pub const HVMOP_GET_MEM_TYPE: u32 = 15;
pub const HVMOP_SET_EVTCHN_UPCALL_VECTOR: u32 = 23;
pub const HVMOP_GUEST_REQUEST_VM_EVENT: u32 = 24;
pub const HVMOP_ALTP2M: u32 = 25;

/// `HVMOP_set_param` and `HVMOP_get_param`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Param {
    pub domid: DomainId,
    pub pad: u16,
    /// `HVM_PARAM_*`.
    pub index: u32,
    pub value: u64,
}

pub const HVM_PARAM_PAE_ENABLED: u32 = 4;
pub const HVM_PARAM_DM_DOMAIN: u32 = 13;
pub const HVM_PARAM_MEMORY_EVENT_CR0: u32 = 20;
pub const HVM_PARAM_MEMORY_EVENT_CR3: u32 = 21;
pub const HVM_PARAM_MEMORY_EVENT_CR4: u32 = 22;
pub const HVM_PARAM_MEMORY_EVENT_INT3: u32 = 23;
pub const HVM_PARAM_NESTEDHVM: u32 = 24;
pub const HVM_PARAM_MEMORY_EVENT_SINGLE_STEP: u32 = 25;
pub const HVM_PARAM_BUFIOREQ_EVTCHN: u32 = 26;
pub const HVM_PARAM_MEMORY_EVENT_MSR: u32 = 30;
pub const HVM_PARAM_STORE_PFN: u32 = 1;
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
pub const HVM_PARAM_IOREQ_PFN: u32 = 5;
pub const HVM_PARAM_BUFIOREQ_PFN: u32 = 6;
pub const HVM_PARAM_VIRIDIAN: u32 = 9;
pub const HVM_PARAM_TIMER_MODE: u32 = 10;
pub const HVM_PARAM_HPET_ENABLED: u32 = 11;
pub const HVM_PARAM_IDENT_PT: u32 = 12;
pub const HVM_PARAM_ACPI_S_STATE: u32 = 14;
pub const HVM_PARAM_VM86_TSS: u32 = 15;
pub const HVM_PARAM_VPT_ALIGN: u32 = 16;
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
pub const HVM_PARAM_ACPI_IOPORTS_LOCATION: u32 = 19;
pub const HVM_PARAM_PAGING_RING_PFN: u32 = 27;
pub const HVM_PARAM_MONITOR_RING_PFN: u32 = 28;
pub const HVM_PARAM_SHARING_RING_PFN: u32 = 29;
pub const HVM_PARAM_TRIPLE_FAULT_REASON: u32 = 31;
pub const HVM_PARAM_IOREQ_SERVER_PFN: u32 = 32;
pub const HVM_PARAM_NR_IOREQ_SERVER_PAGES: u32 = 33;
pub const HVM_PARAM_VM_GENERATION_ID_ADDR: u32 = 34;
pub const HVM_PARAM_ALTP2M: u32 = 35;
pub const HVM_PARAM_X87_FIP_WIDTH: u32 = 36;
pub const HVM_PARAM_VM86_TSS_SIZED: u32 = 37;
pub const HVM_PARAM_MCA_CAP: u32 = 38;
pub const HVM_NR_PARAMS: u32 = 39;

/// How events are announced, until a vCPU has its own vector.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
// In the value of `HVM_PARAM_CALLBACK_IRQ`: bits 56-63 are how, the rest depends on it.
pub const HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT: u32 = 56;
pub const HVM_PARAM_CALLBACK_IRQ_TYPE_MASK: u64 = 0xff << 56;
/// Bits 0-55: a GSI; zero is no callback at all.
pub const HVM_PARAM_CALLBACK_TYPE_GSI: u64 = 0;
/// Bits 0-1 INTx line, 8-10 function, 11-15 device, 16-31 bus, 32-47 domain.
pub const HVM_PARAM_CALLBACK_TYPE_PCI_INTX: u64 = 1;
/// Bits 0-7: a vector, on whichever vCPU the event is for.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u64 = 2;

// Values of `HVM_PARAM_TIMER_MODE`.
pub const HVMPTM_DELAY_FOR_MISSED_TICKS: u64 = 0;
pub const HVMPTM_NO_DELAY_FOR_MISSED_TICKS: u64 = 1;
pub const HVMPTM_NO_MISSED_TICKS_PENDING: u64 = 2;
pub const HVMPTM_ONE_MISSED_TICK_PENDING: u64 = 3;

// Values of `HVM_PARAM_ALTP2M`.
pub const XEN_ALTP2M_DISABLED: u64 = 0;
pub const XEN_ALTP2M_MIXED: u64 = 1;
pub const XEN_ALTP2M_EXTERNAL: u64 = 2;
pub const XEN_ALTP2M_LIMITED: u64 = 3;

/// `HVMOP_pagetable_dying`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PagetableDying {
    pub domid: DomainId,
    pub pad: [u16; 3],
    pub gpa: u64,
}

/// `HVMOP_get_time`: system time in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetTime {
    pub now: u64,
}

/// `HVMOP_get_mem_type`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetMemType {
    pub domid: DomainId,
    /// Out: `HVMMEM_*`.
    pub mem_type: u16,
    pub pad: [u16; 2],
    pub pfn: u64,
}
pub const HVMMEM_RAM_RW: u16 = 0;
pub const HVMMEM_RAM_RO: u16 = 1;
pub const HVMMEM_MMIO_DM: u16 = 2;
pub const HVMMEM_UNUSED: u16 = 3;
pub const HVMMEM_IOREQ_SERVER: u16 = 4;

/// `HVMOP_set_evtchn_upcall_vector`: the vector by which one vCPU learns of events, as if its local APIC had raised it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EvtchnUpcallVector {
    pub vcpu: u32,
    /// 0x10 and up.
    pub vector: u8,
    pub pad: [u8; 3],
}
