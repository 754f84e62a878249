//! The x86 machine as `hypervisor` asks for it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hypervisor::cpu_policy::{CpuPolicy, Refused};
use hypervisor::domain::{Callback, Domain, Privilege};
use hypervisor::machine::{Access, ClockScale, DeviceRequest, Hardware, Machine, PhysicalCpu, Width};
use hypervisor::system::System;
use hypervisor::vcpu::{Vcpu, hold};
use mm::addr::GuestPhys;
use mm::lock::{Lock, Rank};
use mm::{Flush, Memory, P2mCache};
use sched::{Affinity, CpuId, Nanos, Presence, Terms, VcpuKey};
use spin::Once;
use xen_abi::domctl::CreateDomain;
use xen_abi::errno::Errno;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{CpuidLeaf, MsrEntry};

use crate::context::{Context, GuestTables};
use crate::engine::{Bitmaps, Host, Nested};
use crate::guest_paging::{self, Purpose};
use crate::percpu::{self, Retirement};
use crate::policies::{self, DomainPolicy};
use crate::policy::GuestPolicy;
use crate::time::Clock;
use crate::vdev::vlapic::{Delivery, Identity, LapicInbox, Message, Posted, Target};
use crate::{hvm_context, state};

/// Guests' local-APIC ids are this many times the vCPU's number, as Xen has it: as if each vCPU were the first thread of a core.
pub const APIC_IDS_A_VCPU: u32 = 2;

/// What `boot` provides: the console, and how to stop.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Dom0's console output, as bytes: how many are taken, after a few milliseconds at most.
    pub console_write: fn(&[u8]) -> usize,
    /// A line of another domain's: false if there is no room for it.
    pub console_line: fn(core::fmt::Arguments<'_>) -> bool,
    pub console_read: fn(&mut [u8]) -> usize,
    /// From the console ring, starting at an index: bytes copied and the next index.
    pub console_ring: fn(u32, &mut [u8]) -> (usize, u32),
    /// Feeds the UART from the ring and takes its input; true if there is new input.
    pub console_poll: fn() -> bool,
    /// Waits until all output is out, for a bounded time.
    pub console_flush: fn(),
}

pub struct X86 {
    pub hooks: Hooks,
    pub command_line: String,
    /// `noreboot`: halt instead.
    pub no_reboot: bool,
    /// Seconds since 1970 at system time zero, and the nanoseconds with them.
    wallclock: Lock<(u64, u32)>,
}

impl X86 {
    pub fn new(hooks: Hooks, command_line: String, no_reboot: bool, wallclock: (u64, u32)) -> X86 {
        X86 { hooks, command_line, no_reboot, wallclock: Lock::new(Rank::Console, wallclock) }
    }
}

static ENGINE: Once<Host> = Once::new();
static CLOCK: Once<Clock> = Once::new();
static SYSTEM: Once<System<X86>> = Once::new();

/// The machine's clock. Before it is set, time stands still.
#[inline]
pub fn clock() -> Clock {
    CLOCK.get().copied().unwrap_or_default()
}

/// The engine that vCPUs made from now on have.
pub fn set_engine(host: Host) {
    ENGINE.call_once(|| host);
}

pub fn set_clock(clock: Clock) {
    CLOCK.call_once(|| clock);
}

/// All there is, once `boot` has put it together.
pub fn install(system: System<X86>) -> &'static System<X86> {
    SYSTEM.call_once(|| system)
}

pub fn system() -> Option<&'static System<X86>> {
    SYSTEM.get()
}

/// Numbers that are in use, a bit each.
static NUMBERS: [AtomicU64; 1 << (u16::BITS - 6)] = [const { AtomicU64::new(0) }; 1 << (u16::BITS - 6)];

/// What tells a vCPU from all others that there are at the time: a VPID. Never zero.
pub struct Number(u16);

impl Number {
    /// A low one that is free. `None` if there is none.
    pub fn take() -> Option<Number> {
        NUMBERS.iter().enumerate().find_map(|(at, word)| {
            // Zero is nobody's.
            let never = u64::from(at == 0);
            let free = |bits: u64| (bits | never).trailing_ones();
            let claim = |bits| 1u64.checked_shl(free(bits)).map(|bit| bits | bit);
            // Whoever has it next flushes what its CPUs keep under it, so nothing is ordered by this word.
            let bits = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).ok()?;
            Some(Number(u16::try_from((at << 6) | free(bits) as usize).ok()?))
        })
    }

    pub fn get(&self) -> u16 {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if let Some(word) = NUMBERS.get(usize::from(self.0 >> 6)) {
            word.fetch_and(!(1 << (self.0 & 63)), Ordering::Relaxed);
        }
    }
}

