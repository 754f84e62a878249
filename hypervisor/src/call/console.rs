//! CONSOLEIO: Dom0's own console on Corten's.

use xen_abi::console::{CONSOLEIO_READ, CONSOLEIO_WRITE};
use xen_abi::errno::Errno;

use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;

/// Bytes that go through in one piece.
const PIECE: usize = 256;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, count, buffer, ..] = arguments;
    let buffer = caller.handle::<u8>(buffer);
    match command as u32 {
        CONSOLEIO_WRITE => {
            let mut done = 0u64;
            let mut piece = [0u8; PIECE];
            while done < count {
                let length = count.saturating_sub(done).min(PIECE as u64) as usize;
                let piece = piece.get_mut(..length).ok_or(Errno::EINVAL)?;
                let from = buffer.byte_add(done).ok_or(Errno::EFAULT)?;
                caller.read_bytes(from.address(), piece)?;
                caller.system.machine.console_write(caller.domain, piece);
                done = done.saturating_add(length as u64);
            }
            Ok(0)
        }
        CONSOLEIO_READ => {
            let mut piece = [0u8; PIECE];
            let room = (count.min(PIECE as u64)) as usize;
            let got = caller.system.machine.console_read(piece.get_mut(..room).ok_or(Errno::EINVAL)?);
            caller.write_bytes(buffer.address(), piece.get(..got).ok_or(Errno::EINVAL)?)?;
            Ok(got as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}
