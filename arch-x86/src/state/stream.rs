//! A domain's HVM context: records of all of its vCPUs, in the order of Xen's (`hvm/save.h`).
//!
//! What is read is checked whole before the caller gets any of it. Records of devices that a PVH guest has not are refused.

use alloc::vec::Vec;
use core::mem::size_of;

use mm::{try_concat, try_vec};
use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::hvm_save::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::check::Invalid;
use super::{CpuState, FpuImage, record};
use crate::policy::GuestPolicy;
use crate::policy::features;
use crate::policy::msr::VcpuMsrs;
use crate::policy::mtrr::{self, Mtrr as Ranges};
use crate::vdev::vlapic::Vlapic;

const MISC_ENABLE: u32 = 0x1a0;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const XSS: u32 = 0xda0;

impl From<Invalid> for Errno {
    fn from(_: Invalid) -> Errno {
        Errno::EINVAL
    }
}

/// What there is to save of a vCPU.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Saved {
    /// A vCPU that is down has no registers worth a word.
    pub is_up: bool,
    pub cpu: CpuState,
    pub fpu: FpuImage,
    pub xcr0: u64,
    pub msrs: VcpuMsrs,
    pub lapic: (Lapic, LapicRegs),
}

/// What of a vCPU a context had, checked. The rest of the vCPU stays as it is.
#[derive(Debug, Default)]
pub struct Restored {
    /// Its PAT is to be replaced by `pat`, or by what the vCPU has.
    pub cpu: Option<CpuState>,
    pub pat: Option<u64>,
    pub fpu: Option<FpuImage>,
    pub xcr0: Option<u64>,
    pub ranges: Option<Ranges>,
    pub fast_strings: Option<bool>,
    pub lapic: Option<(Lapic, LapicRegs)>,
}

/// What a context is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    pub policy: &'a GuestPolicy,
    pub vcpus: usize,
    /// What this CPU knows of MXCSR.
    pub mxcsr_mask: u32,
}

/// A context in the making.
struct Writer(Vec<u8>);

impl Writer {
    /// Adds a record of these parts.
    fn push(&mut self, typecode: u16, instance: usize, parts: &[&[u8]]) -> Result<(), Errno> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        let descriptor = Descriptor { typecode, instance: instance as u16, length };
        for part in [descriptor.as_bytes()].iter().chain(parts) {
            self.0.try_reserve(part.len()).map_err(|_| Errno::ENOMEM)?;
            self.0.extend_from_slice(part);
        }
        Ok(())
    }
}

/// The context of a domain with these vCPUs, in order. `tsc` is what they read now.
/// ENOMEM if there is no room for it.
pub fn save(header: &Header, vcpus: &[Saved], policy: &GuestPolicy, tsc: u64) -> Result<Vec<u8>, Errno> {
    /// What a vCPU has at the most but for its states.
    const A_VCPU: usize = 4096;
    let states = policy.cpuid.xstate().standard_size(u64::MAX) as usize;
    let room = A_VCPU.saturating_add(states).saturating_mul(vcpus.len().saturating_add(1));
    let mut stream = Writer(try_vec(room)?);
    stream.push(HEADER_CODE, 0, &[header.as_bytes()])?;
    let up = || vcpus.iter().enumerate().filter(|(_, vcpu)| vcpu.is_up);
    for (instance, vcpu) in up() {
        let record = record::to_record(&vcpu.cpu, Some(&vcpu.fpu.legacy()), tsc);
        stream.push(CPU_CODE, instance, &[record.as_bytes()])?;
    }
    for (instance, vcpu) in vcpus.iter().enumerate() {
        stream.push(LAPIC_CODE, instance, &[vcpu.lapic.0.as_bytes()])?;
    }
    for (instance, vcpu) in vcpus.iter().enumerate() {
        stream.push(LAPIC_REGS_CODE, instance, &[vcpu.lapic.1.as_bytes()])?;
    }
    for (instance, vcpu) in vcpus.iter().enumerate() {
        stream.push(MTRR_CODE, instance, &[vcpu.msrs.to_record(vcpu.cpu.pat).as_bytes()])?;
    }
    if policy.cpuid.features().has(features::XSAVE) {
        for (instance, vcpu) in up() {
            let may = policy.cpuid.xstate().xcr0;
            let states = vcpu.xcr0 | vcpu.fpu.states() & may;
            let area = vcpu.fpu.limited(states, policy.cpuid.xstate().standard_size(states) as usize)?;
            let parts = [may.as_bytes(), vcpu.xcr0.as_bytes(), states.as_bytes(), area.bytes()];
            stream.push(CPU_XSAVE_CODE, instance, &parts)?;
        }
    }
    for (instance, _) in vcpus.iter().enumerate().filter(|(_, vcpu)| !vcpu.msrs.fast_strings) {
        let head = Msr { count: 1, pad: 0 };
        let entry = OneMsr { index: MISC_ENABLE, reserved: 0, val: 0 };
        stream.push(CPU_MSR_CODE, instance, &[head.as_bytes(), entry.as_bytes()])?;
    }
    stream.push(END_CODE, 0, &[])?;
    Ok(stream.0)
}

