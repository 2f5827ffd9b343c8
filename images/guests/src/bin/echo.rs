//! `echo`: sends back what it receives on COM1 until Ctrl-D, by polling; with the word `irq` on the command line by IRQ 4
//! through the PIC.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use runtime::interrupts::{self, Frame};
use runtime::{Verdict, apic, boot, guest, pic, port, say, serial};

guest!("echo", main);

const END: u8 = 0x04;
const COM1_LINE: u8 = 4;

static DONE: AtomicBool = AtomicBool::new(false);

fn main() -> Verdict {
    if boot::has("irq") {
        interrupts::handle(pic::BASE + COM1_LINE, received);
        apic::disable();
        pic::init();
        pic::unmask(COM1_LINE);
        serial::interrupt_on_input();
        say!("ready");
        while !DONE.load(SeqCst) {
            port::wait();
        }
    } else {
        say!("ready");
        while !DONE.load(SeqCst) {
            echo();
        }
    }
    say!();
    Ok(())
}

fn received(_: &mut Frame) {
    echo();
    pic::eoi(COM1_LINE);
}

/// Sends back all that there is.
fn echo() {
    while let Some(byte) = serial::get() {
        match byte {
            END => DONE.store(true, SeqCst),
            _ => serial::put(byte),
        }
    }
    port::pause();
}
