//! The register machine of an MC146818A real-time clock plus RAM (Motorola MC146818A data sheet,
//! "Functional description" and "Registers"), with the century byte that PCs keep at 0x32.
//!
//! The clock is computed from the time that has passed; nothing runs while nobody looks. Register
//! bytes change at once at the end of an update cycle. The day of the week follows from the date.
//! As on the chipsets of today, daylight saving (DSE) and the square wave (SQWE) are bits without
//! effect, and the two faster time bases count as the 32,768 Hz one.

use board::{StateError, VmTime};
use serde::{Deserialize, Serialize};

use super::calendar::{DAY, civil_from_days, days_from_civil, weekday_from_days};

/// Bytes of registers and RAM.
pub const CMOS_SIZE: usize = 128;

/// Addresses of registers.
mod reg {
    pub(super) const SECONDS: usize = 0x00;
    pub(super) const SECONDS_ALARM: usize = 0x01;
    pub(super) const MINUTES: usize = 0x02;
    pub(super) const MINUTES_ALARM: usize = 0x03;
    pub(super) const HOURS: usize = 0x04;
    pub(super) const HOURS_ALARM: usize = 0x05;
    pub(super) const DAY_OF_WEEK: usize = 0x06;
    pub(super) const DATE: usize = 0x07;
    pub(super) const MONTH: usize = 0x08;
    pub(super) const YEAR: usize = 0x09;
    pub(super) const A: usize = 0x0A;
    pub(super) const B: usize = 0x0B;
    pub(super) const C: usize = 0x0C;
    pub(super) const D: usize = 0x0D;
    pub(super) const CENTURY: usize = 0x32;
}

/// Register A.
mod a {
    pub(super) const UIP: u8 = 1 << 7;
    pub(super) const DV: u8 = 0x70;
    pub(super) const DV_32768_HZ: u8 = 0x20;
    pub(super) const RS: u8 = 0x0F;
}

/// Register B. Interrupt enables lie where register C has their flags.
mod b {
    pub(super) const SET: u8 = 1 << 7;
    pub(super) const UIE: u8 = 1 << 4;
    pub(super) const SQWE: u8 = 1 << 3;
    pub(super) const DM_BINARY: u8 = 1 << 2;
    pub(super) const HOURS_24: u8 = 1 << 1;
    pub(super) const ENABLES: u8 = 0x70;
}

/// Register C.
mod c {
    pub(super) const IRQF: u8 = 1 << 7;
    pub(super) const PF: u8 = 1 << 6;
    pub(super) const AF: u8 = 1 << 5;
    pub(super) const UF: u8 = 1 << 4;
    pub(super) const FLAGS: u8 = PF | AF | UF;
}

/// Register D: valid RAM and time.
const VRT: u8 = 1 << 7;

const PM: u8 = 1 << 7;

/// Alarm bytes from here on match any value.
const DO_NOT_CARE: u8 = 0xC0;

const SECOND: u64 = 1_000_000_000;
const CRYSTAL_HZ: u64 = 32_768;

/// Nanoseconds for which UIP announces an update (244 us) and for which it lasts (1,984 us).
const UPDATE: u64 = 244_000 + 1_984_000;

/// Seconds from 1970 that a clock may show, either way: well beyond the years 0 to 9999.
const SECONDS_LIMIT: i64 = 1 << 40;

/// The clock.
#[derive(Debug)]
pub struct Mc146818 {
    /// Registers and RAM. Time bytes are as of `at`; UIP and IRQF are not stored.
    cmos: [u8; CMOS_SIZE],
    /// Unix seconds that the clock shows when the divider chain is at zero.
    epoch: i64,
    /// What the divider chain is ahead of the VM clock, in nanoseconds.
    phase: u64,
    /// The moment up to which all this holds.
    at: VmTime,
}

impl Mc146818 {
    /// A clock that shows Unix time `seconds` and `nanos` at VM time zero, in BCD and 24 hours.
    pub fn new(seconds: i64, nanos: u32) -> Self {
        let mut cmos = [0; CMOS_SIZE];
        // The periodic rate is the one that a BIOS sets, 1,024 Hz; its interrupt is disabled.
        cmos[reg::A] = a::DV_32768_HZ | 6;
        cmos[reg::B] = b::HOURS_24;
        cmos[reg::D] = VRT;
        let epoch = seconds.clamp(-SECONDS_LIMIT, SECONDS_LIMIT);
        let phase = u64::from(nanos).min(SECOND - 1);
        let mut rtc = Self { cmos, epoch, phase, at: VmTime::ZERO };
        rtc.store_time();
        rtc
    }

