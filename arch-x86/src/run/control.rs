//! MOV to and from control registers, and XSETBV: the rules that the CPU would check itself (SDM Vol. 2, MOV to CR; Vol. 3, 2.6).

use super::{Next, Running};
use crate::cpu::registers::{cr0, cr4, efer};
use crate::exit::ControlAccess;
use crate::segment::SegmentRegister;

/// A value that the guest may not load: #GP(0).
struct Bad;

impl Running<'_> {
    #[cold]
    pub(super) fn control(&mut self, access: ControlAccess) -> Next {
        let done = match access {
            ControlAccess::Write { register, from } => {
                let value = self.general(from);
                match register {
                    0 => self.write_cr0(value),
                    4 => self.write_cr4(value),
                    8 => self.write_cr8(value),
                    3 => {
                        self.context.engine.set_cr3(value);
                        Ok(())
                    }
                    _ => Err(Bad),
                }
            }
            ControlAccess::Read { register, to } => {
                let value = match register {
                    0 => self.context.engine.cr0(),
                    3 => self.context.engine.cr3(),
                    4 => self.context.engine.cr4(),
                    _ => u64::from(self.context.vlapic.cr8()),
                };
                self.set_general(to, value);
                Ok(())
            }
            ControlAccess::ClearTaskSwitched => {
                let value = self.context.engine.cr0() & !cr0::TS;
                self.write_cr0(value)
            }
            ControlAccess::LoadMachineStatus { value } => {
                // LMSW sets PE but does not clear it, and reaches MP, EM and TS.
                let old = self.context.engine.cr0();
                let value = (old & !0xe) | u64::from(value & 0xf);
                self.write_cr0(value)
            }
        };
        match done {
            Ok(()) => self.context.engine.advance(),
            Err(Bad) => self.context.raise_general_protection(),
        }
        Next::Enter
    }

    fn general(&self, number: u8) -> u64 {
        if number == 4 { self.context.engine.rsp() } else { self.context.regs.get(number) }
    }

    fn set_general(&mut self, number: u8, value: u64) {
        if number == 4 { self.context.engine.set_rsp(value) } else { self.context.regs.set(number, value) }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Bad> {
        let engine = &mut self.context.engine;
        let has = |bit| value & bit != 0;
        if value >> 32 != 0 || (has(cr0::PG) && !has(cr0::PE)) || (has(cr0::NW) && !has(cr0::CD)) {
            return Err(Bad);
        }
        let starts_paging = has(cr0::PG) && engine.cr0() & cr0::PG == 0;
        let stops_paging = !has(cr0::PG) && engine.cr0() & cr0::PG != 0;
        if starts_paging && engine.efer() & efer::LME != 0 {
            let code = engine.segment(SegmentRegister::Cs);
            if engine.cr4() & cr4::PAE == 0 || code.access.long() {
                return Err(Bad);
            }
        } else if starts_paging && engine.cr4() & cr4::PAE != 0 {
            self.load_pdptes()?;
        }
        if stops_paging && self.context.engine.in_64_bit_mode() {
            return Err(Bad);
        }
        self.context.engine.set_cr0(value);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Bad> {
        let engine = &mut self.context.engine;
        if value & !self.policy.cr4_allowed != 0 {
            return Err(Bad);
        }
        if engine.efer() & efer::LMA != 0 && value & cr4::PAE == 0 {
            return Err(Bad);
        }
        let pae_changes = (value ^ engine.cr4()) & cr4::PAE != 0;
        let paging = engine.cr0() & cr0::PG != 0;
        engine.set_cr4(value);
        if paging && value & cr4::PAE != 0 && pae_changes && self.context.engine.efer() & efer::LMA == 0 {
            self.load_pdptes()?;
        }
        Ok(())
    }

    fn write_cr8(&mut self, value: u64) -> Result<(), Bad> {
        if value > 15 {
            return Err(Bad);
        }
        self.context.vlapic.set_cr8(value as u8);
        Ok(())
    }

    fn load_pdptes(&mut self) -> Result<(), Bad> {
        if self.context.load_pdptes(&self.domain.p2m) { Ok(()) } else { Err(Bad) }
    }

    #[cold]
    pub(super) fn set_extended_control(&mut self) -> Next {
        let value = self.context.regs.edx_eax();
        let register = self.context.regs.rcx as u32;
        let allowed =
            register == 0 && self.context.engine.privilege() == 0 && self.policy.cpuid.xstate().may_enable(value);
        if !allowed {
            self.context.raise_general_protection();
            return Next::Enter;
        }
        self.context.xcr0 = value;
        crate::fpu::set_xcr0(value);
        self.context.engine.advance();
        Next::Enter
    }
}
