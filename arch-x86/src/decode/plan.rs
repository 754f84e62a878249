//! What an instruction does to a piece of emulated memory, in steps that may wait for the device in between.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::alu::{self, BitOperation, Operation};
use super::operand::{Gpr, RAX, RCX, RDI, RSI, Registers, Size};
use super::{Mode, Undecodable, decode};

/// The access that the instruction needs first.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Read(Size),
    Write {
        size: Size,
        value: u64,
    },
    /// A read; [`Plan::finish`] then gives the value to write to the same place.
    ReadModifyWrite(Size),
    /// A read at one linear address and a write of what was read at the other. Either or both may be emulated memory.
    Copy {
        size: Size,
        from: u64,
        to: u64,
    },
    /// None: a repeated instruction whose count is zero.
    Nothing,
}

/// What is left to do when the access is made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Go on behind the instruction.
    Retire,
    /// One turn of a repeated instruction is done: go on at the same instruction.
    Repeat,
    /// Write this where the value was read, then go on behind the instruction. The registers are up to date.
    Write { size: Size, value: u64 },
}

/// A decoded instruction on its way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub access: Access,
    /// Bytes of the instruction.
    pub length: u8,
    size: Size,
    action: Action,
}

/// What happens to the value of memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Into a register, which may be wider.
    Load {
        to: Gpr,
        signed: bool,
    },
    /// Into a register if the condition holds. A 32-bit register loses its upper half in any case.
    ConditionalLoad {
        to: Gpr,
        taken: bool,
    },
    /// The write was everything.
    Store,
    /// memory = memory op operand.
    Modify {
        operation: Operation,
        operand: u64,
    },
    /// register = register op memory.
    Combine {
        operation: Operation,
        with: Gpr,
    },
    /// Flags of left op right.
    Compare {
        operation: Operation,
        other: u64,
        memory_is_left: bool,
    },
    Bit {
        operation: BitOperation,
        offset: u64,
    },
    Exchange {
        with: Gpr,
    },
    ExchangeAdd {
        with: Gpr,
    },
    /// If memory is what the accumulator holds, it becomes `new`.
    CompareExchange {
        new: u64,
    },
    String(StringStep),
}

/// One turn of MOVS, STOS or LODS.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct StringStep {
    /// MOVS, LODS: RSI moves on.
    source: bool,
    /// MOVS, STOS: RDI moves on.
    destination: bool,
    address: Size,
    repeated: bool,
}

/// Decodes an instruction that touched emulated memory. `bytes` are those at the instruction pointer,
/// [`LONGEST`](super::LONGEST) or as many as can be fetched.
pub fn plan(bytes: &[u8], mode: Mode, registers: &impl Registers) -> Result<Plan, Undecodable> {
    let instruction = decode(bytes, mode)?;
    // The size alone does not tell: an instruction that could have a memory operand may have registers only.
    if instruction.op0_kind() < OpKind::MemorySegSI && instruction.op1_kind() < OpKind::MemorySegSI {
        return Err(Undecodable::Unsupported);
    }
    let size = Size::from_bytes(instruction.memory_size().size()).ok_or(Undecodable::Unsupported)?;
    let (access, action) = steps(&instruction, size, registers).ok_or(Undecodable::Unsupported)?;
    if instruction.has_lock_prefix() && !matches!(access, Access::ReadModifyWrite(_)) {
        return Err(Undecodable::Invalid);
    }
    Ok(Plan { access, length: instruction.len() as u8, size, action })
}

