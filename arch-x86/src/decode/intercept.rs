//! Instructions that were intercepted: how long they are, and that they are what was intercepted.
//!
//! Without next-RIP saving an SVM exit says only what kind of instruction it was. Its bytes are fetched again, and
//! another vCPU may have changed them: so what is decoded is compared with what was intercepted, and if it differs, the
//! guest is entered again.

use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::operand::Gpr;
use super::{Mode, decode};

/// An instruction without operands that matter here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Intercept {
    Clgi,
    Clts,
    Cpuid,
    Hlt,
    Icebp,
    Invd,
    Invlpga,
    Iret,
    Monitor,
    Mwait,
    Pause,
    Rdmsr,
    Rdpmc,
    Rdtsc,
    Rdtscp,
    Skinit,
    Stgi,
    Vmload,
    Vmmcall,
    Vmrun,
    Vmsave,
    Wbinvd,
    Wrmsr,
    Xsetbv,
}

impl Intercept {
    /// Its bytes when there are no further prefixes.
    const fn usual(self) -> &'static [u8] {
        match self {
            Intercept::Clgi => &[0x0f, 0x01, 0xdd],
            Intercept::Clts => &[0x0f, 0x06],
            Intercept::Cpuid => &[0x0f, 0xa2],
            Intercept::Hlt => &[0xf4],
            Intercept::Icebp => &[0xf1],
            Intercept::Invd => &[0x0f, 0x08],
            Intercept::Invlpga => &[0x0f, 0x01, 0xdf],
            Intercept::Iret => &[0xcf],
            Intercept::Monitor => &[0x0f, 0x01, 0xc8],
            Intercept::Mwait => &[0x0f, 0x01, 0xc9],
            Intercept::Pause => &[0xf3, 0x90],
            Intercept::Rdmsr => &[0x0f, 0x32],
            Intercept::Rdpmc => &[0x0f, 0x33],
            Intercept::Rdtsc => &[0x0f, 0x31],
            Intercept::Rdtscp => &[0x0f, 0x01, 0xf9],
            Intercept::Skinit => &[0x0f, 0x01, 0xde],
            Intercept::Stgi => &[0x0f, 0x01, 0xdc],
            Intercept::Vmload => &[0x0f, 0x01, 0xda],
            Intercept::Vmmcall => &[0x0f, 0x01, 0xd9],
            Intercept::Vmrun => &[0x0f, 0x01, 0xd8],
            Intercept::Vmsave => &[0x0f, 0x01, 0xdb],
            Intercept::Wbinvd => &[0x0f, 0x09],
            Intercept::Wrmsr => &[0x0f, 0x30],
            Intercept::Xsetbv => &[0x0f, 0x01, 0xd1],
        }
    }

    fn is(self, mnemonic: Mnemonic) -> bool {
        match self {
            Intercept::Clgi => mnemonic == Mnemonic::Clgi,
            Intercept::Clts => mnemonic == Mnemonic::Clts,
            Intercept::Cpuid => mnemonic == Mnemonic::Cpuid,
            Intercept::Hlt => mnemonic == Mnemonic::Hlt,
            Intercept::Icebp => mnemonic == Mnemonic::Int1,
            Intercept::Invd => mnemonic == Mnemonic::Invd,
            Intercept::Invlpga => mnemonic == Mnemonic::Invlpga,
            Intercept::Iret => matches!(mnemonic, Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq),
            Intercept::Monitor => mnemonic == Mnemonic::Monitor,
            Intercept::Mwait => mnemonic == Mnemonic::Mwait,
            Intercept::Pause => mnemonic == Mnemonic::Pause,
            Intercept::Rdmsr => mnemonic == Mnemonic::Rdmsr,
            Intercept::Rdpmc => mnemonic == Mnemonic::Rdpmc,
            Intercept::Rdtsc => mnemonic == Mnemonic::Rdtsc,
            Intercept::Rdtscp => mnemonic == Mnemonic::Rdtscp,
            Intercept::Skinit => mnemonic == Mnemonic::Skinit,
            Intercept::Stgi => mnemonic == Mnemonic::Stgi,
            Intercept::Vmload => mnemonic == Mnemonic::Vmload,
            Intercept::Vmmcall => mnemonic == Mnemonic::Vmmcall,
            Intercept::Vmrun => mnemonic == Mnemonic::Vmrun,
            Intercept::Vmsave => mnemonic == Mnemonic::Vmsave,
            Intercept::Wbinvd => mnemonic == Mnemonic::Wbinvd,
            Intercept::Wrmsr => mnemonic == Mnemonic::Wrmsr,
            Intercept::Xsetbv => mnemonic == Mnemonic::Xsetbv,
        }
    }
}

/// The length of the intercepted instruction at the start of `bytes`. None if that is not where such an instruction is.
#[inline]
pub fn intercepted_length(bytes: &[u8], mode: Mode, intercept: Intercept) -> Option<u8> {
    let usual = intercept.usual();
    if bytes.starts_with(usual) {
        return Some(usual.len() as u8);
    }
    let instruction = decode(bytes, mode).ok()?;
    intercept.is(instruction.mnemonic()).then_some(instruction.len() as u8)
}

/// The length of whatever instruction is at the start of `bytes`. None if there is none, or not all of it.
pub fn instruction_length(bytes: &[u8], mode: Mode) -> Option<u8> {
    decode(bytes, mode).ok().map(|instruction| instruction.len() as u8)
}

/// MOV to or from a control or debug register.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ControlMove {
    /// Number of the control or debug register.
    pub register: u8,
    /// A debug register.
    pub debug: bool,
    /// Number of the general register.
    pub gpr: u8,
    /// To the control register.
    pub write: bool,
    pub length: u8,
}

