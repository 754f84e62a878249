//! Sets of CPUs and nodes in the caller's memory.

use sched::{CpuId, CpuSet};
use xen_abi::errno::Errno;
use xen_abi::types::Bitmap;

use crate::hypercall::Caller;
use crate::machine::Machine;

/// Bytes that a set of CPUs takes up.
const BYTES: usize = CpuSet::MAX / 8;

/// The set, as far as there can be such CPUs.
pub fn read_cpus<M: Machine>(caller: &mut Caller<'_, M>, from: &Bitmap) -> Result<CpuSet, Errno> {
    let mut bytes = [0u8; BYTES];
    let count = (from.nr_bits.div_ceil(8) as usize).min(BYTES);
    let into = bytes.get_mut(..count).ok_or(Errno::EINVAL)?;
    caller.read_bytes(from.bitmap.address(), into)?;
    let has = |cpu: &CpuId| {
        cpu.0 < from.nr_bits
            && bytes.get(cpu.0.wrapping_shr(3) as usize).is_some_and(|byte| byte >> (cpu.0 & 7) & 1 != 0)
    };
    Ok((0..CpuSet::MAX as u32).map(CpuId).filter(has).collect())
}

/// Writes those of the set that are in the first `count`, and nought for the rest of the caller's bits.
pub fn write_cpus<M: Machine>(caller: &mut Caller<'_, M>, to: &Bitmap, set: CpuSet, count: u32) -> Result<(), Errno> {
    let mut bytes = [0u8; BYTES];
    for cpu in set.iter().filter(|cpu| cpu.0 < count.min(to.nr_bits)) {
        if let Some(byte) = bytes.get_mut(cpu.0.wrapping_shr(3) as usize) {
            *byte |= 1u8.wrapping_shl(cpu.0 & 7);
        }
    }
    write(caller, to, &bytes)
}

/// Writes the set of all nodes: there is one.
pub fn write_nodes<M: Machine>(caller: &mut Caller<'_, M>, to: &Bitmap) -> Result<(), Errno> {
    write(caller, to, &[u8::from(to.nr_bits != 0)])
}

/// Writes as many bytes as the bitmap has; what is not in `bytes` is nought.
fn write<M: Machine>(caller: &mut Caller<'_, M>, to: &Bitmap, bytes: &[u8]) -> Result<(), Errno> {
    const MOST: usize = 8192;
    let wanted = (to.nr_bits.div_ceil(8) as usize).min(MOST);
    let given = bytes.get(..wanted).unwrap_or(bytes);
    caller.write_bytes(to.bitmap.address(), given)?;
    let zeroes = [0u8; 64];
    let mut at = given.len();
    while at < wanted {
        let piece = wanted.saturating_sub(at).min(zeroes.len());
        let to = to.bitmap.byte_add(at as u64).ok_or(Errno::EFAULT)?;
        caller.write_bytes(to.address(), zeroes.get(..piece).unwrap_or(&zeroes))?;
        at = at.saturating_add(piece);
    }
    Ok(())
}
