//! A machine that is none, for tests of what a hypercall does: domains with a little memory, linear addresses that are physical
//! ones, and a TLB that drops nothing until it is flushed.

mod audit;
mod running;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use mm::addr::{Gfn, GuestPhys, PAGE_SIZE};
use mm::fake::{self, CachingTlb, Format};
use mm::table::{MemoryType, PageKind};
use mm::{Flush, Memory, Mfn, P2m, P2mCache, SharedPage};
use sched::{Affinity, CpuId, Nanos};
use xen_abi::domctl::CreateDomain;
use xen_abi::errno::Errno;
use xen_abi::memory::{E820_RAM, E820_RESERVED, E820Entry};
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{CpuidLeaf, MsrEntry};

pub use audit::{all_frames, check_address_space, destroy};
pub use running::Running;

use crate::control::{Control, Made};
use crate::cpu_policy::{CpuPolicy, Refused};
use crate::domain::{Domain, Parts, Privilege};
use crate::event::EventChannels;
use crate::grant::{GrantTable, Limits};
use crate::machine::{Access, ClockScale, DeviceRequest, Hardware, Machine, PhysicalCpu, Width};
use crate::system::System;
use crate::vcpu::{Vcpu, hold};

/// Where a domain's memory begins, in frames.
pub const RAM: u64 = 0x100;

/// The frame of a device, which every domain has.
pub const DEVICE: u64 = 0xb8;

/// The address of page `index` of a domain's memory.
pub const fn page(index: u64) -> u64 {
    (RAM + index) * PAGE_SIZE as u64
}

/// What the machine was told to do with a domain's vCPUs, and what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Upcall(VcpuId),
    Wake(VcpuId),
    Nmi(VcpuId),
    Timer(VcpuId),
    Yield,
    Online(VcpuId, bool),
    Stopped(DomainId, u32),
    Device(DeviceRequest),
    DebugKey(u8),
    Admitted(DomainId),
    Retired(DomainId),
    CallOut(VcpuId),
    Share(DomainId),
}

/// The machine; it counts flushes and remembers what it was told.
pub struct Fake {
    pub flushes: AtomicUsize,
    /// System time in nanoseconds.
    pub now: AtomicU64,
    /// What passes with every look at the clock.
    pub step: AtomicU64,
    /// An interrupt waits.
    pub interrupt: AtomicBool,
    /// Changes of a timer are not worth a word.
    pub told: Mutex<Vec<Told>>,
    pub written: Mutex<Vec<u8>>,
    /// Bytes that Dom0's console takes at once.
    pub takes: AtomicUsize,
    /// Of other domains' consoles.
    pub lines: Mutex<Vec<String>>,
    /// For their lines.
    pub has_room: AtomicBool,
    pub input: Mutex<VecDeque<u8>>,
    pub ring: Mutex<Vec<u8>>,
    pub wallclock: Mutex<(u64, u32)>,
    pub ratelimit: Mutex<Nanos>,
    /// Of all vCPUs.
    pub affinity: Mutex<Affinity>,
    pub policy: Mutex<CpuPolicy>,
    pub tsc_mode: AtomicU32,
    pub state: Mutex<Vec<u8>>,
    /// The record of the registers of every domain's vCPU 1, with its descriptor.
    pub cpu_record: Mutex<Vec<u8>>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            flushes: AtomicUsize::new(0),
            now: AtomicU64::new(1_000_000_000),
            step: AtomicU64::new(0),
            interrupt: AtomicBool::new(false),
            told: Mutex::default(),
            written: Mutex::default(),
            takes: AtomicUsize::new(usize::MAX),
            lines: Mutex::default(),
            has_room: AtomicBool::new(true),
            input: Mutex::default(),
            ring: Mutex::default(),
            wallclock: Mutex::default(),
            ratelimit: Mutex::new(Nanos::from_micros(1000)),
            affinity: Mutex::new(Affinity::ANY),
            policy: Mutex::default(),
            tsc_mode: AtomicU32::default(),
            state: Mutex::new(vec![7; 40]),
            cpu_record: Mutex::default(),
        }
    }
}

impl Fake {
    fn tell(&self, what: Told) {
        self.told.lock().unwrap().push(what);
    }