/// The part of a vCPU that any CPU may touch.
pub struct X86Vcpu {
    pub inbox: LapicInbox,
    /// Registers and private devices, while no CPU has them.
    pub context: Lock<Option<Box<Context>>>,
    /// Where it runs or ran last, and its timers are.
    cpu: AtomicU32,
    key: AtomicU32,
    #[expect(dead_code, reason = "its drop is what matters")]
    number: Number,
    /// Whether it is in the guest there.
    pub presence: Presence,
    /// An upcall by HVM_PARAM_CALLBACK_IRQ's vector is due.
    pub upcall_due: AtomicBool,
    /// When the local APIC's timer fires, in nanoseconds.
    lapic_deadline: AtomicU64,
    pub lapic_due: AtomicBool,
}

impl X86Vcpu {
    pub fn new(inbox: LapicInbox, number: Number, context: Box<Context>) -> X86Vcpu {
        X86Vcpu {
            inbox,
            context: Lock::new(Rank::DomainControl, Some(context)),
            cpu: AtomicU32::new(0),
            key: AtomicU32::new(u32::MAX),
            number,
            presence: Presence::new(),
            upcall_due: AtomicBool::new(false),
            lapic_deadline: AtomicU64::new(u64::MAX),
            lapic_due: AtomicBool::new(false),
        }
    }

    /// The scheduler knows it by this key from now on, and it is thought of as on this CPU.
    pub fn settle(&self, cpu: CpuId, key: VcpuKey) {
        self.key.store(key.0, Ordering::Relaxed);
        self.move_to(cpu);
    }

    /// It goes to this CPU. Its timers go with it, so the lock of those that it leaves is held.
    pub fn move_to(&self, cpu: CpuId) {
        self.cpu.store(cpu.0, Ordering::Relaxed);
    }

    /// If it runs on another CPU it comes out of the guest.
    #[inline]
    pub fn call_out(&self) {
        if self.presence.must_be_told()
            && let Some(cpu) = percpu::get(self.place().0)
        {
            cpu.kick();
        }
    }

    #[inline]
    pub fn place(&self) -> (CpuId, VcpuKey) {
        (CpuId(self.cpu.load(Ordering::Relaxed)), VcpuKey(self.key.load(Ordering::Relaxed)))
    }

    pub fn set_lapic_deadline(&self, deadline: Option<Nanos>) {
        self.lapic_deadline.store(deadline.map_or(u64::MAX, |at| at.0), Ordering::Relaxed);
    }

