//! Multicall: many hypercalls in one. The entries are carried out in order, and each is told its own result.

use xen_abi::errno::Errno;
use xen_abi::multicall::MulticallEntry;
use xen_abi::numbers::MULTICALL;

use crate::hypercall::{Arguments, Caller, Outcome, dispatch};
use crate::machine::Machine;

/// Entries after which others get a turn.
const TURN: u32 = 64;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [list, count, third, fourth, fifth] = arguments;
    let count = count as u32;
    let list = caller.handle::<MulticallEntry>(list);
    let mut done = 0;
    while done < count {
        let at = caller.arg_at(list, done.into())?;
        // An entry may have put the vCPU to sleep: the rest is for later.
        if done == TURN || (done > 0 && !caller.vcpu.is_runnable()) {
            let rest = count.saturating_sub(done);
            return Ok(Outcome::Continue([at.address(), rest.into(), third, fourth, fifth]));
        }
        let mut entry = caller.read_arg(at)?;
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
                let rest = count.saturating_sub(done);
                return Ok(Outcome::Continue([at.address(), rest.into(), third, fourth, fifth]));
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
