//! What a CPU can be in: the checks of control registers and of guest state at a VM entry (SDM Vol. 3, 2.5 and 27.3.1), which hold on AMD too.

use super::{CpuState, DR6_AT_RESET, DR7_AT_RESET, RFLAGS_FIXED};
use crate::cpu::registers::{cr0, cr4, efer, rflags};
use crate::event::Event;
use crate::policy::features::{self, Feature};
use crate::policy::{GuestPolicy, mtrr};
use crate::segment::{Segment, SegmentAccess, SegmentRegister};

/// No CPU is ever in this state, or not one of this domain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// RFLAGS.VM.
const VIRTUAL_8086: u64 = 1 << 17;
/// Bits that are zero, for good.
const RFLAGS_RESERVED: u64 = !0x3f_7fd7;
/// CR4.PCIDE, which long mode alone has.
const PCIDE: u64 = 1 << 17;
/// MOV to DR7 leaves these as they are: bits 63:32 apart, 15:14 and 12 read as zero. GD (13) is a bit like others.
const DR7_ZERO: u64 = 0xd000;
/// DR6 bits that a debug exception sets: B0 to B3, BD, BS, BT.
const DR6_STATUS: u64 = 0xe00f;

const ACCESSED: u32 = 1 << 0;
const CODE: u32 = 1 << 3;
const NOT_SYSTEM: u32 = 1 << 4;
const PRESENT: u32 = 1 << 7;
const LONG: u32 = 1 << 13;
const BIG: u32 = 1 << 14;
const GRANULAR: u32 = 1 << 15;
const UNUSABLE: u32 = SegmentAccess::UNUSABLE.0;
const ACCESS_RESERVED: u32 = !(0xf0ff | UNUSABLE);

fn ensure(holds: bool) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid) }
}

pub(super) fn is_canonical(address: u64) -> bool {
    // Bits 63:47 are alike: the guest has no five-level paging.
    matches!((address as i64) >> 47, 0 | -1)
}

impl CpuState {
    /// Makes of it what the CPU would have made of it by itself: bits that read as one, or as zero, whatever was written; accessed bits of
    /// segments; LMA.
    pub fn settle(&mut self) {
        self.rflags |= RFLAGS_FIXED;
        self.cr0 |= cr0::ET;
        self.dr6 = self.dr6 & DR6_STATUS | DR6_AT_RESET;
        self.dr7 = self.dr7 & !DR7_ZERO | DR7_AT_RESET;
        for segment in &mut self.segments {
            let access = &mut segment.access.0;
            if *access & PRESENT == 0 {
                *access |= UNUSABLE;
            } else if *access & (UNUSABLE | NOT_SYSTEM) == NOT_SYSTEM {
                *access |= ACCESSED;
            }
        }
    }

    /// Whether a vCPU of a domain with this policy can be in this state. It is [settled](Self::settle).
    pub fn check(&self, policy: &GuestPolicy) -> Result<(), Invalid> {
        self.check_control(policy)?;
        self.check_msrs(policy)?;
        let is_long = self.efer & efer::LMA != 0;
        let in_64_bit = is_long && self.segment(SegmentRegister::Cs).access.long();
        ensure(self.dr6 >> 32 == 0 && self.dr7 >> 32 == 0)?;
        ensure(self.rflags & RFLAGS_RESERVED == 0)?;
        let virtual_8086 = self.rflags & VIRTUAL_8086 != 0;
        ensure(!virtual_8086 || (!is_long && self.cr0 & cr0::PE != 0))?;
        ensure(if in_64_bit { is_canonical(self.rip) } else { self.rip >> 32 == 0 })?;
        ensure(is_canonical(self.gdtr.base) && is_canonical(self.idtr.base))?;
        if virtual_8086 {
            self.check_virtual_8086_segments()?
        } else {
            self.check_segments(is_long)?
        }
        self.check_task(is_long)?;
        self.check_event()
    }

    fn check_control(&self, policy: &GuestPolicy) -> Result<(), Invalid> {
        let has = |feature: Feature| policy.cpuid.features().has(feature);
        let [paging, protected] = [cr0::PG, cr0::PE].map(|bit| self.cr0 & bit != 0);
        ensure(self.cr0 >> 32 == 0 && self.cr0 & !cr0::DEFINED == 0)?;
        ensure(!paging || protected)?;
        ensure(self.cr0 & cr0::NW == 0 || self.cr0 & cr0::CD != 0)?;
        ensure(self.cr4 & !policy.cr4_allowed == 0)?;
        let mut known = efer::LMA;
        for (feature, bits) in
            [(features::SYSCALL, efer::SCE), (features::LM, efer::LME | efer::SCE), (features::NX, efer::NXE)]
        {
            if has(feature) {
                known |= bits;
            }
        }
        ensure(self.efer & !known == 0)?;
        let is_long = paging && self.efer & efer::LME != 0;
        ensure(is_long == (self.efer & efer::LMA != 0))?;
        ensure(!is_long || self.cr4 & cr4::PAE != 0)?;
        ensure(is_long || self.cr4 & PCIDE == 0)?;
        let beyond = u64::MAX.checked_shl(policy.cpuid.physical_bits().into()).unwrap_or_default();
        ensure(self.cr3 & beyond == 0)
    }

