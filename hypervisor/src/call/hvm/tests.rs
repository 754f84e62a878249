//! HVMOP as a guest and its toolstack make it.

use xen_abi::event::{BindIpi, EVTCHNOP_BIND_IPI, EVTCHNOP_SEND, Send};
use xen_abi::numbers::{EVENT_CHANNEL_OP, HVM_OP};
use xen_abi::types::DomainId;

use super::*;
use crate::fake::{self, DEVICE, RAM, Running, Told, Wanted, page};
use crate::machine::Width;

const GUEST: u16 = 5;

fn pair() -> (Running, Running) {
    let system = fake::system(256);
    let dom0 = fake::add(system, Wanted { vcpus: 2, ..Wanted::default() });
    let guest = fake::add_domain(system, GUEST, 16);
    (Running::new(system, &dom0), Running::new(system, &guest))
}

fn no(errno: Errno) -> i64 {
    errno.as_return()
}

fn set(running: &mut Running, domain: DomainId, index: u32, value: u64) -> i64 {
    running.op(HVM_OP, HVMOP_SET_PARAM, &mut Param { domid: domain, pad: 0, index, value })
}

fn get(running: &mut Running, domain: DomainId, index: u32) -> Result<u64, i64> {
    let mut param = Param { domid: domain, pad: 0, index, value: 77 };
    match running.op(HVM_OP, HVMOP_GET_PARAM, &mut param) {
        0 => Ok(param.value),
        error => Err(error),
    }
}

#[test]
fn a_domain_sets_and_reads_the_same_of_its_own_parameters_as_on_xen() {
    let (mut dom0, mut guest) = pair();
    for running in [&mut dom0, &mut guest] {
        let own = running.domain.id;
        for index in 0..48 {
            let (may_read, may_set) = match index {
                0 | 2 | 15 | 18 | 19 | 34 | 36 | 37 => (0, 0),
                1 | 17 | 35 => (0, no(Errno::EPERM)),
                4 | 13 | 20..=26 | 30 | 39.. => (no(Errno::EINVAL), no(Errno::EINVAL)),
                _ => (no(Errno::EPERM), no(Errno::EPERM)),
            };
            for domain in [DomainId::SELF, own] {
                assert_eq!(set(running, domain, index, 0), may_set, "setting {index}");
                assert_eq!(get(running, domain, index).err().unwrap_or(0), may_read, "reading {index}");
            }
        }
    }
}

#[test]
fn the_toolstack_sets_what_the_guest_reads() {
    let (mut dom0, mut guest) = pair();
    for (index, value) in
        [(HVM_PARAM_STORE_PFN, 0xfeffd), (HVM_PARAM_STORE_EVTCHN, 3), (HVM_PARAM_CONSOLE_PFN, 0xfeffe)]
    {
        assert_eq!(set(&mut dom0, DomainId(GUEST), index, value), 0);
        assert_eq!(get(&mut guest, DomainId::SELF, index), Ok(value));
        assert_eq!(get(&mut dom0, DomainId(GUEST), index), Ok(value));
    }
    assert_eq!(set(&mut dom0, DomainId(GUEST), HVM_PARAM_IDENT_PT, 0x1000), 0);
    assert_eq!(get(&mut dom0, DomainId(GUEST), HVM_PARAM_IDENT_PT), Ok(0x1000));
    assert_eq!(set(&mut guest, DomainId(0), HVM_PARAM_STORE_EVTCHN, 1), no(Errno::EPERM));
    assert_eq!(get(&mut guest, DomainId(0), HVM_PARAM_STORE_EVTCHN), Err(no(Errno::EPERM)));
    assert_eq!(get(&mut dom0, DomainId(99), HVM_PARAM_STORE_EVTCHN), Err(no(Errno::ESRCH)));
    assert_eq!(get(&mut dom0, DomainId(99), 100), Err(no(Errno::EINVAL)));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let (mut dom0, _) = pair();
    let guest = DomainId(GUEST);
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_TIMER_MODE, HVMPTM_ONE_MISSED_TICK_PENDING), 0);
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_TIMER_MODE, 4), no(Errno::EINVAL));
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_X87_FIP_WIDTH, 3), no(Errno::EINVAL));
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_TRIPLE_FAULT_REASON, 6), no(Errno::EINVAL));
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_ALTP2M, XEN_ALTP2M_DISABLED), 0);
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_ALTP2M, XEN_ALTP2M_MIXED), no(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut dom0, guest, HVM_PARAM_ALTP2M, 4), no(Errno::EINVAL));
    assert_eq!(get(&mut dom0, guest, HVM_PARAM_TIMER_MODE), Ok(3));
}

#[test]
fn the_callback_is_a_vector_a_gsi_or_nothing() {
    let (mut dom0, _) = pair();
    for (value, callback) in [
        (2 << 56 | 0x31, Callback::Vector(0x31)),
        (1, Callback::Gsi(1)),
        (0, Callback::None),
        (1 << 56 | 3, Callback::None),
        (0xff << 56, Callback::None),
    ] {
        assert_eq!(set(&mut dom0, DomainId::SELF, HVM_PARAM_CALLBACK_IRQ, value), 0);
        assert_eq!(dom0.domain.callback(), callback);
        assert_eq!(get(&mut dom0, DomainId::SELF, HVM_PARAM_CALLBACK_IRQ), Ok(value));
    }
}

