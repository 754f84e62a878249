//! The MTRRs of a vCPU: kept and checked, without effect on memory.
//!
//! What a page may be cached as is in the nested page tables, leaf by leaf; a guest that programs its MTRRs reads back
//! what it wrote, and a value that hardware would refuse is refused (SDM Vol. 3, 12.11.2).

use xen_abi::hvm_save;

/// Variable ranges, as many as the save record holds.
const RANGES: usize = 8;
const FIXED: usize = 11;

const VARIABLE: usize = RANGES * 2;

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
pub const CAPABILITY: u64 = 1 << 10 | 1 << 8 | RANGES as u64;
/// IA32_MTRR_DEF_TYPE at start: enabled, and what no range covers is write-back.
const DEFAULT_TYPE: u64 = ENABLED | WRITE_BACK;
const ENABLED: u64 = 1 << 11;
const FIXED_ENABLED: u64 = 1 << 10;
const WRITE_BACK: u64 = 6;

/// The MTRRs of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtrr {
    default_type: u64,
    /// Base and mask in turn.
    variable: [u64; VARIABLE],
    fixed: [u64; FIXED],
}

impl Default for Mtrr {
    fn default() -> Self {
        Mtrr { default_type: DEFAULT_TYPE, variable: [0; VARIABLE], fixed: [WRITE_BACK * 0x0101_0101_0101_0101; FIXED] }
    }
}

/// Which register of the set; the index counts within its kind, in the order of the MSRs' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtrrRegister {
    /// IA32_MTRR_DEF_TYPE.
    DefaultType,
    /// IA32_MTRR_PHYSBASEn (even) and IA32_MTRR_PHYSMASKn (odd).
    Variable(u8),
    /// IA32_MTRR_FIX64K_00000, FIX16K_80000, _A0000, FIX4K_C0000 … _F8000.
    Fixed(u8),
}

impl Mtrr {
    /// The register's value. One that is not there reads as zero.
    pub fn read(&self, register: MtrrRegister) -> u64 {
        match register {
            MtrrRegister::DefaultType => self.default_type,
            MtrrRegister::Variable(index) => self.variable.get(usize::from(index)).copied().unwrap_or_default(),
            MtrrRegister::Fixed(index) => self.fixed.get(usize::from(index)).copied().unwrap_or_default(),
        }
    }

    /// Writes a register; false (a #GP to the guest) if hardware would refuse the value. `physical_bits` is the guest's
    /// physical address width.
    pub fn write(&mut self, register: MtrrRegister, value: u64, physical_bits: u8) -> bool {
        let beyond = u64::MAX.checked_shl(physical_bits.into()).unwrap_or_default();
        let (slot, valid) = match register {
            MtrrRegister::DefaultType => {
                let reserved = !(ENABLED | FIXED_ENABLED | 0xff);
                (Some(&mut self.default_type), value & reserved == 0 && is_memory_type(value as u8))
            }
            MtrrRegister::Variable(index) if index & 1 == 0 => {
                let valid = value & (beyond | 0xf00) == 0 && is_memory_type(value as u8);
                (self.variable.get_mut(usize::from(index)), valid)
            }
            MtrrRegister::Variable(index) => (self.variable.get_mut(usize::from(index)), value & (beyond | 0x7ff) == 0),
            MtrrRegister::Fixed(index) => {
                (self.fixed.get_mut(usize::from(index)), value.to_le_bytes().into_iter().all(is_memory_type))
            }
        };
        match slot {
            Some(slot) if valid => {
                *slot = value;
                true
            }
            _ => false,
        }
    }

    /// The HVM save record; `pat` is the vCPU's IA32_PAT, which travels in it.
    pub fn to_record(&self, pat: u64) -> hvm_save::Mtrr {
        hvm_save::Mtrr {
            msr_pat_cr: pat,
            msr_mtrr_var: self.variable,
            msr_mtrr_fixed: self.fixed,
            msr_mtrr_cap: CAPABILITY,
            msr_mtrr_def_type: self.default_type,
        }
    }

