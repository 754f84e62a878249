use mm::addr::{Gfn, Mfn};
use mm::table::{MemoryType, PageKind};
use xen_abi::event::VIRQ_DOM_EXC;
use xen_abi::handle::GuestHandle;
use xen_abi::hvm::HVM_PARAM_TRIPLE_FAULT_REASON;
use xen_abi::memory::*;
use xen_abi::numbers::{DOMCTL, EVENT_CHANNEL_OP, MEMORY_OP};
use xen_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_REBOOT};
use xen_abi::types::{Bitmap, DomainId, VcpuId};
use xen_abi::x86::{ArchDomainConfig, XEN_X86_EMU_LAPIC, XEN_X86_EMU_PIC};

use super::*;
use crate::fake::{self, Running, Told, all_frames, page};
use crate::vcpu::hold;

fn dom0() -> Running {
    let system = fake::system(4096);
    Running::new(system, &fake::add_domain(system, 0, 16))
}

/// Makes a domctl; its result and what became of the argument.
fn domctl<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    dom0: &mut Running,
    cmd: u32,
    domain: u16,
    request: &T,
) -> (i64, Domctl) {
    let mut op =
        Domctl { cmd, interface_version: XEN_DOMCTL_INTERFACE_VERSION, domain: DomainId(domain), ..Domctl::default() };
    op.u.set(request);
    dom0.poke(page(0), &op);
    let result = dom0.call(DOMCTL, &[page(0)]).0;
    (result, dom0.peek(page(0)))
}

fn no(errno: Errno) -> i64 {
    errno.as_return()
}

const PVH: CreateDomain = CreateDomain {
    ssidref: 12,
    handle: [7; 16],
    flags: XEN_DOMCTL_CDF_HVM | XEN_DOMCTL_CDF_HAP,
    iommu_opts: 0,
    max_vcpus: 2,
    max_evtchn_port: 0,
    max_grant_frames: 1,
    max_maptrack_frames: 0,
    grant_opts: 1,
    altp2m_opts: 0,
    vmtrace_size: 0,
    cpupool_id: 0,
    arch: ArchDomainConfig { emulation_flags: XEN_X86_EMU_LAPIC, misc_flags: 0 },
};

/// Creates a domain with vCPUs; its number.
fn create(dom0: &mut Running) -> u16 {
    let (result, op) = domctl(dom0, XEN_DOMCTL_CREATEDOMAIN, 0, &PVH);
    assert_eq!(result, 0);
    assert_eq!(domctl(dom0, XEN_DOMCTL_MAX_VCPUS, op.domain.0, &MaxVcpus { max: 2 }).0, 0);
    op.domain.0
}

fn info(dom0: &mut Running, id: u16) -> GetDomainInfo {
    let (result, op) = domctl(dom0, XEN_DOMCTL_GETDOMAININFO, id, &GetDomainInfo::default());
    assert_eq!(result, 0);
    op.u.get()
}

#[test]
fn a_domain_is_created_paused_with_the_next_number() {
    let mut dom0 = dom0();
    let (result, op) = domctl(&mut dom0, XEN_DOMCTL_CREATEDOMAIN, 0, &PVH);
    assert_eq!((result, op.domain), (0, DomainId(1)));
    let made = info(&mut dom0, 1);
    assert_eq!((made.max_vcpu_id, made.tot_pages, made.max_pages), (XEN_INVALID_MAX_VCPU_ID, 0, 0));
    assert_eq!((made.handle, made.shared_info_frame, made.gpaddr_bits), ([7; 16], u64::MAX, 40));
    assert_eq!(made.ssidref, 0, "nobody keeps labels");
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_VCPUS, 1, &MaxVcpus { max: 1 }).0, no(Errno::EINVAL));
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_UNPAUSEDOMAIN, 1, &0u8).0, no(Errno::EINVAL), "it has no vCPUs yet");
    for _ in 0..2 {
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_VCPUS, 1, &MaxVcpus { max: 2 }).0, 0);
    }
    let made = info(&mut dom0, 1);
    let expected = XEN_DOMINF_HVM_GUEST | XEN_DOMINF_HAP | XEN_DOMINF_PAUSED | XEN_DOMINF_BLOCKED;
    assert_eq!((made.flags, made.max_vcpu_id, made.nr_online_vcpus), (expected, 1, 0));
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_CREATEDOMAIN, 1, &PVH).0, no(Errno::EEXIST));
    let (result, op) = domctl(&mut dom0, XEN_DOMCTL_CREATEDOMAIN, 77, &PVH);
    assert_eq!((result, op.domain), (0, DomainId(77)));
}

