//! From an exit code and its two words to a neutral [`Exit`] (APM Vol. 2, appendix C).

use mm::addr::GuestPhys;

use crate::decode::{self, Intercept, Mode};
use crate::event::exception;
use crate::exit::{ControlAccess, Exit, PageAccess, PortAccess};
use crate::regs::GuestRegs;

mod code {
    pub const CR0_READ: u64 = 0x00;
    pub const CR15_READ: u64 = 0x0f;
    pub const CR0_WRITE: u64 = 0x10;
    pub const CR15_WRITE: u64 = 0x1f;
    pub const DEBUG: u64 = 0x41;
    pub const ALIGNMENT_CHECK: u64 = 0x51;
    pub const MACHINE_CHECK: u64 = 0x52;
    pub const INTERRUPT: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const VIRTUAL_INTERRUPT: u64 = 0x64;
    pub const CR0_SELECTIVE_WRITE: u64 = 0x65;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
}

/// What an exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// All there is to it.
    Exit(Exit),
    /// The same, and where the next instruction is.
    Continues(Exit, u64),
    /// It was this instruction; where it ends is another matter.
    Instruction(Exit, Intercept),
    /// It was an instruction that reads or writes this control register.
    Control { register: u8, write: bool },
    /// The guest is about to leave an NMI's handler.
    Iret,
}

#[inline]
pub fn told(code: u64, info: [u64; 2]) -> Told {
    match code {
        code::VMMCALL => Told::Instruction(Exit::Hypercall, Intercept::Vmmcall),
        // An NMI was handled by the host's own handler as soon as the global interrupt flag let it.
        code::INTERRUPT | code::NMI => Told::Exit(Exit::InterruptPending),
        code::MSR if info[0] & 1 != 0 => Told::Instruction(Exit::WriteMsr, Intercept::Wrmsr),
        code::MSR => Told::Instruction(Exit::ReadMsr, Intercept::Rdmsr),
        code::HLT => Told::Instruction(Exit::Halt, Intercept::Hlt),
        code::CPUID => Told::Instruction(Exit::Cpuid, Intercept::Cpuid),
        code::VIRTUAL_INTERRUPT => Told::Exit(Exit::InterruptWindow),
        code::IO => port(info),
        code::NESTED_PAGE_FAULT => Told::Exit(guest_page(info)),
        code::CR0_READ..=code::CR15_READ => Told::Control { register: code as u8, write: false },
        code::CR0_WRITE..=code::CR15_WRITE => Told::Control { register: (code - code::CR0_WRITE) as u8, write: true },
        code::CR0_SELECTIVE_WRITE => Told::Control { register: 0, write: true },
        code::IRET => Told::Iret,
        code::SHUTDOWN => Told::Exit(Exit::TripleFault),
        code::INVD => Told::Instruction(Exit::CacheFlush, Intercept::Invd),
        code::WBINVD => Told::Instruction(Exit::CacheFlush, Intercept::Wbinvd),
        code::XSETBV => Told::Instruction(Exit::SetExtendedControl, Intercept::Xsetbv),
        code::RDPMC => Told::Exit(Exit::Refused),
        code::INVLPGA | code::VMRUN | code::VMLOAD..=code::SKINIT | code::MONITOR | code::MWAIT | code::RDPRU => {
            Told::Exit(Exit::Undefined)
        }
        // DR6 in the VMCB is what the handler is to see (15.12.2).
        code::DEBUG => Told::Exit(Exit::Exception { vector: exception::DEBUG, error: None }),
        code::ALIGNMENT_CHECK => {
            Told::Exit(Exit::Exception { vector: exception::ALIGNMENT_CHECK, error: Some(info[0] as u32) })
        }
        code::MACHINE_CHECK => Told::Exit(Exit::MachineCheck),
        code::INVALID => Told::Exit(Exit::EntryFailed(u32::MAX)),
        other => Told::Exit(Exit::Unexpected(other as u32)),
    }
}

/// 15.10.2: the second word is the address of the next instruction, on every CPU.
fn port([info, next]: [u64; 2]) -> Told {
    let access = PortAccess {
        port: (info >> 16) as u16,
        size: (info >> 4 & 7) as u8,
        input: info & 1 != 0,
        string: info & 1 << 2 != 0,
        rep: info & 1 << 3 != 0,
    };
    Told::Continues(Exit::Port(access), next)
}

/// 15.25.6.
fn guest_page([info, at]: [u64; 2]) -> Exit {
    Exit::GuestPage(PageAccess {
        at: GuestPhys(at),
        write: info & 1 << 1 != 0,
        fetch: info & 1 << 4 != 0,
        walk: info & 1 << 33 != 0,
    })
}

