//! VCPUOP as a guest makes it, with both widths of caller.

use core::sync::atomic::Ordering;

use xen_abi::event::{BindVirq, EVTCHNOP_BIND_VIRQ, VIRQ_TIMER};
use xen_abi::numbers::{EVENT_CHANNEL_OP, SET_TIMER_OP, VCPU_OP};
use xen_abi::sched::SHUTDOWN_POWEROFF;
use xen_abi::types::{DomainId, Port};
use xen_abi::x86::VcpuTimeInfo;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::fake::{self, DEVICE, RAM, Running, Told, Wanted, page};
use crate::runstate::State;

const WIDTHS: [Width; 2] = [Width::Bits64, Width::Bits32];
const MILLISECOND: u64 = 1_000_000;

fn guest() -> Running {
    let system = fake::system(256);
    Running::new(system, &fake::add(system, Wanted { vcpus: 2, ..Wanted::default() }))
}

fn no(errno: Errno) -> i64 {
    errno.as_return()
}

fn op<T: FromBytes + IntoBytes + Immutable>(running: &mut Running, operation: u32, vcpu: u64, argument: &mut T) -> i64 {
    running.poke(page(1), argument);
    let result = running.call(VCPU_OP, &[operation.into(), vcpu, page(1)]).0;
    *argument = running.peek(page(1));
    result
}

fn plain(running: &mut Running, operation: u32, vcpu: u64) -> i64 {
    running.call(VCPU_OP, &[operation.into(), vcpu]).0
}

fn set_singleshot(running: &mut Running, vcpu: u64, timeout_abs_ns: u64) -> i64 {
    let timer = SetSingleshotTimer { timeout_abs_ns, flags: VCPU_SSHOTTMR_FUTURE, pad: 0 };
    match running.context.width {
        Width::Bits64 => op(running, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, &mut { timer }),
        Width::Bits32 => {
            let mut narrow = xen_abi::compat::Compat::narrow(&timer);
            op(running, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, &mut narrow)
        }
    }
}

fn timer_port(running: &mut Running) -> Port {
    let mut bind = BindVirq { virq: VIRQ_TIMER, ..Default::default() };
    assert_eq!(running.op(EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ, &mut bind), 0);
    bind.port
}

/// Whether the timer has fired since this was last asked.
fn fired(running: &Running, port: Port) -> bool {
    let pending = event::is_pending(&running.domain, port).unwrap();
    running.domain.shared_info.write(2048, &[0; 8]).unwrap();
    pending
}

fn wait(running: &Running, nanos: u64) {
    running.system.machine.now.fetch_add(nanos, Ordering::Relaxed);
    timer::expire(running.system, &running.domain, running.vcpu(), running.system.machine.now());
}

fn now(running: &Running) -> u64 {
    running.system.machine.now().0
}

// ---- timers ----

#[test]
fn a_single_shot_fires_when_it_is_due() {
    for width in WIDTHS {
        let mut guest = guest();
        let port = timer_port(&mut guest);
        guest.context.width = width;
        let at = now(&guest) + (1 << 33);
        assert_eq!(set_singleshot(&mut guest, 0, at), 0);
        assert!(guest.system.machine.told().contains(&Told::Timer(VcpuId(0))));
        wait(&guest, (1 << 33) - 1);
        assert!(!fired(&guest, port));
        wait(&guest, 1);
        assert!(fired(&guest, port));
        wait(&guest, 1 << 33);
        assert!(!fired(&guest, port));
    }
}

#[test]
fn a_single_shot_in_the_past_fires_at_once() {
    let mut guest = guest();
    let port = timer_port(&mut guest);
    for past in [0, 1, now(&guest), 1 << 63, u64::MAX] {
        assert_eq!(set_singleshot(&mut guest, 0, past), 0);
        assert!(fired(&guest, port), "{past:#x}");
    }
}