    /// The RESET pin. The clock and the RAM are not affected.
    pub fn reset(&mut self) {
        self.cmos[reg::B] &= !(b::ENABLES | b::SQWE);
        self.cmos[reg::C] = 0;
    }

    /// The IRQ pin, true when it is asserted.
    pub fn irq(&self) -> bool {
        self.cmos[reg::B] & self.cmos[reg::C] & c::FLAGS != 0
    }

    /// Brings flags and time bytes up to `now`.
    pub fn evaluate(&mut self, now: VmTime) {
        let before = self.at;
        // An event may bring a time that an access has overtaken.
        let now = now.max(before);
        self.at = now;
        if !self.chain_runs() {
            return;
        }
        if let Some(period) = self.period()
            && self.crystal_ticks(before) / period != self.crystal_ticks(now) / period
        {
            self.cmos[reg::C] |= c::PF;
        }
        self.end_updates(self.second(before));
    }

    /// Sets flags and time bytes for the updates since the clock showed `last`.
    fn end_updates(&mut self, last: i64) {
        let second = self.second(self.at);
        if self.updates() && second != last {
            self.cmos[reg::C] |= c::UF;
            if self.next_alarm(last).is_some_and(|alarm| alarm <= second) {
                self.cmos[reg::C] |= c::AF;
            }
            self.store_time();
        }
    }

    /// Microseconds of Unix time that the clock shows. To be called after [`Mc146818::evaluate`].
    pub fn unix_micros(&self) -> i64 {
        let chain = self.chain(self.at);
        let seconds = self.epoch + (chain / SECOND) as i64;
        seconds * 1_000_000 + (chain % SECOND / 1_000) as i64
    }

    /// Puts the clock forward or back, as if it had gone on while the VM clock stood still. To be
    /// called after [`Mc146818::evaluate`].
    pub fn shift(&mut self, micros: i64) {
        let last = self.second(self.at);
        let phase = self.phase as i64 + micros % 1_000_000 * 1_000;
        let second = SECOND as i64;
        let seconds = micros / 1_000_000 + phase.div_euclid(second);
        self.epoch = self.epoch.saturating_add(seconds).clamp(-SECONDS_LIMIT, SECONDS_LIMIT);
        self.phase = phase.rem_euclid(second) as u64;
        self.end_updates(last);
    }

    /// When the IRQ pin will next be asserted, if it is not.
    pub fn deadline(&self) -> Option<VmTime> {
        if self.irq() || !self.chain_runs() {
            return None;
        }
        let enabled = |flag: u8| self.cmos[reg::B] & flag != 0;
        let second = self.second(self.at);
        let at_second = |second: i64| (second - self.epoch) as u64 * SECOND;
        let periodic = self.period().filter(|_| enabled(c::PF)).map(|period| {
            let next = (self.crystal_ticks(self.at) / period + 1) * period;
            VmTime::at_tick(next, CRYSTAL_HZ).nanos()
        });
        let update = (self.updates() && enabled(c::UF)).then(|| at_second(second + 1));
        let alarm = if self.updates() && enabled(c::AF) { self.next_alarm(second) } else { None };
        let first = [periodic, update, alarm.map(at_second)].into_iter().flatten().min()?;
        Some(VmTime(first.saturating_sub(self.phase)))
    }

    /// Reads the byte at `index`, 0 to 127. To be called after [`Mc146818::evaluate`].
    pub fn read(&mut self, index: u8) -> u8 {
        let index = usize::from(index) % CMOS_SIZE;
        match index {
            reg::A if self.updates() && self.chain(self.at) % SECOND >= SECOND - UPDATE => {
                self.cmos[reg::A] | a::UIP
            }
            reg::C => {
                let irqf = if self.irq() { c::IRQF } else { 0 };
                std::mem::take(&mut self.cmos[reg::C]) | irqf
            }
            _ => self.cmos[index],
        }
    }

