//! The FIFO ABI and its consumer.

use super::*;
use proptest::prelude::*;

const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
const LINK: u32 = (1 << 17) - 1;

/// Where each vCPU's control block is in its page.
const CONTROL: usize = 0x108;

/// A guest that uses the FIFO ABI, with the pages as it sees them.
pub struct FifoGuest {
    pub fake: &'static Fake,
    control: Vec<SharedPage>,
    words: Vec<SharedPage>,
    /// The guest's own copy of each queue's head.
    heads: Vec<[AtomicU32; 16]>,
}

/// A domain that lasts as long as the test, so that threads and guests may share it.
pub fn lasting(id: u16) -> &'static Fake {
    Box::leak(Box::new(Fake::new(id)))
}

/// A control block, as the hypervisor gets it and as the guest has it.
fn control_block() -> (Area, SharedPage) {
    let (ours, theirs) = page();
    (Area::new(ours, CONTROL, CONTROL_SIZE).unwrap(), theirs)
}

impl FifoGuest {
    pub fn new(fake: &'static Fake, word_pages: usize) -> FifoGuest {
        let mut guest = FifoGuest { fake, control: vec![], words: vec![], heads: vec![] };
        (0..VCPUS).for_each(|vcpu| guest.add_control(vcpu).unwrap());
        (0..word_pages).for_each(|_| guest.expand().unwrap());
        guest
    }

    fn add_control(&mut self, vcpu: u32) -> Result<(), Errno> {
        let (block, page) = control_block();
        init_control(self.fake, VcpuId(vcpu), block)?;
        assert_eq!(self.control.len(), vcpu as usize, "a test adds them in turn");
        self.control.push(page);
        self.heads.push(Default::default());
        Ok(())
    }

    fn expand(&mut self) -> Result<(), Errno> {
        let (ours, theirs) = page();
        expand_array(self.fake, ours)?;
        self.words.push(theirs);
        Ok(())
    }

    pub fn word(&self, port: Port) -> &AtomicU32 {
        self.words[port.0 as usize / 1024].atomic_u32(port.0 as usize % 1024 * 4).unwrap()
    }

    fn control(&self, vcpu: u32, field: usize) -> &AtomicU32 {
        self.control[vcpu as usize].atomic_u32(CONTROL + field).unwrap()
    }

    pub fn mask(&self, port: Port) {
        let word = self.word(port);
        loop {
            let seen = word.load(Ordering::SeqCst) & !BUSY;
            if word.compare_exchange(seen, seen | MASKED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                break;
            }
        }
    }

    /// As a guest unmasks: by itself if nothing is pending, else by asking for it.
    pub fn unmask(&self, port: Port) {
        let word = self.word(port);
        loop {
            let seen = word.load(Ordering::SeqCst);
            if seen & PENDING != 0 {
                return unmask(self.fake, port).unwrap();
            }
            let seen = seen & !BUSY;
            if word.compare_exchange(seen, seen & !MASKED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return;
            }
        }
    }

    /// Takes the port out of its queue; the one that follows, or 0.
    fn unlink(&self, port: Port) -> u32 {
        let word = self.word(port);
        loop {
            let seen = word.load(Ordering::SeqCst);
            if word.compare_exchange(seen, seen & !(LINKED | LINK), Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return seen & LINK;
            }
        }
    }

    /// The upcall handler of one vCPU: goes through its queues until none is ready, and hands each event to `handle`, in order.
    pub fn consume(&self, vcpu: u32, mut handle: impl FnMut(Port)) {
        self.fake.upcall_pending(vcpu).store(0, Ordering::SeqCst);
        let ready = self.control(vcpu, 0);
        let mut left = ready.swap(0, Ordering::SeqCst);
        while left != 0 {
            let priority = left.trailing_zeros();
            let own = &self.heads[vcpu as usize][priority as usize];
            let mut head = own.load(Ordering::Relaxed);
            if head == 0 {
                head = self.control(vcpu, 8 + priority as usize * 4).load(Ordering::SeqCst);
            }
            let port = Port(head);
            let next = self.unlink(port);
            if next == 0 {
                left &= !(1 << priority);
            }
            if self.word(port).load(Ordering::SeqCst) & (PENDING | MASKED) == PENDING {
                self.word(port).fetch_and(!PENDING, Ordering::SeqCst);
                handle(port);
            }
            own.store(next, Ordering::Relaxed);
            left |= ready.swap(0, Ordering::SeqCst);
        }
    }