#[test]
fn a_single_shot_is_stopped_and_is_ones_own() {
    let mut guest = guest();
    let port = timer_port(&mut guest);
    let at = now(&guest) + MILLISECOND;
    assert_eq!(set_singleshot(&mut guest, 0, at), 0);
    assert_eq!(plain(&mut guest, VCPUOP_STOP_SINGLESHOT_TIMER, 0), 0);
    wait(&guest, MILLISECOND);
    assert!(!fired(&guest, port));
    assert_eq!(set_singleshot(&mut guest, 1, 1), no(Errno::EINVAL));
    assert_eq!(plain(&mut guest, VCPUOP_STOP_SINGLESHOT_TIMER, 1), no(Errno::EINVAL));
}

#[test]
fn periods_are_neither_too_short_nor_too_long() {
    let mut guest = guest();
    let port = timer_port(&mut guest);
    for period_ns in [0, MILLISECOND - 1, 1 << 62, u64::MAX] {
        assert_eq!(
            op(&mut guest, VCPUOP_SET_PERIODIC_TIMER, 0, &mut SetPeriodicTimer { period_ns }),
            no(Errno::EINVAL)
        );
    }
    for period_ns in [(1 << 62) - 1, MILLISECOND] {
        assert_eq!(op(&mut guest, VCPUOP_SET_PERIODIC_TIMER, 0, &mut SetPeriodicTimer { period_ns }), 0);
    }
    for _ in 0..3 {
        wait(&guest, MILLISECOND);
        assert!(fired(&guest, port));
    }
    assert_eq!(plain(&mut guest, VCPUOP_STOP_PERIODIC_TIMER, 0), 0);
    wait(&guest, MILLISECOND);
    assert!(!fired(&guest, port));
    assert_eq!(op(&mut guest, VCPUOP_SET_PERIODIC_TIMER, 1, &mut SetPeriodicTimer { period_ns: MILLISECOND }), 0);
}

#[test]
fn old_kernels_set_the_timer_by_a_call_of_its_own() {
    let mut guest = guest();
    let port = timer_port(&mut guest);
    let at = now(&guest) + (5 << 32);
    assert_eq!(guest.call(SET_TIMER_OP, &[at]).0, 0);
    assert_eq!(guest.vcpu().next_deadline(), Some(Nanos(at)));
    assert_eq!(guest.call(SET_TIMER_OP, &[0]).0, 0);
    assert_eq!(guest.vcpu().next_deadline(), None);
    guest.context.width = Width::Bits32;
    assert_eq!(guest.call(SET_TIMER_OP, &[at & 0xffff_ffff, at >> 32]).0, 0);
    assert_eq!(guest.vcpu().next_deadline(), Some(Nanos(at)));
    assert_eq!(guest.call(SET_TIMER_OP, &[1, 0]).0, 0);
    assert!(fired(&guest, port));
}

// ---- vCPUs ----

#[test]
fn vcpus_that_do_not_exist_are_said_so() {
    let mut guest = guest();
    for operation in [VCPUOP_IS_UP, VCPUOP_UP, VCPUOP_STOP_PERIODIC_TIMER, VCPUOP_REGISTER_VCPU_INFO, 99] {
        assert_eq!(plain(&mut guest, operation, 2), no(Errno::ENOENT));
        assert_eq!(plain(&mut guest, operation, u32::MAX.into()), no(Errno::ENOENT));
    }
    assert_eq!(plain(&mut guest, VCPUOP_IS_UP, 1 << 32), 1, "a vCPU's number has 32 bits");
    for operation in [16, 99, u32::MAX, VCPUOP_INITIALISE] {
        assert_eq!(plain(&mut guest, operation, 0), no(Errno::ENOSYS));
    }
    assert_eq!(plain(&mut guest, VCPUOP_GET_PHYSID, 0), no(Errno::EINVAL));
}

#[test]
fn vcpus_go_up_and_down_and_the_last_one_takes_the_domain_with_it() {
    let mut guest = guest();
    assert_eq!(plain(&mut guest, VCPUOP_IS_UP, 1), 1);
    assert_eq!(plain(&mut guest, VCPUOP_DOWN, 1), 0);
    assert_eq!(plain(&mut guest, VCPUOP_IS_UP, 1), 0);
    assert_eq!(plain(&mut guest, VCPUOP_UP, 1), 0);
    assert_eq!(guest.system.machine.told(), [Told::Online(VcpuId(1), false), Told::Online(VcpuId(1), true)]);
    assert_eq!(plain(&mut guest, VCPUOP_DOWN, 1), 0);
    assert_eq!(guest.domain.shutdown_reason(), None);
    assert_eq!(plain(&mut guest, VCPUOP_DOWN, 0), 0);
    assert_eq!(guest.domain.shutdown_reason(), Some(SHUTDOWN_POWEROFF));
}

