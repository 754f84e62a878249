//! Dom0, which is this guest, gives all of the machine's memory to domains, and goes on asking for things: it is told that there is no memory, and
//! whatever needs none is done.

#![no_std]
#![no_main]

use tests_qemu::tests::Tests;
use tests_qemu::toolstack::{Child, Failed, physinfo, sysctl};
use tests_qemu::{clock, events, hypercall};
use xen_abi::domctl::*;
use xen_abi::handle::GuestHandle;
use xen_abi::hvm_save::CPU_CODE;
use xen_abi::memory::{E820Entry, ForeignMemoryMap, MemoryMap, XENMEM_SET_MEMORY_MAP};
use xen_abi::numbers::MEMORY_OP;
use xen_abi::sysctl::{self, CpuFeatureset};
use xen_abi::types::DomainId;
use xen_abi::x86::{XEN_CPUID_TSC_MODE_DEFAULT, XEN_CPUID_TSC_MODE_NEVER_EMULATE};

tests_qemu::guest!(main);

const ENOMEM: Failed = -12;
const CRASH: u32 = 3;
const SECOND: u64 = 1_000_000_000;
/// Domains that are there for the host to keep something of them.
const NOTED: usize = 96;

fn main(t: &mut Tests) {
    let made = (Child::create(1, 2), Child::create(1, 0), [(); NOTED].map(|()| Child::create(1, 0)));
    let (Ok(victim), Ok(hoarder), noted) = made else { return t.check("domains can be made", false) };
    t.check("it starts in a hole", victim.start_at(0x7000_0000, 0).is_ok());
    let free = free_pages();
    hoard(hoarder);
    t.within("all memory is given away", free_pages(), 0, 16);
    t.check("the host has none of its own left", fill_heap(&noted));

    let policy = CpuPolicy::default();
    t.returns("a domain's CPU policy", of(victim.control(XEN_DOMCTL_GET_CPU_POLICY, &policy)), ENOMEM);
    t.returns("another policy", of(victim.control(XEN_DOMCTL_SET_CPU_POLICY, &policy)), ENOMEM);
    for index in [sysctl::XEN_SYSCTL_CPU_POLICY_HOST, sysctl::XEN_SYSCTL_CPU_POLICY_HVM_MAX] {
        let request = sysctl::CpuPolicy { index, ..Default::default() };
        t.returns("the machine's policy", of(sysctl(sysctl::XEN_SYSCTL_GET_CPU_POLICY, &request)), ENOMEM);
    }
    let features = sysctl(sysctl::XEN_SYSCTL_GET_CPU_FEATURESET, &CpuFeatureset::default());
    t.check("its features are told or not", matches!(of(features), 0 | ENOMEM));
    t.returns("a context", of(victim.control(XEN_DOMCTL_GETHVMCONTEXT, &HvmContext::default())), ENOMEM);
    let one = HvmContextPartial { r#type: CPU_CODE.into(), ..Default::default() };
    t.returns("a record of it", of(victim.control(XEN_DOMCTL_GETHVMCONTEXT_PARTIAL, &one)), ENOMEM);
    let large = HvmContext { size: 1 << 20, ..Default::default() };
    t.returns("a large context", of(victim.control(XEN_DOMCTL_SETHVMCONTEXT, &large)), ENOMEM);
    t.check("registers are loaded or not", matches!(victim.start_at(0x7000_0000, 0), Ok(()) | Err(ENOMEM)));
    let tsc = TscInfo { tsc_mode: XEN_CPUID_TSC_MODE_NEVER_EMULATE, ..Default::default() };
    t.returns("another TSC mode", of(victim.control(XEN_DOMCTL_SETTSCINFO, &tsc)), ENOMEM);
    let tsc = victim.control(XEN_DOMCTL_GETTSCINFO, &TscInfo::default()).map(|op| op.u.get::<TscInfo>().tsc_mode);
    t.equal("the TSC mode is told", tsc, Ok(XEN_CPUID_TSC_MODE_DEFAULT));
    t.returns("another domain", Child::create(1, 0).err().unwrap_or(0), ENOMEM);
    runs(t, victim);

    t.check("the memory comes back", hoarder.destroy().is_ok() && free_pages() > free / 10 * 9);
    t.returns("the CPU policy", of(victim.control(XEN_DOMCTL_GET_CPU_POLICY, &policy)), 0);
    for child in noted.into_iter().flatten() {
        t.check("it is destroyed", child.destroy().is_ok());
    }
    t.returns("another domain", of(Child::create(1, 2)), 0);
}

fn of<T>(result: Result<T, Failed>) -> i64 {
    result.err().unwrap_or(0)
}

fn free_pages() -> u64 {
    physinfo().map_or(0, |info| info.free_pages)
}

/// Gives a domain all memory that is free.
fn hoard(hoarder: Child) {
    let limits = hoarder.control(XEN_DOMCTL_MAX_MEM, &MaxMem { max_memkb: 1 << 30 });
    let mut gfn = 0;
    for order in [9, 0] {
        while limits.is_ok() && hoarder.populate(gfn, order) {
            gfn += 1 << order;
        }
    }
}

/// Has the host keep things until it has no room for more: slots of ports, and memory maps.
fn fill_heap(noted: &[Result<Child, Failed>]) -> bool {
    while events::alloc_unbound(DomainId::SELF).is_ok() {}
    let mut regions = 128;
    for child in noted.iter().flatten() {
        while set_map(child, regions) != 0 {
            if regions == 16 {
                return true;
            }
            regions /= 2;
        }
    }
    false
}

fn set_map(child: &Child, regions: u32) -> i64 {
    let map = [E820Entry::default(); 128];
    let mut request = ForeignMemoryMap {
        domid: child.0,
        map: MemoryMap { nr_entries: regions, pad: 0, buffer: GuestHandle::new(map.as_ptr() as u64) },
        ..ForeignMemoryMap::default()
    };
    hypercall::op(MEMORY_OP, XENMEM_SET_MEMORY_MAP, &mut request)
}

/// A domain's first moments need no memory.
fn runs(t: &mut Tests, victim: Child) {
    t.check("a domain is let run", victim.unpause().is_ok());
    let end = clock::now() + SECOND;
    while victim.reason().is_none() && clock::now() < end {
        clock::sleep(1_000_000);
    }
    t.equal("and runs", victim.reason(), Some(CRASH));
}
