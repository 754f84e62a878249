//! What VMX on this CPU offers, and the controls that Corten runs with: required ones, whose absence stops Corten with their names, and
//! optional ones (SDM Vol. 3, appendix A).
//!
//! BOOT: it is read once, on each CPU that starts.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use bitflags::bitflags;

use crate::engine::Wishes;

/// Capability MSRs (SDM Vol. 4).
pub mod msr {
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const BASIC: u32 = 0x480;
    pub const PIN: u32 = 0x481;
    pub const PRIMARY: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED0: u32 = 0x486;
    pub const CR0_FIXED1: u32 = 0x487;
    pub const CR4_FIXED0: u32 = 0x488;
    pub const CR4_FIXED1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    pub const TRUE_PIN: u32 = 0x48d;
    pub const TRUE_PRIMARY: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
}

bitflags! {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Pin: u32 {
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        const NMI_EXITING = 1 << 3;
        const VIRTUAL_NMIS = 1 << 5;
        const PREEMPTION_TIMER = 1 << 6;
        const POSTED_INTERRUPTS = 1 << 7;
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Primary: u32 {
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        const USE_TSC_OFFSETTING = 1 << 3;
        const HLT_EXITING = 1 << 7;
        const INVLPG_EXITING = 1 << 9;
        const MWAIT_EXITING = 1 << 10;
        const RDPMC_EXITING = 1 << 11;
        const RDTSC_EXITING = 1 << 12;
        const CR3_LOAD_EXITING = 1 << 15;
        const CR3_STORE_EXITING = 1 << 16;
        const CR8_LOAD_EXITING = 1 << 19;
        const CR8_STORE_EXITING = 1 << 20;
        const USE_TPR_SHADOW = 1 << 21;
        const NMI_WINDOW_EXITING = 1 << 22;
        const MOV_DR_EXITING = 1 << 23;
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        const USE_IO_BITMAPS = 1 << 25;
        const USE_MSR_BITMAPS = 1 << 28;
        const MONITOR_EXITING = 1 << 29;
        const PAUSE_EXITING = 1 << 30;
        const SECONDARY_CONTROLS = 1 << 31;
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Secondary: u32 {
        const VIRTUALIZE_APIC_ACCESSES = 1 << 0;
        const ENABLE_EPT = 1 << 1;
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        const ENABLE_RDTSCP = 1 << 3;
        const VIRTUALIZE_X2APIC_MODE = 1 << 4;
        const ENABLE_VPID = 1 << 5;
        const WBINVD_EXITING = 1 << 6;
        const UNRESTRICTED_GUEST = 1 << 7;
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        const ENABLE_INVPCID = 1 << 12;
        const ENABLE_XSAVES = 1 << 20;
        const TSC_SCALING = 1 << 25;
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        const SAVE_DEBUG_CONTROLS = 1 << 2;
        const HOST_ADDRESS_SPACE_SIZE = 1 << 9;
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        const SAVE_PAT = 1 << 18;
        const LOAD_PAT = 1 << 19;
        const SAVE_EFER = 1 << 20;
        const LOAD_EFER = 1 << 21;
        const SAVE_PREEMPTION_TIMER = 1 << 22;
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        const LOAD_DEBUG_CONTROLS = 1 << 2;
        const IA32E_MODE_GUEST = 1 << 9;
        const LOAD_PAT = 1 << 14;
        const LOAD_EFER = 1 << 15;
    }

    /// IA32_VMX_EPT_VPID_CAP.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EptVpid: u64 {
        const WALK_LENGTH_4 = 1 << 6;
        const MEMORY_TYPE_WB = 1 << 14;
        const PAGES_2M = 1 << 16;
        const PAGES_1G = 1 << 17;
        const INVEPT = 1 << 20;
        const ACCESSED_DIRTY = 1 << 21;
        const INVEPT_SINGLE = 1 << 25;
        const INVEPT_ALL = 1 << 26;
        const INVVPID = 1 << 32;
        const INVVPID_SINGLE = 1 << 41;
        const INVVPID_ALL = 1 << 42;
    }
}

const REQUIRED_PIN: Pin = Pin::EXTERNAL_INTERRUPT_EXITING.union(Pin::NMI_EXITING).union(Pin::VIRTUAL_NMIS);
const OPTIONAL_PIN: Pin = Pin::PREEMPTION_TIMER;
const REQUIRED_PRIMARY: Primary = Primary::HLT_EXITING
    .union(Primary::CR8_LOAD_EXITING)
    .union(Primary::CR8_STORE_EXITING)
    .union(Primary::MWAIT_EXITING)
    .union(Primary::MONITOR_EXITING)
    .union(Primary::RDPMC_EXITING)
    .union(Primary::USE_IO_BITMAPS)
    .union(Primary::USE_MSR_BITMAPS)
    .union(Primary::USE_TSC_OFFSETTING)
    .union(Primary::SECONDARY_CONTROLS);
const REQUIRED_SECONDARY: Secondary = Secondary::ENABLE_EPT.union(Secondary::UNRESTRICTED_GUEST);
const OPTIONAL_SECONDARY: Secondary = Secondary::ENABLE_VPID
    .union(Secondary::ENABLE_RDTSCP)
    .union(Secondary::ENABLE_INVPCID)
    .union(Secondary::WBINVD_EXITING)
    .union(Secondary::ENABLE_XSAVES);
const REQUIRED_EXIT: ExitControls = ExitControls::SAVE_DEBUG_CONTROLS
    .union(ExitControls::HOST_ADDRESS_SPACE_SIZE)
    .union(ExitControls::ACKNOWLEDGE_INTERRUPT)
    .union(ExitControls::SAVE_PAT)
    .union(ExitControls::LOAD_PAT)
    .union(ExitControls::SAVE_EFER)
    .union(ExitControls::LOAD_EFER);
const REQUIRED_ENTRY: EntryControls =
    EntryControls::LOAD_DEBUG_CONTROLS.union(EntryControls::LOAD_PAT).union(EntryControls::LOAD_EFER);
const REQUIRED_EPT: EptVpid = EptVpid::WALK_LENGTH_4
    .union(EptVpid::MEMORY_TYPE_WB)
    .union(EptVpid::PAGES_2M)
    .union(EptVpid::INVEPT)
    .union(EptVpid::INVEPT_SINGLE);

/// The capabilities of one CPU and the controls chosen from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    pub revision: u32,
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    pub chosen_secondary: Secondary,
    pub ept: EptVpid,
    /// Where there is a VMX-preemption timer: it counts once when the TSC has counted 2 to the power of this.
    pub preemption_timer_shift: Option<u32>,
    /// The exit controls with which that timer goes on after an exit where it stood; they go with the timer only.
    pub timed_exit: u32,
    /// Bits that must be 1, and bits that may be 1, in CR0 and CR4 under VMX.
    pub cr0_fixed: (u64, u64),
    pub cr4_fixed: (u64, u64),
}

