//! Multicall: many hypercalls in one. The entries are carried out in order, and each is told its own result.

use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::multicall::MulticallEntry;
use xen_abi::numbers::MULTICALL;

use crate::hypercall::{Arguments, Caller, Outcome, dispatch};
use crate::machine::Machine;

/// Entries, or the time that they take, after which others get a turn: one entry can be as long as a hypercall by itself.
const TURN: u32 = 64;
const TURN_TIME: Nanos = Nanos::from_micros(200);

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [list, count, third, fourth, fifth] = arguments;
    let count = count as u32;
    let list = caller.handle::<MulticallEntry>(list);
    let machine = &caller.system.machine;
    let began = machine.now();
    let mut done = 0;
    while done < count {
        let at = caller.arg_at(list, done.into())?;
        let go_on_at =
            |done: u32| Outcome::Continue([at.address(), count.saturating_sub(done).into(), third, fourth, fifth]);
        let is_long = || machine.now().since(began) >= TURN_TIME;
        // An entry may have put the vCPU to sleep: the rest is for later.
        if done == TURN || (done > 0 && (!caller.vcpu.is_runnable() || is_long())) {
            return Ok(go_on_at(done));
        }
        let mut entry = match caller.read_arg(at) {
            // Those before it are done.
            Err(Errno::ERESTART) => return Ok(go_on_at(done)),
            entry => entry?,
        };
        match carry_out(caller, &entry) {
            Outcome::Return(value) => {
                entry.result = value as u64;
                caller.write_arg(at, &entry)?;
                done = done.saturating_add(1);
            }
            Outcome::Continue([a, b, c, d, e]) => {
                let [.., sixth] = entry.args;
                entry.args = [a, b, c, d, e, sixth];
                caller.write_arg(at, &entry)?;
                return Ok(go_on_at(done));
            }
        }
    }
    Ok(Outcome::Return(0))
}

