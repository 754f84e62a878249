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

#[cfg(test)]
mod tests {
    use xen_abi::handle::GuestHandle;
    use xen_abi::numbers::SYSCTL;

    use super::*;
    use crate::fake::{self, Running, page};

    fn dom0(said: usize) -> Running {
        let system = fake::system(256);
        system.machine.ring.lock().unwrap().extend((0..said).map(|index| index as u8));
        Running::new(system, &fake::add_domain(system, 0, 16))
    }

    fn sysctl(running: &mut Running, op: &mut Sysctl) -> i64 {
        running.poke(page(0), op);
        let result = running.call(SYSCTL, &[page(0)]).0;
        *op = running.peek(page(0));
        result
    }

    const VERSION: u32 = XEN_SYSCTL_INTERFACE_VERSION;

    /// Result, index and count of a read of at most `count` bytes.
    fn read(running: &mut Running, clear: bool, from: Option<u32>, count: u32) -> (i64, u32, u32) {
        let mut op = Sysctl { cmd: XEN_SYSCTL_READCONSOLE, interface_version: VERSION, ..Default::default() };
        op.u.set(&ReadConsole {
            clear: clear.into(),
            incremental: from.is_some().into(),
            index: from.unwrap_or(77),
            buffer: GuestHandle::new(page(1)),
            count,
            ..Default::default()
        });
        let result = sysctl(running, &mut op);
        let answer: ReadConsole = op.u.get();
        (result, answer.index, answer.count)
    }

    #[test]
    fn the_console_ring_is_read_from_its_beginning_or_from_where_one_was() {
        let mut dom0 = dom0(700);
        assert_eq!(read(&mut dom0, false, None, 100), (0, 100, 100));
        assert_eq!(read(&mut dom0, false, Some(100), 500), (0, 600, 500));
        assert_eq!(dom0.peek::<u8>(page(1) + 499), 599u32 as u8);
        assert_eq!(read(&mut dom0, false, Some(600), 500), (0, 700, 100));
        assert_eq!(read(&mut dom0, false, Some(700), 500), (0, 700, 0));
        for nowhere in [0x7000_0000, 0xf000_0000] {
            assert_eq!(read(&mut dom0, false, Some(nowhere), 100), (0, 100, 100));
        }
    }

    #[test]
    fn what_is_cleared_is_not_read_again() {
        let mut dom0 = dom0(300);
        assert_eq!(read(&mut dom0, true, None, 100), (0, 100, 100));
        assert_eq!(read(&mut dom0, false, None, 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, false, Some(0), 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, false, Some(0x7000_0000), 100), (0, 200, 100));
        assert_eq!(read(&mut dom0, true, None, 4096), (0, 300, 200));
        assert_eq!(read(&mut dom0, false, None, 4096), (0, 300, 0));
        assert_eq!(read(&mut dom0, true, None, 0), (0, 300, 0));
    }

    #[test]
    fn another_version_is_not_spoken_and_the_rest_not_implemented() {
        let mut dom0 = dom0(0);
        let ask = |interface_version, cmd| Sysctl { cmd, interface_version, ..Default::default() };
        assert_eq!(sysctl(&mut dom0, &mut ask(VERSION, 999)), Errno::ENOSYS.as_return());
        for version in [0, VERSION - 1, VERSION + 1] {
            assert_eq!(sysctl(&mut dom0, &mut ask(version, XEN_SYSCTL_READCONSOLE)), Errno::EACCES.as_return());
        }
        assert_eq!(dom0.call(SYSCTL, &[0xdead_0000]).0, Errno::EFAULT.as_return());
        let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
        assert_eq!(sysctl(&mut guest, &mut ask(VERSION, XEN_SYSCTL_READCONSOLE)), Errno::EPERM.as_return());
    }
}
