//! Hypercalls of a 32-bit caller: what they mean is the same, the layouts are i386's, and what is shared takes the width of whoever says so.

#![no_std]
#![no_main]

use tests_qemu::compat::{address, call, op};
use tests_qemu::memory::{self, gfn};
use tests_qemu::tests::Tests;
use tests_qemu::{clock, cpu, hypercall};
use xen_abi::compat::{
    AddToPhysmap, CopyPtr, GrantCopy, MemoryMap, MemoryReservation, MulticallEntry, Poll, RemoveFromPhysmap,
    RunstateInfo, SetSingleshotTimer, SetupTable, SharedInfo, U64, VcpuInfo,
};
use xen_abi::event::{AllocUnbound, Close, EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_CLOSE, EVTCHNOP_SEND, Send};
use xen_abi::grant::*;
use xen_abi::hvm::{HVM_PARAM_CALLBACK_IRQ, HVMOP_GET_PARAM, HVMOP_SET_PARAM, Param};
use xen_abi::memory::*;
use xen_abi::numbers::*;
use xen_abi::sched::SCHEDOP_POLL;
use xen_abi::sysctl::{PhysInfo, Sysctl, XEN_SYSCTL_INTERFACE_VERSION, XEN_SYSCTL_PHYSINFO};
use xen_abi::types::{DomainId, GrantRef};
use xen_abi::vcpu::*;
use xen_abi::version::{XENVER_PLATFORM_PARAMETERS, XENVER_VERSION};

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    versions(t);
    memory(t);
    events_and_time(t);
    grants(t);
    batches(t);
    width(t);
}

fn versions(t: &mut Tests) {
    t.returns("XENVER_version", call(XEN_VERSION, [XENVER_VERSION, 0, 0, 0, 0]), 4 << 16 | 20);
    t.returns("a number that there is not", call(63, [0; 5]), -38);
    let mut start = [0u32, 0x5a5a_5a5a];
    t.returns("XENVER_platform_parameters", op(XEN_VERSION, XENVER_PLATFORM_PARAMETERS, &mut start), 0);
    t.equal("writes 32 bits", start[1], 0x5a5a_5a5a);
    let mut info =
        Sysctl { cmd: XEN_SYSCTL_PHYSINFO, interface_version: XEN_SYSCTL_INTERFACE_VERSION, ..Sysctl::default() };
    t.returns("a sysctl, which has one layout", call(SYSCTL, [address(&mut info), 0, 0, 0, 0]), 0);
    t.check("says what the machine has", info.u.get::<PhysInfo>().total_pages > 10_000);
}

fn reservation() -> i64 {
    op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId::SELF })
}

fn reserve(operation: u32, gfns: &mut [u32]) -> i64 {
    let mut argument = MemoryReservation {
        extent_start: address(gfns),
        nr_extents: gfns.len() as u32,
        domid: DomainId::SELF,
        ..Default::default()
    };
    op(MEMORY_OP, operation, &mut argument)
}

fn add_to_physmap(space: u32, idx: u32, gpfn: u32) -> i64 {
    op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut AddToPhysmap { domid: DomainId::SELF, size: 0, space, idx, gpfn })
}

fn memory(t: &mut Tests) {
    let (wide, count, _) = memory::memory_map();
    let mut entries = [E820Entry::default(); 64];
    let mut map = MemoryMap { nr_entries: 64, buffer: address(&mut entries) };
    t.returns("the memory map", op(MEMORY_OP, XENMEM_MEMORY_MAP, &mut map), 0);
    t.check("is the one that 64-bit callers see", map.nr_entries as usize == count && entries == wide);

    let before = reservation();
    t.within("pages that Dom0 has", before as u64, 32_000, 33_000);
    let first = gfn(memory::spare_ram()) as u32;
    let mut gfns = [first, first + 1, first + 7];
    t.returns("giving three pages back", reserve(XENMEM_DECREASE_RESERVATION, &mut gfns), 3);
    t.equal("they are holes", cpu::read64(u64::from(gfns[2]) << 12), u64::MAX);
    t.returns("leaves three less", reservation(), before - 3);
    t.returns("getting them again", reserve(XENMEM_POPULATE_PHYSMAP, &mut gfns), 3);
    t.returns("has as many as before", reservation(), before);
    cpu::write64(u64::from(gfns[2]) << 12, 7);
    t.equal("they are memory", cpu::read64(u64::from(gfns[2]) << 12), 7);

    t.returns("moving a page", add_to_physmap(XENMAPSPACE_GMFN, gfns[2], first + 8), 0);
    t.equal("moves what is in it", cpu::read64(u64::from(first + 8) << 12), 7);
    let mut remove = RemoveFromPhysmap { domid: DomainId::SELF, gpfn: first + 8, ..Default::default() };
    t.returns("removing it", op(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut remove), 0);
    t.equal("leaves a hole", cpu::read64(u64::from(first + 8) << 12), u64::MAX);
}