#[test]
fn the_callback_fixes_the_width_of_what_is_shared() {
    let (mut dom0, mut guest) = pair();
    *dom0.system.machine.wallclock.lock().unwrap() = (0x1_2345_6789, 0);
    guest.context.width = Width::Bits32;
    assert_eq!(set(&mut guest, DomainId::SELF, HVM_PARAM_CALLBACK_IRQ, 1), 0);
    assert_eq!(guest.domain.shared_width(), Width::Bits32);
    let mut wallclock = [0; 4];
    guest.domain.shared_info.read(2308, &mut wallclock).unwrap();
    assert_eq!(u32::from_le_bytes(wallclock), 0x2345_6789);
    assert_eq!(set(&mut dom0, DomainId(GUEST), HVM_PARAM_CALLBACK_IRQ, 1), 0);
    assert_eq!(guest.domain.shared_width(), Width::Bits32, "the toolstack's own width says nothing");
    guest.context.width = Width::Bits64;
    assert_eq!(set(&mut guest, DomainId::SELF, HVM_PARAM_CALLBACK_IRQ, 1), 0);
    assert_eq!(guest.domain.shared_width(), Width::Bits64);
}

#[test]
fn an_upcall_that_was_waiting_finds_its_way_in() {
    let (mut dom0, _) = pair();
    let mut bind = BindIpi { vcpu: 1, ..Default::default() };
    assert_eq!(dom0.op(EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut bind), 0);
    assert_eq!(dom0.op(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut Send { port: bind.port }), 0);
    let upcall = [Told::Upcall(VcpuId(1))];
    assert_eq!(dom0.system.machine.told(), upcall);
    assert_eq!(set(&mut dom0, DomainId::SELF, HVM_PARAM_CALLBACK_IRQ, 2 << 56 | 0x31), 0);
    assert_eq!(dom0.system.machine.told(), upcall);
    let mut vector = EvtchnUpcallVector { vcpu: 1, vector: 0xf3, pad: [0; 3] };
    assert_eq!(dom0.op(HVM_OP, HVMOP_SET_EVTCHN_UPCALL_VECTOR, &mut vector), 0);
    assert_eq!(dom0.system.machine.told(), upcall);
    assert_eq!(dom0.domain.vcpus[1].upcall_vector(), 0xf3);
}

#[test]
fn upcall_vectors_are_those_that_a_local_apic_takes() {
    let (mut dom0, _) = pair();
    let mut ask = |vcpu, vector| {
        dom0.op(HVM_OP, HVMOP_SET_EVTCHN_UPCALL_VECTOR, &mut EvtchnUpcallVector { vcpu, vector, pad: [0; 3] })
    };
    assert_eq!((ask(0, 15), ask(0, 0)), (no(Errno::EINVAL), no(Errno::EINVAL)));
    assert_eq!((ask(9, 0), ask(9, 0xf3)), (no(Errno::EINVAL), no(Errno::ENOENT)));
    assert_eq!((ask(0, 16), ask(0, 255)), (0, 0));
}

#[test]
fn the_time_and_kinds_of_memory_are_told() {
    let (mut dom0, mut guest) = pair();
    let mut time = GetTime::default();
    assert_eq!(dom0.op(HVM_OP, HVMOP_GET_TIME, &mut time), 0);
    assert_eq!(time.now, 1_000_000_000);
    for (pfn, kind) in
        [(RAM, HVMMEM_RAM_RW), (DEVICE, HVMMEM_MMIO_DM), (0x8000, HVMMEM_MMIO_DM), (u64::MAX, HVMMEM_MMIO_DM)]
    {
        let mut ask = GetMemType { domid: DomainId(GUEST), pfn, ..Default::default() };
        assert_eq!((dom0.op(HVM_OP, HVMOP_GET_MEM_TYPE, &mut ask), ask.mem_type), (0, kind));
    }
    let mut ask = GetMemType { domid: DomainId(0), ..Default::default() };
    assert_eq!(guest.op(HVM_OP, HVMOP_GET_MEM_TYPE, &mut ask), no(Errno::EPERM));
}

#[test]
fn what_does_not_exist_is_refused_as_xen_does() {
    let (mut dom0, _) = pair();
    for operation in [2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 22, 26, u32::MAX] {
        assert_eq!(dom0.call(HVM_OP, &[operation.into(), page(0)]).0, no(Errno::ENOSYS));
    }
    assert_eq!(dom0.call(HVM_OP, &[HVMOP_PAGETABLE_DYING.into(), page(0)]).0, no(Errno::EINVAL));
    assert_eq!(dom0.call(HVM_OP, &[HVMOP_ALTP2M.into(), page(0)]).0, no(Errno::EOPNOTSUPP));
    for operation in [HVMOP_SET_PARAM, HVMOP_GET_PARAM, HVMOP_SET_EVTCHN_UPCALL_VECTOR, HVMOP_GET_TIME] {
        assert_eq!(dom0.call(HVM_OP, &[operation.into(), 0xdead_0000]).0, no(Errno::EFAULT));
    }
}