    /// Whether the local APIC's timer is due at `now`. It is not any more then, unless it was set anew meanwhile.
    pub fn take_lapic_deadline(&self, now: Nanos) -> bool {
        let due = self.lapic_deadline.load(Ordering::Relaxed);
        due <= now.0
            && self.lapic_deadline.compare_exchange(due, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    #[inline]
    pub fn lapic_deadline(&self) -> Option<Nanos> {
        let at = self.lapic_deadline.load(Ordering::Relaxed);
        (at != u64::MAX).then_some(Nanos(at))
    }

    /// Something other than the plain run of the guest is to be looked at before the next entry.
    #[inline]
    pub fn wants_attention(&self) -> bool {
        self.inbox.wants_attention()
            || self.upcall_due.load(Ordering::Acquire)
            || self.lapic_due.load(Ordering::Acquire)
    }
}

/// A domain's virtual hardware.
pub struct X86Domain {
    pub policy: DomainPolicy,
    /// Kept for as long as its vCPUs refer to them.
    pub bitmaps: Bitmaps,
    /// Shares lowest-priority interrupts among the vCPUs.
    turn: AtomicUsize,
    pub devices: crate::devices::Devices,
    /// What the scheduler knows the domain by.
    pub key: AtomicU32,
    pub retirement: Lock<Retirement>,
}

impl X86Domain {
    pub fn new(policy: Arc<GuestPolicy>, bitmaps: Bitmaps, devices: crate::devices::Devices) -> X86Domain {
        X86Domain {
            policy: DomainPolicy::new(policy),
            bitmaps,
            turn: AtomicUsize::new(0),
            devices,
            key: AtomicU32::new(u32::MAX),
            retirement: Lock::new(Rank::DomainControl, Retirement::default()),
        }
    }
}

/// The vCPUs, as APICs, that a message may be for.
#[inline]
fn apics(
    domain: &Domain<X86>,
    sender: Option<u32>,
    message: Message,
) -> impl Iterator<Item = (u32, Identity)> + Clone + '_ {
    // An id names a vCPU: the others need not be looked at.
    let candidates = match (message.target, sender) {
        (Target::Destination(destination), _) => {
            let ids = destination.candidates();
            ids.start().div_ceil(APIC_IDS_A_VCPU)..=ids.end() / APIC_IDS_A_VCPU
        }
        (Target::Myself, Some(own)) => own..=own,
        (Target::Myself | Target::Everyone | Target::EveryoneElse, _) => 0..=u32::MAX,
    };
    let vcpus = domain.vcpus.iter().skip(*candidates.start() as usize);
    let vcpus = vcpus.take((candidates.end().saturating_sub(*candidates.start()) as usize).saturating_add(1));
    vcpus.map(|vcpu| (vcpu.id.0, vcpu.machine.inbox.identity()))
}

/// The CPU on which the first vCPU that a message is for runs, or ran last.
pub fn cpu_near(domain: &Domain<X86>, message: Message) -> Option<CpuId> {
    let receiver = message.receivers(None, apics(domain, None, message), 0).next()?;
    domain.vcpu(VcpuId(receiver)).map(|vcpu| vcpu.machine.place().0)
}

/// Delivers an interrupt message within a domain. `sender` is the vCPU whose local APIC sent it.
#[inline]
pub fn deliver(domain: &Domain<X86>, sender: Option<u32>, message: Message) {
    let turn = match message.delivery {
        Delivery::LowestPriority => domain.machine.turn.fetch_add(1, Ordering::Relaxed),
        _ => 0,
    };
    for receiver in message.receivers(sender, apics(domain, sender, message), turn) {
        let Some(vcpu) = domain.vcpu(VcpuId(receiver)) else { continue };
        if vcpu.machine.inbox.accept(message.delivery, message.vector, message.level) == Posted::New {
            rouse(vcpu);
        }
    }
}

/// Makes a vCPU look at its inbox: it is woken if it sleeps, and leaves the guest if it is in there on another CPU.
pub fn rouse(vcpu: &Vcpu<X86>) {
    // INIT and SIPI are for a vCPU that does not run: the CPU that has it looks at them all the same.
    if vcpu.rouse() || vcpu.machine.inbox.startup_pending() {
        percpu::wake(vcpu.machine.place().1);
    }
    // Should it run already, it may be past its last look.
    vcpu.machine.call_out();
}

/// A walk for each purpose, shared by all hypercalls.
#[inline(never)]
fn translate_for<const WRITE: bool>(
    domain: &Domain<X86>,
    context: &mut Context,
    linear: u64,
) -> Result<GuestPhys, Errno> {
    let paging = context.engine.paging();
    let mut tables = GuestTables(context.cache.of(&domain.p2m));
    let purpose = Purpose { write: WRITE, ..Purpose::default() };
    guest_paging::translate(&paging, linear, purpose, &mut tables).map_err(|_| Errno::EFAULT)
}

impl Machine for X86 {
    type Format = Nested;
    type DomainState = X86Domain;
    type VcpuState = X86Vcpu;
    type Context = Context;

    #[inline]
    fn now(&self) -> Nanos {
        clock().now()
    }

    fn clock_scale(&self) -> ClockScale {
        clock().scale()
    }

    fn tsc_khz(&self) -> u32 {
        clock().khz
    }

    fn wallclock_at_boot(&self) -> (u64, u32) {
        *self.wallclock.lock()
    }

    fn set_wallclock(&self, seconds: u64, nanoseconds: u32, at: Nanos) {
        let total = u128::from(seconds) * 1_000_000_000 + u128::from(nanoseconds);
        let at_boot = total.saturating_sub(u128::from(at.0));
        *self.wallclock.lock() = ((at_boot / 1_000_000_000) as u64, (at_boot % 1_000_000_000) as u32);
    }

