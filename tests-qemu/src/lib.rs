//! What the test guests share: a PVH entry, a console, faults that can be caught, hypercalls and the clock.
//!
//! A guest is one behaviour. It runs as Dom0's kernel, says on the console `TEST guest: check ok` or `… FAIL: reason` for each
//! thing that it looks at, then `GUEST guest DONE n`, and powers the machine off. Each is proven on real Xen first.

#![no_std]

pub mod acpi;
pub mod apic;
pub mod clock;
pub mod compat;
pub mod console;
pub mod cpu;
pub mod events;
pub mod fault;
pub mod hypercall;
pub mod measure;
pub mod memory;
pub mod pci;
pub mod power;
pub mod probe;
pub mod random;
pub mod second;
pub mod start;
pub mod tests;
pub mod toolstack;

/// Names a guest's main function: `guest!(main)`, where `fn main(t: &mut Tests)`.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        /// Called by the runtime once the machine is set up.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(tests: &mut $crate::tests::Tests) {
            $main(tests);
        }

        /// The name under which the checks are reported.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_name() -> &'static str {
            env!("CARGO_BIN_NAME")
        }
    };
}
