//! A domain: its vCPUs, its memory, and what it shares with the hypervisor.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use mm::SharedPage;
use mm::addr::Gfn;
use mm::p2m::P2m;
use xen_abi::errno::Errno;
use xen_abi::event::VIRQ_DOM_EXC;
use xen_abi::hvm::HVM_PARAM_TRIPLE_FAULT_REASON;
use xen_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};
use xen_abi::types::{DomainId, VcpuId};

use crate::console::DebugConsole;
use crate::control::Control;
use crate::event::{self, EventChannels};
use crate::grant::GrantTable;
use crate::machine::{Machine, Width};
use crate::params::Params;
use crate::system::System;
use crate::vcpu::{Vcpu, hold};

/// What a domain may ask for. The hypercall table is written in these terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Dom0: owns the devices and controls the other domains.
    Control,
    /// An ordinary guest.
    Guest,
}

/// How its event upcalls reach a domain's vCPUs when they set no vector of their own (HVM_PARAM_CALLBACK_IRQ).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    None,
    /// A vector that is injected past the local APIC, without an EOI.
    Vector(u8),
    /// A GSI line.
    Gsi(u8),
}

pub struct Domain<M: Machine> {
    pub id: DomainId,
    pub privilege: Privilege,
    pub vcpus: Vec<Vcpu<M>>,
    pub p2m: P2m<M::Format>,
    /// gfn = mfn for all of its RAM (see architecture.md, Dom0): a frame that it gives up stays its own.
    pub one_to_one: bool,
    pub shared_info: SharedPage,
    pub events: EventChannels,
    pub grants: GrantTable,
    pub params: Params,
    pub console: DebugConsole,
    pub name: String,
    pub control: Control,
    /// Pages that it has, and that it may have.
    pub pages: AtomicU64,
    pub max_pages: AtomicU64,
    callback: AtomicU32,
    /// Where the guest sees its shared_info.
    shared_info_gfn: AtomicU64,
    wide: AtomicU8,
    /// VMASST_TYPE_* that it switched on.
    pub vm_assist: AtomicU64,
    shutdown: AtomicU32,
    /// SCHEDOP_shutdown_code: the reason of a shutdown that is yet to come, whatever that will say.
    shutdown_code: AtomicU32,
    pub machine: M::DomainState,
}

/// A gfn that cannot be.
const NOWHERE: u64 = u64::MAX;

/// No shutdown so far.
const RUNNING: u32 = u32::MAX;

/// What a domain is made of; the rest starts empty.
pub struct Parts<M: Machine> {
    pub id: DomainId,
    pub privilege: Privilege,
    pub name: String,
    pub vcpus: Vec<Vcpu<M>>,
    pub p2m: P2m<M::Format>,
    pub one_to_one: bool,
    pub shared_info: SharedPage,
    pub events: EventChannels,
    pub grants: GrantTable,
    pub control: Control,
    pub pages: u64,
    pub max_pages: u64,
    pub machine: M::DomainState,
}

impl<M: Machine> Domain<M> {
    pub fn new(parts: Parts<M>) -> Self {
        Domain {
            id: parts.id,
            privilege: parts.privilege,
            vcpus: parts.vcpus,
            p2m: parts.p2m,
            one_to_one: parts.one_to_one,
            shared_info: parts.shared_info,
            events: parts.events,
            grants: parts.grants,
            params: Params::default(),
            console: DebugConsole::default(),
            name: parts.name,
            control: parts.control,
            pages: AtomicU64::new(parts.pages),
            max_pages: AtomicU64::new(parts.max_pages),
            callback: AtomicU32::new(0),
            shared_info_gfn: AtomicU64::new(NOWHERE),
            wide: AtomicU8::new(1),
            vm_assist: AtomicU64::new(0),
            shutdown: AtomicU32::new(RUNNING),
            shutdown_code: AtomicU32::new(RUNNING),
            machine: parts.machine,
        }
    }

