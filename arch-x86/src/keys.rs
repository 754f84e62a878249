//! Debug keys: what Corten tells of itself when it is asked, on the console or by `xl debug-keys`.

use core::sync::atomic::Ordering;

use hypervisor::domain::Domain;
use hypervisor::machine::Machine;
use hypervisor::system::System;
use hypervisor::vcpu::hold;
use mm::Pod;

use crate::machine::{X86, system};
use crate::percpu;

/// A key, what it is good for, and what it does.
type Key = (u8, &'static str, fn(&'static System<X86>));

const KEYS: [Key; 5] = [
    (b'h', "this list", help),
    (b'm', "memory", memory),
    (b'q', "domains and their vCPUs", domains),
    (b'r', "CPUs and who runs on them", cpus),
    (b't', "the time", time),
];

/// Does what the key is for.
pub fn press(key: u8) {
    let Some(system) = system() else { return };
    match KEYS.iter().find(|(known, ..)| *known == key) {
        Some((_, what, act)) => {
            log::info!(target: "key", "'{}': {what}", char::from(key));
            act(system);
        }
        None => log::info!(target: "key", "'{}' means nothing; 'h' lists the keys", char::from(key).escape_default()),
    }
}

fn help(_: &'static System<X86>) {
    for (key, what, _) in KEYS {
        log::info!(target: "key", "  {}: {what}", char::from(key));
    }
}

fn memory(system: &'static System<X86>) {
    let (free, total) = (system.memory.free_frames(), system.memory.total_frames());
    let mut tables = 0u64;
    system.for_each(|domain| tables = tables.saturating_add(domain.p2m.table_frames()));
    log::info!(
        target: "key",
        "{} KiB free of {} KiB, {} KiB of them claimed; {} KiB of heap, {} KiB of domains' page tables",
        free << 2,
        total << 2,
        system.claimed() << 2,
        system.memory.host_frames() << 2,
        tables << 2,
    );
}

fn time(system: &'static System<X86>) {
    log::info!(target: "key", "{} since the start; TSC at {} kHz", system.machine.now(), system.machine.tsc_khz());
}

fn cpus(system: &'static System<X86>) {
    let now = system.machine.now();
    for cpu in percpu::all() {
        let who = percpu::running_on(cpu.id).and_then(percpu::resident);
        let idle = cpu.idle_time(now);
        match who {
            Some(who) => {
                log::info!(target: "key", "CPU {}: {} vCPU {}; idle for {idle}", cpu.id, who.domain.name, who.vcpu.0)
            }
            None => log::info!(target: "key", "CPU {}: idle; idle for {idle}", cpu.id),
        }
    }
}

fn domains(system: &'static System<X86>) {
    system.for_each(|domain| {
        let pages = domain.pages.load(Ordering::Relaxed);
        let state = match (domain.control.is_dying(), domain.shutdown_reason(), domain.control.is_paused()) {
            (true, ..) => "dying",
            (_, Some(_), _) => "shut down",
            (.., true) => "paused",
            _ => "runs",
        };
        let (tables, pod) = (domain.p2m.table_frames(), domain.p2m.pod());
        log::info!(
            target: "key",
            "domain {} ({}): {state}; {} KiB and {} KiB of page tables",
            domain.id.0,
            domain.name,
            pages << 2,
            tables << 2,
        );
        if pod != Pod::default() {
            log::info!(target: "key", "  {} KiB to be populated on demand, {} KiB for that", pod.entries << 2, pod.cache << 2);
        }
        vcpus(system, domain);
    });
}

fn vcpus(system: &'static System<X86>, domain: &Domain<X86>) {
    for vcpu in &domain.vcpus {
        let holds = vcpu.holds();
        let state = match holds {
            0 => "wants to run",
            _ if holds & hold::OFFLINE != 0 => "offline",
            _ if holds & hold::FROM_OUTSIDE != 0 => "paused",
            _ => "blocked",
        };
        let (cpu, key) = vcpu.machine.place();
        let affinity = percpu::affinity(key).map(|affinity| affinity.hard).unwrap_or_default();
        let [ran, ..] = vcpu.runstate.lock().times(system.machine.now());
        log::info!(target: "key", "  vCPU {}: {state}, CPU {cpu}; may run on {affinity}; ran for {} ms", vcpu.id.0, ran / 1_000_000);
    }
}
