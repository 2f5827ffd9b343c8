//! The event loop: fds, timers, and work handed over from other threads, on one thread.
//!
//! Everything that the loop calls is an [`EventTarget`] under its own lock; the loop itself owns no
//! state of theirs. mio tells of readiness once, at its edge, and rounds timeouts up to a
//! millisecond. Therefore the loop remembers readiness until a target says that it has drained the
//! fd, which makes a [`Watch`] level-triggered to its user, and timers go through one timerfd.

mod driven;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::time::{Clock, ClockKind, VmTime};

pub use driven::Brake;
use driven::Driver;

/// Which of a target's timers, fds or queues an event is about; the numbers are the target's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

/// What the loop calls. A device's [`crate::Slot`] is one; so are the monitor and the gdb stub.
pub trait EventTarget: Send + Sync {
    /// The event that `tag` names has come; `now` is the VM clock's time.
    fn event(&self, tag: Tag, now: VmTime);
}

bitflags::bitflags! {
    /// What an fd is ready for, or what its user wants to hear of.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Readiness: u8 {
        /// A read will not say WouldBlock.
        const READ = 1;
        /// A write will not say WouldBlock.
        const WRITE = 2;
    }
}

const TIMER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    registry: Registry,
    waker: Waker,
    clock: Clock,
    realtime: Clock,
    timerfd: OwnedFd,
    timers: Mutex<Timers>,
    watches: Mutex<Watches>,
    bells: Mutex<BTreeMap<usize, Recipient>>,
    inbox: Mutex<VecDeque<Work>>,
    exit: AtomicBool,
    /// Who runs virtual timers in place of the loop, where the clock is driven.
    driver: Driver,
    /// The thread that turns the loop; it looks into the inbox before it waits.
    thread: OnceLock<ThreadId>,
}

/// Whom an event goes to, and as what.
type Recipient = (Weak<dyn EventTarget>, Tag);

enum Work {
    Event(Weak<dyn EventTarget>, Tag),
    Watch(Weak<WatchState>),
}

/// A handle to an [`EventLoop`], for any thread.
#[derive(Clone)]
pub struct LoopHandle(Arc<Shared>);

/// The loop. One thread calls [`EventLoop::run`].
pub struct EventLoop {
    poll: Poll,
    events: Events,
    shared: Arc<Shared>,
}

impl EventLoop {
    /// A loop whose virtual timers follow `clock`.
    ///
    /// # Errors
    /// When the process has no fd left for the epoll, eventfd or timerfd.
    pub fn new(clock: Clock) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timerfd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let fd = timerfd.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        let shared = Arc::new(Shared {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            clock,
            realtime: Clock::running(),
            timerfd,
            timers: Mutex::default(),
            watches: Mutex::default(),
            bells: Mutex::default(),
            inbox: Mutex::default(),
            exit: AtomicBool::new(false),
            driver: Driver::default(),
            thread: OnceLock::new(),
        });
        Ok(Self { poll, events: Events::with_capacity(64), shared })
    }

    /// A handle for targets and other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle(self.shared.clone())
    }

    /// Runs until [`LoopHandle::exit`].
    ///
    /// # Errors
    /// What epoll_wait says, but for EINTR.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.shared.exit.load(Ordering::Acquire) {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Waits for something to happen, at most `timeout`, and handles what has happened.
    ///
    /// # Errors
    /// As [`EventLoop::run`].
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.thread.get_or_init(|| thread::current().id());
        let busy = !lock(&self.shared.inbox).is_empty();
        let timeout = if busy { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        for event in &self.events {
            match event.token() {
                TIMER => self.shared.run_timers(),
                WAKER => {}
                Token(id) => {
                    let watch = lock(&self.shared.watches).states.get(&id).and_then(Weak::upgrade);
                    let Some(watch) = watch else {
                        self.shared.ring(id);
                        continue;
                    };
                    let mut ready = Readiness::empty();
                    ready.set(
                        Readiness::READ,
                        event.is_readable() || event.is_read_closed() || event.is_error(),
                    );
                    ready.set(
                        Readiness::WRITE,
                        event.is_writable() || event.is_write_closed() || event.is_error(),
                    );
                    watch.ready.fetch_or(ready.bits(), Ordering::AcqRel);
                    self.shared.queue_if_due(&watch);
                }
            }
        }
        // What a handler queues waits for the next turn: no fd that is always ready starves others.
        let work = std::mem::take(&mut *lock(&self.shared.inbox));
        for item in work {
            match item {
                Work::Event(target, tag) => {
                    if let Some(target) = target.upgrade() {
                        target.event(tag, self.shared.clock.now());
                    }
                }
                Work::Watch(watch) => {
                    if let Some(watch) = watch.upgrade() {
                        self.shared.deliver(&watch);
                    }
                }
            }
        }
        Ok(())
    }
}