    fn take(&self, vcpu: u32) -> Vec<Port> {
        let mut taken = Vec::new();
        self.consume(vcpu, |port| taken.push(port));
        taken
    }

    fn loopback(&self) -> (Port, Port) {
        let receiver = alloc_unbound(self.fake, self.fake.id()).unwrap();
        (bind_interdomain(self.fake, self.fake, receiver).unwrap(), receiver)
    }
}

fn guest() -> FifoGuest {
    FifoGuest::new(lasting(5), 1)
}

#[test]
fn events_of_one_queue_are_taken_in_the_order_in_which_they_came() {
    let guest = guest();
    let ports: Vec<Port> = (0..4).map(|_| guest.fake.ipi(1)).collect();
    for index in [2, 0, 3, 0, 1] {
        guest.fake.send(ports[index]);
    }
    assert_eq!(guest.fake.take_upcalls(), [1]);
    assert_eq!(guest.take(1), [ports[2], ports[0], ports[3], ports[1]]);
    assert!(guest.take(1).is_empty() && guest.take(0).is_empty());
    guest.fake.send(ports[1]);
    assert_eq!(guest.fake.take_upcalls(), [1]);
    assert_eq!(guest.take(1), [ports[1]]);
}

#[test]
fn a_higher_priority_is_taken_first() {
    let guest = guest();
    let (low, high) = (guest.fake.ipi(0), guest.fake.ipi(0));
    set_priority(guest.fake, low, 15).unwrap();
    set_priority(guest.fake, high, 0).unwrap();
    guest.fake.send(low);
    guest.fake.send(high);
    assert_eq!(guest.take(0), [high, low]);
    assert_eq!(set_priority(guest.fake, low, 16), Err(Errno::EINVAL));
    assert_eq!(set_priority(guest.fake, Port(4096), 3), Err(Errno::EINVAL));
    let two_level = Fake::new(1);
    assert_eq!(set_priority(&two_level, two_level.ipi(0), 3), Err(Errno::ENOSYS));
}

#[test]
fn an_event_masked_then_unmasked_is_delivered_once() {
    let guest = guest();
    let port = guest.fake.ipi(1);
    guest.mask(port);
    guest.fake.send(port);
    assert!(guest.fake.take_upcalls().is_empty() && guest.take(1).is_empty());
    guest.unmask(port);
    guest.unmask(port);
    assert_eq!(guest.fake.take_upcalls(), [1]);
    assert_eq!(guest.take(1), [port]);
    assert!(guest.take(1).is_empty());
}

#[test]
fn an_event_masked_in_its_queue_comes_again_when_unmasked() {
    let guest = guest();
    let port = guest.fake.ipi(1);
    guest.fake.send(port);
    guest.mask(port);
    assert!(guest.take(1).is_empty());
    guest.unmask(port);
    assert_eq!(guest.take(1), [port]);
}

#[test]
fn pending_event_survives_migration_to_another_vcpu() {
    let guest = guest();
    let (sender, receiver) = guest.loopback();
    guest.fake.send(sender);
    bind_vcpu(guest.fake, receiver, VcpuId(1)).unwrap();
    // It is in the queue of vCPU 0 and stays there; the next one goes to vCPU 1.
    assert_eq!(guest.take(0).last(), Some(&receiver));
    guest.fake.take_upcalls();
    guest.fake.send(sender);
    assert_eq!(guest.fake.take_upcalls(), [1]);
    assert_eq!((guest.take(0), guest.take(1)), (vec![], vec![receiver]));
}