    /// Writes the byte at `index`, 0 to 127. To be called after [`Mc146818::evaluate`].
    pub fn write(&mut self, index: u8, value: u8) {
        let index = usize::from(index) % CMOS_SIZE;
        let (chain_ran, updated) = (self.chain_runs(), self.updates());
        match index {
            reg::A => self.cmos[reg::A] = value & !a::UIP,
            reg::B if value & b::SET != 0 => self.cmos[reg::B] = value & !b::UIE,
            reg::B => self.cmos[reg::B] = value,
            reg::C | reg::D => return,
            _ => self.cmos[index] = value,
        }
        if self.chain_runs() && !chain_ran {
            // The first update comes half a second after the divider chain is let go.
            self.phase = (SECOND + SECOND / 2 - self.at.nanos() % SECOND) % SECOND;
        }
        let time_written = matches!(
            index,
            reg::SECONDS
                | reg::MINUTES
                | reg::HOURS
                | reg::DATE
                | reg::MONTH
                | reg::YEAR
                | reg::CENTURY
        );
        if self.updates() && (!updated || time_written) {
            self.load_time();
        } else if self.updates() && index == reg::B {
            self.store_time();
        }
    }

    /// Whether the divider chain is not held in reset.
    fn chain_runs(&self) -> bool {
        self.cmos[reg::A] & a::DV <= a::DV_32768_HZ
    }

    /// Whether the time bytes are updated once a second.
    fn updates(&self) -> bool {
        self.chain_runs() && self.cmos[reg::B] & b::SET == 0
    }

    /// Nanoseconds that the divider chain has counted.
    fn chain(&self, at: VmTime) -> u64 {
        at.nanos().saturating_add(self.phase)
    }

    fn crystal_ticks(&self, at: VmTime) -> u64 {
        VmTime(self.chain(at)).ticks(CRYSTAL_HZ)
    }

    fn second(&self, at: VmTime) -> i64 {
        self.epoch + (self.chain(at) / SECOND) as i64
    }

    /// Crystal ticks from one periodic interrupt to the next.
    fn period(&self) -> Option<u64> {
        match self.cmos[reg::A] & a::RS {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The first second after `after` that matches the three alarm bytes.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let alarm = |index: usize| {
            move |byte: u8| self.cmos[index] >= DO_NOT_CARE || self.cmos[index] == byte
        };
        let second = |value: i64| alarm(reg::SECONDS_ALARM)(self.encode(value));
        let minute = |value: i64| alarm(reg::MINUTES_ALARM)(self.encode(value));
        let hour = |value: i64| alarm(reg::HOURS_ALARM)(self.encode_hour(value));
        // Without this a byte that no second matches would be looked for during a whole day.
        if !(0..60).any(second) {
            return None;
        }
        let mut t = after + 1;
        while t <= after + DAY {
            let of_day = t.rem_euclid(DAY);
            t += if !hour(of_day / 3600) {
                3600 - of_day % 3600
            } else if !minute(of_day / 60 % 60) {
                60 - of_day % 60
            } else if !second(of_day % 60) {
                1
            } else {
                return Some(t);
            };
        }
        None
    }

    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.cmos[reg::B] & b::DM_BINARY != 0 { value } else { value / 10 * 16 + value % 10 }
    }

