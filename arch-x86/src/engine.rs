//! The virtualisation engine of this machine, chosen once at boot: a closed set, the same for every vCPU.

use mm::addr::{Mfn, PageSize};
use mm::table::{Entry, MemoryType, PageFormat, PageKind};

use crate::event::Pending;
use crate::exit::Exit;
use crate::guest_paging::Paging;
use crate::policy::msr::DeviceMsr;
use crate::regs::GuestRegs;
use crate::segment::{Segment, SegmentRegister};
use crate::state::{CpuState, TableRegister};
use crate::svm::guest::SvmVcpu;
use crate::svm::npt::Npt;
use crate::vmx::ept::Ept;
use crate::vmx::guest::VmxVcpu;

mod host;

pub use host::{Bitmaps, CpuEngine, Host, HostState, Resources, Wishes};

/// A vCPU as its engine has it.
pub enum Engine {
    Vmx(VmxVcpu),
    Svm(SvmVcpu),
}

/// The engine has no way to run this vCPU here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotLoad;

macro_rules! forward {
    ($($(#[$attribute:meta])* fn $name:ident(&self $(, $argument:ident: $kind:ty)*) $(-> $result:ty)?;)*) => {
        $($(#[$attribute])* #[inline] pub fn $name(&self $(, $argument: $kind)*) $(-> $result)? {
            match self {
                Engine::Vmx(vcpu) => vcpu.$name($($argument),*),
                Engine::Svm(vcpu) => vcpu.$name($($argument),*),
            }
        })*
    };
}

macro_rules! forward_mut {
    ($($(#[$attribute:meta])* fn $name:ident(&mut self $(, $argument:ident: $kind:ty)*) $(-> $result:ty)?;)*) => {
        $($(#[$attribute])* #[inline] pub fn $name(&mut self $(, $argument: $kind)*) $(-> $result)? {
            match self {
                Engine::Vmx(vcpu) => vcpu.$name($($argument),*),
                Engine::Svm(vcpu) => vcpu.$name($($argument),*),
            }
        })*
    };
}

/// Everything below but `load` asks that the vCPU is loaded on this CPU.
impl Engine {
    /// Makes this vCPU current on this CPU.
    pub fn load(&mut self, host: &HostState) -> Result<(), CannotLoad> {
        match self {
            Engine::Vmx(vcpu) => vcpu.load(host).map_err(|_| CannotLoad),
            Engine::Svm(vcpu) => vcpu.load(host).ok_or(CannotLoad),
        }
    }

    forward_mut! {
        /// Takes it off this CPU.
        fn unload(&mut self);
        /// Puts it into the state that it starts with, or goes on with, as far as that is the engine's; the MSRs of SYSCALL are not touched.
        /// `cr4_allowed` are the bits of CR4 that the guest may set.
        fn reset(&mut self, state: &CpuState, cr4_allowed: u64);
        /// Enters the guest until its next exit; a pending event is injected. `translations` is the generation of the nested tables: what this CPU
        /// has cached of an earlier one is dropped.
        fn run(&mut self, regs: &mut GuestRegs, pending: &mut Pending, translations: u64) -> Exit;
        /// Asks for an exit as soon as the guest can take an interrupt, or takes that back.
        fn set_interrupt_window(&mut self, open: bool);
        /// The same for an NMI.
        fn set_nmi_window(&mut self, open: bool);
        /// Where the engine can: has the guest leave at the latest when it has run for so many ticks of the TSC, over however many entries. For a
        /// CPU that others wait for: an interrupt should do, but there are machines on which none gets through while the guest keeps its
        /// interrupts off.
        fn set_guard(&mut self, ticks: Option<u64>);
        /// The host has taken its interrupts: the guest has all of that time again.
        fn renew_guard(&mut self);
        /// An instruction was completed for the guest that is to trap after it (#DB), and the CPU does not know.
        fn take_single_step(&mut self) -> bool;
        /// Moves on behind the instruction that exited.
        fn advance(&mut self);
        /// Moves on by `length` bytes.
        fn advance_by(&mut self, length: u64);
        fn set_rflags(&mut self, value: u64);
        fn set_rsp(&mut self, value: u64);
        fn set_cr0(&mut self, value: u64);
        fn set_cr3(&mut self, value: u64);
        fn set_cr4(&mut self, value: u64);
        fn set_efer(&mut self, value: u64);
        fn set_cr2(&mut self, value: u64);
        fn set_pdptes(&mut self, values: [u64; 4]);
        fn set_pat(&mut self, value: u64);
        /// An MSR that the engine switches with the vCPU; `None` if this is none.
        fn write_msr(&mut self, msr: DeviceMsr, value: u64) -> Option<()>;
        fn set_segment(&mut self, register: SegmentRegister, value: Segment);
    }

    forward! {
        /// Logs the engine's own state, for a domain that crashes or an entry that failed.
        fn dump(&self);
        /// The guest would take an external interrupt now.
        fn interruptible(&self) -> bool;
        /// RFLAGS.IF.
        fn interrupts_enabled(&self) -> bool;
        /// The guest would take an NMI now.
        fn accepts_nmi(&self) -> bool;
        fn rip(&self) -> u64;
        fn rsp(&self) -> u64;
        fn rflags(&self) -> u64;
        fn cr0(&self) -> u64;
        fn cr3(&self) -> u64;
        fn cr4(&self) -> u64;
        fn efer(&self) -> u64;
        fn pat(&self) -> u64;
        fn read_msr(&self, msr: DeviceMsr) -> Option<u64>;
        fn segment(&self, register: SegmentRegister) -> Segment;
        /// The current privilege level.
        fn privilege(&self) -> u8;
        fn in_64_bit_mode(&self) -> bool;
        fn cr2(&self) -> u64;
        fn dr7(&self) -> u64;
        /// DR6, where the engine switches it.
        fn dr6(&self) -> Option<u64>;
        fn gdtr(&self) -> TableRegister;
        fn idtr(&self) -> TableRegister;
    }

    #[inline]
    pub fn paging(&self) -> Paging {
        match self {
            Engine::Vmx(vcpu) => Paging { cr0: vcpu.cr0(), cr3: vcpu.cr3(), cr4: vcpu.cr4(), efer: vcpu.efer() },
            Engine::Svm(vcpu) => Paging { cr0: vcpu.cr0(), cr3: vcpu.cr3(), cr4: vcpu.cr4(), efer: vcpu.efer() },
        }
    }

    /// The instruction that makes a hypercall on this engine, for the hypercall page.
    pub fn hypercall_instruction(&self) -> [u8; 3] {
        match self {
            Engine::Vmx(_) => [0x0f, 0x01, 0xc1],
            Engine::Svm(_) => [0x0f, 0x01, 0xd9],
        }
    }

    /// What an exit was that needed the code at RIP, which `code` begins with. `None` if that is no longer what exited: the guest executes what
    /// is there now.
    #[cold]
    pub fn finish_exit(&mut self, code: &[u8], regs: &GuestRegs) -> Option<Exit> {
        match self {
            Engine::Vmx(_) => None,
            Engine::Svm(vcpu) => vcpu.finish_exit(code, regs),
        }
    }
}

/// The nested page tables' format that goes with the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nested {
    Ept(Ept),
    Npt(Npt),
}

impl Nested {
    /// For a domain that is trusted with what its processor does when the size of a page that code runs in changes.
    pub fn with_large_code(self) -> Nested {
        match self {
            Nested::Ept(format) => Nested::Ept(Ept { large_code: true, ..format }),
            Nested::Npt(format) => Nested::Npt(format),
        }
    }
}

impl PageFormat for Nested {
    const LEVELS: u8 = 4;

    #[inline]
    fn leaf(&self, mfn: Mfn, size: PageSize, kind: PageKind, memory: MemoryType) -> u64 {
        match self {
            Nested::Ept(format) => format.leaf(mfn, size, kind, memory),
            Nested::Npt(format) => format.leaf(mfn, size, kind, memory),
        }
    }

    #[inline]
    fn table(&self, mfn: Mfn) -> u64 {
        match self {
            Nested::Ept(format) => format.table(mfn),
            Nested::Npt(format) => format.table(mfn),
        }
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry {
        match self {
            Nested::Ept(format) => format.decode(entry, level),
            Nested::Npt(format) => format.decode(entry, level),
        }
    }

    #[inline]
    fn runs_large_code(&self) -> bool {
        match self {
            Nested::Ept(format) => format.runs_large_code(),
            Nested::Npt(format) => format.runs_large_code(),
        }
    }

    fn largest(&self) -> PageSize {
        match self {
            Nested::Ept(format) => format.largest(),
            Nested::Npt(format) => format.largest(),
        }
    }
}
