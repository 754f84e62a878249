//! The life of a physical CPU: pick a vCPU, run it until something else is to be done, and serve its exits.

mod control;
mod cpuid;
mod events;
mod hypercall;
mod interrupt;
mod mmio;
mod msr;
mod port;

pub use interrupt::on_interrupt;
pub(crate) use port::read_cmos;

use alloc::boxed::Box;

use hypervisor::domain::Domain;
use hypervisor::machine::Machine;
use hypervisor::runstate::State;
use hypervisor::system::System;
use hypervisor::vcpu::{Vcpu, hold};
use sched::{Nanos, Rest, VcpuKey};
use xen_abi::sched::SHUTDOWN_CRASH;

use crate::context::Context;
use crate::decode::LONGEST;
use crate::event::exception;
use crate::exit::Exit;
use crate::machine::X86;
use crate::percpu::{self, PerCpu, Resident};
use crate::policy::GuestPolicy;
use crate::segment::SegmentRegister;
use crate::{host, reap};

/// How long a vCPU may keep others waiting that nobody can reach it for: the time slice.
const GUARD: Nanos = Nanos::from_millis(1);

/// A vCPU in the hands of the CPU that runs it.
struct Running<'a> {
    system: &'static System<X86>,
    cpu: &'static PerCpu,
    resident: &'a Resident,
    domain: &'a Domain<X86>,
    vcpu: &'a Vcpu<X86>,
    policy: &'a GuestPolicy,
    context: &'a mut Context,
}

/// Whether a vCPU goes on after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Enter,
    /// It does not run on as things are: blocked, preempted, or its domain is done.
    Leave,
}

/// Runs guests on this CPU for as long as the machine is on.
pub fn forever(system: &'static System<X86>) -> ! {
    let cpu = percpu::this();
    // The vCPU whose registers are in this CPU; they stay there until they are wanted elsewhere, or the place is.
    let mut loaded: Option<Loaded> = None;
    loop {
        // What waits may change who runs. And a guest that yields all the time gives no other chance on some machines: see `set_guard`.
        host::take_interrupts();
        let now = system.machine.now();
        let Some(key) = cpu.next(now) else {
            if cpu.is_to_give_up() {
                unload(cpu, &mut loaded);
            }
            cpu.begin_idle(now);
            idle(system, cpu);
            continue;
        };
        cpu.end_idle(now);
        if loaded.as_ref().is_none_or(|current| current.key != key) {
            unload(cpu, &mut loaded);
            loaded = Loaded::load(system, cpu, key);
        }
        match &mut loaded {
            Some(current) => current.run(system, cpu, now),
            None => cpu.rest(key, Rest::Offline),
        }
    }
}

fn unload(cpu: &'static PerCpu, loaded: &mut Option<Loaded>) {
    // The wish is gone before the registers are there: one that comes later finds them.
    cpu.has_given_up();
    if let Some(current) = loaded.take() {
        current.unload();
    }
    cpu.note_domain(None);
}

/// Nothing to run: the CPU sleeps until the next interrupt, which is taken in the window.
fn idle(system: &'static System<X86>, cpu: &'static PerCpu) {
    if (system.machine.hooks.console_poll)() {
        interrupt::console_input(system);
    }
    let busy = reap::some(system);
    system.memory.scrub_some(1);
    if !busy && !cpu.must_reschedule() && !cpu.is_to_give_up() {
        host::wait_for_interrupt();
    }
}

/// A vCPU whose state is in this CPU.
struct Loaded {
    key: VcpuKey,
    resident: Resident,
    context: Box<Context>,
}

impl Loaded {
    fn load(system: &'static System<X86>, cpu: &'static PerCpu, key: VcpuKey) -> Option<Loaded> {
        let resident = percpu::resident(key)?;
        let vcpu = resident.vcpu()?;
        let mut context = registers(vcpu);
        let loads = cpu.host().is_some_and(|host| context.engine.load(host).is_ok());
        if !loads {
            log::error!(target: "vcpu", "{} vCPU {}: its control structure cannot be loaded; the domain is stopped", resident.domain.name, vcpu.id.0);
            *vcpu.machine.context.lock() = Some(context);
            hypervisor::domain::shut_down(system, &resident.domain, SHUTDOWN_CRASH as u8);
            return None;
        }
        if !context.take_waiting(&resident.domain, resident.domain.machine.policy.settle()) {
            log::error!(target: "vcpu", "{} vCPU {}: its registers are not of its CPU policy; the domain is stopped", resident.domain.name, vcpu.id.0);
            context.engine.unload();
            *vcpu.machine.context.lock() = Some(context);
            hypervisor::domain::shut_down(system, &resident.domain, SHUTDOWN_CRASH as u8);
            return None;
        }
        cpu.note_domain(Some(resident.domain.id));
        cpu.take_timers(vcpu);
        context.seen.insert(cpu.id);
        context.engine.set_guard(percpu::is_shared().then(|| crate::machine::clock().ticks(GUARD)));
        context.switched.restore(host::has_rdtscp());
        if host::has_xsave() {
            crate::fpu::set_xcr0(crate::fpu::switched_states());
            context.fpu.restore();
            crate::fpu::set_xcr0(context.xcr0);
        } else {
            context.fpu.restore();
        }
        Some(Loaded { key, resident, context })
    }

