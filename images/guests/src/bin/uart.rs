//! `uart`: the 16550A by interrupts (National PC16550D datasheet): scratch, divisor latch, loopback of data and modem lines,
//! FIFO with trigger level and overrun, THRE and line status interrupts, on COM1 and, where it is there, COM2.
//! The word `lenient` leaves out what QEMU's UART does not do: deltas of modem lines in loopback.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use runtime::port::{inb, outb};
use runtime::{Verdict, apic, boot, clock, ensure, guest, interrupts, pic, port, say, serial};

guest!("uart", main);

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCRATCH: u16 = 7;

const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;
const DATA_READY: u8 = 0x01;
const OVERRUN: u8 = 0x02;
const TEMT: u8 = 0x40;

/// Identities in IIR, without the bits that say that the FIFO is on.
const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_THRE: u8 = 0x02;
const IIR_DATA: u8 = 0x04;
const IIR_LINE: u8 = 0x06;

/// What the interrupt handler has seen of each identity, and who is interrupting.
static SEEN: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];
static LINE: AtomicU8 = AtomicU8::new(0);

fn main() -> Verdict {
    apic::disable();
    pic::init();
    for (name, base, line) in [("COM1", 0x3f8, 4), ("COM2", 0x2f8, 3)] {
        outb(base + SCRATCH, 0x5a);
        if inb(base + SCRATCH) != 0x5a {
            say!(name, ": not there");
            continue;
        }
        LINE.store(line, SeqCst);
        interrupts::handle(pic::BASE + line, interrupt);
        pic::unmask(line);
        let verdict = test(base);
        pic::mask_all();
        for (register, value) in [(LCR, 0x03), (MCR, 0x03), (IER, 0), (FCR, 0x07), (FCR, 0)] {
            outb(base + register, value);
        }
        serial::init();
        match verdict {
            Ok(()) => say!(name, ": latch, loopback, FIFO, modem lines, interrupts"),
            Err(what) => {
                say!(name);
                return Err(what);
            }
        }
    }
    Ok(())
}

fn interrupt(frame: &mut interrupts::Frame) {
    let line = frame.vector as u8 - pic::BASE;
    let base = if line == 4 { 0x3f8 } else { 0x2f8 };
    // Each look at a cause takes it away; what is left at the end is none.
    for _ in 0..64 {
        let cause = inb(base + IIR) & 0x0f;
        if cause == IIR_NONE {
            break;
        }
        SEEN[usize::from(cause >> 1)].fetch_add(1, SeqCst);
        match cause & 0x07 {
            IIR_MODEM => _ = inb(base + MSR),
            IIR_LINE => _ = inb(base + LSR),
            IIR_DATA => _ = inb(base + DATA),
            _ => {}
        }
    }
    pic::eoi(line);
}

fn seen(identity: u8) -> u32 {
    SEEN[usize::from(identity >> 1)].load(SeqCst)
}

/// Opens interrupts until one of this identity has been taken.
fn interrupted(identity: u8) -> bool {
    let before = seen(identity);
    port::sti();
    let taken = clock::until(|| seen(identity) != before);
    port::cli();
    taken
}

fn test(base: u16) -> Verdict {
    let get = |register: u16| inb(base + register);
    let set = |register: u16, value: u8| outb(base + register, value);

    // What has been printed must be out before the divisor changes.
    ensure!(clock::until(|| get(LSR) & TEMT != 0), "the transmitter is never empty");
    set(LCR, 0x83);
    let (low, high) = (get(DATA), get(IER));
    set(DATA, 0x34);
    set(IER, 0x12);
    ensure!((get(DATA), get(IER)) == (0x34, 0x12), "the divisor latch");
    // 115200 baud, so that the loopback is quick.
    set(DATA, 1);
    set(IER, 0);
    set(LCR, 0x03);
    let verdict = with_loopback(base);
    set(LCR, 0x83);
    set(DATA, low);
    set(IER, high);
    set(LCR, 0x03);
    verdict
}

fn with_loopback(base: u16) -> Verdict {
    let get = |register: u16| inb(base + register);
    let set = |register: u16, value: u8| outb(base + register, value);
    let received = || clock::until(|| get(LSR) & DATA_READY != 0);

    // Modem lines: DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
    set(FCR, 0x00);
    for (control, status) in [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)] {
        set(MCR, LOOP | control);
        ensure!(get(MSR) & 0xf0 == status, "a modem line does not come back");
    }
    if !boot::has("lenient") {
        set(MCR, LOOP);
        get(MSR);
        set(MCR, LOOP | 0x02);
        ensure!(get(MSR) & 0x0f == 0x01, "the delta of CTS");
        ensure!(get(MSR) & 0x0f == 0, "a delta that has been read is still there");
    }

    // One byte at a time, then an overrun.
    while get(LSR) & DATA_READY != 0 {
        get(DATA);
    }
    for byte in [0x00, 0x55, 0xff] {
        set(DATA, byte);
        ensure!(received() && get(DATA) == byte, "a byte does not come back");
    }
    set(DATA, 1);
    ensure!(received() && clock::until(|| get(LSR) & TEMT != 0), "a byte does not go out");
    set(DATA, 2);
    ensure!(clock::until(|| get(LSR) & OVERRUN != 0), "two bytes without a FIFO are no overrun");
    ensure!(get(LSR) & OVERRUN == 0, "an overrun that has been read is still there");
    get(DATA);

    // The FIFO holds 16.
    set(FCR, 0x07);
    ensure!(get(IIR) & 0xc0 == 0xc0, "IIR does not show the FIFO");
    for byte in 0..16 {
        set(DATA, byte);
        ensure!(clock::until(|| get(LSR) & TEMT != 0), "a byte does not go out");
    }
    for byte in 0..16 {
        ensure!(received() && get(DATA) == byte, "the FIFO's order");
    }
    ensure!(get(LSR) & DATA_READY == 0, "the FIFO holds more than was sent");

    // Interrupts. In loopback the line to the PIC is cut off, so only IIR shows them.
    set(IER, 0x01);
    set(FCR, 0x81);
    for sent in 1..=8u8 {
        set(DATA, sent);
        ensure!(clock::until(|| get(LSR) & TEMT != 0), "a byte does not go out");
        if sent == 8 {
            ensure!(
                clock::until(|| get(IIR) & 0x0f == IIR_DATA),
                "no interrupt at the FIFO's trigger level of 8"
            );
        }
    }
    set(FCR, 0x83);
    ensure!(get(IIR) & 0x0f == IIR_NONE, "clearing the FIFO leaves its interrupt");
    if !boot::has("lenient") {
        set(IER, 0x08);
        get(MSR);
        set(MCR, LOOP);
        ensure!(get(IIR) & 0x0f == IIR_MODEM, "no modem interrupt");
        get(MSR);
        ensure!(get(IIR) & 0x0f == IIR_NONE, "reading MSR leaves its interrupt");
    }

    // The transmitter's interrupt by the line: THRE comes as soon as it is enabled.
    set(IER, 0x00);
    set(MCR, OUT2 | 0x03);
    set(IER, 0x02);
    ensure!(interrupted(IIR_THRE), "no THRE interrupt");
    ensure!(get(IIR) & 0x0f == IIR_NONE, "reading IIR leaves the THRE interrupt");
    set(IER, 0x00);
    ensure!(LINE.load(SeqCst) != 0, "the line");
    Ok(())
}