#[test]
fn what_a_domain_cannot_be_is_refused() {
    let mut dom0 = dom0();
    let frames = all_frames(dom0.system);
    let free = dom0.system.memory.free_frames();
    let lapic = |emulation_flags| ArchDomainConfig { emulation_flags, misc_flags: 0 };
    for (config, errno) in [
        (CreateDomain { flags: 0, ..PVH }, Errno::EINVAL),
        (CreateDomain { flags: XEN_DOMCTL_CDF_HVM, ..PVH }, Errno::EINVAL),
        (CreateDomain { flags: PVH.flags | XEN_DOMCTL_CDF_IOMMU, ..PVH }, Errno::EINVAL),
        (CreateDomain { flags: PVH.flags | XEN_DOMCTL_CDF_NESTED_VIRT, ..PVH }, Errno::EINVAL),
        (CreateDomain { flags: PVH.flags | 1 << 31, ..PVH }, Errno::EINVAL),
        (CreateDomain { max_vcpus: 0, ..PVH }, Errno::EINVAL),
        (CreateDomain { max_vcpus: 129, ..PVH }, Errno::EINVAL),
        (CreateDomain { grant_opts: 3, ..PVH }, Errno::EINVAL),
        (CreateDomain { grant_opts: 0x12, ..PVH }, Errno::EINVAL),
        (CreateDomain { vmtrace_size: 4096, ..PVH }, Errno::EINVAL),
        (CreateDomain { cpupool_id: 1, ..PVH }, Errno::ENOENT),
        (CreateDomain { arch: lapic(XEN_X86_EMU_LAPIC | XEN_X86_EMU_PIC), ..PVH }, Errno::EOPNOTSUPP),
        (CreateDomain { arch: lapic(0), ..PVH }, Errno::EOPNOTSUPP),
        (CreateDomain { arch: lapic(1 << 20), ..PVH }, Errno::EINVAL),
    ] {
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_CREATEDOMAIN, 0, &config).0, no(errno), "{config:?}");
    }
    assert_eq!((all_frames(dom0.system), dom0.system.memory.free_frames()), (frames, free));
    for (cmd, version, errno) in [
        (XEN_DOMCTL_GETDOMAININFO, XEN_DOMCTL_INTERFACE_VERSION - 1, Errno::EACCES),
        (XEN_DOMCTL_GETDOMAININFO, XEN_DOMCTL_INTERFACE_VERSION, Errno::ESRCH),
        (9999, XEN_DOMCTL_INTERFACE_VERSION, Errno::ESRCH),
    ] {
        let op = Domctl { cmd, interface_version: version, domain: DomainId(5), ..Domctl::default() };
        dom0.poke(page(0), &op);
        assert_eq!(dom0.call(DOMCTL, &[page(0)]).0, no(errno));
    }
    assert_eq!(domctl(&mut dom0, 9999, 0, &0u8).0, no(Errno::ENOSYS));
}

#[test]
fn a_domain_for_which_memory_runs_out_is_not_made_at_all() {
    let mut dom0 = dom0();
    create(&mut dom0);
    let op = Domctl {
        cmd: XEN_DOMCTL_CREATEDOMAIN,
        interface_version: XEN_DOMCTL_INTERFACE_VERSION,
        domain: DomainId(7),
        ..Domctl::default()
    };
    dom0.poke(page(0), &op);
    dom0.poke(page(0) + core::mem::offset_of!(Domctl, u) as u64, &PVH);
    let (frames, free) = (all_frames(dom0.system), dom0.system.memory.free_frames());
    let errors = mm::fake::each_failure(|| match dom0.call(DOMCTL, &[page(0)]).0 {
        0 => Ok(()),
        error => {
            assert_eq!((all_frames(dom0.system), dom0.system.memory.free_frames()), (frames, free));
            Err(error)
        }
    });
    assert!(errors.len() > 8 && errors.iter().all(|error| *error == no(Errno::ENOMEM)), "{errors:?}");
    assert!(dom0.system.domain(DomainId(7)).is_some());
}

