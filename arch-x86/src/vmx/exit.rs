//! From an exit reason and its qualification to a neutral [`Exit`] (SDM Vol. 3, appendix C and 28.2.1).

use mm::addr::GuestPhys;

use super::field::*;
use super::vmcs::{read, write};
use crate::event::exception;
use crate::exit::{ControlAccess, Exit, PageAccess, PortAccess};

mod reason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const MACHINE_CHECK: u16 = 41;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const VMFUNC: u16 = 59;
}

/// The reason is 16 bits plus flags; bit 31 says that the entry itself failed.
const ENTRY_FAILED: u32 = 1 << 31;

#[inline]
pub fn decode_exit(raw: u32) -> Exit {
    if raw & ENTRY_FAILED != 0 {
        return Exit::EntryFailed(raw);
    }
    match raw as u16 {
        reason::VMCALL => Exit::Hypercall,
        reason::EXTERNAL_INTERRUPT => Exit::Interrupt(read(EXIT_EVENT) as u8),
        reason::HLT => Exit::Halt,
        reason::CPUID => Exit::Cpuid,
        reason::RDMSR => Exit::ReadMsr,
        reason::WRMSR => Exit::WriteMsr,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        reason::IO => port(),
        reason::EPT_VIOLATION => guest_page(),
        reason::CONTROL_REGISTER => control(),
        reason::EXCEPTION_OR_NMI => exception(),
        reason::NMI_WINDOW => Exit::NmiWindow,
        // Whatever there is to do has asked for an interrupt.
        reason::PREEMPTION_TIMER => Exit::InterruptPending,
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::XSETBV => Exit::SetExtendedControl,
        reason::RDPMC => Exit::Refused,
        reason::GETSEC
        | reason::VMCLEAR..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC => Exit::Undefined,
        reason::MACHINE_CHECK => Exit::MachineCheck,
        reason::EPT_MISCONFIGURATION => Exit::Unexpected(u32::from(reason::EPT_MISCONFIGURATION)),
        other => Exit::Unexpected(u32::from(other)),
    }
}

/// SDM Vol. 3, table 28-5.
fn port() -> Exit {
    let qualification = read(EXIT_QUALIFICATION);
    Exit::Port(PortAccess {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        input: qualification & 1 << 3 != 0,
        string: qualification & 1 << 4 != 0,
        rep: qualification & 1 << 5 != 0,
    })
}

/// SDM Vol. 3, table 28-7.
fn guest_page() -> Exit {
    let qualification = read(EXIT_QUALIFICATION);
    // IRET's unblocking of NMIs is undone if the access faulted (bit 12).
    if qualification & 1 << 12 != 0 && read(VECTORING_EVENT) & 1 << 31 == 0 {
        let interruptibility = read(GUEST_INTERRUPTIBILITY);
        write(GUEST_INTERRUPTIBILITY, interruptibility | 1 << 3);
    }
    Exit::GuestPage(PageAccess {
        at: GuestPhys(read(GUEST_PHYSICAL_ADDRESS)),
        write: qualification & 1 << 1 != 0,
        fetch: qualification & 1 << 2 != 0,
        walk: qualification & 1 << 7 != 0 && qualification & 1 << 8 == 0,
    })
}

/// SDM Vol. 3, table 28-3.
fn control() -> Exit {
    let qualification = read(EXIT_QUALIFICATION);
    let register = (qualification & 15) as u8;
    let general = (qualification >> 8 & 15) as u8;
    Exit::Control(match qualification >> 4 & 3 {
        0 => ControlAccess::Write { register, from: general },
        1 => ControlAccess::Read { register, to: general },
        2 => ControlAccess::ClearTaskSwitched,
        _ => ControlAccess::LoadMachineStatus { value: (qualification >> 16) as u16 },
    })
}

#[cold]
fn exception() -> Exit {
    const HARDWARE: u32 = 3;
    const PRIVILEGED_SOFTWARE: u32 = 5;
    let event = read(EXIT_EVENT);
    match (event >> 8 & 7, event as u8) {
        (2, _) => Exit::Nmi,
        (_, exception::MACHINE_CHECK) => Exit::MachineCheck,
        (HARDWARE, exception::DEBUG) => debug(read(EXIT_QUALIFICATION)),
        // INT1: nothing is in DR6 for it, and it is a trap.
        (PRIVILEGED_SOFTWARE, exception::DEBUG) => {
            write(GUEST_RIP, read(GUEST_RIP).wrapping_add(u64::from(read(EXIT_INSTRUCTION_LENGTH))));
            debug(0)
        }
        (HARDWARE, exception::ALIGNMENT_CHECK) => {
            Exit::Exception { vector: exception::ALIGNMENT_CHECK, error: Some(read(EXIT_EVENT_ERROR)) }
        }
        (_, vector) => Exit::Unexpected(0x100 | u32::from(vector)),
    }
}

/// A debug exception that exits leaves to its taker what its delivery would have done: the causes in DR6, DR7.GD and the last-branch records
/// off, the shadow of STI or MOV SS over (SDM Vol. 3, 28.1 and table 28-1).
fn debug(causes: u64) -> Exit {
    const BREAKPOINTS: u64 = 0xf;
    const OTHERS: u64 = 1 << 13 | 1 << 14;
    /// Not in a transactional region: a cause that DR6 shows by zero.
    const RTM: u64 = 1 << 16;
    let status = crate::host::read_debug_status();
    let status = (status & !BREAKPOINTS | causes & (BREAKPOINTS | OTHERS) | RTM) ^ (causes & RTM);
    crate::host::write_debug_status(status);
    write(GUEST_DR7, read(GUEST_DR7) & !(1 << 13));
    write(GUEST_DEBUGCTL, read(GUEST_DEBUGCTL) & !1);
    write(GUEST_INTERRUPTIBILITY, read(GUEST_INTERRUPTIBILITY) & !0b11);
    Exit::Exception { vector: exception::DEBUG, error: None }
}