/// One record of a context with its descriptor, by its type and instance. ENOENT if there is none, EINVAL for a type that cannot be, ENOMEM.
pub fn record_of(stream: &[u8], typecode: u16, instance: u16) -> Result<Vec<u8>, Errno> {
    if typecode > HVM_SAVE_CODE_MAX {
        return Err(Errno::EINVAL);
    }
    for record in (Records { rest: stream }) {
        let (descriptor, body) = record?;
        if (descriptor.typecode, descriptor.instance) == (typecode, instance) {
            return Ok(try_concat(&[descriptor.as_bytes(), body])?);
        }
    }
    Err(Errno::ENOENT)
}

/// Descriptors and records up to the end.
struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Descriptor, &'a [u8]), Errno>;

    /// ENODATA if there is no end.
    fn next(&mut self) -> Option<Self::Item> {
        let Ok((descriptor, rest)) = Descriptor::read_from_prefix(self.rest) else {
            return Some(Err(Errno::ENODATA));
        };
        if descriptor.typecode == END_CODE {
            return None;
        }
        let Some((body, rest)) = rest.split_at_checked(descriptor.length as usize) else {
            return Some(Err(Errno::ENODATA));
        };
        self.rest = rest;
        Some(Ok((descriptor, body)))
    }
}

/// Half of a local APIC's state is none.
#[derive(Default)]
struct Halves {
    record: Option<Lapic>,
    page: Option<LapicRegs>,
    has_xsave: bool,
}

/// Reads a context: for each vCPU what there is of it. EINVAL for what no CPU of this domain can have, or of another domain's shape; ENODEV for a
/// device that it has not; ENXIO for an MSR that it has not; ENODATA if the end is missing; ENOMEM.
pub fn restore(stream: &[u8], limits: &Limits) -> Result<Vec<Restored>, Errno> {
    let mut vcpus = try_vec(limits.vcpus)?;
    vcpus.resize_with(limits.vcpus, || (Restored::default(), Halves::default()));
    let mut records = Records { rest: stream };
    let (first, body) = records.next().ok_or(Errno::EINVAL)??;
    let header: Header = exact(body)?;
    if first.typecode != HEADER_CODE || header.magic != HVM_FILE_MAGIC || header.version != HVM_FILE_VERSION {
        return Err(Errno::EINVAL);
    }
    for record in records {
        let (Descriptor { typecode, instance, .. }, body) = record?;
        match typecode {
            PIC_CODE | IOAPIC_CODE | PCI_IRQ_CODE | ISA_IRQ_CODE | PCI_LINK_CODE | PIT_CODE | RTC_CODE | HPET_CODE
            | PMTIMER_CODE | VIRIDIAN_DOMAIN_CODE | VIRIDIAN_VCPU_CODE => return Err(Errno::ENODEV),
            CPU_CODE | LAPIC_CODE | LAPIC_REGS_CODE | MTRR_CODE | CPU_XSAVE_CODE | VMCE_VCPU_CODE | TSC_ADJUST_CODE
            | CPU_MSR_CODE => {}
            _ => return Err(Errno::EINVAL),
        }
        let (vcpu, halves) = vcpus.get_mut(usize::from(instance)).ok_or(Errno::EINVAL)?;
        take(vcpu, halves, typecode, body, limits)?;
    }
    let mut finished = try_vec(limits.vcpus)?;
    for (vcpu, halves) in vcpus {
        finished.push(finish(vcpu, halves)?);
    }
    Ok(finished)
}

fn exact<T: FromBytes>(body: &[u8]) -> Result<T, Errno> {
    T::read_from_bytes(body).map_err(|_| Errno::EINVAL)
}

