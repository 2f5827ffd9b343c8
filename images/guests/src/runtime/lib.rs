//! What the guests share: the way from the PVH entry to a Rust function in 64-bit mode, and small helpers for the devices
//! that the guests prove. Nothing here needs more than 8 MiB of RAM.
//!
//! The programs own the machine, so port and memory-mapped accesses are safe functions here. No code that the compiler
//! makes may calculate in SSE registers (some KVMs cannot in ring 0); `build.sh` checks the images for it.

#![no_std]

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod clock;
pub mod interrupts;
mod memory;
pub mod paging;
pub mod pic;
pub mod port;
pub mod power;
pub mod ring3;
pub mod serial;
pub mod smp;
pub mod start;

use core::panic::PanicInfo;

/// What a guest's main function returns: nothing, or what went wrong.
pub type Verdict = Result<(), &'static str>;

/// Names the guest and its main function, a `fn() -> Verdict`.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn guest() -> ! {
            $crate::run($name, $main)
        }
    };
}

/// Returns from the function with the message when the condition does not hold.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $message:literal) => {
        if !$condition {
            return Err($message);
        }
    };
}

/// Runs a guest: prints its name, calls it, prints `ok` and powers off, or prints `FAIL: what` and leaves by isa-debug-exit.
pub fn run(name: &str, main: fn() -> Verdict) -> ! {
    port::outb(0x21, 0xff);
    port::outb(0xa1, 0xff);
    serial::init();
    interrupts::init();
    // Also an exit, at which vmm finds the IDT on a KVM that emulates ring 0.
    say!(name);
    match main() {
        Ok(()) => {
            say!("ok");
            power::off()
        }
        Err(what) => fail(what),
    }
}

/// Prints `FAIL: what` and leaves with the value 3 by isa-debug-exit.
pub fn fail(what: &str) -> ! {
    say!("FAIL: ", what);
    power::debug_exit(3)
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    fail("panic")
}
