//! What becomes of exceptions in the host: a few were provided for, the rest are the end.

use spin::Once;

use super::idt::TrapFrame;
use crate::fault;

const NMI: u8 = 2;
const DOUBLE_FAULT: u8 = 8;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;

/// The names of the exceptions (SDM Vol. 3, table 6-1).
#[rustfmt::skip]
const NAMES: [&str; 32] = [
    "divide error", "debug", "NMI", "breakpoint", "overflow", "bound range exceeded", "invalid opcode", "device not available",
    "double fault", "coprocessor segment overrun", "invalid TSS", "segment not present", "stack fault", "general protection",
    "page fault", "exception 15", "x87 error", "alignment check", "machine check", "SIMD error", "virtualisation exception",
    "control protection", "exception 22", "exception 23", "exception 24", "exception 25", "exception 26", "exception 27",
    "hypervisor injection", "VMM communication", "security exception", "exception 31",
];

/// The name of an exception.
pub fn name(vector: u64) -> &'static str {
    usize::try_from(vector).ok().and_then(|vector| NAMES.get(vector)).copied().unwrap_or("interrupt")
}

/// Which entry of the interrupt stack table a vector uses, 0 for none. In the order of [`super::stack::Stacks`].
pub(super) fn stack_of(vector: u8) -> u8 {
    match vector {
        DOUBLE_FAULT => 1,
        NMI => 2,
        MACHINE_CHECK => 3,
        _ => 0,
    }
}

static FATAL: Once<fn(&TrapFrame) -> !> = Once::new();
static ON_NMI: Once<fn(&TrapFrame)> = Once::new();

/// Sets what reports an exception that is the end. It may take no lock for granted.
pub fn set_fatal_handler(handler: fn(&TrapFrame) -> !) {
    FATAL.call_once(|| handler);
}

/// Sets what an NMI does. It may take no lock at all.
pub fn set_nmi_handler(handler: fn(&TrapFrame)) {
    ON_NMI.call_once(|| handler);
}

pub(super) fn handle(vector: u8, frame: &mut TrapFrame) {
    match vector {
        NMI => {
            if let Some(handler) = ON_NMI.get() {
                handler(frame);
            }
        }
        GENERAL_PROTECTION | PAGE_FAULT if let Some(landing) = fault::landing(frame.rip) => frame.rip = landing,
        _ => fatal(frame),
    }
}

fn fatal(frame: &TrapFrame) -> ! {
    if let Some(handler) = FATAL.get() {
        handler(frame);
    }
    crate::host::halt_forever()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_named_and_the_worst_have_stacks_of_their_own() {
        assert_eq!((name(13), name(14), name(200)), ("general protection", "page fault", "interrupt"));
        let stacks: Vec<u8> = [DOUBLE_FAULT, NMI, MACHINE_CHECK, PAGE_FAULT].map(stack_of).to_vec();
        assert_eq!(stacks, [1, 2, 3, 0]);
    }
}
