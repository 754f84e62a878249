//! Undoing the x86 filter. Before packing, the relative targets of CALL (E8) and JMP (E9) were made absolute, as the same target then is the
//! same bytes everywhere. The `.xz` format leaves what counts as a target to its first implementation, which this one agrees with.

/// Opcode and target.
const INSTRUCTION: usize = 5;
const TARGET: usize = 4;

/// Targets are 25 bits and a sign.
const SIGN: u32 = 1 << 24;

/// How far back an opcode may be that makes another one doubtful: within what would be its target.
const DOUBTFUL: usize = 3;

/// The highest byte of a target that is taken for one: near, forwards or backwards.
fn is_sign(byte: u8) -> bool {
    byte == 0 || byte == 0xff
}

/// Undoes the filter in `code`, whose first byte was at `start` for it.
pub fn undo(code: &mut [u8], start: u32) {
    // Opcodes that were passed without being taken for one, as bits: bit 0 for one byte back, and so on.
    let mut passed = 0u32;
    let mut at = 0usize;
    let mut last = 0usize;
    while let Some(found) = next_opcode(code, at) {
        let back = found.wrapping_sub(last);
        passed = if back > DOUBTFUL { 0 } else { passed << back & 0xf };
        // Bit 0 belonged to the opcode itself before it was shifted away from it.
        last = found;
        let doubts = passed >> 1 & 7;
        let target = found.wrapping_add(1)..found.wrapping_add(INSTRUCTION);
        let Some(Ok(bytes)) = code.get(target.clone()).map(<[u8; TARGET]>::try_from) else { break };
        match relative(bytes, doubts, start.wrapping_add(target.end as u32)) {
            Some(relative) => {
                if let Some(place) = code.get_mut(target.clone()) {
                    place.copy_from_slice(&relative.to_le_bytes());
                }
                at = target.end;
                passed = 0;
            }
            None => {
                at = target.start;
                passed |= 1;
            }
        }
    }
}

/// The relative target that `bytes` were before; `None` if the filter left them alone. `next` is the next instruction's address.
fn relative(bytes: [u8; TARGET], doubts: u32, next: u32) -> Option<u32> {
    let [.., highest] = bytes;
    if !is_sign(highest) {
        return None;
    }
    let mut absolute = u32::from_le_bytes(bytes);
    let mut relative = absolute.wrapping_sub(next);
    if doubts != 0 {
        // One other opcode, `back` bytes before: its own highest byte is among these, and must not look like a target's.
        if !doubts.is_power_of_two() {
            return None;
        }
        let back = doubts.ilog2().wrapping_add(1);
        let shift = 24u32.wrapping_sub(back.wrapping_mul(8)) & 31;
        if is_sign((u32::from_le_bytes(bytes) >> shift) as u8) {
            return None;
        }
        // Nor may it after the change: then the lower bits were inverted, and it was tried again.
        let mask = (1u32 << (shift.wrapping_add(8) & 31)).wrapping_sub(1);
        while is_sign((relative >> shift) as u8) {
            absolute = relative ^ mask;
            relative = absolute.wrapping_sub(next);
        }
    }
    let magnitude = relative & (SIGN << 1).wrapping_sub(1);
    Some(if magnitude & SIGN != 0 { magnitude | !(SIGN.wrapping_sub(1)) } else { magnitude })
}

/// Where the next E8 or E9 is, from `at` on; `None` near the end too, if there is no room for a target.
fn next_opcode(code: &[u8], at: usize) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let mut at = at;
    while let Some(word) = code.get(at..)?.first_chunk() {
        // Bytes E8 and E9 become 0, and the lowest 0 has the lowest of the bits that this leaves.
        let word = u64::from_le_bytes(*word) & ONES.wrapping_mul(0xfe) ^ ONES.wrapping_mul(0xe8);
        let zeroes = word.wrapping_sub(ONES) & !word & ONES.wrapping_mul(0x80);
        if zeroes != 0 {
            return at.checked_add((zeroes.trailing_zeros() >> 3) as usize);
        }
        at = at.wrapping_add(8);
    }
    let rest = code.get(at..)?;
    at.checked_add(rest.iter().position(|byte| byte & 0xfe == 0xe8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_jumps_become_relative_again() {
        let mut code = [0x90, 0xe8, 0x06, 0x10, 0, 0, 0xe9, 0x0b, 0, 0, 0, 0x90, 0xe8, 1, 2, 3, 4, 0xe8, 0, 0];
        undo(&mut code, 0);
        assert_eq!(code[1..6], [0xe8, 0, 0x10, 0, 0]);
        assert_eq!(code[6..11], [0xe9, 0, 0, 0, 0]);
        assert_eq!(code[12..], [0xe8, 1, 2, 3, 4, 0xe8, 0, 0]);
    }

    #[test]
    fn a_target_before_the_instruction_is_negative() {
        let mut code = [0xe8, 0, 0, 0, 0];
        undo(&mut code, 0x100);
        assert_eq!(code, [0xe8, 0xfb, 0xfe, 0xff, 0xff]);
    }
}
