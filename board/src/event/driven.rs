//! Events at exact instruction counts (`--icount`).
//!
//! Where the VM clock is driven ([`Clock::driven`](crate::Clock::driven)), the loop leaves virtual
//! timers alone. Who drives the clock, a vCPU's thread, runs them when the clock has come to their
//! deadline, and so they act between two instructions that are the same in each run. The same
//! thread runs what the guest has asked a device for (see
//! [`Attach::queue_notifier`](crate::Attach::queue_notifier)).
//!
//! What comes from the host (input, realtime timers, the monitor) stays with the loop: it comes
//! when it comes. Output that the host does not take must not show in the guest either, so instead
//! of a register that says "not yet" it pulls a [`Brake`]: the vCPU waits, and its clock with it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::{EventTarget, LoopHandle, Shared, Tag, lock};
use crate::time::{ClockKind, VmTime};

type Work = VecDeque<(Weak<dyn EventTarget>, Tag)>;

/// Who drives the clock, and what waits for it.
#[derive(Default)]
pub(super) struct Driver {
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    queue: Mutex<Work>,
    brakes: AtomicUsize,
}

impl Driver {
    /// Has the driver look at its deadline, its queue and the brakes.
    pub(super) fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl LoopHandle {
    /// Names who drives the clock. `wake` is called, from any thread and with locks held, when a
    /// virtual timer has been armed, work has been queued or a brake has changed. Only the first
    /// call counts: a machine with a driven clock has one vCPU.
    pub fn set_driver(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.driver.wake.set(Box::new(wake));
    }

    /// Runs the virtual timers that are due and the work that is queued, on the caller's thread,
    /// which drives the clock. What they queue anew waits for the next call.
    pub fn run_driven(&self) {
        let mut due = std::mem::take(&mut *lock(&self.0.driver.queue));
        due.extend(lock(&self.0.timers).take_due(ClockKind::Virtual, self.0.clock.now()));
        for (target, tag) in due {
            if let Some(target) = target.upgrade() {
                target.event(tag, self.0.clock.now());
            }
        }
    }

    /// When [`LoopHandle::run_driven`] has something to do next.
    pub fn next_driven(&self) -> Option<VmTime> {
        if !lock(&self.0.driver.queue).is_empty() {
            return Some(self.0.clock.now());
        }
        lock(&self.0.timers).virtual_queue.first().map(|&(at, _)| at)
    }

    /// Whether the driver is to wait between two instructions.
    pub fn is_braked(&self) -> bool {
        self.0.driver.brakes.load(Ordering::SeqCst) > 0
    }

    /// A brake, released.
    pub fn brake(&self) -> Brake {
        Brake { shared: self.0.clone(), pulled: AtomicBool::new(false) }
    }

    /// As [`LoopHandle::post_event`]; but where the clock is driven, its driver makes the call,
    /// before the guest executes another instruction.
    pub(crate) fn post_driven(&self, target: Weak<dyn EventTarget>, tag: Tag) {
        if self.0.clock.is_driven() {
            lock(&self.0.driver.queue).push_back((target, tag));
            self.0.driver.wake();
        } else {
            self.post_event(target, tag);
        }
    }
}

/// Holds the vCPU that drives the clock while the host is behind. Without a driven clock it has no
/// effect. Dropping it releases it.
pub struct Brake {
    shared: Arc<Shared>,
    pulled: AtomicBool,
}

impl Brake {
    /// Pulls or releases the brake.
    pub fn set(&self, pull: bool) {
        if self.pulled.swap(pull, Ordering::SeqCst) == pull {
            return;
        }
        if pull {
            self.shared.driver.brakes.fetch_add(1, Ordering::SeqCst);
        } else {
            self.shared.driver.brakes.fetch_sub(1, Ordering::SeqCst);
        }
        self.shared.driver.wake();
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::EventLoop;
    use crate::time::Clock;

    /// Notes what it is called for and when.
    #[derive(Default)]
    struct Notes(Mutex<Vec<(u32, VmTime)>>);

    impl EventTarget for Notes {
        fn event(&self, tag: Tag, now: VmTime) {
            lock(&self.0).push((tag.0, now));
        }
    }

    #[test]
    fn the_driver_runs_virtual_timers_and_the_loop_does_not() {
        let clock = Clock::driven();
        let mut events = EventLoop::new(clock.clone()).unwrap();
        let handle = events.handle();
        let notes = Arc::new(Notes::default());
        let target: Arc<dyn EventTarget> = notes.clone();
        let weak = Arc::downgrade(&target);
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        handle.set_driver(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });

        let timer = handle.timer(ClockKind::Virtual, weak.clone(), Tag(1));
        timer.arm(VmTime(100));
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!(handle.next_driven(), Some(VmTime(100)));
        clock.drive(VmTime(150));
        handle.clock_changed();
        events.turn(Some(Duration::from_millis(2))).unwrap();
        assert!(lock(&notes.0).is_empty(), "the loop leaves it alone");
        handle.post_driven(weak, Tag(2));
        assert_eq!(handle.next_driven(), Some(VmTime(150)));
        handle.run_driven();
        assert_eq!(*lock(&notes.0), [(2, VmTime(150)), (1, VmTime(150))]);
        assert_eq!(handle.next_driven(), None);
    }

    #[test]
    fn brakes_add_up() {
        let events = EventLoop::new(Clock::driven()).unwrap();
        let handle = events.handle();
        let (a, b) = (handle.brake(), handle.brake());
        a.set(true);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(handle.is_braked());
        drop(b);
        assert!(!handle.is_braked());
    }
}
