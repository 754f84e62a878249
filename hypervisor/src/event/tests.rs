//! Events seen from both sides: domains that are a few pages, and consumers written as a guest's would be.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use mm::SharedPage;
use xen_abi::errno::Errno;
use xen_abi::event as abi;
use xen_abi::types::{DomainId, Port, VcpuId};

use super::bind::{self, *};
use super::channels::{self, *};
use super::fifo::CONTROL_SIZE;
use super::ports::Binding;
use crate::area::Area;
use crate::machine::Width;

mod fifo;
mod preempted;
mod sharing;
mod threads;
mod two_level;

use sharing::page;

const VCPUS: u32 = 3;
const ALL_PORTS: u32 = u32::MAX;

/// A domain as far as events are concerned.
struct Fake {
    events: EventChannels,
    shared: SharedPage,
    width: Width,
    /// Where a vcpu_info was moved to.
    infos: [OnceLock<SharedPage>; VCPUS as usize],
    upcalls: Mutex<Vec<u32>>,
    polled: Mutex<Vec<(u32, Port)>>,
    for_hypervisor: Mutex<Vec<(u32, Port)>>,
    preemption: preempted::Preemption,
}

/// Where a moved vcpu_info is in its page.
const MOVED: usize = 0x340;

impl Shared for Fake {
    fn events(&self) -> &EventChannels {
        &self.events
    }

    fn shared_info(&self) -> &SharedPage {
        self.preemption.look();
        &self.shared
    }

    fn width(&self) -> Width {
        self.preemption.look();
        self.width
    }

    fn info(&self, vcpu: VcpuId) -> Option<(&SharedPage, usize)> {
        self.preemption.look();
        match self.infos[vcpu.0 as usize].get() {
            Some(page) => Some((page, MOVED)),
            None => Some((&self.shared, vcpu.0 as usize * 64)),
        }
    }
}

impl Guest for Fake {
    fn upcall(&self, vcpu: VcpuId) {
        // Whoever is told may take locks of this rank; that this thread holds none is checked by the lock.
        drop(mm::Lock::new(mm::Rank::Events, ()).lock());
        self.upcalls.lock().unwrap().push(vcpu.0);
    }

    fn wake_poller(&self, vcpu: VcpuId, port: Port) {
        self.polled.lock().unwrap().push((vcpu.0, port));
    }

    fn hypervisor_event(&self, vcpu: VcpuId, port: Port) {
        self.for_hypervisor.lock().unwrap().push((vcpu.0, port));
    }
}

impl Fake {
    fn with(id: u16, width: Width, max_port: u32) -> Fake {
        Fake {
            events: EventChannels::new(DomainId(id), VCPUS, max_port).unwrap(),
            shared: page().0,
            width,
            infos: Default::default(),
            upcalls: Default::default(),
            polled: Default::default(),
            for_hypervisor: Default::default(),
            preemption: Default::default(),
        }
    }

    fn new(id: u16) -> Fake {
        Fake::with(id, Width::Bits64, ALL_PORTS)
    }

    fn id(&self) -> DomainId {
        self.events.domain()
    }

    fn binding(&self, port: Port) -> Binding {
        self.events.state(port).unwrap().binding()
    }

    fn vcpu_of(&self, port: Port) -> u32 {
        self.events.state(port).unwrap().vcpu().0
    }

    fn take_upcalls(&self) -> Vec<u32> {
        std::mem::take(&mut self.upcalls.lock().unwrap())
    }

    fn upcall_pending(&self, vcpu: u32) -> &AtomicU8 {
        let (page, offset) = self.info(VcpuId(vcpu)).unwrap();
        page.atomic_u8(offset).unwrap()
    }

    fn ipi(&self, vcpu: u32) -> Port {
        bind_ipi(self, VcpuId(vcpu)).unwrap()
    }

    /// EVTCHNOP_send to oneself: by an IPI, or a connection to oneself.
    fn send(&self, port: Port) {
        send(self, self, port, Party::Guest).unwrap();
    }

    fn close(&self, port: Port) -> Result<(), Errno> {
        bind::close(self, port, Party::Guest, |_| None::<&EventChannels>)
    }
}

/// EVTCHNOP_send with `peer` as the only other domain.
fn send(from: &Fake, peer: &Fake, port: Port, by: Party) -> Result<(), Errno> {
    match from.events.route(port, by)? {
        Route::Nowhere => {}
        Route::Own(slot) => channels::deliver(from, port, slot),
        Route::Peer { domain, port: to } => {
            let receiver = if domain == from.id() { from } else { peer };
            assert_eq!(receiver.id(), domain);
            channels::deliver_from(receiver, from.id(), port, to);
        }
    }
    Ok(())
}

