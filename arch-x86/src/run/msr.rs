//! RDMSR and WRMSR exits.

use hypervisor::machine::Machine;
use hypervisor::wallclock;
use mm::addr::{Gfn, HostPhys};

use super::{Next, Running};
use crate::cpu::registers::{cr0, efer};
use crate::policy::msr::{DeviceMsr, MsrRead, MsrWrite};
use crate::vdev::vlapic::{Effect, GeneralProtection};

type Outcome = Result<u64, GeneralProtection>;

impl Running<'_> {
    #[inline]
    pub(super) fn read_msr(&mut self) -> Next {
        let msr = self.context.regs.rcx as u32;
        let value = match self.policy.msr.read(msr, &self.context.msrs) {
            MsrRead::Value(value) => Ok(value),
            MsrRead::Device(device) => self.read_device(device),
            MsrRead::Gp => Err(GeneralProtection),
        };
        match value {
            Ok(value) => {
                self.context.regs.set_edx_eax(value);
                self.context.engine.advance();
            }
            Err(GeneralProtection) => self.refuse(msr, "RDMSR", None),
        }
        Next::Enter
    }

    #[inline]
    pub(super) fn write_msr(&mut self) -> Next {
        let msr = self.context.regs.rcx as u32;
        let value = self.context.regs.edx_eax();
        let outcome = match self.policy.msr.write(msr, value, &mut self.context.msrs) {
            MsrWrite::Done => Ok(()),
            MsrWrite::Device(device) => self.write_device(device, value),
            // Memory comes first; then it is written again.
            MsrWrite::HypercallPage(frame) if self.comes_when_touched(Gfn(frame)) => return self.touched(Gfn(frame)),
            MsrWrite::HypercallPage(frame) => self.write_hypercall_page(Gfn(frame)),
            MsrWrite::Gp => Err(GeneralProtection),
        };
        match outcome {
            Ok(()) => self.context.engine.advance(),
            Err(GeneralProtection) => self.refuse(msr, "WRMSR", Some(value)),
        }
        Next::Enter
    }

    #[cold]
    fn refuse(&mut self, msr: u32, instruction: &str, value: Option<u64>) {
        if crate::ratelimit::guest_message() {
            match value {
                Some(value) => {
                    log::debug!(target: "msr", "{}: {instruction} {msr:#x} = {value:#x} refused", self.domain.name);
                }
                None => log::debug!(target: "msr", "{}: {instruction} {msr:#x} refused", self.domain.name),
            }
        }
        self.context.raise_general_protection();
    }

    fn read_device(&mut self, device: DeviceMsr) -> Outcome {
        let inbox = &self.vcpu.machine.inbox;
        let machine = &self.system.machine;
        Ok(match device {
            DeviceMsr::X2Apic(register) => {
                return self.context.vlapic.read_x2apic(0x800 + u32::from(register), || machine.now(), inbox);
            }
            DeviceMsr::ApicBase => self.context.vlapic.apic_base(),
            DeviceMsr::TscDeadline => self.context.vlapic.tsc_deadline(),
            DeviceMsr::Efer => self.context.engine.efer(),
            DeviceMsr::Pat => self.context.engine.pat(),
            DeviceMsr::Tsc => crate::time::rdtsc(),
            DeviceMsr::TscAdjust | DeviceMsr::Xss | DeviceMsr::DebugControl | DeviceMsr::SpecControl => 0,
            other => self.context.engine.read_msr(other).ok_or(GeneralProtection)?,
        })
    }

    #[inline]
    fn write_device(&mut self, device: DeviceMsr, value: u64) -> Result<(), GeneralProtection> {
        let inbox = &self.vcpu.machine.inbox;
        let machine = &self.system.machine;
        match device {
            DeviceMsr::X2Apic(register) => {
                let effect =
                    self.context.vlapic.write_x2apic(0x800 + u32::from(register), value, || machine.now(), inbox)?;
                self.carry_out(effect);
            }
            DeviceMsr::ApicBase => {
                let effect = self.context.vlapic.set_apic_base(value, inbox)?;
                self.carry_out(effect);
            }
            DeviceMsr::TscDeadline => {
                let effect = self.context.vlapic.set_tsc_deadline(value);
                self.carry_out(effect);
            }
            DeviceMsr::Efer => self.write_efer(value)?,
            DeviceMsr::Pat => self.context.engine.set_pat(value),
            // The TSC is the machine's: a guest that writes it keeps what it has.
            DeviceMsr::Tsc | DeviceMsr::TscAdjust => {}
            DeviceMsr::DebugControl
            | DeviceMsr::SpecControl
            | DeviceMsr::PredictorCommand
            | DeviceMsr::FlushCommand => {}
            DeviceMsr::Xss if value == 0 => {}
            other => self.context.engine.write_msr(other, value).ok_or(GeneralProtection)?,
        }
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        let engine = &mut self.context.engine;
        let changes_mode = (value ^ engine.efer()) & efer::LME != 0;
        // SDM Vol. 3, 10.8.5: LME changes only without paging.
        if value & !known != 0 || (changes_mode && engine.cr0() & cr0::PG != 0) {
            return Err(GeneralProtection);
        }
        engine.set_efer(value);
        Ok(())
    }

    /// Does what the local APIC asks for.
    #[inline]
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Ipi(message) => crate::machine::deliver(self.domain, Some(self.vcpu.id.0), message),
            Effect::EoiBroadcast(vector) => self.domain.machine.devices.end_of_interrupt(self.domain, vector),
            Effect::TimerChanged | Effect::ModeChanged(_) => self.lapic_timer_changed(),
        }
    }

    /// Fills a guest page with the stubs of Xen's `hypercall_page`: 32 bytes each, number in eax, VMCALL or VMMCALL, return.
    #[cold]
    #[inline(never)]
    fn write_hypercall_page(&mut self, at: Gfn) -> Result<(), GeneralProtection> {
        let mut page = [0xccu8; mm::PAGE_SIZE];
        for (number, stub) in page.chunks_exact_mut(32).enumerate() {
            let [a, b, c] = self.context.engine.hypercall_instruction();
            let mut code = [0xb8, number as u8, 0, 0, 0, a, b, c, 0xc3];
            if number as u64 == xen_abi::numbers::IRET {
                // IRET is a paravirtual guest's, and needs a stack that CALL has not touched: UD2, as on Xen.
                [code[0], code[1]] = [0x0f, 0x0b];
            }
            if let Some(place) = stub.get_mut(..code.len()) {
                place.copy_from_slice(&code);
            }
        }
        wallclock::latch_width(self.system, self.domain, self.system.machine.width(self.context));
        let mapping = self.domain.p2m.lookup(at).ok_or(GeneralProtection)?;
        if !mapping.kind.is_own_memory() || !mapping.kind.writable() {
            return Err(GeneralProtection);
        }
        let to = HostPhys(mapping.mfn.phys().0);
        self.system.memory.window().copy_to(to, &page).map_err(|_| GeneralProtection)
    }
}
