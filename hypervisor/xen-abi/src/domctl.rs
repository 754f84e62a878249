//! What the toolstack asks of a domain (`domctl.h`). The layouts are the same for 32-bit callers.

use crate::argument::Union128;
use crate::handle::GuestHandle;
use crate::types::{Bitmap, DomainHandle, DomainId};
use crate::x86::{ArchDomainConfig, CpuidLeaf, MsrEntry, VcpuGuestContext};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Of 4.19 and 4.20. A caller with another one gets -EACCES.
pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 0x17;

pub const XEN_DOMCTL_CREATEDOMAIN: u32 = 1;
pub const XEN_DOMCTL_DESTROYDOMAIN: u32 = 2;
pub const XEN_DOMCTL_PAUSEDOMAIN: u32 = 3;
pub const XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4;
pub const XEN_DOMCTL_GETDOMAININFO: u32 = 5;
pub const XEN_DOMCTL_SETVCPUAFFINITY: u32 = 9;
pub const XEN_DOMCTL_SHADOW_OP: u32 = 10;
pub const XEN_DOMCTL_MAX_MEM: u32 = 11;
pub const XEN_DOMCTL_SETVCPUCONTEXT: u32 = 12;
pub const XEN_DOMCTL_GETVCPUCONTEXT: u32 = 13;
pub const XEN_DOMCTL_GETVCPUINFO: u32 = 14;
pub const XEN_DOMCTL_MAX_VCPUS: u32 = 15;
pub const XEN_DOMCTL_SCHEDULER_OP: u32 = 16;
pub const XEN_DOMCTL_SETDOMAINHANDLE: u32 = 17;
pub const XEN_DOMCTL_SETDEBUGGING: u32 = 18;
pub const XEN_DOMCTL_IRQ_PERMISSION: u32 = 19;
pub const XEN_DOMCTL_IOMEM_PERMISSION: u32 = 20;
pub const XEN_DOMCTL_IOPORT_PERMISSION: u32 = 21;
pub const XEN_DOMCTL_HYPERCALL_INIT: u32 = 22;
pub const XEN_DOMCTL_SETTIMEOFFSET: u32 = 24;
pub const XEN_DOMCTL_GETVCPUAFFINITY: u32 = 25;
pub const XEN_DOMCTL_REAL_MODE_AREA: u32 = 26;
pub const XEN_DOMCTL_RESUMEDOMAIN: u32 = 27;
pub const XEN_DOMCTL_SENDTRIGGER: u32 = 28;
pub const XEN_DOMCTL_SUBSCRIBE: u32 = 29;
pub const XEN_DOMCTL_GETHVMCONTEXT: u32 = 33;
pub const XEN_DOMCTL_SETHVMCONTEXT: u32 = 34;
pub const XEN_DOMCTL_SET_ADDRESS_SIZE: u32 = 35;
pub const XEN_DOMCTL_GET_ADDRESS_SIZE: u32 = 36;
pub const XEN_DOMCTL_ASSIGN_DEVICE: u32 = 37;
pub const XEN_DOMCTL_BIND_PT_IRQ: u32 = 38;
pub const XEN_DOMCTL_MEMORY_MAPPING: u32 = 39;
pub const XEN_DOMCTL_IOPORT_MAPPING: u32 = 40;
pub const XEN_DOMCTL_SET_EXT_VCPUCONTEXT: u32 = 42;
pub const XEN_DOMCTL_GET_EXT_VCPUCONTEXT: u32 = 43;
pub const XEN_DOMCTL_SET_OPT_FEATURE: u32 = 44;
pub const XEN_DOMCTL_TEST_ASSIGN_DEVICE: u32 = 45;
pub const XEN_DOMCTL_SET_TARGET: u32 = 46;
pub const XEN_DOMCTL_DEASSIGN_DEVICE: u32 = 47;
pub const XEN_DOMCTL_UNBIND_PT_IRQ: u32 = 48;
pub const XEN_DOMCTL_GET_DEVICE_GROUP: u32 = 50;
pub const XEN_DOMCTL_DEBUG_OP: u32 = 54;
pub const XEN_DOMCTL_GETHVMCONTEXT_PARTIAL: u32 = 55;
pub const XEN_DOMCTL_VM_EVENT_OP: u32 = 56;
pub const XEN_DOMCTL_MEM_SHARING_OP: u32 = 57;
pub const XEN_DOMCTL_GETTSCINFO: u32 = 59;
pub const XEN_DOMCTL_SETTSCINFO: u32 = 60;
pub const XEN_DOMCTL_GETPAGEFRAMEINFO3: u32 = 61;
pub const XEN_DOMCTL_SETVCPUEXTSTATE: u32 = 62;
pub const XEN_DOMCTL_GETVCPUEXTSTATE: u32 = 63;
pub const XEN_DOMCTL_SET_ACCESS_REQUIRED: u32 = 64;
pub const XEN_DOMCTL_AUDIT_P2M: u32 = 65;
pub const XEN_DOMCTL_SET_VIRQ_HANDLER: u32 = 66;
pub const XEN_DOMCTL_SET_BROKEN_PAGE_P2M: u32 = 67;
pub const XEN_DOMCTL_SETNODEAFFINITY: u32 = 68;
pub const XEN_DOMCTL_GETNODEAFFINITY: u32 = 69;
pub const XEN_DOMCTL_CACHEFLUSH: u32 = 71;
pub const XEN_DOMCTL_GET_VCPU_MSRS: u32 = 72;
pub const XEN_DOMCTL_SET_VCPU_MSRS: u32 = 73;
pub const XEN_DOMCTL_SETVNUMAINFO: u32 = 74;
pub const XEN_DOMCTL_PSR_CMT_OP: u32 = 75;
pub const XEN_DOMCTL_MONITOR_OP: u32 = 77;
pub const XEN_DOMCTL_PSR_ALLOC: u32 = 78;
pub const XEN_DOMCTL_SOFT_RESET: u32 = 79;
pub const XEN_DOMCTL_VUART_OP: u32 = 81;
pub const XEN_DOMCTL_GET_CPU_POLICY: u32 = 82;
pub const XEN_DOMCTL_SET_CPU_POLICY: u32 = 83;
pub const XEN_DOMCTL_VMTRACE_OP: u32 = 84;
pub const XEN_DOMCTL_GET_PAGING_MEMPOOL_SIZE: u32 = 85;
pub const XEN_DOMCTL_SET_PAGING_MEMPOOL_SIZE: u32 = 86;
pub const XEN_DOMCTL_DT_OVERLAY: u32 = 87;
pub const XEN_DOMCTL_GSI_PERMISSION: u32 = 88;
pub const XEN_DOMCTL_SET_LLC_COLORS: u32 = 89;
pub const XEN_DOMCTL_GDBSX_GUESTMEMIO: u32 = 1000;
pub const XEN_DOMCTL_GDBSX_PAUSEVCPU: u32 = 1001;
pub const XEN_DOMCTL_GDBSX_UNPAUSEVCPU: u32 = 1002;
pub const XEN_DOMCTL_GDBSX_DOMSTATUS: u32 = 1003;

