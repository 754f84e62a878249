//! The ways out.

use crate::{acpi, cpu, hypercall};
use core::sync::atomic::{AtomicU16, Ordering};
use xen_abi::sched::{SCHEDOP_SHUTDOWN, Shutdown};

static PM1A_CONTROL: AtomicU16 = AtomicU16::new(0);

/// Looks up the way out while nothing is broken yet.
pub(crate) fn init() {
    PM1A_CONTROL.store(acpi::pm1a_control().unwrap_or(0), Ordering::Relaxed);
}

/// Powers the machine off by ACPI, as Linux does: `SCHEDOP_shutdown` of a Dom0 halts Xen without powering off. Both emulators'
/// firmware has sleep type 0 for S5.
pub fn off() -> ! {
    let port = PM1A_CONTROL.load(Ordering::Relaxed);
    if port != 0 {
        cpu::out16(port, 1 << 13);
    }
    shut_down(0)
}

/// `SCHEDOP_shutdown` with `reason` (`SHUTDOWN_*`).
pub fn shut_down(reason: u32) -> ! {
    hypercall::op(xen_abi::numbers::SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason });
    cpu::stop()
}
