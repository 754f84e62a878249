//! What a domain beside Dom0 sees, and what it must not have. Its command line tells what it was made with, in hexadecimal: `id=`, `memory=` (MiB),
//! `vcpus=` (1 or 2). With `halt=1` it ends as a kernel without a way to power off does; with `flood=1` it first writes more than it may.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};
use tests_qemu::hypercall::{call, op};
use tests_qemu::start::{number, start_info};
use tests_qemu::tests::Tests;
use tests_qemu::{acpi, apic, clock, cpu, memory, say, second};
use xen_abi::console::CONSOLEIO_READ;
use xen_abi::features::{XENFEAT_AUTO_TRANSLATED_PHYSMAP, XENFEAT_DOM0, XENFEAT_NOT_DIRECT_MAPPED};
use xen_abi::hvm::*;
use xen_abi::memory::{AddToPhysmapBatch, E820_ACPI, E820_RAM, XENMAPSPACE_GMFN_FOREIGN, XENMEM_ADD_TO_PHYSMAP_BATCH};
use xen_abi::numbers::*;
use xen_abi::types::DomainId;
use xen_abi::version::{FeatureInfo, XENVER_GET_FEATURES};
use xen_abi::x86::XEN_CPUID_FIRST_LEAF;

tests_qemu::guest!(main);

const EPERM: i64 = -1;
/// Domains have no RAM from here to 4 GiB.
const HOLE: u64 = 0xf000_0000;
/// The second vCPU's APIC id.
const SECOND: u32 = 2;

fn main(t: &mut Tests) {
    identity(t);
    memory_map(t);
    tables(t);
    no_toolstack(t);
    no_devices(t);
    no_control(t);
    console(t);
    if number("vcpus") == Some(2) {
        second_vcpu(t);
    }
    if number("halt").is_some() {
        say!("halts");
        cpu::stop();
    }
}

fn identity(t: &mut Tests) {
    t.equal("it is no initial domain", start_info().flags, 0);
    t.equal("CPUID tells its id", cpu::cpuid(XEN_CPUID_FIRST_LEAF + 4, 0).ecx.into(), number("id").unwrap_or(0));
    let mut info = FeatureInfo::default();
    t.returns("its features", op(XEN_VERSION, XENVER_GET_FEATURES, &mut info), 0);
    let has = |feature: u32| info.submap >> feature & 1 != 0;
    t.check("it is not Dom0", !has(XENFEAT_DOM0));
    t.check("its memory is elsewhere", has(XENFEAT_NOT_DIRECT_MAPPED) && has(XENFEAT_AUTO_TRANSLATED_PHYSMAP));
}