/// The argument of `domctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Domctl {
    /// `XEN_DOMCTL_*`.
    pub cmd: u32,
    /// [`XEN_DOMCTL_INTERFACE_VERSION`].
    pub interface_version: u32,
    pub domain: DomainId,
    pub pad: [u16; 3],
    pub u: Union128,
}

/// `XEN_DOMCTL_createdomain`. [`Domctl::domain`] is the number wanted (0 or reserved: any), then the one given.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateDomain {
    pub ssidref: u32,
    pub handle: DomainHandle,
    /// `XEN_DOMCTL_CDF_*`.
    pub flags: u32,
    /// `XEN_DOMCTL_IOMMU_*`.
    pub iommu_opts: u32,
    pub max_vcpus: u32,
    /// The highest port; values from 2^31 up mean no limit.
    pub max_evtchn_port: u32,
    /// Negative: the default.
    pub max_grant_frames: i32,
    /// Negative: the default.
    pub max_maptrack_frames: i32,
    /// Bits 0-3: the highest version allowed.
    pub grant_opts: u32,
    pub altp2m_opts: u32,
    pub vmtrace_size: u32,
    pub cpupool_id: u32,
    pub arch: ArchDomainConfig,
}
pub const XEN_DOMCTL_CDF_HVM: u32 = 1 << 0;
pub const XEN_DOMCTL_CDF_HAP: u32 = 1 << 1;
pub const XEN_DOMCTL_CDF_S3_INTEGRITY: u32 = 1 << 2;
pub const XEN_DOMCTL_CDF_OOS_OFF: u32 = 1 << 3;
pub const XEN_DOMCTL_CDF_XS_DOMAIN: u32 = 1 << 4;
pub const XEN_DOMCTL_CDF_IOMMU: u32 = 1 << 5;
pub const XEN_DOMCTL_CDF_NESTED_VIRT: u32 = 1 << 6;
pub const XEN_DOMCTL_CDF_VPMU: u32 = 1 << 7;
pub const XEN_DOMCTL_CDF_MAX: u32 = 128;
pub const XEN_DOMCTL_IOMMU_NO_SHAREPT: u32 = 1 << 0;
pub const XEN_DOMCTL_IOMMU_MAX: u32 = 1;
pub const XEN_DOMCTL_GRANT_VERSION_MASK: u32 = 0xf;

