//! `vectors`: prints `irq VV` for each interrupt it takes, until vector 7f. What sends them is outside: lines, MSIs, irqfds.
//!
//! Words on the command line: `ioapic` (the default): pin N of the I/O APIC is vector 30 + N, the PIC is masked;
//! `pic`: the local APIC is off, line N of the PIC is vector 20 + N; `virtwire`: the same through LINT0 of the local APIC;
//! `x2apic`; `level=N,N`: these pins of the I/O APIC are level-triggered; `pit`: the timer's line, otherwise masked, too.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use runtime::apic::{self, register};
use runtime::interrupts::{self, Frame};
use runtime::serial::Byte;
use runtime::{Verdict, boot, ensure, guest, pic, port, say};

guest!("vectors", main);

const PINS: u8 = 0x30;
const LAST: u8 = 0x7f;

static PIC: AtomicBool = AtomicBool::new(false);
static APIC: AtomicBool = AtomicBool::new(true);
static DONE: AtomicBool = AtomicBool::new(false);

fn main() -> Verdict {
    // Vectors 10 to 1f are for interrupts as well as exceptions, but those with an error code cannot be told apart.
    for vector in (2..=255).filter(|vector| !matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)) {
        interrupts::handle(vector, taken);
    }
    pic::init();
    if boot::has("pic") {
        PIC.store(true, SeqCst);
        APIC.store(false, SeqCst);
        apic::disable();
    } else {
        if boot::has("x2apic") {
            ensure!(apic::enable_x2(), "CPUID has no x2APIC");
        }
        apic::enable();
        if boot::has("virtwire") {
            PIC.store(true, SeqCst);
            apic::set(register::LVT_LINT0, apic::EXTINT);
        } else {
            route_pins();
        }
    }
    if PIC.load(SeqCst) {
        for line in (0..16).filter(|&line| line != 0 || boot::has("pit")) {
            pic::unmask(line);
        }
    }
    say!("ready");
    while !DONE.load(SeqCst) {
        port::wait();
    }
    Ok(())
}

fn route_pins() {
    let level = |pin: u32| {
        let list = boot::text("level").unwrap_or(&[]);
        list.split(|&byte| byte == b',').any(|it| boot::parse(it) == Some(pin.into()))
    };
    for pin in (0..apic::io_pins()).filter(|&pin| pin != 2 || boot::has("pit")) {
        let trigger = if level(pin) { apic::LEVEL } else { 0 };
        apic::io_route(pin, trigger | (u32::from(PINS) + pin));
    }
}

fn taken(frame: &mut Frame) {
    let vector = frame.vector as u8;
    say!("irq ", Byte(vector));
    if APIC.load(SeqCst) && apic::in_service(vector) {
        apic::eoi();
    } else if PIC.load(SeqCst) && (pic::BASE..pic::BASE + 16).contains(&vector) {
        pic::eoi(vector - pic::BASE);
    }
    if vector == LAST {
        DONE.store(true, SeqCst);
    }
}
