//! From a machine with memory, heap, console and log to one that runs Dom0: the composition root.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use arch_x86::apic::io;
use arch_x86::apic::vectors::{self, Source};
use arch_x86::dom0::{self, Wanted};
use arch_x86::engine::Wishes;
use arch_x86::machine::{self, Hooks, X86};
use arch_x86::startup::{self, Physical, Platform, Ready};
use arch_x86::{decode, domu, host, rtc, run};
use arch_x86::{paging, percpu, smp};
use corten_boot::info::{BootInfo, Module};
use corten_boot::memory::{Region as BootRegion, RegionKind as BootKind};
use corten_boot::options::{Options, SerialOptions, VcpuCount};
use corten_boot::{console, logger};
use hypervisor::build::dom0_mem::Dom0Mem;
use hypervisor::build::initrd;
use hypervisor::build::map::{Region, RegionKind};
use hypervisor::build::spec::{self, Request};
use hypervisor::system::System;
use mm::HostPhys;
use xen_abi::types::{DomainId, VcpuId};

use crate::bring_up::Start;

/// Where other CPUs start: a page below 1 MiB that Dom0 must leave alone.
const TRAMPOLINE: core::ops::Range<u64> = 0x8000..0x9000;
/// Ports of a 16550.
const UART_PORTS: u16 = 8;

/// Runs on the boot processor's own stack, with the final page tables, descriptor tables and exception handlers.
pub fn start(start: Start) -> ! {
    match bring_up(&start) {
        Ok(system) => {
            if !start.options.console.keep_screen {
                console::give_up_screen();
            }
            run::forever(system)
        }
        Err(why) => {
            log::error!("{why}");
            log::error!("Corten cannot go on; halted");
            console::flush();
            host::halt_forever()
        }
    }
}

fn bring_up(start: &Start) -> Result<&'static System<X86>, String> {
    let (info, options, memory) = (start.info, &start.options, start.memory);
    let platform = Platform::read(&Physical(*memory.window()), info.rsdp)?;
    let wishes = Wishes { vpid: options.vpid.unwrap_or(true) };
    let ready = startup::boot_cpu(memory, &platform, start.tables, wishes, start.entered_at)?;
    logger::set_clock(|| machine::clock().now().0);
    decode::prepare();

    let hooks = Hooks {
        console_write: console::write_dom0,
        console_line: logger::guest_line,
        console_read: console::read_input,
        console_ring: console::read_history,
        console_poll: console::poll,
        console_flush: console::flush,
    };
    let since_boot = machine::clock().now().0 / 1_000_000_000;
    let wallclock = (rtc::seconds().saturating_sub(since_boot), 0);
    let system =
        machine::install(System::new(X86::new(hooks, info.cmdline.to_string(), options.no_reboot, wallclock), memory));

    machine::set_engine(ready.engine);
    console::set_debug_key_handler(arch_x86::keys::press);
    let most = options.max_cpus.unwrap_or(u32::MAX);
    let page = info.memory_map.iter().any(is_trampolines_ram).then_some(HostPhys(TRAMPOLINE.start));
    let places = smp::start(memory, &platform.madt, ready.engine, wishes, page, most)?;
    percpu::start_scheduler(options.scheduler, places).map_err(|_| "no memory for the scheduler")?;

    let serial = console::has_port().then_some(options.console.serial).flatten();
    let serial = serial.and_then(|index| options.serial.get(index));
    let console_gsi = serial.and_then(|serial| use_uart_interrupt(serial, &platform));

    let strings: Vec<&str> = info.modules.iter().map(|module| module.cmdline).collect();
    let modules = spec::sort(&strings, percpu::count(), |refusal| log::error!(target: "domain", "{refusal}"))
        .ok_or("no memory to sort the modules")?;
    let mut dom0 = wanted(info, &modules.dom0, options, serial, console_gsi)?;
    // Their memory is taken from the top, and their modules are free again, before Dom0 takes what it is to have.
    let others = build_others(system, &ready, info, &modules.domains, &mut dom0)?;
    let domain = dom0::build(system, &platform, &ready, dom0).map_err(|why| format!("Dom0: {why}"))?;
    debug_assert!(domain.vcpu(VcpuId(0)).is_some());
    for other in others {
        if let Err(why) = other.start(system) {
            log::error!(target: "domain", "{why}");
        }
    }
    let free = memory.free_frames() << 2;
    let ram: u64 = info.memory_map.iter().filter(|region| region.kind == BootKind::Ram).map(BootRegion::len).sum();
    let mut given = 0;
    system.for_each(|domain| given += domain.pages.load(Ordering::Relaxed) << 2);
    let own = (ram >> 10).saturating_sub(given + free);
    log::info!(
        target: "dom0",
        "starts with {} vCPU{}; {free} KiB are free, {own} KiB Corten's own",
        domain.vcpus.len(),
        if domain.vcpus.len() == 1 { "" } else { "s" },
    );
    smp::release();
    Ok(system)
}

fn is_trampolines_ram(region: &BootRegion) -> bool {
    region.kind == BootKind::Ram && region.start <= TRAMPOLINE.start && TRAMPOLINE.end <= region.end
}

