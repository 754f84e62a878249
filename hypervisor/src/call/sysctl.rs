//! SYSCTL: what the toolstack asks of the machine as a whole. One layout for both widths.

use core::sync::atomic::Ordering;

use sched::{CpuSet, Nanos};
use xen_abi::errno::Errno;
use xen_abi::sysctl::*;
use xen_abi::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::call::domctl::{describe, policy, scheduling, write_cpus};
use crate::cpu_policy::{MAX_LEAVES, MAX_MSRS};
use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;
use crate::teardown;

/// Bytes of the console ring that go through in one piece.
const PIECE: usize = 256;
/// Debug keys or devices of one call.
const TOGETHER: u32 = 64;
const PAGE: u64 = mm::PAGE_SIZE as u64;
const NANOS_A_MICRO: u64 = 1000;
/// Nodes that Xen's own toolstack makes room for; a machine is one so far.
const MOST_NODES: u32 = 64;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [argument, ..] = arguments;
    let handle = caller.handle::<Sysctl>(argument);
    let mut op = caller.read(handle)?;
    if op.interface_version != XEN_SYSCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    // What is told of free memory is right then.
    if teardown::bury(caller.system) {
        return Err(Errno::ERESTART);
    }
    serve(caller, &mut op)?;
    caller.write(handle, &op).map(|()| 0)
}