    #[inline]
    fn translate(
        &self,
        domain: &Domain<Self>,
        context: &mut Context,
        linear: u64,
        access: Access,
    ) -> Result<GuestPhys, Errno> {
        match access {
            Access::Read => translate_for::<false>(domain, context, linear),
            Access::Write => translate_for::<true>(domain, context, linear),
        }
    }

    #[inline]
    fn p2m_cache<'a>(&self, context: &'a mut Context) -> &'a mut P2mCache {
        &mut context.cache
    }

    #[inline]
    fn width(&self, context: &mut Context) -> Width {
        if context.engine.in_64_bit_mode() { Width::Bits64 } else { Width::Bits32 }
    }

    #[inline]
    fn upcall(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        let posted = match vcpu.upcall_vector() {
            0 => match domain.callback() {
                Callback::None => Posted::Nothing,
                Callback::Vector(_) if vcpu.machine.upcall_due.swap(true, Ordering::SeqCst) => Posted::Nothing,
                Callback::Vector(_) => Posted::New,
                Callback::Gsi(gsi) => {
                    // Whoever gets the interrupt is roused for it.
                    domain.machine.devices.pulse(domain, u32::from(gsi));
                    Posted::Nothing
                }
            },
            vector => vcpu.machine.inbox.post(vector, false),
        };
        // Where the interrupt was requested before and waits, it has been told, and the next entry sees the request. But
        // SCHEDOP_block waits for an event and not for an interrupt: a guest that keeps interrupts off may block with the request
        // of an earlier event still waiting, and the event must wake it. It sets the hold before it looks at
        // `evtchn_upcall_pending`, which was set before this look at the hold: one of the two sees the other.
        if posted == Posted::New || vcpu.holds() & hold::BLOCKED != 0 {
            rouse(vcpu);
        }
    }

    fn interrupt_waits(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>, context: &mut Context) -> bool {
        let X86Vcpu { inbox, upcall_due, lapic_due, .. } = &vcpu.machine;
        if inbox.nmi_pending() || inbox.startup_pending() {
            return true;
        }
        // The shadow of STI ends with the instruction that made the hypercall.
        context.engine.interrupts_enabled()
            && (lapic_due.load(Ordering::Acquire)
                || (upcall_due.load(Ordering::Acquire) && matches!(domain.callback(), Callback::Vector(_)))
                || context.vlapic.deliverable(inbox).is_some())
    }

    fn send_nmi(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        if vcpu.machine.inbox.accept(Delivery::Nmi, 0, false) == Posted::New {
            rouse(vcpu);
        }
    }

    fn wake(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        percpu::wake(vcpu.machine.place().1);
    }

    #[inline]
    fn timer_changed(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        percpu::timer_changed(vcpu);
    }

    fn yield_now(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {
        percpu::this().yield_now();
    }

    fn set_online(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>, online: bool) -> Result<(), Errno> {
        if !online {
            vcpu.set_hold(hold::OFFLINE);
            vcpu.machine.call_out();
        } else if vcpu.machine.inbox.waits_for_sipi() {
            // It has no registers to run with yet.
            return Err(Errno::EINVAL);
        } else if vcpu.clear_hold(hold::OFFLINE) {
            self.wake(domain, vcpu);
        }
        Ok(())
    }

    #[inline]
    fn flush(&self, domain: &Domain<Self>, flush: Flush) {
        if let Some(generation) = flush.spend() {
            percpu::shoot_down(domain.id);
            domain.p2m.reclaim(generation);
        }
    }

    fn domain_stopped(&self, domain: &Domain<Self>, reason: u32) {
        domain.vcpus.iter().for_each(|vcpu| vcpu.machine.call_out());
        crate::power::domain_stopped(self, domain, reason);
    }

    fn console_write(&self, _domain: &Domain<Self>, text: &[u8]) -> usize {
        (self.hooks.console_write)(text)
    }

    fn console_line(&self, domain: &Domain<Self>, line: core::fmt::Arguments<'_>) -> bool {
        (self.hooks.console_line)(format_args!("({}) {line}", domain.name))
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        (self.hooks.console_read)(into)
    }

    fn console_ring(&self, from: u32, into: &mut [u8]) -> (usize, u32) {
        (self.hooks.console_ring)(from, into)
    }

    fn device(&self, domain: &Domain<Self>, request: DeviceRequest) -> Result<(), Errno> {
        domain.machine.devices.request(self, domain, request)
    }

    fn physical_cpu(&self, cpu: u32) -> Option<PhysicalCpu> {
        let found = percpu::get(CpuId(cpu))?;
        let highest = percpu::count().saturating_sub(1);
        Some(PhysicalCpu {
            highest,
            online: true,
            apic_id: found.apic_id,
            acpi_id: found.acpi_id,
            place: percpu::place_of(found.id),
            idle: found.idle_time(self.now()),
        })
    }

    fn command_line(&self) -> &str {
        &self.command_line
    }

    fn hardware(&self) -> Hardware {
        crate::host::hardware()
    }

    fn debug_key(&self, key: u8) {
        crate::keys::press(key);
    }

    fn create(
        &self,
        memory: &'static Memory,
        id: DomainId,
        privilege: Privilege,
        config: &CreateDomain,
    ) -> Result<Domain<Self>, Errno> {
        let host = ENGINE.get().copied().ok_or(Errno::ENODEV)?;
        crate::domu::create(memory, host, id, privilege, config)
    }

    fn admit(&self, domain: &Arc<Domain<Self>>) -> Result<(), Errno> {
        percpu::adopt(domain, Terms::default()).map_err(|_| Errno::ENOMEM)
    }

    fn retire(&self, domain: &Domain<Self>) -> bool {
        percpu::retire(domain)
    }

    fn call_out(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        vcpu.machine.call_out();
    }

    fn system_policy(&self, index: u32) -> Result<CpuPolicy, Errno> {
        policies::machine().ok_or(Errno::EOPNOTSUPP)?.system.policy(index)
    }

    fn system_features(&self, index: u32) -> Result<Vec<u32>, Errno> {
        let features = policies::machine().ok_or(Errno::EOPNOTSUPP)?.system.features(index)?;
        Ok(mm::try_concat(&[&features.0])?)
    }

    fn policy(&self, domain: &Domain<Self>) -> Result<CpuPolicy, Errno> {
        Ok(domain.machine.policy.now().to_wire()?)
    }

    fn set_policy(&self, domain: &Domain<Self>, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> Result<(), Refused> {
        let system = system().ok_or(Errno::EOPNOTSUPP)?;
        policies::change(domain, system.memory, leaves, msrs)
    }

    fn tsc_mode(&self, domain: &Domain<Self>) -> u32 {
        domain.machine.policy.now().cpuid.tsc_mode()
    }

    fn set_tsc_mode(&self, domain: &Domain<Self>, mode: u32) -> Result<(), Errno> {
        policies::change_tsc_mode(domain, mode)
    }

    fn save(&self, context: &mut Context, domain: &Domain<Self>, record: Option<(u16, u16)>) -> Result<Vec<u8>, Errno> {
        let state = hvm_context::save(self, domain, context)?;
        match record {
            Some((kind, instance)) => state::record_of(&state, kind, instance),
            None => Ok(state),
        }
    }

    fn restore(&self, context: &mut Context, domain: &Domain<Self>, state: &[u8]) -> Result<(), Errno> {
        hvm_context::restore(self, domain, context, state)
    }

    fn cpu_of(&self, vcpu: &Vcpu<Self>) -> CpuId {
        vcpu.machine.place().0
    }

    fn scheduler(&self) -> sched::Kind {
        percpu::scheduler_kind()
    }

    fn ratelimit(&self) -> Option<Nanos> {
        percpu::ratelimit()
    }

    fn set_ratelimit(&self, limit: Nanos) {
        percpu::set_ratelimit(limit);
    }

    fn affinity(&self, vcpu: &Vcpu<Self>) -> Option<Affinity> {
        percpu::affinity(vcpu.machine.place().1)
    }

    fn set_affinity(&self, vcpu: &Vcpu<Self>, affinity: Affinity) -> Result<(), Errno> {
        percpu::set_affinity(vcpu.machine.place().1, affinity)
    }

    fn share_changed(&self, domain: &Domain<Self>) {
        let (weight, cap) = domain.control.share();
        percpu::set_share(domain, weight, cap);
    }
}