#[test]
fn a_guest_controls_nobody() {
    let mut dom0 = dom0();
    create(&mut dom0);
    let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
    for domain in [1, 5, 0] {
        assert_eq!(domctl(&mut guest, XEN_DOMCTL_PAUSEDOMAIN, domain, &0u8).0, no(Errno::EPERM));
    }
    assert_eq!(domctl(&mut guest, XEN_DOMCTL_CREATEDOMAIN, 0, &PVH).0, no(Errno::EPERM));
}

#[test]
fn pauses_nest_and_hold_every_vcpu() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    domain.vcpus[0].clear_hold(hold::OFFLINE);
    dom0.system.machine.told();
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_UNPAUSEDOMAIN, id, &0u8).0, 0);
    assert_eq!(dom0.system.machine.told(), [Told::Wake(VcpuId(0))], "the other one is offline");
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_UNPAUSEDOMAIN, id, &0u8).0, no(Errno::EINVAL));
    assert_eq!(info(&mut dom0, id).flags & (XEN_DOMINF_PAUSED | XEN_DOMINF_BLOCKED), 0);
    for _ in 0..2 {
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_PAUSEDOMAIN, id, &0u8).0, 0);
    }
    assert_eq!(dom0.system.machine.told(), [Told::CallOut(VcpuId(0)), Told::CallOut(VcpuId(1))]);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_UNPAUSEDOMAIN, id, &0u8).0, 0);
    assert!(domain.vcpus[0].holds() & hold::PAUSED != 0);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_UNPAUSEDOMAIN, id, &0u8).0, 0);
    assert!(domain.vcpus[0].is_runnable());
    for cmd in [XEN_DOMCTL_PAUSEDOMAIN, XEN_DOMCTL_UNPAUSEDOMAIN, XEN_DOMCTL_DESTROYDOMAIN] {
        assert_eq!(domctl(&mut dom0, cmd, 0, &0u8).0, no(Errno::EINVAL), "a domain does not do that to itself");
    }
}

/// Gives a domain `count` pages at gfn 0.
fn populate(dom0: &mut Running, id: u16, count: u64) -> i64 {
    for index in 0..count {
        dom0.poke(page(1) + index * 8, &index);
    }
    let mut request = MemoryReservation {
        extent_start: GuestHandle::new(page(1)),
        nr_extents: count,
        extent_order: 0,
        mem_flags: 0,
        domid: DomainId(id),
        ..MemoryReservation::default()
    };
    dom0.op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut request)
}

#[test]
fn a_destroyed_domain_leaves_nothing() {
    let mut dom0 = dom0();
    let system = dom0.system;
    let free = system.memory.free_frames();
    for round in 0..3 {
        let id = create(&mut dom0);
        assert_eq!(id, round + 1, "numbers are not used again soon");
        assert_eq!(populate(&mut dom0, id, 8), 0, "there is no limit yet, so nothing is allowed");
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_MEM, id, &MaxMem { max_memkb: 1200 }).0, 0);
        assert_eq!(populate(&mut dom0, id, 301), 300);
        let made = info(&mut dom0, id);
        assert_eq!((made.tot_pages, made.max_pages), (300, 300));
        // Dom0 sees one of its pages.
        let (theirs, mine) = (GuestHandle::new(page(2)), GuestHandle::new(page(2) + 64));
        dom0.poke(page(2), &3u64);
        dom0.poke(page(2) + 64, &0x500u64);
        let mut batch = AddToPhysmapBatch {
            domid: DomainId::SELF,
            space: XENMAPSPACE_GMFN_FOREIGN as u16,
            foreign_domid: DomainId(id),
            size: 1,
            idxs: theirs,
            gpfns: mine,
            errs: GuestHandle::new(page(2) + 128),
        };
        assert_eq!(dom0.op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP_BATCH, &mut batch), 0);
        assert_eq!(dom0.peek::<i32>(page(2) + 128), 0);
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_DESTROYDOMAIN, id, &0u8).0, 0);
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_GETDOMAININFO, id, &0u8).0, no(Errno::ESRCH));
        let mut remove = RemoveFromPhysmap { domid: DomainId::SELF, gpfn: 0x500, ..RemoveFromPhysmap::default() };
        assert_eq!(dom0.op(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut remove), 0);
        crate::teardown::bury_all(system);
    }
    let tables = dom0.domain.p2m.table_frames();
    assert!(free - system.memory.free_frames() <= tables, "but for page tables of Dom0's own");
}

