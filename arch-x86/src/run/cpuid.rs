//! CPUID exits.

use super::{Next, Running};
use crate::policy::cpuid::Dynamic;
use crate::vdev::vlapic::Mode;

impl Running<'_> {
    #[inline]
    pub(super) fn cpuid(&mut self) -> Next {
        let context = &mut *self.context;
        let now = Dynamic {
            vcpu_id: self.vcpu.id,
            apic_id: context.vlapic.x2apic_id(),
            cr4: context.engine.cr4(),
            // Asked of the CPU: QEMU's TCG executes XSETBV although it is intercepted.
            xcr0: if crate::host::has_xsave() { crate::fpu::xcr0() } else { context.xcr0 },
            xss: 0,
            apic_enabled: context.vlapic.mode() != Mode::Disabled,
            long_mode: context.engine.in_64_bit_mode(),
        };
        let regs = &mut context.regs;
        let answer = self.policy.cpuid.answer(regs.rax as u32, regs.rcx as u32, &now);
        let [eax, ebx, ecx, edx] = answer.map(u64::from);
        (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (eax, ebx, ecx, edx);
        context.engine.advance();
        Next::Enter
    }
}