/// The MOV to or from a control or debug register at the start of `bytes`. None if it is something else.
pub fn control_move(bytes: &[u8], mode: Mode) -> Option<ControlMove> {
    let instruction = decode(bytes, mode).ok()?;
    let (write, debug) = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (true, false),
        Code::Mov_r32_cr | Code::Mov_r64_cr => (false, false),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => (true, true),
        Code::Mov_r32_dr | Code::Mov_r64_dr => (false, true),
        _ => return None,
    };
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let (control, general) = if write { (to, from) } else { (from, to) };
    let first = if debug { Register::DR0 } else { Register::CR0 };
    let register = (control as u32).checked_sub(first as u32)? as u8;
    let gpr = Gpr::from_name(general)?.number;
    Some(ControlMove { register, debug, gpr, write, length: instruction.len() as u8 })
}

/// LMSW from a general register at the start of `bytes`: that register's number, and the length.
pub fn load_machine_status(bytes: &[u8], mode: Mode) -> Option<(u8, u8)> {
    let instruction = decode(bytes, mode).ok()?;
    if instruction.mnemonic() != Mnemonic::Lmsw || instruction.op0_kind() != OpKind::Register {
        return None;
    }
    Some((Gpr::from_name(instruction.op0_register())?.number, instruction.len() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Intercept; 24] = [
        Intercept::Clgi,
        Intercept::Clts,
        Intercept::Cpuid,
        Intercept::Hlt,
        Intercept::Icebp,
        Intercept::Invd,
        Intercept::Invlpga,
        Intercept::Iret,
        Intercept::Monitor,
        Intercept::Mwait,
        Intercept::Pause,
        Intercept::Rdmsr,
        Intercept::Rdpmc,
        Intercept::Rdtsc,
        Intercept::Rdtscp,
        Intercept::Skinit,
        Intercept::Stgi,
        Intercept::Vmload,
        Intercept::Vmmcall,
        Intercept::Vmrun,
        Intercept::Vmsave,
        Intercept::Wbinvd,
        Intercept::Wrmsr,
        Intercept::Xsetbv,
    ];

    #[test]
    fn the_usual_bytes_are_what_the_decoder_calls_them() {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            for intercept in ALL {
                let instruction = decode(intercept.usual(), mode).unwrap();
                assert!(intercept.is(instruction.mnemonic()), "{intercept:?}");
                assert_eq!(instruction.len(), intercept.usual().len());
                for other in ALL {
                    let length = intercepted_length(intercept.usual(), mode, other);
                    assert_eq!(length.is_some(), other == intercept, "{intercept:?} taken for {other:?}");
                }
            }
        }
    }

    #[test]
    fn prefixes_count() {
        assert_eq!(intercepted_length(&[0x48, 0x0f, 0xa2, 0x90], Mode::Bits64, Intercept::Cpuid), Some(3));
        assert_eq!(intercepted_length(&[0x2e, 0x66, 0x0f, 0x32], Mode::Bits32, Intercept::Rdmsr), Some(4));
        assert_eq!(intercepted_length(&[0x48, 0xcf], Mode::Bits64, Intercept::Iret), Some(2));
    }

    #[test]
    fn an_instruction_that_has_changed_is_not_skipped() {
        assert_eq!(intercepted_length(&[0x90; 15], Mode::Bits64, Intercept::Cpuid), None);
        assert_eq!(intercepted_length(&[0x0f], Mode::Bits64, Intercept::Cpuid), None);
        assert_eq!(intercepted_length(&[], Mode::Bits64, Intercept::Hlt), None);
    }

    #[test]
    fn control_register_moves_name_both_registers() {
        let decoded =
            |bytes: &[u8], mode| control_move(bytes, mode).map(|m| (m.register, m.debug, m.gpr, m.write, m.length));
        assert_eq!(decoded(&[0x0f, 0x22, 0xd8], Mode::Bits64), Some((3, false, 0, true, 3)), "mov cr3, rax");
        assert_eq!(decoded(&[0x0f, 0x20, 0xc3], Mode::Bits32), Some((0, false, 3, false, 3)), "mov ebx, cr0");
        assert_eq!(decoded(&[0x44, 0x0f, 0x22, 0xc7], Mode::Bits64), Some((8, false, 7, true, 4)), "mov cr8, rdi");
        assert_eq!(decoded(&[0x41, 0x0f, 0x23, 0xf9], Mode::Bits64), Some((7, true, 9, true, 4)), "mov dr7, r9");
        assert_eq!(decoded(&[0x0f, 0x21, 0xf1], Mode::Bits64), Some((6, true, 1, false, 3)), "mov rcx, dr6");
        assert_eq!(decoded(&[0x89, 0xd8], Mode::Bits64), None, "mov eax, ebx");
    }

    #[test]
    fn lmsw_names_its_register() {
        assert_eq!(load_machine_status(&[0x0f, 0x01, 0xf3], Mode::Bits16), Some((3, 3)), "lmsw bx");
        assert_eq!(load_machine_status(&[0x0f, 0x01, 0x37], Mode::Bits16), None, "lmsw [bx]");
        assert_eq!(load_machine_status(&[0x0f, 0x06], Mode::Bits16), None, "clts");
    }

    #[test]
    fn lengths_depend_on_the_mode() {
        let bytes = [0xb8, 0x11, 0x22, 0x33, 0x44, 0x55];
        assert_eq!(instruction_length(&bytes, Mode::Bits16), Some(3));
        assert_eq!(instruction_length(&bytes, Mode::Bits32), Some(5));
        assert_eq!(instruction_length(&bytes[..4], Mode::Bits64), None);
        assert_eq!(instruction_length(&[0xd6], Mode::Bits64), None, "undefined in 64-bit mode");
    }
}
