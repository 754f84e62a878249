//! Xen's CPUID leaves, and what CPUID hides from a guest.

#![no_std]
#![no_main]

use tests_qemu::cpu::{self, cpuid};
use tests_qemu::tests::Tests;
use xen_abi::x86::*;

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    let base = cpuid(XEN_CPUID_FIRST_LEAF, 0);
    t.equal(
        "signature",
        [base.ebx, base.ecx, base.edx],
        [XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX],
    );
    t.within("highest leaf", base.eax.into(), 0x4000_0004, 0x4000_0005);
    t.equal("version is 4.20", cpuid(XEN_CPUID_FIRST_LEAF + 1, 0).eax, 4 << 16 | 20);
    let page = cpuid(XEN_CPUID_FIRST_LEAF + 2, 0);
    t.equal("one hypercall page", page.eax, 1);
    t.equal("its MSR", page.ebx, 0x4000_0000);
    let time = cpuid(XEN_CPUID_FIRST_LEAF + 3, 0);
    t.check("the TSC is not emulated", time.eax & XEN_CPUID_TSC_EMULATED == 0);
    t.check("the TSC's frequency is stated", time.ecx > 10_000);
    let scale = cpuid(XEN_CPUID_FIRST_LEAF + 3, 1);
    t.check("the TSC's scale is stated", scale.ecx != 0);
    let features = cpuid(XEN_CPUID_FIRST_LEAF + 4, 0);
    t.check("vCPU id is there", features.eax & XEN_HVM_CPUID_VCPU_ID_PRESENT != 0);
    t.equal("vCPU id", features.ebx, 0);
    t.check("domain id is there", features.eax & XEN_HVM_CPUID_DOMID_PRESENT != 0);
    t.equal("domain id", features.ecx, 0);
    t.check("upcall vectors per vCPU", features.eax & XEN_HVM_CPUID_UPCALL_VECTOR != 0);
    t.check("foreign mappings have IOMMU mappings", features.eax & XEN_HVM_CPUID_IOMMU_MAPPINGS != 0);

    let one = cpuid(1, 0);
    t.check("a hypervisor is present", one.ecx & 1 << 31 != 0);
    t.check("no MONITOR", one.ecx & 1 << 3 == 0);
    t.check("no VMX", one.ecx & 1 << 5 == 0);
    t.check("x2APIC", one.ecx & 1 << 21 != 0);
    t.check("the local APIC is on", one.edx & 1 << 9 != 0);
    t.check("OSXSAVE follows CR4", one.ecx & 1 << 27 == 0);
    t.equal("APIC id of vCPU 0", one.ebx >> 24, 0);
    t.check("no SVM", cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0);
    t.equal("no PMU", cpuid(0xa, 0).eax & 0xff, 0);
    t.check("physical addresses of 36 bits or more", cpuid(0x8000_0008, 0).eax & 0xff >= 36);

    if one.ecx & 1 << 13 != 0 {
        let flags = cpu::flags_after_cmpxchg16b(1 << 15);
        t.equal("CMPXCHG16B leaves RFLAGS' reserved bits alone", flags & 1 << 15, 0);
    }
    if one.ecx & 1 << 26 != 0 {
        xsave(t);
    }
    let beyond = cpuid(XEN_CPUID_FIRST_LEAF + 0x50, 0);
    t.equal("leaves beyond Xen's are empty", [beyond.eax, beyond.ebx, beyond.ecx, beyond.edx], [0; 4]);
}

/// Leaf 0xd follows the guest's own XCR0.
fn xsave(t: &mut Tests) {
    // SAFETY: sets CR4.OSXSAVE, which the CPU has, and XCR0 to x87, then to x87 and SSE.
    unsafe {
        core::arch::asm!("mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", out(reg) _, options(nostack));
    }
    t.check("OSXSAVE follows CR4 when it is set", cpuid(1, 0).ecx & 1 << 27 != 0);
    // SAFETY: as above.
    unsafe { core::arch::asm!("xsetbv", in("ecx") 0, in("eax") 3, in("edx") 0, options(nostack)) };
    t.equal("legacy XSAVE area", cpuid(0xd, 0).ebx, 576);
    if cpuid(0xd, 0).eax & 4 != 0 {
        // SAFETY: AVX is among the states that this CPU has.
        unsafe { core::arch::asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0, options(nostack)) };
        t.equal("XSAVE area with AVX", cpuid(0xd, 0).ebx, 832);
    }
}
