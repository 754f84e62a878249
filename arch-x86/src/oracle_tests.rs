//! The tables that Dom0 gets, read by somebody else: the `acpi` crate.

use core::ptr::NonNull;
use std::sync::Arc;

use acpi::handler::{AcpiHandler, PhysicalMapping};
use acpi::madt::{Madt as MadtSeen, MadtEntry};
use acpi::mcfg::Mcfg as McfgSeen;
use acpi::{AcpiTables, sdt};

use crate::acpi::sample::{Memory, table};
use crate::acpi::{InterruptOverride, IoApic, Madt, RootPointer, Tables, dom0};

const BASE: u64 = 0x8000;

/// The machine's memory as that crate wants it.
#[derive(Clone)]
struct Mapped(Arc<Memory>);

impl AcpiHandler for Mapped {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let bytes = self.0.bytes(at, size);
        let start = NonNull::new(bytes.as_ptr().cast_mut().cast()).unwrap();
        // SAFETY: the bytes are there as long as the handler, which the mapping keeps; nobody writes them.
        unsafe { PhysicalMapping::new(at, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn seen(vcpus: u32) -> AcpiTables<Mapped> {
    let mut memory = Memory::new();
    let mcfg = [&[0; 8][..], &0xb000_0000u64.to_le_bytes(), &[0, 0, 0, 255, 0, 0, 0, 0]].concat();
    let mcfg = memory.place(0x2000, &table(b"MCFG", &mcfg));
    let dropped = memory.place(0x3000, &table(b"DMAR", &[0; 12]));
    let list: Vec<u8> = [mcfg, dropped].iter().flat_map(|at| at.to_le_bytes()).collect();
    let xsdt = memory.place(0x1000, &table(b"XSDT", &list));
    let tables = Tables::find(&memory, RootPointer { xsdt, rsdt: 0 }).unwrap();
    let madt = Madt {
        local_apic_address: 0xfee0_0000,
        io_apics: vec![IoApic { id: 7, address: 0xfec0_0000, gsi_base: 0 }],
        overrides: vec![InterruptOverride { irq: 0, gsi: 2, flags: 0 }],
        ..Madt::default()
    };
    let made = dom0::build(&tables, &madt, vcpus, BASE).unwrap();
    memory.place(BASE, &made.bytes);
    // SAFETY: the handler maps any part of the memory, in which the root pointer is.
    unsafe { AcpiTables::from_rsdp(Mapped(Arc::new(memory)), made.rsdp as usize) }.unwrap()
}

#[test]
fn another_reader_finds_dom0s_processors_and_interrupt_controllers() {
    let tables = seen(3);
    let madt = tables.find_table::<MadtSeen>().unwrap();
    let (mut cpus, mut io_apics, mut overrides) = (Vec::new(), Vec::new(), Vec::new());
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(cpu) => cpus.push((cpu.processor_id, cpu.apic_id)),
            MadtEntry::IoApic(io_apic) => io_apics.push((io_apic.io_apic_id, { io_apic.io_apic_address })),
            MadtEntry::InterruptSourceOverride(o) => overrides.push((o.irq, { o.global_system_interrupt })),
            _ => {}
        }
    }
    assert_eq!(cpus, [(0, 0), (1, 2), (2, 4)]);
    assert_eq!(io_apics, [(7, 0xfec0_0000)]);
    assert_eq!(overrides, [(0, 2)]);
}

#[test]
fn another_reader_finds_the_tables_that_are_kept_and_no_others() {
    let tables = seen(1);
    let mcfg = tables.find_table::<McfgSeen>().unwrap();
    let bases: Vec<u64> = mcfg.entries().iter().map(|entry| entry.base_address).collect();
    assert_eq!(bases, [0xb000_0000]);
    let names: Vec<String> = tables.headers().map(|header| header.signature.to_string()).collect();
    assert_eq!(names, [sdt::Signature::MCFG.to_string(), sdt::Signature::MADT.to_string()]);
}
