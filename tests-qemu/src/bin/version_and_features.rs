//! What the hypervisor says of itself.

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, op};
use tests_qemu::tests::Tests;
use tests_qemu::{memory, say};
use xen_abi::features::*;
use xen_abi::numbers::XEN_VERSION;
use xen_abi::version::*;

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    t.returns("version", call(XEN_VERSION, [XENVER_VERSION.into(), 0, 0, 0, 0]), 4 << 16 | 20);
    let (result, bytes, length) = text::<EXTRAVERSION_LEN>(XENVER_EXTRAVERSION);
    t.returns("extra version", result, 0);
    t.check("it is text", length > 0 && length < EXTRAVERSION_LEN);
    say!("extra version {:?}", core::str::from_utf8(&bytes[..length]));
    let (result, bytes, length) = text::<CAPABILITIES_INFO_LEN>(XENVER_CAPABILITIES);
    t.returns("capabilities", result, 0);
    let capabilities = core::str::from_utf8(&bytes[..length]).unwrap_or_default();
    say!("capabilities {capabilities}");
    t.check("64-bit HVM guests", capabilities.contains("hvm-3.0-x86_64"));
    t.check("32-bit HVM guests", capabilities.contains("hvm-3.0-x86_32"));
    t.check("32-bit HVM guests with PAE", capabilities.contains("hvm-3.0-x86_32p"));
    let (result, _, _) = text::<CHANGESET_INFO_LEN>(XENVER_CHANGESET);
    t.returns("changeset", result, 0);
    let (result, bytes, length) = text::<COMMANDLINE_LEN>(XENVER_COMMANDLINE);
    t.returns("command line", result, 0);
    let line = core::str::from_utf8(&bytes[..length]).unwrap_or_default();
    say!("command line {line}");
    t.check("it has Dom0's memory", line.contains("dom0_mem=128M"));
    let mut info = [0u8; size_of::<CompileInfo>()];
    t.returns("compile information", op(XEN_VERSION, XENVER_COMPILE_INFO, &mut info), 0);
    t.check("it names a compiler", info[0] != 0 && info[..64].contains(&0));
    t.returns("page size", call(XEN_VERSION, [XENVER_PAGESIZE.into(), 0, 0, 0, 0]), 4096);
    t.returns(
        "platform parameters",
        op(XEN_VERSION, XENVER_PLATFORM_PARAMETERS, &mut PlatformParameters::default()),
        0,
    );
    t.returns("Dom0's handle", op(XEN_VERSION, XENVER_GUEST_HANDLE, &mut [0xffu8; 16]), 0);
    t.returns("an operation that does not exist", call(XEN_VERSION, [99, 0, 0, 0, 0]), -38);
    features(t);
    build_id(t);
}

fn text<const N: usize>(operation: u32) -> (i64, [u8; N], usize) {
    let mut bytes = [0xffu8; N];
    let result = op(XEN_VERSION, operation, &mut bytes);
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    (result, bytes, length)
}

fn features(t: &mut Tests) {
    let mut info = FeatureInfo { submap_idx: 0, submap: 0 };
    t.returns("features", op(XEN_VERSION, XENVER_GET_FEATURES, &mut info), 0);
    say!("features {:#x}", info.submap);
    let has = |bit: u32| info.submap & 1 << bit != 0;
    for (bit, name) in [
        (XENFEAT_MEMORY_OP_VNODE_SUPPORTED, "vnodes in memory operations"),
        (XENFEAT_WRITABLE_PAGE_TABLES, "writable page tables"),
        (XENFEAT_AUTO_TRANSLATED_PHYSMAP, "a translated address space"),
        (XENFEAT_DOM0, "this is Dom0"),
        (XENFEAT_HVM_SAFE_PVCLOCK, "a safe clock"),
        (XENFEAT_HVM_CALLBACK_VECTOR, "callbacks by vector"),
        (XENFEAT_RUNSTATE_PHYS_AREA, "runstate by physical address"),
        (XENFEAT_VCPU_TIME_PHYS_AREA, "time by physical address"),
    ] {
        t.check(name, has(bit));
    }
    t.check("no interrupts by event channel", !has(XENFEAT_HVM_PIRQS));
    t.check("direct mapped or not, and not both", has(XENFEAT_DIRECT_MAPPED) != has(XENFEAT_NOT_DIRECT_MAPPED));
    let mut next = FeatureInfo { submap_idx: XENFEAT_NR_SUBMAPS, submap: 1 };
    t.returns("features beyond", op(XEN_VERSION, XENVER_GET_FEATURES, &mut next), -22);
}

/// The variable-length ones: asked for their length, then for their bytes.
fn build_id(t: &mut Tests) {
    for (operation, name) in [(XENVER_EXTRAVERSION2, "extra version 2"), (XENVER_COMMANDLINE2, "command line 2")] {
        let length = call(XEN_VERSION, [operation.into(), 0, 0, 0, 0]);
        t.check(name, length > 0);
        let page = memory::page();
        tests_qemu::cpu::write32(page, 1024);
        t.returns("its bytes", call(XEN_VERSION, [operation.into(), page, 0, 0, 0]), length);
        tests_qemu::cpu::write32(page, 1);
        t.returns("too little room", call(XEN_VERSION, [operation.into(), page, 0, 0, 0]), -105);
    }
}
