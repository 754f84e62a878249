//! Event channels (`event_channel.h`) and virtual interrupts (`xen.h`).

use crate::types::{DomainId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `EVTCHNOP_*`: the first argument of `event_channel_op`; the second is the structure below.
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
pub const EVTCHNOP_BIND_PIRQ: u32 = 2;
pub const EVTCHNOP_CLOSE: u32 = 3;
pub const EVTCHNOP_SEND: u32 = 4;
pub const EVTCHNOP_STATUS: u32 = 5;
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
pub const EVTCHNOP_BIND_IPI: u32 = 7;
pub const EVTCHNOP_BIND_VCPU: u32 = 8;
pub const EVTCHNOP_UNMASK: u32 = 9;
pub const EVTCHNOP_RESET: u32 = 10;
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

/// `EVTCHNOP_alloc_unbound`: a port of `dom` that `remote_dom` may bind to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AllocUnbound {
    /// In: the domain that gets the port (`DomainId::SELF` for the caller).
    pub dom: DomainId,
    /// In: who may connect to it.
    pub remote_dom: DomainId,
    /// Out.
    pub port: Port,
}

/// `EVTCHNOP_bind_interdomain`: connects a new local port to an unbound port of another domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindInterdomain {
    pub remote_dom: DomainId,
    pub pad: u16,
    pub remote_port: Port,
    /// Out.
    pub local_port: Port,
}

/// `EVTCHNOP_bind_virq`: a port for a virtual interrupt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindVirq {
    pub virq: u32,
    pub vcpu: u32,
    /// Out.
    pub port: Port,
}

/// `EVTCHNOP_bind_pirq`: a port for a physical interrupt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindPirq {
    pub pirq: u32,
    /// [`BIND_PIRQ__WILL_SHARE`].
    pub flags: u32,
    /// Out.
    pub port: Port,
}
pub const BIND_PIRQ__WILL_SHARE: u32 = 1;

/// `EVTCHNOP_bind_ipi`: a port by which the domain notifies one of its own vCPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindIpi {
    pub vcpu: u32,
    /// Out.
    pub port: Port,
}

/// `EVTCHNOP_close`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Close {
    pub port: Port,
}

/// `EVTCHNOP_send`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Send {
    pub port: Port,
}

/// `EVTCHNOP_status`: what a port is bound to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Status {
    /// In.
    pub dom: DomainId,
    pub pad: u16,
    /// In.
    pub port: Port,
    /// Out: `EVTCHNSTAT_*`.
    pub status: u32,
    /// Out: the vCPU that is notified.
    pub vcpu: u32,
    /// Out, by `status`: unbound and interdomain, the remote domain in the low 16 bits; pirq and virq, the number.
    pub value: u32,
    /// Out: the remote port, when interdomain.
    pub remote_port: Port,
}
pub const EVTCHNSTAT_CLOSED: u32 = 0;
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
pub const EVTCHNSTAT_PIRQ: u32 = 3;
pub const EVTCHNSTAT_VIRQ: u32 = 4;
pub const EVTCHNSTAT_IPI: u32 = 5;

/// `EVTCHNOP_bind_vcpu`: which vCPU a port notifies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindVcpu {
    pub port: Port,
    pub vcpu: u32,
}

/// `EVTCHNOP_unmask`: clears the mask bit, and delivers what was pending.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Unmask {
    pub port: Port,
}

/// `EVTCHNOP_reset`: closes every port of `dom` and goes back to the two-level scheme.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reset {
    pub dom: DomainId,
}

/// `EVTCHNOP_init_control`: a vCPU's FIFO control block; the first one switches the domain to FIFO events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InitControl {
    /// In: the frame of the control block.
    pub control_gfn: u64,
    /// In: its offset there, a multiple of 8.
    pub offset: u32,
    /// In.
    pub vcpu: u32,
    /// Out: how many bits of an event word are a link ([`EVTCHN_FIFO_LINK_BITS`]).
    pub link_bits: u8,
    pub pad: [u8; 7],
}

/// `EVTCHNOP_expand_array`: one more page of event words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExpandArray {
    pub array_gfn: u64,
}

/// `EVTCHNOP_set_priority`: the queue that a port's events go to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPriority {
    pub port: Port,
    /// [`EVTCHN_FIFO_PRIORITY_MAX`] (0) to [`EVTCHN_FIFO_PRIORITY_MIN`] (15).
    pub priority: u32,
}

/// Ports of the two-level scheme for a 64-bit domain; a 32-bit one has [`EVTCHN_2L_NR_CHANNELS_32`].
pub const EVTCHN_2L_NR_CHANNELS: u32 = 64 * 64;
pub const EVTCHN_2L_NR_CHANNELS_32: u32 = 32 * 32;

// The FIFO scheme: priorities, and the *numbers* of the bits of an event word.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
pub const EVTCHN_FIFO_MAX_QUEUES: u32 = 16;
pub const EVTCHN_FIFO_PENDING: u32 = 31;
pub const EVTCHN_FIFO_MASKED: u32 = 0x1e;
pub const EVTCHN_FIFO_LINKED: u32 = 29;
pub const EVTCHN_FIFO_BUSY: u32 = 28;
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
pub const EVTCHN_FIFO_LINK_MASK: u32 = 0x1ffff;
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << 17;

/// Event words in one page of the array.
pub const EVTCHN_FIFO_WORDS_PER_PAGE: u32 = 4096 / 4;
/// Pages that hold every event word.
pub const EVTCHN_FIFO_MAX_ARRAY_PAGES: u32 = EVTCHN_FIFO_NR_CHANNELS / EVTCHN_FIFO_WORDS_PER_PAGE;

/// A vCPU's FIFO control block: which priorities have events, and each queue's first port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FifoControlBlock {
    /// Bit n: queue n has events.
    pub ready: u32,
    pub reserved: u32,
    pub head: [Port; EVTCHN_FIFO_MAX_QUEUES as usize],
}

// Virtual interrupts. TIMER, DEBUG and XENOPROF and XENPMU are per vCPU, the others global to the domain.
pub const VIRQ_TIMER: u32 = 0;
pub const VIRQ_DEBUG: u32 = 1;
pub const VIRQ_CONSOLE: u32 = 2;
pub const VIRQ_DOM_EXC: u32 = 3;
pub const VIRQ_TBUF: u32 = 4;
pub const VIRQ_DEBUGGER: u32 = 6;
pub const VIRQ_XENOPROF: u32 = 7;
pub const VIRQ_CON_RING: u32 = 8;
pub const VIRQ_PCPU_STATE: u32 = 9;
pub const VIRQ_MEM_EVENT: u32 = 10;
pub const VIRQ_ARGO: u32 = 11;
pub const VIRQ_ENOMEM: u32 = 12;
pub const VIRQ_XENPMU: u32 = 13;
pub const VIRQ_ARCH_0: u32 = 16;
pub const VIRQ_ARCH_1: u32 = 17;
pub const VIRQ_ARCH_2: u32 = 18;
pub const VIRQ_ARCH_3: u32 = 19;
pub const VIRQ_ARCH_4: u32 = 20;
pub const VIRQ_ARCH_5: u32 = 21;
pub const VIRQ_ARCH_6: u32 = 22;
pub const VIRQ_ARCH_7: u32 = 23;
pub const NR_VIRQS: u32 = 24;