/// A multicall in a multicall is refused: -EINVAL.
#[inline(never)]
fn carry_out<M: Machine>(caller: &mut Caller<'_, M>, entry: &MulticallEntry) -> Outcome {
    if entry.op == MULTICALL {
        return Outcome::Return(Errno::EINVAL.as_return());
    }
    let [a, b, c, d, e, _] = entry.args;
    dispatch(caller, entry.op, [a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use xen_abi::compat::Compat;
    use xen_abi::handle::GuestHandle;
    use xen_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};
    use xen_abi::numbers::{MEMORY_OP, SCHED_OP, XEN_VERSION};
    use xen_abi::sched::{SCHEDOP_BLOCK, SCHEDOP_YIELD};
    use xen_abi::types::DomainId;

    use super::*;
    use crate::fake::{self, Running, Told, Wanted, page};
    use crate::machine::Width;

    fn guest() -> Running {
        let system = fake::system(4096);
        let wanted = Wanted { pages: 16, max_pages: 1024, ..Wanted::default() };
        Running::new(system, &fake::add(system, wanted))
    }

    fn entry(op: u64, args: &[u64]) -> MulticallEntry {
        let mut entry = MulticallEntry { op, result: 77, ..Default::default() };
        entry.args[..args.len()].copy_from_slice(args);
        entry
    }

    /// Puts the entries at page 4 and makes the call; what it returns, how often it was interrupted, and what the entries return.
    fn multicall(running: &mut Running, entries: &[MulticallEntry]) -> (i64, usize, Vec<i64>) {
        let narrow = running.context.width == Width::Bits32;
        let size = if narrow { size_of::<<MulticallEntry as Compat>::Narrow>() } else { size_of::<MulticallEntry>() };
        let places: Vec<u64> = (0..entries.len()).map(|index| page(4) + (index * size) as u64).collect();
        for (at, entry) in places.iter().zip(entries) {
            if narrow { running.poke(*at, &entry.narrow()) } else { running.poke(*at, entry) }
        }
        let (result, times) = running.call(MULTICALL, &[page(4), entries.len() as u64]);
        let results = places.into_iter().map(|at| {
            if narrow {
                i64::from(running.peek::<<MulticallEntry as Compat>::Narrow>(at).result as i32)
            } else {
                running.peek::<MulticallEntry>(at).result as i64
            }
        });
        (result, times, results.collect())
    }

    #[test]
    fn each_entry_is_told_its_own_result() {
        for width in [Width::Bits64, Width::Bits32] {
            let mut guest = guest();
            guest.context.width = width;
            let entries =
                [entry(XEN_VERSION, &[0]), entry(999, &[]), entry(MULTICALL, &[page(4), 1]), entry(XEN_VERSION, &[99])];
            let refused = |errno: Errno| errno.as_return();
            let results = vec![4 << 16 | 20, refused(Errno::ENOSYS), refused(Errno::EINVAL), refused(Errno::ENOSYS)];
            assert_eq!(multicall(&mut guest, &entries), (0, 0, results));
        }
    }

    #[test]
    fn an_entry_that_takes_long_lets_others_run_and_goes_on_where_it_was() {
        for width in [Width::Bits64, Width::Bits32] {
            let mut guest = guest();
            guest.context.width = width;
            let reservation = MemoryReservation {
                extent_start: GuestHandle::new(page(8)),
                nr_extents: 600,
                domid: DomainId::SELF,
                ..Default::default()
            };
            match width {
                Width::Bits64 => guest.poke(page(1), &reservation),
                Width::Bits32 => guest.poke(page(1), &reservation.narrow()),
            }
            for index in 0..600 {
                match width {
                    Width::Bits64 => guest.poke(page(8) + index * 8, &(0x8000 + index)),
                    Width::Bits32 => guest.poke(page(8) + index * 4, &(0x8000 + index as u32)),
                }
            }
            let entries = [
                entry(MEMORY_OP, &[XENMEM_POPULATE_PHYSMAP.into(), page(1)]),
                entry(MEMORY_OP, &[XENMEM_DECREASE_RESERVATION.into(), page(1)]),
                entry(XEN_VERSION, &[0]),
            ];
            let (result, times, results) = multicall(&mut guest, &entries);
            assert_eq!((result, results), (0, vec![600, 600, 4 << 16 | 20]));
            assert_eq!(times, 4);
            assert_eq!(guest.domain.pages.load(Ordering::Relaxed), 16);
        }
    }

    #[test]
    fn a_vcpu_that_an_entry_puts_to_sleep_does_the_rest_when_it_wakes() {
        let mut guest = guest();
        let sleep = [entry(SCHED_OP, &[SCHEDOP_BLOCK.into()]), entry(SCHED_OP, &[SCHEDOP_YIELD.into()])];
        let list: Vec<u8> = sleep.iter().flat_map(|entry| zerocopy::IntoBytes::as_bytes(entry).to_vec()).collect();
        guest.poke(page(4), &*list);
        let next = guest.call_once(MULTICALL, [page(4), 2, 0, 0, 0]);
        let second = page(4) + size_of::<MulticallEntry>() as u64;
        assert_eq!(next, Outcome::Continue([second, 1, 0, 0, 0]));
        assert!(guest.system.machine.told().is_empty());
        guest.vcpu().rouse();
        assert_eq!(guest.call_once(MULTICALL, [second, 1, 0, 0, 0]), Outcome::Return(0));
        assert_eq!(guest.system.machine.told(), [Told::Yield]);
    }

    #[test]
    fn entries_that_take_long_together_let_others_run() {
        let mut guest = guest();
        let entries = [entry(XEN_VERSION, &[0]), entry(SCHED_OP, &[SCHEDOP_YIELD.into()])];
        let list: Vec<u8> = entries.iter().flat_map(|entry| zerocopy::IntoBytes::as_bytes(entry).to_vec()).collect();
        guest.poke(page(4), &*list);
        guest.system.machine.step.store(TURN_TIME.0, Ordering::Relaxed);
        let second = page(4) + size_of::<MulticallEntry>() as u64;
        assert_eq!(guest.call_once(MULTICALL, [page(4), 2, 0, 0, 0]), Outcome::Continue([second, 1, 0, 0, 0]));
        assert_eq!(guest.call_once(MULTICALL, [second, 1, 0, 0, 0]), Outcome::Return(0));
    }

    #[test]
    fn long_lists_are_interrupted_and_lists_that_are_nowhere_refused() {
        let mut guest = guest();
        let many = vec![entry(XEN_VERSION, &[0]); TURN as usize * 2 + 1];
        let (result, times, results) = multicall(&mut guest, &many);
        assert_eq!((result, times), (0, 2));
        assert!(results.iter().all(|result| *result == 4 << 16 | 20));
        assert_eq!(guest.call(MULTICALL, &[0, 0]).0, 0);
        assert_eq!(guest.call(MULTICALL, &[1 << 60, 0]).0, 0);
        assert_eq!(guest.call(MULTICALL, &[0xdead_0000, 1]).0, Errno::EFAULT.as_return());
        assert_eq!(guest.call(MULTICALL, &[u64::MAX - 7, 2]).0, Errno::EFAULT.as_return());
        assert_eq!(guest.call(MULTICALL, &[1 << 60, 1 << 32]).0, 0, "counts have 32 bits");
    }
}