fn events_and_time(t: &mut Tests) {
    // Before anyone asks for something else, what is shared is laid out for 64 bits.
    let shared = memory::shared_info();
    let mut alloc = AllocUnbound { dom: DomainId::SELF, remote_dom: DomainId::SELF, ..Default::default() };
    t.returns("allocating a port", op(EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut alloc), 0);
    let mut port = alloc.port;
    t.check("is told its number", port.0 != 0);
    let mut poll = Poll { ports: address(&mut port), nr_ports: 1, timeout: U64 { low: 1, high: 0 } };
    t.returns("polling it until a time that is over", op(SCHED_OP, SCHEDOP_POLL, &mut poll), 0);
    let until = clock::now() + 20_000_000;
    poll.timeout = U64 { low: until as u32, high: (until >> 32) as u32 };
    t.returns("polling it for a while", op(SCHED_OP, SCHEDOP_POLL, &mut poll), 0);
    t.check("lasts as long", clock::now() >= until);
    t.returns("sending to nobody", op(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut Send { port }), 0);
    t.returns("closing it", op(EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, &mut Close { port }), 0);
    t.check("the shared page is there", cpu::read32(shared + 32 + 24) != 0);

    let mut info = [RunstateInfo::default(); 2];
    info[1].state = 0x5a5a_5a5a;
    let result = call(VCPU_OP, [VCPUOP_GET_RUNSTATE_INFO, 0, address(&mut info), 0, 0]);
    t.returns("VCPUOP_get_runstate_info", result, 0);
    let running = u64::from(info[0].time[0].low) | u64::from(info[0].time[0].high) << 32;
    t.check("the vCPU runs, and has for some time", info[0].state == RUNSTATE_RUNNING && running > 0);
    t.check("and slept while it polled", info[0].time[2] != U64::default());
    t.equal("writes 44 bytes", info[1].state, 0x5a5a_5a5a);

    let mut timer = SetSingleshotTimer { timeout_abs_ns: U64 { low: 0, high: 1 << 20 }, flags: 0 };
    let result = call(VCPU_OP, [VCPUOP_SET_SINGLESHOT_TIMER, 0, address(&mut timer), 0, 0]);
    t.returns("VCPUOP_set_singleshot_timer", result, 0);
    t.returns("VCPUOP_stop_singleshot_timer", call(VCPU_OP, [VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0, 0, 0]), 0);
    t.returns("set_timer_op takes two registers", call(SET_TIMER_OP, [0, 1 << 20, 0, 0, 0]), 0);
    t.returns("and stops", call(SET_TIMER_OP, [0; 5]), 0);
}

fn grants(t: &mut Tests) {
    let mut size = QuerySize { dom: DomainId::SELF, ..Default::default() };
    let one = |operation, argument: u32| call(GRANT_TABLE_OP, [operation, argument, 1, 0, 0]);
    t.returns("the grant table's size", one(GNTTABOP_QUERY_SIZE, address(&mut size)), 0);
    t.check("is told", size.status == GNTST_OKAY && size.max_nr_frames > 1);
    let table = memory::page();
    t.returns("placing the table", add_to_physmap(XENMAPSPACE_GRANT_TABLE, 0, gfn(table) as u32), 0);
    let mut frames = [0x1111_1111u32, 0x5a5a_5a5a];
    let mut setup =
        SetupTable { dom: DomainId::SELF, nr_frames: 1, frame_list: address(&mut frames), ..Default::default() };
    t.returns("GNTTABOP_setup_table", one(GNTTABOP_SETUP_TABLE, address(&mut setup)), 0);
    t.equal("its status", setup.status, GNTST_OKAY);
    t.equal("a list of 32-bit frames", frames, [gfn(table) as u32, 0x5a5a_5a5a]);
    let (page, own) = (memory::page(), memory::page());
    cpu::write32(page, 0x1234_5678);
    cpu::write32(table + 8 * 8 + 4, gfn(page) as u32);
    cpu::write32(table + 8 * 8, u32::from(GTF_PERMIT_ACCESS));
    let place = |frame_or_ref, offset| CopyPtr { frame_or_ref, domid: DomainId::SELF, offset };
    let mut copies = [GrantCopy {
        source: place(8, 0),
        dest: place(gfn(own) as u32, 64),
        len: 4,
        flags: GNTCOPY_SOURCE_GREF,
        status: 99,
        pad: 0,
    }; 2];
    copies[1].source = place(GrantRef(9).0, 0);
    let result = call(GRANT_TABLE_OP, [GNTTABOP_COPY, address(&mut copies), 2, 0, 0]);
    t.returns("two copies", result, 0);
    t.equal("the first is made", copies[0].status, GNTST_OKAY);
    t.equal("to where it is to go", cpu::read32(own + 64), 0x1234_5678);
    t.check("the second is refused", copies[1].status < 0);

    // This one is the same for both widths.
    let hole = memory::spare_ram() + (4 << 20);
    t.returns("making a hole", reserve(XENMEM_DECREASE_RESERVATION, &mut [gfn(hole) as u32]), 1);
    let mut map = MapGrantRef {
        host_addr: hole,
        flags: GNTMAP_HOST_MAP,
        gref: GrantRef(8),
        dom: DomainId::DOM0,
        ..Default::default()
    };
    t.returns("mapping a grant", one(GNTTABOP_MAP_GRANT_REF, address(&mut map)), 0);
    t.equal("its status", map.status, GNTST_OKAY);
    t.equal("is the granted page", cpu::read32(hole), 0x1234_5678);
    let mut unmap = UnmapGrantRef { host_addr: hole, handle: map.handle, ..Default::default() };
    t.returns("unmapping it", one(GNTTABOP_UNMAP_GRANT_REF, address(&mut unmap)), 0);
    t.equal("its status afterwards", unmap.status, GNTST_OKAY);
}

