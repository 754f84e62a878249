//! MSRs: one table of rows, looked up by number in one step.
//!
//! A row says how an MSR reads and how it writes, and when it is there at all. What no row names is refused with #GP.
//! The state that a vCPU keeps here is [`VcpuMsrs`], a plain value; what lives in the machine (the VMCS, the local
//! APIC, the FPU) is named by a [`DeviceMsr`] that the run loop carries out.

use xen_abi::hvm_save;

use super::Vendor;
use super::cpuid::CpuidPolicy;
use super::features::{self, Feature};
use super::msr_table::{self, Check, Read, Row, Through, Write, when};
use super::mtrr::{self, Mtrr};
use super::wire;

/// A write here asks for the hypercall page at the address written. CPUID leaf 0x40000002 tells its number.
pub const XEN_HYPERCALL_PAGE: u32 = 0x4000_0000;

/// An MSR that belongs to a part of the virtual machine and not to this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceMsr {
    /// IA32_TIME_STAMP_COUNTER.
    Tsc,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// IA32_TSC_DEADLINE, the local APIC's timer.
    TscDeadline,
    /// IA32_TSC_AUX, which RDTSCP and RDPID return.
    TscAux,
    /// IA32_APIC_BASE.
    ApicBase,
    /// An x2APIC register: the MSR's number less 0x800.
    X2Apic(u8),
    /// IA32_EFER; its bits are checked by whoever owns the control registers.
    Efer,
    /// IA32_PAT; the value is checked.
    Pat,
    /// IA32_DEBUGCTL; only BTF and LBR come through.
    DebugControl,
    /// IA32_SPEC_CTRL.
    SpecControl,
    /// IA32_PRED_CMD; write only.
    PredictorCommand,
    /// IA32_FLUSH_CMD; write only.
    FlushCommand,
    /// IA32_XSS; nothing in it may be set.
    Xss,
    /// IA32_FS_BASE.
    FsBase,
    /// IA32_GS_BASE.
    GsBase,
    /// IA32_KERNEL_GS_BASE.
    KernelGsBase,
    /// IA32_STAR.
    Star,
    /// IA32_LSTAR.
    Lstar,
    /// IA32_CSTAR.
    Cstar,
    /// IA32_FMASK.
    SyscallMask,
    /// IA32_SYSENTER_CS.
    SysenterCs,
    /// IA32_SYSENTER_ESP.
    SysenterEsp,
    /// IA32_SYSENTER_EIP.
    SysenterEip,
}

/// How RDMSR ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRead {
    /// EDX:EAX.
    Value(u64),
    /// Ask the machine.
    Device(DeviceMsr),
    /// #GP(0).
    Gp,
}

/// How WRMSR ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrWrite {
    /// Done, or deliberately without effect.
    Done,
    /// Tell the machine. The value that was written goes with it, and is valid as far as this table knows the rules.
    Device(DeviceMsr),
    /// Write the hypercall page into this guest frame.
    HypercallPage(u64),
    /// #GP(0).
    Gp,
}

/// The MSRs that a vCPU keeps here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuMsrs {
    /// Memory type ranges.
    pub mtrr: Mtrr,
    /// IA32_MISC_ENABLE bit 0, fast strings: the one bit that a guest may change.
    pub fast_strings: bool,
}

impl Default for VcpuMsrs {
    fn default() -> Self {
        VcpuMsrs { mtrr: Mtrr::default(), fast_strings: true }
    }
}

impl VcpuMsrs {
    /// The MTRR record of the HVM save format; `pat` is the vCPU's IA32_PAT.
    pub fn to_record(&self, pat: u64) -> hvm_save::Mtrr {
        self.mtrr.to_record(pat)
    }

    /// Takes the MTRRs of a record; the state is unchanged and the answer false if it is not one that a guest could have
    /// made. The PAT in it is for the machine.
    pub fn load_record(&mut self, record: &hvm_save::Mtrr, physical_bits: u8) -> bool {
        match Mtrr::from_record(record, physical_bits) {
            Some(mtrr) if mtrr::is_pat(record.msr_pat_cr) => {
                self.mtrr = mtrr;
                true
            }
            _ => false,
        }
    }
}

