//! SCHEDOP as a guest makes it.

use xen_abi::event::*;
use xen_abi::handle::GuestHandle;
use xen_abi::numbers::{EVENT_CHANNEL_OP, SCHED_OP};
use xen_abi::types::{DomainId, Port, VcpuId};

use super::*;
use crate::fake::{self, Running, Told, Wanted, page};
use crate::machine::Width;

const SECOND: u64 = 1_000_000_000;

fn guest() -> Running {
    let system = fake::system(256);
    let domain = fake::add(system, Wanted { vcpus: 2, ..Wanted::default() });
    Running::new(system, &domain)
}

fn call(running: &mut Running, operation: u32) -> i64 {
    running.call(SCHED_OP, &[operation.into(), 0]).0
}

fn no(errno: Errno) -> i64 {
    errno.as_return()
}

fn now(running: &Running) -> u64 {
    running.system.machine.now().0
}

/// Lets time pass, and does what the machine then does.
fn wait(running: &Running, nanos: u64) {
    running.system.machine.now.fetch_add(nanos, Ordering::Relaxed);
    timer::expire(running.system, &running.domain, running.vcpu(), running.system.machine.now());
}

fn port(running: &mut Running) -> Port {
    let mut bind = BindIpi { vcpu: 0, ..Default::default() };
    assert_eq!(running.op(EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut bind), 0);
    bind.port
}

fn send(running: &mut Running, port: Port) {
    let vcpu = core::mem::replace(&mut running.id, VcpuId(1));
    assert_eq!(running.op(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut Send { port }), 0);
    running.id = vcpu;
}

fn poll(running: &mut Running, ports: &[Port], timeout: u64) -> i64 {
    running.poke(page(1), ports);
    let mut argument = Poll { ports: GuestHandle::new(page(1)), nr_ports: ports.len() as u32, pad: 0, timeout };
    running.op_arg(SCHED_OP, SCHEDOP_POLL, &mut argument)
}

#[test]
fn yielding_is_the_machines_business() {
    let mut guest = guest();
    assert_eq!(call(&mut guest, SCHEDOP_YIELD), 0);
    assert_eq!(guest.system.machine.told(), [Told::Yield]);
    assert!(guest.vcpu().is_runnable());
}

#[test]
fn blocking_unmasks_upcalls_and_lasts_until_there_is_one() {
    let mut guest = guest();
    let mask =
        |guest: &Running| guest.vcpu().info(&guest.domain).unwrap().upcall_mask().unwrap().swap(1, Ordering::SeqCst);
    mask(&guest);
    assert_eq!(call(&mut guest, SCHEDOP_BLOCK), 0);
    assert_eq!((mask(&guest), guest.vcpu().holds()), (0, hold::BLOCKED));
    assert!(guest.vcpu().rouse());
}

#[test]
fn a_vcpu_does_not_block_with_something_to_do() {
    let mut guest = guest();
    let port = port(&mut guest);
    send(&mut guest, port);
    assert_eq!(call(&mut guest, SCHEDOP_BLOCK), 0);
    assert!(guest.vcpu().is_runnable());
    let mut other = self::guest();
    other.system.machine.interrupt.store(true, Ordering::Relaxed);
    assert_eq!(call(&mut other, SCHEDOP_BLOCK), 0);
    assert!(other.vcpu().is_runnable());
}

#[test]
fn a_poll_ends_with_an_event_on_one_of_its_ports() {
    for width in [Width::Bits64, Width::Bits32] {
        let mut guest = guest();
        guest.context.width = width;
        let (first, second) = (port(&mut guest), port(&mut guest));
        assert_eq!(poll(&mut guest, &[first], 0), 0);
        assert_eq!(guest.vcpu().holds(), hold::POLLING);
        guest.system.machine.told();
        send(&mut guest, second);
        assert!(!guest.vcpu().is_runnable(), "an event on another port");
        send(&mut guest, first);
        assert!(guest.vcpu().is_runnable());
        assert!(guest.system.machine.told().contains(&Told::Wake(VcpuId(0))));
        // What is pending already is not waited for.
        assert_eq!(poll(&mut guest, &[second, first], 0), 0);
        assert!(guest.vcpu().is_runnable());
    }
}