#[test]
fn an_nmi_is_sent_without_an_argument() {
    let mut guest = guest();
    assert_eq!(plain(&mut guest, VCPUOP_SEND_NMI, 1), 0);
    assert_eq!(guest.system.machine.told(), [Told::Nmi(VcpuId(1))]);
    assert_eq!(guest.call(VCPU_OP, &[VCPUOP_SEND_NMI.into(), 1, page(1)]).0, no(Errno::EINVAL));
}

// ---- vcpu_info ----

fn register_info(running: &mut Running, vcpu: u64, mfn: u64, offset: u32) -> i64 {
    op(running, VCPUOP_REGISTER_VCPU_INFO, vcpu, &mut RegisterVcpuInfo { mfn, offset, reserved: 0 })
}

#[test]
fn vcpu_info_moves_once_with_what_it_says() {
    let mut guest = guest();
    // A mark in arch.cr2, which nobody else writes.
    guest.domain.shared_info.write(64 + 16, &[0x5a; 8]).unwrap();
    assert_eq!(register_info(&mut guest, 1, RAM + 9, 128), 0);
    assert_eq!(guest.peek::<[u8; 8]>(page(9) + 128 + 16), [0x5a; 8]);
    let time: VcpuTimeInfo = guest.peek(page(9) + 128 + 32);
    assert_eq!((time.version & 1, time.tsc_to_system_mul, time.tsc_shift, time.flags), (0, 0x8000_0000, 1, 1));
    // The vCPU is made to look at everything.
    assert_eq!(guest.peek::<u8>(page(9) + 128), 1);
    assert_eq!(guest.peek::<u64>(page(9) + 128 + 8), u64::MAX);
    assert!(guest.system.machine.told().contains(&Told::Upcall(VcpuId(1))));
    assert_eq!(register_info(&mut guest, 1, RAM + 10, 0), no(Errno::EBUSY));
    assert_eq!(register_info(&mut guest, 0, RAM + 9, 0), 0, "another vCPU's");
    // The page stays as long as it is needed.
    let mfn = guest.domain.p2m.lookup(Gfn(RAM + 9)).unwrap().mfn;
    assert_eq!(guest.system.memory.state(mfn).count(), 2);
}

#[test]
fn places_that_vcpu_info_cannot_have_are_refused() {
    let mut guest = guest();
    for (mfn, offset, errno) in [
        (RAM + 9, 4096, Errno::EINVAL),
        (RAM + 9, u32::MAX, Errno::EINVAL),
        (RAM + 9, 4096 - 56, Errno::ENXIO),
        (RAM + 9, 4, Errno::ENXIO),
        (DEVICE, 0, Errno::EINVAL),
        (0x8000, 0, Errno::EINVAL),
        (u64::MAX, 0, Errno::EINVAL),
    ] {
        assert_eq!(register_info(&mut guest, 0, mfn, offset), no(errno), "{mfn:#x} {offset}");
    }
    guest.context.width = Width::Bits32;
    assert_eq!(register_info(&mut guest, 0, RAM + 9, 4), 0, "a 32-bit guest's is aligned to 4");
}

// ---- areas ----

fn area_op(running: &mut Running, operation: u32, addr: u64) -> i64 {
    op(running, operation, 0, &mut RegisterArea { addr })
}

