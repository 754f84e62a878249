//! Senders and consumers at the same time: no event gets lost, whatever moves meanwhile.

use std::thread;

use super::fifo::{FifoGuest, lasting};
use super::*;

const PORTS: usize = 6;
const ROUNDS: u32 = 30_000;

/// What a sender has to tell at each port, and what the consumer has seen of it when it took the port's last event.
#[derive(Default)]
struct Mail {
    sent: [AtomicU32; PORTS],
    seen: [AtomicU32; PORTS],
}

impl Mail {
    fn send(&self, fake: &Fake, senders: &[Port], round: u32) {
        let index = round as usize % PORTS;
        self.sent[index].fetch_add(1, Ordering::SeqCst);
        fake.send(senders[index]);
    }

    fn take(&self, index: usize) {
        self.seen[index].fetch_max(self.sent[index].load(Ordering::SeqCst), Ordering::SeqCst);
    }

    fn all_seen(&self) -> bool {
        (0..PORTS).all(|index| self.seen[index].load(Ordering::SeqCst) == self.sent[index].load(Ordering::SeqCst))
    }
}

fn loopbacks(fake: &Fake) -> (Vec<Port>, Vec<Port>) {
    (0..PORTS)
        .map(|_| {
            let receiver = alloc_unbound(fake, fake.id()).unwrap();
            (bind_interdomain(fake, fake, receiver).unwrap(), receiver)
        })
        .unzip()
}

/// Runs two senders, `consume` on each vCPU whenever its upcall is pending, and `move_about`; then what is left is consumed.
fn exchange(
    fake: &Fake,
    senders: &[Port],
    mail: &Mail,
    consume: impl Fn(u32) + Sync,
    move_about: impl Fn(u32) + Send + Sync,
) {
    let running = AtomicU32::new(3);
    let consume_pending = |vcpu| {
        if fake.upcall_pending(vcpu).load(Ordering::SeqCst) != 0 {
            consume(vcpu);
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                (0..ROUNDS).for_each(|round| mail.send(fake, senders, round));
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| {
            (0..ROUNDS / 4).for_each(&move_about);
            running.fetch_sub(1, Ordering::SeqCst);
        });
        for vcpu in 0..VCPUS {
            let (running, consume_pending) = (&running, &consume_pending);
            scope.spawn(move || {
                while running.load(Ordering::SeqCst) != 0 {
                    consume_pending(vcpu);
                    thread::yield_now();
                }
            });
        }
    });
    (0..VCPUS).for_each(consume_pending);
    assert!(mail.all_seen(), "an event got lost");
}

#[test]
fn no_fifo_event_is_lost_while_ports_move_between_queues() {
    let guest = FifoGuest::new(lasting(5), 1);
    let (senders, receivers) = loopbacks(guest.fake);
    let mail = Mail::default();
    exchange(
        guest.fake,
        &senders,
        &mail,
        |vcpu| {
            guest.consume(vcpu, |port| {
                if let Some(index) = receivers.iter().position(|&receiver| receiver == port) {
                    mail.take(index);
                }
            });
        },
        |round| {
            let port = receivers[round as usize % PORTS];
            match round % 3 {
                0 => bind_vcpu(guest.fake, port, VcpuId(round / 3 % VCPUS)).unwrap(),
                1 => set_priority(guest.fake, port, round % 16).unwrap(),
                _ => {
                    guest.mask(port);
                    guest.unmask(port);
                }
            }
        },
    );
}

#[test]
fn no_two_level_event_is_lost_while_ports_move_between_vcpus() {
    let fake = Fake::new(5);
    let (senders, receivers) = loopbacks(&fake);
    let mail = Mail::default();
    // The guest's own note of which vCPU looks at which port, as Linux keeps it.
    let owner: [AtomicU32; PORTS] = Default::default();
    let index_of = |port| receivers.iter().position(|&receiver| receiver == port);
    exchange(
        &fake,
        &senders,
        &mail,
        |vcpu| {
            let mine = |port| index_of(port).is_none_or(|index| owner[index].load(Ordering::SeqCst) == vcpu);
            // Cleared first, then handled: `take_if` clears.
            for port in super::two_level::take_if(&fake, vcpu, mine) {
                if let Some(index) = index_of(port) {
                    mail.take(index);
                }
            }
        },
        |round| {
            let index = round as usize % PORTS;
            let vcpu = round / 7 % VCPUS;
            super::two_level::set_masked(&fake, receivers[index], true);
            bind_vcpu(&fake, receivers[index], VcpuId(vcpu)).unwrap();
            owner[index].store(vcpu, Ordering::SeqCst);
            unmask(&fake, receivers[index]).unwrap();
        },
    );
}

#[test]
fn no_event_is_lost_while_the_abi_changes() {
    for round in 0..300 {
        let fake = lasting(5);
        let port = fake.ipi(0);
        let guest = thread::scope(|scope| {
            scope.spawn(|| {
                (0..round % 50).for_each(|_| core::hint::spin_loop());
                fake.send(port);
            });
            FifoGuest::new(fake, 1)
        });
        let mut taken = Vec::new();
        guest.consume(0, |port| taken.push(port));
        assert_eq!(taken, [port], "in round {round}");
    }
}
