//! Something else happens in the middle of an operation: at every place, one after the other, where the operation looks at the guest.
//!
//! No threads here, so that each interleaving is tried and a failure repeats.

use super::fifo::{FifoGuest, lasting};
use super::two_level::{set_masked, take, take_if};
use super::*;

/// What happens once so many looks have been counted.
type Interruption = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub struct Preemption(Mutex<Option<(u32, Interruption)>>);

impl Preemption {
    /// The operation looks at the guest.
    pub fn look(&self) {
        let mut armed = self.0.lock().unwrap();
        let due = armed.as_mut().is_some_and(|(left, _)| {
            *left -= 1;
            *left == 0
        });
        let interruption = if due { armed.take() } else { None };
        drop(armed);
        if let Some((_, interruption)) = interruption {
            interruption();
        }
    }
}

/// Runs a scenario once for each place where its operation can be interrupted. The scenario calls `operate(fake, operation, interruption)`.
fn at_every_place(scenario: impl Fn(&dyn Fn(&'static Fake, &dyn Fn(), Interruption))) {
    for place in 1.. {
        let interrupted = std::cell::Cell::new(true);
        scenario(&|fake, operation, interruption| {
            *fake.preemption.0.lock().unwrap() = Some((place, interruption));
            operation();
            let left = fake.preemption.0.lock().unwrap().take();
            if let Some((_, interruption)) = left {
                // There is no such place any more: it happens afterwards.
                interrupted.set(false);
                interruption();
            }
        });
        if !interrupted.get() {
            assert!(place > 2, "nothing was interrupted");
            return;
        }
    }
}

fn connection(fake: &Fake) -> (Port, Port) {
    let receiver = alloc_unbound(fake, fake.id()).unwrap();
    let sender = bind_interdomain(fake, fake, receiver).unwrap();
    take(fake, 0);
    fake.take_upcalls();
    (sender, receiver)
}

#[test]
fn an_event_arrives_if_the_abi_changes_while_it_is_sent() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let port = fake.ipi(0);
        let guest = std::sync::Arc::new(OnceLock::new());
        let later = guest.clone();
        operate(fake, &|| fake.send(port), Box::new(move || drop(later.set(FifoGuest::new(fake, 1)))));
        let mut taken = Vec::new();
        guest.get().unwrap().consume(0, |port| taken.push(port));
        assert_eq!(taken, [port]);
        assert!(fake.take_upcalls().contains(&0));
    });
}

#[test]
fn an_event_arrives_if_its_port_is_moved_while_it_is_sent() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let (sender, port) = connection(fake);
        let moving = move || {
            set_masked(fake, port, true);
            bind_vcpu(fake, port, VcpuId(1)).unwrap();
            unmask(fake, port).unwrap();
        };
        operate(fake, &|| fake.send(sender), Box::new(moving));
        // vCPU 0 leaves the port alone now that it is vCPU 1's.
        assert!(take_if(fake, 0, |_| false).is_empty());
        assert!(fake.take_upcalls().contains(&1));
        assert_eq!(take(fake, 1), [port]);
    });
}

#[test]
fn an_event_arrives_if_another_is_taken_while_it_is_sent() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let (port, other) = (fake.ipi(0), fake.ipi(0));
        fake.send(other);
        let taken = std::sync::Arc::new(Mutex::new(Vec::new()));
        let early = taken.clone();
        operate(fake, &|| fake.send(port), Box::new(move || early.lock().unwrap().extend(take(fake, 0))));
        if fake.upcall_pending(0).load(Ordering::SeqCst) != 0 {
            taken.lock().unwrap().extend(take(fake, 0));
        }
        taken.lock().unwrap().sort();
        assert_eq!(*taken.lock().unwrap(), [port, other]);
    });
}

#[test]
fn an_event_arrives_if_it_is_sent_while_its_port_is_unmasked() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let port = fake.ipi(2);
        set_masked(fake, port, true);
        operate(fake, &|| unmask(fake, port).unwrap(), Box::new(move || fake.send(port)));
        assert_eq!(fake.take_upcalls(), [2]);
        assert_eq!(take(fake, 2), [port]);
    });
}

#[test]
fn an_event_arrives_if_vcpu_info_moves_while_it_is_sent() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let port = fake.ipi(1);
        let moving = move || {
            fake.infos[1].set(page().0).ok().unwrap();
            info_moved(fake, VcpuId(1));
        };
        operate(fake, &|| fake.send(port), Box::new(moving));
        assert!(fake.take_upcalls().contains(&1));
        assert_eq!(take(fake, 1), [port]);
    });
}

#[test]
fn a_vcpu_that_begins_to_poll_while_an_event_is_sent_sees_it_or_is_woken() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let port = fake.ipi(1);
        set_masked(fake, port, true);
        let seen = std::sync::Arc::new(OnceLock::new());
        let poll = seen.clone();
        let polling = move || {
            fake.events.poll_begins(VcpuId(2));
            poll.set(is_pending(fake, port).unwrap()).unwrap();
        };
        operate(fake, &|| fake.send(port), Box::new(polling));
        assert!(*seen.get().unwrap() || *fake.polled.lock().unwrap() == [(2, port)]);
    });
}

#[test]
fn an_event_that_is_sent_while_its_port_is_closed_does_not_reach_the_next_owner() {
    at_every_place(|operate| {
        let fake = lasting(5);
        let (sender, port) = connection(fake);
        operate(fake, &|| fake.close(port).unwrap(), Box::new(move || fake.send(sender)));
        assert_eq!(fake.ipi(1), port);
        assert!(!is_pending(fake, port).unwrap());
    });
}
