//! Instructions that the processor leaves to Corten: accesses to emulated memory, and, on SVM without next-RIP saving,
//! the length of what was intercepted.
//!
//! An access to emulated memory goes in steps, because the device behind it may answer late. [`plan`] decodes the
//! instruction and says which access it needs; the run loop makes that access, now or later; [`Plan::finish`] takes the
//! value that was read, updates the vCPU's registers and flags, and says what is left to do. A [`Plan`] is a plain
//! value that the vCPU keeps meanwhile.
#![cfg_attr(not(test), forbid(unsafe_code))]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unreachable,
        clippy::todo
    )
)]

mod alu;
mod intercept;
mod operand;
mod plan;

pub use intercept::{
    ControlMove, Intercept, control_move, instruction_length, intercepted_length, load_machine_status,
};
pub use operand::{Registers, Size};
pub use plan::{Access, Next, Plan, plan};

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// No instruction is longer (SDM Vol. 2, 2.3.11): as many bytes are to be fetched, or fewer if the next page cannot be.
pub const LONGEST: usize = 15;

/// The width of the code segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Bits16,
    Bits32,
    Bits64,
}

/// Why an instruction is not emulated.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Undecodable {
    /// The instruction goes on where nothing could be fetched: the fetch is what faults.
    CutShort,
    /// Not an instruction: #UD.
    Invalid,
    /// An instruction that Corten does not emulate on this kind of memory.
    Unsupported,
}

/// Builds the decoder's tables, which are on the heap. At boot, so that no guest's first access has to.
pub fn prepare() {
    let _ = decode(&[0x90], Mode::Bits64);
}

#[inline]
fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, Undecodable> {
    let bits = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let mut decoder =
        Decoder::try_with_ip(bits, bytes, 0, DecoderOptions::NONE).map_err(|_| Undecodable::Unsupported)?;
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        DecoderError::NoMoreBytes if bytes.len() < LONGEST => Err(Undecodable::CutShort),
        _ => Err(Undecodable::Invalid),
    }
}

#[cfg(test)]
mod tests;
