//! VMX on this CPU: found, allowed, switched on.
//!
//! BOOT: that is done once, on each CPU that starts.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use arrayvec::ArrayVec;
use mm::Memory;

use super::caps::{Caps, EptVpid, Secondary, msr};
use super::ept::Ept;
use super::vmcs;
use crate::cpu::model;
use crate::engine::Wishes;
use crate::fault::rdmsr_safe;
use crate::msr::{rdmsr, wrmsr};
use crate::policy::features::{self, Feature};

const LOCKED: u64 = 1 << 0;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;
const CR4_VMXE: u64 = 1 << 13;

/// What the boot CPU's VMX can do, for good. The error is one line for the user.
pub fn probe(wishes: Wishes) -> Result<&'static Caps, String> {
    Ok(Box::leak(Box::new(capabilities(wishes)?)))
}

/// What this CPU's VMX can do. The error is one line for the user.
pub fn capabilities(wishes: Wishes) -> Result<Caps, String> {
    let control = rdmsr_safe(msr::FEATURE_CONTROL).unwrap_or(0);
    if control & LOCKED != 0 && control & VMX_OUTSIDE_SMX == 0 {
        return Err("VMX is disabled by firmware; enable virtualisation in the firmware's setup".into());
    }
    Caps::read(|number| rdmsr_safe(number).unwrap_or(0), wishes)
}

/// The nested page tables that go with these capabilities, for a domain that nobody trusts.
pub fn format(caps: &Caps) -> Ept {
    Ept { gigabyte_pages: caps.ept.contains(EptVpid::PAGES_1G), large_code: !model::breaks_on_large_code() }
}

/// Instructions for which the control is missing that lets them through.
pub fn withheld(caps: &Caps) -> ArrayVec<Feature, 3> {
    let controlled = [
        (Secondary::ENABLE_RDTSCP, features::RDTSCP),
        (Secondary::ENABLE_INVPCID, features::INVPCID),
        (Secondary::ENABLE_XSAVES, features::XSAVES),
    ];
    controlled.into_iter().filter(|(control, _)| !caps.has(*control)).map(|(_, feature)| feature).collect()
}

/// Enters VMX root operation on this CPU, for good.
pub fn enable(caps: &Caps, memory: &'static Memory) -> Result<(), String> {
    if rdmsr(msr::FEATURE_CONTROL) & LOCKED == 0 {
        // SAFETY: allowing VMX and locking that is what firmware left to us.
        unsafe { wrmsr(msr::FEATURE_CONTROL, rdmsr(msr::FEATURE_CONTROL) | LOCKED | VMX_OUTSIDE_SMX) };
    }
    let region = memory.allocate(0, None).map_err(|_| String::from("no memory for the VMXON region"))?.scrub();
    let _ = memory.window().write_u64(region.mfn().phys(), u64::from(caps.revision));
    let cr4 = caps.fix_cr4(crate::host::read_cr4() | CR4_VMXE);
    // SAFETY: the bits that VMX asks for are added; the NE that it asks for in CR0 is set since boot. The region is a frame of Corten's own
    // with the revision in it, and is never given back (it is leaked below).
    let entered = unsafe {
        crate::host::write_cr4(cr4);
        vmcs::vmxon(region.mfn().phys())
    };
    let at = region.mfn().phys();
    core::mem::forget(region);
    entered.map_err(|why| format!("VMXON of the region at {:#x} failed ({why:?})", at.0))
}
