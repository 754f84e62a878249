// From the boot loader to Rust.
//
// Both protocols enter in 32-bit protected mode with paging off, flat segments and interrupts off, and neither says where the image is:
// the code finds out by a call, in borrowed words of the loader's own structure because there is no stack yet. Everything below is
// position independent until long mode is on and the image is mapped at VIRTUAL_BASE.

.set MULTIBOOT2_MAGIC, 0x36d76289       // in %eax, from the loader
.set PROTOCOL_MULTIBOOT2, 0
.set PROTOCOL_PVH, 1

.set VIRTUAL_BASE, 0xffffffff80000000    // As in link.ld.
.set PHYSICAL_BASE, 0x200000

// Page-table bits
.set PRESENT_WRITE, 0x3
.set PRESENT_WRITE_LARGE, 0x83

// ---------------------------------------------------------------------------------------------------------------------------------
// What the loaders look for

    .section .multiboot2, "a", @progbits
    .balign 8
multiboot2_header:
    .long 0xe85250d6                    // magic
    .long 0                             // architecture: 32-bit protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))

    .balign 8                           // Wanted, but not insisted on: memory maps, ACPI, EFI, framebuffer, load address.
0:  .short 1, 1
    .long 1f - 0b
    .long 6, 17, 14, 15, 8, 21
1:
    .balign 8                           // Modules page-aligned: they are handed to Dom0 by the page.
    .short 6, 0
    .long 8

    .balign 8                           // Relocatable: 2 MiB-aligned below 4 GiB, as high as possible (Dom0 may want 16 MiB and up).
    .short 10, 0
    .long 24
    .long 0x00200000, 0xffffffff, 0x00200000, 2

    .balign 8                           // End. No framebuffer is asked for: text mode stays on under BIOS.
    .short 0, 0
    .long 8
multiboot2_header_end:

    .section .note.Xen, "a", @note      // Direct ELF boot (PVH): QEMU's -kernel.
    .balign 4
    .long 4, 8, 18                      // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start_pvh - VIRTUAL_BASE + PHYSICAL_BASE

// ---------------------------------------------------------------------------------------------------------------------------------

    .section .text.entry, "ax", @progbits
    .code32
    .global start_multiboot2
start_multiboot2:
    cli
    cld
    cmpl $MULTIBOOT2_MAGIC, %eax
    jne unknown_loader
    leal 8(%ebx), %esp                  // The second word of the boot information is reserved: it holds the return address.
    call 0f
0:  popl %ebp
    subl $(0b - VIRTUAL_BASE), %ebp
    movl $PROTOCOL_MULTIBOOT2, %edi
    jmp enter_long_mode

    .global start_pvh
start_pvh:
    cli
    cld
    movl (%ebx), %esi                   // The magic of hvm_start_info makes room for the return address, and is put back.
    leal 4(%ebx), %esp
    call 0f
0:  popl %ebp
    movl %esi, (%ebx)
    subl $(0b - VIRTUAL_BASE), %ebp
    movl $PROTOCOL_PVH, %edi

    // %ebp = physical address of the image, %ebx = the loader's information, %edi = which loader
enter_long_mode:
    leal (early_stack_top - VIRTUAL_BASE)(%ebp), %esp
    movl %ebx, %esi

    movl $0x80000000, %eax              // Long mode?
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc no_long_mode

    // Identity map of the first 4 GiB, by 2 MiB pages.
    leal (early_directories - VIRTUAL_BASE)(%ebp), %ecx
    movl $PRESENT_WRITE_LARGE, %eax
    xorl %edx, %edx
0:  movl %eax, (%ecx, %edx, 8)
    addl $0x200000, %eax
    incl %edx
    cmpl $2048, %edx
    jb 0b

    leal (early_low - VIRTUAL_BASE)(%ebp), %edx
    leal PRESENT_WRITE(%ecx), %eax
    movl %eax, (%edx)
    addl $0x1000, %eax
    movl %eax, 8(%edx)
    addl $0x1000, %eax
    movl %eax, 16(%edx)
    addl $0x1000, %eax
    movl %eax, 24(%edx)

    // The image at VIRTUAL_BASE: at most 2 MiB, which is one entry since it is 2 MiB-aligned.
    leal (early_image - VIRTUAL_BASE)(%ebp), %ecx
    leal PRESENT_WRITE_LARGE(%ebp), %eax
    movl %eax, (%ecx)
    leal (early_high - VIRTUAL_BASE)(%ebp), %eax
    addl $PRESENT_WRITE, %ecx
    movl %ecx, 510*8(%eax)

    leal (early_root - VIRTUAL_BASE)(%ebp), %ecx
    addl $PRESENT_WRITE, %edx
    movl %edx, (%ecx)
    addl $PRESENT_WRITE, %eax
    movl %eax, 511*8(%ecx)
    movl %ecx, %cr3

    movl $0x20, %eax                    // PAE, and nothing that the firmware left: five levels of tables, above all
    movl %eax, %cr4
    movl $0xc0000080, %ecx              // EFER
    rdmsr
    orl $0x100, %eax                    // LME
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax               // PG, WP, PE
    movl %eax, %cr0

    leal (early_gdt - VIRTUAL_BASE)(%ebp), %eax
    pushl $0
    pushl %eax
    subl $2, %esp
    movw $(early_gdt_end - early_gdt - 1), (%esp)
    lgdt (%esp)
    leal (long_mode - VIRTUAL_BASE)(%ebp), %eax
    pushl $8
    pushl %eax
    lretl

no_long_mode:
    leal (no_long_mode_text - VIRTUAL_BASE)(%ebp), %esi
    jmp stop
unknown_loader:
    hlt                                 // Nothing is known, not even where this is.
    jmp unknown_loader

    // Says what is at %esi on the text screen and on COM1, and stops.
stop:
    movl $0xb8000, %edi
    movw $0x3f8, %dx
    movb $0x4f, %ah
0:  lodsb
    testb %al, %al
    jz 1f
    stosw
    outb %al, %dx
    movl $20000, %ecx                   // Long enough for a character at 115200 baud.
2:  inb $0x80, %al
    loop 2b
    jmp 0b
1:  hlt
    jmp 1b

    .code64
long_mode:
    movabsq $0f, %rax
    jmpq *%rax
0:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movabsq $early_stack_top, %rsp
    movl %edi, %edi                     // First argument: which loader; second: its information; third: where the image is.
    movl %esi, %esi
    movl %ebp, %edx
    xorl %ebp, %ebp                     // The end of every backtrace.
    call corten_main
    ud2

// ---------------------------------------------------------------------------------------------------------------------------------

    .section .rodata.entry, "a", @progbits
    .balign 8
early_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            // 64-bit code, accessed
early_gdt_end:
no_long_mode_text:
    .asciz "Corten needs a 64-bit processor; this one has no long mode\r\n"

    .section .bss.entry, "aw", @nobits
    .balign 4096
early_root:         .skip 4096
early_low:          .skip 4096
early_high:         .skip 4096
early_image:        .skip 4096
early_directories:  .skip 4 * 4096
early_stack:        .skip 8 * 4096
early_stack_top:
