//! Worker threads that carry out a drive's requests, so that neither the main loop nor a device's
//! lock ever waits for a disk.
//!
//! A worker takes one request after the other. It wakes a colleague only when it is about to do
//! something that may sleep while more requests wait: most of a guest's I/O is served from the
//! host's page cache in less time than waking a thread takes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use board::GuestRam;

use super::channel::Completions;
use super::image::Image;
use super::open::Aio;
use super::policy::{ErrorReport, OnError, is_full};
use super::request::{Completion, Op, Request, Status};
use super::ring::{self, Ring};
use super::segments::{Source, Target, mark_written};
use super::stats::Stats;
use super::throttle::{Direction, Limits, Throttle};

/// A write up to this long into the page cache is over before a colleague would be awake.
const SHORT: u64 = 1 << 16;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How requests are carried out.
pub struct Behaviour {
    /// What becomes of reads that fail.
    pub on_read_error: OnError,
    /// What becomes of other requests that fail.
    pub on_write_error: OnError,
    /// Each write is durable before it is complete.
    pub write_through: bool,
    /// Discards reach the image.
    pub discard: bool,
    /// Writes of zeros become holes.
    pub detect_zeroes: bool,
    /// Any transfer may sleep: the page cache is not used.
    pub direct: bool,
    /// Who carries out plain transfers.
    pub aio: Aio,
    /// Hears of each request that failed.
    pub on_error: Arc<dyn Fn(ErrorReport) + Send + Sync>,
}

/// A request under way.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) ram: GuestRam,
    pub(super) completions: Arc<Completions>,
    /// The channel's generation when it was submitted.
    pub(super) generation: u64,
    pub(super) since: Instant,
}

impl Job {
    fn direction(&self) -> Option<Direction> {
        match self.request.op {
            Op::Read => Some(Direction::Read),
            Op::Write => Some(Direction::Write),
            _ => None,
        }
    }
}

struct Queues {
    /// To be started now.
    ready: VecDeque<Job>,
    /// What is not for the ring: its other threads do these, already counted as running.
    deferred: VecDeque<Job>,
    /// Reads and writes that the limits hold back.
    limited: [VecDeque<Job>; 2],
    throttle: Option<Throttle>,
    running: usize,
    idle: usize,
    /// Nothing is started.
    held: bool,
    ended: bool,
    /// Something for each thread to do once, and how many have.
    chore: Option<(u64, Chore)>,
    chores_done: usize,
}

/// What [`Engine::on_each_thread`] has done.
type Chore = Arc<dyn Fn() + Send + Sync>;

impl Queues {
    /// The next request to start, or the time at which there will be one.
    fn next(&mut self, now: Instant) -> Result<Job, Option<Instant>> {
        if self.held {
            return Err(None);
        }
        if let Some(job) = self.ready.pop_front() {
            return Ok(job);
        }
        let Self { limited, throttle, .. } = self;
        let mut soonest: Option<Instant> = None;
        for (queue, direction) in limited.iter_mut().zip([Direction::Read, Direction::Write]) {
            let Some(job) = queue.front() else { continue };
            let wait = throttle.as_mut().and_then(|t| t.admit(direction, job.request.len(), now));
            match (wait, queue.pop_front_if(|_| wait.is_none())) {
                (_, Some(job)) => return Ok(job),
                (Some(wait), None) => {
                    soonest = Some(soonest.map_or(now + wait, |at| at.min(now + wait)));
                }
                (None, None) => {}
            }
        }
        Err(soonest)
    }

    fn waiting(&self) -> usize {
        self.ready.len() + self.limited.iter().map(VecDeque::len).sum::<usize>()
    }
}