fn take(vcpu: &mut Restored, halves: &mut Halves, typecode: u16, body: &[u8], limits: &Limits) -> Result<(), Errno> {
    let policy = limits.policy;
    match typecode {
        CPU_CODE => {
            let sent: Cpu = exact(body)?;
            let (cpu, legacy) = record::from_record(&sent, crate::cpu::registers::PAT_AT_RESET)?;
            cpu.check(policy)?;
            vcpu.cpu = Some(cpu);
            // The record of all states has more to say, wherever it stands.
            if !halves.has_xsave {
                vcpu.fpu = Some(match legacy {
                    Some(legacy) => FpuImage::from_legacy(legacy, limits.mxcsr_mask)?,
                    None => FpuImage::initial()?,
                });
            }
        }
        CPU_XSAVE_CODE => {
            let (fpu, xcr0) = take_xsave(body, limits)?;
            (vcpu.fpu, vcpu.xcr0) = (Some(fpu), Some(xcr0));
            halves.has_xsave = true;
        }
        LAPIC_CODE => halves.record = Some(exact(body)?),
        LAPIC_REGS_CODE => halves.page = Some(exact(body)?),
        MTRR_CODE => {
            let sent: Mtrr = exact(body)?;
            let ranges = Ranges::from_record(&sent, policy.cpuid.physical_bits()).ok_or(Errno::EINVAL)?;
            if !mtrr::is_pat(sent.msr_pat_cr) {
                return Err(Errno::EINVAL);
            }
            (vcpu.ranges, vcpu.pat) = (Some(ranges), Some(sent.msr_pat_cr));
        }
        // The TSC is the machine's, and an adjustment of it without effect, as it is when a guest writes it.
        TSC_ADJUST_CODE => drop(exact::<TscAdjust>(body)?),
        // There is no machine-check state but what every vCPU has.
        VMCE_VCPU_CODE if exact::<VmceVcpu>(body)? == VmceVcpu::new_zeroed() => {}
        VMCE_VCPU_CODE => return Err(Errno::EINVAL),
        _ => take_msrs(vcpu, body, policy)?,
    }
    Ok(())
}

fn take_xsave(body: &[u8], limits: &Limits) -> Result<(FpuImage, u64), Errno> {
    let policy = limits.policy;
    let [_, xcr0, states] = <[u64; 3]>::read_from_prefix(body).map_err(|_| Errno::EINVAL)?.0;
    let area = body.get(size_of::<[u64; 3]>()..).ok_or(Errno::EINVAL)?;
    let may = policy.cpuid.xstate();
    let fits = policy.cpuid.features().has(features::XSAVE)
        && may.may_enable(xcr0)
        && states & !may.xcr0 == 0
        && xcr0 & !states == 0;
    if !fits {
        return Err(Errno::EINVAL);
    }
    let (area, beyond) = area.split_at_checked(may.standard_size(states) as usize).ok_or(Errno::EINVAL)?;
    if beyond.iter().any(|byte| *byte != 0) {
        return Err(Errno::EINVAL);
    }
    Ok((FpuImage::from_area(area, states, limits.mxcsr_mask)?, xcr0))
}

fn take_msrs(vcpu: &mut Restored, body: &[u8], policy: &GuestPolicy) -> Result<(), Errno> {
    let (head, entries) = Msr::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let entries = <[OneMsr]>::ref_from_bytes(entries).map_err(|_| Errno::EINVAL)?;
    if head.pad != 0 || head.count as usize != entries.len() {
        return Err(Errno::EINVAL);
    }
    for entry in entries {
        match entry.index {
            _ if entry.reserved != 0 => return Err(Errno::EOPNOTSUPP),
            MISC_ENABLE => vcpu.fast_strings = Some(entry.val & 1 != 0),
            MISC_FEATURES_ENABLES if entry.val == 0 => {}
            XSS if entry.val == 0 && policy.cpuid.features().has(features::XSAVES) => {}
            MISC_FEATURES_ENABLES | XSS => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENXIO),
        }
    }
    Ok(())
}

fn finish(mut vcpu: Restored, halves: Halves) -> Result<Restored, Errno> {
    vcpu.lapic = match (halves.record, halves.page) {
        (Some(record), Some(page)) => {
            // One that stands for any other: what can be loaded does not depend on what was there.
            let (mut scratch, inbox) = Vlapic::new(0, false);
            scratch.restore(&record, &page, Nanos(0), &inbox).map_err(|_| Errno::EINVAL)?;
            Some((record, page))
        }
        (None, None) => None,
        _ => return Err(Errno::EINVAL),
    };
    Ok(vcpu)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