    fn check_msrs(&self, policy: &GuestPolicy) -> Result<(), Invalid> {
        let addresses = [self.sysenter_esp, self.sysenter_eip, self.lstar, self.cstar, self.kernel_gs_base];
        ensure(addresses.into_iter().all(is_canonical))?;
        ensure(self.sysenter_cs >> 32 == 0 && self.syscall_mask >> 32 == 0 && self.tsc_aux >> 32 == 0)?;
        ensure(self.tsc_aux == 0 || policy.cpuid.features().has(features::RDTSCP))?;
        ensure(mtrr::is_pat(self.pat))
    }

    /// The hidden parts are what real mode would have (SDM Vol. 3, 27.3.1.2).
    fn check_virtual_8086_segments(&self) -> Result<(), Invalid> {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        for segment in [Cs, Ds, Es, Fs, Gs, Ss].map(|register| self.segment(register)) {
            let base = u64::from(segment.selector) << 4;
            ensure(segment.base == base && segment.limit == 0xffff && segment.access.0 == 0xf3)?;
        }
        Ok(())
    }

    fn check_segments(&self, is_long: bool) -> Result<(), Invalid> {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        let (code, stack) = (self.segment(Cs), self.segment(Ss));
        check_usable(code)?;
        let bits = code.access.0;
        ensure(bits & (NOT_SYSTEM | ACCESSED) == NOT_SYSTEM | ACCESSED)?;
        let (own, stacks) = (code.access.privilege(), stack.access.privilege());
        match bits & 0xf {
            // Real mode, and what it leaves behind: a data segment.
            3 => ensure(own == 0 && stacks == 0)?,
            9 | 11 => ensure(own == stacks)?,
            13 | 15 => ensure(own <= stacks)?,
            _ => return Err(Invalid),
        }
        ensure(self.cr0 & cr0::PE != 0 || stacks == 0)?;
        ensure(!(is_long && bits & (LONG | BIG) == LONG | BIG))?;
        ensure(code.base >> 32 == 0)?;
        if !stack.access.is_unusable() {
            check_usable(stack)?;
            ensure(matches!(stack.access.0 & 0x1f, 0x13 | 0x17))?;
        }
        for data in [Ds, Es, Fs, Gs, Ss].map(|register| self.segment(register)) {
            if data.access.is_unusable() {
                ensure(data.access.0 & ACCESS_RESERVED == 0)?;
                continue;
            }
            check_usable(data)?;
            let kind = data.access.0 & 0x1f;
            ensure(kind & NOT_SYSTEM != 0 && kind & ACCESSED != 0 && (kind & CODE == 0 || kind & 2 != 0))?;
        }
        for narrow in [Ds, Es, Ss].map(|register| self.segment(register)) {
            ensure(narrow.access.is_unusable() || narrow.base >> 32 == 0)?;
        }
        ensure(is_canonical(self.segment(Fs).base) && is_canonical(self.segment(Gs).base))
    }

    /// TR and LDTR.
    fn check_task(&self, is_long: bool) -> Result<(), Invalid> {
        const LOCAL_TABLE: u16 = 1 << 2;
        let (task, table) = (self.segment(SegmentRegister::Tr), self.segment(SegmentRegister::Ldtr));
        check_usable(task)?;
        let kind = task.access.0 & 0x1f;
        ensure(kind == 11 || (kind == 3 && !is_long))?;
        ensure(task.selector & LOCAL_TABLE == 0 && is_canonical(task.base))?;
        if table.access.is_unusable() {
            ensure(table.access.0 & ACCESS_RESERVED == 0)?;
        } else {
            check_usable(table)?;
            ensure(table.access.0 & 0x1f == 2 && table.selector & LOCAL_TABLE == 0)?;
        }
        ensure(is_canonical(table.base))
    }

    fn check_event(&self) -> Result<(), Invalid> {
        match self.event {
            None | Some(Event::Nmi) => Ok(()),
            Some(Event::Interrupt(_)) => ensure(self.rflags & rflags::IF != 0),
            Some(Event::Exception { vector, error }) => {
                let pushes = matches!(vector, 8 | 10..=14 | 17);
                ensure(vector < 32 && vector != 2 && error.is_some() == pushes)?;
                // Bits 31:15 are zero but for a page fault's (SDM Vol. 3, 27.2.1.3).
                ensure(error.unwrap_or(0) >> 15 == 0)
            }
            // Its instruction is executed again instead.
            Some(Event::Software { .. }) => Err(Invalid),
        }
    }
}

fn check_usable(segment: Segment) -> Result<(), Invalid> {
    let bits = segment.access.0;
    ensure(bits & (ACCESS_RESERVED | UNUSABLE) == 0 && bits & PRESENT != 0)?;
    let granular = bits & GRANULAR != 0;
    ensure(if granular { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 })
}
