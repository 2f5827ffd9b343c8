//! The register machine of an 82C54 programmable interval timer (Intel 82C54 data sheet, order
//! number 231244, "Functional description" to "Operation common to all modes").
//!
//! Nothing is counted step by step: a counter knows how many CLK pulses it has counted since it was
//! loaded, and everything else follows from that. As on the chip, a count that is written is loaded
//! at the CLK pulse after the write. What the data sheet calls illegal is harmless here: a count of
//! one in modes 2 and 3 leaves OUT high, and a BCD digit above nine counts as its binary value.

use board::{StateError, VmTime};
use serde::{Deserialize, Serialize};

/// The CLK inputs of a PC's timer.
pub const PIT_HZ: u64 = 1_193_182;

/// A field of the control word: which bytes of the count are accessed.
mod rw {
    pub(super) const LATCH: u8 = 0;
    pub(super) const LSB: u8 = 1;
    pub(super) const MSB: u8 = 2;
}

/// Bits of the control word that a counter keeps and shows in its status: RW, mode and BCD.
const CONTROL: u8 = 0x3F;

/// One counter.
#[derive(Clone, Copy, Debug)]
struct Counter {
    /// RW, mode and BCD as they were programmed.
    control: u8,
    /// The count register CR.
    cr: u16,
    /// CR was written since the control word.
    cr_written: bool,
    /// The first byte of a two-byte count.
    write_low: Option<u8>,
    /// The next byte read of a two-byte count is the second.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// CR holds what has not been loaded into the counting element.
    null_count: bool,
    gate: bool,
    /// The counting element is loaded and, as far as OUT is concerned, at work.
    running: bool,
    /// What was last loaded, 1 to 65,536.
    loaded: u64,
    /// CLK pulses counted since: below `loaded` in modes 2 and 3, without end in the others.
    counted: u64,
    /// The CLK pulse that loads CR because of a write or a trigger.
    load_at: Option<u64>,
    /// The CLK pulse up to which all this holds.
    at: u64,
}

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            control: 0x30,
            cr: 0,
            cr_written: false,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            null_count: true,
            gate,
            running: false,
            loaded: 0x1_0000,
            counted: 0,
            load_at: None,
            at: 0,
        }
    }

    fn mode(&self) -> u8 {
        match self.control >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        }
    }

    fn rw(&self) -> u8 {
        self.control >> 4 & 3
    }

    fn bcd(&self) -> bool {
        self.control & 1 != 0
    }

    /// What CR stands for: zero is the largest count.
    fn cr_value(&self) -> u64 {
        let cr = u64::from(self.cr);
        match (cr, self.bcd()) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (_, false) => cr,
            (_, true) => (cr >> 12) * 1000 + (cr >> 8 & 15) * 100 + (cr >> 4 & 15) * 10 + (cr & 15),
        }
    }

    fn out(&self) -> bool {
        let (running, n, counted) = (self.running, self.loaded, self.counted);
        match self.mode() {
            0 => running && counted >= n,
            1 => !(running && counted < n),
            2 => !(running && n > 1 && counted == n - 1),
            3 => !(running && counted >= high_half(n)),
            _ => !(running && counted == n),
        }
    }

    /// What the counting element holds, in the form in which it is read.
    fn count(&self) -> u16 {
        let (n, counted) = (self.loaded, self.counted);
        let wrap = if self.bcd() { 10_000 } else { 0x1_0000 };
        let value = if self.mode() == 3 {
            // It counts down by two; an odd count spends its extra pulse in the high half.
            let high = high_half(n);
            if counted < high {
                2 * (high - counted - n % 2)
            } else {
                2 * n.saturating_sub(counted)
            }
        } else {
            n + wrap - counted % wrap
        } % wrap;
        if self.bcd() {
            let digit = |place: u64| (value / place % 10) as u16;
            digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
        } else {
            value as u16
        }
    }

    fn counting(&self) -> bool {
        self.running && (self.gate || matches!(self.mode(), 1 | 5))
    }

    /// Counts up to CLK pulse `to` and tells whether OUT has risen on the way.
    fn advance(&mut self, to: u64) -> bool {
        let mut risen = false;
        if let Some(load_at) = self.load_at
            && load_at <= to
        {
            // The pulse that loads does not count.
            risen |= self.run(load_at - 1);
            let before = self.out();
            self.at = load_at;
            self.load_at = None;
            self.load();
            self.counted = 0;
            self.running = self.gate || !matches!(self.mode(), 2 | 3);
            risen |= !before && self.out();
        }
        risen | self.run(to)
    }

    fn load(&mut self) {
        self.loaded = self.cr_value();
        self.null_count = false;
    }

    /// Counts up to `to` with no load but those at the ends of cycles.
    fn run(&mut self, to: u64) -> bool {
        let pulses = to.saturating_sub(self.at);
        self.at = self.at.max(to);
        if !self.counting() {
            // A strobe lasts one CLK pulse whatever the gate does.
            let strobe_ends = self.mode() == 4 && !self.out() && pulses > 0;
            self.counted += u64::from(strobe_ends);
            return strobe_ends;
        }
        let (n, before) = (self.loaded, self.counted);
        let counted = before.saturating_add(pulses);
        self.counted = counted;
        match self.mode() {
            0 | 1 => before < n && counted >= n,
            2 if counted < n => false,
            2 => {
                self.load();
                self.counted = (counted - n) % self.loaded;
                n > 1 || self.loaded > 1 && counted - n >= self.loaded
            }
            3 => {
                let high = high_half(n);
                let half = if before < high { high } else { n };
                if counted < half {
                    return false;
                }
                self.load();
                let start = if before < high { high_half(self.loaded) } else { 0 };
                let in_cycle = start + (counted - half);
                self.counted = in_cycle % self.loaded;
                before >= high || self.loaded > 1 && in_cycle >= self.loaded
            }
            _ => before <= n && counted > n,
        }
    }

    /// The CLK pulse at which OUT will next rise.
    fn next_rise(mut self) -> Option<u64> {
        if let Some(load_at) = self.load_at
            && self.advance(load_at)
        {
            return Some(load_at);
        }
        if !self.counting() {
            return (self.mode() == 4 && !self.out()).then_some(self.at + 1);
        }
        let (n, counted) = (self.loaded, self.counted);
        let pulses = match self.mode() {
            0 | 1 if counted < n => n - counted,
            2 if n > 1 => n - counted,
            // The strobes begin with the count that is loaded next.
            2 if self.cr_value() > 1 => n - counted + self.cr_value(),
            3 if counted >= high_half(n) => n - counted,
            3 if self.cr_value() > 1 => high_half(n) - counted + self.cr_value() / 2,
            4 | 5 if counted <= n => n + 1 - counted,
            _ => return None,
        };
        Some(self.at + pulses)
    }

    fn set_gate(&mut self, gate: bool) {
        let rises = gate && !self.gate;
        self.gate = gate;
        match self.mode() {
            2 | 3 if !gate => self.running = false,
            1 | 2 | 3 | 5 if rises && self.cr_written => self.load_at = Some(self.at + 1),
            _ => {}
        }
    }

    fn write_control(&mut self, control: u8) {
        *self = Self {
            control: control & CONTROL,
            cr: self.cr,
            gate: self.gate,
            loaded: self.loaded,
            counted: self.counted.min(self.loaded - 1),
            at: self.at,
            ..Self::new(self.gate)
        };
    }

    fn write_count(&mut self, byte: u8) {
        let byte16 = u16::from(byte);
        self.cr = match (self.rw(), self.write_low) {
            (rw::LSB, _) => byte16,
            (rw::MSB, _) => byte16 << 8,
            (_, None) => {
                self.write_low = Some(byte);
                if self.mode() == 0 {
                    self.running = false;
                    self.load_at = None;
                }
                return;
            }
            (_, Some(low)) => byte16 << 8 | u16::from(low),
        };
        self.write_low = None;
        self.null_count = true;
        let first = !std::mem::replace(&mut self.cr_written, true);
        match self.mode() {
            0 | 4 => self.load_at = Some(self.at + 1),
            2 | 3 if first => self.load_at = Some(self.at + 1),
            _ => {}
        }
    }

    fn latch_count(&mut self) {
        self.latched_count.get_or_insert(self.count());
    }

    fn latch_status(&mut self) {
        let status = u8::from(self.out()) << 7 | u8::from(self.null_count) << 6 | self.control;
        self.latched_status.get_or_insert(status);
    }

    fn read(&mut self) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count());
        let (byte, last) = match self.rw() {
            rw::LSB => (count as u8, true),
            rw::MSB => ((count >> 8) as u8, true),
            _ => {
                self.read_high = !self.read_high;
                if self.read_high { (count as u8, false) } else { ((count >> 8) as u8, true) }
            }
        };
        if last {
            self.latched_count = None;
        }
        byte
    }
}

