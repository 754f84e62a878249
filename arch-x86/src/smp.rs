//! The other CPUs: started one after the other by INIT and SIPI, checked, and kept waiting until there is something to run.
//!
//! BOOT: they are started before anyone runs.

mod trampoline;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use mm::addr::HostPhys;
use mm::{Memory, Mfn};
use sched::{CpuId, CpuPlace, CpuSet};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::acpi::{Cpu, Madt};
use crate::apic::local;
use crate::cpu::control::Protections;
use crate::cpu::gdt::CpuTables;
use crate::cpu::idt;
use crate::cpu::model;
use crate::cpu::stack::Stacks;
use crate::cpu::topology::{self, Features};
use crate::engine::{CpuEngine, Host, HostState, Wishes};
use crate::percpu::{self, PerCpu};
use crate::time::rdtsc;
use crate::{host, machine, paging, run};
use trampoline::{Onward, Trampoline};

/// What all CPUs start with, and are compared with.
#[derive(Clone, Copy)]
struct Common {
    memory: &'static Memory,
    /// The root of the host's page tables.
    root: Mfn,
    engine: Host,
    wishes: Wishes,
    /// The boot CPU's.
    features: Features,
}

/// What a CPU is started with, and what it answers.
struct Starting {
    common: Common,
    cpu: &'static PerCpu,
    stacks: Stacks,
    tables: SpinMutex<CpuTables>,
    stage: AtomicU32,
    place: Once<CpuPlace>,
    /// Why it cannot take part.
    why: Once<String>,
    /// Its TSC when it was asked last.
    tsc: AtomicU64,
}

/// How far a CPU is.
mod stage {
    /// Nothing has been heard of it.
    pub const SILENT: u32 = 0;
    pub const ALIVE: u32 = 1;
    /// It waits to be asked for its TSC.
    pub const READY: u32 = 2;
    pub const ASKED: u32 = 3;
    pub const ANSWERED: u32 = 4;
    /// It takes part.
    pub const ACCEPTED: u32 = 5;
    /// It does not, and has stopped.
    pub const REFUSED: u32 = 6;
}

/// There is something to run.
static GO: AtomicBool = AtomicBool::new(false);
/// The CPU that ends the machine: all others are to stop for good.
static LAST: AtomicU32 = AtomicU32::new(NOT_YET);
const NOT_YET: u32 = u32::MAX;

/// How long a CPU may take from one stage to the next.
const PATIENCE_US: u64 = 1_000_000;
/// After which the second SIPI is sent, for CPUs that miss the first (SDM Vol. 3, 9.4.4.1, asks for 200 μs).
const SECOND_SIPI_US: u64 = 10_000;
/// How often TSCs are compared.
const TSC_ROUNDS: u32 = 5;

fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Where this CPU is.
fn own_place() -> CpuPlace {
    topology::place(&cpuid)
}

/// Starts the other CPUs that the MADT names in `page`, which is RAM below 1 MiB, so that there are at most `most` with this one. What cannot
/// take part is left out, with a line that says why. The places of all that there are then, by number.
pub fn start(
    memory: &'static Memory,
    madt: &Madt,
    engine: Host,
    wishes: Wishes,
    page: Option<HostPhys>,
    most: u32,
) -> Result<Vec<CpuPlace>, String> {
    let mut places = Vec::new();
    places.try_reserve(CpuSet::MAX).map_err(|_| "no memory for the CPUs' places")?;
    places.push(own_place());
    let others = chosen(&madt.cpus, local::id(), most);
    if others.is_empty() {
        return Ok(places);
    }
    let placed = page.ok_or("firmware keeps the page below 1 MiB that they start in");
    let trampoline = match placed.and_then(|page| Trampoline::place(memory, page)) {
        Ok(trampoline) => trampoline,
        Err(why) => {
            log::error!(target: "smp", "{} CPUs stay off: {why}", others.len());
            return Ok(places);
        }
    };
    let root = paging::root().ok_or("there are no page tables")?;
    let common = Common { memory, root, engine, wishes, features: Features::of(&cpuid) };
    for other in others {
        let id = CpuId(percpu::count());
        match start_one(common, &trampoline, id, other) {
            Ok(place) => places.push(place),
            Err(why) => {
                log::error!(target: "smp", "the CPU with APIC id {} (ACPI's {}) is left out: {why}", other.apic_id, other.uid)
            }
        }
    }
    log::info!(target: "smp", "{} CPUs run", percpu::count());
    Ok(places)
}