impl LoopHandle {
    /// Makes [`EventLoop::run`] return.
    pub fn exit(&self) {
        self.0.exit.store(true, Ordering::Release);
        self.0.wake();
    }

    /// Calls `target.event(tag, now)` once on the loop's thread.
    pub fn post_event(&self, target: Weak<dyn EventTarget>, tag: Tag) {
        self.0.push(Work::Event(target, tag));
    }

    /// A timer that ends in `target.event(tag, now)`. It is born unarmed.
    pub fn timer(&self, clock: ClockKind, target: Weak<dyn EventTarget>, tag: Tag) -> Timer {
        let mut timers = lock(&self.0.timers);
        let id = timers.next_id;
        timers.next_id += 1;
        timers.entries.insert(id, TimerEntry { clock, target, tag, deadline: None });
        drop(timers);
        Timer { shared: self.0.clone(), id, clock }
    }

    /// A watch on `fd`, which must stay open as long as the watch exists.
    ///
    /// # Errors
    /// What epoll_ctl says, but for EPERM (a regular file, which is ready at all times).
    pub fn watch(
        &self,
        fd: RawFd,
        interest: Readiness,
        target: Weak<dyn EventTarget>,
        tag: Tag,
    ) -> io::Result<Watch> {
        let mut watches = lock(&self.0.watches);
        let id = watches.next_id;
        watches.next_id += 1;
        let both = Interest::READABLE | Interest::WRITABLE;
        let pollable = match self.0.registry.register(&mut SourceFd(&fd), Token(id), both) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => false,
            Err(e) => return Err(e),
        };
        let ready = if pollable { Readiness::empty() } else { Readiness::all() };
        let state = Arc::new(WatchState {
            target,
            tag,
            pollable,
            ready: AtomicU8::new(ready.bits()),
            interest: AtomicU8::new(interest.bits()),
            queued: AtomicBool::new(false),
        });
        watches.states.insert(id, Arc::downgrade(&state));
        drop(watches);
        self.0.queue_if_due(&state);
        Ok(Watch { shared: self.0.clone(), id, fd, state })
    }

    /// An eventfd that calls `target.event(tag, now)` when it is rung.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn bell(&self, target: Weak<dyn EventTarget>, tag: Tag) -> io::Result<Bell> {
        let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let mut watches = lock(&self.0.watches);
        let id = watches.next_id;
        watches.next_id += 1;
        drop(watches);
        lock(&self.0.bells).insert(id, (target, tag));
        let bell = Bell { shared: self.0.clone(), id, fd };
        let raw = bell.fd.as_raw_fd();
        self.0.registry.register(&mut SourceFd(&raw), Token(id), Interest::READABLE)?;
        Ok(bell)
    }

    /// The clock that virtual timers follow.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The clock that realtime timers follow.
    pub fn realtime(&self) -> &Clock {
        &self.0.realtime
    }

    /// To be called after the VM clock was started, stopped or set: virtual timers follow it.
    pub fn clock_changed(&self) {
        self.0.set_timerfd(&mut lock(&self.0.timers), true);
    }
}

impl Shared {
    fn wake(&self) {
        // The eventfd's counter cannot overflow: mio resets it when it is full.
        let _ = self.waker.wake();
    }

    fn push(&self, work: Work) {
        let mut inbox = lock(&self.inbox);
        inbox.push_back(work);
        let first = inbox.len() == 1;
        drop(inbox);
        if first && self.thread.get() != Some(&thread::current().id()) {
            self.wake();
        }
    }

    fn run_timers(&self) {
        let mut expirations = [0; 8];
        // EAGAIN: the timerfd was set anew since epoll saw it. The queue below is what counts.
        let _ = rustix::io::read(&self.timerfd, &mut expirations);
        let mut timers = lock(&self.timers);
        timers.armed_at = None;
        let mut due = timers.take_due(ClockKind::Realtime, self.realtime.now());
        if !self.clock.is_driven() {
            due.extend(timers.take_due(ClockKind::Virtual, self.clock.now()));
        }
        self.set_timerfd(&mut timers, false);
        drop(timers);
        for (target, tag) in due {
            if let Some(target) = target.upgrade() {
                target.event(tag, self.clock.now());
            }
        }
    }