/// Does what the argument asks for, and puts into it what there is to tell.
fn serve<M: Machine>(caller: &mut Caller<'_, M>, op: &mut Sysctl) -> Result<(), Errno> {
    match op.cmd {
        XEN_SYSCTL_READCONSOLE => answer(caller, op, read_console),
        XEN_SYSCTL_PHYSINFO => {
            op.u.set(&phys_info(caller));
            Ok(())
        }
        XEN_SYSCTL_SCHED_ID => {
            op.u.set(&SchedId { sched_id: scheduling::number(caller.system.machine.scheduler()) });
            Ok(())
        }
        XEN_SYSCTL_GETDOMAININFOLIST => answer(caller, op, domain_list),
        XEN_SYSCTL_DEBUG_KEYS => debug_keys(caller, op.u.get()),
        XEN_SYSCTL_GETCPUINFO => answer(caller, op, cpu_info),
        XEN_SYSCTL_AVAILHEAP => answer(caller, op, |caller, request: &mut AvailHeap| {
            let frames = if request.node > 0 { 0 } else { caller.system.memory.free_frames() };
            request.avail_bytes = frames.saturating_mul(PAGE);
            Ok(())
        }),
        XEN_SYSCTL_CPUTOPOINFO => answer(caller, op, topology),
        XEN_SYSCTL_NUMAINFO => answer(caller, op, nodes),
        XEN_SYSCTL_PCITOPOINFO => answer(caller, op, pci_nodes),
        XEN_SYSCTL_CPUPOOL_OP => answer(caller, op, cpu_pools),
        XEN_SYSCTL_SCHEDULER_OP => answer(caller, op, scheduler),
        XEN_SYSCTL_GET_CPU_POLICY => answer(caller, op, cpu_policy),
        XEN_SYSCTL_GET_CPU_FEATURESET => answer(caller, op, features),
        // What a CPU shows to programs cannot be levelled, and need not be: domains have policies.
        XEN_SYSCTL_GET_CPU_LEVELLING_CAPS => {
            op.u.set(&CpuLevellingCaps { caps: 0 });
            Ok(())
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Lets `act` change the part of the argument that the operation has.
fn answer<M: Machine, T: FromBytes + IntoBytes + Immutable>(
    caller: &mut Caller<'_, M>,
    op: &mut Sysctl,
    act: impl FnOnce(&mut Caller<'_, M>, &mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut request: T = op.u.get();
    act(caller, &mut request)?;
    op.u.set(&request);
    Ok(())
}

// ---- the machine ----

fn phys_info<M: Machine>(caller: &Caller<'_, M>) -> PhysInfo {
    let system = caller.system;
    let (machine, memory) = (&system.machine, system.memory);
    let hardware = machine.hardware();
    let cpus = scheduling::cpus(machine);
    let places = || (0..cpus).filter_map(|cpu| machine.physical_cpu(cpu)).map(|cpu| cpu.place);
    let first = places().next().unwrap_or_default();
    let same_socket = || places().filter(|place| place.socket == first.socket);
    let threads = same_socket().filter(|place| place.core == first.core).count().max(1) as u32;
    let in_socket = same_socket().count() as u32;
    let direct = if hardware.has_iommu { XEN_SYSCTL_PHYSCAP_DIRECTIO } else { 0 };
    PhysInfo {
        threads_per_core: threads,
        cores_per_socket: in_socket.checked_div(threads).unwrap_or(1).max(1),
        nr_cpus: cpus,
        max_cpu_id: cpus.saturating_sub(1),
        nr_nodes: 1,
        max_node_id: MOST_NODES - 1,
        cpu_khz: machine.tsc_khz(),
        capabilities: XEN_SYSCTL_PHYSCAP_HVM
            | XEN_SYSCTL_PHYSCAP_HAP
            | XEN_SYSCTL_PHYSCAP_GNTTAB_V1
            | XEN_SYSCTL_PHYSCAP_GNTTAB_V2
            | direct,
        total_pages: memory.total_frames(),
        free_pages: memory.free_frames(),
        outstanding_pages: system.claimed(),
        max_mfn: memory.max_frame().0.saturating_sub(1),
        hw_cap: hardware.features,
        ..PhysInfo::default()
    }
}

/// Places of CPUs; without a buffer, how many there are.
fn topology<M: Machine>(caller: &mut Caller<'_, M>, request: &mut CpuTopoInfo) -> Result<(), Errno> {
    let count = scheduling::cpus(&caller.system.machine);
    if !request.cputopo.is_null() {
        for cpu in 0..count.min(request.num_cpus) {
            let place = caller.system.machine.physical_cpu(cpu).map(|cpu| cpu.place).unwrap_or_default();
            let told = CpuTopo { core: place.core, socket: place.socket, node: place.node };
            caller.write_at(request.cputopo, cpu.into(), &told)?;
        }
        request.num_cpus = request.num_cpus.min(count);
    } else {
        request.num_cpus = count;
    }
    Ok(())
}

/// The machine is one node.
fn nodes<M: Machine>(caller: &mut Caller<'_, M>, request: &mut NumaInfo) -> Result<(), Errno> {
    const LOCAL: u32 = 10;
    let memory = caller.system.memory;
    let asked = !request.meminfo.is_null() || !request.distance.is_null();
    if request.num_nodes != 0 {
        if !request.meminfo.is_null() {
            let info = MemInfo {
                memsize: memory.max_frame().0.saturating_mul(PAGE),
                memfree: memory.free_frames().saturating_mul(PAGE),
            };
            caller.write_at(request.meminfo, 0, &info)?;
        }
        if !request.distance.is_null() {
            caller.write_at(request.distance, 0, &LOCAL)?;
        }
    }
    request.num_nodes = if asked { request.num_nodes.min(1) } else { 1 };
    Ok(())
}

/// Which node PCI devices are at: nobody says.
fn pci_nodes<M: Machine>(caller: &mut Caller<'_, M>, request: &mut PciTopoInfo) -> Result<(), Errno> {
    if request.devs.is_null() || request.nodes.is_null() {
        return Err(Errno::EINVAL);
    }
    // As many as fit into one call: the toolstack goes on behind those that are done.
    request.num_devs = request.num_devs.min(TOGETHER);
    for index in 0..request.num_devs.into() {
        caller.read_at(request.devs, index)?;
        caller.write_at(request.nodes, index, &XEN_INVALID_NODE_ID)?;
    }
    Ok(())
}

fn cpu_policy<M: Machine>(caller: &mut Caller<'_, M>, request: &mut CpuPolicy) -> Result<(), Errno> {
    if request.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let found = caller.system.machine.system_policy(request.index)?;
    request.nr_leaves = policy::tell_policy(caller, &found.leaves, request.leaves, request.nr_leaves, MAX_LEAVES)?;
    request.nr_msrs = policy::tell_policy(caller, &found.msrs, request.msrs, request.nr_msrs, MAX_MSRS)?;
    Ok(())
}

/// Words of a featureset, as many as there is room for; without a buffer, how many there are. ENOBUFS if there are more than that.
fn features<M: Machine>(caller: &mut Caller<'_, M>, request: &mut CpuFeatureset) -> Result<(), Errno> {
    let words = caller.system.machine.system_features(request.index)?;
    request.nr_features = policy::tell(caller, &words, request.features, request.nr_features)?;
    Ok(())
}

/// How long each CPU was idle.
fn cpu_info<M: Machine>(caller: &mut Caller<'_, M>, request: &mut GetCpuInfo) -> Result<(), Errno> {
    request.nr_cpus = scheduling::cpus(&caller.system.machine).min(request.max_cpus);
    for cpu in 0..request.nr_cpus {
        let idle = caller.system.machine.physical_cpu(cpu).map_or(0, |cpu| cpu.idle.0);
        caller.write_at(request.info, cpu.into(), &CpuInfo { idletime: idle })?;
    }
    Ok(())
}

fn debug_keys<M: Machine>(caller: &mut Caller<'_, M>, request: DebugKeys) -> Result<(), Errno> {
    for index in 0..request.nr_keys.min(TOGETHER) {
        let key = caller.read_at(request.keys, index.into())?;
        caller.system.machine.debug_key(key);
    }
    Ok(())
}

// ---- domains ----

fn domain_list<M: Machine>(caller: &mut Caller<'_, M>, request: &mut GetDomainInfoList) -> Result<(), Errno> {
    let mut next = request.first_domain;
    request.num_domains = 0;
    while request.num_domains < request.max_domains
        && let Some(domain) = caller.system.domain_from(next)
    {
        let info = describe(caller.system, &domain);
        caller.write_at(request.buffer, request.num_domains.into(), &info)?;
        request.num_domains = request.num_domains.saturating_add(1);
        next = DomainId(domain.id.0.saturating_add(1));
    }
    Ok(())
}

// ---- the scheduler ----

/// All CPUs and domains are in one pool, which cannot be changed. ENOENT for any other, EOPNOTSUPP for what would change it.
fn cpu_pools<M: Machine>(caller: &mut Caller<'_, M>, request: &mut CpupoolOp) -> Result<(), Errno> {
    let machine = &caller.system.machine;
    let count = scheduling::cpus(machine);
    let free = match request.op {
        XEN_SYSCTL_CPUPOOL_OP_INFO if request.cpupool_id != 0 => return Err(Errno::ENOENT),
        XEN_SYSCTL_CPUPOOL_OP_INFO => false,
        XEN_SYSCTL_CPUPOOL_OP_FREEINFO => true,
        XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN if request.cpupool_id == 0 => return Ok(()),
        XEN_SYSCTL_CPUPOOL_OP_DESTROY
        | XEN_SYSCTL_CPUPOOL_OP_ADDCPU
        | XEN_SYSCTL_CPUPOOL_OP_RMCPU
        | XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN
            if request.cpupool_id != 0 =>
        {
            return Err(Errno::ENOENT);
        }
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if !free {
        request.sched_id = scheduling::number(machine.scheduler());
        request.n_dom = 0;
        caller.system.for_each(|_| request.n_dom = request.n_dom.saturating_add(1));
    }
    let cpus = if free { CpuSet::EMPTY } else { CpuSet::first_of_all(count as usize) };
    write_cpus(caller, &request.cpumap, cpus, count)
}

/// Credit2's rate limit. EINVAL for another pool or scheduler, and for a limit out of range.
fn scheduler<M: Machine>(caller: &mut Caller<'_, M>, request: &mut SchedulerOp) -> Result<(), Errno> {
    let machine = &caller.system.machine;
    if request.cpupool_id != 0 || request.sched_id != scheduling::number(machine.scheduler()) {
        return Err(Errno::EINVAL);
    }
    let limit = machine.ratelimit().ok_or(Errno::EOPNOTSUPP)?;
    match request.cmd {
        XEN_SYSCTL_SCHEDOP_GETINFO => {
            let [_, rest] = request.u;
            request.u = [limit.0.checked_div(NANOS_A_MICRO).unwrap_or(0), rest];
            Ok(())
        }
        XEN_SYSCTL_SCHEDOP_PUTINFO => {
            let [wanted, _] = request.u;
            let wanted = wanted as u32;
            // Zero is none.
            if wanted != 0 && !(XEN_SYSCTL_SCHED_RATELIMIT_MIN..=XEN_SYSCTL_SCHED_RATELIMIT_MAX).contains(&wanted) {
                return Err(Errno::EINVAL);
            }
            machine.set_ratelimit(Nanos::from_micros(wanted.into()));
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

// ---- the console ----

/// Copies the ring from its beginning on, or from where an earlier read left off; what lies before a beginning that was moved by `clear` is
/// not seen again.
fn read_console<M: Machine>(caller: &mut Caller<'_, M>, request: &mut ReadConsole) -> Result<(), Errno> {
    let start = caller.system.console_start.load(Ordering::Relaxed);
    let mut piece = [0u8; PIECE];
    let mut at = start;
    if request.incremental != 0 {
        // A position that is overwritten, or not reached yet, is answered by the oldest that there is. Positions count all bytes ever
        // written, and wrap.
        let (_, from) = caller.system.machine.console_ring(request.index, &mut []);
        if from.wrapping_sub(start) <= u32::MAX / 2 {
            at = from;
        }
    }
    let mut done = 0u32;
    while done < request.count {
        let room = request.count.saturating_sub(done).min(PIECE as u32) as usize;
        let (got, next) = caller.system.machine.console_ring(at, piece.get_mut(..room).ok_or(Errno::EINVAL)?);
        if got == 0 {
            break;
        }
        let to = request.buffer.byte_add(done.into()).ok_or(Errno::EFAULT)?;
        caller.write_bytes(to.address(), piece.get(..got).ok_or(Errno::EINVAL)?)?;
        at = next;
        done = done.saturating_add(got as u32);
    }
    if request.clear != 0 {
        caller.system.console_start.store(at, Ordering::Relaxed);
    }
    request.index = at;
    request.count = done;
    Ok(())
}

#[cfg(test)]
mod tests {
    use xen_abi::handle::GuestHandle;
    use xen_abi::numbers::SYSCTL;

    use super::*;
    use crate::fake::{self, Running, page};

    fn dom0(said: usize) -> Running {
        let system = fake::system(256);
        system.machine.ring.lock().unwrap().extend((0..said).map(|index| index as u8));
        Running::new(system, &fake::add_domain(system, 0, 16))
    }

    fn sysctl(running: &mut Running, op: &mut Sysctl) -> i64 {
        running.poke(page(0), op);
        let result = running.call(SYSCTL, &[page(0)]).0;
        *op = running.peek(page(0));
        result
    }

    const VERSION: u32 = XEN_SYSCTL_INTERFACE_VERSION;

    /// Result, index and count of a read of at most `count` bytes.
    fn read(running: &mut Running, clear: bool, from: Option<u32>, count: u32) -> (i64, u32, u32) {
        let mut op = Sysctl { cmd: XEN_SYSCTL_READCONSOLE, interface_version: VERSION, ..Default::default() };
        op.u.set(&ReadConsole {
            clear: clear.into(),
            incremental: from.is_some().into(),
            index: from.unwrap_or(77),
            buffer: GuestHandle::new(page(1)),
            count,
            ..Default::default()
        });
        let result = sysctl(running, &mut op);
        let answer: ReadConsole = op.u.get();
        (result, answer.index, answer.count)
    }

    #[test]
    fn the_console_ring_is_read_from_its_beginning_or_from_where_one_was() {
        let mut dom0 = dom0(700);
        assert_eq!(read(&mut dom0, false, None, 100), (0, 100, 100));
        assert_eq!(read(&mut dom0, false, Some(100), 500), (0, 600, 500));
        assert_eq!(dom0.peek::<u8>(page(1) + 499), 599u32 as u8);
        assert_eq!(read(&mut dom0, false, Some(600), 500), (0, 700, 100));
        assert_eq!(read(&mut dom0, false, Some(700), 500), (0, 700, 0));
        for nowhere in [0x7000_0000, 0xf000_0000] {
            assert_eq!(read(&mut dom0, false, Some(nowhere), 100), (0, 100, 100));
        }
    }

    #[test]
    fn what_is_cleared_is_not_read_again() {
        let mut dom0 = dom0(300);
        assert_eq!(read(&mut dom0, true, None, 100), (0, 100, 100));
        assert_eq!(read(&mut dom0, false, None, 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, false, Some(0), 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, false, Some(0x7000_0000), 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, true, None, 4096), (0, 300, 200));
        assert_eq!(read(&mut dom0, false, None, 4096), (0, 300, 0));
        assert_eq!(read(&mut dom0, true, None, 0), (0, 300, 0));
    }

    fn ask<T: FromBytes + IntoBytes + Immutable>(running: &mut Running, cmd: u32, request: &mut T) -> i64 {
        let mut op = Sysctl { cmd, interface_version: VERSION, ..Default::default() };
        op.u.set(request);
        let result = sysctl(running, &mut op);
        *request = op.u.get();
        result
    }

    #[test]
    fn the_machine_is_described() {
        let mut dom0 = dom0(0);
        let mut info = PhysInfo::default();
        assert_eq!(ask(&mut dom0, XEN_SYSCTL_PHYSINFO, &mut info), 0);
        let memory = dom0.system.memory;
        assert_eq!((info.nr_cpus, info.max_cpu_id, info.threads_per_core, info.cores_per_socket), (1, 0, 1, 1));
        assert_eq!((info.total_pages, info.free_pages), (memory.total_frames(), memory.free_frames()));
        assert!(info.total_pages > info.free_pages);
        assert_eq!((info.hw_cap, info.cpu_khz), ([1, 2, 3, 4, 5, 6, 7, 8], 1_000_000));
        assert_eq!(info.capabilities & XEN_SYSCTL_PHYSCAP_HAP, XEN_SYSCTL_PHYSCAP_HAP);
        let mut topology = CpuTopoInfo { cputopo: GuestHandle::NULL, ..Default::default() };
        assert_eq!((ask(&mut dom0, XEN_SYSCTL_CPUTOPOINFO, &mut topology), topology.num_cpus), (0, 1));
        let mut nodes = NumaInfo { num_nodes: 4, meminfo: GuestHandle::new(page(1)), ..Default::default() };
        assert_eq!((ask(&mut dom0, XEN_SYSCTL_NUMAINFO, &mut nodes), nodes.num_nodes), (0, 1));
        assert_eq!(dom0.peek::<MemInfo>(page(1)).memfree, memory.free_frames() * PAGE);
    }

    #[test]
    fn domains_are_listed_from_a_number_on() {
        let mut dom0 = dom0(0);
        for id in [9, 5] {
            fake::add_domain(dom0.system, id, 4);
        }
        let list = |dom0: &mut Running, first, max_domains| {
            let mut request = GetDomainInfoList {
                first_domain: DomainId(first),
                max_domains,
                buffer: GuestHandle::new(page(1)),
                ..Default::default()
            };
            assert_eq!(ask(dom0, XEN_SYSCTL_GETDOMAININFOLIST, &mut request), 0);
            let infos: [xen_abi::domctl::GetDomainInfo; 3] = dom0.peek(page(1));
            infos[..request.num_domains as usize].iter().map(|info| info.domain.0).collect::<Vec<_>>()
        };
        assert_eq!(list(&mut dom0, 0, 3), [0, 5, 9]);
        assert_eq!(list(&mut dom0, 1, 1), [5]);
        assert_eq!(list(&mut dom0, 6, 3), [9]);
        assert_eq!(list(&mut dom0, 10, 3), []);
    }

    #[test]
    fn there_is_one_pool_with_one_scheduler() {
        let mut dom0 = dom0(0);
        let mut pool = |op, cpupool_id| {
            let mut request = CpupoolOp { op, cpupool_id, ..Default::default() };
            request.cpumap.bitmap = GuestHandle::new(page(1));
            request.cpumap.nr_bits = 8;
            (ask(&mut dom0, XEN_SYSCTL_CPUPOOL_OP, &mut request), request.n_dom, dom0.peek::<u8>(page(1)))
        };
        assert_eq!(pool(XEN_SYSCTL_CPUPOOL_OP_INFO, 0), (0, 1, 1));
        assert_eq!(pool(XEN_SYSCTL_CPUPOOL_OP_INFO, 1).0, Errno::ENOENT.as_return());
        assert_eq!(pool(XEN_SYSCTL_CPUPOOL_OP_FREEINFO, 0), (0, 0, 0));
        assert_eq!(pool(XEN_SYSCTL_CPUPOOL_OP_CREATE, 0).0, Errno::EOPNOTSUPP.as_return());
        let mut limit = |cmd, micros| {
            let sched_id = scheduling::number(sched::Kind::Credit2);
            let mut request = SchedulerOp { sched_id, cmd, u: [micros, 0], ..Default::default() };
            (ask(&mut dom0, XEN_SYSCTL_SCHEDULER_OP, &mut request), request.u[0])
        };
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_GETINFO, 0), (0, 1000));
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_PUTINFO, 2000).0, 0);
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_PUTINFO, 99).0, Errno::EINVAL.as_return());
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_GETINFO, 0), (0, 2000));
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_PUTINFO, 0).0, 0);
        assert_eq!(limit(XEN_SYSCTL_SCHEDOP_GETINFO, 0), (0, 0), "that is no limit");
    }

    #[test]
    fn another_version_is_not_spoken_and_the_rest_not_implemented() {
        let mut dom0 = dom0(0);
        let ask = |interface_version, cmd| Sysctl { cmd, interface_version, ..Default::default() };
        assert_eq!(sysctl(&mut dom0, &mut ask(VERSION, 999)), Errno::ENOSYS.as_return());
        for version in [0, VERSION - 1, VERSION + 1] {
            assert_eq!(sysctl(&mut dom0, &mut ask(version, XEN_SYSCTL_READCONSOLE)), Errno::EACCES.as_return());
        }
        assert_eq!(dom0.call(SYSCTL, &[0xdead_0000]).0, Errno::EFAULT.as_return());
        let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
        assert_eq!(sysctl(&mut guest, &mut ask(VERSION, XEN_SYSCTL_READCONSOLE)), Errno::EPERM.as_return());
    }
}