#[test]
fn a_port_that_was_last_in_its_old_queue_does_not_lead_astray() {
    let guest = guest();
    let (sender, moved) = guest.loopback();
    let stays = guest.fake.ipi(0);
    guest.take(0);
    guest.fake.send(sender);
    assert_eq!(guest.take(0), [moved]);
    bind_vcpu(guest.fake, moved, VcpuId(1)).unwrap();
    guest.fake.send(sender);
    // vCPU 0's queue remembers `moved` as its tail, which is LINKED again, but in vCPU 1's queue.
    guest.fake.send(stays);
    assert_eq!(guest.take(0), [stays]);
    assert_eq!(guest.take(1), [moved]);
}

#[test]
fn events_that_were_pending_before_the_fifo_abi_show_once_their_words_are_there() {
    let fake = lasting(5);
    let (seen, unseen) = (fake.ipi(0), fake.ipi(0));
    fake.send(unseen);
    fake.take_upcalls();
    let mut guest = FifoGuest::new(fake, 0);
    assert!(is_pending(guest.fake, unseen).unwrap() && !is_pending(guest.fake, seen).unwrap());
    guest.fake.send(seen);
    assert!(guest.fake.take_upcalls().is_empty(), "there is nothing to show it in");
    guest.fake.upcall_pending(0).store(0, Ordering::SeqCst);
    guest.expand().unwrap();
    assert_eq!(guest.fake.take_upcalls(), [0]);
    assert_eq!(guest.take(0), [seen, unseen]);
}

#[test]
fn an_event_waits_for_its_vcpus_control_block() {
    let mut guest = FifoGuest { fake: lasting(5), control: vec![], words: vec![], heads: vec![] };
    guest.add_control(0).unwrap();
    guest.expand().unwrap();
    let (port, (sender, moving)) = (guest.fake.ipi(1), guest.loopback());
    guest.take(0);
    bind_vcpu(guest.fake, moving, VcpuId(2)).unwrap();
    guest.fake.take_upcalls();
    guest.fake.send(port);
    guest.fake.send(sender);
    assert!(guest.fake.take_upcalls().is_empty());
    bind_vcpu(guest.fake, moving, VcpuId(0)).unwrap();
    assert_eq!(guest.fake.take_upcalls(), [0]);
    assert_eq!(guest.take(0), [moving]);
    guest.add_control(1).unwrap();
    assert_eq!(guest.fake.take_upcalls(), [1]);
    assert_eq!(guest.take(1), [port]);
}

#[test]
fn control_blocks_and_words_are_given_once() {
    let mut guest = guest();
    assert_eq!(init_control(guest.fake, VcpuId(1), control_block().0), Err(Errno::EINVAL));
    assert_eq!(init_control(guest.fake, VcpuId(VCPUS), control_block().0), Err(Errno::ENOENT));
    assert_eq!(expand_array(&Fake::new(1), page().0), Err(Errno::EOPNOTSUPP));
    for _ in 1..128 {
        guest.expand().unwrap();
    }
    assert_eq!(guest.expand(), Err(Errno::ENOSPC));
}

#[test]
fn a_closed_port_is_not_used_again_while_it_is_in_a_queue() {
    let guest = guest();
    let port = guest.fake.ipi(0);
    guest.fake.send(port);
    guest.fake.close(port).unwrap();
    let other = guest.fake.ipi(0);
    assert_ne!(other, port);
    assert!(guest.take(0).is_empty(), "it is linked, but not pending any more");
    assert_eq!(guest.fake.ipi(0), port);
}

#[test]
fn a_reset_goes_back_to_the_two_level_abi_and_the_fifo_can_be_taken_up_again() {
    let guest = guest();
    guest.fake.send(guest.fake.ipi(0));
    assert!(bind::reset(guest.fake, Party::Guest, 1000, |_| None::<&EventChannels>));
    guest.fake.take_upcalls();
    guest.fake.upcall_pending(0).store(0, Ordering::SeqCst);
    let port = guest.fake.ipi(0);
    guest.fake.send(port);
    assert_eq!(guest.fake.take_upcalls(), [0]);
    assert_eq!(super::two_level::take(guest.fake, 0), [port]);
    assert_eq!(expand_array(guest.fake, page().0), Err(Errno::EOPNOTSUPP));

    let again = FifoGuest::new(guest.fake, 1);
    again.fake.send(port);
    assert_eq!(again.take(0), [port]);
}

