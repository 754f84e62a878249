//! Domains made by Dom0, which is this guest; the module is the guest that they run. Each ends, or is ended, in a way of its own, and nothing of it is
//! left. `cycles=`, `calls=` (of the storm) in hexadecimal.

#![no_std]
#![no_main]

use tests_qemu::start::number;
use tests_qemu::tests::Tests;
use tests_qemu::toolstack::{Child, Failed, module, physinfo};
use tests_qemu::{clock, cpu, memory, say};
use xen_abi::domctl::*;

tests_qemu::guest!(main);

const MIB: u64 = 64;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;

const POWEROFF: u32 = 0;
const REBOOT: u32 = 1;
const CRASH: u32 = 3;

/// Names of what a domain does, and how it ends: by itself for that reason, or never.
const ATTACKS: [(&str, &str, Option<u32>); 8] = [
    ("attack=0", "one that runs for ever", None),
    ("attack=1", "one that reboots", Some(REBOOT)),
    ("attack=2", "one that halts", Some(POWEROFF)),
    ("attack=3", "one that opens ports", Some(REBOOT)),
    ("attack=4", "one that maps grants", Some(REBOOT)),
    ("attack=5", "one that wants memory", Some(REBOOT)),
    ("attack=6", "one that sets timers", Some(REBOOT)),
    ("attack=7", "one that wants control", Some(REBOOT)),
];

fn main(t: &mut Tests) {
    let victim = match victim() {
        Ok(victim) => victim,
        Err(why) => return t.returns("a domain can be made", why, 0),
    };
    // What is made once and stays, such as room in tables, is made by the first.
    live(t, "attack=1", "the first", Some(REBOOT));
    let free = free_pages();
    for (told, name, reason) in ATTACKS {
        live(t, told, name, reason);
        t.equal("nothing of it is left", free_pages(), free);
    }
    let mut told = *b"attack=8 calls=00000000 seed=7";
    hexadecimal(&mut told[15..23], number("calls").unwrap_or(20_000));
    live(t, core::str::from_utf8(&told).unwrap_or_default(), "one that calls anything", Some(REBOOT));
    t.equal("nothing of it is left", free_pages(), free);
    cycles(t, number("cycles").unwrap_or(10));
    t.equal("nothing of them is left", free_pages(), free);
    crashing(t);
    t.check("another domain's memory is as it was", is_whole(victim));
    t.check("it is destroyed while paused", victim.destroy().is_ok());
    t.returns("and is not there any more", victim.info().err().unwrap_or(0), -3);
}

fn free_pages() -> u64 {
    physinfo().map_or(0, |info| info.free_pages)
}

fn hexadecimal(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// A domain that never runs, each page of which tells its number.
fn victim() -> Result<Child, Failed> {
    let victim = Child::create(1, 4)?;
    for gfn in 0..1024 {
        victim.with_page(gfn, |page| cpu::write64(page + 8 * (gfn % 512), !gfn))?;
    }
    Ok(victim)
}

fn is_whole(victim: Child) -> bool {
    (0..1024).all(|gfn| victim.with_page(gfn, |page| cpu::read64(page + 8 * (gfn % 512)) == !gfn) == Ok(true))
}

fn make(told: &str) -> Result<Child, Failed> {
    let child = Child::create(1, MIB)?;
    child.load(module(), told)?;
    child.unpause()?;
    Ok(child)
}

fn live(t: &mut Tests, told: &str, name: &str, reason: Option<u32>) {
    say!("{name}");
    let child = match make(told) {
        Ok(child) => child,
        Err(why) => {
            t.returns("a domain is made", why, 0);
            return;
        }
    };
    let patience = if reason.is_some() { 600 * SECOND } else { 20 * MILLISECOND };
    let end = clock::now() + patience;
    while child.reason().is_none() && clock::now() < end {
        clock::sleep(MILLISECOND);
    }
    t.equal("it ends as it should", child.reason(), reason);
    let info = child.info().unwrap_or_default();
    // A page or two it gives up to see what it shares.
    t.within("it has its memory", info.tot_pages, (MIB << 8) - 4, MIB << 8);
    t.check("it has run", info.cpu_time > 0);
    if reason.is_none() {
        pausing(t, child);
    }
    t.check("it is destroyed", child.destroy().is_ok());
    t.returns("it is not there any more", child.info().err().unwrap_or(0), -3);
}

/// What is paused does not run.
fn pausing(t: &mut Tests, child: Child) {
    let ran = || child.info().map_or(0, |info| info.cpu_time);
    t.check("it is paused", child.pause().is_ok());
    clock::sleep(MILLISECOND);
    let before = ran();
    clock::sleep(5 * MILLISECOND);
    t.equal("it does not run then", ran(), before);
    t.check("and says so", child.info().is_ok_and(|info| info.flags & XEN_DOMINF_PAUSED != 0));
    t.check("it goes on", child.unpause().is_ok());
    clock::sleep(5 * MILLISECOND);
    t.check("and runs", ran() > before);
}

/// Domains made and destroyed, every other one while it runs, some before they ran, some with a page of theirs in sight.
fn cycles(t: &mut Tests, count: u64) {
    let mut made = 0;
    for cycle in 0..count {
        let Ok(child) = Child::create(1 + (cycle % 2) as u32, MIB) else { break };
        if cycle % 3 != 2 {
            if child.load(module(), "attack=0").is_err() || child.unpause().is_err() {
                break;
            }
            clock::sleep(cycle % 4 * MILLISECOND);
        }
        let destroyed = if cycle % 5 == 4 {
            // It goes while one of its pages is mapped here.
            child.with_page(memory::gfn(0x100_0000), |_| child.destroy())
        } else {
            Ok(child.destroy())
        };
        if destroyed != Ok(Ok(())) {
            break;
        }
        made += 1;
    }
    t.equal("all of them came and went", made, count);
}

/// A domain whose first instruction is not there.
fn crashing(t: &mut Tests) {
    let Ok(child) = Child::create(1, 2) else {
        t.check("a domain is made", false);
        return;
    };
    t.check("it starts in a hole", child.start_at(0x7000_0000, 0).is_ok() && child.unpause().is_ok());
    let end = clock::now() + SECOND;
    while child.reason().is_none() && clock::now() < end {
        clock::sleep(MILLISECOND);
    }
    t.equal("it has crashed", child.reason(), Some(CRASH));
    t.check("it is destroyed", child.destroy().is_ok());
}