/// CLK pulses for which mode 3 holds OUT high.
const fn high_half(n: u64) -> u64 {
    n.div_ceil(2)
}

/// The timer. The gates of counters 0 and 1 are tied high.
#[derive(Debug)]
pub struct I8254 {
    counters: [Counter; 3],
    /// OUT of counter 0 has risen since [`I8254::take_rise`].
    risen: bool,
}

impl Default for I8254 {
    fn default() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            risen: false,
        }
    }
}

impl I8254 {
    /// The state after power-on: nothing counts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state after power-on at `now`.
    pub fn reset(&mut self, now: VmTime) {
        *self = Self::new();
        self.evaluate(now);
    }

    /// Counts up to `now`.
    pub fn evaluate(&mut self, now: VmTime) {
        let to = now.ticks(PIT_HZ);
        let [zero, one, two] = &mut self.counters;
        self.risen |= zero.advance(to);
        one.advance(to);
        two.advance(to);
    }

    /// The level of OUT of a counter, 0 to 2.
    pub fn out(&self, counter: usize) -> bool {
        self.counters[counter].out()
    }

    /// Whether OUT of counter 0 has risen by counting since the last call.
    pub fn take_rise(&mut self) -> bool {
        std::mem::take(&mut self.risen)
    }

    /// When OUT of counter 0 will next rise by itself.
    pub fn deadline(&self) -> Option<VmTime> {
        self.counters[0].next_rise().map(|tick| VmTime::at_tick(tick, PIT_HZ))
    }