/// `XEN_DOMCTL_getdomaininfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetDomainInfo {
    pub domain: DomainId,
    pub pad1: u16,
    /// `XEN_DOMINF_*`.
    pub flags: u32,
    pub tot_pages: u64,
    pub max_pages: u64,
    pub outstanding_pages: u64,
    pub shr_pages: u64,
    pub paged_pages: u64,
    /// The gfn of the shared page, all ones if it has none.
    pub shared_info_frame: u64,
    /// Nanoseconds.
    pub cpu_time: u64,
    pub nr_online_vcpus: u32,
    /// All ones: none.
    pub max_vcpu_id: u32,
    pub ssidref: u32,
    pub handle: DomainHandle,
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub pad2: [u8; 7],
    pub arch_config: ArchDomainConfig,
}
pub const XEN_DOMINF_DYING: u32 = 1 << 0;
pub const XEN_DOMINF_HVM_GUEST: u32 = 1 << 1;
pub const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
pub const XEN_DOMINF_PAUSED: u32 = 1 << 3;
pub const XEN_DOMINF_BLOCKED: u32 = 1 << 4;
pub const XEN_DOMINF_RUNNING: u32 = 1 << 5;
pub const XEN_DOMINF_DEBUGGED: u32 = 1 << 6;
pub const XEN_DOMINF_XS_DOMAIN: u32 = 1 << 7;
pub const XEN_DOMINF_HAP: u32 = 1 << 8;
pub const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;
pub const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;
pub const XEN_INVALID_MAX_VCPU_ID: u32 = 4294967295;

/// `XEN_DOMCTL_getpageframeinfo3`: gfns in, `XEN_DOMCTL_PFINFO_*` out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPageFrameInfo3 {
    pub num: u64,
    pub array: GuestHandle<u64>,
}
pub const XEN_DOMCTL_PFINFO_LTAB_SHIFT: u32 = 28;
pub const XEN_DOMCTL_PFINFO_NOTAB: u32 = 0x0;
pub const XEN_DOMCTL_PFINFO_L1TAB: u32 = 0x10000000;
pub const XEN_DOMCTL_PFINFO_L2TAB: u32 = 0x20000000;
pub const XEN_DOMCTL_PFINFO_L3TAB: u32 = 0x30000000;
pub const XEN_DOMCTL_PFINFO_L4TAB: u32 = 0x40000000;
pub const XEN_DOMCTL_PFINFO_LTABTYPE_MASK: u32 = 0x70000000;
pub const XEN_DOMCTL_PFINFO_LPINTAB: u32 = 0x80000000;
pub const XEN_DOMCTL_PFINFO_XTAB: u32 = 0xf0000000;
pub const XEN_DOMCTL_PFINFO_XALLOC: u32 = 0xe0000000;
pub const XEN_DOMCTL_PFINFO_BROKEN: u32 = 0xd0000000;
pub const XEN_DOMCTL_PFINFO_LTAB_MASK: u32 = 0xf0000000;

