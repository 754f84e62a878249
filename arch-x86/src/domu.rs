//! A domain beside Dom0 that is made at boot, without a toolstack: memory of its own, vCPUs, event channels and grants, but no devices.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use hypervisor::build::dom0_mem::Size;
use hypervisor::build::memory::Populated;
use hypervisor::build::plan::Share;
use hypervisor::build::pvh::VcpuStart;
use hypervisor::build::spec::Spec;
use hypervisor::control::{Control, Made};
use hypervisor::domain::{Domain, Privilege};
use hypervisor::grant::Limits;
use hypervisor::system::System;
use mm::{Memory, P2m};
use xen_abi::domctl::CreateDomain;
use xen_abi::errno::Errno;
use xen_abi::types::DomainId;
use xen_abi::x86::XEN_CPUID_TSC_MODE_DEFAULT;

use crate::acpi;
use crate::construct::{self, Beginning, Plan};
use crate::devices::Devices;
use crate::engine;
use crate::machine::X86;
use crate::startup::Ready;
use crate::vdev::ports::Ports;
use crate::vdev::vioapic::IoApics;

/// Event channels are numbered up to here, as libxl has it for domains that are not told otherwise.
const MOST_PORTS: u32 = 1023;

const PAGE: u64 = mm::PAGE_SIZE as u64;

/// What a domain takes beside its memory: tables for it, a 512th at the worst, and what the host notes of it and of each vCPU.
const OVERHEAD_SHIFT: u32 = 9;
const OVERHEAD: u64 = 512 << 10;
const OVERHEAD_A_VCPU: u64 = 64 << 10;

/// What the user wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a, 'm> {
    pub spec: Spec<'a>,
    pub kernel: &'m [u8],
    pub initrds: &'m [&'m [u8]],
}

/// A domain that nobody knows of yet.
pub struct Built<'a> {
    spec: Spec<'a>,
    domain: Arc<Domain<X86>>,
    start: VcpuStart,
}

// BOOT: domains that the toolstack makes are created empty.
/// Builds a domain with memory that is free, of which it may take `room` bytes. The error is one line for the user, without the domain's name;
/// nothing is left behind then.
pub fn build<'a>(
    system: &'static System<X86>,
    ready: &Ready,
    id: DomainId,
    wanted: &Wanted<'a, '_>,
    room: u64,
) -> Result<Built<'a>, String> {
    let spec = wanted.spec;
    let overhead = (spec.memory >> OVERHEAD_SHIFT) + OVERHEAD + u64::from(spec.vcpus) * OVERHEAD_A_VCPU;
    if spec.memory.saturating_add(overhead) > room {
        let left = Size(room.saturating_sub(overhead));
        return Err(format!("memory={}: Dom0 and others leave {left}; lower it, or dom0_mem", Size(spec.memory)));
    }
    let image = construct::unpack(wanted.kernel)?;
    let kernel = construct::parse(&image)?;
    let mut share = Share::of_size(spec.memory).map_err(|why| why.to_string())?;
    let tables = |base| acpi::guest::build(spec.vcpus, base);
    let placed = Beginning {
        kernel: &kernel,
        initrds: wanted.initrds,
        initrd_parts: &[],
        busy: &[],
        cmdline: spec.cmdline,
        flags: 0,
        acpi: &tables,
    }
    .place(&mut share)?;
    let p2m = P2m::new(ready.engine.format(), system.memory, id).map_err(|why| format!("its page tables: {why:?}"))?;
    // A guest that moves its pages far apart runs into this, before others lack memory.
    p2m.set_table_limit(overhead / PAGE);
    let mut memory = Populated::new(p2m, &share.ram)
        .map_err(|why| format!("memory={}: there is not as much free ({why:?}); lower it", Size(spec.memory)))?;
    let start = placed.write(&mut memory, &share)?;
    let p2m = memory.p2m().map_err(|why| format!("its memory: {why:?}"))?;
    p2m.keep_tables_for_code(share.given.bytes / PAGE)
        .map_err(|why| format!("tables for the pages that its code runs in: {why:?}"))?;

    let io_apics = IoApics::new(&[]).map_err(|why| format!("its I/O APICs: {why:?}"))?;
    let pages = share.given.bytes / PAGE;
    let plan = Plan {
        id,
        privilege: Privilege::Guest,
        name: String::from(spec.name),
        vcpus: spec.vcpus,
        tsc_mode: XEN_CPUID_TSC_MODE_DEFAULT,
        most_ports: MOST_PORTS,
        devices: Devices::new(io_apics, Ports::guest(), None, None),
        grants: Limits::default(),
        control: Control::new(Made::AT_BOOT, Default::default(), construct::memory_map(&share)),
        pages,
        max_pages: pages,
    };
    let root = memory.p2m().map_err(|why| format!("its memory: {why:?}"))?.root();
    let domain = construct::assemble(system.memory, ready.engine, plan, root, move || memory.into_p2m())
        .map_err(|why| why.to_string())?;
    Ok(Built { spec, domain: Arc::new(domain), start })
}

/// A domain that has nothing but its vCPUs yet, for the toolstack. ENOMEM, or EINVAL for limits that make no sense.
pub fn create(
    memory: &'static Memory,
    host: engine::Host,
    id: DomainId,
    privilege: Privilege,
    config: &CreateDomain,
) -> Result<Domain<X86>, Errno> {
    let p2m = P2m::new(host.format(), memory, id)?;
    let mut name = String::new();
    name.try_reserve_exact("d65535".len()).map_err(|_| Errno::ENOMEM)?;
    // There is room for it.
    let _ = write!(name, "d{}", id.0);
    let plan = Plan {
        id,
        privilege,
        name,
        vcpus: config.max_vcpus,
        tsc_mode: XEN_CPUID_TSC_MODE_DEFAULT,
        most_ports: config.max_evtchn_port,
        devices: Devices::new(IoApics::new(&[])?, Ports::guest(), None, None),
        grants: Limits::of(config),
        control: Control::new(config.into(), config.handle, Vec::new()),
        pages: 0,
        max_pages: 0,
    };
    let root = p2m.root();
    construct::assemble(memory, host, plan, root, move || Some(p2m)).map_err(|why| {
        log::warn!(target: "domain", "domain {} cannot be created: {why}", id.0);
        why.why
    })
}

// BOOT: as above.
impl Built<'_> {
    /// Lets it run. The error is one line for the user.
    pub fn start(self, system: &'static System<X86>) -> Result<(), String> {
        let Spec { name, memory, vcpus, terms, .. } = self.spec;
        construct::start(system, &self.domain, &self.start, terms).map_err(|why| format!("domain {name}: {why}"))?;
        log::info!(
            target: "domain",
            "{name} (domain {}) starts with {} of memory and {vcpus} vCPU{}",
            self.domain.id.0,
            Size(memory),
            if vcpus == 1 { "" } else { "s" },
        );
        Ok(())
    }
}
