//! `spin`: processors that never rest, with known values in their registers. All processors of the MADT spin, or as many
//! as `cpus=N` on the command line says.

#![no_std]
#![no_main]

use core::arch::asm;
use runtime::{Verdict, guest, say, smp};

guest!("spin", main);

fn main() -> Verdict {
    let others = smp::start(spin)?;
    say!("spinning on ", others + 1);
    spin(0)
}

/// The index of the processor goes to r15.
fn spin(index: usize) -> ! {
    // SAFETY: never returns, so it may use every register.
    unsafe {
        asm!(
            "mov rax, 0x1111111111111111",
            "mov rbx, 0x2222222222222222",
            "mov rcx, 0x3333333333333333",
            "mov rdx, 0x4444444444444444",
            "2:",
            "jmp 2b",
            in("r15") index,
            options(noreturn)
        )
    }
}
