//! `timers`: the PIT, the RTC and the local APIC's timer count and interrupt; the ACPI PM timer is the yardstick. Bounds are
//! wide, since a host may be busy: what is measured is printed, what is far too fast or does not come at all fails.

#![no_std]
#![no_main]

use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use runtime::apic::{self, register};
use runtime::interrupts::{self, Frame};
use runtime::port::{inb, outb};
use runtime::{Verdict, clock, ensure, guest, pic, port, say};

guest!("timers", main);

/// Vectors of the I/O APIC's pins start here.
const PINS: u8 = 0x30;
const LOCAL: u8 = 0x60;
const RTC_LINE: u8 = 8;
/// IRQ 0 is pin 2 of the I/O APIC, as the MADT's override says.
const PIT_PIN: u8 = 2;

/// Interrupts taken.
static TICKS: AtomicU32 = AtomicU32::new(0);
/// All flags that the RTC's register C has shown.
static FLAGS: AtomicU8 = AtomicU8::new(0);

fn main() -> Verdict {
    interrupts::handle(pic::BASE, |_| {
        pic::eoi(0);
        TICKS.fetch_add(1, SeqCst);
    });
    interrupts::handle(pic::BASE + RTC_LINE, |_| {
        rtc_tick();
        pic::eoi(RTC_LINE);
    });
    for vector in [PINS + PIT_PIN, LOCAL] {
        interrupts::handle(vector, tick);
    }
    interrupts::handle(PINS + RTC_LINE, |_| {
        rtc_tick();
        apic::eoi();
    });
    pm_timer()?;
    pit_counters()?;

    apic::disable();
    pic::init();
    pic::unmask(0);
    say!("through the PIC:");
    pit_interrupts(100)?;
    outb(0x21, 0xff);
    pic::unmask(RTC_LINE);
    rtc_periodic()?;
    rtc_update_and_alarm()?;
    pic::mask_all();

    apic::enable();
    apic::io_route(PIT_PIN.into(), (PINS + PIT_PIN).into());
    say!("through the I/O APIC:");
    pit_interrupts(50)?;
    apic::io_route(PIT_PIN.into(), apic::MASKED);
    apic::io_route(RTC_LINE.into(), (PINS + RTC_LINE).into());
    rtc_periodic()?;
    apic::io_route(RTC_LINE.into(), apic::MASKED);

    local_timer()?;
    tsc_deadline()
}

fn tick(_: &mut Frame) {
    apic::eoi();
    TICKS.fetch_add(1, SeqCst);
}

/// Waits for this many interrupts, halting in between if `halt` says so, and gives the microseconds it took.
fn wait_for(ticks: u32, halt: bool) -> Option<u32> {
    wait_after(|| {}, ticks, halt)
}

/// The same with what starts the timer, from whose start on the time counts: a busy host may let the timer run out before
/// the next instruction.
fn wait_after(arm: impl FnOnce(), ticks: u32, halt: bool) -> Option<u32> {
    TICKS.store(0, SeqCst);
    let start = clock::now();
    arm();
    if halt {
        while TICKS.load(SeqCst) < ticks {
            port::wait();
        }
    } else {
        port::sti();
        let all = clock::until(|| TICKS.load(SeqCst) >= ticks);
        port::cli();
        if !all {
            return None;
        }
    }
    Some(clock::micros(clock::since(start)))
}

/// Prints what was measured, and fails if it is less than a quarter of what it should be.
fn report(what: &str, ticks: u32, measured: Option<u32>, expected: u32) -> Verdict {
    let Some(measured) = measured else {
        say!(what, ": ", TICKS.load(SeqCst), " interrupts of ", ticks);
        return Err("interrupts do not come");
    };
    say!(what, ": ", ticks, " in ", measured, " us, nominal ", expected);
    ensure!(measured >= expected / 4, "interrupts come too fast");
    Ok(())
}