/// `XEN_DOMCTL_shadow_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShadowOp {
    /// `XEN_DOMCTL_SHADOW_OP_*`.
    pub op: u32,
    /// `XEN_DOMCTL_SHADOW_*`.
    pub mode: u32,
    /// MiB, for the allocation.
    pub mb: u32,
    pub pad: u32,
    pub dirty_bitmap: GuestHandle<u8>,
    /// In: bits. Out: how many were copied.
    pub pages: u64,
    pub stats: ShadowOpStats,
}
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShadowOpStats {
    pub fault_count: u32,
    pub dirty_count: u32,
}
pub const XEN_DOMCTL_SHADOW_OP_OFF: u32 = 0;
pub const XEN_DOMCTL_SHADOW_OP_ENABLE: u32 = 32;
pub const XEN_DOMCTL_SHADOW_OP_CLEAN: u32 = 11;
pub const XEN_DOMCTL_SHADOW_OP_PEEK: u32 = 12;
pub const XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION: u32 = 30;
pub const XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION: u32 = 31;
pub const XEN_DOMCTL_SHADOW_OP_ENABLE_TEST: u32 = 1;
pub const XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: u32 = 2;
pub const XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT: u32 = 1 << 1;
pub const XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY: u32 = 1 << 2;
pub const XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE: u32 = 1 << 3;
pub const XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL: u32 = 1 << 4;
pub const XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL: u32 = 1 << 0;

/// `XEN_DOMCTL_max_mem`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MaxMem {
    pub max_memkb: u64,
}

/// `XEN_DOMCTL_getvcpucontext` and `_setvcpucontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuContext {
    pub vcpu: u32,
    pub pad: u32,
    pub ctxt: GuestHandle<VcpuGuestContext>,
}

/// `XEN_DOMCTL_getvcpuinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVcpuInfo {
    pub vcpu: u32,
    /// Out, as all below.
    pub online: u8,
    pub blocked: u8,
    pub running: u8,
    pub pad0: u8,
    pub cpu_time: u64,
    pub cpu: u32,
    pub pad1: u32,
}

/// `XEN_DOMCTL_setnodeaffinity` and `_getnodeaffinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NodeAffinity {
    pub nodemap: Bitmap,
}

/// `XEN_DOMCTL_setvcpuaffinity` and `_getvcpuaffinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuAffinity {
    pub vcpu: u32,
    /// `XEN_VCPUAFFINITY_*`.
    pub flags: u32,
    pub cpumap_hard: Bitmap,
    pub cpumap_soft: Bitmap,
}
pub const XEN_VCPUAFFINITY_HARD: u32 = 1 << 0;
pub const XEN_VCPUAFFINITY_SOFT: u32 = 1 << 1;
pub const XEN_VCPUAFFINITY_FORCE: u32 = 1 << 2;

/// `XEN_DOMCTL_max_vcpus`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MaxVcpus {
    pub max: u32,
}

// Numbers of the schedulers.
pub const XEN_SCHEDULER_CREDIT: u32 = 5;
pub const XEN_SCHEDULER_CREDIT2: u32 = 6;
pub const XEN_SCHEDULER_ARINC653: u32 = 7;
pub const XEN_SCHEDULER_RTDS: u32 = 8;
pub const XEN_SCHEDULER_NULL: u32 = 9;

/// `XEN_DOMCTL_scheduler_op`, for the whole domain: weight and cap in `u`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedulerOp {
    /// `XEN_SCHEDULER_*`.
    pub sched_id: u32,
    /// `XEN_DOMCTL_SCHEDOP_*`.
    pub cmd: u32,
    /// [`SchedCredit2`], or [`SchedulerOpVcpus`] for the `..VCPUINFO` commands.
    pub u: [u64; 2],
}
impl SchedulerOp {
    pub const fn credit2(&self) -> SchedCredit2 {
        let [first, _] = self.u;
        SchedCredit2 { weight: first as u16, cap: (first >> 16) as u16 }
    }