#[test]
fn time_is_told_where_it_was_asked_for() {
    for operation in [VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA] {
        let mut guest = guest();
        assert_eq!(area_op(&mut guest, operation, page(9) + 64), 0);
        let time: VcpuTimeInfo = guest.peek(page(9) + 64);
        assert_eq!((time.version & 1, time.tsc_to_system_mul), (0, 0x8000_0000));
        for addr in [page(9) + 4080, page(9) + 4, page(9) + 1] {
            assert_eq!(area_op(&mut guest, operation, addr), no(Errno::ENXIO));
        }
        let none = if operation == VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA { u64::MAX } else { 0 };
        assert_eq!(area_op(&mut guest, operation, none), 0);
        assert!(guest.vcpu().time_area.lock().is_none());
    }
    let mut guest = guest();
    let missing = 0x8000 << 12;
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, missing), no(Errno::EFAULT));
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, missing), no(Errno::EINVAL));
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, missing), no(Errno::EFAULT));
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, missing), no(Errno::EINVAL));
}

#[test]
fn a_32_bit_callers_linear_address_has_32_bits() {
    let mut guest = guest();
    guest.context.width = Width::Bits32;
    // The rest of the field is whatever was on its stack.
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, page(9) | 0xdead << 32), 0);
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0xdead << 32), 0);
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, page(9) | 0xdead << 32), no(Errno::EINVAL));
}

/// The runstate at an address, in the layout of a width.
fn runstate_at(guest: &Running, at: u64) -> RunstateInfo {
    match guest.context.width {
        Width::Bits64 => guest.peek(at),
        Width::Bits32 => xen_abi::compat::Compat::widen(guest.peek::<xen_abi::compat::RunstateInfo>(at)),
    }
}

#[test]
fn runstates_are_asked_for_and_kept_up_to_date() {
    for width in WIDTHS {
        for operation in [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA] {
            let mut guest = guest();
            guest.context.width = width;
            guest.vcpu().runstate.lock().enter(State::Running, Nanos(5 << 32));
            assert_eq!(area_op(&mut guest, operation, page(9) + 8), 0);
            guest.vcpu().runstate.lock().enter(State::Blocked, Nanos(7 << 32));
            let info = runstate_at(&guest, page(9) + 8);
            assert_eq!((info.state, info.state_entry_time), (RUNSTATE_BLOCKED, 7 << 32));
            assert_eq!(info.time, [2 << 32, 0, 0, 5 << 32]);
            guest.system.machine.now.store(8 << 32, Ordering::Relaxed);
            assert_eq!(guest.call(VCPU_OP, &[VCPUOP_GET_RUNSTATE_INFO.into(), 0, page(2)]).0, 0);
            let info = runstate_at(&guest, page(2));
            assert_eq!((info.state, info.time), (RUNSTATE_BLOCKED, [2 << 32, 0, 1 << 32, 5 << 32]));
            let none = if operation == VCPUOP_REGISTER_RUNSTATE_PHYS_AREA { u64::MAX } else { 0 };
            assert_eq!(area_op(&mut guest, operation, none), 0);
            guest.vcpu().runstate.lock().enter(State::Running, Nanos(9 << 32));
            assert_eq!(runstate_at(&guest, page(9) + 8).state, RUNSTATE_BLOCKED);
        }
    }
}

#[test]
fn a_runstate_area_may_cross_a_page_by_its_linear_address_only() {
    for width in WIDTHS {
        let mut guest = guest();
        guest.context.width = width;
        let at = page(10) - 16;
        assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, at), no(Errno::ENXIO));
        assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, at), 0);
        guest.vcpu().runstate.lock().enter(State::Runnable, Nanos(3 << 32));
        let info = runstate_at(&guest, at);
        assert_eq!((info.state, info.state_entry_time, info.time), (RUNSTATE_RUNNABLE, 3 << 32, [0, 0, 0, 3 << 32]));
        let last = page(16) - 16;
        assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, last), no(Errno::EFAULT));
    }
}

#[test]
fn what_the_hypervisor_writes_to_is_freed_when_it_ceases() {
    let mut guest = guest();
    let memory = guest.system.memory;
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, page(9)), 0);
    let free = memory.free_frames();
    crate::physmap::Changes::new(guest.system, &guest.domain).remove(Gfn(RAM + 9)).unwrap();
    assert_eq!(memory.free_frames(), free);
    assert_eq!(area_op(&mut guest, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, page(10)), 0);
    assert_eq!(memory.free_frames(), free + 1);
    assert_eq!(guest.domain.id, DomainId(0));
}
