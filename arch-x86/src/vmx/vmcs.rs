//! VMX instructions, and the VMCS that they work on.

use core::arch::asm;

use mm::addr::HostPhys;
use mm::{Clean, Frames};

use super::field::{Field, FieldValue};

/// A VMX instruction failed (RFLAGS.CF, or RFLAGS.ZF with an error number in the current VMCS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmxError {
    Invalid,
    Failed,
}

/// A VMX instruction with one operand in memory, and what its flags say.
macro_rules! vmx_instruction {
    ($name:literal, $pointer:expr) => {{
        let (carry, zero): (u8, u8);
        asm!(
            concat!($name, " [{pointer}]"), "setc {carry}", "setz {zero}",
            pointer = in(reg) $pointer, carry = out(reg_byte) carry, zero = out(reg_byte) zero, options(nostack)
        );
        match (carry, zero) {
            (0, 0) => Ok(()),
            (0, _) => Err(VmxError::Failed),
            _ => Err(VmxError::Invalid),
        }
    }};
}

/// Enters VMX root operation.
///
/// # Safety
/// `region` is a zeroed frame with the VMX revision in its first word, given to the CPU until VMXOFF; CR0, CR4 and
/// IA32_FEATURE_CONTROL allow VMX.
pub unsafe fn vmxon(region: HostPhys) -> Result<(), VmxError> {
    let pointer = region.0;
    // SAFETY: by the caller's promise.
    unsafe { vmx_instruction!("vmxon", &pointer) }
}

/// # Safety
/// `vmcs` is a VMCS region that Rust does not otherwise use.
unsafe fn vmclear(vmcs: HostPhys) -> Result<(), VmxError> {
    let pointer = vmcs.0;
    // SAFETY: by the caller's promise.
    unsafe { vmx_instruction!("vmclear", &pointer) }
}

/// # Safety
/// `vmcs` is a VMCS region that is not active on another CPU.
unsafe fn vmptrld(vmcs: HostPhys) -> Result<(), VmxError> {
    let pointer = vmcs.0;
    // SAFETY: by the caller's promise.
    unsafe { vmx_instruction!("vmptrld", &pointer) }
}

/// Invalidates what this CPU cached of an EPT's translations: of one (`eptp`), or of all.
pub fn invept(eptp: Option<u64>) {
    let (kind, descriptor) = match eptp {
        Some(eptp) => (1u64, [eptp, 0]),
        None => (2u64, [0, 0]),
    };
    // SAFETY: INVEPT only drops cached translations; the caller is in VMX root operation, as `caps` and residency have it.
    unsafe {
        asm!("invept {0}, [{1}]", in(reg) kind, in(reg) &descriptor, options(nostack));
    }
}

/// Invalidates what this CPU cached of a VPID's linear translations.
pub fn invvpid(vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: as for INVEPT; type 1 is one VPID.
    unsafe {
        asm!("invvpid {0}, [{1}]", in(reg) 1u64, in(reg) &descriptor, options(nostack));
    }
}

/// Reads a field of the current VMCS.
#[inline(always)]
pub fn read<T: FieldValue>(field: Field<T>) -> T {
    let value: u64;
    // SAFETY: VMREAD changes nothing but the register: it is like a load of what VMWRITE, VMPTRLD and an entry store. Without a current VMCS
    // it fails, and the value is any.
    unsafe {
        asm!("vmread {0}, {1}", out(reg) value, in(reg) u64::from(field.encoding), options(nostack, pure, readonly));
    }
    T::from_raw(value)
}

/// Reads a field by number, if this CPU has it.
pub fn read_raw(encoding: u32) -> Option<u64> {
    let value: u64;
    let failed: u8;
    // SAFETY: as for `read`.
    unsafe {
        asm!("vmread {0}, {1}", "setbe {2}", inout(reg) 0u64 => value, in(reg) u64::from(encoding), out(reg_byte) failed, options(nostack, nomem));
    }
    (failed == 0).then_some(value)
}

/// Writes a field of the current VMCS.
#[inline(always)]
pub fn write<T: FieldValue>(field: Field<T>, value: T) {
    // SAFETY: only safe-by-construction values reach the fields that the host's own safety rests on (`setup` writes those); a guest's
    // fields at worst fail the VM entry.
    unsafe {
        asm!("vmwrite {0}, {1}", in(reg) u64::from(field.encoding), in(reg) value.into_raw(), options(nostack));
    }
}

/// Where a VMCS is: a CPU that has it active must clear it before another may load it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residency {
    Inactive,
    /// Active here (current or not), and whether it was launched since it was cleared.
    Active {
        launched: bool,
    },
}

/// A VMCS region and its residency.
pub struct Vmcs {
    frame: Frames<Clean>,
    residency: Residency,
}

impl Vmcs {
    /// # Safety
    /// `frame` has the VMX revision in its first word, and zeroes behind it.
    pub unsafe fn new(frame: Frames<Clean>) -> Vmcs {
        Vmcs { frame, residency: Residency::Inactive }
    }

    /// Makes it the current VMCS of this CPU.
    pub fn load(&mut self) -> Result<(), VmxError> {
        // SAFETY: the region is this value's own, and `release` cleared it on the CPU that had it before.
        unsafe {
            if self.residency == Residency::Inactive {
                vmclear(self.frame.mfn().phys())?;
                self.residency = Residency::Active { launched: false };
            }
            vmptrld(self.frame.mfn().phys())
        }
    }

    /// Takes it off this CPU, so that another may load it.
    pub fn release(&mut self) {
        // SAFETY: the region is this value's own.
        let _ = unsafe { vmclear(self.frame.mfn().phys()) };
        self.residency = Residency::Inactive;
    }

    #[inline]
    pub fn launched(&self) -> bool {
        matches!(self.residency, Residency::Active { launched: true })
    }

    #[inline]
    pub fn set_launched(&mut self) {
        self.residency = Residency::Active { launched: true };
    }
}