    pub const fn set_credit2(&mut self, value: SchedCredit2) {
        let [first, rest] = self.u;
        self.u = [first >> 32 << 32 | (value.cap as u64) << 16 | value.weight as u64, rest];
    }
}
pub const XEN_DOMCTL_SCHEDOP_PUTINFO: u32 = 0;
pub const XEN_DOMCTL_SCHEDOP_GETINFO: u32 = 1;
pub const XEN_DOMCTL_SCHEDOP_PUTVCPUINFO: u32 = 2;
pub const XEN_DOMCTL_SCHEDOP_GETVCPUINFO: u32 = 3;

/// A domain's share, with Credit and Credit2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedCredit2 {
    pub weight: u16,
    /// Hundredths of a CPU; 0 is no cap.
    pub cap: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedulerOpVcpus {
    pub vcpus: GuestHandle<SchedParamVcpu>,
    pub nr_vcpus: u32,
    pub padding: u32,
}

/// One vCPU's parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedParamVcpu {
    pub u: [u32; 3],
    pub vcpuid: u32,
}

/// `XEN_DOMCTL_setdomainhandle`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetDomainHandle {
    pub handle: DomainHandle,
}

/// `XEN_DOMCTL_setdebugging`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetDebugging {
    pub enable: u8,
}

/// `XEN_DOMCTL_irq_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqPermission {
    pub pirq: u32,
    pub allow_access: u8,
    pub pad: [u8; 3],
}

/// `XEN_DOMCTL_gsi_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GsiPermission {
    pub gsi: u32,
    pub flags: u32,
}

/// `XEN_DOMCTL_iomem_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IomemPermission {
    pub first_mfn: u64,
    pub nr_mfns: u64,
    pub allow_access: u8,
    pub pad: [u8; 7],
}

/// `XEN_DOMCTL_ioport_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoportPermission {
    pub first_port: u32,
    pub nr_ports: u32,
    pub allow_access: u8,
    pub pad: [u8; 3],
}

/// `XEN_DOMCTL_hypercall_init`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallInit {
    pub gmfn: u64,
}

/// `XEN_DOMCTL_settimeoffset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetTimeOffset {
    pub time_offset_seconds: i64,
}

/// `XEN_DOMCTL_gethvmcontext` and `_sethvmcontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvmContext {
    /// In: room (0 with a null buffer asks). Out: used.
    pub size: u32,
    pub pad: u32,
    pub buffer: GuestHandle<u8>,
}

/// `XEN_DOMCTL_gethvmcontext_partial`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvmContextPartial {
    pub r#type: u32,
    pub instance: u32,
    pub bufsz: u64,
    pub buffer: GuestHandle<u8>,
}

/// `XEN_DOMCTL_set_address_size` and `_get_address_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddressSize {
    pub size: u32,
}

/// `XEN_DOMCTL_sendtrigger`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendTrigger {
    /// `XEN_DOMCTL_SENDTRIGGER_*`.
    pub trigger: u32,
    pub vcpu: u32,
}
pub const XEN_DOMCTL_SENDTRIGGER_NMI: u32 = 0;
pub const XEN_DOMCTL_SENDTRIGGER_RESET: u32 = 1;
pub const XEN_DOMCTL_SENDTRIGGER_INIT: u32 = 2;
pub const XEN_DOMCTL_SENDTRIGGER_POWER: u32 = 3;
pub const XEN_DOMCTL_SENDTRIGGER_SLEEP: u32 = 4;

/// `XEN_DOMCTL_assign_device`, `_test_assign_device`, `_deassign_device`, for a PCI device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AssignDevice {
    /// [`XEN_DOMCTL_DEV_PCI`].
    pub dev: u32,
    pub flags: u32,
    pub machine_sbdf: u32,
    pub pad: [u32; 3],
}
pub const XEN_DOMCTL_DEV_PCI: u32 = 0;
pub const XEN_DOMCTL_DEV_DT: u32 = 1;
pub const XEN_DOMCTL_DEV_RDM_RELAXED: u32 = 1;

/// `XEN_DOMCTL_get_device_group`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetDeviceGroup {
    pub machine_sbdf: u32,
    pub max_sdevs: u32,
    pub num_sdevs: u32,
    pub pad: u32,
    pub sdev_array: GuestHandle<u32>,
}