fn memory_map(t: &mut Tests) {
    let (entries, count, result) = memory::memory_map();
    t.returns("its memory map", result, 0);
    let own = || entries.iter().take(count).filter(|entry| matches!({ entry.r#type }, E820_RAM | E820_ACPI));
    let total: u64 = own().map(|entry| entry.size).sum();
    t.equal("has the memory that it was given", total >> 20, number("memory").unwrap_or(0));
    t.check("from 0 on", own().any(|entry| entry.addr == 0));
    t.check("with a hole below 4 GiB", own().all(|entry| entry.addr + entry.size <= HOLE || entry.addr >= 1 << 32));
    let end = own().map(|entry| entry.addr + entry.size).max().unwrap_or(0);
    // The ACPI tables are there.
    t.check("and is there to its end", cpu::read64(end - 8) != u64::MAX);
}

fn tables(t: &mut Tests) {
    let fadt = acpi::table(b"FACP").unwrap_or(0);
    let madt = acpi::table(b"APIC").unwrap_or(0);
    let dsdt: u64 = acpi::field(fadt + 140);
    t.check("its ACPI tables are sound", [fadt, madt, dsdt].into_iter().all(|table| acpi::checksum(table) == 0));
    t.equal("ACPI has no fixed hardware", acpi::field::<u32>(fadt + 112) >> 20 & 1, 1);
    let (mut cpus, mut others) = (0, 0);
    acpi::madt_entries(|kind, _| if kind == 0 { cpus += 1 } else { others += 1 });
    t.equal("ACPI names its vCPUs", Some(cpus), number("vcpus"));
    t.equal("and no I/O APIC", others, 0);
}

fn no_toolstack(t: &mut Tests) {
    let params = [
        ("no store port", HVM_PARAM_STORE_EVTCHN),
        ("no store page", HVM_PARAM_STORE_PFN),
        ("no console port", HVM_PARAM_CONSOLE_EVTCHN),
        ("no console page", HVM_PARAM_CONSOLE_PFN),
    ];
    for (what, index) in params {
        let mut param = Param { domid: DomainId::SELF, pad: 0, index, value: u64::MAX };
        let result = op(HVM_OP, HVMOP_GET_PARAM, &mut param);
        t.equal(what, (result, param.value), (0, 0));
    }
}

fn no_devices(t: &mut Tests) {
    for port in [0x21, 0x40, 0x60, 0x61, 0x70, 0x71, 0xcf9, 0x3f8, 0x3fd, 0x4d0] {
        if cpu::in8(port) != 0xff {
            say!("port {port:#x} is {:#x}", cpu::in8(port));
            t.check("no device answers at a port", false);
        }
    }
    cpu::out32(0xcf8, 0x8000_0000);
    t.equal("there is no PCI bus", cpu::in32(0xcfc), u32::MAX);
    t.equal("no I/O APIC", cpu::read32(0xfec0_0000), u32::MAX);
    t.equal("no HPET", cpu::read32(0xfed0_0000), u32::MAX);
    // Had they an effect, the machine would be reset or off.
    cpu::out8(0xcf9, 6);
    cpu::out8(0x64, 0xfe);
    cpu::out16(0x604, 1 << 13);
    cpu::out16(0xb004, 1 << 13);
    t.check("the machine is not its to reset or switch off", true);
    apic::enable();
    t.check("it has a local APIC", apic::read(apic::VERSION) & 0xff >= 0x10);
}

fn no_control(t: &mut Tests) {
    let mut buffer = [0u8; 64];
    let at = buffer.as_mut_ptr() as u64;
    t.returns("the console has no input for it", call(CONSOLE_IO, [CONSOLEIO_READ.into(), 8, at, 0, 0]), EPERM);
    for (what, number) in [("sysctl", SYSCTL), ("platform_op", PLATFORM_OP)] {
        t.returns(what, call(number, [at, 0, 0, 0, 0]), EPERM);
    }
    let (mut index, mut gfn, mut error) = (1u64, memory::gfn(memory::page()), 0i32);
    let mut batch = AddToPhysmapBatch {
        domid: DomainId::SELF,
        space: XENMAPSPACE_GMFN_FOREIGN as u16,
        size: 1,
        foreign_domid: DomainId::DOM0,
        idxs: xen_abi::handle::GuestHandle::new(&raw mut index as u64),
        gpfns: xen_abi::handle::GuestHandle::new(&raw mut gfn as u64),
        errs: xen_abi::handle::GuestHandle::new(&raw mut error as u64),
    };
    let result = op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP_BATCH, &mut batch);
    t.equal("Dom0's memory is not its to map", (result, error.into()), (0, EPERM));
}

fn console(t: &mut Tests) {
    for byte in b"a line by port 0xe9, \x1b[7mharmless\n" {
        cpu::out8(0xe9, *byte);
    }
    if number("flood").is_some() {
        for line in 0..2000 {
            say!("line {line} of very many, each of which is as long as this one is");
        }
        // Enough to be heard again.
        clock::spin(1_000_000_000);
    }
    t.check("it has written", true);
}

static STARTED: AtomicBool = AtomicBool::new(false);

fn second_vcpu(t: &mut Tests) {
    second::start(SECOND, second_main);
    let end = clock::now() + 5_000_000_000;
    while !STARTED.load(Ordering::SeqCst) && clock::now() < end {
        cpu::pause();
    }
    t.check("its second vCPU starts", STARTED.load(Ordering::SeqCst));
}

fn second_main() -> ! {
    STARTED.store(true, Ordering::SeqCst);
    cpu::stop()
}
