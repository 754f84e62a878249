//! SYSCTL: what the toolstack asks of the machine as a whole.

use xen_abi::errno::Errno;
use xen_abi::handle::GuestHandle;
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

fn read_console<M: Machine>(caller: &mut Caller<'_, M>, request: &mut ReadConsole) -> Result<(), Errno> {
    let mut at = if request.incremental != 0 { request.index } else { 0 };
    let mut done = 0u32;
    let mut piece = [0u8; PIECE];
    let buffer: GuestHandle<u8> = request.buffer.cast();
    while done < request.count {
        let room = request.count.saturating_sub(done).min(PIECE as u32) as usize;
        let (got, next) = caller.system.machine.console_ring(at, piece.get_mut(..room).ok_or(Errno::EINVAL)?);
        if got == 0 {
            break;
        }
        let to = buffer.byte_add(u64::from(done)).ok_or(Errno::EFAULT)?;
        caller.write_bytes(to.address(), piece.get(..got).ok_or(Errno::EINVAL)?)?;
        at = next;
        done = done.saturating_add(got as u32);
    }
    request.index = at;
    request.count = done;
    Ok(())
}