    fn decode(&self, byte: u8) -> i64 {
        let binary = self.cmos[reg::B] & b::DM_BINARY != 0;
        i64::from(if binary { byte } else { (byte >> 4) * 10 + (byte & 15) })
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.cmos[reg::B] & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        self.encode((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> i64 {
        if self.cmos[reg::B] & b::HOURS_24 != 0 {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// Puts the time into the time bytes.
    fn store_time(&mut self) {
        let second = self.second(self.at);
        let (days, of_day) = (second.div_euclid(DAY), second.rem_euclid(DAY));
        let (year, month, date) = civil_from_days(days);
        for (index, value) in [
            (reg::SECONDS, of_day % 60),
            (reg::MINUTES, of_day / 60 % 60),
            (reg::DAY_OF_WEEK, weekday_from_days(days) + 1),
            (reg::DATE, date),
            (reg::MONTH, month),
            (reg::YEAR, year.rem_euclid(100)),
            (reg::CENTURY, year.div_euclid(100).rem_euclid(100)),
        ] {
            self.cmos[index] = self.encode(value);
        }
        self.cmos[reg::HOURS] = self.encode_hour(of_day / 3600);
    }

    /// Lets the clock go on from the time bytes. What is no valid time is carried over or clamped;
    /// the bytes themselves stay as they are until the next update.
    fn load_time(&mut self) {
        let get = |index: usize| self.decode(self.cmos[index]);
        let year = get(reg::CENTURY) * 100 + get(reg::YEAR);
        let month = get(reg::MONTH).clamp(1, 12);
        let days = days_from_civil(year, month, get(reg::DATE).max(1));
        let hours = self.decode_hour(self.cmos[reg::HOURS]);
        let second = days * DAY + hours * 3600 + get(reg::MINUTES) * 60 + get(reg::SECONDS);
        self.epoch = second - (self.chain(self.at) / SECOND) as i64;
    }
}

/// The saved state of a clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mc146818V1 {
    cmos: Vec<u8>,
    epoch: i64,
    phase: u64,
    at: VmTime,
}

impl Mc146818 {
    /// The kind of the section that holds the state.
    pub const KIND: &'static str = "mc146818";

    /// The state now.
    pub fn save(&self) -> Mc146818V1 {
        let Self { cmos, epoch, phase, at } = self;
        Mc146818V1 { cmos: cmos.to_vec(), epoch: *epoch, phase: *phase, at: *at }
    }

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when there are not 128 bytes, or a time is out of range.
    pub fn restore(&mut self, state: Mc146818V1) -> Result<(), StateError> {
        let Mc146818V1 { cmos, epoch, phase, at } = state;
        let damaged = |cause: &str| StateError::Damaged { kind: Self::KIND, cause: cause.into() };
        let cmos: [u8; CMOS_SIZE] =
            cmos.try_into().map_err(|_| damaged("the CMOS has not 128 bytes"))?;
        if phase >= SECOND || !(-2 * SECONDS_LIMIT..=2 * SECONDS_LIMIT).contains(&epoch) {
            return Err(damaged("the time is out of range"));
        }
        if cmos[reg::A] & a::UIP != 0 || cmos[reg::C] & !c::FLAGS != 0 {
            return Err(damaged("a read-only bit of register A or C is set"));
        }
        *self = Self { cmos, epoch, phase, at };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::Random;
    use super::*;

    const PIE: u8 = 1 << 6;
    const AIE: u8 = 1 << 5;

    fn at(nanos: u64) -> VmTime {
        VmTime(nanos)
    }

    fn seconds(seconds: u64) -> VmTime {
        VmTime(seconds * SECOND)
    }

    /// A clock that shows a date and time of day at VM time zero.
    fn rtc(year: i64, month: i64, day: i64, time: [i64; 3]) -> Mc146818 {
        let [h, m, s] = time;
        Mc146818::new(days_from_civil(year, month, day) * DAY + h * 3600 + m * 60 + s, 0)
    }

    fn time(rtc: &mut Mc146818) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| rtc.read(index))
    }

    fn set(rtc: &mut Mc146818, bytes: [u8; 7]) {
        for (index, value) in [0x32, 9, 8, 7, 4, 2, 0].into_iter().zip(bytes) {
            rtc.write(index, value);
        }
    }

    #[test]
    fn the_four_formats() {
        let mut rtc = rtc(2026, 11, 23, [23, 58, 7]);
        assert_eq!(time(&mut rtc), [0x20, 0x26, 0x11, 0x23, 0x02, 0x23, 0x58, 0x07]);
        rtc.write(0x0B, 0x06);
        assert_eq!(time(&mut rtc), [20, 26, 11, 23, 2, 23, 58, 7]);
        rtc.write(0x0B, 0x04);
        assert_eq!(rtc.read(4), 0x80 | 11);
        rtc.write(0x0B, 0x00);
        assert_eq!(rtc.read(4), 0x91);
    }

    #[test]
    fn hours_of_the_12_hour_clock() {
        for (hour, byte) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            let mut rtc = rtc(2000, 1, 1, [hour, 0, 0]);
            rtc.write(0x0B, 0x00);
            assert_eq!(rtc.read(4), byte);
            assert_eq!(rtc.decode_hour(byte), hour);
        }
    }

    #[test]
    fn the_clock_carries_into_the_next_century() {
        let mut rtc = rtc(1999, 12, 31, [23, 59, 59]);
        rtc.evaluate(at(SECOND - 1));
        assert_eq!(time(&mut rtc), [0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
        rtc.evaluate(seconds(1));
        assert_eq!(time(&mut rtc), [0x20, 0x00, 0x01, 0x01, 0x07, 0, 0, 0]);
        rtc.evaluate(seconds(1 + 59 * 86_400));
        assert_eq!(rtc.read(7), 0x29, "2000 was a leap year");
    }

    #[test]
    fn the_base_may_lie_within_a_second() {
        let mut rtc = Mc146818::new(59, 750_000_000);
        rtc.evaluate(at(249_999_999));
        assert_eq!((rtc.read(2), rtc.read(0)), (0, 0x59));
        rtc.evaluate(at(250_000_000));
        assert_eq!((rtc.read(2), rtc.read(0)), (1, 0));
    }

    #[test]
    fn uip_announces_the_update() {
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        for (nanos, uip) in [
            (0, false),
            (SECOND - UPDATE - 1, false),
            (SECOND - UPDATE, true),
            (SECOND - 1, true),
            (SECOND, false),
        ] {
            rtc.evaluate(at(nanos));
            assert_eq!(rtc.read(0x0A) & a::UIP != 0, uip, "{nanos}");
        }
        rtc.evaluate(at(2 * SECOND - 1));
        rtc.write(0x0B, 0x82);
        assert_eq!(rtc.read(0x0A), 0x26, "SET aborts the update");
    }

    #[test]
    fn set_holds_the_bytes_until_it_is_cleared() {
        let mut rtc = rtc(2026, 11, 23, [12, 0, 0]);
        rtc.evaluate(at(SECOND / 4));
        rtc.write(0x0B, 0x92);
        assert_eq!(rtc.read(0x0B), 0x82, "SET clears UIE");
        rtc.evaluate(seconds(100));
        assert_eq!(time(&mut rtc), [0x20, 0x26, 0x11, 0x23, 0x02, 0x12, 0, 0]);
        set(&mut rtc, [0x19, 0x84, 0x02, 0x28, 0x23, 0x59, 0x59]);
        rtc.evaluate(seconds(200));
        rtc.write(0x0B, 0x02);
        rtc.evaluate(at(201 * SECOND - 1));
        assert_eq!(rtc.read(0), 0x59, "the divider chain has gone on");
        rtc.evaluate(seconds(201));
        assert_eq!(time(&mut rtc), [0x19, 0x84, 0x02, 0x29, 0x04, 0, 0, 0]);
    }

    #[test]
    fn the_time_can_be_set_byte_by_byte_while_it_runs() {
        let mut rtc = rtc(2026, 1, 31, [10, 0, 0]);
        rtc.write(8, 0x02);
        rtc.write(7, 0x28);
        rtc.write(0, 0x30);
        rtc.evaluate(seconds(1));
        assert_eq!(time(&mut rtc), [0x20, 0x26, 0x02, 0x28, 0x07, 0x10, 0, 0x31]);
    }

    #[test]
    fn the_first_update_comes_half_a_second_after_a_divider_reset() {
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        rtc.evaluate(at(SECOND / 10));
        rtc.read(0x0C);
        rtc.write(0x0A, 0x66);
        rtc.write(0x0B, 0x02 | PIE);
        assert_eq!(rtc.deadline(), None);
        rtc.evaluate(at(5 * SECOND + 77));
        assert_eq!((rtc.read(0), rtc.read(0x0C), rtc.read(0x0A)), (0, 0, 0x66));
        rtc.write(0x0A, 0x26);
        rtc.evaluate(at(5 * SECOND + SECOND / 2 + 76));
        assert_eq!(rtc.read(0), 0);
        rtc.evaluate(at(5 * SECOND + SECOND / 2 + 77));
        assert_eq!(rtc.read(0), 1);
    }

    #[test]
    fn periodic_rates() {
        let rates = [256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2];
        for (hz, rs) in rates.into_iter().zip(1..) {
            let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
            rtc.write(0x0A, 0x20 | rs);
            rtc.write(0x0B, 0x02 | PIE);
            let mut interrupts = 0;
            while let Some(due) = rtc.deadline().filter(|&due| due <= seconds(1)) {
                rtc.evaluate(due - Duration::from_nanos(1));
                assert!(!rtc.irq());
                rtc.evaluate(due);
                assert!(rtc.irq());
                assert_eq!(rtc.deadline(), None, "no timer while the interrupt is not served");
                assert_eq!(rtc.read(0x0C) & !c::UF, c::IRQF | c::PF);
                assert!(!rtc.irq());
                interrupts += 1;
            }
            assert_eq!(interrupts, hz, "RS {rs}");
        }
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        rtc.write(0x0A, 0x20);
        rtc.write(0x0B, 0x02 | PIE);
        rtc.evaluate(seconds(10));
        assert_eq!((rtc.irq(), rtc.deadline()), (false, None));
    }

    #[test]
    fn the_update_ended_interrupt() {
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        assert_eq!(rtc.deadline(), None, "a clock that nobody asks needs no timer");
        rtc.write(0x0B, 0x02 | b::UIE);
        for second in 1..4 {
            assert_eq!(rtc.deadline(), Some(seconds(second)));
            rtc.evaluate(seconds(second));
            assert!(rtc.irq());
            assert_eq!(rtc.read(0x0C) & !c::PF, c::IRQF | c::UF);
            assert_eq!(rtc.read(0x0C), 0);
        }
    }

    #[test]
    fn flags_are_set_without_their_interrupts() {
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        for index in [1, 3, 5] {
            rtc.write(index, 0xFF);
        }
        rtc.evaluate(seconds(1));
        assert_eq!((rtc.irq(), rtc.read(0x0C)), (false, c::FLAGS));
        rtc.evaluate(seconds(2));
        rtc.write(0x0B, 0x02 | AIE);
        assert!(rtc.irq(), "a flag that is set interrupts as soon as it is enabled");
    }

    #[test]
    fn alarms() {
        // Alarm bytes for hour, minute, second; when it goes off after 10:20:30, in seconds.
        for (bytes, due) in [
            ([0x10, 0x20, 0x31], Some(1)),
            ([0x10, 0x20, 0x30], Some(86_400)),
            ([0x23, 0x59, 0x59], Some(13 * 3600 + 39 * 60 + 29)),
            ([0x00, 0x00, 0x00], Some(13 * 3600 + 39 * 60 + 30)),
            ([0xC0, 0x20, 0x29], Some(3_599)),
            ([0xFF, 0xFF, 0x29], Some(59)),
            ([0xFF, 0xFF, 0xFF], Some(1)),
            ([0x11, 0xC5, 0xC0], Some(39 * 60 + 30)),
            ([0x24, 0xFF, 0xFF], None),
            ([0xFF, 0x60, 0xFF], None),
            ([0xFF, 0xFF, 0x0A], None),
        ] {
            let mut rtc = rtc(2026, 1, 1, [10, 20, 30]);
            for (index, byte) in [5, 3, 1].into_iter().zip(bytes) {
                rtc.write(index, byte);
            }
            rtc.write(0x0B, 0x02 | AIE);
            assert_eq!(rtc.deadline(), due.map(seconds), "{bytes:02X?}");
            rtc.evaluate(seconds(due.unwrap_or(1_000_000)) - Duration::from_nanos(1));
            assert!(!rtc.irq());
            if let Some(due) = due {
                rtc.evaluate(seconds(due));
                assert!(rtc.irq());
                assert_eq!(rtc.read(0x0C) & (c::IRQF | c::AF), c::IRQF | c::AF);
            }
        }
    }

    #[test]
    fn alarms_in_binary_and_on_the_12_hour_clock() {
        let mut rtc = rtc(2026, 1, 1, [10, 20, 30]);
        for (index, byte) in [(0x0B, 0x04 | AIE), (5, 0x80 | 12), (3, 45), (1, 10)] {
            rtc.write(index, byte);
        }
        assert_eq!(rtc.deadline(), Some(seconds(2 * 3600 + 24 * 60 + 40)));
    }

    #[test]
    fn reset_clears_interrupts_and_keeps_time_and_ram() {
        let mut rtc = rtc(2026, 1, 1, [10, 20, 30]);
        rtc.write(0x0B, 0x7A);
        rtc.write(0x40, 0xA5);
        rtc.evaluate(seconds(86_400));
        assert!(rtc.irq());
        rtc.reset();
        assert_eq!(
            (rtc.irq(), rtc.deadline(), rtc.read(0x0C), rtc.read(0x0B)),
            (false, None, 0, 0x02)
        );
        assert_eq!((rtc.read(0x40), rtc.read(7), rtc.read(0x0D)), (0xA5, 0x02, 0x80));
    }

    #[test]
    fn a_shift_passes_over_updates_and_alarms() {
        let mut rtc = Mc146818::new(DAY, 250_000_000);
        for (index, byte) in [(5, 0x10), (3, 0xFF), (1, 0xFF)] {
            rtc.write(index, byte);
        }
        rtc.evaluate(at(SECOND / 2));
        assert_eq!(rtc.unix_micros(), DAY * 1_000_000 + 750_000);
        rtc.shift(100_000);
        rtc.evaluate(at(SECOND / 2));
        assert_eq!((rtc.unix_micros(), rtc.read(0)), (DAY * 1_000_000 + 850_000, 0));
        rtc.shift(150_000);
        assert_eq!((rtc.read(0), rtc.read(0x0C) & (c::UF | c::AF)), (1, c::UF));
        rtc.shift(10 * 3_600_000_000);
        assert_eq!((rtc.read(4), rtc.read(0x0C) & c::AF), (0x10, c::AF));
        rtc.shift(-10 * 3_600_000_000 - 1_700_000);
        assert_eq!(rtc.unix_micros(), DAY * 1_000_000 - 700_000);
        assert_eq!((rtc.read(4), rtc.read(0)), (0x23, 0x59));
    }

    #[test]
    fn registers_c_and_d_cannot_be_written() {
        let mut rtc = rtc(2026, 1, 1, [0, 0, 0]);
        rtc.write(0x0C, 0xFF);
        rtc.write(0x0D, 0x00);
        rtc.write(0x0A, 0xA6);
        assert_eq!((rtc.read(0x0C), rtc.read(0x0D), rtc.read(0x0A)), (0, 0x80, 0x26));
    }

    #[test]
    fn damaged_states_are_refused() {
        let good = rtc(2026, 1, 1, [0, 0, 0]).save();
        let refused = |change: fn(&mut Mc146818V1)| {
            let mut state = good.clone();
            change(&mut state);
            let mut rtc = Mc146818::new(0, 0);
            rtc.restore(state).is_err() && rtc.save() == Mc146818::new(0, 0).save()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|s| s.cmos.truncate(127)));
        assert!(refused(|s| s.phase = SECOND));
        assert!(refused(|s| s.epoch = i64::MAX));
        assert!(refused(|s| s.cmos[0x0C] = 0x80));
    }

    /// However the time is cut into pieces, the flags are those of one that is looked at all the
    /// time, and the pin is asserted at the moment that was foretold.
    #[test]
    fn jumps_and_steps_agree_under_random_accesses() {
        let mut random = Random::new(146_818);
        let (mut jump, mut step) = (Mc146818::new(0, 5), Mc146818::new(0, 5));
        let mut now = VmTime::ZERO;
        for _ in 0..20_000 {
            let (kind, value) = (random.below(4), random.byte());
            let index = (if kind == 3 { random.below(256) } else { random.below(14) }) as u8;
            for rtc in [&mut jump, &mut step] {
                match kind {
                    0 => drop(rtc.read(index)),
                    // Mostly valid time and alarm bytes, and a clock that mostly runs.
                    _ if index < 10 => {
                        rtc.write(index, if value < 200 { value & 0x17 } else { value })
                    }
                    _ if index == 0x0A => rtc.write(index, 0x20 | value & 0x4F),
                    _ if index == 0x0B && value & 3 != 0 => rtc.write(index, value & 0x7F),
                    _ => rtc.write(index, value),
                }
            }
            let foretold = jump.deadline();
            let was_asserted = step.irq();
            let pieces = random.below(30);
            let longest = if random.below(50) == 0 { 400 * SECOND } else { SECOND / 9 };
            let piece = random.below(longest);
            let mut first = None;
            for _ in 0..pieces {
                let start = now;
                now = now + Duration::from_nanos(piece);
                step.evaluate(now);
                if step.irq() && !was_asserted {
                    first.get_or_insert((start, now));
                }
            }
            jump.evaluate(now);
            assert_eq!(jump.save(), step.save());
            match first {
                Some((after, until)) => {
                    let due = foretold.unwrap();
                    assert!(after < due && due <= until, "{after} {due} {until}");
                }
                None => assert!(was_asserted || foretold.is_none_or(|due| due > now)),
            }
            let saved = jump.save();
            jump.restore(saved.clone()).unwrap();
            assert_eq!(jump.save(), saved);
        }
    }
}
