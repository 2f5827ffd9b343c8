//! `powerbtn`: waits for the power button: the fixed event in PM1_STS, by the SCI through the I/O APIC (ACPI 6.5, 4.8.2.2).

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use runtime::interrupts::{self, Frame};
use runtime::{Verdict, apic, guest, port, say};

guest!("powerbtn", main);

const PM1_STS: u16 = 0x600;
const PM1_EN: u16 = 0x602;
const PM1_CNT: u16 = 0x604;
const PWRBTN: u16 = 1 << 8;
const SCI_EN: u16 = 1;
/// Where firmware would switch ACPI on, if it is not yet.
const SMI_CMD: u16 = 0xb2;
const ACPI_ENABLE: u8 = 0x02;

const SCI: u32 = 9;
const VECTOR: u8 = 0x39;

static PRESSED: AtomicBool = AtomicBool::new(false);
static OTHERS: AtomicU32 = AtomicU32::new(0);

fn main() -> Verdict {
    interrupts::handle(VECTOR, sci);
    apic::enable();
    apic::io_route(SCI, apic::LEVEL | u32::from(VECTOR));
    if port::inw(PM1_CNT) & SCI_EN == 0 {
        port::outb(SMI_CMD, ACPI_ENABLE);
        port::outw(PM1_CNT, port::inw(PM1_CNT) | SCI_EN);
    }
    port::outw(PM1_STS, PWRBTN);
    port::outw(PM1_EN, PWRBTN);
    say!("ready");
    while !PRESSED.load(SeqCst) {
        if OTHERS.load(SeqCst) > 1000 {
            return Err("SCIs come without the power button's status");
        }
        port::wait();
    }
    say!("power button");
    Ok(())
}

fn sci(_: &mut Frame) {
    if port::inw(PM1_STS) & PWRBTN != 0 {
        port::outw(PM1_STS, PWRBTN);
        PRESSED.store(true, SeqCst);
    } else {
        OTHERS.fetch_add(1, SeqCst);
    }
    apic::eoi();
}
