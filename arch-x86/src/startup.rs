//! From a CPU that runs Rust to a machine that can run guests: engine, interrupt controllers, clock.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::x86_64::__cpuid_count;
use core::ops::Range;

use mm::addr::HostPhys;
use mm::{Memory, Window};
use sched::CpuId;

use crate::acpi::{
    self, AddressSpace, Fadt, Hpet, Madt, Mcfg, PhysRead, Problem, RootPointer, Signature, SleepType, Tables,
};
use crate::apic::{io, local};
use crate::cpu::gdt::CpuTables;
use crate::cpu::model::{self, Model};
use crate::engine::{Host, HostState, Wishes};
use crate::percpu::PerCpu;
use crate::policy::Vendor;
use crate::port::{inb, inl, outb};
use crate::time::calibrate::{Counters, Moment, calibrate};
use crate::time::{self, Clock};
use crate::{cpu, fpu, host, machine, paging, power};

/// Physical memory as the ACPI tables are read from it.
pub struct Physical(pub Window);

impl PhysRead for Physical {
    fn read(&self, at: HostPhys, bytes: &mut [u8]) -> Result<(), acpi::BadAddress> {
        self.0.copy_from(at, bytes)
    }
}

/// What ACPI says of the platform.
pub struct Platform {
    pub tables: Tables,
    pub madt: Madt,
    pub fadt: Option<Fadt>,
    pub mcfg: Mcfg,
    pub hpet: Option<Hpet>,
    /// Registers of IOMMUs, which are Corten's even while it does not use them.
    pub iommus: Vec<Range<u64>>,
    /// The sleep types that mean S5; `None` if firmware does not tell them in a way that is understood.
    pub s5: Option<SleepType>,
}

impl Platform {
    // BOOT: it is done once.
    /// Reads the tables that `rsdp` leads to (or those in low memory, where BIOSes put them). An error is one line for the user.
    pub fn read(memory: &impl PhysRead, rsdp: Option<HostPhys>) -> Result<Platform, String> {
        let told = |problem: Problem| format!("ACPI: {problem}");
        let root = match rsdp {
            Some(at) => RootPointer::read(memory, at).or_else(|_| RootPointer::search(memory)),
            None => RootPointer::search(memory),
        };
        let mut tables = Tables::find(memory, root.map_err(told)?).map_err(told)?;
        let mut problems = core::mem::take(&mut tables.problems);
        let madt =
            tables.read(memory, Signature::MADT).and_then(|table| Madt::parse(&table, &mut problems)).map_err(told)?;
        let fadt = tables.read(memory, Signature::FADT).and_then(|table| Fadt::parse(&table));
        let fadt = fadt.map_err(|problem| problems.add(problem)).ok();
        let mcfg = tables.read(memory, Signature::MCFG).map(|table| Mcfg::parse(&table, &mut problems));
        if mcfg.is_err() {
            log::info!(target: "acpi", "no MCFG: PCI functions have 256 bytes of configuration space, by ports");
        }
        let hpet = tables.read(memory, Signature::HPET).and_then(|table| Hpet::parse(&table)).ok();
        let mut iommus = Vec::new();
        for signature in [Signature::DMAR, Signature::IVRS] {
            let Ok(table) = tables.read(memory, signature) else { continue };
            let found = acpi::iommu::registers(&table, &mut problems);
            log::info!(target: "acpi", "{signature}: {} IOMMU{}, hidden from Dom0", found.len(), if found.len() == 1 { "" } else { "s" });
            iommus.extend(found);
        }
        let s5 = fadt.as_ref().and_then(|fadt| SleepType::soft_off(memory, &tables, fadt, &mut problems));
        for problem in problems.iter() {
            log::warn!(target: "acpi", "{problem}");
        }
        match s5 {
            Some(SleepType { pm1a, pm1b }) => {
                log::debug!(target: "acpi", "S5 is sleep type {pm1a} (PM1a), {pm1b} (PM1b)")
            }
            None => {
                log::warn!(target: "acpi", "no constant \\_S5_ in DSDT and SSDTs: Corten may not be able to switch the machine off")
            }
        }
        Ok(Platform { tables, madt, fadt, mcfg: mcfg.unwrap_or_default(), hpet, iommus, s5 })
    }

