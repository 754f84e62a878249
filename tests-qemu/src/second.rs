//! A second vCPU, started as the hardware has it: by INIT and SIPI, in real mode on a page below 1 MiB.

use crate::{apic, fault, memory};
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

global_asm!(
    r#"
    .section .text.second, "ax", @progbits
    // Copied to a page below 1 MiB, where it starts in real mode.
    .code16
    .global second_start
second_start:
    cli
    .byte 0x2e, 0x66, 0x0f, 0x01, 0x16  // lgdt cs:[pointer], 32-bit base
    .word second_gdt_pointer - second_start
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea                    // far jump to 32-bit code
    .long second_protected
    .word 0x18
    .balign 4
second_gdt_pointer:
    .word 31
    .long boot_gdt
    .global second_end
second_end:
    .code32
second_protected:
    mov eax, 0x10
    mov ds, eax
    mov ss, eax
    mov esp, offset second_stack_top
    call enter_long_mode
    .code64
    mov esp, offset second_stack_top
    call second_entry
    ud2
    .section .bss.second, "aw", @nobits
    .balign 16
    .skip 16384
second_stack_top:
"#
);

unsafe extern "C" {
    static second_start: u8;
    static second_end: u8;
}

static MAIN: AtomicUsize = AtomicUsize::new(0);

#[unsafe(no_mangle)]
extern "C" fn second_entry() -> ! {
    fault::load();
    // SAFETY: only `prepare` writes this, from a function of this type.
    let main = unsafe { core::mem::transmute::<usize, fn() -> !>(MAIN.load(Ordering::SeqCst)) };
    main()
}

/// Has the second vCPU go on at `main` once it is started. The ICR's low half for its SIPI.
pub fn prepare(main: fn() -> !) -> u32 {
    MAIN.store(main as usize, Ordering::SeqCst);
    // Any page of RAM below 640 KiB will do.
    let page = (1..0x90u64).rev().map(|index| index * 4096).find(|page| memory::is_ram(*page, 4096)).unwrap_or(0x8000);
    let code = (&raw const second_start) as u64;
    for offset in 0..(&raw const second_end) as u64 - code {
        // SAFETY: copies code to a page of RAM that nothing else uses.
        unsafe { ((page + offset) as *mut u8).write_volatile(((code + offset) as *const u8).read()) };
    }
    0x4600 | (page >> 12) as u32
}

/// The ICR's low half for INIT.
pub const INIT: u32 = 0x4500;

/// Starts the vCPU with this APIC id.
pub fn start(id: u32, main: fn() -> !) {
    let startup = prepare(main);
    apic::send(id, INIT);
    apic::send(id, startup);
}
