//! The VM clock driven by instructions (`--icount`).
//!
//! Each instruction takes 2^shift nanoseconds of the VM clock. The vCPU stops at the very
//! instruction that a virtual timer is due before, and runs it there, so that a run repeats
//! exactly. Where the count and with it the clock can be seen, they are exact:
//! - RDTSC and instructions that reach a device end their blocks, or start again in a block of
//!   their own (see [`Cpu::alone`]);
//! - the last instructions before a deadline are executed one by one.
//!
//! A string instruction counts as one. An instruction that faults counts when the exception is
//! delivered, so that time goes on even where nothing else does.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use board::{LoopHandle, VmTime};

use crate::cpu::Cpu;
use crate::fault::{Res, Stop, Why};

/// How the VM clock follows the instructions of the one vCPU.
#[derive(Clone)]
pub struct Counting {
    /// The loop whose clock is driven.
    pub events: LoopHandle,
    /// An instruction takes 2^shift nanoseconds; 10 at most.
    pub shift: u32,
    /// A halted vCPU sleeps until the next deadline, else the clock jumps there at once.
    pub sleep: bool,
}

/// The largest [`Counting::shift`].
pub(crate) const MAX_SHIFT: u32 = 10;

/// The state of it.
pub(crate) struct Count {
    how: Counting,
    /// The clock showed `time` when `at` instructions had been executed.
    time: VmTime,
    at: u64,
    /// Timers are not run again before this count: what they arm anew for the past must not keep
    /// the guest from executing.
    not_before: u64,
    /// Whether the vCPU is in `run`: the clock is not its to set otherwise.
    running: bool,
}

impl Count {
    pub(crate) fn new(how: Counting) -> Self {
        let how = Counting { shift: how.shift.min(MAX_SHIFT), ..how };
        Self { how, time: VmTime::ZERO, at: 0, not_before: 0, running: false }
    }

    fn time_at(&self, icount: u64) -> VmTime {
        let nanos = icount.saturating_sub(self.at).saturating_mul(1 << self.how.shift);
        VmTime(self.time.nanos().saturating_add(nanos))
    }

    /// The first count at which the clock shows `time` or more.
    fn count_at(&self, time: VmTime) -> u64 {
        let nanos = time.nanos().saturating_sub(self.time.nanos());
        self.at.saturating_add(nanos.div_ceil(1 << self.how.shift))
    }

    fn set_time(&mut self, time: VmTime, icount: u64) {
        (self.time, self.at) = (time, icount);
    }
}

impl Cpu {
    /// Brings the VM clock up to the instructions executed.
    #[inline]
    pub(crate) fn publish(&self) {
        if let Some(count) = &self.count
            && count.running
        {
            count.how.events.clock().drive(count.time_at(self.icount));
        }
    }

    /// The VM clock.
    pub(crate) fn now(&self) -> VmTime {
        self.publish();
        self.clock.now()
    }

    /// `run` begins.
    pub(crate) fn begin_count(&mut self) {
        if let Some(count) = &mut self.count {
            count.set_time(self.clock.now(), self.icount);
            count.running = true;
        }
        // The brakes are looked at, too.
        self.mailbox.attention.store(true, Ordering::SeqCst);
        self.plan();
    }

    /// `run` ends.
    pub(crate) fn end_count(&mut self) {
        self.publish();
        if let Some(count) = &mut self.count {
            count.running = false;
        }
    }

    /// Sets the count at which timers are to be run next.
    pub(crate) fn plan(&mut self) {
        if let Some(count) = &self.count {
            // Work that is queued is due now, by a clock that is up to date.
            self.publish();
            let next = count.how.events.next_driven();
            self.due = next.map_or(u64::MAX, |at| count.count_at(at)).max(count.not_before);
        }
    }

    /// Runs the timers that are due.
    pub(crate) fn run_due(&mut self) {
        self.publish();
        if let Some(count) = &mut self.count {
            count.not_before = self.icount + 1;
        }
        let outside = self.io();
        if let Some(count) = &self.count {
            count.how.events.run_driven();
        }
        drop(outside);
        self.plan();
    }

    /// Waits while the host is behind. True: it was, and something wants attention.
    pub(crate) fn wait_for_host(&mut self) -> bool {
        let braked = self.count.as_ref().is_some_and(|count| count.how.events.is_braked());
        if braked {
            self.mailbox.wait();
        }
        braked
    }

    /// The vCPU is halted: passes the time until the next timer, and runs it; or until something
    /// else comes up.
    pub(crate) fn idle(&mut self) {
        let icount = self.icount;
        let Some(count) = &mut self.count else { return };
        let now = count.time_at(icount);
        let next = count.how.events.next_driven();
        let begun = Instant::now();
        let wait = next.map(|at| at.since(now));
        let mut woken = self.mailbox.attention.load(Ordering::SeqCst);
        if !woken && (count.how.sleep || next.is_none()) {
            woken = self.mailbox.wait_for(wait.unwrap_or(Duration::MAX));
        }
        if woken {
            // The clock has gone on with the host's, up to the deadline, which the next call meets.
            if count.how.sleep {
                let passed = begun.elapsed().min(wait.unwrap_or(Duration::MAX));
                count.set_time(now + passed, icount);
            }
            return self.plan();
        }
        // A timer that is armed for the past again and again does not stop the clock.
        let least = now + Duration::from_nanos(1 << count.how.shift);
        count.set_time(next.map_or(now, |at| at.max(least)), icount);
        self.run_due();
    }

    /// Before a device is reached from an instruction in the middle of a block: has it start again
    /// in a block of its own, where the count is exact.
    ///
    /// # Errors
    /// [`Stop`], to be passed on, when it is to start again.
    #[inline]
    pub(crate) fn alone(&mut self) -> Res {
        if self.count.is_none() || self.solo {
            return Ok(());
        }
        self.solo_next = true;
        self.stop = Some(Why::Again);
        Err(Stop)
    }
}