/// Bits 31:0 of a control's MSR must be 1, bits 63:32 may be.
fn choose(msr: u64, required: u32, optional: u32) -> Result<u32, u32> {
    let (must, may) = (msr as u32, (msr >> 32) as u32);
    let missing = required & !may;
    if missing != 0 { Err(missing) } else { Ok(must | required | (optional & may)) }
}

impl Caps {
    /// Reads the capability MSRs through `rdmsr`. The error is one line that names everything that is missing.
    pub fn read(mut rdmsr: impl FnMut(u32) -> u64, wishes: Wishes) -> Result<Caps, String> {
        let basic = rdmsr(msr::BASIC);
        // Bit 55: the "true" controls, which tell which default-1 bits may be 0.
        let exact = basic & (1 << 55) != 0;
        let mut pick = |plain, true_one| rdmsr(if exact { true_one } else { plain });
        let (pin, primary, exit, entry) = (
            pick(msr::PIN, msr::TRUE_PIN),
            pick(msr::PRIMARY, msr::TRUE_PRIMARY),
            pick(msr::EXIT, msr::TRUE_EXIT),
            pick(msr::ENTRY, msr::TRUE_ENTRY),
        );
        // The timer is only switched on where it is wanted (`VmxVcpu::set_guard`).
        let has_timer = (pin >> 32) as u32 & OPTIONAL_PIN.bits() != 0;
        let preemption_timer_shift = has_timer.then(|| rdmsr(msr::MISC) as u32 & 31);
        let saves_timer = (exit >> 32) as u32 & ExitControls::SAVE_PREEMPTION_TIMER.bits();
        let has_secondary = (primary >> 32) as u32 & Primary::SECONDARY_CONTROLS.bits() != 0;
        let secondary = if has_secondary { rdmsr(msr::SECONDARY) } else { 0 };
        let has_ept = (secondary >> 32) as u32 & Secondary::ENABLE_EPT.bits() != 0;
        let ept = EptVpid::from_bits_truncate(if has_ept { rdmsr(msr::EPT_VPID) } else { 0 });

        let mut wanted = OPTIONAL_SECONDARY;
        if !wishes.vpid || !ept.contains(EptVpid::INVVPID | EptVpid::INVVPID_SINGLE) {
            wanted.remove(Secondary::ENABLE_VPID);
        }
        let mut missing: Vec<(&str, String)> = Vec::new();
        let mut take = |what, names: fn(u32) -> String, chosen: Result<u32, u32>| {
            chosen.unwrap_or_else(|bits| {
                missing.push((what, names(bits)));
                0
            })
        };
        let pin = take("pin-based", |b| flag_names(&Pin::from_bits_truncate(b)), choose(pin, REQUIRED_PIN.bits(), 0));

        let primary = take(
            "primary",
            |b| flag_names(&Primary::from_bits_truncate(b)),
            choose(primary, REQUIRED_PRIMARY.bits(), 0),
        );
        let secondary = take(
            "secondary",
            |b| flag_names(&Secondary::from_bits_truncate(b)),
            choose(secondary, REQUIRED_SECONDARY.bits(), wanted.bits()),
        );
        let exit = take(
            "VM-exit",
            |b| flag_names(&ExitControls::from_bits_truncate(b)),
            choose(exit, REQUIRED_EXIT.bits(), 0),
        );
        let entry = take(
            "VM-entry",
            |b| flag_names(&EntryControls::from_bits_truncate(b)),
            choose(entry, REQUIRED_ENTRY.bits(), 0),
        );
        let ept_missing = REQUIRED_EPT.difference(ept);
        if has_ept && !ept_missing.is_empty() {
            missing.push(("EPT", flag_names(&ept_missing)));
        }
        if !missing.is_empty() {
            let mut line = String::from("this CPU's VMX lacks");
            for (index, (what, names)) in missing.iter().enumerate() {
                let _ = write!(line, "{} {what}: {names}", if index == 0 { "" } else { ";" });
            }
            return Err(line);
        }
        Ok(Caps {
            revision: basic as u32 & 0x7fff_ffff,
            pin,
            primary,
            secondary,
            exit,
            entry,
            chosen_secondary: Secondary::from_bits_truncate(secondary),
            ept,
            preemption_timer_shift,
            timed_exit: exit | saves_timer,
            cr0_fixed: (rdmsr(msr::CR0_FIXED0), rdmsr(msr::CR0_FIXED1)),
            cr4_fixed: (rdmsr(msr::CR4_FIXED0), rdmsr(msr::CR4_FIXED1)),
        })
    }

