//! Accesses that may fault and go on: unknown MSRs, addresses that may not be mapped.
//!
//! Each such instruction has a row in the section `fixups`: its own address and where to go on if it faults. The exception
//! handler looks there before it calls a fault fatal.

use core::arch::asm;

/// A row of the table.
#[repr(C)]
struct Fixup {
    instruction: u64,
    landing: u64,
}

const _: () = assert!(size_of::<Fixup>() == 16);

/// Where to go on after a fault at `instruction`, if the fault was provided for.
pub(crate) fn landing(instruction: u64) -> Option<u64> {
    table().iter().find(|fixup| fixup.instruction == instruction).map(|fixup| fixup.landing)
}

fn table() -> &'static [Fixup] {
    // The linker names the borders of a section whose name is an identifier.
    unsafe extern "C" {
        #[link_name = "__start_fixups"]
        static START: Fixup;
        #[link_name = "__stop_fixups"]
        static STOP: Fixup;
    }
    let (start, stop) = (&raw const START, &raw const STOP);
    // SAFETY: the linker put rows, and nothing else, between the two; they are never written.
    unsafe { core::slice::from_raw_parts(start, stop.offset_from_unsigned(start)) }
}

/// Puts a row for the instruction at label 2 into the table: it goes on at label 4, which sets a register to 1 and leads
/// back to label 3.
macro_rules! with_fixup {
    ($instruction:literal) => {
        concat!(
            "xor {failed:e}, {failed:e}\n2: ",
            $instruction,
            "\n3:\n.pushsection .text.fixup, \"ax\", @progbits\n4: mov {failed:e}, 1\njmp 3b\n.popsection\n",
            ".pushsection fixups, \"a\", @progbits\n.balign 8\n.quad 2b, 4b\n.popsection"
        )
    };
}

/// Reads an MSR; `None` if this processor does not have it. For probing: needs no knowledge that it exists.
#[inline(never)]
pub fn rdmsr_safe(msr: u32) -> Option<u64> {
    let (low, high, failed): (u32, u32, u32);
    // SAFETY: reading an MSR changes nothing; a fault is provided for.
    unsafe {
        asm!(with_fixup!("rdmsr"), failed = out(reg) failed, in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    (failed == 0).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes an MSR; `None` if this processor does not have it or refuses the value.
///
/// # Safety
/// The value must leave the host in order, should the processor take it.
#[inline(never)]
pub unsafe fn wrmsr_safe(msr: u32, value: u64) -> Option<()> {
    let failed: u32;
    // SAFETY: the effect is the caller's responsibility; a fault is provided for.
    unsafe {
        asm!(with_fixup!("wrmsr"), failed = out(reg) failed, in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
    (failed == 0).then_some(())
}

/// Reads the word at an address that may not be mapped; for backtraces, where nothing is certain.
#[inline(never)]
pub fn read_safe(at: u64) -> Option<u64> {
    let (value, failed): (u64, u32);
    // SAFETY: the word is only looked at, as bits; a fault is provided for. Reading has no effect: where devices are mapped is
    // known, and this is not called with such addresses.
    unsafe {
        asm!(with_fixup!("mov {value}, [{at}]"), failed = out(reg) failed, value = out(reg) value, at = in(reg) at, options(readonly, nostack));
    }
    (failed == 0).then_some(value)
}