#[test]
fn a_poll_of_several_ports_or_none_ends_with_any_event() {
    let mut guest = guest();
    let ports = [port(&mut guest), port(&mut guest), port(&mut guest)];
    for polled in [&ports[..2], &[]] {
        assert_eq!(poll(&mut guest, polled, 0), 0);
        assert!(!guest.vcpu().is_runnable());
        send(&mut guest, ports[2]);
        assert!(guest.vcpu().is_runnable());
        guest.domain.shared_info.write(2048, &[0; 8]).unwrap();
    }
}

#[test]
fn a_poll_ends_in_time() {
    for width in [Width::Bits64, Width::Bits32] {
        let mut guest = guest();
        guest.context.width = width;
        let port = port(&mut guest);
        let at = now(&guest) + SECOND;
        assert_eq!(poll(&mut guest, &[port], at), 0);
        assert_eq!(guest.vcpu().next_deadline(), Some(sched::Nanos(at)));
        wait(&guest, SECOND - 1);
        assert!(!guest.vcpu().is_runnable());
        wait(&guest, 1);
        assert!(guest.vcpu().is_runnable());
    }
}

#[test]
fn a_poll_until_a_time_that_is_past_or_with_an_interrupt_waiting_does_not_sleep() {
    let mut guest = guest();
    let port = port(&mut guest);
    // Times are signed: what looks like far away is past.
    for past in [1, now(&guest), u64::MAX, 1 << 63] {
        assert_eq!(poll(&mut guest, &[port], past), 0);
        assert!(guest.vcpu().is_runnable(), "{past:#x}");
    }
    guest.system.machine.interrupt.store(true, Ordering::Relaxed);
    assert_eq!(poll(&mut guest, &[port], 0), 0);
    assert!(guest.vcpu().is_runnable());
    assert_eq!(guest.vcpu().next_deadline(), None);
}

#[test]
fn polls_that_make_no_sense_are_refused_and_do_not_sleep() {
    let mut guest = guest();
    let port = port(&mut guest);
    assert_eq!(poll(&mut guest, &[port; 129], 1), no(Errno::EINVAL));
    assert_eq!(poll(&mut guest, &[port, Port(0x10_0000)], 0), no(Errno::EINVAL));
    for nr_ports in [1, 2] {
        let mut lost = Poll { ports: GuestHandle::new(0xdead_0000), nr_ports, pad: 0, timeout: 0 };
        assert_eq!(guest.op(SCHED_OP, SCHEDOP_POLL, &mut lost), no(Errno::EFAULT));
    }
    assert!(guest.vcpu().is_runnable());
}

#[test]
fn a_shutdown_stops_every_vcpu_and_its_first_reason_stays() {
    let mut guest = guest();
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason: SHUTDOWN_CRASH }), 0);
    assert!(guest.domain.vcpus.iter().all(|vcpu| vcpu.holds() & hold::STOPPED != 0));
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason: SHUTDOWN_REBOOT }), 0);
    assert_eq!(guest.system.machine.told(), [Told::Stopped(DomainId(0), SHUTDOWN_CRASH)]);
    assert_eq!(guest.domain.shutdown_reason(), Some(SHUTDOWN_CRASH));
}

#[test]
fn a_shutdowns_reason_may_be_said_before_and_has_eight_bits() {
    let mut guest = guest();
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_SHUTDOWN_CODE, &mut Shutdown { reason: 0x1fe }), 0);
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_SHUTDOWN_CODE, &mut Shutdown { reason: 1 }), 0);
    assert_eq!(guest.domain.shutdown_reason(), None);
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason: SHUTDOWN_POWEROFF }), 0);
    assert_eq!(guest.domain.shutdown_reason(), Some(0xfe));
}

