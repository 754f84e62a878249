//! Widths, and the general registers under all their names.

use iced_x86::Register;

/// The width of an operand.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Size {
    pub const fn from_bytes(bytes: usize) -> Option<Size> {
        match bytes {
            1 => Some(Size::Byte),
            2 => Some(Size::Word),
            4 => Some(Size::Dword),
            8 => Some(Size::Qword),
            _ => None,
        }
    }

    pub const fn bytes(self) -> u8 {
        match self {
            Size::Byte => 1,
            Size::Word => 2,
            Size::Dword => 4,
            Size::Qword => 8,
        }
    }

    pub const fn bits(self) -> u32 {
        match self {
            Size::Byte => 8,
            Size::Word => 16,
            Size::Dword => 32,
            Size::Qword => 64,
        }
    }

    pub const fn mask(self) -> u64 {
        match self {
            Size::Byte => 0xff,
            Size::Word => 0xffff,
            Size::Dword => 0xffff_ffff,
            Size::Qword => u64::MAX,
        }
    }

    pub(super) const fn sign(self) -> u64 {
        match self {
            Size::Byte => 1 << 7,
            Size::Word => 1 << 15,
            Size::Dword => 1 << 31,
            Size::Qword => 1 << 63,
        }
    }

    /// The value of this width as a signed one of 64 bits.
    pub(super) const fn sign_extend(self, value: u64) -> u64 {
        match self {
            Size::Byte => value as i8 as u64,
            Size::Word => value as i16 as u64,
            Size::Dword => value as i32 as u64,
            Size::Qword => value,
        }
    }
}

/// The registers of the vCPU whose instruction is emulated.
pub trait Registers {
    /// A general register by its number in encodings: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    fn gpr(&self, number: u8) -> u64;
    fn set_gpr(&mut self, number: u8, value: u64);
    fn rflags(&self) -> u64;
    fn set_rflags(&mut self, value: u64);
    /// The base of a segment as it is added to addresses (zero for ES, CS, SS and DS in 64-bit mode), by its number in
    /// encodings: ES, CS, SS, DS, FS, GS. Asked only by MOVS.
    fn segment_base(&self, number: u8) -> u64;
}

pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;

/// A general register under one of its names.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpr {
    pub number: u8,
    pub size: Size,
    /// AH, CH, DH, BH.
    pub high: bool,
}

impl Gpr {
    pub const fn whole(number: u8, size: Size) -> Gpr {
        Gpr { number, size, high: false }
    }

    pub fn from_name(name: Register) -> Option<Gpr> {
        let name = name as u32;
        let within = |first: Register, last: Register, from: u8| {
            let index = name.checked_sub(first as u32)?;
            (name <= last as u32).then(|| (index as u8).wrapping_add(from))
        };
        if let Some(number) = within(Register::EAX, Register::R15D, 0) {
            Some(Gpr::whole(number, Size::Dword))
        } else if let Some(number) = within(Register::RAX, Register::R15, 0) {
            Some(Gpr::whole(number, Size::Qword))
        } else if let Some(number) = within(Register::AX, Register::R15W, 0) {
            Some(Gpr::whole(number, Size::Word))
        } else if let Some(number) = within(Register::AH, Register::BH, 0) {
            Some(Gpr { number, size: Size::Byte, high: true })
        } else if let Some(number) = within(Register::AL, Register::BL, 0) {
            Some(Gpr::whole(number, Size::Byte))
        } else {
            within(Register::SPL, Register::R15L, 4).map(|number| Gpr::whole(number, Size::Byte))
        }
    }

    #[inline]
    pub fn read(self, registers: &impl Registers) -> u64 {
        let whole = registers.gpr(self.number);
        if self.high { whole >> 8 & 0xff } else { whole & self.size.mask() }
    }

    /// 32-bit writes clear the upper half, narrower ones keep what surrounds them (SDM Vol. 1, 3.4.1.1).
    #[inline]
    pub fn write(self, registers: &mut impl Registers, value: u64) {
        let value = value & self.size.mask();
        let whole = match self.size {
            Size::Qword | Size::Dword => value,
            _ if self.high => registers.gpr(self.number) & !0xff00 | value << 8,
            size => registers.gpr(self.number) & !size.mask() | value,
        };
        registers.set_gpr(self.number, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_every_register_is_known() {
        let names = [
            (Register::AL, 0, Size::Byte, false),
            (Register::BL, 3, Size::Byte, false),
            (Register::AH, 0, Size::Byte, true),
            (Register::BH, 3, Size::Byte, true),
            (Register::SPL, 4, Size::Byte, false),
            (Register::DIL, 7, Size::Byte, false),
            (Register::R8L, 8, Size::Byte, false),
            (Register::R15L, 15, Size::Byte, false),
            (Register::AX, 0, Size::Word, false),
            (Register::R15W, 15, Size::Word, false),
            (Register::EAX, 0, Size::Dword, false),
            (Register::R15D, 15, Size::Dword, false),
            (Register::RAX, 0, Size::Qword, false),
            (Register::RSP, 4, Size::Qword, false),
            (Register::R15, 15, Size::Qword, false),
        ];
        for (name, number, size, high) in names {
            assert_eq!(Gpr::from_name(name), Some(Gpr { number, size, high }), "{name:?}");
        }
        for other in [Register::None, Register::EIP, Register::RIP, Register::ES, Register::CR0, Register::XMM0] {
            assert_eq!(Gpr::from_name(other), None, "{other:?}");
        }
    }
}