/// What a domain's MSRs depend on besides its CPUID policy.
#[derive(Clone, Copy, Debug)]
pub struct MsrOptions {
    /// The domain owns the hardware: it is told where DRAM ends, and may ask for microcode (in vain).
    pub hardware_domain: bool,
    /// The engine switches IA32_PAT with the vCPU, so that it needs no exit.
    pub pat_switched: bool,
    /// The guest's physical address width.
    pub physical_bits: u8,
}

/// Which accesses to an MSR need no exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passthrough {
    /// The MSR.
    pub msr: u32,
    /// RDMSR goes to the hardware.
    pub read: bool,
    /// WRMSR goes to the hardware.
    pub write: bool,
}

/// The MSRs of one domain.
#[derive(Clone, Copy, Debug)]
pub struct MsrPolicy {
    /// The `when` bits that hold.
    holds: u16,
    physical_bits: u8,
    host: [u64; msr_table::HOST.len()],
}

impl MsrPolicy {
    /// Computes a domain's policy: what its CPUID promises is there. `host` reads an MSR of this machine, or nothing if
    /// that faults; for IA32_BIOS_SIGN_ID (0x8b) it answers with the microcode revision.
    pub fn for_domain(host: impl Fn(u32) -> Option<u64>, cpuid: &CpuidPolicy, options: &MsrOptions) -> MsrPolicy {
        let mut holds = conditions(cpuid);
        if options.hardware_domain {
            holds |= when::HARDWARE_DOMAIN;
        }
        if options.pat_switched {
            holds |= when::PAT_SWITCHED;
        }
        let mut policy = MsrPolicy { holds, physical_bits: options.physical_bits, host: [0; msr_table::HOST.len()] };
        for (value, (msr, mask)) in policy.host.iter_mut().zip(msr_table::HOST) {
            if msr_table::find(msr).is_some_and(|row| row.when & !holds == 0) {
                *value = host(msr).unwrap_or_default() & mask;
            }
        }
        policy
    }

    /// This policy for a domain with less in its CPUID, and in its IA32_ARCH_CAPABILITIES.
    pub fn narrowed(&self, cpuid: &CpuidPolicy, capabilities: u64) -> MsrPolicy {
        let holds = conditions(cpuid) | self.holds & (when::HARDWARE_DOMAIN | when::PAT_SWITCHED);
        let mut policy = MsrPolicy { holds, physical_bits: cpuid.physical_bits(), host: self.host };
        for (value, (msr, _)) in policy.host.iter_mut().zip(msr_table::HOST) {
            if msr_table::find(msr).is_none_or(|row| row.when & !holds != 0) {
                *value = 0;
            }
            if msr == wire::ARCH_CAPABILITIES {
                *value &= capabilities;
            }
        }
        policy
    }

    /// IA32_ARCH_CAPABILITIES, zero where it is not shown.
    pub fn capabilities(&self) -> u64 {
        let values = self.host.iter().zip(msr_table::HOST);
        values.filter(|(_, (msr, _))| *msr == wire::ARCH_CAPABILITIES).map(|(value, _)| *value).sum()
    }

    /// What RDMSR does.
    #[inline]
    pub fn read(&self, msr: u32, vcpu: &VcpuMsrs) -> MsrRead {
        if let Some(register) = x2apic_register(msr) {
            return MsrRead::Device(DeviceMsr::X2Apic(register));
        }
        let Some(row) = self.row(msr) else {
            return MsrRead::Gp;
        };
        match row.read {
            Read::Const(value) => MsrRead::Value(value),
            Read::Host(index) => MsrRead::Value(self.host.get(index).copied().unwrap_or_default()),
            Read::MiscEnable => MsrRead::Value(msr_table::MISC_ENABLE | u64::from(vcpu.fast_strings)),
            Read::Mtrr(register) => MsrRead::Value(vcpu.mtrr.read(register)),
            Read::Device(device) => MsrRead::Device(device),
            Read::Gp => MsrRead::Gp,
        }
    }

