//! `clockwork`: all that differs from run to run on a machine whose clock is the host's: where timer interrupts strike, what the
//! TSC, the PM timer and the RTC show, what RDRAND gives. With `--icount` and a seed, two runs print the same.

#![no_std]
#![no_main]

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use runtime::apic::{self, register};
use runtime::interrupts::{self, Frame};
use runtime::port::{inb, outb};
use runtime::{Verdict, boot, clock, ensure, guest, pic, port, say};

guest!("clockwork", main);

const LOCAL: u8 = 0x60;
/// IRQ 0 is pin 2 of the I/O APIC.
const PIT_PIN: u8 = 2;
const PINS: u8 = 0x30;
const PERIODIC_TIMER: u32 = 1 << 17;

/// Interrupts taken, and what they have seen.
static TICKS: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0xcbf2_9ce4_8422_2325);
/// Rounds of the calculation that they interrupt.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// FNV-1a over whole words.
fn note(value: u64) {
    SEEN.store((SEEN.load(SeqCst) ^ value).wrapping_mul(0x100_0000_01b3), SeqCst);
}

fn tick(frame: &mut Frame) {
    note(port::rdtsc());
    note(frame.rip);
    note(ROUNDS.load(SeqCst));
    TICKS.fetch_add(1, SeqCst);
    apic::eoi();
}

fn main() -> Verdict {
    let ticks = boot::number("ticks", 200);
    interrupts::handle(LOCAL, tick);
    interrupts::handle(PINS + PIT_PIN, tick);
    pic::init();
    pic::mask_all();
    apic::enable();
    apic::io_route(PIT_PIN.into(), (PINS + PIT_PIN).into());

    // The PIT at 1000 Hz and the local APIC's timer at about 1400 Hz, over a calculation.
    outb(0x43, 0x34);
    outb(0x40, 0xa9);
    outb(0x40, 0x04);
    apic::set(register::TIMER_DIVIDE, 0b1011);
    apic::set(register::LVT_TIMER, PERIODIC_TIMER | u32::from(LOCAL));
    apic::set(register::TIMER_INITIAL, 700_001);
    let mut sum = 1_u64;
    port::sti();
    while TICKS.load(SeqCst) < ticks {
        for i in 0..97 {
            sum = black_box(sum.rotate_left(5) ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        ROUNDS.fetch_add(1, SeqCst);
    }
    port::cli();
    // The same, halted.
    TICKS.store(0, SeqCst);
    while TICKS.load(SeqCst) < ticks {
        port::wait();
    }
    apic::set(register::TIMER_INITIAL, 0);
    apic::io_route(PIT_PIN.into(), apic::MASKED);
    say!("rounds ", ROUNDS.load(SeqCst), " sum ", sum, " seen ", SEEN.load(SeqCst));
    ensure!(ROUNDS.load(SeqCst) > 0, "the calculation makes no progress");

    for line in 0..boot::number("lines", 0) {
        say!("line ", line, " at ", port::rdtsc());
    }
    say!("tsc ", port::rdtsc(), " pm timer ", clock::now());
    outb(0x70, 0x00);
    let second = inb(0x71);
    outb(0x70, 0x09);
    say!("rtc second ", second, " year ", inb(0x71));
    if __cpuid(1).ecx & 1 << 30 != 0 {
        for _ in 0..3 {
            say!("rdrand ", random()?);
        }
    }
    Ok(())
}

fn random() -> Result<u64, &'static str> {
    let (number, ok): (u64, u8);
    // SAFETY: CPUID has said that there is RDRAND, which changes a register and flags.
    unsafe { asm!("rdrand {}", "setc {}", out(reg) number, out(reg_byte) ok) };
    if ok == 1 { Ok(number) } else { Err("RDRAND has no number") }
}