fn pm_timer() -> Verdict {
    let (start, mut last) = (clock::now(), 0);
    let tsc = port::rdtsc();
    for _ in 0..1000 {
        let now = clock::since(start);
        ensure!(now >= last, "the PM timer goes back");
        last = now;
    }
    ensure!(clock::until(|| clock::since(start) > clock::HZ / 50), "the PM timer stands still");
    let (cycles, ticks) = (port::rdtsc() - tsc, clock::since(start));
    let khz = cycles / u64::from(clock::micros(ticks)).max(1) * 1000;
    say!("PM timer: monotone; the TSC goes at ", khz, " kHz");
    ensure!(cycles != 0, "the TSC stands still");
    Ok(())
}

/// Programs channel 0 of the PIT (Intel 82C54 datasheet): a mode and a count.
fn pit(mode: u8, count: u16) {
    outb(0x43, 0x30 | mode << 1);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}

fn pit_counters() -> Verdict {
    pit(2, 0xffff);
    clock::delay(100);
    let latched = || {
        outb(0x43, 0x00);
        u16::from_le_bytes([inb(0x40), inb(0x40)])
    };
    let first = latched();
    clock::delay(1000);
    let counted = first.wrapping_sub(latched());
    // 1.193182 MHz for at least one millisecond, unless it has gone round, which takes 55 ms.
    say!("PIT: counts ", counted, " in a millisecond, nominal 1193");
    ensure!(counted >= 1193 / 2, "the PIT counts too slowly");

    // Channel 2 in mode 0, which the gate in port 61 starts; its output is bit 5 there.
    outb(0x61, inb(0x61) & !0x03);
    outb(0x43, 0xb0);
    outb(0x42, 0x00);
    outb(0x42, 0x10);
    ensure!(inb(0x61) & 0x20 == 0, "channel 2's output is high before its time");
    outb(0x61, inb(0x61) | 0x01);
    ensure!(clock::until(|| inb(0x61) & 0x20 != 0), "channel 2 does not end");
    outb(0x61, inb(0x61) & !0x01);

    // Read-back of channel 0's status: the mode that was set, count loaded.
    outb(0x43, 0xe2);
    let status = inb(0x40);
    ensure!(status & 0x3f == 0x34, "the PIT's status is not what was programmed");
    Ok(())
}

fn pit_interrupts(ticks: u32) -> Verdict {
    const KILOHERTZ: u16 = 1193;
    pit(2, KILOHERTZ);
    report("PIT mode 2, awake", 5, wait_for(5, false), 4_000)?;
    report("PIT mode 2, halted", ticks, wait_for(ticks, true), (ticks - 1) * 1000)?;
    pit(3, KILOHERTZ);
    report("PIT mode 3, halted", ticks, wait_for(ticks, true), (ticks - 1) * 1000)?;
    // Mode 0 without a count does not count, but a tick of mode 3 may still be under way.
    outb(0x43, 0x30);
    port::sti();
    clock::delay(1000);
    port::cli();
    report("PIT mode 0", 1, wait_after(|| pit(0, 10 * KILOHERTZ), 1, false), 10_000)?;
    TICKS.store(0, SeqCst);
    port::sti();
    clock::delay(20_000);
    port::cli();
    ensure!(TICKS.load(SeqCst) == 0, "PIT mode 0 interrupts twice");
    Ok(())
}

fn rtc(register: u8) -> u8 {
    outb(0x70, register);
    inb(0x71)
}

fn set_rtc(register: u8, value: u8) {
    outb(0x70, register);
    outb(0x71, value);
}

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE_ENDED: u8 = 0x10;

fn rtc_tick() {
    FLAGS.fetch_or(rtc(REGISTER_C), SeqCst);
    TICKS.fetch_add(1, SeqCst);
}