/// A drive's queues and threads.
pub(super) struct Engine {
    pub(super) name: String,
    pub(super) image: RwLock<Option<Arc<dyn Image>>>,
    pub(super) behaviour: Behaviour,
    pub(super) stats: Stats,
    queues: Mutex<Queues>,
    work: Condvar,
    /// Is signalled when the last running request ends while the queues are held.
    quiet: Condvar,
    /// Wakes the ring's thread, where there is one.
    ring: Option<Arc<OwnedFd>>,
    /// What becomes of reads and of other requests that fail.
    policies: Mutex<(OnError, OnError)>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the host refuses one.
    pub(super) fn start(
        name: &str,
        image: Option<Arc<dyn Image>>,
        behaviour: Behaviour,
        limits: Limits,
        threads: usize,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let mut ring = match behaviour.aio {
            Aio::Threads => None,
            Aio::IoUring => Some(Ring::new()?),
        };
        let policies = Mutex::new((behaviour.on_read_error, behaviour.on_write_error));
        let throttle = limits.any().then(|| Throttle::new(limits, Instant::now()));
        let engine = Arc::new(Self {
            name: name.to_owned(),
            image: RwLock::new(image),
            behaviour,
            stats: Stats::new(),
            queues: Mutex::new(Queues {
                ready: VecDeque::new(),
                deferred: VecDeque::new(),
                limited: Default::default(),
                throttle,
                running: 0,
                idle: 0,
                held: false,
                ended: false,
                chore: None,
                chores_done: 0,
            }),
            work: Condvar::new(),
            quiet: Condvar::new(),
            ring: ring.as_ref().map(Ring::waker),
            policies,
        });
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let worker = engine.clone();
            let ring = ring.take();
            let thread = std::thread::Builder::new()
                .name(format!("disk-{name}").chars().take(15).collect())
                .spawn(move || match ring {
                    Some(ring) => ring.run(&worker),
                    None => worker.work(),
                });
            match thread {
                Ok(thread) => workers.push(thread),
                Err(error) => {
                    engine.end();
                    return Err(error);
                }
            }
        }
        Ok((engine, workers))
    }

    /// Queues requests.
    pub(super) fn submit(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut queues = lock(&self.queues);
        let before = queues.waiting();
        for job in jobs {
            match job.direction() {
                Some(direction) if queues.throttle.is_some() => {
                    queues.limited[direction as usize].push_back(job);
                }
                _ => queues.ready.push_back(job),
            }
        }
        let more = queues.waiting() > before;
        let idle = queues.idle > 0;
        drop(queues);
        match &self.ring {
            Some(ring) if more => ring::wake(ring),
            None if more && idle => self.work.notify_one(),
            _ => {}
        }
    }

    /// Wakes all threads.
    fn wake_all(&self) {
        self.work.notify_all();
        if let Some(fd) = &self.ring {
            ring::wake(fd);
        }
    }

    /// The next request for the ring, or the time at which there will be one.
    pub(super) fn next_for_ring(&self) -> Result<Job, Option<Instant>> {
        let mut queues = lock(&self.queues);
        let job = queues.next(Instant::now())?;
        queues.running += 1;
        Ok(job)
    }

    /// Leaves a request to the other threads. It counts as running on.
    pub(super) fn defer(&self, job: Job) {
        lock(&self.queues).deferred.push_back(job);
        self.work.notify_one();
    }

    /// A request is running no more.
    pub(super) fn ran(&self) {
        let mut queues = lock(&self.queues);
        queues.running -= 1;
        if queues.running == 0 && queues.held {
            self.quiet.notify_all();
        }
        if queues.running == 0 && queues.ended {
            self.work.notify_all();
        }
    }

    /// Whether the threads are to end.
    pub(super) fn is_ending(&self) -> bool {
        lock(&self.queues).ended
    }

    /// Whether the threads are to end and nothing is left to do.
    pub(super) fn has_ended(&self) -> bool {
        let queues = lock(&self.queues);
        queues.ended && queues.waiting() == 0
    }

    /// The image.
    pub(super) fn image_now(&self) -> Option<Arc<dyn Image>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what each thread is to do once; `done` is the number of the last that this one did.
    pub(super) fn do_chore(&self, done: &mut u64) {
        let chore = lock(&self.queues).chore.clone();
        if let Some((number, chore)) = chore.filter(|(number, _)| number > done) {
            *done = number;
            chore();
            lock(&self.queues).chores_done += 1;
            self.quiet.notify_all();
        }
    }

    /// Takes out what has not been started and `which` names.
    pub(super) fn take_queued(&self, which: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut queues = lock(&self.queues);
        let Queues { ready, limited, .. } = &mut *queues;
        let mut taken = Vec::new();
        for queue in std::iter::once(ready).chain(limited) {
            let (out, keep) = std::mem::take(queue).into_iter().partition(&which);
            *queue = keep;
            let out: VecDeque<Job> = out;
            taken.extend(out);
        }
        taken
    }

    /// Has the threads end once they have nothing left to do.
    pub(super) fn end(&self) {
        let mut queues = lock(&self.queues);
        queues.ended = true;
        drop(queues);
        self.wake_all();
    }

    /// Runs `change` while no request is under way.
    pub(super) fn quietly<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut queues = lock(&self.queues);
        queues.held = true;
        while queues.running > 0 {
            queues = self.quiet.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queues);
        let result = change();
        lock(&self.queues).held = false;
        self.wake_all();
        result
    }

    /// Sets other limits; what waits for the old ones waits for these.
    pub(super) fn set_limits(&self, limits: Limits) {
        let mut queues = lock(&self.queues);
        queues.throttle = limits.any().then(|| Throttle::new(limits, Instant::now()));
        if queues.throttle.is_none() {
            let Queues { ready, limited, .. } = &mut *queues;
            for queue in limited {
                ready.append(queue);
            }
        }
        drop(queues);
        self.wake_all();
    }

    /// The limits now.
    pub(super) fn limits(&self) -> Limits {
        lock(&self.queues).throttle.as_ref().map_or_else(Limits::default, |t| *t.limits())
    }

    /// Sets what becomes of reads and of other requests that fail, where given.
    pub(super) fn set_policies(&self, read: Option<OnError>, write: Option<OnError>) {
        let mut policies = lock(&self.policies);
        *policies = (read.unwrap_or(policies.0), write.unwrap_or(policies.1));
    }

    /// Has each of the `threads` threads call `chore` once, and waits for that.
    pub(super) fn on_each_thread(&self, threads: usize, chore: Chore) {
        let mut queues = lock(&self.queues);
        let number = queues.chore.as_ref().map_or(0, |(number, _)| *number) + 1;
        queues.chore = Some((number, chore));
        queues.chores_done = 0;
        self.wake_all();
        while queues.chores_done < threads {
            queues = self.quiet.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        let mut chores = 0;
        let mut queues = lock(&self.queues);
        loop {
            if let Some((number, chore)) = queues.chore.clone()
                && number > chores
            {
                chores = number;
                drop(queues);
                chore();
                queues = lock(&self.queues);
                queues.chores_done += 1;
                self.quiet.notify_all();
                continue;
            }
            // With a ring, its thread alone takes requests from the queues.
            let next = match (queues.deferred.pop_front(), &self.ring) {
                (Some(job), _) => Ok(job),
                (None, Some(_)) => Err(None),
                (None, None) => {
                    let next = queues.next(Instant::now());
                    queues.running += usize::from(next.is_ok());
                    next
                }
            };
            match next {
                Ok(job) => {
                    drop(queues);
                    self.serve(job);
                    self.ran();
                    queues = lock(&self.queues);
                }
                Err(_) if queues.ended && queues.running == 0 => return,
                Err(at) => {
                    queues.idle += 1;
                    queues = match at {
                        None => self.work.wait(queues).unwrap_or_else(PoisonError::into_inner),
                        Some(at) => {
                            let wait = at.saturating_duration_since(Instant::now());
                            let woken = self.work.wait_timeout(queues, wait);
                            woken.unwrap_or_else(PoisonError::into_inner).0
                        }
                    };
                    queues.idle -= 1;
                }
            }
        }
    }

    /// Wakes a colleague if there is something to do for one.
    fn before_sleep(&self) {
        let queues = lock(&self.queues);
        let more = match self.ring {
            Some(_) => !queues.deferred.is_empty(),
            None => !queues.ready.is_empty(),
        };
        let wake = queues.idle > 0 && more;
        drop(queues);
        if wake {
            self.work.notify_one();
        }
    }

    fn serve(&self, job: Job) {
        let result = match self.image_now() {
            Some(image) => self.perform(&*image, &job),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEDIUM)),
        };
        self.finish(job, result);
    }

    fn perform(&self, image: &dyn Image, job: &Job) -> io::Result<()> {
        let Request { op, offset, ref buffers, .. } = job.request;
        let no_ram = || io::Error::from_raw_os_error(libc::EFAULT);
        // The disk may have become shorter since the request was checked.
        if offset.checked_add(job.request.len()).is_none_or(|end| end > image.size()) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match op {
            Op::Read => {
                let target = Target::guest(&job.ram, buffers).ok_or_else(no_ram)?;
                let result = match image.read_now(offset, &target) {
                    Ok(true) => Ok(()),
                    Ok(false) => {
                        self.before_sleep();
                        image.read(offset, &target)
                    }
                    Err(error) => Err(error),
                };
                // A read that failed half-way has written too.
                mark_written(&job.ram, buffers, target.len());
                result
            }
            Op::Write => {
                let source = Source::guest(&job.ram, buffers).ok_or_else(no_ram)?;
                let through = self.behaviour.write_through;
                if through || self.behaviour.direct || source.len() as u64 > SHORT {
                    self.before_sleep();
                }
                if self.behaviour.detect_zeroes && source.is_zero() {
                    image.zero(offset, source.len() as u64, self.behaviour.discard)?;
                } else {
                    image.write(offset, &source)?;
                }
                if through { image.flush() } else { Ok(()) }
            }
            Op::Flush => {
                self.before_sleep();
                image.flush()
            }
            Op::Discard { len } if self.behaviour.discard => {
                self.before_sleep();
                image.discard(offset, len)
            }
            Op::Discard { .. } => Ok(()),
            Op::WriteZeroes { len, unmap } => {
                self.before_sleep();
                image.zero(offset, len, unmap && self.behaviour.discard)?;
                if self.behaviour.write_through { image.flush() } else { Ok(()) }
            }
        }
    }

    /// Hands back the end of a request.
    pub(super) fn finish(&self, job: Job, result: io::Result<()>) {
        let op = job.request.op;
        self.stats.ended(op.kind(), job.request.len(), job.since, result.is_ok());
        let status = match result {
            Ok(()) => Status::Done,
            Err(error) => self.failed(op, &error),
        };
        job.completions.push(job.generation, Completion { token: job.request.token, status });
    }

    fn failed(&self, op: Op, error: &io::Error) -> Status {
        if error.kind() == io::ErrorKind::Unsupported {
            return Status::Unsupported;
        }
        let write = op != Op::Read;
        let (on_read_error, on_write_error) = *lock(&self.policies);
        let policy = if write { on_write_error } else { on_read_error };
        let action = policy.resolve(error);
        (self.behaviour.on_error)(ErrorReport {
            drive: self.name.clone(),
            write,
            action,
            nospace: is_full(error),
            reason: error.to_string(),
        });
        match action {
            OnError::Ignore => Status::Done,
            OnError::Stop => Status::Again,
            OnError::Report | OnError::Enospc => Status::Error,
        }
    }
}
