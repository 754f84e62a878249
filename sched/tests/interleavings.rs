//! Every interleaving of what CPUs do to a vCPU at a time: wake, block, call out, pause, move, destroy, and take its translations away. Run by
//! `RUSTFLAGS="--cfg loom" cargo test -p sched --test interleavings --release`; `cargo xtask test host` does.
#![cfg(loom)]

use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;
use sched::{Admission, Affinity, CpuId, CpuPlace, Credit2, DomainKey, Hold, Nanos, Params, Passage, Presence};
use sched::{Rest, Scheduler, VcpuKey, VcpuState, Weight};

const BLOCKED: u32 = 1;
const PAUSED: u32 = 2;
const VCPU: VcpuKey = VcpuKey(0);
const NOW: Nanos = Nanos(1_000_000);

/// A vCPU, what it is told, and the scheduler that knows it.
struct Machine {
    hold: Hold,
    presence: Presence,
    event: AtomicBool,
    /// Interrupts sent to its CPU.
    kicks: AtomicU32,
    scheduler: Mutex<Credit2>,
}

impl Machine {
    /// It runs on CPU 0 of two.
    fn new() -> Arc<Machine> {
        let places = [CpuPlace { core: 0, ..CpuPlace::default() }, CpuPlace { core: 1, ..CpuPlace::default() }];
        let mut scheduler = Credit2::new(&places, Params::default()).expect("a scheduler");
        scheduler.reserve(1, 1).expect("room");
        let admission = Admission { domain: DomainKey(0), weight: Weight::DEFAULT, affinity: Affinity::ANY };
        scheduler.insert(VCPU, admission, Nanos(0)).expect("a vCPU");
        scheduler.wake(VCPU, Nanos(0));
        let running = [CpuId(0), CpuId(1)].map(|cpu| scheduler.decide(cpu, Nanos(0)).next);
        assert!(running.contains(&Some(VCPU)));
        Arc::new(Machine {
            hold: Hold::new(0),
            presence: Presence::new(),
            event: AtomicBool::new(false),
            kicks: AtomicU32::new(0),
            scheduler: Mutex::new(scheduler),
        })
    }

    fn state(&self) -> VcpuState {
        self.scheduler.lock().unwrap().figures(VCPU).expect("it is known").state
    }

    /// As the machine wakes a vCPU with something for it.
    fn send(&self) {
        self.event.store(true, Ordering::Relaxed);
        if self.hold.clear(BLOCKED) {
            self.scheduler.lock().unwrap().wake(VCPU, NOW);
        }
        self.call_out();
    }

    fn call_out(&self) {
        if self.presence.must_be_told() {
            self.kicks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As the guest halts.
    fn block(&self) {
        self.hold.set(BLOCKED);
        if self.event.load(Ordering::Relaxed) {
            self.hold.clear(BLOCKED);
        }
    }

    /// As its CPU leaves it when it is held.
    fn leave_if_held(&self) {
        if self.hold.is_empty() {
            return;
        }
        self.presence.end();
        self.scheduler.lock().unwrap().rest(VCPU, Rest::Blocked, NOW);
        if self.hold.is_empty() {
            self.scheduler.lock().unwrap().wake(VCPU, NOW);
        }
    }

    fn wants_to_run(&self) -> bool {
        matches!(self.state(), VcpuState::Running(_) | VcpuState::Runnable)
    }
}

#[test]
fn no_wake_up_is_lost_while_it_blocks() {
    loom::model(|| {
        let machine = Machine::new();
        let other = machine.clone();
        let sender = thread::spawn(move || other.send());
        machine.block();
        machine.leave_if_held();
        sender.join().unwrap();
        assert!(machine.hold.is_empty() && machine.wants_to_run(), "{:?}", machine.state());
    });
}

#[test]
fn what_comes_while_it_enters_is_seen_or_interrupts_it() {
    loom::model(|| {
        let machine = Machine::new();
        let other = machine.clone();
        let sender = thread::spawn(move || other.send());
        machine.presence.begin();
        let seen = machine.event.load(Ordering::Relaxed);
        sender.join().unwrap();
        assert!(seen || machine.kicks.load(Ordering::Relaxed) == 1);
    });
}

#[test]
fn a_pause_stops_it_wherever_it_is() {
    loom::model(|| {
        let machine = Machine::new();
        let other = machine.clone();
        let pauser = thread::spawn(move || {
            other.hold.set(PAUSED);
            other.call_out();
        });
        machine.presence.begin();
        let stays_out = !machine.hold.is_empty();
        pauser.join().unwrap();
        assert!(stays_out || machine.kicks.load(Ordering::Relaxed) == 1);
        machine.leave_if_held();
        assert!(!machine.wants_to_run());
        // What wakes it does not end the pause.
        machine.send();
        assert!(!machine.wants_to_run());
        assert!(machine.hold.clear(PAUSED));
    });
}

#[test]
fn two_wakers_and_one_that_blocks() {
    // Three threads in all their interleavings take minutes; what goes wrong goes wrong with few switches.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let machine = Machine::new();
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let other = machine.clone();
                thread::spawn(move || other.send())
            })
            .collect();
        machine.block();
        machine.leave_if_held();
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
        assert!(machine.wants_to_run());
    });
}

