//! Many calls that make no sense, or nearly do: none may panic, take memory that is not given back, leave a stale translation behind or
//! touch what is another domain's.

mod random;

use core::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_abi::compat::Compat;
use xen_abi::grant::*;
use xen_abi::handle::GuestHandle;
use xen_abi::memory::*;
use xen_abi::multicall::MulticallEntry;
use xen_abi::numbers::*;
use xen_abi::types::{DomainId, GrantRef, VcpuId};
use zerocopy::{Immutable, IntoBytes};

use self::random::Random;
use crate::fake::{self, RAM, Running, Wanted, page};
use crate::hypercall::{Arguments, Outcome, TABLE};
use crate::machine::Width;
use crate::{physmap, timer};

/// Pages that the callers' structures and lists are in; the others are for giving away.
const SCRATCH: u64 = 8;
const PAGES: u64 = 48;
/// Where grant tables and the rest may appear.
const HOLE: u64 = 0x400;
const TABLE_AT: u64 = 0x380;
const GUEST: u16 = 5;
const BYSTANDER: u16 = 6;
/// Interruptions after which a call counts as endless.
const ENDLESS: usize = 10_000;

/// A domain that calls, and where its next structure goes.
struct Fuzzer {
    random: Random,
    running: Running,
}

impl Fuzzer {
    /// Writes into the caller's memory, as far as there is some.
    fn poke<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) {
        let last = at.wrapping_add(value.as_bytes().len() as u64).wrapping_sub(1);
        let is_own = |at: u64| {
            let mapping = self.running.domain.p2m.lookup(mm::GuestPhys(at).gfn());
            mapping.is_some_and(|mapping| mapping.kind.is_own_memory())
        };
        if at <= last && is_own(at) && is_own(last) {
            self.running.poke(at, value);
        }
    }

    fn put<T: Compat + IntoBytes + Immutable>(&mut self, value: &T) -> u64 {
        let at = page(self.random.below(SCRATCH)) + self.random.below(400) * 8;
        match self.running.context.width {
            Width::Bits64 => self.poke(at, value),
            Width::Bits32 => self.poke(at, &value.narrow()),
        }
        at
    }

    /// A list of what `number` gives, in the caller's words.
    fn list(&mut self, length: u64, number: fn(&mut Random) -> u64) -> u64 {
        let at = page(self.random.below(SCRATCH));
        for index in 0..length.min(64) {
            let number = number(&mut self.random);
            match self.running.context.width {
                Width::Bits64 => self.poke(at + index * 8, &number),
                Width::Bits32 => self.poke(at + index * 4, &(number as u32)),
            }
        }
        at
    }

    /// Structures of every kind look like one of these textures.
    fn scribble(&mut self) -> u64 {
        let at = page(self.random.below(SCRATCH)) + self.random.below(256) * 8;
        let texture = self.random.below(5);
        for word in 0..24u64 {
            let random = &mut self.random;
            let value = match texture {
                0 => random.below(4) | random.below(4) << 16 | random.below(4) << 32 | random.below(4) << 48,
                1 => random.below(12) | random.below(12) << 32,
                2 => u64::from(random.domain().0) | random.below(8) << 16 | random.below(64) << 32,
                3 => random.number(),
                _ => random.next(),
            };
            self.poke(at + word * 8, &value);
        }
        at
    }

    fn memory_op(&mut self) -> Arguments {
        let operation = self.random.choose(&[
            XENMEM_POPULATE_PHYSMAP,
            XENMEM_POPULATE_PHYSMAP,
            XENMEM_DECREASE_RESERVATION,
            XENMEM_INCREASE_RESERVATION,
            XENMEM_ADD_TO_PHYSMAP,
            XENMEM_ADD_TO_PHYSMAP,
            XENMEM_ADD_TO_PHYSMAP_BATCH,
            XENMEM_REMOVE_FROM_PHYSMAP,
            XENMEM_ACQUIRE_RESOURCE,
            XENMEM_MEMORY_MAP,
        ]);
        let domid = self.random.domain();
        let argument = match operation {
            XENMEM_ADD_TO_PHYSMAP => {
                let random = &mut self.random;
                let request = AddToPhysmap {
                    domid,
                    size: random.count() as u16,
                    space: random.below(6) as u32,
                    idx: if random.one_in(2) { random.below(3) } else { random.gfn() },
                    gpfn: random.gfn(),
                };
                self.put(&request)
            }
            XENMEM_ADD_TO_PHYSMAP_BATCH => {
                let size = self.random.count();
                let request = AddToPhysmapBatch {
                    domid,
                    space: self.random.below(6) as u16,
                    size: size as u16,
                    foreign_domid: self.random.domain(),
                    idxs: GuestHandle::new(self.list(size, Random::gfn)),
                    gpfns: GuestHandle::new(self.list(size, Random::gfn)),
                    errs: GuestHandle::new(self.random.address()),
                };
                self.put(&request)
            }
            XENMEM_REMOVE_FROM_PHYSMAP => {
                let gpfn = self.random.gfn();
                self.put(&RemoveFromPhysmap { domid, pad: [0; 3], gpfn })
            }
            XENMEM_ACQUIRE_RESOURCE => {
                let nr_frames = self.random.count();
                let request = AcquireResource {
                    domid,
                    r#type: self.random.below(3) as u16,
                    id: self.random.below(3) as u32,
                    nr_frames: nr_frames as u32,
                    pad: u32::from(self.random.one_in(16)),
                    frame: self.random.count(),
                    frame_list: GuestHandle::new(self.list(nr_frames, Random::gfn)),
                };
                self.put(&request)
            }
            XENMEM_MEMORY_MAP => {
                let (nr_entries, buffer) = (self.random.below(9) as u32, self.random.address());
                self.put(&MemoryMap { nr_entries, pad: 0, buffer: GuestHandle::new(buffer) })
            }
            _ => {
                let nr_extents = self.random.count();
                let request = MemoryReservation {
                    extent_start: GuestHandle::new(self.list(nr_extents, Random::gfn)),
                    nr_extents,
                    extent_order: self.random.choose(&[0, 0, 0, 0, 1, 3, 9, 18, 40, u32::MAX]),
                    mem_flags: if self.random.one_in(8) { self.random.next() as u32 } else { 0 },
                    domid,
                    pad: [0; 3],
                };
                self.put(&request)
            }
        };
        let start = if self.random.one_in(8) { self.random.count() } else { 0 };
        [u64::from(operation) | start << MEMOP_EXTENT_SHIFT, argument, 0, 0, 0]
    }

    fn grant_op(&mut self) -> Arguments {
        let random = &mut self.random;
        let (dom, gref) = (random.domain(), GrantRef(random.below(20) as u32));
        let mut count = 1 + random.below(3);
        let operation = random.choose(&[
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_COPY,
            GNTTABOP_SETUP_TABLE,
            GNTTABOP_SET_VERSION,
        ]);
        let argument = match operation {
            GNTTABOP_MAP_GRANT_REF => {
                let flags = random.choose(&[GNTMAP_HOST_MAP, GNTMAP_HOST_MAP | GNTMAP_READONLY, GNTMAP_DEVICE_MAP]);
                let op = MapGrantRef { host_addr: random.gfn() << 12, flags, gref, dom, ..Default::default() };
                let at = self.random.address();
                self.poke(at, &[op; 3]);
                at
            }
            GNTTABOP_UNMAP_GRANT_REF => {
                // Where a handle was mapped is not easily guessed.
                let handle = random.below(6) as u32;
                let domain = &self.running.domain;
                let found = domain.p2m.visit(mm::Gfn(0), u64::MAX, |extent| match extent.mapping.kind {
                    mm::PageKind::GrantRw | mm::PageKind::GrantRo => core::ops::ControlFlow::Break(extent.gfn.0),
                    _ => core::ops::ControlFlow::Continue(()),
                });
                let host_addr = match found {
                    core::ops::ControlFlow::Break(gfn) => gfn << 12,
                    core::ops::ControlFlow::Continue(()) => random.address(),
                };
                let ops: [UnmapGrantRef; 4] = core::array::from_fn(|index| UnmapGrantRef {
                    host_addr,
                    handle: handle + index as u32,
                    ..Default::default()
                });
                count = 4;
                let at = self.random.address();
                self.poke(at, &ops);
                at
            }
            GNTTABOP_COPY => {
                let mut side = |by_gref: bool| CopyPtr {
                    frame_or_ref: if by_gref { random.below(20) } else { random.gfn() },
                    domid: if by_gref { random.domain() } else { DomainId::SELF },
                    offset: random.below(4200) as u16,
                    pad: 0,
                };
                let (from, to) = (gref.0.is_multiple_of(2), gref.0.is_multiple_of(3));
                let op = GrantCopy {
                    source: side(from),
                    dest: side(to),
                    len: random.below(4200) as u16,
                    flags: (u16::from(from) * GNTCOPY_SOURCE_GREF) | (u16::from(to) * GNTCOPY_DEST_GREF),
                    status: 0,
                    pad: 0,
                };
                self.put(&op)
            }
            GNTTABOP_SETUP_TABLE => {
                let op = SetupTable {
                    dom,
                    nr_frames: random.below(70) as u32,
                    frame_list: GuestHandle::new(random.address()),
                    ..Default::default()
                };
                count = 1;
                self.put(&op)
            }
            _ => {
                let op = SetVersion { version: random.below(4) as u32 };
                let at = self.random.address();
                self.poke(at, &op);
                count = 1;
                at
            }
        };
        [operation.into(), argument, count, 0, 0]
    }

    /// A number and arguments, the caller's memory prepared for them.
    fn next_call(&mut self) -> (u64, Arguments) {
        let random = &mut self.random;
        let number = match random.below(16) {
            0 => random.below(70),
            1..=5 => MEMORY_OP,
            6..=8 => GRANT_TABLE_OP,
            9 => EVENT_CHANNEL_OP,
            _ => TABLE[random.below(TABLE.len() as u64) as usize].1,
        };
        let typed = !random.one_in(4);
        let arguments = match number {
            MEMORY_OP if typed => self.memory_op(),
            GRANT_TABLE_OP if typed => self.grant_op(),
            MULTICALL if typed => {
                let count = self.random.below(4);
                let at = page(1);
                for index in 0..count {
                    let (op, [a, b, c, d, e]) = if self.random.one_in(8) {
                        (MULTICALL, [at, 1, 0, 0, 0])
                    } else {
                        (MEMORY_OP, self.memory_op())
                    };
                    let entry = MulticallEntry { op, result: 0, args: [a, b, c, d, e, 0] };
                    match self.running.context.width {
                        Width::Bits64 => self.poke(at + index * 64, &entry),
                        Width::Bits32 => self.poke(at + index * 32, &entry.narrow()),
                    }
                }
                [at, count, 0, 0, 0]
            }
            PLATFORM_OP | SYSCTL => {
                let at = self.scribble();
                let version = if number == SYSCTL {
                    xen_abi::sysctl::XEN_SYSCTL_INTERFACE_VERSION
                } else {
                    xen_abi::platform::XENPF_INTERFACE_VERSION
                };
                if typed {
                    self.poke(at + 4, &version);
                }
                [at, 0, 0, 0, 0]
            }
            VCPU_OP => [self.random.below(18), self.random.below(3), self.scribble(), 0, 0],
            EVENT_CHANNEL_OP if typed => [self.random.below(14), self.scribble(), 0, 0, 0],
            SCHED_OP if typed => [self.random.below(9), self.scribble(), 0, 0, 0],
            _ if typed => [self.random.below(32), self.scribble(), self.random.address(), 0, 0],
            _ => core::array::from_fn(|_| self.random.number()),
        };
        (number, arguments)
    }

    /// One call, until it is done.
    fn call(&mut self) {
        self.running.id = VcpuId(self.random.below(2) as u32);
        self.running.context.width = if self.random.one_in(3) { Width::Bits32 } else { Width::Bits64 };
        let (number, mut arguments) = self.next_call();
        let first = arguments;
        for times in 0.. {
            assert!(times < ENDLESS, "call {number} {first:x?} does not end");
            match self.running.call_once(number, arguments) {
                Outcome::Return(_) => break,
                Outcome::Continue(next) => arguments = next,
            }
            self.running.vcpu().rouse();
        }
        self.run_on();
    }

    /// What happens between calls: time passes, vCPUs wake, and the pages for structures come back.
    fn run_on(&mut self) {
        let Running { system, domain, .. } = &self.running;
        let nanos = self.random.below(1 << 22);
        let now = sched::Nanos(system.machine.now.fetch_add(nanos, Ordering::Relaxed) + nanos);
        for vcpu in &domain.vcpus {
            vcpu.rouse();
            timer::expire(system, domain, vcpu, now);
        }
        for gfn in (RAM..RAM + SCRATCH).map(mm::Gfn) {
            if !domain.p2m.lookup(gfn).is_some_and(|mapping| mapping.kind.is_own_memory()) {
                let _ = physmap::Changes::new(system, domain).remove(gfn);
                let _ = physmap::populate(system, domain, gfn, 0);
            }
        }
    }
}

