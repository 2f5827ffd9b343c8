//! The timer of a local APIC (Intel SDM vol. 3, 11.5.4), as a pure register machine.
//!
//! The counter runs at 1 GHz before it is divided, as KVM's does, so that one undivided tick is one
//! nanosecond of the VM clock.

use board::VmTime;

/// Bits 17 and 18 of the timer's entry in the local vector table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// The counter stops at zero.
    #[default]
    OneShot,
    /// The counter starts over at zero.
    Periodic,
    /// The interrupt comes when the TSC has reached IA32_TSC_DEADLINE. The processor, which has the
    /// TSC, says when that is.
    TscDeadline,
    /// The value 3: nothing runs.
    Reserved,
}

impl Mode {
    pub(super) fn of(lvt: u32) -> Self {
        [Self::OneShot, Self::Periodic, Self::TscDeadline, Self::Reserved][(lvt >> 17 & 3) as usize]
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The shortest period, in nanoseconds: no guest keeps the main loop busy by a faster one.
const MIN_PERIOD: u64 = 100_000;

/// The timer.
#[derive(Debug, Default)]
pub(super) struct Timer {
    mode: Mode,
    /// Initial count.
    initial: u32,
    /// Divide configuration.
    divide: u32,
    /// When the counter reaches zero; `None` while it stands there.
    zero_at: Option<VmTime>,
    /// The moment of the TSC deadline.
    deadline: Option<VmTime>,
}

impl Timer {
    /// After reset.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Changing to or from TSC-deadline mode disarms the timer.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode.counts() != self.mode.counts() {
            self.initial = 0;
            self.zero_at = None;
        }
        if mode != Mode::TscDeadline {
            self.deadline = None;
        }
        self.mode = mode;
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts the counter; 0 stops it. Ignored in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, initial: u32, now: VmTime) {
        if self.mode.counts() {
            self.initial = initial;
            self.start(initial, now);
        }
    }