    /// The GATE input of counter 2.
    pub fn gate2(&self) -> bool {
        self.counters[2].gate
    }

    /// Drives the GATE input of counter 2. To be called after [`I8254::evaluate`].
    pub fn set_gate2(&mut self, gate: bool) {
        self.counters[2].set_gate(gate);
    }

    /// Reads the register at `offset`, 0 to 3. To be called after [`I8254::evaluate`].
    pub fn read(&mut self, offset: u64) -> u8 {
        match self.counters.get_mut((offset & 3) as usize) {
            Some(counter) => counter.read(),
            // The control word cannot be read.
            None => 0xFF,
        }
    }

    /// Writes the register at `offset`, 0 to 3. To be called after [`I8254::evaluate`].
    pub fn write(&mut self, offset: u64, value: u8) {
        if let Some(counter) = self.counters.get_mut((offset & 3) as usize) {
            return counter.write_count(value);
        }
        match self.counters.get_mut(usize::from(value >> 6)) {
            Some(counter) if value >> 4 & 3 == rw::LATCH => counter.latch_count(),
            Some(counter) => counter.write_control(value),
            None => self.read_back(value),
        }
    }

    fn read_back(&mut self, command: u8) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if command & 2 << i != 0 {
                if command & 0x20 == 0 {
                    counter.latch_count();
                }
                if command & 0x10 == 0 {
                    counter.latch_status();
                }
            }
        }
    }
}

/// The saved state of one counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterV1 {
    control: u8,
    cr: u16,
    cr_written: bool,
    write_low: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    null_count: bool,
    gate: bool,
    running: bool,
    loaded: u64,
    counted: u64,
    load_at: Option<u64>,
    at: u64,
}

/// The saved state of the three counters.
pub type CountersV1 = [CounterV1; 3];

impl Counter {
    fn save(&self) -> CounterV1 {
        let Self {
            control,
            cr,
            cr_written,
            write_low,
            read_high,
            latched_count,
            latched_status,
            null_count,
            gate,
            running,
            loaded,
            counted,
            load_at,
            at,
        } = *self;
        CounterV1 {
            control,
            cr,
            cr_written,
            write_low,
            read_high,
            latched_count,
            latched_status,
            null_count,
            gate,
            running,
            loaded,
            counted,
            load_at,
            at,
        }
    }

