//! `realmode`: 16-bit real mode from the reset vector, as a ROM of 64 KiB; see `src/asm/realmode.s`.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(include_str!("../asm/realmode.s"), options(att_syntax));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