#[test]
fn a_destroyed_vcpu_is_not_woken_any_more() {
    loom::model(|| {
        let machine = Machine::new();
        machine.hold.set(BLOCKED);
        machine.leave_if_held();
        let other = machine.clone();
        let sender = thread::spawn(move || other.send());
        machine.hold.set(PAUSED);
        machine.scheduler.lock().unwrap().remove(VCPU, NOW);
        sender.join().unwrap();
        let mut scheduler = machine.scheduler.lock().unwrap();
        assert!(scheduler.figures(VCPU).is_none());
        assert_eq!([CpuId(0), CpuId(1)].map(|cpu| scheduler.decide(cpu, NOW).next), [None, None]);
    });
}

/// Registers that stay in the CPU where a vCPU ran last until another CPU asks for them.
#[test]
fn registers_reach_the_cpu_that_asks_for_them() {
    struct Place {
        registers: Mutex<Option<u32>>,
        give_up: AtomicBool,
        changed: AtomicU32,
    }
    loom::model(|| {
        let place = Arc::new(Place {
            registers: Mutex::new(None),
            give_up: AtomicBool::new(false),
            changed: AtomicU32::new(0),
        });
        let there = place.clone();
        let asker = thread::spawn(move || {
            let mut asked = false;
            loop {
                if let Some(registers) = there.registers.lock().unwrap().take() {
                    return registers + there.changed.load(Ordering::Relaxed);
                }
                if !asked {
                    there.give_up.store(true, Ordering::Release);
                    asked = true;
                }
                thread::yield_now();
            }
        });
        // The CPU that has them changes something while it still may.
        place.changed.store(1, Ordering::Relaxed);
        while !place.give_up.load(Ordering::Acquire) {
            thread::yield_now();
        }
        place.give_up.store(false, Ordering::Relaxed);
        *place.registers.lock().unwrap() = Some(41);
        assert_eq!(asker.join().unwrap(), 42);
    });
}

/// A page is freed only when no CPU reaches it any more.
#[test]
fn a_translation_is_out_of_use_when_it_has_been_waited_for() {
    loom::model(|| {
        let passage = Arc::new(Passage::new());
        let generation = Arc::new(AtomicU64::new(1));
        let freed = Arc::new(AtomicBool::new(false));
        let (there, current, gone) = (passage.clone(), generation.clone(), freed.clone());
        let runner = thread::spawn(move || {
            there.begin();
            let cached = current.load(Ordering::Acquire);
            for _ in 0..2 {
                there.pass();
                // As in the guest: with what was cached, if the generation is still the same.
                if current.load(Ordering::Acquire) == cached && cached == 1 {
                    assert!(!gone.load(Ordering::Relaxed), "a page is used that was freed");
                }
            }
            there.end();
        });
        generation.store(2, Ordering::Release);
        if let Some(milestone) = passage.ahead() {
            while !passage.is_beyond(milestone) {
                thread::yield_now();
            }
        }
        freed.store(true, Ordering::Relaxed);
        runner.join().unwrap();
        fence(Ordering::SeqCst);
    });
}
