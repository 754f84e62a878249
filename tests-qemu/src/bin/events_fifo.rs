//! FIFO events: control block, event words, queues, priorities.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use tests_qemu::events::*;
use tests_qemu::tests::Tests;
use tests_qemu::{apic, cpu, fault, memory};
use xen_abi::event::*;
use xen_abi::types::{DomainId, Port};

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;

/// The guest's view of the shared words.
struct Fifo {
    control: u64,
    array: u64,
}

impl Fifo {
    fn word(&self, port: Port) -> &'static AtomicU32 {
        // SAFETY: a page of our own that the hypervisor shares, touched by atomics alone.
        unsafe { AtomicU32::from_ptr((self.array + u64::from(port.0) * 4) as *mut u32) }
    }

    fn ready(&self) -> u32 {
        cpu::read32(self.control)
    }

    fn head(&self, queue: u32) -> u32 {
        cpu::read32(self.control + 8 + u64::from(queue) * 4)
    }

    /// Takes everything off a queue, as a handler does. The ports, in order.
    fn drain(&self, queue: u32) -> [u32; 4] {
        let mut ports = [0; 4];
        let mut port = self.head(queue);
        cpu::write32(self.control, self.ready() & !(1 << queue));
        for slot in &mut ports {
            if port == 0 {
                break;
            }
            *slot = port;
            let word = self.word(Port(port)).fetch_and(
                !(1 << EVTCHN_FIFO_LINKED | 1 << EVTCHN_FIFO_PENDING | EVTCHN_FIFO_LINK_MASK),
                Ordering::SeqCst,
            );
            port = word & EVTCHN_FIFO_LINK_MASK;
        }
        cpu::write32(self.control + 8 + u64::from(queue) * 4, port);
        ports
    }
}

const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;

fn main(t: &mut Tests) {
    let fifo = Fifo { control: memory::page(), array: memory::page() };
    let mut control = InitControl { control_gfn: memory::gfn(fifo.control), offset: 0, vcpu: 0, ..Default::default() };
    let mut wrong = InitControl { offset: 4, ..control };
    t.returns("a control block that is not aligned", op(EVTCHNOP_INIT_CONTROL, &mut wrong), -22);
    wrong = InitControl { offset: 4096 - 64, ..control };
    t.returns("a control block across the page's end", op(EVTCHNOP_INIT_CONTROL, &mut wrong), -22);
    wrong = InitControl { control_gfn: 1 << 40, ..control };
    t.returns("a control block in no frame", op(EVTCHNOP_INIT_CONTROL, &mut wrong), -22);
    wrong = InitControl { vcpu: 77, ..control };
    t.returns("a control block of no vCPU", op(EVTCHNOP_INIT_CONTROL, &mut wrong), -2);
    t.returns("an array before the control block", op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn: 1 }), -95);
    t.returns("the control block", op(EVTCHNOP_INIT_CONTROL, &mut control), 0);
    t.equal("links have 17 bits", control.link_bits, 17);
    t.returns("a second control block for the same vCPU", op(EVTCHNOP_INIT_CONTROL, &mut control), -22);
    let gfn = memory::gfn(fifo.array);
    t.returns("the first page of words", op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn: gfn }), 0);
    t.returns("a page of words in no frame", op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn: 1 << 40 }), -22);

    apic::enable();
    fault::on_interrupt(UPCALL, |_| acknowledge());
    set_upcall_vector(0, UPCALL);
    queues(t, &fifo);
    masks(t, &fifo);
    priorities(t, &fifo);
    growth(t, &fifo);

    t.returns("resetting", op(EVTCHNOP_RESET, &mut Reset { dom: DomainId::SELF }), 0);
    t.equal(
        "after it events are of two levels: a priority is refused",
        {
            let ipi = bind_ipi(0).unwrap_or_default();
            op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port: ipi, priority: 1 })
        },
        -38,
    );
}