    /// What it was told since this was last asked.
    pub fn told(&self) -> Vec<Told> {
        core::mem::take(&mut self.told.lock().unwrap())
    }
}

/// What a CPU holds of a running vCPU.
#[derive(Default)]
pub struct Context {
    cache: P2mCache,
    pub width: Width,
}

impl Machine for Fake {
    type Format = Format;
    type DomainState = Mutex<CachingTlb>;
    type VcpuState = ();
    type Context = Context;

    fn now(&self) -> Nanos {
        Nanos(self.now.fetch_add(self.step.load(Ordering::Relaxed), Ordering::Relaxed))
    }

    fn clock_scale(&self) -> ClockScale {
        ClockScale { tsc_to_system_mul: 0x8000_0000, tsc_shift: 1, stable: true, ..ClockScale::default() }
    }

    fn tsc_khz(&self) -> u32 {
        1_000_000
    }

    fn wallclock_at_boot(&self) -> (u64, u32) {
        *self.wallclock.lock().unwrap()
    }

    fn set_wallclock(&self, seconds: u64, nanoseconds: u32, _at: Nanos) {
        *self.wallclock.lock().unwrap() = (seconds, nanoseconds);
    }

    fn translate(
        &self,
        domain: &Domain<Self>,
        _context: &mut Context,
        linear: u64,
        _access: Access,
    ) -> Result<GuestPhys, Errno> {
        let physical = GuestPhys(linear);
        domain.machine.lock().unwrap().access(&domain.p2m, physical.gfn()).map(|_| physical).ok_or(Errno::EFAULT)
    }