    /// `None` if the state is none that a counter can have.
    fn restored(state: CounterV1) -> Option<Self> {
        let CounterV1 {
            control,
            cr,
            cr_written,
            write_low,
            read_high,
            latched_count,
            latched_status,
            null_count,
            gate,
            running,
            loaded,
            counted,
            load_at,
            at,
        } = state;
        let counter = Self {
            control,
            cr,
            cr_written,
            write_low,
            read_high,
            latched_count,
            latched_status,
            null_count,
            gate,
            running,
            loaded,
            counted,
            load_at,
            at,
        };
        let in_cycle = !matches!(counter.mode(), 2 | 3) || counted < loaded;
        let possible = control & !CONTROL == 0
            && counter.rw() != rw::LATCH
            && (1..=0x1_0000).contains(&loaded)
            && in_cycle
            // 500 years: sums of these stay in range.
            && counted < 1 << 54
            && at < 1 << 54
            && load_at.is_none_or(|load_at| load_at == at + 1);
        possible.then_some(counter)
    }
}

impl I8254 {
    /// The kind of the section that holds the state.
    pub const KIND: &'static str = "i8254";

    /// The state now. A rise that nobody has taken is not part of it: the glue takes it at once.
    pub fn save(&self) -> CountersV1 {
        let Self { counters, risen: _ } = self;
        counters.each_ref().map(Counter::save)
    }

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when a counter has a state that it can never be in.
    pub fn restore(&mut self, state: CountersV1) -> Result<(), StateError> {
        let [Some(zero), Some(one), Some(two)] = state.map(Counter::restored) else {
            let cause = "a counter's state is impossible".to_owned();
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        };
        *self = Self { counters: [zero, one, two], risen: false };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// A timer and the CLK pulse it has come to. Tests use counter 2, whose gate they hold.
    struct Test {
        pit: I8254,
        tick: u64,
    }

    impl Test {
        fn new() -> Self {
            let mut pit = I8254::new();
            pit.set_gate2(true);
            Self { pit, tick: 0 }
        }

        /// Counter 2 in `mode` with a two-byte count, BCD if `bcd`, at the moment after the write.
        fn started(mode: u8, bcd: bool, count: u64) -> Self {
            let mut test = Self::new();
            test.control(mode, bcd);
            test.count(bcd, count);
            test
        }

        fn control(&mut self, mode: u8, bcd: bool) {
            self.pit.write(3, 0xB0 | mode << 1 | u8::from(bcd));
        }

        fn count(&mut self, bcd: bool, count: u64) {
            let [low, high] = encode(bcd, count).to_le_bytes();
            self.pit.write(2, low);
            self.pit.write(2, high);
        }

        fn pass(&mut self, ticks: u64) {
            self.tick += ticks;
            self.pit.evaluate(VmTime::at_tick(self.tick, PIT_HZ));
        }

        /// OUT now and after each of the next pulses: `H` and `_`.
        fn wave(&mut self, pulses: usize) -> String {
            let mut wave = String::new();
            for i in 0..=pulses {
                if i > 0 {
                    self.pass(1);
                }
                wave.push(if self.pit.out(2) { 'H' } else { '_' });
            }
            wave
        }

        fn read(&mut self) -> u16 {
            u16::from_le_bytes([self.pit.read(2), self.pit.read(2)])
        }

        /// The count after each of the next pulses.
        fn counts(&mut self, pulses: usize) -> Vec<u16> {
            let step = |_| {
                self.pass(1);
                self.read()
            };
            (0..pulses).map(step).collect()
        }
    }

    fn encode(bcd: bool, count: u64) -> u16 {
        if bcd {
            u16::from_str_radix(&(count % 10_000).to_string(), 16).unwrap()
        } else {
            count as u16
        }
    }

    #[test]
    fn mode_0_interrupt_on_terminal_count() {
        for bcd in [false, true] {
            let mut t = Test::started(0, bcd, 4);
            assert_eq!(t.wave(8), "_____HHHH", "high N + 1 pulses after the write");
            let mut t = Test::started(0, bcd, 4);
            let last = encode(bcd, if bcd { 9_999 } else { 65_535 });
            assert_eq!(t.counts(6), [4, 3, 2, 1, 0, last]);
            // A new count begins anew; its first byte stops the counter and lowers OUT.
            t.pit.write(2, encode(bcd, 12) as u8);
            assert_eq!(t.wave(3), "____");
            assert_eq!(t.read(), last);
            t.pit.write(2, 0);
            assert_eq!(t.wave(14), "_____________HH");
        }
    }

    #[test]
    fn mode_0_gate_holds_the_count() {
        let mut t = Test::started(0, false, 4);
        t.pass(2);
        t.pit.set_gate2(false);
        assert_eq!(t.counts(3), [3, 3, 3]);
        t.pit.set_gate2(true);
        assert_eq!(t.wave(4), "___HH");
        // A count written while the gate is low is loaded all the same.
        t.pit.set_gate2(false);
        t.count(false, 3);
        assert_eq!(t.counts(2), [3, 3]);
        t.pit.set_gate2(true);
        assert_eq!(t.wave(4), "___HH", "N pulses after the gate");
    }

    #[test]
    fn mode_1_hardware_retriggerable_one_shot() {
        for bcd in [false, true] {
            let mut t = Test::started(1, bcd, 12);
            assert_eq!(t.wave(3), "HHHH");
            let trigger = |t: &mut Test| {
                t.pit.set_gate2(false);
                t.pit.set_gate2(true);
            };
            trigger(&mut t);
            t.pit.set_gate2(false);
            assert_eq!(t.wave(14), "H____________HH", "one shot of N pulses, whatever the gate");
            trigger(&mut t);
            assert_eq!(t.wave(5), "H_____");
            t.count(bcd, 2);
            assert_eq!(t.wave(3), "____", "a new count waits for the trigger");
            assert_eq!(t.read(), encode(bcd, 12 - 7));
            trigger(&mut t);
            assert_eq!(t.wave(4), "___HH");
        }
    }

    #[test]
    fn mode_2_rate_generator() {
        for mode in [2, 6] {
            for bcd in [false, true] {
                let mut t = Test::started(mode, bcd, 3);
                assert_eq!(t.wave(9), "HHH_HH_HH_", "low N pulses after the write, period N");
                let mut t = Test::started(mode, bcd, 3);
                assert_eq!(t.counts(5), [3, 2, 1, 3, 2]);
                // A new count takes effect at the end of the cycle.
                t.count(bcd, 12);
                assert_eq!(t.counts(3), [1, encode(bcd, 12), encode(bcd, 11)]);
            }
        }
    }

    #[test]
    fn mode_2_gate_raises_out_and_restarts() {
        let mut t = Test::started(2, false, 3);
        t.pass(3);
        assert!(!t.pit.out(2));
        t.pit.set_gate2(false);
        assert_eq!(t.wave(5), "HHHHHH");
        t.pit.set_gate2(true);
        assert_eq!(t.wave(6), "HHH_HH_");
        // With the gate low the first count is loaded and not counted.
        t.pit.set_gate2(false);
        t.control(2, false);
        t.count(false, 5);
        assert_eq!(t.counts(3), [5, 5, 5]);
    }

    #[test]
    fn mode_3_square_wave() {
        for mode in [3, 7] {
            for bcd in [false, true] {
                let mut t = Test::started(mode, bcd, 4);
                assert_eq!(t.wave(10), "HHH__HH__HH");
                let mut t = Test::started(mode, bcd, 4);
                assert_eq!(t.counts(5), [4, 2, 4, 2, 4]);
                let mut t = Test::started(mode, bcd, 5);
                assert_eq!(t.wave(11), "HHHH__HHH__H", "(N + 1) / 2 high, (N - 1) / 2 low");
                let mut t = Test::started(mode, bcd, 5);
                assert_eq!(t.counts(7), [4, 2, 0, 4, 2, 4, 2]);
                // A new count takes effect at the end of the half-cycle.
                let mut t = Test::started(mode, bcd, 4);
                t.pass(2);
                t.count(bcd, 12);
                assert_eq!(t.wave(14), "H______HHHHHH__");
            }
        }
    }

    #[test]
    fn mode_3_gate_raises_out_and_restarts() {
        let mut t = Test::started(3, false, 6);
        t.pass(5);
        assert!(!t.pit.out(2));
        t.pit.set_gate2(false);
        assert_eq!(t.wave(4), "HHHHH");
        t.pit.set_gate2(true);
        assert_eq!(t.wave(7), "HHHH___H");
    }

    #[test]
    fn mode_4_software_triggered_strobe() {
        for bcd in [false, true] {
            let mut t = Test::started(4, bcd, 3);
            assert_eq!(t.wave(7), "HHHH_HHH", "low for one pulse, N + 1 after the write");
            let last = encode(bcd, if bcd { 9_999 } else { 65_535 });
            let mut t = Test::started(4, bcd, 3);
            assert_eq!(t.counts(5), [3, 2, 1, 0, last]);
            // The first byte of a new count changes nothing, the second starts anew.
            t.pit.write(2, 2);
            assert_eq!(t.counts(1), [last - 1]);
            t.pit.write(2, 0);
            assert_eq!(t.wave(5), "HHH_HH");
            t.pass(200_000);
            assert!(t.pit.out(2), "there is one strobe only");
        }
    }

    #[test]
    fn mode_4_gate_holds_the_count_and_not_the_strobe() {
        let mut t = Test::started(4, false, 3);
        t.pit.set_gate2(false);
        assert_eq!(t.counts(3), [3, 3, 3]);
        t.pit.set_gate2(true);
        assert_eq!(t.wave(3), "HHH_");
        t.pit.set_gate2(false);
        assert_eq!(t.wave(3), "_HHH");
    }

    #[test]
    fn mode_5_hardware_triggered_strobe() {
        for bcd in [false, true] {
            let mut t = Test::started(5, bcd, 3);
            assert_eq!(t.wave(6), "HHHHHHH", "nothing happens without a trigger");
            for _ in 0..2 {
                t.pit.set_gate2(false);
                t.pit.set_gate2(true);
                t.pit.set_gate2(false);
                assert_eq!(t.wave(6), "HHHH_HH", "N + 1 pulses after the trigger");
            }
            t.pit.set_gate2(true);
            t.pass(2);
            t.pit.set_gate2(false);
            t.pit.set_gate2(true);
            assert_eq!(t.wave(5), "HHHH_H", "it can be triggered anew");
        }
    }

    #[test]
    fn zero_is_the_largest_count() {
        for (bcd, largest) in [(false, 65_536), (true, 10_000)] {
            let mut t = Test::started(0, bcd, 0);
            t.pass(largest);
            assert!(!t.pit.out(2));
            t.pass(1);
            assert!(t.pit.out(2));
            let mut t = Test::started(2, bcd, 0);
            assert_eq!(t.counts(2), [0, encode(bcd, largest - 1)]);
            t.pass(largest - 2);
            assert_eq!(t.wave(1), "_H");
        }
    }

    #[test]
    fn a_count_of_one_in_modes_2_and_3_is_harmless() {
        for mode in [2, 3] {
            let mut t = Test::started(mode, false, 1);
            assert_eq!(t.wave(4), "HHHHH");
            t.pit.write(3, 0x10 | mode << 1);
            t.pit.write(0, 1);
            assert_eq!(t.pit.deadline(), None);
        }
    }

    #[test]
    fn single_byte_counts() {
        let mut t = Test::new();
        t.pit.write(3, 0x90);
        t.pit.write(2, 3);
        assert_eq!(t.wave(5), "____HH");
        t.pit.write(2, 0x80);
        t.pass(1);
        assert_eq!((t.pit.read(2), t.pit.read(2)), (0x80, 0x80));
        t.pit.write(3, 0xA0);
        t.pit.write(2, 0x02);
        t.pass(2);
        assert_eq!((t.pit.read(2), t.pit.read(2)), (0x01, 0x01));
        t.pass(0x1FF);
        assert!(t.pit.out(2));
    }

    #[test]
    fn the_latch_holds_until_it_is_read() {
        let mut t = Test::started(2, false, 0x1234);
        t.pass(5);
        t.pit.write(3, 0x80);
        t.pass(5);
        t.pit.write(3, 0x80);
        assert_eq!((t.read(), t.read()), (0x1230, 0x122B));
        // Programming ends a latch.
        t.pit.write(3, 0x80);
        t.control(2, false);
        t.count(false, 0x4321);
        t.pass(1);
        assert_eq!(t.read(), 0x4321);
    }

    #[test]
    fn read_back_latches_count_and_status_of_many() {
        let mut t = Test::new();
        t.pit.write(3, 0x14); // counter 0: LSB, mode 2
        t.pit.write(0, 9);
        t.control(3, true);
        t.count(true, 40);
        t.pit.write(3, 0xCA); // count and status of 0 and 2
        assert_eq!(t.pit.read(0), 0x80 | 0x40 | 0x14, "OUT high, null count");
        t.pass(3);
        assert_eq!(t.pit.read(2), 0xF7, "the status comes before the count");
        t.read();
        t.pit.write(3, 0xEA); // status only
        assert_eq!([0; 3].map(|counter| t.pit.read(counter)), [0x94, 0, 7]);
        assert_eq!(t.pit.read(2), 0xB7);
        t.pit.write(3, 0xDC); // count of 1 and 2 only
        t.pass(10);
        assert_eq!(t.read(), 0x36);
        t.pit.write(3, 0xEE);
        t.pit.write(3, 0xEE);
        t.pass(20);
        assert_eq!(t.pit.read(2), 0x37 | 0x80, "a latched status stays");
    }

    #[test]
    fn null_count_shows_until_the_count_is_loaded() {
        let mut t = Test::new();
        let null = |t: &mut Test| {
            t.pit.write(3, 0xE8);
            t.pit.read(2) & 0x40 != 0
        };
        t.control(2, false);
        assert!(null(&mut t));
        t.count(false, 10);
        assert!(null(&mut t));
        t.pass(1);
        assert!(!null(&mut t));
        t.pit.write(2, 7);
        assert!(!null(&mut t), "half a count is none");
        t.pit.write(2, 0);
        assert!(null(&mut t));
        t.pass(10);
        assert!(!null(&mut t));
    }

    #[test]
    fn the_control_word_reads_as_ones_and_sets_out() {
        let mut t = Test::new();
        assert_eq!(t.pit.read(3), 0xFF);
        for (mode, level) in [(0, false), (1, true), (2, true), (3, true), (4, true), (5, true)] {
            t.control(mode, false);
            assert_eq!(t.pit.out(2), level);
        }
    }

    #[test]
    fn a_stopped_timer_needs_no_timer() {
        let mut pit = I8254::new();
        assert_eq!(pit.deadline(), None);
        // How Linux shuts it down: mode 0, and once the count is over there is silence.
        for (offset, value) in [(3, 0x30), (0, 0), (0, 0)] {
            pit.write(offset, value);
        }
        let due = pit.deadline().unwrap();
        assert_eq!(due.ticks(PIT_HZ), 65_537);
        pit.evaluate(due);
        assert!(pit.take_rise());
        assert_eq!(pit.deadline(), None);
    }

    /// A timer that jumps over time is in the same state as one that takes each pulse by itself,
    /// and OUT rises just when it was foretold.
    #[test]
    fn jumps_and_steps_agree_under_random_programs() {
        let mut random = Random::new(8254);
        let (mut jump, mut step) = (I8254::new(), I8254::new());
        let mut tick = 0;
        for _ in 0..60_000 {
            let (kind, offset, value) = (random.below(10), random.below(4), random.byte());
            let value = match kind {
                // Short counts make many cycles.
                0..=4 if offset != 3 => value % 12,
                _ => value,
            };
            for pit in [&mut jump, &mut step] {
                match kind {
                    0..=5 => pit.write(offset, value),
                    6 | 7 => drop(pit.read(offset)),
                    _ => pit.set_gate2(value & 1 != 0),
                }
                pit.take_rise();
            }
            let pulses = match random.below(20) {
                0 => random.below(3_000),
                _ => random.below(30),
            };
            let foretold = jump.deadline().map(|at| at.ticks(PIT_HZ));
            let mut first_rise = None;
            for at in tick + 1..=tick + pulses {
                let low = !step.out(0);
                step.evaluate(VmTime::at_tick(at, PIT_HZ));
                assert_eq!(step.take_rise(), low && step.out(0));
                if low && step.out(0) {
                    first_rise.get_or_insert(at);
                }
            }
            tick += pulses;
            jump.evaluate(VmTime::at_tick(tick, PIT_HZ));
            assert_eq!(jump.save(), step.save());
            assert_eq!(jump.take_rise(), first_rise.is_some());
            assert_eq!(foretold.filter(|&at| at <= tick), first_rise);
            let saved = jump.save();
            jump.restore(saved.clone()).unwrap();
            assert_eq!(jump.save(), saved);
        }
    }

    #[test]
    fn impossible_states_are_refused() {
        let good = Test::started(2, false, 100).pit.save();
        let refused = |change: fn(&mut CounterV1)| {
            let mut state = good.clone();
            change(&mut state[2]);
            let mut pit = I8254::new();
            pit.restore(state).is_err() && pit.save() == I8254::new().save()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|c| c.loaded = 0));
        assert!(refused(|c| c.counted = 65_536));
        assert!(refused(|c| c.control = 0x04));
        assert!(refused(|c| c.load_at = Some(u64::MAX)));
        assert!(refused(|c| c.at = u64::MAX));
    }
}