#[test]
fn others_are_shut_down_by_who_controls_them() {
    let mut dom0 = guest();
    let other = fake::add_domain(dom0.system, 5, 16);
    let mut other = Running::new(dom0.system, &other);
    let mut argument = RemoteShutdown { domain_id: DomainId(0), pad: 0, reason: SHUTDOWN_SUSPEND };
    assert_eq!(other.op(SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, &mut argument), no(Errno::EPERM));
    for nobody in [DomainId(99), DomainId::SELF] {
        let mut argument = RemoteShutdown { domain_id: nobody, ..argument };
        assert_eq!(dom0.op(SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, &mut argument), no(Errno::ESRCH));
    }
    argument.domain_id = DomainId(5);
    assert_eq!(dom0.op(SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, &mut argument), 0);
    assert_eq!(other.domain.shutdown_reason(), Some(SHUTDOWN_SUSPEND));
    assert_eq!(dom0.domain.shutdown_reason(), None);
}

#[test]
fn a_watchdog_that_is_not_set_again_shuts_the_domain_down() {
    let mut guest = guest();
    let set = |guest: &mut Running, id, timeout| guest.op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id, timeout });
    guest.id = VcpuId(1);
    assert_eq!(set(&mut guest, 1, 5), no(Errno::EINVAL));
    assert_eq!(set(&mut guest, 0, 5), 1);
    assert!(guest.system.machine.told().contains(&Told::Timer(VcpuId(0))), "the first vCPU keeps it");
    guest.id = VcpuId(0);
    for _ in 0..3 {
        wait(&guest, 4 * SECOND);
        assert_eq!(set(&mut guest, 1, 5), 0);
    }
    assert_eq!(set(&mut guest, 0, 100), 2);
    assert_eq!(set(&mut guest, 0, 1), no(Errno::ENOSPC));
    assert_eq!(guest.domain.shutdown_reason(), None);
    wait(&guest, 5 * SECOND);
    assert_eq!(guest.domain.shutdown_reason(), Some(SHUTDOWN_WATCHDOG));
    assert_eq!(guest.vcpu().next_deadline(), None);
}

#[test]
fn a_watchdog_that_is_ended_does_nothing() {
    let mut guest = guest();
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id: 0, timeout: 5 }), 1);
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id: 1, timeout: 0 }), 0);
    wait(&guest, 10 * SECOND);
    assert_eq!(guest.domain.shutdown_reason(), None);
    // One without any time fires at once, as on Xen.
    assert_eq!(guest.op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id: 0, timeout: 0 }), 1);
    assert_eq!(guest.domain.shutdown_reason(), Some(SHUTDOWN_WATCHDOG));
}

#[test]
fn an_override_of_the_affinity_lasts_until_it_is_ended() {
    let mut dom0 = guest();
    let before = *dom0.system.machine.affinity.lock().unwrap();
    let only = CpuSet::of(CpuId(0));
    assert_ne!(before.hard, only);
    for (pcpu, result, hard) in [
        (-1, 0, before.hard),
        (1, no(Errno::EINVAL), before.hard),
        (0, 0, only),
        (0, 0, only),
        (i32::MAX, no(Errno::EINVAL), only),
        (-1, 0, before.hard),
        (-1, 0, before.hard),
    ] {
        assert_eq!(dom0.op(SCHED_OP, SCHEDOP_PIN_OVERRIDE, &mut PinOverride { pcpu }), result, "{pcpu}");
        assert_eq!(*dom0.system.machine.affinity.lock().unwrap(), Affinity { hard, ..before }, "{pcpu}");
    }
    let other = fake::add_domain(dom0.system, 5, 16);
    let mut other = Running::new(dom0.system, &other);
    assert_eq!(other.op(SCHED_OP, SCHEDOP_PIN_OVERRIDE, &mut PinOverride { pcpu: 0 }), no(Errno::EPERM));
}

#[test]
fn what_does_not_exist_is_not_implemented() {
    let mut guest = guest();
    assert_eq!(call(&mut guest, 8), no(Errno::ENOSYS));
    assert_eq!(guest.call(SCHED_OP, &[1 << 32, 0]).0, 0, "operations have 32 bits");
    for operation in [SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_REMOTE_SHUTDOWN, SCHEDOP_WATCHDOG] {
        assert_eq!(guest.call(SCHED_OP, &[operation.into(), 0xdead_0000]).0, no(Errno::EFAULT));
    }
}
