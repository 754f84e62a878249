//! The IOMMU is the hypervisor's: no table tells of it, it is on no bus, and its registers are out of reach.

#![no_std]
#![no_main]

use tests_qemu::tests::Tests;
use tests_qemu::{acpi, cpu, pci, start};

tests_qemu::guest!(main);

const IOMMU_CLASS: u32 = 0x0806;

fn main(t: &mut Tests) {
    t.check("no DMAR", acpi::table(b"DMAR").is_none());
    t.check("no IVRS", acpi::table(b"IVRS").is_none());
    t.check("the bus has functions", pci::find(|_| true).is_some());
    let by_ports = pci::find(|function| pci::read(function, pci::CLASS) >> 16 == IOMMU_CLASS);
    t.equal("no IOMMU by the ports", by_ports, None);
    let by_memory = pci::FIRST_BUS.clone().find(|function| {
        pci::in_memory(*function).is_some_and(|at| cpu::read32(at + u64::from(pci::CLASS)) >> 16 == IOMMU_CLASS)
    });
    t.equal("no IOMMU by memory", by_memory, None);
    // Where the machine's registers are is on the command line.
    let at = start::number("registers").unwrap_or_default();
    t.check("the command line says where its registers are", at != 0);
    t.equal("its registers read as ones", cpu::read32(at), u32::MAX);
    cpu::write32(at, 0);
    t.equal("and forget", cpu::read32(at), u32::MAX);
}
