//! What the toolstack asks of the system (`sysctl.h`). The layouts are the same for 32-bit callers.

use crate::argument::Union128;
use crate::domctl::GetDomainInfo;
use crate::handle::GuestHandle;
use crate::physdev::PciDevice;
use crate::types::{Bitmap, DomainId};
use crate::x86::{CpuidLeaf, MsrEntry};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Of 4.17 to 4.20. A caller with another one gets -EACCES.
pub const XEN_SYSCTL_INTERFACE_VERSION: u32 = 0x15;

pub const XEN_SYSCTL_READCONSOLE: u32 = 1;
pub const XEN_SYSCTL_TBUF_OP: u32 = 2;
pub const XEN_SYSCTL_PHYSINFO: u32 = 3;
pub const XEN_SYSCTL_SCHED_ID: u32 = 4;
pub const XEN_SYSCTL_PERFC_OP: u32 = 5;
pub const XEN_SYSCTL_GETDOMAININFOLIST: u32 = 6;
pub const XEN_SYSCTL_DEBUG_KEYS: u32 = 7;
pub const XEN_SYSCTL_GETCPUINFO: u32 = 8;
pub const XEN_SYSCTL_AVAILHEAP: u32 = 9;
pub const XEN_SYSCTL_GET_PMSTAT: u32 = 10;
pub const XEN_SYSCTL_CPU_HOTPLUG: u32 = 11;
pub const XEN_SYSCTL_PM_OP: u32 = 12;
pub const XEN_SYSCTL_PAGE_OFFLINE_OP: u32 = 14;
pub const XEN_SYSCTL_LOCKPROF_OP: u32 = 15;
pub const XEN_SYSCTL_CPUTOPOINFO: u32 = 16;
pub const XEN_SYSCTL_NUMAINFO: u32 = 17;
pub const XEN_SYSCTL_CPUPOOL_OP: u32 = 18;
pub const XEN_SYSCTL_SCHEDULER_OP: u32 = 19;
pub const XEN_SYSCTL_COVERAGE_OP: u32 = 20;
pub const XEN_SYSCTL_PSR_CMT_OP: u32 = 21;
pub const XEN_SYSCTL_PCITOPOINFO: u32 = 22;
pub const XEN_SYSCTL_PSR_ALLOC: u32 = 23;
pub const XEN_SYSCTL_GET_CPU_LEVELLING_CAPS: u32 = 25;
pub const XEN_SYSCTL_GET_CPU_FEATURESET: u32 = 26;
pub const XEN_SYSCTL_LIVEPATCH_OP: u32 = 27;
pub const XEN_SYSCTL_GET_CPU_POLICY: u32 = 29;
pub const XEN_SYSCTL_DT_OVERLAY: u32 = 30;

/// The argument of `sysctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sysctl {
    /// `XEN_SYSCTL_*`.
    pub cmd: u32,
    /// [`XEN_SYSCTL_INTERFACE_VERSION`].
    pub interface_version: u32,
    pub u: Union128,
}

/// `XEN_SYSCTL_readconsole`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadConsole {
    /// Non-zero: empty the ring afterwards.
    pub clear: u8,
    /// Non-zero: from `index` on.
    pub incremental: u8,
    pub pad0: u8,
    pub pad1: u8,
    /// In: where to start. Out: where to go on.
    pub index: u32,
    pub buffer: GuestHandle<u8>,
    /// In: room. Out: how many were copied.
    pub count: u32,
    pub pad2: u32,
}

/// `XEN_SYSCTL_physinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PhysInfo {
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub nr_cpus: u32,
    pub max_cpu_id: u32,
    pub nr_nodes: u32,
    pub max_node_id: u32,
    pub cpu_khz: u32,
    /// `XEN_SYSCTL_PHYSCAP_*`.
    pub capabilities: u32,
    pub arch_capabilities: u32,
    pub pad: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    pub scrub_pages: u64,
    pub outstanding_pages: u64,
    /// The highest frame that may exist.
    pub max_mfn: u64,
    /// CPUID feature words.
    pub hw_cap: [u32; 8],
}
pub const XEN_SYSCTL_PHYSCAP_HVM: u32 = 1 << 0;
pub const XEN_SYSCTL_PHYSCAP_PV: u32 = 1 << 1;
pub const XEN_SYSCTL_PHYSCAP_DIRECTIO: u32 = 1 << 2;
pub const XEN_SYSCTL_PHYSCAP_HAP: u32 = 1 << 3;
pub const XEN_SYSCTL_PHYSCAP_SHADOW: u32 = 1 << 4;
pub const XEN_SYSCTL_PHYSCAP_IOMMU_HAP_PT_SHARE: u32 = 1 << 5;
pub const XEN_SYSCTL_PHYSCAP_VMTRACE: u32 = 1 << 6;
pub const XEN_SYSCTL_PHYSCAP_VPMU: u32 = 1 << 7;
pub const XEN_SYSCTL_PHYSCAP_GNTTAB_V1: u32 = 1 << 8;
pub const XEN_SYSCTL_PHYSCAP_GNTTAB_V2: u32 = 1 << 9;
pub const XEN_SYSCTL_PHYSCAP_MAX: u32 = 512;
pub const XEN_SYSCTL_PHYSCAP_ARM_SVE_MASK: u32 = 0x1f;