/// Two domains and a connection between them: the port of each.
fn connected() -> (Fake, Fake, Port, Port) {
    let (front, back) = (Fake::new(5), Fake::new(0));
    let front_port = alloc_unbound(&front, back.id()).unwrap();
    let back_port = bind_interdomain(&back, &front, front_port).unwrap();
    (front, back, front_port, back_port)
}

#[test]
fn two_domains_connect_and_notify_each_other() {
    let (front, back, front_port, back_port) = connected();
    assert_eq!(front.binding(front_port), Binding::Interdomain { remote: back.id(), port: back_port });
    assert_eq!(back.binding(back_port), Binding::Interdomain { remote: front.id(), port: front_port });
    assert_eq!(back.take_upcalls(), [0], "connecting shows one event to whoever connects");

    send(&back, &front, back_port, Party::Guest).unwrap();
    assert_eq!(front.take_upcalls(), [0]);
    assert!(is_pending(&front, front_port).unwrap());
}

#[test]
fn only_the_domain_that_a_port_waits_for_connects_to_it() {
    let (front, other, back) = (Fake::new(5), Fake::new(6), Fake::new(0));
    let port = alloc_unbound(&front, back.id()).unwrap();
    assert_eq!(bind_interdomain(&other, &front, port), Err(Errno::EINVAL));
    bind_interdomain(&back, &front, port).unwrap();
    assert_eq!(bind_interdomain(&back, &front, port), Err(Errno::EINVAL), "it is taken");
    assert_eq!(bind_interdomain(&back, &front, Port(0)), Err(Errno::EINVAL));
    assert_eq!(bind_interdomain(&back, &front, Port(1 << 20)), Err(Errno::EINVAL));
}

#[test]
fn closing_one_end_unbinds_the_other() {
    let (front, back, front_port, back_port) = connected();
    bind::close(&back, back_port, Party::Guest, |id| (id == front.id()).then_some(&front.events)).unwrap();
    assert_eq!(back.binding(back_port), Binding::Free);
    assert_eq!(front.binding(front_port), Binding::Unbound { remote: back.id() });
    assert_eq!(send(&front, &back, front_port, Party::Guest), Ok(()), "nobody hears it");
    assert_eq!(send(&back, &front, back_port, Party::Guest), Err(Errno::EINVAL));

    let again = bind_interdomain(&back, &front, front_port).unwrap();
    assert_eq!(again, back_port);
}

#[test]
fn the_other_domain_cannot_hinder_a_close() {
    let (back, front, port, front_port) = connected();
    let (far, turns) = (Cell::new(front_port), Cell::new(0));
    // Whenever the closer looks for the other domain, which is after its look at the port and before it has the locks, that connects anew.
    let find = |_| {
        turns.set(turns.get() + 1);
        bind::close(&front, far.get(), Party::Guest, |_| Some(&back.events)).unwrap();
        alloc_unbound(&front, DomainId(9)).unwrap();
        far.set(bind_interdomain(&front, &back, port).unwrap());
        Some(&front.events)
    };
    assert_eq!(bind::close(&back, port, Party::Guest, find), Ok(()));
    assert_eq!((back.binding(port), turns.get()), (Binding::Free, 1));
    assert_ne!(far.get(), front_port);
    assert_eq!(front.binding(far.get()), Binding::Unbound { remote: back.id() });
}

#[test]
fn a_close_beside_another_domain_that_comes_and_goes_leaves_no_half_of_a_connection() {
    let (back, front) = (Fake::new(0), Fake::new(5));
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel::<Option<Port>>();
        let (front, back) = (&front, &back);
        scope.spawn(move || {
            while let Some(port) = told.recv().unwrap() {
                while let Ok(far) = bind_interdomain(front, back, port) {
                    bind::close(front, far, Party::Guest, |_| Some(&back.events)).unwrap();
                }
            }
        });
        for _ in 0..2000 {
            let port = alloc_unbound(back, front.id()).unwrap();
            tell.send(Some(port)).unwrap();
            std::thread::yield_now();
            assert_eq!(bind::close(back, port, Party::Guest, |_| Some(&front.events)), Ok(()));
        }
        tell.send(None).unwrap();
    });
    let is_free = |fake: &Fake| {
        (1..100).all(|port| fake.events.state(Port(port)).ok().is_none_or(|state| state.binding() == Binding::Free))
    };
    assert!(is_free(&back) && is_free(&front));
}

