//! A machine that is none, for tests of what a hypercall does: domains with a little memory, linear addresses that are physical
//! ones, and a TLB that drops nothing until it is flushed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use mm::addr::{Gfn, GuestPhys, PAGE_SIZE};
use mm::fake::{self, CachingTlb, Format};
use mm::table::{MemoryType, PageKind};
use mm::{Flush, Memory, P2m, P2mCache, SharedPage};
use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::types::{DomainId, VcpuId};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::domain::{Domain, Parts, Privilege};
use crate::event::EventChannels;
use crate::grant::{GrantTable, Limits};
use crate::hypercall::{Arguments, Caller, Outcome, dispatch};
use crate::machine::{Access, ClockScale, DeviceRequest, Machine, PhysicalCpu, Width};
use crate::system::System;
use crate::vcpu::Vcpu;

/// Where a domain's memory begins, in frames.
pub const RAM: u64 = 0x100;

/// The address of page `index` of a domain's memory.
pub const fn page(index: u64) -> u64 {
    (RAM + index) * PAGE_SIZE as u64
}

/// The machine; it counts flushes.
#[derive(Default)]
pub struct Fake {
    pub flushes: AtomicUsize,
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
        Nanos(1_000_000_000)
    }

    fn clock_scale(&self) -> ClockScale {
        ClockScale::default()
    }

    fn tsc_khz(&self) -> u32 {
        1_000_000
    }

    fn wallclock_at_boot(&self) -> (u64, u32) {
        (0, 0)
    }

    fn set_wallclock(&self, _seconds: u64, _nanoseconds: u32, _at: Nanos) {}

    fn translate(
        &self,
        domain: &Domain<Self>,
        _context: &mut Context,
        linear: u64,
        _access: Access,
    ) -> Result<GuestPhys, Errno> {
        let physical = GuestPhys(linear);
        domain.p2m.lookup(physical.gfn()).map(|_| physical).ok_or(Errno::EFAULT)
    }

    fn p2m_cache<'a>(&self, context: &'a mut Context) -> &'a mut P2mCache {
        &mut context.cache
    }

    fn width(&self, context: &mut Context) -> Width {
        context.width
    }

    fn upcall(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {}

    fn wake(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {}

    fn timer_changed(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {}

    fn yield_now(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>) {}

    fn set_online(&self, _domain: &Domain<Self>, _vcpu: &Vcpu<Self>, _online: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn flush(&self, domain: &Domain<Self>, flush: Flush) {
        if !flush.is_none() {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        domain.machine.lock().unwrap().spend(&domain.p2m, flush);
    }

    fn domain_stopped(&self, _domain: &Domain<Self>, _reason: u32) {}

    fn console_write(&self, _domain: &Domain<Self>, _text: &[u8]) {}

    fn console_read(&self, _into: &mut [u8]) -> usize {
        0
    }

    fn console_ring(&self, from: u32, _into: &mut [u8]) -> (usize, u32) {
        (0, from)
    }

    fn device(&self, _domain: &Domain<Self>, _request: DeviceRequest) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    fn physical_cpu(&self, _cpu: u32) -> Option<PhysicalCpu> {
        None
    }

    fn command_line(&self) -> &str {
        ""
    }
}

/// A system without domains, with `frames` frames of memory. Leaked, as a machine's own.
pub fn system(frames: u64) -> &'static System<Fake> {
    let memory = fake::memory(frames);
    Box::leak(Box::new(System::new(Fake::default(), memory)))
}

/// Adds a domain of one vCPU with `pages` pages of memory from [`RAM`] on. Domain 0 controls.
pub fn add_domain(system: &'static System<Fake>, id: u16, pages: u64) -> Arc<Domain<Fake>> {
    let id = DomainId(id);
    let memory: &'static Memory = system.memory;
    let p2m = P2m::new(Format::default(), memory, id).unwrap();
    for page in 0..pages {
        let mfn = memory.allocate(0, None).unwrap().scrub().give_to(id);
        assert!(p2m.map(Gfn(RAM + page), mfn, 1, PageKind::Ram, MemoryType::WriteBack).unwrap().is_none());
    }
    let domain = Arc::new(Domain::new(Parts {
        id,
        privilege: if id == DomainId::DOM0 { Privilege::Control } else { Privilege::Guest },
        name: "fake".into(),
        vcpus: Vec::from([Vcpu::new(VcpuId(0), ())]),
        p2m,
        one_to_one: false,
        shared_info: SharedPage::allocate(memory, id).unwrap(),
        events: EventChannels::new(id, 1, u32::MAX).unwrap(),
        grants: GrantTable::new(id, Limits::default(), 1).unwrap(),
        memory_map: Vec::new(),
        pages,
        max_pages: pages,
        machine: Mutex::default(),
    }));
    system.add(Arc::clone(&domain)).unwrap();
    domain
}

/// A running vCPU.
pub struct Running {
    pub system: &'static System<Fake>,
    pub domain: Arc<Domain<Fake>>,
    pub context: Context,
}

impl Running {
    pub fn new(system: &'static System<Fake>, domain: &Arc<Domain<Fake>>) -> Running {
        Running { system, domain: Arc::clone(domain), context: Context::default() }
    }

    /// Makes a hypercall once.
    pub fn call_once(&mut self, number: u64, arguments: Arguments) -> Outcome {
        let vcpu = self.domain.vcpu(VcpuId(0)).unwrap();
        let width = self.context.width;
        let mut caller = Caller { system: self.system, domain: &self.domain, vcpu, context: &mut self.context, width };
        dispatch(&mut caller, number, arguments)
    }

    /// Makes a hypercall, and makes it again until it is done. What it returns, and how often it was interrupted.
    pub fn call(&mut self, number: u64, arguments: &[u64]) -> (i64, usize) {
        let mut registers = [0; 5];
        registers[..arguments.len()].copy_from_slice(arguments);
        for times in 0.. {
            match self.call_once(number, registers) {
                Outcome::Return(value) => return (value, times),
                Outcome::Continue(next) => registers = next,
            }
        }
        unreachable!()
    }

    /// Writes into the domain's memory, past everything else.
    pub fn poke<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) {
        for (index, byte) in value.as_bytes().iter().enumerate() {
            let at = GuestPhys(at + index as u64);
            let mfn = self.domain.p2m.lookup(at.gfn()).unwrap().mfn;
            let host = mm::HostPhys(mfn.phys().0 + at.page_offset() as u64);
            self.system.memory.window().copy_to(host, &[*byte]).unwrap();
        }
    }

    pub fn peek<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        for (index, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            let at = GuestPhys(at + index as u64);
            let mfn = self.domain.p2m.lookup(at.gfn()).unwrap().mfn;
            let host = mm::HostPhys(mfn.phys().0 + at.page_offset() as u64);
            let mut one = [0];
            self.system.memory.window().copy_from(host, &mut one).unwrap();
            *byte = one[0];
        }
        value
    }
}