/// `XEN_SYSCTL_sched_id`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedId {
    /// `XEN_SCHEDULER_*`.
    pub sched_id: u32,
}

/// `XEN_SYSCTL_getdomaininfolist`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetDomainInfoList {
    pub first_domain: DomainId,
    pub pad0: u16,
    pub max_domains: u32,
    pub buffer: GuestHandle<GetDomainInfo>,
    /// Out.
    pub num_domains: u32,
    pub pad1: u32,
}

/// `XEN_SYSCTL_debug_keys`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DebugKeys {
    pub keys: GuestHandle<u8>,
    pub nr_keys: u32,
    pub pad: u32,
}

/// `XEN_SYSCTL_getcpuinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetCpuInfo {
    pub max_cpus: u32,
    pub pad0: u32,
    pub info: GuestHandle<CpuInfo>,
    /// Out.
    pub nr_cpus: u32,
    pub pad1: u32,
}
/// Nanoseconds that a CPU was idle.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuInfo {
    pub idletime: u64,
}

/// `XEN_SYSCTL_availheap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AvailHeap {
    pub min_bitwidth: u32,
    pub max_bitwidth: u32,
    /// -1: all.
    pub node: i32,
    pub pad: u32,
    /// Out.
    pub avail_bytes: u64,
}

/// `XEN_SYSCTL_get_pmstat`, head only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPmstat {
    pub r#type: u32,
    pub cpuid: u32,
    pub u: [u64; 7],
}

/// `XEN_SYSCTL_cpu_hotplug`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuHotplug {
    pub cpu: u32,
    /// `XEN_SYSCTL_CPU_HOTPLUG_*`.
    pub op: u32,
}
pub const XEN_SYSCTL_CPU_HOTPLUG_ONLINE: u32 = 0;
pub const XEN_SYSCTL_CPU_HOTPLUG_OFFLINE: u32 = 1;
pub const XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE: u32 = 2;
pub const XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE: u32 = 3;

/// `XEN_SYSCTL_pm_op`, head only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PmOp {
    pub cmd: u32,
    pub cpuid: u32,
    pub u: [u64; 15],
}

/// `XEN_SYSCTL_cputopoinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuTopoInfo {
    /// In: room. Out: how many there are.
    pub num_cpus: u32,
    pub pad: u32,
    pub cputopo: GuestHandle<CpuTopo>,
}
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuTopo {
    pub core: u32,
    pub socket: u32,
    pub node: u32,
}
pub const XEN_INVALID_CORE_ID: u32 = 4294967295;
pub const XEN_INVALID_SOCKET_ID: u32 = 4294967295;
pub const XEN_INVALID_NODE_ID: u32 = 4294967295;
pub const XEN_INVALID_MEM_SZ: u32 = 4294967295;
pub const XEN_INVALID_NODE_DIST: u32 = 4294967295;

/// `XEN_SYSCTL_numainfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NumaInfo {
    /// In: room. Out: how many there are.
    pub num_nodes: u32,
    pub pad: u32,
    pub meminfo: GuestHandle<MemInfo>,
    /// `num_nodes` × `num_nodes`.
    pub distance: GuestHandle<u32>,
}
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemInfo {
    pub memsize: u64,
    pub memfree: u64,
}

/// `XEN_SYSCTL_cpupool_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpupoolOp {
    /// `XEN_SYSCTL_CPUPOOL_OP_*`.
    pub op: u32,
    pub cpupool_id: u32,
    pub sched_id: u32,
    pub domid: u32,
    pub cpu: u32,
    /// Out.
    pub n_dom: u32,
    pub cpumap: Bitmap,
}
pub const XEN_SYSCTL_CPUPOOL_OP_CREATE: u32 = 1;
pub const XEN_SYSCTL_CPUPOOL_OP_DESTROY: u32 = 2;
pub const XEN_SYSCTL_CPUPOOL_OP_INFO: u32 = 3;
pub const XEN_SYSCTL_CPUPOOL_OP_ADDCPU: u32 = 4;
pub const XEN_SYSCTL_CPUPOOL_OP_RMCPU: u32 = 5;
pub const XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN: u32 = 6;
pub const XEN_SYSCTL_CPUPOOL_OP_FREEINFO: u32 = 7;
pub const XEN_SYSCTL_CPUPOOL_PAR_ANY: u32 = 0xffffffff;

