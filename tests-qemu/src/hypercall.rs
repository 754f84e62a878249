//! Hypercalls by the instruction itself. The page is a test of its own.

use crate::cpu;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

static VMMCALL: AtomicBool = AtomicBool::new(false);

pub(crate) fn init() {
    VMMCALL.store(cpu::is_amd(), Ordering::Relaxed);
}

/// Any hypercall with any arguments. The result is 0 or more, or a negated errno.
#[inline(always)]
pub fn call(number: u64, arguments: [u64; 5]) -> i64 {
    if VMMCALL.load(Ordering::Relaxed) { by_vmmcall(number, arguments) } else { by_vmcall(number, arguments) }
}

#[inline(always)]
pub fn by_vmcall(number: u64, [a, b, c, d, e]: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: what the hypervisor writes is what the arguments point at, and those are the caller's.
    unsafe {
        asm!("vmcall", inlateout("rax") number as i64 => result, inlateout("rdi") a => _, inlateout("rsi") b => _,
            inlateout("rdx") c => _, inlateout("r10") d => _, inlateout("r8") e => _, options(nostack))
    };
    result
}

#[inline(always)]
pub fn by_vmmcall(number: u64, [a, b, c, d, e]: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: as above.
    unsafe {
        asm!("vmmcall", inlateout("rax") number as i64 => result, inlateout("rdi") a => _, inlateout("rsi") b => _,
            inlateout("rdx") c => _, inlateout("r10") d => _, inlateout("r8") e => _, options(nostack))
    };
    result
}

/// A hypercall of the usual shape: an operation and a structure, in and out.
#[inline(always)]
pub fn op<T>(number: u64, operation: u32, argument: &mut T) -> i64 {
    call(number, [operation.into(), core::ptr::from_mut(argument) as u64, 0, 0, 0])
}

/// A vCPU operation. `argument` is what the operation points at.
#[inline(always)]
pub fn vcpu_op<T>(operation: u32, vcpu: u32, argument: &mut T) -> i64 {
    call(xen_abi::numbers::VCPU_OP, [operation.into(), vcpu.into(), core::ptr::from_mut(argument) as u64, 0, 0])
}

/// A batch of grant operations.
#[inline(always)]
pub fn grant_op<T>(operation: u32, batch: &mut [T]) -> i64 {
    let arguments = [operation.into(), batch.as_mut_ptr() as u64, batch.len() as u64, 0, 0];
    call(xen_abi::numbers::GRANT_TABLE_OP, arguments)
}
