//! What `info blockstats` counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Requests of one kind.
#[derive(Debug, Default)]
pub(super) struct KindStats {
    bytes: AtomicU64,
    requests: AtomicU64,
    nanos: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
}

/// Counters of a drive.
#[derive(Debug)]
pub(super) struct Stats {
    kinds: [KindStats; 4],
    started: Instant,
    /// Nanoseconds from `started` to the last completion.
    last: AtomicU64,
}

/// Which counters a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 2,
    /// Discard and write-zeroes.
    Unmap = 3,
}

/// Requests of one kind, as the monitor shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes moved by those that succeeded.
    pub bytes: u64,
    /// Those that succeeded.
    pub requests: u64,
    /// Time from submission to completion, summed up.
    pub nanos: u64,
    /// Those that the image or the host failed.
    pub failed: u64,
    /// Those that made no sense.
    pub invalid: u64,
}

/// A drive's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Reads.
    pub read: Counts,
    /// Writes.
    pub write: Counts,
    /// Flushes.
    pub flush: Counts,
    /// Discards and write-zeroes.
    pub unmap: Counts,
    /// Time since the last request ended; `None` before the first.
    pub idle: Option<Duration>,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self { kinds: Default::default(), started: Instant::now(), last: AtomicU64::new(0) }
    }

    /// A request that was submitted at `since` has ended.
    pub(super) fn ended(&self, kind: Kind, bytes: u64, since: Instant, ok: bool) {
        let (now, stats) = (Instant::now(), &self.kinds[kind as usize]);
        if ok {
            stats.bytes.fetch_add(bytes, Relaxed);
            stats.requests.fetch_add(1, Relaxed);
        } else {
            stats.failed.fetch_add(1, Relaxed);
        }
        stats.nanos.fetch_add((now - since).as_nanos() as u64, Relaxed);
        self.last.store((now - self.started).as_nanos() as u64, Relaxed);
    }

    /// A request made no sense.
    pub(super) fn invalid(&self, kind: Kind) {
        self.kinds[kind as usize].invalid.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self) -> DiskStats {
        let counts = |kind: Kind| {
            let stats = &self.kinds[kind as usize];
            Counts {
                bytes: stats.bytes.load(Relaxed),
                requests: stats.requests.load(Relaxed),
                nanos: stats.nanos.load(Relaxed),
                failed: stats.failed.load(Relaxed),
                invalid: stats.invalid.load(Relaxed),
            }
        };
        let last = self.last.load(Relaxed);
        DiskStats {
            read: counts(Kind::Read),
            write: counts(Kind::Write),
            flush: counts(Kind::Flush),
            unmap: counts(Kind::Unmap),
            idle: (last > 0)
                .then(|| self.started.elapsed().saturating_sub(Duration::from_nanos(last))),
        }
    }
}