    /// What WRMSR does. Only [`MsrWrite::Done`] may have changed `vcpu`.
    #[inline]
    pub fn write(&self, msr: u32, value: u64, vcpu: &mut VcpuMsrs) -> MsrWrite {
        if let Some(register) = x2apic_register(msr) {
            return MsrWrite::Device(DeviceMsr::X2Apic(register));
        }
        let Some(row) = self.row(msr) else {
            return MsrWrite::Gp;
        };
        match row.write {
            Write::Device(device, check) if passes(check, value) => MsrWrite::Device(device),
            Write::Ignore(check) if passes(check, value) => MsrWrite::Done,
            Write::MiscEnable => {
                vcpu.fast_strings = value & msr_table::FAST_STRINGS != 0;
                MsrWrite::Done
            }
            Write::Mtrr(register) if vcpu.mtrr.write(register, value, self.physical_bits) => MsrWrite::Done,
            Write::HypercallPage if self.is_page_address(value) => MsrWrite::HypercallPage(value >> 12),
            _ => MsrWrite::Gp,
        }
    }

    /// The MSRs that the engine's bitmap lets through. Every other access exits.
    pub fn passthrough(&self) -> impl Iterator<Item = Passthrough> + '_ {
        msr_table::all()
            .filter(|row| row.through != Through::No && (row.when | row.through_when) & !self.holds == 0)
            .map(|row| Passthrough {
                msr: row.msr,
                read: row.through != Through::Write,
                write: row.through != Through::Read,
            })
    }

    #[inline]
    fn row(&self, msr: u32) -> Option<&'static Row> {
        msr_table::find(msr).filter(|row| row.when & !self.holds == 0)
    }

    /// There is one hypercall page, so its index in the low bits is zero.
    fn is_page_address(&self, value: u64) -> bool {
        value & 0xfff == 0 && value.checked_shr(self.physical_bits.into()).unwrap_or_default() == 0
    }
}

/// Which conditions for a row hold with these leaves.
fn conditions(cpuid: &CpuidPolicy) -> u16 {
    /// A row is there if any of the features is.
    const ON_FEATURE: &[(u16, &[Feature])] = &[
        (when::RDTSCP, &[features::RDTSCP]),
        (when::SPEC_CONTROL, &[features::IBRSB, features::IBRS, features::AMD_STIBP, features::AMD_SSBD]),
        (when::PREDICTOR_COMMAND, &[features::IBRSB, features::IBPB]),
        (when::FLUSH_COMMAND, &[features::L1D_FLUSH]),
        (when::ARCH_CAPABILITIES, &[features::ARCH_CAPS]),
        (when::XSAVES, &[features::XSAVES]),
        (when::TSC_ADJUST, &[features::TSC_ADJUST]),
    ];
    let mut holds = match cpuid.vendor() {
        Vendor::Intel => when::INTEL,
        Vendor::Amd => when::AMD,
    };
    for (bit, any) in ON_FEATURE {
        if any.iter().any(|&feature| cpuid.features().has(feature)) {
            holds |= bit;
        }
    }
    holds
}

/// The register, if the MSR is in the x2APIC's range.
#[inline]
fn x2apic_register(msr: u32) -> Option<u8> {
    (msr & !0xff == 0x800).then_some(msr as u8)
}

#[inline]
fn passes(check: Check, value: u64) -> bool {
    match check {
        Check::Any => true,
        // Bits 63:47 are alike: the guest has no five-level paging.
        Check::Canonical => matches!((value as i64) >> 47, 0 | -1),
        Check::Reserved(bits) => value & bits == 0,
        Check::Pat => mtrr::is_pat(value),
    }
}

#[cfg(test)]
#[path = "msr_tests.rs"]
mod tests;
