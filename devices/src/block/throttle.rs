//! Limits on requests and bytes a second: leaky buckets.
//!
//! Each limit is a bucket that leaks at the average rate. A request is let through while the bucket
//! is not over its burst, and then pours its units in, so that a request larger than the burst
//! passes too and the next one waits the longer. Without a burst of its own a bucket takes a tenth
//! of a second.

use std::time::{Duration, Instant};

/// A limit: average and burst, in units a second; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The average.
    pub average: u64,
    /// What may pass at once, or 0 for a tenth of the average.
    pub burst: u64,
}

/// The limits of a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, read and written.
    pub bps: Rate,
    /// Bytes read.
    pub bps_rd: Rate,
    /// Bytes written.
    pub bps_wr: Rate,
    /// Requests of both kinds.
    pub iops: Rate,
    /// Reads.
    pub iops_rd: Rate,
    /// Writes.
    pub iops_wr: Rate,
    /// A request of more bytes than this counts as several; 0: each is one.
    pub iops_size: u64,
}

impl Limits {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        let all = [self.bps, self.bps_rd, self.bps_wr, self.iops, self.iops_rd, self.iops_wr];
        all.iter().any(|rate| rate.average > 0)
    }

    /// Checks that a total is not set beside a limit for one direction.
    ///
    /// # Errors
    /// Says which.
    pub fn check(&self) -> Result<(), String> {
        for (total, one, name) in [
            (self.bps, [self.bps_rd, self.bps_wr], "bps"),
            (self.iops, [self.iops_rd, self.iops_wr], "iops"),
        ] {
            if total.average > 0 && one.iter().any(|rate| rate.average > 0) {
                return Err(format!(
                    "{name} limits reads and writes together: leave it out beside {name}_rd and {name}_wr"
                ));
            }
            for rate in [total, one[0], one[1]] {
                if rate.burst > 0 && rate.burst < rate.average {
                    return Err(format!(
                        "a burst of {} is less than the average of {}: give at least as much",
                        rate.burst, rate.average
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Read,
    /// To the disk.
    Write,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    rate: Rate,
    level: f64,
}

impl Bucket {
    fn burst(&self) -> f64 {
        match self.rate.burst {
            0 => self.rate.average as f64 / 10.0,
            burst => burst as f64,
        }
    }

    /// Seconds until a request may pass.
    fn wait(&self) -> f64 {
        match self.rate.average {
            0 => 0.0,
            average => ((self.level - self.burst()) / average as f64).max(0.0),
        }
    }
}

/// Limits at work.
#[derive(Clone, Debug)]
pub struct Throttle {
    limits: Limits,
    /// bps, bps_rd, bps_wr, iops, iops_rd, iops_wr.
    buckets: [Bucket; 6],
    leaked_at: Instant,
}

impl Throttle {
    /// Empty buckets.
    pub fn new(limits: Limits, now: Instant) -> Self {
        let bucket = |rate| Bucket { rate, level: 0.0 };
        let buckets = [
            bucket(limits.bps),
            bucket(limits.bps_rd),
            bucket(limits.bps_wr),
            bucket(limits.iops),
            bucket(limits.iops_rd),
            bucket(limits.iops_wr),
        ];
        Self { limits, buckets, leaked_at: now }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn of(direction: Direction) -> [usize; 4] {
        match direction {
            Direction::Read => [0, 1, 3, 4],
            Direction::Write => [0, 2, 3, 5],
        }
    }

    /// Counts a request of `bytes` and lets it pass, or says how long it has to wait.
    pub fn admit(&mut self, direction: Direction, bytes: u64, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.leaked_at).as_secs_f64();
        self.leaked_at = now;
        for bucket in &mut self.buckets {
            bucket.level = (bucket.level - elapsed * bucket.rate.average as f64).max(0.0);
        }
        let mine = Self::of(direction);
        let wait = mine.iter().map(|at| self.buckets[*at].wait()).fold(0.0, f64::max);
        if wait > 0.0 {
            // A day is as good as for ever, and no rate makes the conversion overflow.
            return Some(Duration::from_secs_f64(wait.clamp(1e-6, 86400.0)));
        }
        let requests = match self.limits.iops_size {
            0 => 1.0,
            size => (bytes as f64 / size as f64).max(1.0),
        };
        for (at, units) in mine.into_iter().zip([bytes as f64, bytes as f64, requests, requests]) {
            if self.buckets[at].rate.average > 0 {
                self.buckets[at].level += units;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests admitted in `seconds` when there are always some.
    fn admitted(limits: Limits, bytes: u64, seconds: u64) -> u64 {
        let start = Instant::now();
        let mut throttle = Throttle::new(limits, start);
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match throttle.admit(Direction::Read, bytes, now) {
                None => count += 1,
                Some(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn the_average_is_kept_whatever_the_size() {
        let rate = |average| Rate { average, burst: 0 };
        let iops = Limits { iops: rate(100), ..Limits::default() };
        assert!((1000..1020).contains(&admitted(iops, 4096, 10)));
        let bps = Limits { bps_rd: rate(1 << 20), ..Limits::default() };
        assert!((10..=12).contains(&admitted(bps, 1 << 20, 10)));
        assert!((2560..2860).contains(&admitted(bps, 4096, 10)));
        let sized = Limits { iops: rate(100), iops_size: 4096, ..Limits::default() };
        assert!((500..520).contains(&admitted(sized, 8192, 10)));
    }

    #[test]
    fn the_other_direction_is_free() {
        let limits = Limits { bps_wr: Rate { average: 1, burst: 0 }, ..Limits::default() };
        let now = Instant::now();
        let mut throttle = Throttle::new(limits, now);
        assert_eq!(throttle.admit(Direction::Write, 1 << 20, now), None);
        assert!(throttle.admit(Direction::Write, 512, now).is_some());
        assert_eq!(throttle.admit(Direction::Read, 1 << 20, now), None);
    }

    #[test]
    fn contradictions_are_told() {
        let rate = Rate { average: 10, burst: 0 };
        let both = Limits { bps: rate, bps_rd: rate, ..Limits::default() };
        assert!(both.check().unwrap_err().contains("bps_rd"));
        let low = Limits { iops: Rate { average: 10, burst: 5 }, ..Limits::default() };
        assert!(low.check().unwrap_err().contains("burst"));
    }
}