/// Which CPUs to start beside the one that runs.
fn chosen(cpus: &[Cpu], own: u32, most: u32) -> Vec<&Cpu> {
    let enabled = cpus.iter().filter(|cpu| cpu.enabled && cpu.apic_id != own);
    let within = (most.max(1) as usize).min(CpuSet::MAX);
    let wanted = within.saturating_sub(1);
    let count = enabled.clone().count();
    if count > wanted && wanted + 1 == CpuSet::MAX {
        log::warn!(target: "smp", "{} of {} CPUs are left out: Corten uses {}", count - wanted, count + 1, CpuSet::MAX);
    } else if count > wanted {
        log::info!(target: "smp", "{} of {} CPUs are left out (maxcpus={most})", count - wanted, count + 1);
    }
    enabled.take(wanted).collect()
}

fn start_one(common: Common, trampoline: &Trampoline, id: CpuId, which: &Cpu) -> Result<CpuPlace, String> {
    if which.apic_id > local::highest_id() {
        return Err(String::from("its id is beyond what a local APIC without x2APIC reaches"));
    }
    let cpu = PerCpu::allocate(id, which.apic_id, which.uid).map_err(|_| "no memory for what it keeps")?;
    let starting: &'static Starting = Box::leak(Box::new(Starting {
        common,
        cpu,
        stacks: Stacks::allocate().map_err(|why| format!("no stacks: {why}"))?,
        tables: SpinMutex::new(CpuTables::new()),
        stage: AtomicU32::new(stage::SILENT),
        place: Once::new(),
        why: Once::new(),
        tsc: AtomicU64::new(0),
    }));
    trampoline.prepare(Onward {
        stack: starting.stacks.main,
        argument: core::ptr::from_ref(starting) as u64,
        entry: entered as *const () as u64,
    });
    local::send_init(which.apic_id);
    local::send_startup(which.apic_id, trampoline.vector());
    if !starting.comes_beyond(stage::SILENT, SECOND_SIPI_US) {
        local::send_startup(which.apic_id, trampoline.vector());
        if !starting.comes_beyond(stage::SILENT, PATIENCE_US) {
            trampoline.withdraw();
            local::send_init(which.apic_id);
            return Err(String::from("it does not start"));
        }
    }
    if !starting.comes_beyond(stage::ALIVE, PATIENCE_US) {
        return Err(String::from("it hangs while it is set up"));
    }
    if let Some(why) = starting.why.get() {
        return Err(why.clone());
    }
    starting.compare_clocks()?;
    starting.stage.store(stage::ACCEPTED, Ordering::Release);
    let patience = Patience::new(PATIENCE_US);
    while percpu::count() <= id.0 {
        if patience.is_over() {
            return Err(String::from("it hangs before its first work"));
        }
    }
    Ok(starting.place.get().copied().unwrap_or_default())
}

/// A wait that ends.
struct Patience(u64);

impl Patience {
    fn new(microseconds: u64) -> Patience {
        Patience(rdtsc() + microseconds * u64::from(machine::clock().khz) / 1000)
    }

    fn is_over(&self) -> bool {
        core::hint::spin_loop();
        rdtsc() >= self.0
    }
}

impl Starting {
    /// Waits until the CPU is past a stage; false if that takes too long.
    fn comes_beyond(&self, stage: u32, microseconds: u64) -> bool {
        let patience = Patience::new(microseconds);
        while self.stage.load(Ordering::Acquire) <= stage {
            if patience.is_over() {
                return false;
            }
        }
        true
    }

    /// Its TSC must read, between two looks at this CPU's, something in between: time is one and the same on all CPUs.
    fn compare_clocks(&self) -> Result<(), String> {
        for _ in 0..TSC_ROUNDS {
            let before = rdtsc();
            self.stage.store(stage::ASKED, Ordering::Release);
            if !self.comes_beyond(stage::ASKED, PATIENCE_US) {
                return Err(String::from("it hangs when it is asked for the time"));
            }
            let after = rdtsc();
            let there = self.tsc.load(Ordering::Relaxed);
            if let Err(ticks) = within(there, before, after) {
                self.stage.store(stage::REFUSED, Ordering::Release);
                return Err(format!("its TSC is {ticks} ticks away from the boot CPU's"));
            }
        }
        Ok(())
    }
}

/// By how much at least a reading is outside of the two others.
fn within(reading: u64, before: u64, after: u64) -> Result<(), i64> {
    let early = before.wrapping_sub(reading) as i64;
    let late = reading.wrapping_sub(after) as i64;
    if early > 0 {
        Err(-early)
    } else if late > 0 {
        Err(late)
    } else {
        Ok(())
    }
}