    fn unload(mut self) {
        self.context.switched.save(host::has_rdtscp());
        if host::has_xsave() {
            self.context.xcr0 = crate::fpu::xcr0();
            // All states that Corten switches, whatever the guest has enabled of them.
            crate::fpu::set_xcr0(crate::fpu::switched_states());
        }
        self.context.fpu.save();
        self.context.engine.unload();
        if let Some(vcpu) = self.resident.domain.vcpu(self.resident.vcpu) {
            *vcpu.machine.context.lock() = Some(self.context);
        }
    }

    /// Runs the vCPU until it blocks or gives way. It counts as running from `decided` on: the time that it takes to get there is its own, as it is
    /// for the scheduler.
    fn run(&mut self, system: &'static System<X86>, cpu: &'static PerCpu, decided: Nanos) {
        let Some(vcpu) = self.resident.vcpu() else { return };
        let domain = &*self.resident.domain;
        let policy = domain.machine.policy.settle();
        let mut running =
            Running { system, cpu, resident: &self.resident, domain, vcpu, policy, context: &mut self.context };
        enter_state(vcpu, State::Running, decided);
        vcpu.machine.presence.begin();
        cpu.passage.begin();
        running.enter_until_it_stops();
        cpu.passage.end();
        vcpu.machine.presence.end();
        let now = system.machine.now();
        if vcpu.is_runnable() {
            enter_state(vcpu, State::Runnable, now);
        } else {
            let (state, why) = match vcpu.holds() {
                holds if holds & hold::OFFLINE != 0 => (State::Offline, Rest::Offline),
                holds if holds & hold::FROM_OUTSIDE != 0 => (State::Offline, Rest::Paused),
                _ => (State::Blocked, Rest::Blocked),
            };
            enter_state(vcpu, state, now);
            cpu.rest(self.key, why);
            // A wake-up between the look and the block is not lost.
            if vcpu.is_runnable() || vcpu.machine.inbox.startup_pending() {
                percpu::wake(self.key);
            }
        }
    }
}

/// Takes a vCPU's registers out. They may still be in the CPU that it ran on last, which is asked for them then: it does not run the vCPU any
/// more, and is not kept from answering by anything that this CPU has. It is asked again, as another may have taken them over meanwhile.
pub(crate) fn registers(vcpu: &Vcpu<X86>) -> Box<Context> {
    const PATIENCE: u32 = 1 << 10;
    // Whoever gives them up needs the lock.
    const PAUSE: u32 = 1 << 5;
    let mut turn = 0u32;
    loop {
        if turn.is_multiple_of(PAUSE)
            && let Some(context) = vcpu.machine.context.lock().take()
        {
            return context;
        }
        if turn.is_multiple_of(PATIENCE)
            && let Some(holder) = percpu::get(vcpu.machine.place().0)
        {
            holder.ask_to_give_up();
        }
        turn = turn.wrapping_add(1);
        core::hint::spin_loop();
    }
}

fn enter_state(vcpu: &Vcpu<X86>, state: State, now: Nanos) {
    let mut runstate = vcpu.runstate.lock();
    if runstate.state() != state {
        runstate.enter(state, now);
    }
}