    /// Sets the timerfd to the earliest deadline, unless it is set to that already.
    fn set_timerfd(&self, timers: &mut Timers, always: bool) {
        let first = |queue: &BTreeSet<(VmTime, u64)>, clock: &Clock| {
            queue.first().and_then(|&(at, _)| clock.to_monotonic(at))
        };
        let next = first(&timers.virtual_queue, &self.clock)
            .into_iter()
            .chain(first(&timers.realtime_queue, &self.realtime))
            .min();
        if next == timers.armed_at && !always {
            return;
        }
        timers.armed_at = next;
        // An absolute time of zero would disarm it; one nanosecond is as much in the past.
        let ns = next.map_or(0, |ns| ns.max(1));
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: (ns / 1_000_000_000) as i64,
                tv_nsec: (ns % 1_000_000_000) as i64,
            },
        };
        // It fails only for a bad fd or a time that is not normalised.
        let _ = timerfd_settime(self.timerfd.as_fd(), TimerfdTimerFlags::ABSTIME, &spec);
    }

    /// The eventfd of bell `id` was written to.
    fn ring(&self, id: usize) {
        if let Some((target, tag)) = lock(&self.bells).get(&id).cloned() {
            self.push(Work::Event(target, tag));
        }
    }

    fn queue_if_due(&self, watch: &Arc<WatchState>) {
        if watch.due() && !watch.queued.swap(true, Ordering::AcqRel) {
            self.push(Work::Watch(Arc::downgrade(watch)));
        }
    }

    fn deliver(&self, watch: &Arc<WatchState>) {
        watch.queued.store(false, Ordering::Release);
        if watch.due()
            && let Some(target) = watch.target.upgrade()
        {
            target.event(watch.tag, self.clock.now());
            self.queue_if_due(watch);
        }
    }
}

#[derive(Default)]
struct Timers {
    entries: BTreeMap<u64, TimerEntry>,
    virtual_queue: BTreeSet<(VmTime, u64)>,
    realtime_queue: BTreeSet<(VmTime, u64)>,
    next_id: u64,
    /// What the timerfd is set to, in CLOCK_MONOTONIC nanoseconds.
    armed_at: Option<u64>,
}

struct TimerEntry {
    clock: ClockKind,
    target: Weak<dyn EventTarget>,
    tag: Tag,
    deadline: Option<VmTime>,
}

impl Timers {
    fn queue(&mut self, clock: ClockKind) -> &mut BTreeSet<(VmTime, u64)> {
        match clock {
            ClockKind::Virtual => &mut self.virtual_queue,
            ClockKind::Realtime => &mut self.realtime_queue,
        }
    }

    fn set(&mut self, id: u64, deadline: Option<VmTime>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let clock = entry.clock;
        let old = std::mem::replace(&mut entry.deadline, deadline);
        let queue = self.queue(clock);
        if let Some(at) = old {
            queue.remove(&(at, id));
        }
        if let Some(at) = deadline {
            queue.insert((at, id));
        }
    }

    fn take_due(&mut self, clock: ClockKind, now: VmTime) -> Vec<(Weak<dyn EventTarget>, Tag)> {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.queue(clock).first()
            && at <= now
        {
            self.set(id, None);
            let entry = &self.entries[&id];
            due.push((entry.target.clone(), entry.tag));
        }
        due
    }
}

/// A one-shot timer. Dropping it disarms it.
///
/// A timer that was armed anew or cancelled on another thread may still deliver an event for the
/// old deadline, so the target brings itself up to the time that it is given and looks what is due.
pub struct Timer {
    shared: Arc<Shared>,
    id: u64,
    clock: ClockKind,
}

impl Timer {
    /// Arms the timer for `at` on its clock, in place of an earlier deadline. A moment that has
    /// passed is due at once.
    pub fn arm(&self, at: VmTime) {
        self.set(Some(at));
    }

    /// Disarms the timer.
    pub fn cancel(&self) {
        self.set(None);
    }

    /// Arms the timer for `at`, or disarms it.
    pub fn set(&self, at: Option<VmTime>) {
        let mut timers = lock(&self.shared.timers);
        if timers.entries.get(&self.id).is_some_and(|e| e.deadline != at) {
            timers.set(self.id, at);
            self.shared.set_timerfd(&mut timers, false);
            drop(timers);
            if at.is_some() && self.clock == ClockKind::Virtual {
                self.shared.driver.wake();
            }
        }
    }

