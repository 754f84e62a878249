//! Arithmetic as the processor does it, flags included (SDM Vol. 1, appendix A).

use super::operand::Size;

pub(super) const CF: u64 = 1 << 0;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const DF: u64 = 1 << 10;
pub(super) const OF: u64 = 1 << 11;

const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    AddCarry,
    Sub,
    SubBorrow,
    And,
    Or,
    Xor,
    /// Of the left operand alone.
    Inc,
    Dec,
    Neg,
    Not,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum BitOperation {
    Test,
    Set,
    Reset,
    Complement,
}

/// The result, and RFLAGS after the operation.
pub(super) fn compute(operation: Operation, left: u64, right: u64, rflags: u64, size: Size) -> (u64, u64) {
    let (left, right) = (left & size.mask(), right & size.mask());
    let carry_in = rflags & CF;
    match operation {
        Operation::Add => add(left, right, 0, rflags, size),
        Operation::AddCarry => add(left, right, carry_in, rflags, size),
        Operation::Sub => sub(left, right, 0, rflags, size),
        Operation::SubBorrow => sub(left, right, carry_in, rflags, size),
        Operation::And => logic(left & right, rflags, size),
        Operation::Or => logic(left | right, rflags, size),
        Operation::Xor => logic(left ^ right, rflags, size),
        // These two leave the carry alone.
        Operation::Inc => keep_carry(add(left, 1, 0, rflags, size), carry_in),
        Operation::Dec => keep_carry(sub(left, 1, 0, rflags, size), carry_in),
        Operation::Neg => sub(0, left, 0, rflags, size),
        Operation::Not => (!left & size.mask(), rflags),
    }
}

fn keep_carry((result, rflags): (u64, u64), carry: u64) -> (u64, u64) {
    (result, rflags & !CF | carry)
}

const fn flag(condition: bool, bit: u64) -> u64 {
    if condition { bit } else { 0 }
}

/// ZF, SF and PF, and whatever else is given, replace the arithmetic flags.
fn with_result(result: u64, rflags: u64, others: u64, size: Size) -> (u64, u64) {
    let parity = flag((result as u8).count_ones() & 1 == 0, PF);
    let zero = flag(result == 0, ZF);
    let sign = flag(result & size.sign() != 0, SF);
    (result, rflags & !ARITHMETIC | parity | zero | sign | others)
}

fn add(left: u64, right: u64, carry: u64, rflags: u64, size: Size) -> (u64, u64) {
    let sum = u128::from(left).wrapping_add(u128::from(right)).wrapping_add(u128::from(carry));
    let result = sum as u64 & size.mask();
    let carried = flag(sum > u128::from(size.mask()), CF);
    let half = (left ^ right ^ result) & AF;
    let overflow = flag(!(left ^ right) & (left ^ result) & size.sign() != 0, OF);
    with_result(result, rflags, carried | half | overflow, size)
}

fn sub(left: u64, right: u64, borrow: u64, rflags: u64, size: Size) -> (u64, u64) {
    let result = left.wrapping_sub(right).wrapping_sub(borrow) & size.mask();
    let borrowed = flag(u128::from(left) < u128::from(right).wrapping_add(u128::from(borrow)), CF);
    let half = (left ^ right ^ result) & AF;
    let overflow = flag((left ^ right) & (left ^ result) & size.sign() != 0, OF);
    with_result(result, rflags, borrowed | half | overflow, size)
}

/// AF is undefined after these; processors clear it.
fn logic(result: u64, rflags: u64, size: Size) -> (u64, u64) {
    with_result(result, rflags, 0, size)
}

/// BT and its kind: the bit goes to CF, the other flags stay. The offset counts within the operand: what lies beyond
/// has moved the address.
pub(super) fn bit(operation: BitOperation, value: u64, offset: u64, rflags: u64, size: Size) -> (u64, u64) {
    let bit = 1u64 << (offset & u64::from(size.bits()).wrapping_sub(1));
    let result = match operation {
        BitOperation::Test => value,
        BitOperation::Set => value | bit,
        BitOperation::Reset => value & !bit,
        BitOperation::Complement => value ^ bit,
    };
    (result, rflags & !CF | flag(value & bit != 0, CF))
}

/// Whether a condition holds, by its number in Jcc, SETcc and CMOVcc encodings.
pub(super) fn condition(number: u8, rflags: u64) -> bool {
    let has = |bits| rflags & bits != 0;
    let less = has(SF) != has(OF);
    let holds = match number >> 1 & 7 {
        0 => has(OF),
        1 => has(CF),
        2 => has(ZF),
        3 => has(CF | ZF),
        4 => has(SF),
        5 => has(PF),
        6 => less,
        _ => less || has(ZF),
    };
    // Odd numbers are the negations.
    holds != (number & 1 != 0)
}