#[test]
fn destroying_takes_many_turns_and_nobody_adds_to_what_goes() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_MEM, id, &MaxMem { max_memkb: 1 << 20 }).0, 0);
    for _ in 0..3 {
        // The same gfns again: nothing to be had.
        populate(&mut dom0, id, 500);
    }
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    let op = Domctl {
        cmd: XEN_DOMCTL_DESTROYDOMAIN,
        interface_version: XEN_DOMCTL_INTERFACE_VERSION,
        domain: DomainId(id),
        ..Domctl::default()
    };
    dom0.poke(page(0), &op);
    let first = dom0.call_once(DOMCTL, [page(0), 0, 0, 0, 0]);
    assert_eq!(first, Outcome::Continue([page(0), 0, 0, 0, 0]));
    assert!(info(&mut dom0, id).flags & XEN_DOMINF_DYING != 0);
    assert_eq!(populate(&mut dom0, id, 1), 0);
    assert!(domain.p2m.lookup(Gfn(499)).is_some(), "it is not done");
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_DESTROYDOMAIN, id, &0u8).0, 0);
    assert_eq!(domain.p2m.next_mapped(Gfn(0), &mut 1000), Ok(None));
    assert_eq!(dom0.system.machine.told().iter().filter(|told| **told == Told::Retired(DomainId(id))).count(), 1);
}

#[test]
fn what_is_left_of_a_domain_goes_in_parts_before_free_memory_is_told() {
    let mut dom0 = dom0();
    let free = dom0.system.memory.free_frames();
    let id = create(&mut dom0);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    domain.p2m.set_table_limit(10_000);
    for at in 0..600 {
        assert!(domain.p2m.map(Gfn(at << 9), Mfn(at), 1, PageKind::Mmio, MemoryType::Uncacheable).unwrap().is_none());
    }
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_DESTROYDOMAIN, id, &0u8).0, 0);
    // Somebody looks at it.
    let held = dom0.system.memory.free_frames();
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_GETDOMAININFO, id, &0u8).0, no(Errno::ESRCH));
    assert_eq!(dom0.system.memory.free_frames(), held);
    drop(domain);
    let mut parts = 0;
    while dom0.call_once(DOMCTL, [page(0), 0, 0, 0, 0]) == Outcome::Continue([page(0), 0, 0, 0, 0]) {
        parts += 1;
    }
    assert!(parts > 3, "{parts}");
    assert_eq!(dom0.system.memory.free_frames(), free);
}

#[test]
fn a_domain_that_ends_takes_no_vcpus_in() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    domain.control.begin_dying();
    let vcpus = MaxVcpus { max: domain.vcpus.len() as u32 };
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_VCPUS, id, &vcpus).0, no(Errno::EINVAL));
}

#[test]
fn an_address_space_full_of_holes_goes_in_as_many_steps_as_it_has_pages() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_MEM, id, &MaxMem { max_memkb: 1 << 20 }).0, 0);
    assert_eq!(populate(&mut dom0, id, 500), 500);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    // A device larger than any step, and no table to split it by.
    let _ = domain.p2m.map(Gfn(1 << 18), Mfn(1 << 18), 1 << 18, PageKind::Mmio, MemoryType::Uncacheable).unwrap();
    domain.p2m.set_table_limit(0);
    let mut at = Gfn(0);
    let steps = core::iter::repeat_with(|| crate::physmap::relinquish(dom0.system, &domain, &mut at, 100));
    assert_eq!(steps.take_while(|done| !done).count(), 6);
    assert_eq!((at, domain.p2m.next_mapped(Gfn(0), &mut 1000)), (Gfn(2 << 18), Ok(None)));
}

#[test]
fn a_triple_fault_is_a_reboot_unless_the_toolstack_says_otherwise() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    for (told, reason) in [(None, SHUTDOWN_REBOOT), (Some(SHUTDOWN_CRASH), SHUTDOWN_CRASH)] {
        if let Some(told) = told {
            domain.params.set(HVM_PARAM_TRIPLE_FAULT_REASON, told.into());
        }
        crate::domain::triple_fault(dom0.system, &domain);
        assert_eq!(domain.shutdown_reason(), Some(reason));
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_RESUMEDOMAIN, id, &0u8).0, 0);
    }
}