    /// The time on the timer's clock.
    pub fn now(&self) -> VmTime {
        match self.clock {
            ClockKind::Virtual => self.shared.clock.now(),
            ClockKind::Realtime => self.shared.realtime.now(),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut timers = lock(&self.shared.timers);
        timers.set(self.id, None);
        timers.entries.remove(&self.id);
    }
}

#[derive(Default)]
struct Watches {
    states: BTreeMap<usize, Weak<WatchState>>,
    next_id: usize,
}

struct WatchState {
    target: Weak<dyn EventTarget>,
    tag: Tag,
    /// False for a regular file, which is ready at all times.
    pollable: bool,
    ready: AtomicU8,
    interest: AtomicU8,
    queued: AtomicBool,
}

impl WatchState {
    fn due(&self) -> bool {
        self.ready.load(Ordering::Acquire) & self.interest.load(Ordering::Acquire) != 0
    }
}

/// A watch on an fd. Dropping it ends it; that must happen before the fd is closed.
///
/// It is level-triggered: while the fd is ready for something in the interest, the target's event
/// comes again. The target learns by its reads and writes what the fd is ready for, and reports
/// WouldBlock by [`Watch::drained`].
pub struct Watch {
    shared: Arc<Shared>,
    id: usize,
    fd: RawFd,
    state: Arc<WatchState>,
}

impl Watch {
    /// Sets what the target wants to hear of; nothing pauses the watch.
    pub fn set_interest(&self, interest: Readiness) {
        self.state.interest.store(interest.bits(), Ordering::Release);
        self.shared.queue_if_due(&self.state);
    }

    /// What the fd is ready for, as far as the loop knows.
    pub fn readiness(&self) -> Readiness {
        Readiness::from_bits_truncate(self.state.ready.load(Ordering::Acquire))
    }

    /// A read or write said WouldBlock: the loop waits for the next edge.
    pub fn drained(&self, what: Readiness) {
        if self.state.pollable {
            self.state.ready.fetch_and(!what.bits(), Ordering::AcqRel);
            // An edge between the caller's WouldBlock and the line above would be lost. Registering
            // anew makes epoll report what is ready now.
            let both = Interest::READABLE | Interest::WRITABLE;
            let _ = self.shared.registry.reregister(&mut SourceFd(&self.fd), Token(self.id), both);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.state.pollable {
            let _ = self.shared.registry.deregister(&mut SourceFd(&self.fd));
        }
        lock(&self.shared.watches).states.remove(&self.id);
    }
}

/// An eventfd of the loop's own, for others to ring: a vCPU's thread, the kernel (ioeventfd),
/// another process. Dropping it ends it.
///
/// One event follows each ring, or one for several that come close together. Epoll reports each
/// write to an eventfd as an edge, so the counter is never read.
pub struct Bell {
    shared: Arc<Shared>,
    id: usize,
    fd: Arc<OwnedFd>,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        // It fails only after 2^64 - 2 rings.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// The eventfd, for others to write to.
    pub fn eventfd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bell({})", self.id)
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.shared.registry.deregister(&mut SourceFd(&self.fd.as_raw_fd()));
        lock(&self.shared.bells).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts events a tag.
    #[derive(Default)]
    struct Counter([AtomicUsize; 4]);

    impl Counter {
        fn get(&self, tag: u32) -> usize {
            self.0[tag as usize].load(Ordering::Relaxed)
        }
    }

