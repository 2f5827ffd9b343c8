//! `kludge`: 32-bit protected mode from a multiboot 1 loader; see `src/asm/protected.s`. This one is
//! a flat image whose multiboot header says where it goes (the a.out kludge).

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .multiboot, "a"
    .balign 4
    .set FLAGS, 0x10003         /* the addresses below count; modules on page boundaries, memory information */
header:
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
    .long header, image_start, image_end, memory_end, _start
"#,
    options(att_syntax)
);
global_asm!(
    ".macro guest_name",
    ".asciz \"kludge\"",
    ".endm",
    include_str!("../asm/protected.s"),
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
