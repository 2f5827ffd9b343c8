//! Time as the machine sees it.
//!
//! The VM clock counts nanoseconds while the machine runs and stands still while it is stopped;
//! every chip with a counter derives it from this clock. The realtime clock never stops; it serves
//! things that belong to the host, such as a cursor that blinks or a connection that times out.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on one of the machine's clocks. For the VM clock zero is the moment the machine
/// was created; 2^64 ns are 584 years.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct VmTime(pub u64);

impl VmTime {
    /// The moment at which the clock started.
    pub const ZERO: Self = Self(0);

    /// Nanoseconds since the clock started.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` lies in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Ticks of a counter of `hz` since the clock started, rounded down.
    pub const fn ticks(self, hz: u64) -> u64 {
        (self.0 as u128 * hz as u128 / 1_000_000_000) as u64
    }

    /// The first moment at which a counter of `hz`, started with the clock, has made `ticks`.
    pub const fn at_tick(ticks: u64, hz: u64) -> Self {
        Self((ticks as u128 * 1_000_000_000).div_ceil(hz as u128) as u64)
    }
}

impl Add<Duration> for VmTime {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for VmTime {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for VmTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Which of the machine's two clocks a timer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClockKind {
    /// Stops while the machine is stopped.
    Virtual,
    /// Never stops.
    Realtime,
}

/// Host CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

const RUNNING: u64 = u64::MAX;

struct Inner {
    /// It shows what [`Clock::drive`] says, whether it is started or not.
    driven: bool,
    /// Clock time minus CLOCK_MONOTONIC, valid while the clock runs.
    offset: AtomicI64,
    /// The time at which the clock stands, or `RUNNING`.
    frozen: AtomicU64,
}

/// A handle to a clock; clones show the same time.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

impl Clock {
    /// A clock that stands at zero. [`Clock::start`] makes it run.
    pub fn stopped() -> Self {
        Self::make(false)
    }

    /// A clock at zero that only [`Clock::drive`] moves: the instructions that a vCPU executes
    /// (`--icount`).
    pub fn driven() -> Self {
        Self::make(true)
    }

    fn make(driven: bool) -> Self {
        Self(Arc::new(Inner { driven, offset: AtomicI64::new(0), frozen: AtomicU64::new(0) }))
    }

    /// A clock that runs from zero.
    pub fn running() -> Self {
        let clock = Self::stopped();
        clock.start();
        clock
    }

    /// The time now.
    pub fn now(&self) -> VmTime {
        match self.0.frozen.load(Ordering::Acquire) {
            RUNNING => {
                VmTime(monotonic().wrapping_add_signed(self.0.offset.load(Ordering::Relaxed)))
            }
            frozen => VmTime(frozen),
        }
    }

    /// Whether the clock advances by itself.
    pub fn is_running(&self) -> bool {
        self.0.frozen.load(Ordering::Acquire) == RUNNING
    }

    /// Whether [`Clock::drive`] moves it, and nothing else.
    pub fn is_driven(&self) -> bool {
        self.0.driven
    }

    /// Moves a driven clock to `time`. Only the thread that drives it calls this, and only while
    /// the machine runs.
    pub fn drive(&self, time: VmTime) {
        debug_assert!(self.is_driven());
        self.0.frozen.store(time.0, Ordering::Release);
    }

    /// Lets the clock run on from where it stands. No effect if it runs, or is driven.
    pub fn start(&self) {
        if self.is_driven() {
            return;
        }
        let frozen = self.0.frozen.load(Ordering::Acquire);
        if frozen != RUNNING {
            self.0.offset.store(frozen.wrapping_sub(monotonic()) as i64, Ordering::Relaxed);
            self.0.frozen.store(RUNNING, Ordering::Release);
        }
    }

    /// Makes the clock stand still. No effect if it does.
    pub fn stop(&self) {
        self.0.frozen.store(self.now().0, Ordering::Release);
    }

    /// Sets a clock that stands still to `time`. Tests and restored snapshots use it.
    ///
    /// # Panics
    /// If the clock runs.
    pub fn set(&self, time: VmTime) {
        assert!(!self.is_running(), "only a stopped clock can be set");
        self.0.frozen.store(time.0, Ordering::Release);
    }

    /// CLOCK_MONOTONIC at the moment when this clock will show `at`; `None` while it stands still.
    pub(crate) fn to_monotonic(&self, at: VmTime) -> Option<u64> {
        self.is_running().then(|| at.0.wrapping_add_signed(-self.0.offset.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_stands_and_goes_on_from_there() {
        let clock = Clock::stopped();
        clock.set(VmTime(5_000));
        assert_eq!(clock.now(), VmTime(5_000));
        clock.start();
        std::thread::sleep(Duration::from_millis(2));
        clock.stop();
        let stopped_at = clock.now();
        assert!(stopped_at.since(VmTime(5_000)) >= Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(clock.now(), stopped_at);
    }

    #[test]
    fn a_driven_clock_moves_when_it_is_driven() {
        let clock = Clock::driven();
        clock.start();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!((clock.now(), clock.is_running()), (VmTime::ZERO, false));
        clock.drive(VmTime(7));
        clock.stop();
        assert_eq!(clock.now(), VmTime(7));
        assert_eq!(clock.to_monotonic(VmTime(8)), None);
    }

    #[test]
    fn ticks_and_moments_are_inverse() {
        const PIT_HZ: u64 = 1_193_182;
        for ticks in [0, 1, 2, 65_535, 65_536, 1_193_182, 10_000_000_000] {
            assert_eq!(VmTime::at_tick(ticks, PIT_HZ).ticks(PIT_HZ), ticks);
            if ticks > 0 {
                let just_before = VmTime(VmTime::at_tick(ticks, PIT_HZ).0 - 1);
                assert_eq!(just_before.ticks(PIT_HZ), ticks - 1);
            }
        }
    }
}
