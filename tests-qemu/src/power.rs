//! The ways out.

use crate::{acpi, cpu, hypercall};
use xen_abi::sched::{SCHEDOP_SHUTDOWN, Shutdown};

/// Powers the machine off by ACPI, as Linux does: `SCHEDOP_shutdown` of a Dom0 halts Xen without powering off. Both emulators'
/// firmware has sleep type 0 for S5.
pub fn off() -> ! {
    if let Some(port) = acpi::pm1a_control() {
        cpu::out16(port, 1 << 13);
    }
    shut_down(0)
}

/// `SCHEDOP_shutdown` with `reason` (`SHUTDOWN_*`).
pub fn shut_down(reason: u32) -> ! {
    hypercall::op(xen_abi::numbers::SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason });
    cpu::stop()
}
