//! `protected`: 32-bit protected mode from a multiboot 1 loader; see `src/asm/protected.s`. This one is
//! ELF32, whose header is written by hand, so that no other tool than the linker is needed.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .elf32, "a"
    .byte 0x7f, 0x45, 0x4c, 0x46, 1, 1, 1, 0   /* ELF, 32-bit, little-endian, version 1 */
    .fill 8, 1, 0
    .word 2, 3                  /* ET_EXEC, EM_386 */
    .long 1, _start, 52, 0, 0   /* version, entry, program headers, no section headers, flags */
    .word 52, 32, 1, 40, 0, 0   /* sizes and counts of headers */
    .long 1, 0, image_start, image_start, file_size, memory_size, 7, 0x1000

    .section .multiboot, "a"
    .balign 4
    .set FLAGS, 0x3             /* modules on page boundaries, memory information */
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
"#,
    options(att_syntax)
);
global_asm!(
    ".macro guest_name",
    ".asciz \"protected\"",
    ".endm",
    include_str!("../asm/protected.s"),
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
