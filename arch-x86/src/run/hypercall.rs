//! VMCALL and VMMCALL: registers in, registers out.

use hypervisor::hypercall::{Caller, Outcome, dispatch};
use hypervisor::machine::Width;
use xen_abi::errno::Errno;

use super::{Next, Running};
use crate::regs::GuestRegs;

impl Running<'_> {
    #[inline]
    pub(super) fn hypercall(&mut self) -> Next {
        let engine = &mut self.context.engine;
        if engine.privilege() != 0 {
            engine.advance();
            self.context.regs.rax = Errno::EPERM.as_return() as u64;
            return Next::Enter;
        }
        let width = if engine.in_64_bit_mode() { Width::Bits64 } else { Width::Bits32 };
        let (number, arguments) = arguments(&self.context.regs, width);
        let mut caller = Caller {
            system: self.system,
            domain: &self.resident.domain,
            vcpu: self.vcpu,
            context: self.context,
            width,
        };
        match dispatch(&mut caller, number, arguments) {
            Outcome::Return(value) => {
                self.context.regs.rax = match width {
                    Width::Bits64 => value as u64,
                    Width::Bits32 => u64::from(value as u32),
                };
                self.context.engine.advance();
            }
            // The instruction is executed again, with what is left to do in its registers.
            Outcome::Continue(arguments) => set_arguments(&mut self.context.regs, width, arguments),
        }
        Next::Enter
    }
}

#[inline]
fn arguments(regs: &GuestRegs, width: Width) -> (u64, [u64; 5]) {
    let number = u64::from(regs.rax as u32);
    match width {
        Width::Bits64 => (number, [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8]),
        Width::Bits32 => {
            let low = |value: u64| u64::from(value as u32);
            (number, [low(regs.rbx), low(regs.rcx), low(regs.rdx), low(regs.rsi), low(regs.rdi)])
        }
    }
}

fn set_arguments(regs: &mut GuestRegs, width: Width, values: [u64; 5]) {
    match width {
        Width::Bits64 => [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8] = values,
        Width::Bits32 => [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi] = values,
    }
}