/// The console's port interrupts instead of being polled. The GSI that is Corten's own then.
fn use_uart_interrupt(serial: &SerialOptions, platform: &Platform) -> Option<u32> {
    if serial.irq == 0 {
        return None;
    }
    let overriding = platform.madt.overrides.iter().find(|entry| entry.irq == serial.irq);
    let gsi = overriding.map_or(u32::from(serial.irq), |entry| entry.gsi);
    let place = vectors::allocate(&percpu::targets(), Source::Console)?;
    let wiring = io::Wiring { level: false, active_low: false };
    if !io::route(gsi, place, wiring, false) {
        vectors::free(place);
        return None;
    }
    console::use_interrupts();
    Some(gsi)
}

/// Builds the domains beside Dom0, each in what Dom0 and those before it leave. One that cannot be built is left out with a line.
fn build_others<'a>(
    system: &'static System<X86>,
    ready: &Ready,
    info: &'static BootInfo,
    requests: &[Request<'a>],
    dom0: &mut Wanted<'_>,
) -> Result<Vec<domu::Built<'a>>, String> {
    let mut built = Vec::new();
    if requests.is_empty() {
        return Ok(built);
    }
    let memory = system.memory;
    let room = dom0::leave_room(memory, dom0)?;
    let free_before = memory.free_frames();
    for (id, request) in (1..).map(DomainId).zip(requests) {
        let of = |index: &usize| info.modules.get(*index).map(bytes).unwrap_or_default();
        let initrds: Vec<&[u8]> = request.initrds.iter().map(of).collect();
        let wanted = domu::Wanted { spec: request.spec, kernel: of(&request.kernel), initrds: &initrds };
        let taken = free_before.saturating_sub(memory.free_frames()) * mm::PAGE_SIZE as u64;
        match domu::build(system, ready, id, &wanted, room.saturating_sub(taken)) {
            Ok(domain) => built.push(domain),
            Err(why) => log::error!(target: "domain", "domain {}: {why}; left out", request.spec.name),
        }
    }
    Ok(built)
}

fn wanted(
    info: &'static BootInfo,
    dom0: &[usize],
    options: &Options<'_>,
    serial: Option<&SerialOptions>,
    hidden_gsi: Option<u32>,
) -> Result<Wanted<'static>, String> {
    let mut own = dom0.iter().filter_map(|index| info.modules.get(*index));
    let Some(kernel) = own.next() else {
        return Err(String::from(
            "no Dom0 kernel: the boot loader passed no module; add `module2 /boot/vmlinuz …` to the menu entry",
        ));
    };
    let mut memory = Dom0Mem::default();
    if let Some(text) = options.dom0_mem {
        memory.parse(text).map_err(|why| format!("dom0_mem={text}: {why}"))?;
    }
    let cmdline = kernel.cmdline.trim_start();
    let cmdline = cmdline.strip_prefix("placeholder").map_or(cmdline, str::trim_start);
    Ok(Wanted {
        kernel: bytes(kernel),
        initrds: own.filter(|module| is_initrd(module)).map(|module| (module.range(), bytes(module))).collect(),
        cmdline,
        memory,
        vcpus: vcpus(options.dom0_max_vcpus),
        map: info.memory_map.iter().map(region).collect(),
        // The loader's own information has been read by now, and so has the root pointer in it.
        modules: info.modules.iter().map(Module::range).chain([info.loader.clone()]).collect(),
        trampoline: TRAMPOLINE,
        hidden_ports: serial.iter().map(|serial| serial.port..=serial.port + (UART_PORTS - 1)).collect(),
        hidden_gsi,
    })
}

/// Debian 12's menu names the early and the real initrd after one `module2`: the loader takes the first for the file and the second for its
/// command line.
fn is_initrd(module: &Module) -> bool {
    let second = module.cmdline.split_whitespace().find(|word| word.starts_with('/'));
    if let Some(second) = second
        && initrd::is_microcode(bytes(module))
    {
        log::warn!(target: "dom0", "the boot loader loaded only the first of two initrds; {second} is missing: give it a module2 line of its own");
    }
    module.len != 0
}

/// As many vCPUs as CPUs, within what the user says and what there can be.
fn vcpus(wanted: Option<VcpuCount>) -> u32 {
    let (cpus, most) = (percpu::count(), spec::MOST_VCPUS);
    let count = wanted.map_or(cpus, |count| count.of(cpus));
    if count > most {
        log::warn!(target: "dom0", "{count} vCPUs are wanted (dom0_max_vcpus, or one a CPU); a domain has at most {most}, and Dom0 gets these");
    }
    let count = count.min(most);
    if count > cpus {
        log::info!(target: "dom0", "dom0_max_vcpus={count} is more than the {cpus} CPUs that run: they share these");
    }
    count
}

fn region(region: &BootRegion) -> Region {
    Region::new(region.start..region.end, RegionKind::from_e820(region.kind.to_e820()))
}

/// What is in a module.
fn bytes(module: &Module) -> &'static [u8] {
    let at = paging::DIRECT_MAP + module.start.0;
    // SAFETY: the loader put the module into RAM, which the direct map shows; nothing is written there before Dom0's memory is handed
    // over, and what refers to it is gone then (`dom0::build`).
    unsafe { core::slice::from_raw_parts(at as *const u8, module.len as usize) }
}