    /// The counter now.
    pub(super) fn current(&self, now: VmTime) -> u32 {
        let left = self.zero_at.map_or(0, |at| at.nanos().saturating_sub(now.nanos()));
        left.div_ceil(self.divisor()).min(self.initial.into()) as u32
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Sets bits 0, 1 and 3 of the divide configuration; the counter goes on from where it stands.
    pub(super) fn set_divide(&mut self, divide: u32, now: VmTime) {
        let current = self.current(now);
        self.divide = divide & 0b1011;
        if self.zero_at.is_some() {
            self.start(current, now);
        }
    }

    pub(super) fn deadline(&self) -> Option<VmTime> {
        self.deadline
    }

    /// Sets the TSC deadline, which exists in TSC-deadline mode only.
    pub(super) fn set_deadline(&mut self, deadline: Option<VmTime>) {
        if self.mode == Mode::TscDeadline {
            self.deadline = deadline;
        }
    }

    /// Takes on a saved state whose counter stands at `current`.
    pub(super) fn restore(
        &mut self,
        mode: Mode,
        initial: u32,
        current: u32,
        divide: u32,
        now: VmTime,
    ) {
        *self = Self::new();
        self.mode = mode;
        self.divide = divide & 0b1011;
        if mode.counts() {
            self.initial = initial;
            // A periodic counter that was caught at zero is about to start over.
            let current = if mode == Mode::Periodic && current == 0 { initial } else { current };
            self.start(current.min(initial), now);
        }
    }

    /// Brings the timer up to `now`: whether it has expired since the last call, once or more.
    pub(super) fn evaluate(&mut self, now: VmTime) -> bool {
        let Some(at) = self.next().filter(|at| *at <= now) else { return false };
        match self.mode {
            Mode::Periodic => {
                let period = self.period();
                let missed = (now.nanos() - at.nanos()) / period;
                self.zero_at = Some(VmTime(at.nanos() + (missed + 1) * period));
            }
            Mode::TscDeadline => self.deadline = None,
            _ => self.zero_at = None,
        }
        true
    }

    /// When the timer expires next.
    pub(super) fn next(&self) -> Option<VmTime> {
        match self.mode {
            Mode::TscDeadline => self.deadline,
            Mode::Reserved => None,
            Mode::OneShot | Mode::Periodic => self.zero_at,
        }
    }

    fn start(&mut self, count: u32, now: VmTime) {
        let mut nanos = u64::from(count) * self.divisor();
        if self.mode == Mode::Periodic && count == self.initial {
            nanos = self.period();
        }
        self.zero_at = (count != 0).then(|| VmTime(now.nanos().saturating_add(nanos)));
    }

    fn period(&self) -> u64 {
        (u64::from(self.initial) * self.divisor()).max(MIN_PERIOD)
    }

    /// Bits 3, 1 and 0: 000 divides by 2, 110 by 128, 111 by 1.
    fn divisor(&self) -> u64 {
        let power = ((self.divide >> 1 & 0b100 | self.divide & 0b011) + 1) & 0b111;
        1 << power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn counting(mode: Mode, initial: u32, divide: u32) -> Timer {
        let mut timer = Timer::new();
        timer.set_mode(mode);
        timer.set_divide(divide, VmTime::ZERO);
        timer.set_initial(initial, VmTime::ZERO);
        timer
    }

    #[test]
    fn divisors_are_those_of_the_table() {
        for (divide, divisor) in
            [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
        {
            let timer = counting(Mode::OneShot, 1000, divide);
            assert_eq!(timer.next(), Some(VmTime(1000 * divisor)), "{divide:#b}");
            assert_eq!(timer.current(VmTime(10 * divisor)), 990);
        }
    }

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = counting(Mode::OneShot, 5_000_000, 11);
        assert!(!timer.evaluate(VmTime(5 * MS - 1)));
        assert_eq!(timer.current(VmTime(5 * MS - 1)), 1);
        assert!(timer.evaluate(VmTime(5 * MS)));
        assert_eq!((timer.current(VmTime(6 * MS)), timer.next()), (0, None));
        assert_eq!(timer.initial(), 5_000_000);
        assert!(!timer.evaluate(VmTime(60 * MS)));
    }

    #[test]
    fn a_periodic_count_starts_over_and_lost_periods_are_one() {
        let mut timer = counting(Mode::Periodic, 1_000_000, 11);
        assert!(timer.evaluate(VmTime(MS)));
        assert_eq!(timer.current(VmTime(MS)), 1_000_000);
        assert!(!timer.evaluate(VmTime(2 * MS - 1)));
        assert!(timer.evaluate(VmTime(7 * MS + 5)));
        assert_eq!(timer.next(), Some(VmTime(8 * MS)));
        timer.set_initial(0, VmTime(8 * MS));
        assert!(!timer.evaluate(VmTime(100 * MS)));
    }

    #[test]
    fn a_tiny_period_is_stretched() {
        let mut timer = counting(Mode::Periodic, 1, 11);
        assert_eq!((timer.next(), timer.current(VmTime::ZERO)), (Some(VmTime(MIN_PERIOD)), 1));
        assert!(timer.evaluate(VmTime(MIN_PERIOD)));
        assert_eq!(timer.next(), Some(VmTime(2 * MIN_PERIOD)));
    }

    #[test]
    fn a_new_divisor_keeps_the_count() {
        let mut timer = counting(Mode::OneShot, 1000, 11);
        timer.set_divide(3, VmTime(400));
        assert_eq!(timer.current(VmTime(400)), 600);
        assert_eq!(timer.next(), Some(VmTime(400 + 600 * 16)));
    }

    #[test]
    fn a_deadline_comes_once() {
        let mut timer = Timer::new();
        timer.set_deadline(Some(VmTime(5)));
        assert_eq!(timer.deadline(), None, "not in this mode");
        timer.set_mode(Mode::TscDeadline);
        timer.set_deadline(Some(VmTime(5)));
        assert!(!timer.evaluate(VmTime(4)));
        assert!(timer.evaluate(VmTime(5)));
        assert_eq!((timer.deadline(), timer.next()), (None, None));
        assert!(!timer.evaluate(VmTime(6)));
    }

    #[test]
    fn a_change_to_or_from_deadline_mode_disarms() {
        let mut timer = counting(Mode::Periodic, 1_000_000, 11);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.next(), Some(VmTime(MS)), "it goes on counting");
        timer.set_mode(Mode::TscDeadline);
        assert_eq!((timer.next(), timer.initial()), (None, 0));
        timer.set_initial(7, VmTime::ZERO);
        assert_eq!(timer.initial(), 0);
        timer.set_deadline(Some(VmTime(9)));
        timer.set_mode(Mode::OneShot);
        assert_eq!((timer.next(), timer.deadline()), (None, None));
    }

    #[test]
    fn a_restored_counter_goes_on() {
        let mut timer = Timer::new();
        timer.restore(Mode::Periodic, 2_000_000, 500_000, 11, VmTime(3 * MS));
        assert_eq!(timer.current(VmTime(3 * MS)), 500_000);
        assert!(timer.evaluate(VmTime(3 * MS + MS / 2)));
        assert_eq!(timer.next(), Some(VmTime(5 * MS + MS / 2)));
        timer.restore(Mode::OneShot, 2_000_000, 0, 11, VmTime(0));
        assert_eq!(timer.next(), None);
    }
}