#[test]
fn an_event_for_a_port_that_has_been_connected_anew_does_not_arrive() {
    let (front, back, front_port, back_port) = connected();
    let late = back.events.route(back_port, Party::Guest).unwrap();
    assert!(matches!(late, Route::Peer { domain, port } if (domain, port) == (front.id(), front_port)));
    bind::close(&front, front_port, Party::Guest, |_| Some(&back.events)).unwrap();
    assert_eq!(front.ipi(1), front_port);
    channels::deliver_from(&front, back.id(), back_port, front_port);
    assert!(!is_pending(&front, front_port).unwrap());
}

#[test]
fn a_domain_connects_to_itself() {
    let fake = Fake::new(3);
    let first = alloc_unbound(&fake, fake.id()).unwrap();
    let second = bind_interdomain(&fake, &fake, first).unwrap();
    fake.send(second);
    assert!(is_pending(&fake, first).unwrap());
    fake.close(first).unwrap();
    assert_eq!(fake.binding(second), Binding::Unbound { remote: fake.id() });
}

#[test]
fn a_closed_or_reserved_port_cannot_be_used() {
    let fake = Fake::new(3);
    for port in [Port(0), Port(1), Port(4096), Port(u32::MAX)] {
        assert_eq!(send(&fake, &fake, port, Party::Guest), Err(Errno::EINVAL));
        assert_eq!(fake.close(port), Err(Errno::EINVAL));
        assert_eq!(bind_vcpu(&fake, port, VcpuId(1)), Err(Errno::EINVAL));
    }
    assert_eq!(unmask(&fake, Port(4096)), Err(Errno::EINVAL));
    assert_eq!(is_pending(&fake, Port(4096)), Err(Errno::EINVAL));
}

#[test]
fn ports_are_given_out_from_the_lowest_on_and_used_again() {
    let fake = Fake::new(3);
    let ports: Vec<Port> = (0..300).map(|_| fake.ipi(0)).collect();
    assert_eq!(ports, (1..=300).map(Port).collect::<Vec<_>>());
    fake.close(Port(200)).unwrap();
    fake.close(Port(100)).unwrap();
    assert_eq!([fake.ipi(0), fake.ipi(0), fake.ipi(0)], [Port(100), Port(200), Port(301)]);
}

#[test]
fn a_domain_gets_no_more_ports_than_its_limit_and_its_abi_have() {
    let limited = Fake::with(3, Width::Bits64, 7);
    (1..=7).for_each(|port| assert_eq!(limited.ipi(0), Port(port)));
    assert_eq!(bind_ipi(&limited, VcpuId(0)), Err(Errno::ENOSPC));
    for (width, count) in [(Width::Bits64, 4095), (Width::Bits32, 1023)] {
        let fake = Fake::with(3, width, ALL_PORTS);
        (0..count).for_each(|port| assert_eq!(fake.ipi(0), Port(port + 1)));
        assert_eq!(bind_ipi(&fake, VcpuId(0)), Err(Errno::ENOSPC));
    }
}

#[test]
fn a_virq_is_bound_once_where_it_belongs() {
    let fake = Fake::new(0);
    assert_eq!(bind_virq(&fake, abi::VIRQ_CONSOLE, VcpuId(1)), Err(Errno::EINVAL), "global ones belong on vCPU 0");
    assert_eq!(bind_virq(&fake, abi::NR_VIRQS, VcpuId(0)), Err(Errno::EINVAL));
    assert_eq!(bind_virq(&fake, abi::VIRQ_TIMER, VcpuId(VCPUS)), Err(Errno::ENOENT));
    let timers: Vec<Port> = (0..VCPUS).map(|vcpu| bind_virq(&fake, abi::VIRQ_TIMER, VcpuId(vcpu)).unwrap()).collect();
    assert_eq!(bind_virq(&fake, abi::VIRQ_TIMER, VcpuId(1)), Err(Errno::EEXIST));

    assert!(send_virq(&fake, VcpuId(2), abi::VIRQ_TIMER));
    assert_eq!(fake.take_upcalls(), [2]);
    assert!(is_pending(&fake, timers[2]).unwrap() && !is_pending(&fake, timers[1]).unwrap());
    assert_eq!(send(&fake, &fake, timers[2], Party::Guest), Err(Errno::EINVAL), "only the hypervisor sends it");

    fake.close(timers[2]).unwrap();
    assert!(!send_virq(&fake, VcpuId(2), abi::VIRQ_TIMER));
    bind_virq(&fake, abi::VIRQ_TIMER, VcpuId(2)).unwrap();
    assert!(!send_virq(&fake, VcpuId(VCPUS), abi::VIRQ_TIMER) && !send_virq(&fake, VcpuId(0), abi::NR_VIRQS));
}