    #[inline]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu<M>> {
        self.vcpus.get(id.0 as usize)
    }

    pub fn is_control(&self) -> bool {
        self.privilege == Privilege::Control
    }

    #[inline]
    pub fn callback(&self) -> Callback {
        let packed = self.callback.load(Ordering::Relaxed);
        match packed >> 8 {
            1 => Callback::Vector(packed as u8),
            2 => Callback::Gsi(packed as u8),
            _ => Callback::None,
        }
    }

    pub fn set_callback(&self, callback: Callback) {
        let packed = match callback {
            Callback::None => 0,
            Callback::Vector(vector) => 0x100 | u32::from(vector),
            Callback::Gsi(gsi) => 0x200 | u32::from(gsi),
        };
        self.callback.store(packed, Ordering::Relaxed);
    }

    /// The layout of shared_info and vcpu_info, latched when the guest last set its hypercall page or its callback.
    #[inline]
    pub fn shared_width(&self) -> Width {
        if self.wide.load(Ordering::Relaxed) != 0 { Width::Bits64 } else { Width::Bits32 }
    }

    /// See [`crate::wallclock::latch_width`], which moves what is affected.
    pub(crate) fn latch_width(&self, width: Width) {
        self.wide.store(u8::from(width == Width::Bits64), Ordering::Relaxed);
    }

    /// Notes where the guest sees its shared_info from now on; where it saw it before.
    pub fn shared_info_moved_to(&self, gfn: Option<Gfn>) -> Option<Gfn> {
        let before = self.shared_info_gfn.swap(gfn.map_or(NOWHERE, |gfn| gfn.0), Ordering::Relaxed);
        (before != NOWHERE).then_some(Gfn(before))
    }

    /// Where the guest sees its shared_info.
    pub fn shared_info_gfn(&self) -> Option<Gfn> {
        let gfn = self.shared_info_gfn.load(Ordering::Relaxed);
        (gfn != NOWHERE).then_some(Gfn(gfn))
    }

    /// The reason of its shutdown (SHUTDOWN_*), if it has shut down.
    pub fn shutdown_reason(&self) -> Option<u32> {
        let reason = self.shutdown.load(Ordering::Acquire);
        (reason != RUNNING).then_some(reason)
    }

    /// Notes why the domain will shut down, if that is not known yet (SCHEDOP_shutdown_code).
    pub fn note_shutdown_code(&self, reason: u8) {
        let _ = self.shutdown_code.compare_exchange(RUNNING, reason.into(), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Notes the first reason to shut down and holds all of its vCPUs; true if this was the first.
    pub fn begin_shutdown(&self, reason: u32) -> bool {
        let noted = self.shutdown_code.load(Ordering::Acquire);
        let reason = if noted == RUNNING { reason } else { noted };
        let first = self.shutdown.compare_exchange(RUNNING, reason, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            for vcpu in &self.vcpus {
                vcpu.set_hold(hold::STOPPED);
            }
        }
        first
    }

    /// Forgets that the domain has shut down, and why; true if it had.
    pub fn end_shutdown(&self) -> bool {
        self.shutdown_code.store(RUNNING, Ordering::Relaxed);
        self.shutdown.swap(RUNNING, Ordering::AcqRel) != RUNNING
    }
}

/// Holds all vCPUs of a domain for these reasons (`hold::*`), and has those that run come out.
pub fn hold_all<M: Machine>(system: &System<M>, domain: &Domain<M>, reasons: u32) {
    for vcpu in &domain.vcpus {
        vcpu.set_hold(reasons);
        system.machine.call_out(domain, vcpu);
    }
}

/// These reasons no longer hold a domain's vCPUs: those that nothing else holds run.
pub fn release_all<M: Machine>(system: &System<M>, domain: &Domain<M>, reasons: u32) {
    for vcpu in &domain.vcpus {
        if vcpu.clear_hold(reasons) {
            system.machine.wake(domain, vcpu);
        }
    }
}

/// Shuts a domain down, unless it is already: its vCPUs stop, and the machine is told why (SHUTDOWN_*).
pub fn shut_down<M: Machine>(system: &System<M>, domain: &Domain<M>, reason: u8) {
    if domain.begin_shutdown(reason.into())
        && let Some(reason) = domain.shutdown_reason()
    {
        system.machine.domain_stopped(domain, reason);
        if !domain.is_control() {
            event::send_global_virq(system, VIRQ_DOM_EXC);
        }
    }
}

/// A vCPU's triple fault shuts its domain down for the reason that its parameter says: a reboot, if the toolstack wants nothing else.
pub fn triple_fault<M: Machine>(system: &System<M>, domain: &Domain<M>) {
    let reason = domain.params.get(HVM_PARAM_TRIPLE_FAULT_REASON).and_then(|reason| u8::try_from(reason).ok());
    shut_down(system, domain, reason.unwrap_or(SHUTDOWN_CRASH as u8));
}

/// Takes a vCPU down. Without its last one a domain is off.
pub fn take_down<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) -> Result<(), Errno> {
    // Before the look: of two that go down at once, one sees both.
    system.machine.set_online(domain, vcpu, false)?;
    if !domain.vcpus.iter().any(Vcpu::is_up) {
        shut_down(system, domain, SHUTDOWN_POWEROFF as u8);
    }
    Ok(())
}
