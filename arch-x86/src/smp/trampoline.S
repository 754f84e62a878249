// Where a CPU starts on a SIPI: in real mode, at the beginning of a page below 1 MiB that this has been copied to. What depends on the place
// of the page is filled in by `smp::trampoline`.

.set TRAMPOLINE_CR0_PE, 1
.set CR0_PG_WP, 0x80010000
.set CR4_PAE, 0x20
.set EFER, 0xc0000080
.set EFER_NXE_LME, 0x900
.set DATA, 16

    .pushsection .rodata.trampoline, "a", @progbits
    .balign 16
    .global corten_trampoline
corten_trampoline:
    .code16
    cli
    cld
    xorl %ebx, %ebx
    movw %cs, %bx
    movw %bx, %ds
    shll $4, %ebx                       // The address of the page, from here on.
    lgdtl (trampoline_gdt_pointer - corten_trampoline)
    movl %cr0, %eax
    orl $TRAMPOLINE_CR0_PE, %eax
    movl %eax, %cr0
    ljmpl *(trampoline_protected - corten_trampoline)

    .code32
trampoline_protected_mode:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax                     // One CPU for each time that this is prepared; one that comes late finds that it is not expected.
    xchgl %eax, (corten_trampoline_expected - corten_trampoline)(%ebx)
    testl %eax, %eax
    jz trampoline_unexpected
    movl (corten_trampoline_root - corten_trampoline)(%ebx), %eax
    movl %eax, %cr3
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $EFER, %ecx
    rdmsr
    orl $EFER_NXE_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PG_WP, %eax
    movl %eax, %cr0
    ljmpl *(trampoline_long - corten_trampoline)(%ebx)
trampoline_unexpected:
    hlt
    jmp trampoline_unexpected

    .code64
trampoline_long_mode:
    movq (corten_trampoline_stack - corten_trampoline)(%rbx), %rsp
    movq (corten_trampoline_argument - corten_trampoline)(%rbx), %rdi
    movq (corten_trampoline_entry - corten_trampoline)(%rbx), %rax
    xorl %ebp, %ebp                     // The end of every backtrace.
    call *%rax
    ud2

    .balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            // 32-bit code, accessed
    .quad 0x00cf93000000ffff            // data, accessed
    .quad 0x00af9b000000ffff            // 64-bit code, accessed
trampoline_gdt_end:

    // Three pairs of an address, to which the page's is added, and a word: two places to jump to, and the table. The limit of the table stands
    // in the word before its address.
    .global corten_trampoline_places
corten_trampoline_places:
trampoline_protected:
    .long trampoline_protected_mode - corten_trampoline
    .short 8, 0
trampoline_long:
    .long trampoline_long_mode - corten_trampoline
    .short 24
trampoline_gdt_pointer:
    .short trampoline_gdt_end - trampoline_gdt - 1
    .long trampoline_gdt - corten_trampoline
    .long 0

    .balign 8
    .global corten_trampoline_root
corten_trampoline_root:     .quad 0
    .global corten_trampoline_stack
corten_trampoline_stack:    .quad 0
    .global corten_trampoline_argument
corten_trampoline_argument: .quad 0
    .global corten_trampoline_entry
corten_trampoline_entry:    .quad 0
    .global corten_trampoline_expected
corten_trampoline_expected: .quad 0
    .global corten_trampoline_end
corten_trampoline_end:
    .popsection