    /// The registers that switch the machine off and reset it.
    pub fn power_ports(&self) -> power::Ports {
        let Some(fadt) = &self.fadt else { return power::Ports::default() };
        let port = |register: Option<crate::acpi::GenericAddress>| register.and_then(|address| address.port());
        power::Ports {
            pm1a: port(fadt.pm1a_control).unwrap_or(0),
            pm1b: port(fadt.pm1b_control).unwrap_or(0),
            s5: self.s5,
            facs: fadt.facs,
            reset: port(fadt.reset).map(|port| (port, fadt.reset_value)),
        }
    }
}

/// One I/O APIC as it was found.
#[derive(Clone, Copy, Debug)]
pub struct FoundIoApic {
    pub address: u64,
    pub id: u8,
    pub version: u8,
    pub gsi_base: u32,
    pub pins: u32,
}

/// The boot CPU, ready to run guests.
pub struct Ready {
    pub engine: Host,
    pub io_apics: Vec<FoundIoApic>,
}

/// Brings the boot CPU and the interrupt controllers up. `tables` are the CPU's descriptor tables, `origin` the TSC at system time zero. Any error is one
/// line that says what is missing.
pub fn boot_cpu(
    memory: &'static Memory,
    platform: &Platform,
    tables: &'static CpuTables,
    wishes: Wishes,
    origin: u64,
) -> Result<Ready, String> {
    let engine = Host::probe(wishes)?;
    note_features();
    power::set_ports(platform.power_ports());
    mask_pics();
    init_local_apic()?;
    set_clock(platform, origin)?;
    let io_apics = init_io_apics(platform)?;
    let own = engine.enable(memory)?;
    let (apic_id, named) = (local::id(), &platform.madt.cpus);
    let acpi_id = named.iter().find(|cpu| cpu.apic_id == apic_id).map_or(0, |cpu| cpu.uid);
    let cpu = PerCpu::allocate(CpuId(0), apic_id, acpi_id).map_err(|_| "no memory for what a CPU keeps")?;
    cpu.install();
    mm::lock::set_held_ranks(crate::percpu::held_ranks);
    cpu.enlist(HostState::here(tables, own));
    cpu::idt::set_interrupt_handler(crate::run::on_interrupt);
    engine.announce();
    Ok(Ready { engine, io_apics })
}

fn note_features() {
    let cpuid = raw_cpuid::CpuId::new();
    let features = cpuid.get_feature_info();
    mm::lock::set_preempted(model::is_below_another());
    let has_xsave = features.is_some_and(|has| has.has_xsave());
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    host::set_features(extended.is_some_and(|has| has.has_rdtscp()), has_xsave);
    host::enable_xsave();
    model::work_around();
    let capacity = cpuid.get_processor_capacity_feature_info();
    let restores_pointers = capacity.is_some_and(|has| has.has_restore_fp_error_ptrs());
    fpu::set_keeps_pointers(Model::here().vendor == Vendor::Amd && !restores_pointers);
    if has_xsave {
        let states = __cpuid_count(0xd, 0);
        fpu::set_switched_states((u64::from(states.edx) << 32 | u64::from(states.eax)) & fpu::SWITCHED);
    }
}

/// The 8259s deliver nothing, and what they deliver spuriously all the same goes to vectors of no consequence.
fn mask_pics() {
    for (command, data, vector, wiring) in [(0x20, 0x21, 0x20, 4), (0xa0, 0xa1, 0x28, 2)] {
        outb(command, 0x11);
        outb(data, vector);
        outb(data, wiring);
        outb(data, 1);
        outb(data, 0xff);
    }
}

// BOOT: it is done once.
fn init_local_apic() -> Result<(), String> {
    let has = raw_cpuid::CpuId::new().get_feature_info();
    let features = local::Features {
        x2apic: has.as_ref().is_some_and(|has| has.has_x2apic()),
        tsc_deadline: has.is_some_and(|has| has.has_tsc_deadline()),
    };
    let page = if features.x2apic {
        core::ptr::null_mut()
    } else {
        paging::map_mmio(local::base(), 4096)
            .map_err(|why| format!("the local APIC cannot be mapped ({why:?})"))?
            .cast()
    };
    local::init(features, page);
    log::info!(target: "apic", "local APIC {}: {}", local::id(), if features.x2apic { "x2APIC" } else { "xAPIC" });
    Ok(())
}

/// This machine's counters, for [`calibrate`].
struct MachineCounters<'a> {
    platform: &'a Platform,
    /// Mapped when it is asked for; null where there is none.
    hpet: Option<*mut u32>,
}

impl MachineCounters<'_> {
    /// The place of one of the HPET's registers, by its offset.
    fn hpet(&mut self, register: usize) -> Option<*mut u32> {
        const SIZE: usize = 0x400;
        let hpet = self.platform.hpet.as_ref();
        let base = *self.hpet.get_or_insert_with(|| {
            let at =
                hpet.map(|hpet| hpet.registers).filter(|at| at.space == AddressSpace::Memory && at.address % 8 == 0);
            let mapped = at.and_then(|at| paging::map_mmio(HostPhys(at.address), SIZE as u64).ok());
            mapped.map_or(core::ptr::null_mut(), <*mut u8>::cast)
        });
        (!base.is_null() && register < SIZE).then(|| base.wrapping_byte_add(register))
    }
}

impl Counters for MachineCounters<'_> {
    fn tsc(&mut self) -> u64 {
        time::rdtsc()
    }

    fn read_port(&mut self, port: u16) -> u8 {
        inb(port)
    }

    fn write_port(&mut self, port: u16, value: u8) {
        outb(port, value);
    }

    fn read_hpet(&mut self, register: usize) -> u32 {
        // SAFETY: the register lies within the HPET's, which are mapped for good.
        self.hpet(register).map_or(u32::MAX, |at| unsafe { at.read_volatile() })
    }

    fn write_hpet(&mut self, register: usize, value: u32) {
        if let Some(at) = self.hpet(register) {
            // SAFETY: as for `read_hpet`; its timers touch no memory.
            unsafe { at.write_volatile(value) };
        }
    }

    fn read_pm_timer(&mut self) -> u32 {
        let timer = self.platform.fadt.as_ref().and_then(|fadt| fadt.pm_timer?.port());
        timer.map_or(u32::MAX, inl)
    }

    fn cpuid(&mut self, leaf: u32) -> [u32; 3] {
        // A leaf beyond the last answers as the last does (SDM Vol. 2, CPUID).
        if leaf > __cpuid_count(0, 0).eax {
            return [0; 3];
        }
        let answer = __cpuid_count(leaf, 0);
        [answer.eax, answer.ebx, answer.ecx]
    }
}

fn set_clock(platform: &Platform, origin: u64) -> Result<(), String> {
    let mut counts = 0;
    let mut ticks = 0;
    let mut counters = MachineCounters { platform, hpet: None };
    let (khz, source) = calibrate(&mut counters, |moment| match moment {
        Moment::Start => {
            ticks = time::rdtsc();
            local::start_count();
        }
        Moment::End => {
            counts = local::elapsed_count();
            ticks = time::rdtsc().wrapping_sub(ticks);
        }
    })
    .ok_or(
        "the TSC's rate cannot be found: neither PIT, HPET nor ACPI PM timer counts, and CPUID does not tell it; enable the HPET in the firmware's setup",
    )?;
    local::set_rate(counts, ticks);
    let deadline = local::try_deadline();
    log::info!(target: "apic", "timer: {}", if deadline { "TSC deadline" } else { "counting" });
    machine::set_clock(Clock::new(origin, khz));
    log::info!(target: "time", "TSC at {}.{:03} MHz, {source}", khz / 1000, khz % 1000);
    Ok(())
}

// BOOT: it is done once.
fn init_io_apics(platform: &Platform) -> Result<Vec<FoundIoApic>, String> {
    let mut found = Vec::new();
    for io_apic in &platform.madt.io_apics {
        let at = HostPhys(u64::from(io_apic.address));
        let registers =
            paging::map_mmio(at, 4096).map_err(|why| format!("I/O APIC at {:#x}: cannot be mapped ({why:?})", at.0))?;
        // SAFETY: the registers were just mapped, for good.
        match unsafe { io::add(registers.cast(), io_apic.id, io_apic.gsi_base) } {
            Ok((version, gsis)) => {
                log::info!(target: "apic", "I/O APIC {} at {:#x}: version {version:#x}, GSIs {}-{}", io_apic.id, at.0, gsis.start, gsis.end - 1);
                let pins = gsis.end - gsis.start;
                found.push(FoundIoApic { address: at.0, id: io_apic.id, version, gsi_base: gsis.start, pins });
            }
            Err(why) => {
                log::warn!(target: "apic", "I/O APIC {} at {:#x}: {why}; it is not used, and devices behind it get no interrupts", io_apic.id, at.0);
            }
        }
    }
    Ok(found)
}
