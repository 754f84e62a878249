//! From the PVH entry (32-bit, flat, no paging) to Rust in long mode, with 4 GiB mapped one to one.

use crate::{console, fault, hypercall, power, tests};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use xen_abi::start_info::StartInfo;

// The state at entry: docs/misc/pvh.pandoc of Xen; EBX holds the address of the start info.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18          // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.start, "ax", @progbits
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    mov esp, offset boot_stack_top
    mov edi, ebx
    // One PML4 entry, four directories of 2 MiB pages.
    mov eax, offset page_directory_pointers + 3
    mov [page_map], eax
    mov eax, offset page_directories + 3
    mov ecx, 0
2:  mov [page_directory_pointers + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 2b
    mov ecx, 0
    mov eax, 0x83
3:  mov [page_directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 3b
    call enter_long_mode
    .code64
    mov esp, offset boot_stack_top
    mov edi, edi
    call guest_start
    ud2

    // Returns in 64-bit mode to its 32-bit caller. Also the way of secondary vCPUs.
    .code32
    .global enter_long_mode
enter_long_mode:
    mov eax, offset page_map
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620           // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080     // EFER
    rdmsr
    or eax, 0x900           // LME, NXE
    wrmsr
    mov eax, cr0
    and eax, 0xfffffffb     // no FPU emulation
    or eax, 0x80010022      // PG, WP, NE, MP
    mov cr0, eax
    pop edx
    lgdt [boot_gdt_pointer]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    push 8
    push edx
    retf
    .code64

    .section .data.start, "aw", @progbits
    .balign 16
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff // 64-bit code
    .quad 0x00cf93000000ffff // data
    .quad 0x00cf9b000000ffff // 32-bit code
    .global boot_gdt_pointer
boot_gdt_pointer:
    .word 31
    .quad boot_gdt

    .section .bss.start, "aw", @nobits
    .balign 4096
    .global page_map
page_map:                .skip 4096
page_directory_pointers: .skip 4096
    .global page_directories
page_directories:        .skip 4096 * 4
boot_stack:              .skip 65536
boot_stack_top:
"#
);

static START_INFO: AtomicU64 = AtomicU64::new(0);

/// What the guest was started with.
pub fn start_info() -> StartInfo {
    // SAFETY: the address came in EBX; the structure is never written again.
    unsafe { (START_INFO.load(Ordering::Relaxed) as *const StartInfo).read_unaligned() }
}

/// The hexadecimal number behind `name=` on the command line.
pub fn number(name: &str) -> Option<u64> {
    let at = start_info().cmdline_paddr;
    if at == 0 {
        return None;
    }
    // SAFETY: the command line ends with a zero, lies below 4 GiB, and is never written again.
    let text = unsafe { core::ffi::CStr::from_ptr(at as *const core::ffi::c_char) }.to_str().ok()?;
    let value = text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    u64::from_str_radix(value, 16).ok()
}

unsafe extern "Rust" {
    safe fn guest_main(tests: &mut tests::Tests);
    safe fn guest_name() -> &'static str;
}

#[unsafe(no_mangle)]
extern "C" fn guest_start(start_info: u64) -> ! {
    START_INFO.store(start_info, Ordering::Relaxed);
    hypercall::init();
    fault::init();
    power::init();
    let mut tests = tests::Tests::new(guest_name());
    guest_main(&mut tests);
    tests.finish();
    power::off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print(format_args!("TEST {}: no panic FAIL: {info}\n", guest_name()));
    power::off()
}

unsafe extern "C" {
    static mut page_directories: [u64; 2048];
}

/// Puts a page table in the place of the 2 MiB at `address` (below 4 GiB).
pub fn map_table(address: u64, table: u64) {
    // SAFETY: one writer; what is mapped there is the caller's to know.
    unsafe { (&raw mut page_directories[(address >> 21) as usize]).write_volatile(table | 3) };
    crate::cpu::invlpg(address);
}
