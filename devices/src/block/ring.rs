//! `aio=io_uring`: a thread that hands plain transfers to the kernel in batches, without a thread
//! for each that waits (io_uring(7)).
//!
//! Only a read or write that lies in one piece in a file goes this way. Everything else, and what
//! the kernel did in part, is done by the drive's other threads.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use rustix::event::{EventfdFlags, eventfd};

use super::engine::{Engine, Job};
use super::image::{Image, Place};
use super::request::Op;
use super::segments::{Source, Target, mark_written};

/// The most transfers in flight.
const DEPTH: u32 = 128;
/// The most pieces of one transfer (Linux, UIO_MAXIOV).
const MAX_PIECES: usize = 1024;
/// The name of the read that wakes the thread.
const WAKE: u64 = u64::MAX;

/// A transfer that the kernel has.
struct Flight {
    job: Job,
    /// The pieces lie still until the kernel is done.
    pieces: Box<[libc::iovec]>,
    place: Place,
    /// Keeps the file open.
    image: Arc<dyn Image>,
    len: usize,
}

// SAFETY: the pieces point into the guest RAM that the job keeps mapped; nothing here is bound to a
// thread.
unsafe impl Send for Flight {}

/// The ring, and the way to wake its thread.
pub(super) struct Ring {
    ring: IoUring,
    wake: Arc<OwnedFd>,
}

/// Wakes the ring's thread.
pub(super) fn wake(fd: &OwnedFd) {
    // A counter that is full wakes it as well.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

impl Ring {
    /// A ring.
    ///
    /// # Errors
    /// When the kernel has none, or may give none.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(2 * DEPTH)?;
        Ok(Self { ring, wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?) })
    }

    /// What wakes the thread.
    pub(super) fn waker(&self) -> Arc<OwnedFd> {
        self.wake.clone()
    }

    /// Serves the engine's requests until it ends.
    pub(super) fn run(mut self, engine: &Engine) {
        let mut flights: HashMap<u64, Flight> = HashMap::new();
        let mut number = 0;
        let mut chores = 0;
        let (mut counter, mut listening) = (Box::new(0_u64), false);
        loop {
            engine.do_chore(&mut chores);
            let mut later = None;
            while flights.len() < DEPTH as usize {
                match engine.next_for_ring() {
                    Ok(job) => match self.begin(engine, job, number) {
                        Ok(flight) => {
                            flights.insert(number, flight);
                            number += 1;
                        }
                        Err(job) => engine.defer(job),
                    },
                    Err(at) => {
                        later = at;
                        break;
                    }
                }
            }
            if flights.is_empty() && !listening && engine.has_ended() {
                return;
            }
            // Whoever ends the engine wakes this thread after that, so a read under way will end.
            if !listening && !engine.is_ending() {
                let entry = opcode::Read::new(
                    Fd(self.wake.as_fd().as_raw_fd()),
                    (&raw mut *counter).cast::<u8>(),
                    8,
                );
                let entry = entry.build().user_data(WAKE);
                // SAFETY: the counter lies in a box of its own, and this function does not return
                // before the read has ended.
                listening = unsafe { self.ring.submission().push(&entry) }.is_ok();
            }
            if self.wait(later).is_err() {
                // The kernel is short of memory for a moment; what it has completes nevertheless.
                std::thread::yield_now();
            }
            let ended: Vec<(u64, i32)> =
                self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
            for (name, result) in ended {
                if name == WAKE {
                    listening = false;
                } else if let Some(flight) = flights.remove(&name) {
                    end(engine, flight, result);
                }
            }
        }
    }

    /// Submits what is new and waits for something to end, or for the time at which a limit lets
    /// the next request through.
    fn wait(&mut self, until: Option<Instant>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let Some(until) = until else {
            return self.ring.submit_and_wait(1).map(drop);
        };
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
        // What was pushed is visible to the kernel once the queue is synchronised by its drop.
        match submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time)) {
            Err(error) if error.raw_os_error() != Some(libc::ETIME) => Err(error),
            _ => Ok(()),
        }
    }

    /// Hands a transfer to the kernel, or gives it back.
    fn begin(&mut self, engine: &Engine, job: Job, name: u64) -> Result<Flight, Job> {
        let write = match job.request.op {
            Op::Read => false,
            Op::Write if !engine.behaviour.write_through && !engine.behaviour.detect_zeroes => true,
            _ => return Err(job),
        };
        let Some(image) = engine.image_now() else { return Err(job) };
        let (offset, len) = (job.request.offset, job.request.len());
        if offset.checked_add(len).is_none_or(|end| end > image.size()) {
            return Err(job);
        }
        let Some(place) = image.place(offset, len, write).filter(|place| place.runs.len() == 1)
        else {
            return Err(job);
        };
        let buffers = &job.request.buffers;
        let pieces: Option<Box<[libc::iovec]>> = match write {
            true => Source::guest(&job.ram, buffers).map(|source| source.pieces().into()),
            false => Target::guest(&job.ram, buffers).map(|target| target.pieces().into()),
        };
        let Some(pieces) = pieces.filter(|pieces| !pieces.is_empty() && pieces.len() <= MAX_PIECES)
        else {
            return Err(job);
        };
        let (fd, at, count) = (Fd(place.fd), place.runs[0].offset, pieces.len() as u32);
        let list = pieces.as_ptr();
        let entry = match write {
            true => opcode::Writev::new(fd, list, count).offset(at).build(),
            false => opcode::Readv::new(fd, list, count).offset(at).build(),
        };
        // SAFETY: the flight keeps the list, the guest RAM that it names and the file until the
        // kernel has said that it is done.
        match unsafe { self.ring.submission().push(&entry.user_data(name)) } {
            Ok(()) => Ok(Flight { job, pieces, place, image, len: len as usize }),
            Err(_) => Err(job),
        }
    }
}

fn end(engine: &Engine, flight: Flight, result: i32) {
    let Flight { job, pieces, place, image, len } = flight;
    drop((pieces, place, image));
    if job.request.op == Op::Read {
        mark_written(&job.ram, &job.request.buffers, len);
    }
    match usize::try_from(result) {
        Ok(done) if done == len => {
            engine.finish(job, Ok(()));
            engine.ran();
        }
        // In part, or not at all: done anew by a thread, which knows what to make of it.
        _ => engine.defer(job),
    }
}
