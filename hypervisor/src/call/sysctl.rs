//! SYSCTL: what the toolstack asks of the machine as a whole. One layout for both widths.

use core::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::sysctl::*;

use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;

/// Bytes of the console ring that go through in one piece.
const PIECE: usize = 256;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [argument, ..] = arguments;
    let handle = caller.handle::<Sysctl>(argument);
    let mut op = caller.read(handle)?;
    if op.interface_version != XEN_SYSCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match op.cmd {
        XEN_SYSCTL_READCONSOLE => {
            let mut request: ReadConsole = op.u.get();
            read_console(caller, &mut request)?;
            op.u.set(&request);
            caller.write(handle, &op).map(|()| 0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Copies the ring from its beginning on, or from where an earlier read left off; what lies before a beginning that was moved by `clear` is
/// not seen again.
fn read_console<M: Machine>(caller: &mut Caller<'_, M>, request: &mut ReadConsole) -> Result<(), Errno> {
    let start = caller.system.console_start.load(Ordering::Relaxed);
    let mut piece = [0u8; PIECE];
    let mut at = start;
    if request.incremental != 0 {
        // A position that is overwritten, or not reached yet, is answered by the oldest that there is. Positions count all bytes ever
        // written, and wrap.
        let (_, from) = caller.system.machine.console_ring(request.index, &mut []);
        if from.wrapping_sub(start) <= u32::MAX / 2 {
            at = from;
        }
    }
    let mut done = 0u32;
    while done < request.count {
        let room = request.count.saturating_sub(done).min(PIECE as u32) as usize;
        let (got, next) = caller.system.machine.console_ring(at, piece.get_mut(..room).ok_or(Errno::EINVAL)?);
        if got == 0 {
            break;
        }
        let to = request.buffer.byte_add(done.into()).ok_or(Errno::EFAULT)?;
        caller.write_bytes(to.address(), piece.get(..got).ok_or(Errno::EINVAL)?)?;
        at = next;
        done = done.saturating_add(got as u32);
    }
    if request.clear != 0 {
        caller.system.console_start.store(at, Ordering::Relaxed);
    }
    request.index = at;
    request.count = done;
    Ok(())
}
