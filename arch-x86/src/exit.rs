//! Why a guest stopped running, in no vendor's terms.

use mm::addr::GuestPhys;

/// A guest's I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    pub input: bool,
    /// INS or OUTS; `rep` with a REP prefix.
    pub string: bool,
    pub rep: bool,
}

/// A guest-physical access that the nested page tables refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAccess {
    pub at: GuestPhys,
    pub write: bool,
    pub fetch: bool,
    /// The access was made by the guest's own page walk, not by the instruction itself.
    pub walk: bool,
}

/// Which control register, and the general register that it is moved from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAccess {
    Write { register: u8, from: u8 },
    Read { register: u8, to: u8 },
    ClearTaskSwitched,
    LoadMachineStatus { value: u16 },
}

/// One exit. Whatever more there is to it is asked of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Hypercall,
    Cpuid,
    ReadMsr,
    WriteMsr,
    Halt,
    Port(PortAccess),
    GuestPage(PageAccess),
    /// A host interrupt that the CPU has acknowledged: its vector.
    Interrupt(u8),
    /// A host interrupt is waiting, not acknowledged.
    InterruptPending,
    Nmi,
    MachineCheck,
    /// The guest's own exception, which it is to take. The host sees those whose delivery can raise them again and again, so that it gets
    /// its turn in between.
    Exception {
        vector: u8,
        error: Option<u32>,
    },
    /// The guest can take an interrupt now; the window that was asked for is closed again.
    InterruptWindow,
    NmiWindow,
    Control(ControlAccess),
    SetExtendedControl,
    /// An instruction that this guest does not have (VMX, SVM, MONITOR, MWAIT, GETSEC …): #UD.
    Undefined,
    /// An instruction that is refused for privilege or configuration (RDPMC): #GP.
    Refused,
    /// WBINVD, INVD: caches are kept coherent, nothing to do but to move on.
    CacheFlush,
    TripleFault,
    /// The CPU did not say all of it: `Engine::finish_exit` does, with the code at RIP.
    NeedsCode,
    /// Nothing that a guest can be helped with; the engine's number for it.
    Unexpected(u32),
    /// The CPU refused to enter the guest; the engine's number for it.
    EntryFailed(u32),
}
