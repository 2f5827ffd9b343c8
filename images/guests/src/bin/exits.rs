//! `exits`: writes to COM1's scratch register in a tight loop, from ring 0 and then from ring 3, for benchmarks of exits. Each
//! stretch lies between two bytes to port 0xE9: `0` before the first, `3` between them, `.` after the second.
//!
//! Words: `ring0=N` and `ring3=N`, the writes of each stretch (20000).

#![no_std]
#![no_main]

use core::arch::global_asm;
use runtime::{Verdict, boot, ensure, guest, interrupts, port, ring3};

guest!("exits", main);

const SCRATCH: u16 = 0x3ff;
const MARK: u16 = 0xe9;

global_asm!(
    r#"
    /* fn write_in_ring0(count: u64) */
    .section .text.exits, "ax"
    .globl write_in_ring0
write_in_ring0:
    movl $0x3ff, %edx
1:  outb %al, %dx
    decq %rdi
    jnz 1b
    retq

    .section .user, "awx"
    /* rdi how often */
    .globl user_write
user_write:
    movl $0x3ff, %edx
1:  outb %al, %dx
    decq %rdi
    jnz 1b
    ud2
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn write_in_ring0(count: u64);
    fn user_write();
}

fn main() -> Verdict {
    let ring0 = boot::number("ring0", 20_000).max(1);
    let ring3 = boot::number("ring3", 20_000).max(1);
    ring3::init();
    interrupts::allow_port(SCRATCH);
    let mut context = ring3::program(user_write);
    context.rdi = ring3;

    port::outb(MARK, b'0');
    // SAFETY: changes no memory, and no register that a function has to keep.
    unsafe { write_in_ring0(ring0) };
    port::outb(MARK, b'3');
    ring3::run(&mut context);
    port::outb(MARK, b'.');
    ensure!(context.vector == 6 && context.rdi == 0, "ring 3 does not come to its end");
    Ok(())
}
