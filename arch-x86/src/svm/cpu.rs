//! SVM on this CPU: found, switched on, and what it keeps there.
//!
//! BOOT: that is done once, on each CPU that starts.

use alloc::boxed::Box;
use alloc::string::String;
use core::arch::x86_64::__cpuid;

use mm::Memory;
use mm::addr::HostPhys;

use super::asid::Pool;
use super::caps::{self, Caps, msr};
use super::npt::Npt;
use crate::cpu::registers::efer;
use crate::engine::Wishes;
use crate::fault::rdmsr_safe;
use crate::msr::{rdmsr, wrmsr};

/// What this CPU has of its own for its guests.
#[derive(Debug)]
pub struct SvmCpu {
    /// The host's state that VMRUN does not switch, while a guest runs.
    pub host_area: HostPhys,
    pub asids: Pool,
}

pub fn is_there() -> bool {
    caps::has_svm(__cpuid)
}

/// What the boot CPU's SVM can do, for good. The error is one line for the user.
pub fn probe(wishes: Wishes) -> Result<&'static Caps, String> {
    Ok(Box::leak(Box::new(capabilities(wishes)?)))
}

/// What this CPU's SVM can do. The error is one line for the user.
pub fn capabilities(wishes: Wishes) -> Result<Caps, String> {
    Caps::read(__cpuid, rdmsr_safe, wishes)
}

/// The nested page tables that go with these capabilities.
pub fn format(caps: &Caps) -> Npt {
    Npt { gigabyte_pages: caps.gigabyte_pages }
}

/// Switches SVM on, on this CPU, for good.
pub fn enable(caps: &Caps, memory: &'static Memory) -> Result<&'static SvmCpu, String> {
    let frame = || memory.allocate(0, None).map_err(|_| String::from("no memory for a CPU's SVM state"));
    let (save_frame, host_frame) = (frame()?.scrub(), frame()?.scrub());
    let (save, host) = (save_frame.mfn().phys(), host_frame.mfn().phys());
    // They are the CPU's for as long as the machine is on.
    core::mem::forget((save_frame, host_frame));
    // SAFETY: SVM is there and not disabled. The frame is the CPU's from now on; VMRUN saves the host in it.
    unsafe {
        wrmsr(msr::EFER, rdmsr(msr::EFER) | efer::SVME);
        wrmsr(msr::VM_HSAVE_PA, save.0);
    }
    Ok(Box::leak(Box::new(SvmCpu { host_area: host, asids: Pool::new(caps.asids) })))
}