/// Entered from the trampoline, on the CPU's own stack.
extern "C" fn entered(starting: &'static Starting) -> ! {
    // SAFETY: the tables map the same as those that the CPU came with, but for the trampoline's page.
    unsafe { asm!("mov cr3, {}", in(reg) starting.common.root.phys().0, options(nostack, preserves_flags)) };
    // SAFETY: this CPU's first and only call; nothing is mapped with the bits that change their meaning before.
    unsafe { Protections::detect().enable() };
    let tables = SpinMutexGuard::leak(starting.tables.lock()).load(starting.stacks.exceptions);
    idt::load();
    starting.cpu.install();
    starting.stage.store(stage::ALIVE, Ordering::Release);
    match set_up(starting) {
        Ok(own) => wait_for_work(starting, tables, own),
        Err(why) => {
            starting.why.call_once(|| why);
            starting.stage.store(stage::REFUSED, Ordering::Release);
            host::halt_forever()
        }
    }
}

fn set_up(starting: &Starting) -> Result<CpuEngine, String> {
    let Common { memory, engine, wishes, features, .. } = &starting.common;
    if let Some(difference) = Features::of(&cpuid).compare(features) {
        return Err(format!("its features are not the boot CPU's: {difference}"));
    }
    starting.place.call_once(own_place);
    host::enable_xsave();
    model::work_around();
    local::init_this();
    if local::id() != starting.cpu.apic_id {
        return Err(format!("its APIC id is {} and not what the MADT says", local::id()));
    }
    engine.is_the_same_here(*wishes)?;
    engine.enable(memory)
}

fn wait_for_work(starting: &'static Starting, tables: &'static CpuTables, own: CpuEngine) -> ! {
    starting.stage.store(stage::READY, Ordering::Release);
    loop {
        match starting.stage.load(Ordering::Acquire) {
            stage::ASKED => {
                starting.tsc.store(rdtsc(), Ordering::Relaxed);
                starting.stage.store(stage::ANSWERED, Ordering::Release);
            }
            stage::ACCEPTED => break,
            stage::REFUSED => host::halt_forever(),
            _ => core::hint::spin_loop(),
        }
    }
    starting.cpu.enlist(HostState::here(tables, own));
    while !GO.load(Ordering::Acquire) {
        host::wait_for_interrupt();
    }
    match machine::system() {
        Some(system) => run::forever(system),
        None => host::halt_forever(),
    }
}

/// Lets the other CPUs run guests.
pub fn release() {
    GO.store(true, Ordering::Release);
    percpu::all().for_each(PerCpu::kick);
}

/// Stops all other CPUs for good, or this one if another is about that already. For the end of the machine: takes no lock, and is right wherever
/// the others are.
pub fn stop_others() {
    if percpu::count() <= 1 {
        return;
    }
    let here = percpu::this().id;
    match LAST.compare_exchange(NOT_YET, here.0, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => percpu::all().filter(|cpu| cpu.id != here).for_each(|cpu| local::send_nmi(cpu.apic_id)),
        Err(last) if last == here.0 => {}
        Err(_) => host::halt_forever(),
    }
}

/// Whether an NMI is the one that stops this CPU.
pub fn is_stopping() -> bool {
    let last = LAST.load(Ordering::SeqCst);
    last != NOT_YET && last != percpu::this().id.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(apic_id: u32) -> Cpu {
        Cpu { uid: apic_id, apic_id, enabled: apic_id % 3 != 2, online_capable: false }
    }

    #[test]
    fn enabled_cpus_are_started_and_no_more_than_wanted() {
        let cpus: Vec<Cpu> = (0..1000).map(cpu).collect();
        let ids = |most| chosen(&cpus, 3, most).iter().map(|cpu| cpu.apic_id).collect::<Vec<_>>();
        assert_eq!(ids(5), [0, 1, 4, 6]);
        assert_eq!(ids(1), []);
        assert_eq!(ids(0), [], "the one that runs is there");
        assert_eq!(ids(u32::MAX).len(), CpuSet::MAX - 1);
    }

    #[test]
    fn a_clock_outside_of_the_interval_is_told_by_how_much() {
        assert_eq!(within(5, 5, 5), Ok(()));
        assert_eq!(within(7, 5, 10), Ok(()));
        assert_eq!(within(3, 5, 10), Err(-2));
        assert_eq!(within(14, 5, 10), Err(4));
    }
}
