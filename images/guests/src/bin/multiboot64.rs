//! `multiboot64`: 32-bit protected mode from a multiboot 1 loader; see `src/asm/protected.s`. This one is
//! ELF64, as the linker makes it.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .multiboot, "a"
    .balign 4
    .set FLAGS, 0x3             /* modules on page boundaries, memory information */
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
"#,
    options(att_syntax)
);
global_asm!(
    ".macro guest_name",
    ".asciz \"multiboot64\"",
    ".endm",
    include_str!("../asm/protected.s"),
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