fn steps(instruction: &Instruction, size: Size, registers: &impl Registers) -> Option<(Access, Action)> {
    let memory_first = instruction.op0_kind() == OpKind::Memory;
    let to = || Gpr::from_name(instruction.op0_register());
    let source = || operand(instruction, registers);
    Some(match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti if memory_first => (Access::Write { size, value: source()? }, Action::Store),
        Mnemonic::Mov | Mnemonic::Movzx => (Access::Read(size), Action::Load { to: to()?, signed: false }),
        Mnemonic::Movsx | Mnemonic::Movsxd => (Access::Read(size), Action::Load { to: to()?, signed: true }),
        Mnemonic::Add => arithmetic(instruction, Operation::Add, size, registers)?,
        Mnemonic::Adc => arithmetic(instruction, Operation::AddCarry, size, registers)?,
        Mnemonic::Sub => arithmetic(instruction, Operation::Sub, size, registers)?,
        Mnemonic::Sbb => arithmetic(instruction, Operation::SubBorrow, size, registers)?,
        Mnemonic::And => arithmetic(instruction, Operation::And, size, registers)?,
        Mnemonic::Or => arithmetic(instruction, Operation::Or, size, registers)?,
        Mnemonic::Xor => arithmetic(instruction, Operation::Xor, size, registers)?,
        Mnemonic::Cmp | Mnemonic::Test => {
            let operation = if instruction.mnemonic() == Mnemonic::Cmp { Operation::Sub } else { Operation::And };
            let other = if memory_first { source()? } else { to()?.read(registers) };
            (Access::Read(size), Action::Compare { operation, other, memory_is_left: memory_first })
        }
        Mnemonic::Inc => unary(Operation::Inc, size),
        Mnemonic::Dec => unary(Operation::Dec, size),
        Mnemonic::Neg => unary(Operation::Neg, size),
        Mnemonic::Not => unary(Operation::Not, size),
        Mnemonic::Bt => (Access::Read(size), Action::Bit { operation: BitOperation::Test, offset: source()? }),
        Mnemonic::Bts => bit(BitOperation::Set, size, source()?),
        Mnemonic::Btr => bit(BitOperation::Reset, size, source()?),
        Mnemonic::Btc => bit(BitOperation::Complement, size, source()?),
        Mnemonic::Xchg => {
            let name = if memory_first { instruction.op1_register() } else { instruction.op0_register() };
            (Access::ReadModifyWrite(size), Action::Exchange { with: Gpr::from_name(name)? })
        }
        Mnemonic::Xadd => {
            let with = Gpr::from_name(instruction.op1_register())?;
            (Access::ReadModifyWrite(size), Action::ExchangeAdd { with })
        }
        Mnemonic::Cmpxchg => (Access::ReadModifyWrite(size), Action::CompareExchange { new: source()? }),
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            string(instruction, true, true, size, registers)?
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            string(instruction, false, true, size, registers)?
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            string(instruction, true, false, size, registers)?
        }
        _ => return conditional(instruction, size, registers),
    })
}

/// The second operand: a register or an immediate, cut to the width of the first.
fn operand(instruction: &Instruction, registers: &impl Registers) -> Option<u64> {
    match instruction.op1_kind() {
        OpKind::Register => Some(Gpr::from_name(instruction.op1_register())?.read(registers)),
        _ => instruction.try_immediate(1).ok(),
    }
}

fn arithmetic(
    instruction: &Instruction,
    operation: Operation,
    size: Size,
    registers: &impl Registers,
) -> Option<(Access, Action)> {
    if instruction.op0_kind() == OpKind::Memory {
        let operand = operand(instruction, registers)?;
        Some((Access::ReadModifyWrite(size), Action::Modify { operation, operand }))
    } else {
        let with = Gpr::from_name(instruction.op0_register())?;
        Some((Access::Read(size), Action::Combine { operation, with }))
    }
}

const fn unary(operation: Operation, size: Size) -> (Access, Action) {
    (Access::ReadModifyWrite(size), Action::Modify { operation, operand: 0 })
}

const fn bit(operation: BitOperation, size: Size, offset: u64) -> (Access, Action) {
    (Access::ReadModifyWrite(size), Action::Bit { operation, offset })
}

/// CMOVcc and SETcc.
fn conditional(instruction: &Instruction, size: Size, registers: &impl Registers) -> Option<(Access, Action)> {
    let number = match instruction.condition_code() {
        ConditionCode::None => return None,
        code => (code as u8).checked_sub(1)?,
    };
    let taken = alu::condition(number, registers.rflags());
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => {
            let to = Gpr::from_name(instruction.op0_register())?;
            Some((Access::Read(size), Action::ConditionalLoad { to, taken }))
        }
        (OpKind::Memory, _) if size == Size::Byte && instruction.op_count() == 1 => {
            Some((Access::Write { size, value: taken.into() }, Action::Store))
        }
        _ => None,
    }
}

fn string(
    instruction: &Instruction,
    source: bool,
    destination: bool,
    size: Size,
    registers: &impl Registers,
) -> Option<(Access, Action)> {
    let kind = if destination { instruction.op0_kind() } else { instruction.op1_kind() };
    let address = match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Size::Word,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Size::Dword,
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Size::Qword,
        // MOVSD and MOVSQ are also names of SSE instructions.
        _ => return None,
    };
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let step = Action::String(StringStep { source, destination, address, repeated });
    let pointer = |number| Gpr::whole(number, address).read(registers);
    if repeated && pointer(RCX) == 0 {
        return Some((Access::Nothing, step));
    }
    let access = match (source, destination) {
        (true, true) => {
            let segment = (instruction.memory_segment() as u32).checked_sub(Register::ES as u32)?;
            let from = registers.segment_base(segment as u8).wrapping_add(pointer(RSI));
            let to = registers.segment_base(0).wrapping_add(pointer(RDI));
            Access::Copy { size, from, to }
        }
        (false, _) => Access::Write { size, value: Gpr::whole(RAX, size).read(registers) },
        (true, false) => Access::Read(size),
    };
    Some((access, step))
}

