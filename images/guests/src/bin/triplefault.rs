//! `triplefault`: an exception without an IDT, which shuts the processor down: the machine resets, or ends with `--no-reboot`.

#![no_std]
#![no_main]

use core::arch::asm;
use runtime::{Verdict, guest, say};

guest!("triplefault", main);

fn main() -> Verdict {
    say!("faulting");
    let empty = [0u16; 5];
    // SAFETY: nothing after this runs: the fault finds no handler, nor do the faults that follow from it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}
