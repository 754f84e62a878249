//! The hypervisor's console (`xen.h`) and the ring of a guest's (`io/console.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// The first argument of `console_io`.
pub const CONSOLEIO_WRITE: u32 = 0;
pub const CONSOLEIO_READ: u32 = 1;

/// The page shared with the console's backend. Indices run freely; they are masked by the size of their ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConsoleRing {
    /// To the guest.
    pub input: [u8; 1024],
    /// From the guest.
    pub output: [u8; 2048],
    pub in_cons: u32,
    pub in_prod: u32,
    pub out_cons: u32,
    pub out_prod: u32,
}