#[test]
fn who_watches_domains_is_told_of_their_ends() {
    let mut dom0 = dom0();
    let mut bind = xen_abi::event::BindVirq { virq: VIRQ_DOM_EXC, vcpu: 0, port: Default::default() };
    assert_eq!(dom0.op(EVENT_CHANNEL_OP, xen_abi::event::EVTCHNOP_BIND_VIRQ, &mut bind), 0);
    let pending = |dom0: &Running| crate::event::is_pending(&dom0.domain, bind.port).unwrap();
    let id = create(&mut dom0);
    let domain = dom0.system.domain(DomainId(id)).unwrap();
    assert!(!pending(&dom0));
    crate::domain::shut_down(dom0.system, &domain, 2);
    assert!(pending(&dom0));
    let told = info(&mut dom0, id).flags;
    assert_eq!(told & XEN_DOMINF_SHUTDOWN, XEN_DOMINF_SHUTDOWN);
    assert_eq!(told >> XEN_DOMINF_SHUTDOWNSHIFT & XEN_DOMINF_SHUTDOWNMASK, 2);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_RESUMEDOMAIN, id, &0u8).0, 0);
    assert_eq!(info(&mut dom0, id).flags & XEN_DOMINF_SHUTDOWN, 0);
}

#[test]
fn claims_keep_memory_for_a_domain() {
    let mut dom0 = dom0();
    let (first, second) = (create(&mut dom0), create(&mut dom0));
    for id in [first, second] {
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_MEM, id, &MaxMem { max_memkb: 1 << 20 }).0, 0);
    }
    let claim = |dom0: &mut Running, id: u16, pages: u64| {
        let mut request = MemoryReservation { nr_extents: pages, domid: DomainId(id), ..MemoryReservation::default() };
        dom0.op(MEMORY_OP, XENMEM_CLAIM_PAGES, &mut request)
    };
    let free = dom0.system.memory.free_frames();
    assert_eq!(claim(&mut dom0, first, free + 1), no(Errno::ENOMEM));
    assert_eq!(claim(&mut dom0, first, free - 100), 0);
    assert_eq!(claim(&mut dom0, first, 10), no(Errno::EINVAL), "it has one");
    assert_eq!(claim(&mut dom0, second, 101), no(Errno::ENOMEM));
    assert!(populate(&mut dom0, second, 200) < 100, "what is claimed is another's");
    assert_eq!(populate(&mut dom0, first, 200), 200);
    assert_eq!(info(&mut dom0, first).outstanding_pages, free - 300);
    assert_eq!(populate(&mut dom0, first, 200), 0, "there is something");
    assert_eq!(info(&mut dom0, first).outstanding_pages, free - 300, "what was not given is still kept");
    assert_eq!(claim(&mut dom0, first, 0), 0);
    assert_eq!(dom0.system.claimed(), 0);
    assert!(claim(&mut dom0, second, 300) == 0 && dom0.system.claimed() > 0);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_DESTROYDOMAIN, second, &0u8).0, 0);
    assert_eq!(dom0.system.claimed(), 0);
}

#[test]
fn the_pool_is_a_limit_in_whole_pages() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let pool = |dom0: &mut Running| {
        let (result, op) = domctl(dom0, XEN_DOMCTL_GET_PAGING_MEMPOOL_SIZE, id, &PagingMempool::default());
        (result, op.u.get::<PagingMempool>().size)
    };
    assert_eq!(pool(&mut dom0), (0, 1 << 20));
    let set =
        |dom0: &mut Running, size| domctl(dom0, XEN_DOMCTL_SET_PAGING_MEMPOOL_SIZE, id, &PagingMempool { size }).0;
    assert_eq!(set(&mut dom0, (1 << 20) + 1), no(Errno::EINVAL));
    assert_eq!(set(&mut dom0, 64 << 20), 0);
    assert_eq!(pool(&mut dom0), (0, 64 << 20));
    assert_eq!(set(&mut dom0, 0), 0);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_MAX_MEM, id, &MaxMem { max_memkb: 4096 }).0, 0);
    assert_eq!(populate(&mut dom0, id, 1), 0, "there is no room for a page table");
}