    fn p2m_cache<'a>(&self, context: &'a mut Context) -> &'a mut P2mCache {
        &mut context.cache
    }

    fn width(&self, context: &mut Context) -> Width {
        context.width
    }

    fn upcall(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        self.tell(Told::Upcall(vcpu.id));
    }

    fn interrupt_waits(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>, _context: &mut Context) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    fn send_nmi(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        self.tell(Told::Nmi(vcpu.id));
    }

    fn wake(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        self.tell(Told::Wake(vcpu.id));
    }

    fn timer_changed(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        self.tell(Told::Timer(vcpu.id));
    }

    fn yield_now(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {
        self.tell(Told::Yield);
    }

    fn set_online(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>, online: bool) -> Result<(), Errno> {
        self.tell(Told::Online(vcpu.id, online));
        if online {
            vcpu.clear_hold(hold::OFFLINE);
        } else {
            vcpu.set_hold(hold::OFFLINE);
        }
        Ok(())
    }

    fn flush(&self, domain: &Domain<Self>, flush: Flush) {
        if !flush.is_none() {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        domain.machine.lock().unwrap().spend(&domain.p2m, flush);
    }

    fn domain_stopped(&self, domain: &Domain<Self>, reason: u32) {
        self.tell(Told::Stopped(domain.id, reason));
    }

    fn console_write(&self, _domain: &Domain<Self>, text: &[u8]) -> usize {
        let taken = text.len().min(self.takes.load(Ordering::Relaxed));
        self.written.lock().unwrap().extend_from_slice(&text[..taken]);
        taken
    }

    fn console_line(&self, _domain: &Domain<Self>, line: core::fmt::Arguments<'_>) -> bool {
        let has_room = self.has_room.load(Ordering::Relaxed);
        if has_room {
            self.lines.lock().unwrap().push(line.to_string());
        }
        has_room
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        let mut input = self.input.lock().unwrap();
        let count = into.len().min(input.len());
        into.iter_mut().zip(input.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }

    fn console_ring(&self, from: u32, into: &mut [u8]) -> (usize, u32) {
        let ring = self.ring.lock().unwrap();
        let from = if from as usize <= ring.len() { from as usize } else { 0 };
        let count = into.len().min(ring.len() - from);
        into[..count].copy_from_slice(&ring[from..from + count]);
        (count, (from + count) as u32)
    }

    fn device(&self, _domain: &Domain<Self>, request: DeviceRequest) -> Result<(), Errno> {
        self.tell(Told::Device(request));
        Ok(())
    }

    fn physical_cpu(&self, cpu: u32) -> Option<PhysicalCpu> {
        (cpu == 0).then_some(PhysicalCpu { online: true, apic_id: 8, acpi_id: 3, ..PhysicalCpu::default() })
    }

    fn command_line(&self) -> &str {
        "dom0_mem=fake"
    }

    fn hardware(&self) -> Hardware {
        Hardware { has_iommu: false, address_bits: 40, features: [1, 2, 3, 4, 5, 6, 7, 8] }
    }

    fn debug_key(&self, key: u8) {
        self.tell(Told::DebugKey(key));
    }

    fn create(
        &self,
        memory: &'static Memory,
        id: DomainId,
        privilege: Privilege,
        config: &CreateDomain,
    ) -> Result<Domain<Self>, Errno> {
        let mut vcpus = mm::try_vec(config.max_vcpus as usize)?;
        vcpus.extend((0..config.max_vcpus).map(|vcpu| Vcpu::new(VcpuId(vcpu), ())));
        Ok(Domain::new(Parts {
            id,
            privilege,
            name: String::new(),
            vcpus,
            p2m: P2m::new(Format::default(), memory, id)?,
            one_to_one: false,
            shared_info: SharedPage::allocate(memory, id)?,
            events: EventChannels::new(id, config.max_vcpus, config.max_evtchn_port)?,
            grants: GrantTable::new(id, Limits::of(config), config.max_vcpus as usize)?,
            control: Control::new(config.into(), config.handle, Vec::new()),
            pages: 0,
            max_pages: 0,
            machine: Mutex::default(),
        }))
    }

    fn admit(&self, domain: &Arc<Domain<Self>>) -> Result<(), Errno> {
        self.tell(Told::Admitted(domain.id));
        Ok(())
    }

    fn retire(&self, domain: &Domain<Self>) -> bool {
        self.tell(Told::Retired(domain.id));
        true
    }

    fn call_out(&self, _domain: &Domain<Self>, vcpu: &Vcpu<Self>) {
        self.tell(Told::CallOut(vcpu.id));
    }

    fn system_policy(&self, index: u32) -> Result<CpuPolicy, Errno> {
        if index < 2 { Ok(self.policy.lock().unwrap().copy()?) } else { Err(Errno::EINVAL) }
    }

    fn system_features(&self, index: u32) -> Result<Vec<u32>, Errno> {
        if index < 2 {
            Ok(mm::try_concat(&[&core::array::from_fn::<u32, 21, _>(|at| index + at as u32)])?)
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn policy(&self, _domain: &Domain<Self>) -> Result<CpuPolicy, Errno> {
        Ok(self.policy.lock().unwrap().copy()?)
    }

    fn set_policy(&self, _domain: &Domain<Self>, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> Result<(), Refused> {
        if let Some(bad) = leaves.iter().find(|leaf| leaf.leaf > 0x100) {
            return Err(Refused::leaf(Errno::ERANGE, bad.leaf, bad.subleaf));
        }
        *self.policy.lock().unwrap() = CpuPolicy { leaves: leaves.to_vec(), msrs: msrs.to_vec() };
        Ok(())
    }

    fn tsc_mode(&self, _domain: &Domain<Self>) -> u32 {
        self.tsc_mode.load(Ordering::Relaxed)
    }

    fn set_tsc_mode(&self, _domain: &Domain<Self>, mode: u32) -> Result<(), Errno> {
        self.tsc_mode.store(mode, Ordering::Relaxed);
        Ok(())
    }

    fn save(
        &self,
        _context: &mut Context,
        domain: &Domain<Self>,
        record: Option<(u16, u16)>,
    ) -> Result<Vec<u8>, Errno> {
        assert!(domain.vcpus.iter().all(|vcpu| !vcpu.is_runnable()));
        let state = self.state.lock().unwrap();
        match record {
            None => Ok(state.clone()),
            Some((2, 0)) => Ok(state[..16].to_vec()),
            Some((2, 1)) => Ok(self.cpu_record.lock().unwrap().clone()),
            Some(_) => Err(Errno::ENOENT),
        }
    }

    fn restore(&self, _context: &mut Context, domain: &Domain<Self>, state: &[u8]) -> Result<(), Errno> {
        assert!(domain.vcpus.iter().all(|vcpu| !vcpu.is_runnable()));
        if state.len() < 16 {
            return Err(Errno::EINVAL);
        }
        *self.state.lock().unwrap() = state.to_vec();
        Ok(())
    }

    fn cpu_of(&self, _vcpu: &Vcpu<Self>) -> CpuId {
        CpuId(0)
    }

    fn scheduler(&self) -> sched::Kind {
        sched::Kind::Credit2
    }

    fn ratelimit(&self) -> Option<Nanos> {
        Some(*self.ratelimit.lock().unwrap())
    }

    fn set_ratelimit(&self, limit: Nanos) {
        *self.ratelimit.lock().unwrap() = limit;
    }

    fn affinity(&self, _vcpu: &Vcpu<Self>) -> Option<Affinity> {
        Some(*self.affinity.lock().unwrap())
    }

    fn set_affinity(&self, _vcpu: &Vcpu<Self>, affinity: Affinity) -> Result<(), Errno> {
        *self.affinity.lock().unwrap() = affinity;
        Ok(())
    }

    fn share_changed(&self, domain: &Domain<Self>) {
        self.tell(Told::Share(domain.id));
    }
}

/// A system without domains, with `frames` frames of memory. Leaked, as a machine's own.
pub fn system(frames: u64) -> &'static System<Fake> {
    let memory = fake::memory(frames);
    Box::leak(Box::new(System::new(Fake::default(), memory)))
}

/// What a domain is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub id: u16,
    /// Pages of memory from [`RAM`] on.
    pub pages: u64,
    pub max_pages: u64,
    pub vcpus: u32,
    pub one_to_one: bool,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { id: 0, pages: 16, max_pages: 16, vcpus: 1, one_to_one: false }
    }
}

/// Adds a domain of one vCPU with `pages` pages of memory from [`RAM`] on. Domain 0 controls.
pub fn add_domain(system: &'static System<Fake>, id: u16, pages: u64) -> Arc<Domain<Fake>> {
    add(system, Wanted { id, pages, max_pages: pages, ..Wanted::default() })
}

/// Adds a domain, of which all vCPUs are up.
pub fn add(system: &'static System<Fake>, wanted: Wanted) -> Arc<Domain<Fake>> {
    let Wanted { pages, max_pages, one_to_one, .. } = wanted;
    let id = DomainId(wanted.id);
    let memory: &'static Memory = system.memory;
    let p2m = P2m::new(Format::default(), memory, id).unwrap();
    if one_to_one {
        memory.claim_range(Mfn(RAM)..Mfn(RAM + pages), id).unwrap();
    }
    for page in 0..pages {
        let mfn = if one_to_one { Mfn(RAM + page) } else { memory.allocate(0, None).unwrap().scrub().give_to(id) };
        assert!(p2m.map(Gfn(RAM + page), mfn, 1, PageKind::Ram, MemoryType::WriteBack).unwrap().is_none());
    }
    assert!(p2m.map(Gfn(DEVICE), Mfn(DEVICE), 1, PageKind::Mmio, MemoryType::Uncacheable).unwrap().is_none());
    let vcpus: Vec<_> = (0..wanted.vcpus).map(|vcpu| Vcpu::new(VcpuId(vcpu), ())).collect();
    for vcpu in &vcpus {
        vcpu.clear_hold(hold::OFFLINE);
    }
    let map = Vec::from([
        E820Entry { addr: 0, size: page(0), r#type: E820_RESERVED },
        E820Entry { addr: page(0), size: page(pages) - page(0), r#type: E820_RAM },
    ]);
    let domain = Arc::new(Domain::new(Parts {
        id,
        privilege: if id == DomainId::DOM0 { Privilege::Control } else { Privilege::Guest },
        name: "fake".into(),
        vcpus,
        p2m,
        one_to_one,
        shared_info: SharedPage::allocate(memory, id).unwrap(),
        events: EventChannels::new(id, wanted.vcpus, u32::MAX).unwrap(),
        grants: GrantTable::new(id, Limits::default(), wanted.vcpus as usize).unwrap(),
        control: Control::new(Made::AT_BOOT, Default::default(), map),
        pages,
        max_pages,
        machine: Mutex::default(),
    }));
    system.add(Arc::clone(&domain)).unwrap();
    domain
}
