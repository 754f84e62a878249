//! How domains and the machine end.

use hypervisor::domain::Domain;
use hypervisor::machine::PowerAction;
use mm::HostPhys;
use spin::Once;
use xen_abi::sched::*;

use crate::acpi::{self, PhysRead, SleepType};
use crate::host;
use crate::machine::X86;
use crate::port::{inb, inw, outb, outw};
use crate::vdev::ports::Sleep;

/// Where ACPI says that the machine is switched off and reset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// PM1a and PM1b control registers; 0 if there is none.
    pub pm1a: u16,
    pub pm1b: u16,
    /// The sleep types that mean S5.
    pub s5: Option<SleepType>,
    /// Where the FACS is, which says where the machine goes on after a sleep; 0 if there is none.
    pub facs: u64,
    /// The reset register, if it is a port: port and value.
    pub reset: Option<(u16, u8)>,
}

/// `reboot=`: how the machine is reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetMethod {
    /// All of the others in turn.
    #[default]
    Automatic,
    /// ACPI's reset register.
    Acpi,
    /// The chipset's, port 0xcf9.
    Chipset,
    Keyboard,
    TripleFault,
}

static PORTS: Once<Ports> = Once::new();
static METHOD: Once<ResetMethod> = Once::new();

pub fn set_ports(ports: Ports) {
    PORTS.call_once(|| ports);
}

pub fn set_reset_method(method: ResetMethod) {
    METHOD.call_once(|| method);
}

/// A domain has stopped for `reason` (SHUTDOWN_*). With the control domain the machine stops too.
pub fn domain_stopped(machine: &X86, domain: &Domain<X86>, reason: u32) {
    let name = match reason {
        SHUTDOWN_POWEROFF => "powers off",
        SHUTDOWN_REBOOT => "reboots",
        SHUTDOWN_SUSPEND => "suspends",
        SHUTDOWN_CRASH => "has crashed",
        SHUTDOWN_WATCHDOG => "is stopped by its watchdog",
        _ => "stops",
    };
    hypervisor::console::finish(machine, domain);
    log::info!(target: "domain", "{} (domain {}) {name}", domain.name, domain.id.0);
    if !domain.is_control() {
        crate::reap::note();
        return;
    }
    match reason {
        SHUTDOWN_POWEROFF => stop(machine, PowerAction::PowerOff),
        // A control domain that has crashed is started again, unless the user wants to look at it. As on Xen, `noreboot` is for that alone.
        SHUTDOWN_CRASH if machine.no_reboot => {
            log::warn!(target: "power", "noreboot: halted instead of rebooting; reset the machine by hand");
            stop(machine, PowerAction::Halt)
        }
        _ => stop(machine, PowerAction::Reboot),
    }
}

/// Switches the machine off, or resets it.
pub fn stop(machine: &X86, action: PowerAction) -> ! {
    crate::smp::stop_others();
    (machine.hooks.console_flush)();
    match action {
        PowerAction::PowerOff => power_off(),
        PowerAction::Reboot => reset(),
        PowerAction::Halt => {}
    }
    host::halt_forever()
}

/// ACPI S5 by the PM1 control registers (ACPI 6.5, 4.8.3.2).
fn power_off() {
    let ports = PORTS.get().copied().unwrap_or_default();
    // Where firmware does not tell, 0 is what emulated machines have.
    let SleepType { pm1a, pm1b } = ports.s5.unwrap_or(SleepType { pm1a: 0, pm1b: 0 });
    const SLEEP_ENABLE: u16 = 1 << 13;
    for (port, sleep_type) in [(ports.pm1a, pm1a), (ports.pm1b, pm1b)] {
        if port != 0 {
            let rest = inw(port) & !(7 << 10);
            outw(port, rest | u16::from(sleep_type) << 10);
            outw(port, rest | u16::from(sleep_type) << 10 | SLEEP_ENABLE);
        }
    }
}

/// Whether the machine would come back from this sleep by jumping to where Dom0 says: past Corten, into real mode, with all of memory in
/// reach. From S5 it comes back through firmware.
pub fn resumes(memory: &impl PhysRead, sleep: Sleep) -> bool {
    PORTS.get().is_some_and(|ports| ports.resumes(memory, sleep))
}

impl Ports {
    fn resumes(&self, memory: &impl PhysRead, sleep: Sleep) -> bool {
        let soft_off = self.s5.map(|s5| if sleep.second { s5.pm1b } else { s5.pm1a });
        soft_off != Some(sleep.kind) && self.facs != 0 && acpi::has_waking_vector(memory, HostPhys(self.facs))
    }
}

/// Resets the machine as the user wants it; by a triple fault if that comes to nothing.
pub fn reset() -> ! {
    let method = METHOD.get().copied().unwrap_or_default();
    let wanted = |this| method == ResetMethod::Automatic || method == this;
    if wanted(ResetMethod::Acpi)
        && let Some((port, value)) = PORTS.get().and_then(|ports| ports.reset)
    {
        outb(port, value);
    }
    if wanted(ResetMethod::Chipset) {
        outb(0xcf9, 0x02);
        outb(0xcf9, 0x06);
    }
    if wanted(ResetMethod::Keyboard) {
        for _ in 0..10_000 {
            if inb(0x64) & 2 == 0 {
                break;
            }
        }
        outb(0x64, 0xfe);
    }
    host::triple_fault()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::sample::Memory;

    fn memory(vector: u32, wide_vector: u64) -> Memory {
        let mut memory = Memory::new();
        memory.place(0x1000, b"FACS\x40\0\0\0");
        memory.place(0x100c, &vector.to_le_bytes());
        memory.place(0x1018, &wide_vector.to_le_bytes());
        memory
    }

    #[test]
    fn only_a_sleep_with_a_waking_vector_resumes() {
        let ports = Ports { facs: 0x1000, ..Ports::default() };
        let sleep = Sleep { second: false, kind: 5 };
        assert!(!ports.resumes(&memory(0, 0), sleep));
        assert!(ports.resumes(&memory(0x9a000, 0), sleep));
        assert!(ports.resumes(&memory(0, 0x9a000), sleep));
        assert!(!Ports { facs: 0, ..ports }.resumes(&memory(1, 1), sleep));
        assert!(!Ports { facs: 0x2000, ..ports }.resumes(&memory(1, 1), sleep), "no FACS there");
        assert!(!Ports { facs: u64::MAX - 3, ..ports }.resumes(&memory(1, 1), sleep));
    }

    #[test]
    fn soft_off_never_resumes_whatever_firmware_left_in_the_facs() {
        let s5 = Some(SleepType { pm1a: 7, pm1b: 3 });
        let ports = Ports { facs: 0x1000, s5, ..Ports::default() };
        let memory = memory(0x9a000, 0);
        let resumes = |second, kind| ports.resumes(&memory, Sleep { second, kind });
        assert!(!resumes(false, 7) && !resumes(true, 3));
        assert!(resumes(false, 3) && resumes(true, 7) && resumes(false, 5));
    }
}