impl Running<'_> {
    fn enter_until_it_stops(&mut self) {
        loop {
            if !self.vcpu.is_runnable() || self.cpu.must_reschedule() {
                // What woke it may have been an INIT or SIPI, which changes whether it runs.
                if self.vcpu.machine.inbox.wants_attention() {
                    self.take_startup();
                }
                if !self.vcpu.is_runnable() || self.cpu.must_reschedule() {
                    return;
                }
            }
            if self.context.engine.take_single_step() {
                self.context.raise(exception::DEBUG, None);
            }
            if self.has_events() {
                self.prepare_events();
                // An INIT takes a vCPU out of the running.
                if !self.vcpu.is_runnable() {
                    continue;
                }
            }
            if self.context.triple_fault {
                self.triple_fault();
                return;
            }
            let exit = self.enter();
            if self.serve(exit) == Next::Leave {
                return;
            }
        }
    }

    /// Enters the guest until its next exit, with translations that are no older than the entry.
    #[inline]
    fn enter(&mut self) -> Exit {
        self.cpu.passage.pass();
        let translations = self.domain.p2m.generation();
        self.context.engine.run(&mut self.context.regs, &mut self.context.pending, translations)
    }

    #[inline]
    fn serve(&mut self, exit: Exit) -> Next {
        match exit {
            Exit::Hypercall => self.hypercall(),
            Exit::Interrupt(vector) => self.host_interrupt(vector),
            Exit::InterruptPending => self.pending_interrupt(),
            Exit::WriteMsr => self.write_msr(),
            Exit::ReadMsr => self.read_msr(),
            Exit::Cpuid => self.cpuid(),
            Exit::Halt => self.halt(),
            Exit::Port(access) => self.port(access),
            Exit::GuestPage(access) => self.guest_page(access),
            Exit::InterruptWindow => {
                self.context.engine.set_interrupt_window(false);
                Next::Enter
            }
            Exit::NmiWindow => {
                self.context.engine.set_nmi_window(false);
                Next::Enter
            }
            Exit::Control(access) => self.control(access),
            Exit::SetExtendedControl => self.set_extended_control(),
            Exit::Undefined => {
                self.context.raise_undefined();
                Next::Enter
            }
            Exit::Refused => {
                self.context.raise_general_protection();
                Next::Enter
            }
            Exit::CacheFlush => {
                // Whoever drives devices may have to: not all of them look into the caches.
                if self.domain.is_control() {
                    host::write_back_caches();
                }
                self.context.engine.advance();
                Next::Enter
            }
            Exit::Nmi => {
                host::nmi();
                Next::Enter
            }
            Exit::Exception { vector, error } => {
                self.context.raise(vector, error);
                Next::Enter
            }
            Exit::MachineCheck => host::machine_check(),
            Exit::NeedsCode => self.finish_exit(),
            Exit::TripleFault => self.triple_fault(),
            Exit::Unexpected(number) => {
                log::error!(target: "vcpu", "{}: exit {number:#x} that no guest should cause", self.domain.name);
                self.crash("unexpected exit")
            }
            Exit::EntryFailed(number) => {
                log::error!(target: "vcpu", "{}: the CPU refuses to enter the guest (reason {number:#x})", self.domain.name);
                self.crash("entry failed")
            }
        }
    }

    /// Serves an exit that takes the code at RIP to tell.
    fn finish_exit(&mut self) -> Next {
        let mut bytes = [0; LONGEST];
        let engine = &self.context.engine;
        let base = if engine.in_64_bit_mode() { 0 } else { engine.segment(SegmentRegister::Cs).base };
        let rip = base.wrapping_add(engine.rip());
        let count = crate::dump::fetch(self.domain, self.context, rip, &mut bytes);
        let code = bytes.get(..count).unwrap_or_default();
        match self.context.engine.finish_exit(code, &self.context.regs) {
            Some(exit) => self.serve(exit),
            None => Next::Enter,
        }
    }

    fn halt(&mut self) -> Next {
        self.context.engine.advance();
        if !self.context.engine.interrupts_enabled() && !self.domain.is_control() {
            return self.halt_for_good();
        }
        // Whoever sends something after this look finds the hold and takes it away; what came before is seen here.
        self.vcpu.set_hold(hold::BLOCKED);
        if self.could_be_woken_now() {
            self.vcpu.clear_hold(hold::BLOCKED);
        }
        Next::Enter
    }

    /// HLT with interrupts off is how a kernel without a way to power off ends: the vCPU is down, and with the last one the domain is off,
    /// as on Xen. Dom0 has its ways.
    #[cold]
    fn halt_for_good(&mut self) -> Next {
        if !self.vcpu.machine.inbox.nmi_pending() && !self.vcpu.machine.inbox.startup_pending() {
            // Going down has no way to fail.
            let _ = hypervisor::domain::take_down(self.system, self.domain, self.vcpu);
        }
        Next::Enter
    }

    #[cold]
    fn crash(&mut self, why: &str) -> Next {
        log::error!(target: "domain", "{} (domain {}) crashed: {why} on vCPU {}", self.domain.name, self.domain.id.0, self.vcpu.id.0);
        crate::dump::vcpu(self.domain, self.context);
        hypervisor::domain::shut_down(self.system, self.domain, SHUTDOWN_CRASH as u8);
        Next::Leave
    }

    #[cold]
    fn triple_fault(&mut self) -> Next {
        log::error!(target: "domain", "{} (domain {}): triple fault on vCPU {}", self.domain.name, self.domain.id.0, self.vcpu.id.0);
        crate::dump::vcpu(self.domain, self.context);
        hypervisor::domain::triple_fault(self.system, self.domain);
        Next::Leave
    }
}
