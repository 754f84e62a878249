//! Host interrupts: Corten's own are served, the devices' go to Dom0.

use core::sync::atomic::Ordering;

use hypervisor::event;
use hypervisor::machine::Machine;
use hypervisor::system::System;

use super::{Next, Running};
use crate::apic::vectors::{self, Source};
use crate::apic::{io, local};
use crate::machine::X86;
use crate::percpu::{self, PerCpu};

impl Running<'_> {
    #[inline]
    pub(super) fn host_interrupt(&mut self, vector: u8) -> Next {
        serve(self.system, self.cpu, vector);
        Next::Enter
    }

    /// The engine leaves the interrupt to the CPU: it is taken in a window of the host's.
    pub(super) fn pending_interrupt(&mut self) -> Next {
        crate::host::take_interrupts();
        self.context.engine.renew_guard();
        Next::Enter
    }
}

/// For the IDT: an interrupt that came in one of the host's windows.
pub fn on_interrupt(vector: u8) {
    if let Some(system) = crate::machine::system() {
        serve(system, percpu::this(), vector);
    } else {
        local::eoi();
    }
}

#[inline]
fn serve(system: &'static System<X86>, cpu: &'static PerCpu, vector: u8) {
    match vector {
        vectors::TIMER => {
            local::eoi();
            timer(system, cpu);
        }
        // What else it is for is in the queues, which are looked at before the next entry.
        vectors::KICK => {
            local::eoi();
            cpu.rearm();
        }
        vectors::SPURIOUS => {}
        vectors::APIC_ERROR => {
            local::eoi();
            log::warn!(target: "apic", "CPU {}: local APIC error", cpu.id.0);
        }
        _ => device(system, cpu, vector),
    }
}

fn timer(system: &'static System<X86>, cpu: &'static PerCpu) {
    let now = system.machine.now();
    cpu.expire(now, |key| {
        let Some(resident) = percpu::resident(key) else { return };
        let Some(vcpu) = resident.vcpu() else { return };
        hypervisor::timer::expire(system, &resident.domain, vcpu, now);
        if vcpu.machine.take_lapic_deadline(now) {
            vcpu.machine.lapic_due.store(true, Ordering::Release);
            crate::machine::rouse(vcpu);
        }
        // What is left of its deadlines stays in the queue.
        system.machine.timer_changed(&resident.domain, vcpu);
    });
    if (system.machine.hooks.console_poll)() {
        console_input(system);
    }
}

#[inline]
fn device(system: &'static System<X86>, cpu: &'static PerCpu, vector: u8) {
    match vectors::source(cpu.id, vector) {
        Some(Source::Gsi(gsi)) => {
            if let Some(domain) = system.control() {
                // A level line stays masked until the guest's own EOI: the local APIC is free again at once.
                if domain.machine.devices.is_level(gsi) {
                    io::set_masked(gsi, true);
                }
                local::eoi();
                domain.machine.devices.assert(&domain, gsi);
            } else {
                local::eoi();
            }
        }
        Some(Source::Message(index)) => {
            local::eoi();
            if let Some(domain) = system.control() {
                domain.machine.devices.message(&domain, index);
            }
        }
        Some(Source::Console) => {
            local::eoi();
            if (system.machine.hooks.console_poll)() {
                console_input(system);
            }
        }
        None => {
            local::eoi();
            log::warn!(target: "apic", "interrupt {vector:#04x} that nobody asked for");
        }
    }
}

/// There is input for Dom0's console.
pub fn console_input(system: &'static System<X86>) {
    event::send_global_virq(system, xen_abi::event::VIRQ_CONSOLE);
}
