//! IA32_APIC_BASE: where the APIC is, and which mode it is in (SDM Vol. 3, 11.4.3 to 11.12.5).

use super::{Effect, GeneralProtection, LapicInbox, Mode, Vlapic};

const ADDRESS: u64 = 0xfee0_0000;
const BOOT_CPU: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

pub(super) const fn at_power_up(is_boot_vcpu: bool) -> u64 {
    ADDRESS | ENABLED | if is_boot_vcpu { BOOT_CPU } else { 0 }
}

/// The mode that a value of the MSR stands for; x2APIC without the enable bit is none.
pub(super) const fn mode_of(base: u64) -> Option<Mode> {
    match (base & ENABLED != 0, base & X2APIC != 0) {
        (false, false) => Some(Mode::Disabled),
        (true, false) => Some(Mode::Xapic),
        (true, true) => Some(Mode::X2apic),
        (false, true) => None,
    }
}

/// Whether the value is one that this MSR can hold. The page does not move: nobody moves it, and all vCPUs of a domain
/// share one p2m.
pub(super) const fn is_valid(base: u64) -> bool {
    base & !(BOOT_CPU | X2APIC | ENABLED) == ADDRESS && mode_of(base).is_some()
}

impl Vlapic {
    pub const fn apic_base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. #GP for reserved bits, another address, and the transitions that figure 11-28 does not
    /// have. Who is the boot CPU is not the guest's to change.
    pub fn set_apic_base(&mut self, value: u64, inbox: &LapicInbox) -> Result<Effect, GeneralProtection> {
        let mode = match mode_of(value) {
            Some(mode) if is_valid(value) => mode,
            _ => return Err(GeneralProtection),
        };
        match (self.mode, mode) {
            (from, to) if from == to => return Ok(Effect::Nothing),
            (Mode::Disabled, Mode::X2apic) | (Mode::X2apic, Mode::Xapic) => return Err(GeneralProtection),
            // Off and on again is a power-up.
            (_, Mode::Disabled) | (Mode::Disabled, _) => self.reset(inbox),
            // Into x2APIC mode: the logical id now follows from the id, and the ICR's upper half is not kept.
            _ => {
                self.ldr = 0;
                self.icr &= 0xffff_ffff;
            }
        }
        self.base = value & !BOOT_CPU | self.base & BOOT_CPU;
        self.mode = mode;
        self.identity_changed(inbox);
        Ok(Effect::ModeChanged(mode))
    }
}

#[cfg(test)]
mod tests {
    #![allow(unused_must_use)]
    use super::*;

    const ALL: [(Mode, u64); 3] =
        [(Mode::Disabled, ADDRESS), (Mode::Xapic, ADDRESS | ENABLED), (Mode::X2apic, ADDRESS | ENABLED | X2APIC)];

    fn in_mode(mode: Mode) -> (Vlapic, LapicInbox) {
        let (mut vlapic, inbox) = Vlapic::new(6, false);
        let value = ALL.iter().find(|(m, _)| *m == mode).unwrap().1;
        vlapic.set_apic_base(value, &inbox).unwrap();
        assert_eq!(vlapic.mode(), mode);
        (vlapic, inbox)
    }

    #[test]
    fn only_the_transitions_of_the_manual_are_possible() {
        for (from, _) in ALL {
            for (to, value) in ALL {
                let (mut vlapic, inbox) = in_mode(from);
                let result = vlapic.set_apic_base(value, &inbox);
                let forbidden = matches!((from, to), (Mode::Disabled, Mode::X2apic) | (Mode::X2apic, Mode::Xapic));
                if forbidden {
                    assert_eq!(result, Err(GeneralProtection), "{from:?} to {to:?}");
                    assert_eq!(vlapic.mode(), from);
                } else {
                    assert_eq!(vlapic.mode(), to, "{from:?} to {to:?}");
                    assert_eq!(inbox.identity().mode(), to);
                    assert_eq!(vlapic.apic_base(), value);
                    let effect = if from == to { Effect::Nothing } else { Effect::ModeChanged(to) };
                    assert_eq!(result, Ok(effect));
                }
            }
        }
    }

    #[test]
    fn reserved_bits_another_address_and_x2apic_without_enable_fault() {
        let (mut vlapic, inbox) = in_mode(Mode::Xapic);
        for value in [
            ADDRESS | ENABLED | 1,
            ADDRESS | ENABLED | 1 << 9,
            ADDRESS | ENABLED | 1 << 40,
            ENABLED | 0xfed0_0000,
            ADDRESS | X2APIC,
        ] {
            assert_eq!(vlapic.set_apic_base(value, &inbox), Err(GeneralProtection), "{value:#x}");
        }
        assert_eq!(vlapic.apic_base(), ADDRESS | ENABLED);
    }

    #[test]
    fn a_guest_cannot_make_itself_the_boot_cpu() {
        let (mut vlapic, inbox) = Vlapic::new(0, true);
        vlapic.set_apic_base(ADDRESS | ENABLED | X2APIC, &inbox).unwrap();
        assert_eq!(vlapic.apic_base(), ADDRESS | ENABLED | X2APIC | BOOT_CPU);
        let (mut vlapic, inbox) = Vlapic::new(2, false);
        vlapic.set_apic_base(ADDRESS | ENABLED | X2APIC | BOOT_CPU, &inbox).unwrap();
        assert_eq!(vlapic.apic_base() & BOOT_CPU, 0);
    }

    #[test]
    fn switching_the_apic_off_forgets_its_state() {
        let (mut vlapic, inbox) = in_mode(Mode::Xapic);
        let _ = vlapic.write_mmio(0xf0, 4, 0x1ff, || sched::Nanos(0), &inbox);
        let _ = inbox.post(0x55, false);
        vlapic.set_task_priority(0x80);
        vlapic.set_apic_base(ADDRESS, &inbox).unwrap();
        assert!(!inbox.wants_attention());
        vlapic.set_apic_base(ADDRESS | ENABLED, &inbox).unwrap();
        assert_eq!(vlapic.task_priority(), 0);
        assert!(!inbox.identity().is_software_enabled());
    }
}
