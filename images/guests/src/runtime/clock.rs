//! The ACPI PM timer (ACPI 6.5, 4.8.3.3) as the yardstick for the other clocks: 3.579545 MHz, 24 bits of it used.

use crate::port::{inl, pause};

const PM_TMR: u16 = 0x608;
const MASK: u32 = 0xff_ffff;

/// Ticks in a second.
pub const HZ: u32 = 3_579_545;

/// The counter.
pub fn now() -> u32 {
    inl(PM_TMR) & MASK
}

/// Ticks since an earlier reading, at most 4.6 s ago.
pub fn since(start: u32) -> u32 {
    now().wrapping_sub(start) & MASK
}

/// Microseconds, from ticks.
pub fn micros(ticks: u32) -> u32 {
    (u64::from(ticks) * 1_000_000 / u64::from(HZ)) as u32
}

/// Waits.
pub fn delay(micros: u32) {
    let ticks = (u64::from(micros) * u64::from(HZ) / 1_000_000) as u32;
    let start = now();
    while since(start) < ticks {
        pause();
    }
}

/// Waits until the condition holds, for at most 4 seconds; whether it does.
pub fn until(condition: impl Fn() -> bool) -> bool {
    let start = now();
    while !condition() {
        if since(start) > 4 * HZ {
            return false;
        }
        pause();
    }
    true
}