/// `XEN_DOMCTL_bind_pt_irq` and `_unbind_pt_irq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindPtIrq {
    pub machine_irq: u32,
    /// `PT_IRQ_TYPE_*`.
    pub irq_type: u32,
    /// By type; [`BindPtIrqMsi`].
    pub u: [u64; 2],
}
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindPtIrqMsi {
    pub gvec: u8,
    pub pad: [u8; 3],
    pub gflags: u32,
    pub gtable: u64,
}
pub const PT_IRQ_TYPE_PCI: u32 = 0;
pub const PT_IRQ_TYPE_ISA: u32 = 1;
pub const PT_IRQ_TYPE_MSI: u32 = 2;
pub const PT_IRQ_TYPE_MSI_TRANSLATE: u32 = 3;

/// `XEN_DOMCTL_memory_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryMapping {
    pub first_gfn: u64,
    pub first_mfn: u64,
    pub nr_mfns: u64,
    pub add_mapping: u32,
    pub padding: u32,
}

/// `XEN_DOMCTL_ioport_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoportMapping {
    pub first_gport: u32,
    pub first_mport: u32,
    pub nr_ports: u32,
    pub add_mapping: u32,
}

/// `XEN_DOMCTL_set_target`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetTarget {
    pub target: DomainId,
}

/// `XEN_DOMCTL_get_cpu_policy` and `_set_cpu_policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPolicy {
    /// In: room or count. Out of get: how many there are.
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub leaves: GuestHandle<CpuidLeaf>,
    pub msrs: GuestHandle<MsrEntry>,
    /// Out of set: what was refused, all ones if nothing in particular.
    pub err_leaf: u32,
    pub err_subleaf: u32,
    pub err_msr: u32,
    pub pad: u32,
}

/// `XEN_DOMCTL_subscribe`: the caller's port that is told when the domain suspends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Subscribe {
    pub port: u32,
}

/// `XEN_DOMCTL_debug_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DebugOp {
    pub op: u32,
    pub vcpu: u32,
}

/// `XEN_DOMCTL_gettscinfo` and `_settscinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TscInfo {
    /// `XEN_CPUID_TSC_MODE_*`.
    pub tsc_mode: u32,
    pub gtsc_khz: u32,
    pub incarnation: u32,
    pub pad: u32,
    pub elapsed_nsec: u64,
}

/// `XEN_DOMCTL_set_virq_handler`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetVirqHandler {
    pub virq: u32,
}

/// `XEN_DOMCTL_getvcpuextstate` and `_setvcpuextstate`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuExtState {
    pub vcpu: u32,
    pub pad: u32,
    pub xfeature_mask: u64,
    pub size: u64,
    pub buffer: GuestHandle<u64>,
}

/// `XEN_DOMCTL_get_vcpu_msrs` and `_set_vcpu_msrs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuMsrs {
    pub vcpu: u32,
    pub msr_count: u32,
    pub msrs: GuestHandle<VcpuMsr>,
}
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuMsr {
    pub index: u32,
    pub reserved: u32,
    pub value: u64,
}

/// `XEN_DOMCTL_cacheflush`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CacheFlush {
    pub start_pfn: u64,
    pub nr_pfns: u64,
}

/// `XEN_DOMCTL_get_paging_mempool_size` and `_set_paging_mempool_size`: bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PagingMempool {
    pub size: u64,
}

/// `XEN_DOMCTL_setvnumainfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vnuma {
    pub nr_vnodes: u32,
    pub nr_vmemranges: u32,
    pub nr_vcpus: u32,
    pub pad: u32,
    pub vdistance: GuestHandle<u32>,
    pub vcpu_to_vnode: GuestHandle<u32>,
    pub vnode_to_pnode: GuestHandle<u32>,
    pub vmemrange: GuestHandle<crate::memory::Vmemrange>,
}

/// `XEN_DOMCTL_monitor_op`, head only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MonitorOp {
    pub op: u32,
    pub event: u32,
    pub u: [u64; 2],
}

/// `XEN_DOMCTL_vm_event_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VmEventOp {
    pub op: u32,
    pub mode: u32,
    pub u: u32,
}