fn batches(t: &mut Tests) {
    let mut domain = MemoryDomain { domid: DomainId::SELF };
    let mut entries = [MulticallEntry::default(); 3];
    entries[0] = MulticallEntry { op: XEN_VERSION as u32, result: 1, args: [XENVER_VERSION, 0, 0, 0, 0, 0] };
    let args = [XENMEM_CURRENT_RESERVATION, address(&mut domain), 0, 0, 0, 0];
    entries[1] = MulticallEntry { op: MEMORY_OP as u32, result: 1, args };
    entries[2] = MulticallEntry { op: 63, result: 1, args: [0; 6] };
    t.returns("a multicall", call(MULTICALL, [address(&mut entries), 3, 0, 0, 0]), 0);
    t.equal("its first result", entries[0].result, 4 << 16 | 20);
    t.returns("its second", entries[1].result.into(), reservation());
    t.equal("its third", entries[2].result as i32, -38);
}

/// The page that is shared, in the layout of a 32-bit guest.
fn narrow(field: usize) -> u32 {
    cpu::read32(memory::shared_info() + field as u64)
}

fn width(t: &mut Tests) {
    let mut param = Param { domid: DomainId::SELF, index: HVM_PARAM_CALLBACK_IRQ, ..Default::default() };
    t.returns("HVMOP_get_param", op(HVM_OP, HVMOP_GET_PARAM, &mut param), 0);
    let wide_seconds = cpu::read32(memory::shared_info() + 0xc04);
    t.check("the wall clock, as 64-bit callers find it", wide_seconds != 0);
    t.returns("a 32-bit caller sets the callback", op(HVM_OP, HVMOP_SET_PARAM, &mut param), 0);
    let seconds = narrow(core::mem::offset_of!(SharedInfo, wc_sec));
    t.within("the wall clock is where it looks", seconds.into(), wide_seconds.into(), u64::from(wide_seconds) + 1);
    let time = core::mem::offset_of!(VcpuInfo, time);
    t.check("so is the vCPU's time", narrow(time + 24) != 0 && narrow(time) & 1 == 0);

    let mut alloc = AllocUnbound { dom: DomainId::SELF, remote_dom: DomainId::SELF, ..Default::default() };
    t.returns("allocating a port of 1024", op(EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut alloc), 0);
    let mut bind =
        xen_abi::event::BindInterdomain { remote_dom: DomainId::SELF, remote_port: alloc.port, ..Default::default() };
    t.returns("binding its other end", op(EVENT_CHANNEL_OP, xen_abi::event::EVTCHNOP_BIND_INTERDOMAIN, &mut bind), 0);
    t.returns("sending", op(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut Send { port: bind.local_port }), 0);
    let pending = core::mem::offset_of!(SharedInfo, evtchn_pending) + (alloc.port.0 as usize / 32) * 4;
    // The end that was bound last is pending, too: it might have missed something.
    let bits = 1 << (alloc.port.0 % 32) | 1 << (bind.local_port.0 % 32);
    t.equal("the bits of both ends are set", narrow(pending), bits);
    t.equal("and that of its word", narrow(4), 1 << (alloc.port.0 / 32));
    t.equal("and that of the vCPU", narrow(0) & 0xff, 1);

    let wide = |param: &mut Param| hypercall::op(HVM_OP, HVMOP_SET_PARAM, param);
    t.returns("a 64-bit caller sets the callback", wide(&mut param), 0);
    let seconds = cpu::read32(memory::shared_info() + 0xc04);
    t.within("the wall clock is where that looks", seconds.into(), wide_seconds.into(), u64::from(wide_seconds) + 2);
}