    /// The MTRRs of an HVM save record, or none if it holds what a guest could not have written, or needs more than
    /// there is. The PAT in it is the caller's to take.
    pub fn from_record(record: &hvm_save::Mtrr, physical_bits: u8) -> Option<Mtrr> {
        if record.msr_mtrr_cap & 0xff > RANGES as u64 {
            return None;
        }
        let mut mtrr = Mtrr::default();
        let variable = (0..).map(MtrrRegister::Variable).zip(record.msr_mtrr_var);
        let fixed = (0..).map(MtrrRegister::Fixed).zip(record.msr_mtrr_fixed);
        let default_type = [(MtrrRegister::DefaultType, record.msr_mtrr_def_type)];
        variable.chain(fixed).chain(default_type).all(|(r, value)| mtrr.write(r, value, physical_bits)).then_some(mtrr)
    }
}

/// Uncacheable, write-combining, write-through, write-protected, write-back.
fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4..=6)
}

/// Whether a value is one that IA32_PAT takes: eight memory types, UC- among them (SDM Vol. 3, 12.12.2).
pub fn is_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|byte| matches!(byte, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_at_start() {
        let mtrr = Mtrr::default();
        assert_eq!(mtrr.read(MtrrRegister::DefaultType), 0x806);
        assert_eq!(mtrr.read(MtrrRegister::Fixed(0)), 0x0606_0606_0606_0606);
        assert_eq!(mtrr.read(MtrrRegister::Variable(1)), 0, "no variable range is valid");
        assert_eq!(CAPABILITY, 0x508);
    }

    #[test]
    fn a_guest_reads_back_what_it_wrote() {
        let mut mtrr = Mtrr::default();
        assert!(mtrr.write(MtrrRegister::Variable(2), 0xc000_0000, 40));
        assert!(mtrr.write(MtrrRegister::Variable(3), 0xff_c000_0800, 40));
        assert_eq!(mtrr.read(MtrrRegister::Variable(2)), 0xc000_0000);
        assert_eq!(mtrr.read(MtrrRegister::Variable(3)), 0xff_c000_0800);
    }

    #[test]
    fn reserved_types_and_bits_fault_and_change_nothing() {
        let mut mtrr = Mtrr::default();
        for (register, value) in [
            (MtrrRegister::DefaultType, 0x802),
            (MtrrRegister::DefaultType, 0x1006),
            (MtrrRegister::Variable(0), 3),
            (MtrrRegister::Variable(0), 1 << 40),
            (MtrrRegister::Variable(0), 0x106),
            (MtrrRegister::Variable(1), 1),
            (MtrrRegister::Variable(16), 0),
            (MtrrRegister::Fixed(0), 0x07),
            (MtrrRegister::Fixed(11), 0),
        ] {
            assert!(!mtrr.write(register, value, 40), "{register:?} takes {value:#x}");
        }
        assert_eq!(mtrr, Mtrr::default());
    }

    #[test]
    fn the_state_survives_its_save_record() {
        let mut mtrr = Mtrr::default();
        assert!(mtrr.write(MtrrRegister::Variable(15), 0xff_8000_0800, 40));
        assert!(mtrr.write(MtrrRegister::Fixed(10), 0, 40));
        assert!(mtrr.write(MtrrRegister::DefaultType, 0xc00, 40));
        let record = mtrr.to_record(0x0007_0406_0007_0406);
        assert_eq!(record.msr_pat_cr, 0x0007_0406_0007_0406);
        assert_eq!(Mtrr::from_record(&record, 40), Some(mtrr));
    }

    #[test]
    fn a_record_with_a_reserved_type_is_refused() {
        let mut record = Mtrr::default().to_record(0);
        record.msr_mtrr_fixed[3] = 0x0203;
        assert_eq!(Mtrr::from_record(&record, 40), None);
    }
}