/// Enables one of the RTC's interrupts (Motorola MC146818A datasheet), waits for some, and disables it.
fn rtc_interrupts(enable: u8, ticks: u32) -> Option<u32> {
    let control = rtc(REGISTER_B) & !(PERIODIC | ALARM | UPDATE_ENDED);
    rtc(REGISTER_C);
    FLAGS.store(0, SeqCst);
    set_rtc(REGISTER_B, control | enable);
    let measured = wait_for(ticks, false);
    set_rtc(REGISTER_B, control);
    rtc(REGISTER_C);
    measured.filter(|_| FLAGS.load(SeqCst) & (0x80 | enable) == 0x80 | enable)
}

fn rtc_periodic() -> Verdict {
    // 32.768 kHz, 1024 interrupts a second.
    set_rtc(REGISTER_A, 0x26);
    report("RTC periodic", 50, rtc_interrupts(PERIODIC, 50), 49 * 1_000_000 / 1024)
}

fn rtc_update_and_alarm() -> Verdict {
    report("RTC update-ended", 1, rtc_interrupts(UPDATE_ENDED, 1), 0)?;
    // The next second, in any minute of any hour, in BCD or binary as register B has it.
    let second = rtc(0x00);
    let next = match (rtc(REGISTER_B) & 0x04 != 0, second) {
        (true, 59) | (false, 0x59) => 0,
        (false, _) if second & 0x0f == 9 => (second & 0xf0) + 0x10,
        _ => second + 1,
    };
    for (register, value) in [(0x01, next), (0x03, 0xff), (0x05, 0xff)] {
        set_rtc(register, value);
    }
    report("RTC alarm", 1, rtc_interrupts(ALARM, 1), 0)
}

const PERIODIC_TIMER: u32 = 1 << 17;
const DEADLINE_TIMER: u32 = 2 << 17;

fn local_timer() -> Verdict {
    // Divided by 16.
    apic::set(register::TIMER_DIVIDE, 0b0011);
    apic::set(register::LVT_TIMER, apic::MASKED);
    apic::set(register::TIMER_INITIAL, u32::MAX);
    let start = clock::now();
    clock::delay(10_000);
    let counted = u32::MAX - apic::get(register::TIMER_CURRENT);
    let per_millisecond =
        (u64::from(counted) * 1000 / u64::from(clock::micros(clock::since(start)))) as u32;
    say!("local APIC timer: ", u64::from(per_millisecond) * 16, " kHz");
    ensure!(per_millisecond != 0, "the local APIC's timer stands still");

    apic::set(register::LVT_TIMER, LOCAL.into());
    let arm = || apic::set(register::TIMER_INITIAL, per_millisecond * 5);
    report("local APIC one-shot", 1, wait_after(arm, 1, true), 5000)?;
    ensure!(apic::get(register::TIMER_CURRENT) == 0, "the one-shot timer goes on");
    apic::set(register::LVT_TIMER, PERIODIC_TIMER | u32::from(LOCAL));
    apic::set(register::TIMER_INITIAL, per_millisecond);
    let measured = wait_for(50, true);
    apic::set(register::TIMER_INITIAL, 0);
    report("local APIC periodic", 50, measured, 49_000)
}

fn tsc_deadline() -> Verdict {
    const IA32_TSC_DEADLINE: u32 = 0x6e0;
    if __cpuid(1).ecx & 1 << 24 == 0 {
        say!("local APIC TSC-deadline: not there");
        return Ok(());
    }
    let (tsc, start) = (port::rdtsc(), clock::now());
    clock::delay(10_000);
    let per_millisecond =
        (port::rdtsc() - tsc) * 1000 / u64::from(clock::micros(clock::since(start)));
    apic::set(register::LVT_TIMER, DEADLINE_TIMER | u32::from(LOCAL));
    let arm = || port::wrmsr(IA32_TSC_DEADLINE, port::rdtsc() + per_millisecond * 5);
    report("local APIC TSC-deadline", 1, wait_after(arm, 1, true), 5000)?;
    ensure!(port::rdmsr(IA32_TSC_DEADLINE) == 0, "a deadline that has passed is still set");
    Ok(())
}
