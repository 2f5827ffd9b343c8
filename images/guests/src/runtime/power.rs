//! The ways out of the machine.

use crate::port::{cli, outl, outw};
use core::arch::asm;

/// PM1a_CNT of the ACPI PM block (ACPI 6.5, 4.8.3.2).
const PM1A_CNT: u16 = 0x604;
/// The isa-debug-exit device, as it is placed by `iobase=0xf4,iosize=4`.
const DEBUG_EXIT: u16 = 0xf4;

/// Powers the machine off: SLP_EN with SLP_TYP 0, which is S5.
pub fn off() -> ! {
    outw(PM1A_CNT, 0x2000);
    stop()
}

/// Ends the emulator with the exit status `value << 1 | 1`, where there is an isa-debug-exit device.
pub fn debug_exit(value: u32) -> ! {
    outl(DEBUG_EXIT, value);
    stop()
}

/// Halts for ever.
pub fn stop() -> ! {
    loop {
        cli();
        // SAFETY: halting changes no memory.
        unsafe { asm!("hlt", options(nomem, nostack)) }
    }
}
