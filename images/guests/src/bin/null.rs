//! `null`: one byte to port 0xE9, then power-off by ACPI S5, straight from the 32-bit PVH entry. For start-up benchmarks:
//! nothing is set up, so that all time measured is the machine's own.

#![no_std]
#![no_main]

use core::arch::global_asm;

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
    movb $'!', %al
    outb %al, $0xe9
    movw $0x604, %dx
    movw $0x2000, %ax           /* PM1a_CNT: SLP_EN, SLP_TYP 0 */
    outw %ax, %dx
1:  cli
    hlt
    jmp 1b
    .code64
"#,
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
