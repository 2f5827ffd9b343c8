//! The way from a device's queue to a drive and back.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use board::device::{Notifier, Paused};

use super::disk::Claim;
use super::engine::{Job, lock};
use super::request::{Completion, Op, Request, Status};

#[derive(Default)]
struct Done {
    list: Vec<Completion>,
    /// Requests of earlier generations have been cancelled.
    generation: u64,
    /// Requests of this generation that have not been taken.
    in_flight: usize,
}

/// Where the ends of requests wait for the device.
pub(super) struct Completions {
    done: Mutex<Done>,
    arrived: Condvar,
    notifier: Notifier,
}

impl Completions {
    pub(super) fn push(&self, generation: u64, completion: Completion) {
        let mut done = lock(&self.done);
        if done.generation != generation {
            return;
        }
        done.list.push(completion);
        let first = done.list.len() == 1;
        drop(done);
        if first {
            self.notifier.notify();
            self.arrived.notify_all();
        }
    }
}

/// One queue's way to a drive. It is used under its device's lock; no method blocks but
/// [`Channel::wait`].
pub struct Channel {
    claim: Arc<Claim>,
    completions: Arc<Completions>,
}

impl Channel {
    pub(super) fn new(claim: Arc<Claim>, notifier: Notifier) -> Self {
        let completions = Completions { done: Mutex::default(), arrived: Condvar::new(), notifier };
        Self { claim, completions: Arc::new(completions) }
    }

    /// Hands over requests. One that makes no sense ends with [`Status::Error`].
    pub fn submit(&mut self, requests: impl IntoIterator<Item = Request>) {
        let disk = self.claim.disk();
        let properties = disk.properties();
        let (mut jobs, mut wrong) = (Vec::new(), Vec::new());
        let since = Instant::now();
        let generation = lock(&self.completions.done).generation;
        let mut count = 0;
        for request in requests {
            count += 1;
            let size = properties.sectors * 512;
            let len = request.len();
            let ram = self.claim.ram();
            let sound = (request.offset | len) % 512 == 0
                && request.offset.checked_add(len).is_some_and(|end| end <= size)
                && !(properties.readonly && request.op.writes())
                && request.buffers.iter().all(|range| ram.contains(range.gpa, range.len.into()));
            if sound || request.op == Op::Flush {
                let completions = self.completions.clone();
                jobs.push(Job { request, ram: ram.clone(), completions, generation, since });
            } else {
                disk.engine().stats.invalid(request.op.kind());
                wrong.push(Completion { token: request.token, status: Status::Error });
            }
        }
        lock(&self.completions.done).in_flight += count;
        for completion in wrong {
            self.completions.push(generation, completion);
        }
        disk.engine().submit(jobs);
    }

    /// Takes what has ended, in any order.
    pub fn take(&mut self, out: &mut Vec<Completion>) {
        let mut done = lock(&self.completions.done);
        done.in_flight -= done.list.len();
        out.append(&mut done.list);
    }

    /// Requests that were submitted and not taken yet.
    pub fn in_flight(&self) -> usize {
        lock(&self.completions.done).in_flight
    }

    /// The machine stops: what has not been started comes back as [`Status::Again`].
    pub fn pause(&mut self) -> Paused {
        for job in self.take_queued() {
            let completion = Completion { token: job.request.token, status: Status::Again };
            self.completions.push(job.generation, completion);
        }
        match self.in_flight() {
            0 => Paused::Done,
            _ => Paused::Pending,
        }
    }

    /// The machine goes on.
    pub fn resume(&mut self) {}

    /// The device is reset: nothing that was submitted will be heard of again, and what has not
    /// been started is not done.
    pub fn cancel(&mut self) {
        self.take_queued();
        let mut done = lock(&self.completions.done);
        done.generation += 1;
        done.list.clear();
        done.in_flight = 0;
    }

    /// Blocks until [`Channel::take`] has something to give, or nothing is in flight.
    pub fn wait(&mut self) {
        let mut done = lock(&self.completions.done);
        while done.list.is_empty() && done.in_flight > 0 {
            done = self.completions.arrived.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_queued(&self) -> Vec<Job> {
        let mine = &self.completions;
        self.claim.disk().engine().take_queued(|job| Arc::ptr_eq(&job.completions, mine))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.cancel();
    }
}