/// `XEN_SYSCTL_scheduler_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedulerOp {
    pub cpupool_id: u32,
    pub sched_id: u32,
    /// `XEN_SYSCTL_SCHEDOP_*`.
    pub cmd: u32,
    pub pad: u32,
    /// By scheduler: [`Credit2Schedule`].
    pub u: [u64; 2],
}
pub const XEN_SYSCTL_SCHED_RATELIMIT_MAX: u32 = 500000;
pub const XEN_SYSCTL_SCHED_RATELIMIT_MIN: u32 = 100;
pub const XEN_SYSCTL_SCHEDOP_PUTINFO: u32 = 0;
pub const XEN_SYSCTL_SCHEDOP_GETINFO: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Credit2Schedule {
    pub ratelimit_us: u32,
}

/// `XEN_SYSCTL_coverage_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CoverageOp {
    pub cmd: u32,
    pub size: u32,
    pub buffer: GuestHandle<u8>,
}

/// `XEN_SYSCTL_psr_cmt_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PsrCmtOp {
    pub cmd: u32,
    pub flags: u32,
    pub u: u64,
}

/// `XEN_SYSCTL_pcitopoinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciTopoInfo {
    pub num_devs: u32,
    pub pad: u32,
    pub devs: GuestHandle<PciDevice>,
    /// Out: a node each.
    pub nodes: GuestHandle<u32>,
}
/// In [`PciTopoInfo::nodes`]: no such device.
pub const XEN_INVALID_DEV: u32 = 0xffff_fffe;

/// `XEN_SYSCTL_psr_alloc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PsrAlloc {
    pub cmd: u32,
    pub target: u32,
    pub u: [u32; 3],
}

/// `XEN_SYSCTL_get_cpu_levelling_caps`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuLevellingCaps {
    pub caps: u32,
}

/// `XEN_SYSCTL_get_cpu_featureset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuFeatureset {
    /// `XEN_SYSCTL_CPU_FEATURESET_*`.
    pub index: u32,
    /// In: room. Out: how many there are.
    pub nr_features: u32,
    pub features: GuestHandle<u32>,
}
pub const XEN_SYSCTL_CPU_FEATURESET_RAW: u32 = 0;
pub const XEN_SYSCTL_CPU_FEATURESET_HOST: u32 = 1;
pub const XEN_SYSCTL_CPU_FEATURESET_PV: u32 = 2;
pub const XEN_SYSCTL_CPU_FEATURESET_HVM: u32 = 3;
pub const XEN_SYSCTL_CPU_FEATURESET_PV_MAX: u32 = 4;
pub const XEN_SYSCTL_CPU_FEATURESET_HVM_MAX: u32 = 5;

/// `XEN_SYSCTL_get_cpu_policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPolicy {
    /// `XEN_SYSCTL_CPU_POLICY_*`.
    pub index: u32,
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub reserved: u32,
    pub leaves: GuestHandle<CpuidLeaf>,
    pub msrs: GuestHandle<MsrEntry>,
}
pub const XEN_SYSCTL_CPU_POLICY_RAW: u32 = 0;
pub const XEN_SYSCTL_CPU_POLICY_HOST: u32 = 1;
pub const XEN_SYSCTL_CPU_POLICY_PV_MAX: u32 = 2;
pub const XEN_SYSCTL_CPU_POLICY_HVM_MAX: u32 = 3;
pub const XEN_SYSCTL_CPU_POLICY_PV_DEFAULT: u32 = 4;
pub const XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT: u32 = 5;

/// `XEN_SYSCTL_tbuf_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TbufOp {
    pub cmd: u32,
    pub pad0: u32,
    pub cpu_mask: Bitmap,
    pub evt_mask: u32,
    pub pad1: u32,
    pub buffer_mfn: u64,
    pub size: u32,
    pub pad2: u32,
}

/// `XEN_SYSCTL_lockprof_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LockprofOp {
    pub cmd: u32,
    pub max_elem: u32,
    pub nr_elem: u32,
    pub pad: u32,
    pub time: u64,
    pub data: GuestHandle<u8>,
}

/// `XEN_SYSCTL_perfc_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PerfcOp {
    pub cmd: u32,
    pub nr_counters: u32,
    pub nr_vals: u32,
    pub pad: u32,
    pub desc: GuestHandle<u8>,
    pub val: GuestHandle<u32>,
}

/// `XEN_SYSCTL_page_offline_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageOfflineOp {
    pub cmd: u32,
    pub start: u32,
    pub end: u32,
    pub pad: u32,
    pub status: GuestHandle<u32>,
}