    /// What there is of the optional parts, for the log.
    pub fn summary(&self) -> String {
        let gigabyte = if self.ept.contains(EptVpid::PAGES_1G) { ", 1 GiB pages" } else { "" };
        let vpid = if self.has(Secondary::ENABLE_VPID) { ", VPID" } else { "" };
        alloc::format!("EPT{gigabyte}{vpid}")
    }

    pub fn has(&self, control: Secondary) -> bool {
        self.chosen_secondary.contains(control)
    }

    /// `value` with the bits that VMX fixes in CR0. A guest with unrestricted guest may clear PE and PG.
    pub fn fix_guest_cr0(&self, value: u64) -> u64 {
        const PE_PG: u64 = 1 | 1 << 31;
        (value | (self.cr0_fixed.0 & !PE_PG)) & self.cr0_fixed.1
    }

    pub fn fix_cr4(&self, value: u64) -> u64 {
        (value | self.cr4_fixed.0) & self.cr4_fixed.1
    }
}

fn flag_names<F: bitflags::Flags>(flags: &F) -> String {
    let mut names = String::new();
    for (name, _) in flags.iter_names() {
        if !names.is_empty() {
            names.push_str(", ");
        }
        names.push_str(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0xffff_ffff << 32;

    fn everything(msr: u32) -> u64 {
        match msr {
            msr::BASIC => 1 << 55 | 0x2a,
            msr::EPT_VPID => u64::MAX,
            msr::MISC => 5,
            msr::CR0_FIXED0 => 0x8000_0021,
            msr::CR4_FIXED0 => 0x2000,
            msr::CR0_FIXED1 | msr::CR4_FIXED1 => u64::MAX,
            _ => ALL,
        }
    }

    #[test]
    fn a_cpu_with_everything_is_taken() {
        let caps = Caps::read(everything, Wishes { vpid: true }).unwrap();
        assert_eq!(caps.revision, 0x2a);
        assert!(caps.has(Secondary::ENABLE_VPID | Secondary::ENABLE_EPT));
        assert_eq!(caps.fix_guest_cr0(0), 0x20);
        assert_eq!(caps.preemption_timer_shift, Some(5));
        assert_eq!(caps.pin & Pin::PREEMPTION_TIMER.bits(), 0, "it is off unless it is wanted");
        assert_eq!(caps.timed_exit ^ caps.exit, ExitControls::SAVE_PREEMPTION_TIMER.bits());
    }

    #[test]
    fn a_cpu_without_ept_is_refused_by_name() {
        let without = |msr| match msr {
            msr::SECONDARY => ALL & !(u64::from(Secondary::ENABLE_EPT.bits()) << 32),
            _ => everything(msr),
        };
        let error = Caps::read(without, Wishes { vpid: true }).unwrap_err();
        assert_eq!(error, "this CPU's VMX lacks secondary: ENABLE_EPT");
    }

    #[test]
    fn an_optional_control_may_be_missing_or_unwanted() {
        let caps = Caps::read(everything, Wishes { vpid: false }).unwrap();
        assert!(!caps.has(Secondary::ENABLE_VPID));
        let without = |msr| match msr {
            msr::SECONDARY => ALL & !(u64::from(Secondary::ENABLE_VPID.bits()) << 32),
            _ => everything(msr),
        };
        assert!(!Caps::read(without, Wishes { vpid: true }).unwrap().has(Secondary::ENABLE_VPID));
    }

    #[test]
    fn a_bit_that_must_be_one_is_one() {
        let stubborn = |msr| match msr {
            msr::TRUE_PIN => ALL | 0x16,
            _ => everything(msr),
        };
        assert_eq!(Caps::read(stubborn, Wishes { vpid: true }).unwrap().pin & 0x16, 0x16);
    }
}