#[test]
fn a_tail_that_changes_without_end_does_not_hold_up_the_sender() {
    let guest = guest();
    let (first, second) = (guest.fake.ipi(0), guest.fake.ipi(0));
    let stop = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                guest.word(first).fetch_xor(MASKED | LINK, Ordering::SeqCst);
                guest.word(first).fetch_or(LINKED, Ordering::SeqCst);
            }
        });
        for _ in 0..20_000 {
            guest.fake.send(first);
            guest.word(second).store(0, Ordering::SeqCst);
            guest.fake.send(second);
        }
        stop.store(1, Ordering::Relaxed);
    });
}

/// What a guest may do, and send, in any order.
#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Mask(usize),
    Unmask(usize),
    Move(usize, u32),
    Priority(usize, u32),
    Consume(u32),
    /// The guest writes this over a port's word.
    Scribble(usize, u32),
    ScribbleControl(u32, u8, u32),
    Reopen(usize),
}

const PORTS: usize = 12;

fn well_behaved() -> impl Strategy<Value = Step> {
    let port = 0..PORTS;
    prop_oneof![
        6 => port.clone().prop_map(Step::Send),
        1 => port.clone().prop_map(Step::Mask),
        2 => port.clone().prop_map(Step::Unmask),
        2 => (port.clone(), 0..VCPUS).prop_map(|(port, vcpu)| Step::Move(port, vcpu)),
        1 => (port.clone(), 0..16u32).prop_map(|(port, priority)| Step::Priority(port, priority)),
        1 => port.prop_map(Step::Reopen),
        3 => (0..VCPUS).prop_map(Step::Consume),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    prop_oneof![
        well_behaved(),
        (0..PORTS, any::<u32>()).prop_map(|(port, value)| Step::Scribble(port, value)),
        (0..PORTS, 0..8u32, 0..PORTS as u32 * 2).prop_map(|(port, bits, link)| Step::Scribble(port, bits << 29 | link)),
        (0..VCPUS, 0..18u8, any::<u32>()).prop_map(|(vcpu, field, value)| Step::ScribbleControl(vcpu, field, value)),
    ]
}

/// Pairs of (sending port, receiving port).
fn connections(guest: &FifoGuest) -> Vec<(Port, Port)> {
    let pairs: Vec<_> = (0..PORTS).map(|_| guest.loopback()).collect();
    // Connecting made each sending end pending.
    assert_eq!(guest.take(0).len(), PORTS);
    pairs
}

proptest! {
    #[test]
    fn every_event_is_taken_once_by_whoever_got_an_upcall(steps in prop::collection::vec(well_behaved(), 0..200)) {
        let guest = guest();
        let mut ports = connections(&guest);
        let mut pending = [false; PORTS];
        let mut masked = [false; PORTS];
        let consume = |ports: &[(Port, Port)], pending: &mut [bool; PORTS], vcpu| {
            for taken in guest.take(vcpu) {
                let index = ports.iter().position(|&(_, port)| port == taken);
                prop_assert!(index.is_some_and(|index| pending[index]), "{taken:?} was not sent");
                pending[index.unwrap()] = false;
            }
            Ok(())
        };
        for step in steps {
            match step {
                Step::Send(index) => {
                    guest.fake.send(ports[index].0);
                    pending[index] = true;
                }
                Step::Mask(index) => {
                    guest.mask(ports[index].1);
                    masked[index] = true;
                }
                Step::Unmask(index) => {
                    guest.unmask(ports[index].1);
                    masked[index] = false;
                }
                Step::Move(index, vcpu) => bind_vcpu(guest.fake, ports[index].1, VcpuId(vcpu)).unwrap(),
                Step::Priority(index, priority) => set_priority(guest.fake, ports[index].1, priority).unwrap(),
                Step::Reopen(index) => {
                    guest.mask(ports[index].1);
                    guest.fake.close(ports[index].1).unwrap();
                    let port = alloc_unbound(guest.fake, guest.fake.id()).unwrap();
                    guest.unmask(port);
                    let sender = bind_interdomain(guest.fake, guest.fake, port).unwrap();
                    // The new sending end is pending, as connecting has it; the guest is not interested.
                    guest.word(sender).fetch_and(!PENDING, Ordering::SeqCst);
                    guest.fake.close(ports[index].0).unwrap();
                    ports[index] = (sender, port);
                    (pending[index], masked[index]) = (false, false);
                }
                Step::Consume(vcpu) => consume(&ports, &mut pending, vcpu)?,
                Step::Scribble(..) | Step::ScribbleControl(..) => unreachable!(),
            }
            // Whatever is pending and not masked is on its way: some vCPU has an upcall pending.
            let waiting = (0..PORTS).any(|index| pending[index] && !masked[index]);
            let upcalls = (0..VCPUS).any(|vcpu| guest.fake.upcall_pending(vcpu).load(Ordering::SeqCst) != 0);
            prop_assert!(upcalls || !waiting);
        }
        for &(_, port) in &ports {
            guest.unmask(port);
        }
        for vcpu in 0..VCPUS {
            if guest.fake.upcall_pending(vcpu).load(Ordering::SeqCst) != 0 {
                consume(&ports, &mut pending, vcpu)?;
            }
        }
        prop_assert_eq!(pending, [false; PORTS]);
    }

    #[test]
    fn whatever_a_guest_writes_every_operation_ends(steps in prop::collection::vec(hostile(), 0..300)) {
        let guest = guest();
        let ports = connections(&guest);
        for step in steps {
            match step {
                Step::Send(index) => guest.fake.send(ports[index].0),
                Step::Mask(index) => {
                    guest.word(ports[index].1).fetch_or(MASKED, Ordering::SeqCst);
                },
                Step::Unmask(index) => unmask(guest.fake, ports[index].1).unwrap(),
                Step::Move(index, vcpu) => bind_vcpu(guest.fake, ports[index].1, VcpuId(vcpu)).unwrap(),
                Step::Priority(index, priority) => set_priority(guest.fake, ports[index].1, priority).unwrap(),
                Step::Scribble(index, value) => guest.word(ports[index].1).store(value, Ordering::SeqCst),
                Step::ScribbleControl(vcpu, field, value) => {
                    guest.control(vcpu, field as usize * 4).store(value, Ordering::SeqCst);
                }
                Step::Reopen(index) => {
                    let _ = alloc_unbound(guest.fake, guest.fake.id());
                    guest.fake.send(ports[index].0);
                }
                // A consumer of garbage may not end. That is the guest's business.
                Step::Consume(vcpu) => guest.fake.upcall_pending(vcpu).store(0, Ordering::SeqCst),
            }
        }
        assert!(bind::reset(guest.fake, Party::Hypervisor, 1 << 17, |_| None::<&EventChannels>));
    }
}

#[test]
fn a_hostile_queue_does_not_disturb_another_domain() {
    let (hostile, good) = (guest(), FifoGuest::new(lasting(6), 1));
    let hostile_port = alloc_unbound(hostile.fake, good.fake.id()).unwrap();
    let port = bind_interdomain(good.fake, hostile.fake, hostile_port).unwrap();
    good.take(0);
    for value in [u32::MAX, LINKED | LINK, PENDING | LINKED, 0, BUSY] {
        hostile.word(hostile_port).store(value, Ordering::SeqCst);
        send(good.fake, hostile.fake, port, Party::Guest).unwrap();
        send(hostile.fake, good.fake, hostile_port, Party::Guest).unwrap();
        assert_eq!(good.take(0), [port]);
    }
}
