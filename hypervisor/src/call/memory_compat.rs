//! XENMEM for 32-bit callers.

use xen_abi::errno::Errno;

use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::Machine;

/// Not yet: a 32-bit kernel falls back to what it was told at its start.
pub fn op<M: Machine>(_caller: &mut Caller<'_, M>, _arguments: Arguments) -> Result<Outcome, Errno> {
    Err(Errno::ENOSYS)
}