/// OpKind lists registers, branches and immediates first, then all kinds of memory operands.
const _: () = assert!(OpKind::Immediate32to64 as u8 + 1 == OpKind::MemorySegSI as u8);
const _: () = assert!(OpKind::Memory as u8 == OpKind::MemorySegSI as u8 + 9);

impl Plan {
    /// Whether the instruction writes to the memory it touches. An exit for a write by an instruction that only reads,
    /// or the other way round, means that the guest has changed its code meanwhile: enter it again.
    pub const fn writes(&self) -> bool {
        matches!(self.access, Access::Write { .. } | Access::ReadModifyWrite(_) | Access::Copy { .. })
    }

    /// The access is made; `value` is what was read, if it was one that reads. Updates the registers and flags, but not
    /// the instruction pointer.
    pub fn finish(&self, value: u64, registers: &mut impl Registers) -> Next {
        let size = self.size;
        let value = value & size.mask();
        match self.action {
            Action::Load { to, signed } => {
                to.write(registers, if signed { size.sign_extend(value) } else { value });
                Next::Retire
            }
            Action::ConditionalLoad { to, taken } => {
                let old = to.read(registers);
                to.write(registers, if taken { value } else { old });
                Next::Retire
            }
            Action::Store => Next::Retire,
            Action::Modify { operation, operand } => {
                let (value, rflags) = alu::compute(operation, value, operand, registers.rflags(), size);
                registers.set_rflags(rflags);
                Next::Write { size, value }
            }
            Action::Combine { operation, with } => {
                let (result, rflags) = alu::compute(operation, with.read(registers), value, registers.rflags(), size);
                registers.set_rflags(rflags);
                with.write(registers, result);
                Next::Retire
            }
            Action::Compare { operation, other, memory_is_left } => {
                let (left, right) = if memory_is_left { (value, other) } else { (other, value) };
                registers.set_rflags(alu::compute(operation, left, right, registers.rflags(), size).1);
                Next::Retire
            }
            Action::Bit { operation, offset } => {
                let (result, rflags) = alu::bit(operation, value, offset, registers.rflags(), size);
                registers.set_rflags(rflags);
                match operation {
                    BitOperation::Test => Next::Retire,
                    _ => Next::Write { size, value: result },
                }
            }
            Action::Exchange { with } => {
                let old = with.read(registers);
                with.write(registers, value);
                Next::Write { size, value: old }
            }
            Action::ExchangeAdd { with } => {
                let (sum, rflags) = alu::compute(Operation::Add, value, with.read(registers), registers.rflags(), size);
                registers.set_rflags(rflags);
                with.write(registers, value);
                Next::Write { size, value: sum }
            }
            Action::CompareExchange { new } => {
                let accumulator = Gpr::whole(RAX, size);
                let expected = accumulator.read(registers);
                registers.set_rflags(alu::compute(Operation::Sub, expected, value, registers.rflags(), size).1);
                if expected == value {
                    return Next::Write { size, value: new & size.mask() };
                }
                accumulator.write(registers, value);
                // The processor writes back what it read.
                Next::Write { size, value }
            }
            Action::String(step) => self.finish_string(step, value, registers),
        }
    }

    fn finish_string(&self, step: StringStep, value: u64, registers: &mut impl Registers) -> Next {
        if self.access == Access::Nothing {
            return Next::Retire;
        }
        if step.source && !step.destination {
            Gpr::whole(RAX, self.size).write(registers, value);
        }
        let stride = u64::from(self.size.bytes());
        let backwards = registers.rflags() & alu::DF != 0;
        let mut advance = |number, by: u64| {
            let register = Gpr::whole(number, step.address);
            let next = register.read(registers).wrapping_add(by) & step.address.mask();
            register.write(registers, next);
            next
        };
        let by = if backwards { stride.wrapping_neg() } else { stride };
        if step.source {
            advance(RSI, by);
        }
        if step.destination {
            advance(RDI, by);
        }
        if step.repeated && advance(RCX, u64::MAX) != 0 { Next::Repeat } else { Next::Retire }
    }
}