/// What the code at RIP adds: which access to a control register it was, and how long the instruction is. `None` if the code is not what
/// exited: another vCPU has changed it.
pub fn read_code(told: Told, code: &[u8], mode: Mode, regs: &GuestRegs, rsp: u64) -> Option<(Exit, u8)> {
    match told {
        Told::Instruction(exit, intercept) => Some((exit, decode::intercepted_length(code, mode, intercept)?)),
        Told::Control { register, write } => {
            if let Some(found) = decode::control_move(code, mode) {
                if found.debug || found.register != register || found.write != write {
                    return None;
                }
                let access = match write {
                    true => ControlAccess::Write { register, from: found.gpr },
                    false => ControlAccess::Read { register, to: found.gpr },
                };
                return Some((Exit::Control(access), found.length));
            }
            if let Some(length) = decode::intercepted_length(code, mode, Intercept::Clts) {
                return Some((Exit::Control(ControlAccess::ClearTaskSwitched), length));
            }
            let (gpr, length) = decode::load_machine_status(code, mode)?;
            let value = if gpr == 4 { rsp } else { regs.get(gpr) } as u16;
            Some((Exit::Control(ControlAccess::LoadMachineStatus { value }), length))
        }
        Told::Exit(exit) | Told::Continues(exit, _) => Some((exit, 0)),
        Told::Iret => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_access_tells_where_the_guest_goes_on() {
        // INB from port 0x3fd.
        let access = PortAccess { port: 0x3fd, size: 1, input: true, string: false, rep: false };
        assert_eq!(told(code::IO, [0x3fd_0011, 0x1234]), Told::Continues(Exit::Port(access), 0x1234));
        // REP OUTSD to 0xcf8.
        let access = PortAccess { port: 0xcf8, size: 4, input: false, string: true, rep: true };
        assert_eq!(told(code::IO, [0xcf8_004c, 5]), Told::Continues(Exit::Port(access), 5));
    }

    #[test]
    fn a_nested_page_fault_tells_who_made_the_access() {
        let access = PageAccess { at: GuestPhys(0xfee0_00b0), write: true, fetch: false, walk: false };
        assert_eq!(told(code::NESTED_PAGE_FAULT, [1 << 32 | 6, 0xfee0_00b0]), Told::Exit(Exit::GuestPage(access)));
        let access = PageAccess { at: GuestPhys(0x1000), write: true, fetch: false, walk: true };
        assert_eq!(told(code::NESTED_PAGE_FAULT, [1 << 33 | 6, 0x1000]), Told::Exit(Exit::GuestPage(access)));
        let access = PageAccess { at: GuestPhys(0x2000), write: false, fetch: true, walk: false };
        assert_eq!(told(code::NESTED_PAGE_FAULT, [1 << 32 | 0x14, 0x2000]), Told::Exit(Exit::GuestPage(access)));
    }

    #[test]
    fn instructions_that_guests_do_not_have_are_undefined() {
        for code in [0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8a, 0x8b, 0x8e] {
            assert_eq!(told(code, [0; 2]), Told::Exit(Exit::Undefined), "{code:#x}");
        }
    }

    #[test]
    fn exceptions_that_are_seen_first_are_the_guest_s_own() {
        let debug = Exit::Exception { vector: 1, error: None };
        assert_eq!(told(0x41, [0; 2]), Told::Exit(debug));
        let alignment = Exit::Exception { vector: 17, error: Some(0) };
        assert_eq!(told(0x51, [0; 2]), Told::Exit(alignment));
    }

    #[test]
    fn a_refused_entry_is_no_exit() {
        assert_eq!(told(u64::MAX, [0; 2]), Told::Exit(Exit::EntryFailed(u32::MAX)));
    }

    #[test]
    fn the_code_says_which_register_a_control_register_is_moved_from() {
        let regs = GuestRegs { rax: 0x31, ..GuestRegs::default() };
        let read = |told, code: &[u8]| read_code(told, code, Mode::Bits64, &regs, 0);
        let write_cr4 = told(0x14, [0; 2]);
        let access = ControlAccess::Write { register: 4, from: 2 };
        assert_eq!(read(write_cr4, &[0x0f, 0x22, 0xe2]), Some((Exit::Control(access), 3)));
        assert_eq!(read(write_cr4, &[0x0f, 0x22, 0xc2]), None, "CR0 meanwhile");
        let read_cr8 = told(8, [0; 2]);
        let access = ControlAccess::Read { register: 8, to: 0 };
        assert_eq!(read(read_cr8, &[0x44, 0x0f, 0x20, 0xc0]), Some((Exit::Control(access), 4)));
        let cr0 = told(0x65, [0; 2]);
        assert_eq!(read(cr0, &[0x0f, 0x06]), Some((Exit::Control(ControlAccess::ClearTaskSwitched), 2)));
        let access = ControlAccess::LoadMachineStatus { value: 0x31 };
        assert_eq!(read(cr0, &[0x0f, 0x01, 0xf0]), Some((Exit::Control(access), 3)));
    }

    #[test]
    fn code_that_has_changed_is_not_stepped_over() {
        let hypercall = told(0x81, [0; 2]);
        let regs = GuestRegs::default();
        assert_eq!(read_code(hypercall, &[0x0f, 0x01, 0xd9], Mode::Bits64, &regs, 0), Some((Exit::Hypercall, 3)));
        assert_eq!(read_code(hypercall, &[0x90, 0x90, 0x90], Mode::Bits64, &regs, 0), None);
    }
}