#[test]
fn affinities_are_sets_of_the_cpus_that_there_are() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let map = |at: u64, nr_bits| Bitmap { bitmap: GuestHandle::new(at), nr_bits, pad: 0 };
    let request = VcpuAffinity {
        vcpu: 1,
        flags: XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT,
        cpumap_hard: map(page(3), 16),
        cpumap_soft: map(page(3) + 8, 12),
    };
    dom0.poke(page(3), &[0xffu8; 16]);
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_GETVCPUAFFINITY, id, &request).0, 0);
    let bytes: [u8; 16] = dom0.peek(page(3));
    assert_eq!((&bytes[..3], &bytes[8..11]), (&[1, 0, 0xff][..], &[1, 0, 0xff][..]), "there is one CPU");
    let set = |dom0: &mut Running, hard: u8, soft: u8| {
        dom0.poke(page(3), &[hard, 0]);
        dom0.poke(page(3) + 8, &[soft, 0]);
        domctl(dom0, XEN_DOMCTL_SETVCPUAFFINITY, id, &request).0
    };
    assert_eq!(set(&mut dom0, 1, 3), 0);
    assert_eq!(set(&mut dom0, 2, 1), no(Errno::EINVAL));
    assert_eq!(set(&mut dom0, 1, 2), no(Errno::EINVAL));
    for bad in [
        VcpuAffinity { vcpu: 2, ..request },
        VcpuAffinity { flags: 0, ..request },
        VcpuAffinity { flags: 9, ..request },
    ] {
        assert_eq!(domctl(&mut dom0, XEN_DOMCTL_SETVCPUAFFINITY, id, &bad).0, no(Errno::EINVAL));
    }
}

#[test]
fn a_vcpu_that_chose_its_cpu_is_pinned_only_by_force() {
    use xen_abi::numbers::SCHED_OP;
    use xen_abi::sched::{PinOverride, SCHEDOP_PIN_OVERRIDE};

    let mut dom0 = dom0();
    dom0.domain.control.admit();
    dom0.poke(page(2), &PinOverride { pcpu: 0 });
    assert_eq!(dom0.call(SCHED_OP, &[SCHEDOP_PIN_OVERRIDE.into(), page(2)]).0, 0);
    let map = Bitmap { bitmap: GuestHandle::new(page(3)), nr_bits: 8, ..Bitmap::default() };
    dom0.poke(page(3), &[1u8; 8]);
    let set = |dom0: &mut Running, flags| {
        let request = VcpuAffinity { flags, cpumap_hard: map, cpumap_soft: map, ..VcpuAffinity::default() };
        domctl(dom0, XEN_DOMCTL_SETVCPUAFFINITY, 0, &request).0
    };
    assert_eq!(set(&mut dom0, XEN_VCPUAFFINITY_HARD), no(Errno::EBUSY));
    assert_eq!(set(&mut dom0, XEN_VCPUAFFINITY_SOFT), 0);
    assert_eq!(set(&mut dom0, XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_FORCE), 0);
    assert_eq!(set(&mut dom0, XEN_VCPUAFFINITY_HARD), 0);
}

#[test]
fn weight_and_cap_are_what_was_set() {
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let ask = |dom0: &mut Running, cmd, weight, cap| {
        let mut request = SchedulerOp { sched_id: XEN_SCHEDULER_CREDIT2, cmd, ..SchedulerOp::default() };
        request.set_credit2(SchedCredit2 { weight, cap });
        let (result, op) = domctl(dom0, XEN_DOMCTL_SCHEDULER_OP, id, &request);
        let SchedCredit2 { weight, cap } = op.u.get::<SchedulerOp>().credit2();
        (result, weight, cap)
    };
    assert_eq!(ask(&mut dom0, XEN_DOMCTL_SCHEDOP_GETINFO, 0, 0), (0, 256, 0));
    assert_eq!(ask(&mut dom0, XEN_DOMCTL_SCHEDOP_PUTINFO, 512, 50).0, 0);
    assert_eq!(dom0.system.machine.told().last(), Some(&Told::Share(DomainId(id))));
    assert_eq!(ask(&mut dom0, XEN_DOMCTL_SCHEDOP_PUTINFO, 0, 60).0, 0);
    assert_eq!(ask(&mut dom0, XEN_DOMCTL_SCHEDOP_GETINFO, 0, 0), (0, 512, 60));
    let other = SchedulerOp { sched_id: XEN_SCHEDULER_CREDIT, ..SchedulerOp::default() };
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_SCHEDULER_OP, id, &other).0, no(Errno::EINVAL));
}

