//! What a vCPU looked like when its domain crashed.

use hypervisor::domain::Domain;
use mm::addr::GuestPhys;

use crate::context::{Context, GuestTables};
use crate::guest_paging::{self, Purpose};
use crate::machine::X86;
use crate::segment::SegmentRegister;

/// Logs registers, segments, the code at RIP and the engine's own state. The vCPU is loaded on this CPU.
pub fn vcpu(domain: &Domain<X86>, context: &mut Context) {
    let (regs, engine) = (&context.regs, &context.engine);
    let line = |text: core::fmt::Arguments<'_>| log::error!(target: "dump", "{text}");
    line(format_args!("rip {:016x} rsp {:016x} rflags {:08x}", engine.rip(), engine.rsp(), engine.rflags()));
    line(format_args!("rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", regs.rax, regs.rbx, regs.rcx, regs.rdx));
    line(format_args!("rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", regs.rsi, regs.rdi, regs.rbp, regs.r8));
    line(format_args!("r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", regs.r9, regs.r10, regs.r11, regs.r12));
    line(format_args!("r13 {:016x} r14 {:016x} r15 {:016x}", regs.r13, regs.r14, regs.r15));
    line(format_args!(
        "cr0 {:08x} cr3 {:016x} cr4 {:08x} efer {:04x}",
        engine.cr0(),
        engine.cr3(),
        engine.cr4(),
        engine.efer()
    ));
    for register in SegmentRegister::ALL {
        let segment = engine.segment(register);
        line(format_args!(
            "{register:?}: {:04x} base {:016x} limit {:08x} access {:05x}",
            segment.selector, segment.base, segment.limit, segment.access.0
        ));
    }
    let rip = engine.segment(SegmentRegister::Cs).base.wrapping_add(engine.rip());
    let mut code = [0u8; 16];
    match fetch(domain, context, rip, &mut code) {
        0 => line(format_args!("code at rip: not there")),
        count => line(format_args!("code at rip: {:02x?}", &code[..count])),
    }
    context.engine.dump();
}

/// Copies guest code from a linear address on; the bytes that are there, at most `into`'s length.
pub fn fetch(domain: &Domain<X86>, context: &mut Context, linear: u64, into: &mut [u8]) -> usize {
    let paging = context.engine.paging();
    let mut done = 0;
    while done < into.len() {
        let at = linear.wrapping_add(done as u64);
        let count = (mm::PAGE_SIZE - at as usize % mm::PAGE_SIZE).min(into.len() - done);
        let mut tables = GuestTables(context.cache.of(&domain.p2m));
        let purpose = Purpose { fetch: true, ..Purpose::default() };
        let Ok(GuestPhys(physical)) = guest_paging::translate(&paging, at, purpose, &mut tables) else { break };
        let guest = mm::GuestMemory::new(&domain.p2m);
        if guest.copy_from(GuestPhys(physical), &mut into[done..done + count]).is_err() {
            break;
        }
        done += count;
    }
    done
}