fn queues(t: &mut Tests, fifo: &Fifo) {
    let before = settle(UPCALL);
    let ports = [bind_ipi(0), bind_ipi(0), bind_ipi(0)].map(|port| port.unwrap_or_default());
    for port in ports {
        fifo.word(port).store(0, Ordering::SeqCst);
    }
    t.returns("sending", send(ports[0]), 0);
    t.equal("the queue of priority 7 is ready", fifo.ready(), 1 << EVTCHN_FIFO_PRIORITY_DEFAULT);
    t.equal("its head is the port", fifo.head(7), ports[0].0);
    t.equal("the word is pending and linked", fifo.word(ports[0]).load(Ordering::SeqCst), PENDING | LINKED);
    t.equal("an upcall is pending", upcall_pending().load(Ordering::SeqCst), 1);
    send(ports[2]);
    send(ports[1]);
    send(ports[2]);
    t.equal("the first links to the second", fifo.word(ports[0]).load(Ordering::SeqCst), PENDING | LINKED | ports[2].0);
    t.equal("they come in the order of sending", fifo.drain(7), [ports[0].0, ports[2].0, ports[1].0, 0]);
    cpu::sleep();
    t.equal("one upcall for all", fault::count(UPCALL), before + 1);
    send(ports[1]);
    cpu::sleep();
    t.equal("the next event has its own", fault::count(UPCALL), before + 2);
    t.equal("and its place", fifo.drain(7), [ports[1].0, 0, 0, 0]);
    for port in ports {
        close(port);
    }
}

fn masks(t: &mut Tests, fifo: &Fifo) {
    let port = bind_ipi(0).unwrap_or_default();
    fifo.word(port).store(MASKED, Ordering::SeqCst);
    send(port);
    t.equal("a masked event is pending and not linked", fifo.word(port).load(Ordering::SeqCst), MASKED | PENDING);
    t.equal("no queue is ready", fifo.ready(), 0);
    t.returns("unmasking", unmask(port), 0);
    t.equal("links it", fifo.word(port).load(Ordering::SeqCst), PENDING | LINKED);
    cpu::sleep();
    t.equal("and tells", fifo.drain(7)[0], port.0);
    close(port);
}

fn priorities(t: &mut Tests, fifo: &Fifo) {
    let port = bind_ipi(0).unwrap_or_default();
    fifo.word(port).store(0, Ordering::SeqCst);
    t.returns("the highest priority", op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port, priority: 0 }), 0);
    send(port);
    t.equal("its queue is ready", fifo.ready(), 1);
    t.equal("and holds the port", fifo.drain(0)[0], port.0);
    t.returns("the lowest priority", op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port, priority: 15 }), 0);
    send(port);
    t.equal("its queue is ready, too", fifo.ready(), 1 << 15);
    fifo.drain(15);
    t.returns("a priority beyond", op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port, priority: 16 }), -22);
    acknowledge();
    close(port);
}

/// One page of words is 1024 ports. There may be more ports than words; their events wait for nobody.
fn growth(t: &mut Tests, fifo: &Fifo) {
    let mut highest = Port(0);
    while highest.0 < 1024 {
        match bind_ipi(0) {
            Ok(port) => highest = port,
            Err(_) => break,
        }
    }
    t.equal("there are ports beyond the words", highest, Port(1024));
    t.returns("sending to one of them is harmless", send(highest), 0);
    let more = Fifo { array: memory::page() - 4096, ..*fifo };
    let array_gfn = memory::gfn(more.array + 4096);
    t.returns("a second page of words", op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn }), 0);
    t.equal(
        "an event from before it is lost or there",
        more.word(highest).load(Ordering::SeqCst) & !(PENDING | LINKED),
        0,
    );
    more.drain(7);
    acknowledge();
    send(highest);
    t.equal("a port of the second page", more.word(highest).load(Ordering::SeqCst), PENDING | LINKED);
    t.equal("is the head of its queue", fifo.head(7), 1024);
    more.drain(7);
}