#[test]
fn registers_are_told_in_the_form_of_paravirtual_guests() {
    use xen_abi::hvm_save::{CPU_CODE, Cpu, Descriptor, XEN_X86_FPU_INITIALISED};
    use xen_abi::x86::{VGCF_I387_VALID, VGCF_IN_KERNEL, VcpuGuestContext};
    use zerocopy::{FromZeros, IntoBytes};
    const USER_SS: u32 = 0xcf3 | 3 << 5;
    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let mut cpu = Cpu::new_zeroed();
    cpu.fpu_regs.fill(9);
    (cpu.rax, cpu.r15, cpu.rip, cpu.rsp, cpu.rflags, cpu.cr3, cpu.cr4, cpu.dr7) = (1, 2, 3, 4, 5, 6, 7, 8);
    (cpu.cs_sel, cpu.gs_sel, cpu.gs_base, cpu.shadow_gs, cpu.fs_base) = (0x10, 0x18, 0x100, 0x200, 0x300);
    cpu.flags = XEN_X86_FPU_INITIALISED;
    let mut get = |dom0: &mut Running, ss_arbytes, vcpu| {
        cpu.ss_arbytes = ss_arbytes;
        let descriptor = Descriptor { typecode: CPU_CODE, instance: 1, length: size_of::<Cpu>() as u32 };
        *dom0.system.machine.cpu_record.lock().unwrap() = [descriptor.as_bytes(), cpu.as_bytes()].concat();
        let request = VcpuContext { vcpu, pad: 0, ctxt: GuestHandle::new(page(2)) };
        let result = domctl(dom0, XEN_DOMCTL_GETVCPUCONTEXT, id, &request).0;
        (result, dom0.peek::<VcpuGuestContext>(page(2)))
    };
    let (result, told) = get(&mut dom0, 0xc93, 1);
    assert_eq!((result, told.flags), (0, VGCF_I387_VALID | VGCF_IN_KERNEL), "it is not online");
    assert_eq!((told.user_regs.rax, told.user_regs.r15, told.user_regs.rip, told.user_regs.rsp), (1, 2, 3, 4));
    assert_eq!((told.user_regs.rflags, told.user_regs.cs, told.user_regs.gs, told.fpu_ctxt), (5, 0x10, 0x18, [9; 512]));
    assert_eq!((told.ctrlreg, told.debugreg[7]), ([0, 0, 0, 6, 7, 0, 0, 0], 8));
    assert_eq!((told.fs_base, told.gs_base_kernel, told.gs_base_user), (0x300, 0x100, 0x200));
    let (_, told) = get(&mut dom0, USER_SS, 1);
    assert_eq!((told.flags, told.gs_base_kernel, told.gs_base_user), (VGCF_I387_VALID, 0x200, 0x100));
    assert_eq!(get(&mut dom0, 0, 2).0, no(Errno::EINVAL));
    let request = VcpuContext { vcpu: 0, pad: 0, ctxt: GuestHandle::new(page(2)) };
    assert_eq!(domctl(&mut dom0, XEN_DOMCTL_GETVCPUCONTEXT, 0, &request).0, no(Errno::EINVAL), "its own");
}

#[test]
fn a_domain_is_told_how_its_tsc_is_kept_but_none_is_emulated() {
    use xen_abi::x86::{XEN_CPUID_TSC_MODE_ALWAYS_EMULATE, XEN_CPUID_TSC_MODE_NEVER_EMULATE};

    let mut dom0 = dom0();
    let id = create(&mut dom0);
    let set = |dom0: &mut Running, tsc_mode| {
        domctl(dom0, XEN_DOMCTL_SETTSCINFO, id, &TscInfo { tsc_mode, ..TscInfo::default() }).0
    };
    assert_eq!(set(&mut dom0, XEN_CPUID_TSC_MODE_NEVER_EMULATE), 0);
    assert_eq!(set(&mut dom0, XEN_CPUID_TSC_MODE_ALWAYS_EMULATE), no(Errno::EOPNOTSUPP));
    let (result, op) = domctl(&mut dom0, XEN_DOMCTL_GETTSCINFO, id, &TscInfo::default());
    assert_eq!((result, op.u.get::<TscInfo>().tsc_mode), (0, XEN_CPUID_TSC_MODE_NEVER_EMULATE));
}