/// A grant table at [`TABLE_AT`] that grants the first pages to everyone who is there.
fn grant_everything(running: &mut Running) {
    let place = AddToPhysmap { domid: DomainId::SELF, size: 0, space: XENMAPSPACE_GRANT_TABLE, idx: 0, gpfn: TABLE_AT };
    assert_eq!(running.op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut { place }), 0);
    for gref in 0..20u64 {
        let domid = [DomainId(0), DomainId(GUEST)][gref as usize % 2];
        let entry = EntryV1 { flags: GTF_PERMIT_ACCESS, domid, frame: (RAM + SCRATCH + gref) as u32 };
        running.poke((TABLE_AT << 12) + gref * 8, &entry);
    }
}

/// Has one domain make calls while others look on.
fn run(caller: u16, seed: u64, calls: u64) {
    let system = fake::system(4096);
    let untouched = system.memory.free_frames();
    let all = fake::all_frames(system);
    let add = |id, one_to_one| {
        let domain = fake::add(system, Wanted { id, pages: PAGES, max_pages: PAGES + 1200, vcpus: 2, one_to_one });
        Running::new(system, &domain)
    };
    // The first one's frames are where its pages are.
    let one_to_one = caller == 0 && seed.is_multiple_of(2);
    let mut domains = [add(0, one_to_one), add(GUEST, false), add(BYSTANDER, false)];
    let canary = |page: u64| 0x5afe_0000_0000_0000 | page;
    for page in SCRATCH..PAGES {
        domains[2].poke(fake::page(page), &[canary(page); 512]);
    }
    for running in &mut domains[..2] {
        grant_everything(running);
    }
    let running = Running::new(system, &system.domain(DomainId(caller)).unwrap());
    let mut fuzzer = Fuzzer { random: Random(seed | 1), running };
    for made in 0..calls {
        fuzzer.call();
        if made % 512 == 0 || made + 1 == calls {
            assert_eq!(fake::all_frames(system), all, "frames are lost after {made} calls");
            for running in &domains {
                fake::check_address_space(system, &running.domain);
            }
            system.machine.told();
            system.machine.written.lock().unwrap().clear();
        }
    }
    // Dom0 may do to others what it likes.
    if caller != 0 {
        for page in SCRATCH..PAGES {
            assert_eq!(domains[2].peek::<[u64; 512]>(fake::page(page)), [canary(page); 512]);
        }
    }
    drop(fuzzer);
    for running in domains {
        fake::destroy(system, running.domain);
    }
    assert_eq!(system.memory.free_frames(), untouched, "nothing is left of the domains");
}

#[test]
fn a_guest_makes_a_hundred_thousand_senseless_calls_in_vain() {
    run(GUEST, 0x1234_5678_9abc_def1, 120_000);
}

#[test]
fn dom0_makes_a_hundred_thousand_senseless_calls_and_the_host_lives_on() {
    run(0, 0x0fed_cba9_8765_4321, 60_000);
    run(0, 0x0fed_cba9_8765_4322, 60_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_calls_breaks_anything(seed: u64, caller in prop::sample::select(vec![0, GUEST]), calls in 1u64..800) {
        run(caller, seed, calls);
    }
}
