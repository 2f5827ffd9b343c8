//! From the PVH entry (Xen `docs/misc/pvh.pandoc`: 32-bit protected mode, paging off, ebx the start info) to 64-bit mode.
//!
//! The first 4 GiB are mapped at themselves by 2 MiB pages for ring 0; the last GiB, where the devices are, uncached.
//! The tables are data, so that nothing is spent on filling them.

use core::arch::global_asm;

/// Selectors of the GDT below. The order is what SYSCALL, SYSRET, SYSENTER and SYSEXIT want.
pub mod selector {
    /// 64-bit code of ring 0.
    pub const CODE: u16 = 0x18;
    /// Data of ring 3.
    pub const USER_DATA: u16 = 0x33;
    /// 64-bit code of ring 3.
    pub const USER_CODE: u16 = 0x3b;
    /// The TSS of the first processor; those of the others follow, 16 bytes each.
    pub const TSS: u16 = 0x48;
}

/// The most processors that the tables here have room for.
pub const MAX_CPUS: usize = 64;

global_asm!(
    r#"
    .section .note.Xen, "a"
    .balign 4
    .long 4, 4, 18              /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
    cld
    movl %ebx, start_info
    lgdtl gdt_pointer
    movl $first_cpu_stack, %esp
    movl $guest, %ebp

    /* %ebp is where to go in 64-bit mode, %esp the stack. */
    .globl enter_long_mode
enter_long_mode:
    movl %cr4, %eax
    orl $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER: LME, NXE */
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl $0x80010033, %eax      /* PG, WP, NE, ET, MP, PE */
    movl %eax, %cr0
    ljmpl $0x18, $1f
    .code64
1:  movl $0x20, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl %ebp, %eax
    xorl %ebp, %ebp
    pushq $0
    jmpq *%rax

    .section .data.start, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    /* 08 32-bit code, ring 0 */
    .quad 0x00cf93000000ffff    /* 10 data, ring 0 */
    .quad 0x00af9b000000ffff    /* 18 64-bit code, ring 0 */
    .quad 0x00cf93000000ffff    /* 20 data, ring 0 */
    .quad 0x00cffb000000ffff    /* 28 32-bit code, ring 3 */
    .quad 0x00cff3000000ffff    /* 30 data, ring 3 */
    .quad 0x00affb000000ffff    /* 38 64-bit code, ring 3 */
    .quad 0x00cff3000000ffff    /* 40 data, ring 3 */
    .globl gdt_tss
gdt_tss:
    .fill 64 * 2, 8, 0          /* 48 a TSS for each processor */
gdt_end:
    .globl gdt
    .globl gdt_limit
    .set gdt_limit, gdt_end - gdt - 1
gdt_pointer:
    .word gdt_limit
    .quad gdt

    .globl start_info
start_info:
    .quad 0

    .balign 4096
pml4:
    .quad page_directory_pointers + 0x7
    .fill 511, 8, 0
    .globl page_directory_pointers
page_directory_pointers:
    .quad page_directories + 0x0007
    .quad page_directories + 0x1007
    .quad page_directories + 0x2007
    .quad page_directories + 0x3007
    .fill 508, 8, 0
    .globl page_directories
page_directories:
    .set page, 0
    .rept 1536
    .quad page << 21 | 0x83     /* present, writable, 2 MiB */
    .set page, page + 1
    .endr
    .rept 512
    .quad page << 21 | 0x9b     /* the same, PCD and PWT */
    .set page, page + 1
    .endr
"#,
    options(att_syntax)
);