    impl EventTarget for Counter {
        fn event(&self, tag: Tag, _now: VmTime) {
            self.0[tag.0 as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fixture() -> (EventLoop, Clock, Arc<Counter>, Weak<dyn EventTarget>) {
        let clock = Clock::stopped();
        let events = EventLoop::new(clock.clone()).unwrap();
        let counter = Arc::new(Counter::default());
        let target: Arc<dyn EventTarget> = counter.clone();
        let weak = Arc::downgrade(&target);
        (events, clock, counter, weak)
    }

    fn turns(events: &mut EventLoop, n: usize) {
        for _ in 0..n {
            events.turn(Some(Duration::from_millis(2))).unwrap();
        }
    }

    #[test]
    fn virtual_timers_wait_for_their_clock() {
        let (mut events, clock, counter, target) = fixture();
        let handle = events.handle();
        let timer = handle.timer(ClockKind::Virtual, target.clone(), Tag(0));
        let realtime = handle.timer(ClockKind::Realtime, target, Tag(1));
        timer.arm(VmTime(1_000_000));
        realtime.arm(handle.realtime().now());
        turns(&mut events, 3);
        assert_eq!((counter.get(0), counter.get(1)), (0, 1));
        clock.start();
        handle.clock_changed();
        turns(&mut events, 5);
        assert_eq!((counter.get(0), counter.get(1)), (1, 1));
    }

    #[test]
    fn a_cancelled_or_dropped_timer_is_silent() {
        let (mut events, clock, counter, target) = fixture();
        clock.start();
        let handle = events.handle();
        let cancelled = handle.timer(ClockKind::Virtual, target.clone(), Tag(0));
        cancelled.arm(clock.now() + Duration::from_millis(1));
        cancelled.cancel();
        let dropped = handle.timer(ClockKind::Virtual, target, Tag(1));
        dropped.arm(clock.now() + Duration::from_millis(1));
        drop(dropped);
        turns(&mut events, 4);
        assert_eq!((counter.get(0), counter.get(1)), (0, 0));
    }

    #[test]
    fn a_watch_is_level_triggered_and_can_be_paused() {
        let (mut events, _clock, counter, target) = fixture();
        let (reader, writer) = rustix_pipe();
        let watch =
            events.handle().watch(reader.as_raw_fd(), Readiness::READ, target, Tag(2)).unwrap();
        turns(&mut events, 2);
        assert_eq!(counter.get(2), 0);
        rustix::io::write(&writer, b"ab").unwrap();
        turns(&mut events, 3);
        assert!(counter.get(2) >= 2, "told again while it is not drained");
        watch.set_interest(Readiness::empty());
        turns(&mut events, 2);
        let paused_at = counter.get(2);
        turns(&mut events, 2);
        assert_eq!(counter.get(2), paused_at);
        watch.set_interest(Readiness::READ);
        turns(&mut events, 1);
        assert!(counter.get(2) > paused_at, "readiness was remembered");
        let mut buffer = [0; 8];
        rustix::io::read(&reader, &mut buffer).unwrap();
        watch.drained(Readiness::READ);
        turns(&mut events, 2);
        let drained_at = counter.get(2);
        turns(&mut events, 2);
        assert_eq!(counter.get(2), drained_at);
    }

    #[test]
    fn data_that_comes_just_before_drained_is_not_lost() {
        let (mut events, _clock, counter, target) = fixture();
        let (reader, writer) = rustix_pipe();
        let watch =
            events.handle().watch(reader.as_raw_fd(), Readiness::READ, target, Tag(0)).unwrap();
        rustix::io::write(&writer, b"late").unwrap();
        watch.drained(Readiness::READ);
        turns(&mut events, 2);
        assert!(counter.get(0) > 0);
    }

    #[test]
    fn a_regular_file_is_always_ready() {
        let (mut events, _clock, counter, target) = fixture();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let watch =
            events.handle().watch(file.as_raw_fd(), Readiness::READ, target, Tag(0)).unwrap();
        turns(&mut events, 2);
        watch.drained(Readiness::READ);
        let before = counter.get(0);
        turns(&mut events, 2);
        assert!(counter.get(0) > before);
    }

    #[test]
    fn each_ring_of_a_bell_is_an_event() {
        let (mut events, _clock, counter, target) = fixture();
        let bell = events.handle().bell(target, Tag(1)).unwrap();
        turns(&mut events, 2);
        assert_eq!(counter.get(1), 0);
        for count in 1..4 {
            bell.ring();
            turns(&mut events, 2);
            assert_eq!(counter.get(1), count);
        }
        let other = bell.as_fd().try_clone_to_owned().unwrap();
        drop(bell);
        rustix::io::write(&other, &1_u64.to_ne_bytes()).unwrap();
        turns(&mut events, 2);
        assert_eq!(counter.get(1), 3);
    }

    #[test]
    fn posted_events_and_exit_come_from_other_threads() {
        let (mut events, _clock, counter, target) = fixture();
        let handle = events.handle();
        let thread = std::thread::spawn(move || {
            handle.post_event(target, Tag(3));
            handle.exit();
        });
        events.run().unwrap();
        thread.join().unwrap();
        turns(&mut events, 1);
        assert_eq!(counter.get(3), 1);
    }

    fn rustix_pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader.into(), writer.into())
    }
}
