//! CONSOLEIO: Dom0's own console on Corten's, and the debug consoles of other domains, which are for writing only.

use xen_abi::console::{CONSOLEIO_READ, CONSOLEIO_WRITE};
use xen_abi::errno::Errno;
use xen_abi::handle::GuestHandle;

use crate::console;
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::Machine;

/// Bytes that go through in one piece.
const PIECE: usize = 256;
/// Bytes after which a writer lets others run.
const TURN: u32 = 4096;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, count, buffer, fourth, fifth] = arguments;
    let count = count as u32;
    let buffer = caller.handle::<u8>(buffer);
    match command as u32 {
        CONSOLEIO_WRITE => {
            let done = write(caller, buffer, count.min(TURN))?;
            let rest = count.saturating_sub(done);
            if rest == 0 {
                return Ok(Outcome::Return(0));
            }
            let next = buffer.byte_add(done.into()).ok_or(Errno::EFAULT)?;
            Ok(Outcome::Continue([command, rest.into(), next.address(), fourth, fifth]))
        }
        CONSOLEIO_READ => {
            caller.require_control()?;
            // What is returned may not look like an error.
            if count > i32::MAX as u32 {
                return Err(Errno::E2BIG);
            }
            read(caller, buffer, count).map(|got| Outcome::Return(got.into()))
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Writes so much, or as much as is taken now: how many bytes.
fn write<M: Machine>(caller: &mut Caller<'_, M>, buffer: GuestHandle<u8>, count: u32) -> Result<u32, Errno> {
    let mut piece = [0u8; PIECE];
    let mut done = 0u32;
    while done < count {
        let length = count.saturating_sub(done).min(PIECE as u32);
        let piece = piece.get_mut(..length as usize).ok_or(Errno::EINVAL)?;
        let from = buffer.byte_add(done.into()).ok_or(Errno::EFAULT)?;
        caller.read_bytes(from.address(), piece)?;
        let taken = console::write(&caller.system.machine, caller.domain, piece) as u32;
        done = done.saturating_add(taken);
        if taken < length {
            break;
        }
    }
    Ok(done)
}

/// Takes what input there is, as far as there is room.
fn read<M: Machine>(caller: &mut Caller<'_, M>, buffer: GuestHandle<u8>, room: u32) -> Result<u32, Errno> {
    let mut piece = [0u8; PIECE];
    let mut done = 0u32;
    while done < room {
        let length = room.saturating_sub(done).min(PIECE as u32) as usize;
        let got = caller.system.machine.console_read(piece.get_mut(..length).ok_or(Errno::EINVAL)?);
        let to = buffer.byte_add(done.into()).ok_or(Errno::EFAULT)?;
        caller.write_bytes(to.address(), piece.get(..got).ok_or(Errno::EINVAL)?)?;
        done = done.saturating_add(got as u32);
        if got < length {
            break;
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use xen_abi::numbers::CONSOLE_IO;

    use super::*;
    use crate::fake::{self, Running, page};

    fn dom0() -> Running {
        let system = fake::system(256);
        Running::new(system, &fake::add_domain(system, 0, 16))
    }

    #[test]
    fn what_is_written_arrives_whole_and_others_run_in_between() {
        let mut dom0 = dom0();
        let text: Vec<u8> = (0..TURN * 2 + 5).map(|index| index as u8).collect();
        dom0.poke(page(1), &*text);
        let ask = [CONSOLEIO_WRITE.into(), text.len() as u64, page(1)];
        assert_eq!(dom0.call(CONSOLE_IO, &ask), (0, 2));
        assert_eq!(*dom0.system.machine.written.lock().unwrap(), text);
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_WRITE.into(), 1 << 32, 0xdead_0000]).0, 0, "counts have 32 bits");
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_WRITE.into(), 5, page(16) - 3]).0, Errno::EFAULT.as_return());
    }

    #[test]
    fn what_is_not_taken_at_once_is_written_later() {
        let mut dom0 = dom0();
        let machine = &dom0.system.machine;
        let text: Vec<u8> = (0..1000u32).map(|index| index as u8).collect();
        dom0.poke(page(1), &*text);
        let ask = [CONSOLEIO_WRITE.into(), 1000, page(1)];
        machine.takes.store(0, core::sync::atomic::Ordering::Relaxed);
        let [command, count, at] = ask;
        let again = dom0.call_once(CONSOLE_IO, [command, count, at, 0, 0]);
        assert_eq!(again, Outcome::Continue([command, count, at, 0, 0]));
        machine.takes.store(90, core::sync::atomic::Ordering::Relaxed);
        assert_eq!(dom0.call(CONSOLE_IO, &ask), (0, 11));
        assert_eq!(*machine.written.lock().unwrap(), text);
    }

    #[test]
    fn input_is_taken_as_far_as_there_is_room() {
        let mut dom0 = dom0();
        let text: Vec<u8> = (0..300u32).map(|index| index as u8).collect();
        dom0.system.machine.input.lock().unwrap().extend(&text);
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_READ.into(), 20, page(1)]).0, 20);
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_READ.into(), 4096, page(1) + 20]).0, 280);
        assert_eq!(dom0.peek::<[u8; 300]>(page(1))[..], text);
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_READ.into(), 4096, page(1)]).0, 0);
        assert_eq!(dom0.call(CONSOLE_IO, &[CONSOLEIO_READ.into(), 1 << 31, page(1)]).0, Errno::E2BIG.as_return());
    }

    #[test]
    fn another_domain_may_write_lines_but_has_no_input() {
        let dom0 = dom0();
        let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
        guest.poke(page(1), b"two\nlines\n");
        assert_eq!(guest.call(CONSOLE_IO, &[CONSOLEIO_WRITE.into(), 10, page(1)]).0, 0);
        assert_eq!(*dom0.system.machine.lines.lock().unwrap(), ["two", "lines"]);
        assert!(dom0.system.machine.written.lock().unwrap().is_empty());
        assert_eq!(guest.call(CONSOLE_IO, &[CONSOLEIO_READ.into(), 1, page(1)]).0, Errno::EPERM.as_return());
        for mut running in [dom0, guest] {
            assert_eq!(running.call(CONSOLE_IO, &[2, 0, 0]).0, Errno::ENOSYS.as_return());
        }
    }
}