#[test]
fn only_what_is_not_tied_to_a_vcpu_moves() {
    let fake = Fake::new(0);
    let unbound = alloc_unbound(&fake, DomainId(4)).unwrap();
    let console = bind_virq(&fake, abi::VIRQ_CONSOLE, VcpuId(0)).unwrap();
    for port in [unbound, console] {
        bind_vcpu(&fake, port, VcpuId(2)).unwrap();
        assert_eq!(fake.vcpu_of(port), 2);
        assert_eq!(bind_vcpu(&fake, port, VcpuId(VCPUS)), Err(Errno::ENOENT));
    }
    let timer = bind_virq(&fake, abi::VIRQ_TIMER, VcpuId(1)).unwrap();
    for port in [timer, fake.ipi(1)] {
        assert_eq!(bind_vcpu(&fake, port, VcpuId(2)), Err(Errno::EINVAL));
        assert_eq!(fake.vcpu_of(port), 1);
    }
    send_virq(&fake, VcpuId(0), abi::VIRQ_CONSOLE);
    assert_eq!(fake.take_upcalls(), [2]);
    fake.close(unbound).unwrap();
    assert_eq!(fake.vcpu_of(alloc_unbound(&fake, DomainId(4)).unwrap()), 0, "a closed port forgets its vCPU");
}

#[test]
fn what_arrives_at_a_port_of_the_hypervisor_is_for_the_hypervisor() {
    let (guest, emulator) = (Fake::new(5), Fake::new(0));
    let port = alloc_for_hypervisor(&guest, VcpuId(1), emulator.id()).unwrap();
    let emulators = bind_interdomain(&emulator, &guest, port).unwrap();
    emulator.take_upcalls();
    send(&emulator, &guest, emulators, Party::Guest).unwrap();
    assert_eq!(*guest.for_hypervisor.lock().unwrap(), [(1, port)]);
    assert!(!is_pending(&guest, port).unwrap() && guest.take_upcalls().is_empty());

    assert_eq!(send(&guest, &emulator, port, Party::Guest), Err(Errno::EINVAL));
    assert_eq!(bind::close(&guest, port, Party::Guest, |_| Some(&emulator.events)), Err(Errno::EINVAL));
    assert_eq!(bind_vcpu(&guest, port, VcpuId(0)), Err(Errno::EINVAL));
    emulator.upcall_pending(0).store(0, Ordering::SeqCst);
    two_level::take(&emulator, 0);
    send(&guest, &emulator, port, Party::Hypervisor).unwrap();
    assert_eq!(emulator.take_upcalls(), [0]);
    bind::close(&guest, port, Party::Hypervisor, |_| Some(&emulator.events)).unwrap();
    assert_eq!(emulator.binding(emulators), Binding::Unbound { remote: guest.id() });
}

#[test]
fn a_polling_vcpu_is_woken_by_an_event_even_if_it_is_masked() {
    let fake = Fake::new(5);
    let port = fake.ipi(0);
    two_level::set_masked(&fake, port, true);
    fake.events.poll_begins(VcpuId(1));
    fake.send(port);
    assert_eq!(*fake.polled.lock().unwrap(), [(1, port)]);
    fake.send(port);
    assert_eq!(fake.polled.lock().unwrap().len(), 1, "it was pending already");
    fake.events.poll_ended(VcpuId(1));
    fake.send(fake.ipi(0));
    assert_eq!(fake.polled.lock().unwrap().len(), 1);
}

#[test]
fn a_reset_closes_everything_but_the_hypervisors_ports_in_bounded_parts() {
    let (guest, back) = (Fake::new(5), Fake::new(0));
    let ports: Vec<Port> = (0..200).map(|_| alloc_unbound(&guest, back.id()).unwrap()).collect();
    let hypervisors = alloc_for_hypervisor(&guest, VcpuId(0), back.id()).unwrap();
    let far: Vec<Port> = ports.iter().map(|&port| bind_interdomain(&back, &guest, port).unwrap()).collect();
    let mut turns = 1;
    while !bind::reset(&guest, Party::Guest, 100, |_| Some(&back.events)) {
        turns += 1;
    }
    assert_eq!(turns, 6, "of 512 slots all but the first are looked at");
    assert!(ports.iter().all(|&port| guest.binding(port) == Binding::Free));
    assert!(far.iter().all(|&port| back.binding(port) == Binding::Unbound { remote: guest.id() }));
    assert_eq!(guest.binding(hypervisors), Binding::Unbound { remote: back.id() });
    assert!(bind::reset(&guest, Party::Hypervisor, 1000, |_| Some(&back.events)));
    assert_eq!(guest.binding(hypervisors), Binding::Free);
}
