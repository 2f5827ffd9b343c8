//! Writing, zeroing and discarding.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::super::error::BlockError;
use super::super::image::Image;
use super::super::segments::Source;
use super::entry::{COPIED, Cluster, ZERO};
use super::header::{MAX_L1_BYTES, field};
use super::{Qcow2, State, damaged};

/// What to do with the start of a write.
enum Plan {
    /// It goes where the data is.
    InPlace { host: u64, len: usize, _lease: Arc<()> },
    /// It gets new clusters.
    New(New),
}

/// Guest clusters that are being given a place.
struct New {
    first: u64,
    count: u64,
    host: u64,
    /// The place is past what was ever written, and reads as zeros.
    fresh: bool,
    /// What the first and the last were.
    old: (Cluster, Cluster),
    _lease: Arc<()>,
}

impl Qcow2 {
    /// Writes a range.
    pub(super) fn write_at(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < source.len() {
            let rest = source.slice(done, source.len() - done);
            done += match self.plan(offset + done as u64, rest.len())? {
                Plan::InPlace { host, len, _lease } => {
                    self.storage.write(host, &rest.slice(0, len))?;
                    len
                }
                Plan::New(new) => self.write_new(&new, offset + done as u64, &rest)?,
            };
        }
        if self.lock().freed > super::MAX_FREED {
            self.flush_tables()?;
        }
        Ok(())
    }

    /// Whether data may be written to a cluster that an L2 entry names: a damaged image could name
    /// its own tables.
    pub(super) fn may_write(&self, state: &State, host: u64) -> bool {
        let end = host + self.cluster_size();
        let apart = |start: u64, len: u64| end <= start || host >= start + len;
        host >= self.cluster_size()
            && end <= state.file_end
            && apart(state.l1_offset, state.l1.len() as u64 * 8)
            && apart(state.reftable_offset, state.reftable.len() as u64 * 8)
    }

    fn plan(&self, at: u64, len: usize) -> io::Result<Plan> {
        let (cluster, within) = (at >> self.cluster_bits, at & (self.cluster_size() - 1));
        let mut state = self.settle(self.lock(), cluster, 1);
        if let Cluster::Data { host, copied: true } = self.find(&mut state, cluster)? {
            if !self.may_write(&state, host) {
                return Err(damaged());
            }
            let mut have = (self.cluster_size() - within).min(len as u64);
            while have < len as u64 {
                let next = (at + have) >> self.cluster_bits;
                let expected = host + within + have;
                match self.find(&mut state, next)? {
                    Cluster::Data { host, copied: true }
                        if host == expected
                            && !state.busy.contains(&next)
                            && self.may_write(&state, host) =>
                    {
                        have += self.cluster_size().min(len as u64 - have);
                    }
                    _ => break,
                }
            }
            let lease = state.lease();
            return Ok(Plan::InPlace { host: host + within, len: have as usize, _lease: lease });
        }
        self.own_table(&mut state, cluster)?;
        let first_old = self.find(&mut state, cluster)?;
        let touched = (within + len as u64).div_ceil(self.cluster_size());
        let in_table = self.l2_entries() - cluster % self.l2_entries();
        let mut want = 1;
        while want < touched.min(in_table) {
            let next = cluster + want;
            let in_place =
                matches!(self.find(&mut state, next)?, Cluster::Data { copied: true, .. });
            if in_place || state.busy.contains(&next) {
                break;
            }
            want += 1;
        }
        let before = state.file_end;
        let (number, count) = self.allocate(&mut state, want)?;
        let host = number << self.cluster_bits;
        let last_old = self.find(&mut state, cluster + count - 1)?;
        state.busy.extend(cluster..cluster + count);
        Ok(Plan::New(New {
            first: cluster,
            count,
            host,
            fresh: host >= before && self.storage.grows(),
            old: (first_old, last_old),
            _lease: state.lease(),
        }))
    }

    /// Waits until none of the guest clusters is being given a place.
    fn settle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        first: u64,
        count: u64,
    ) -> MutexGuard<'a, State> {
        while state.busy.range(first..first + count).next().is_some() {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Writes to new clusters and links them; gives the bytes of `rest` that were written.
    fn write_new(&self, new: &New, at: u64, rest: &Source<'_>) -> io::Result<usize> {
        let written = self.fill_new(new, at, rest);
        let mut state = self.lock();
        let linked = written.and_then(|len| self.link(&mut state, new).map(|()| len));
        if linked.is_err() {
            for cluster in 0..new.count {
                // What cannot be given back leaks; the first error is the one to tell.
                let _ = self.unallocate(&mut state, (new.host >> self.cluster_bits) + cluster);
            }
        }
        for cluster in new.first..new.first + new.count {
            state.busy.remove(&cluster);
        }
        drop(state);
        self.settled.notify_all();
        linked
    }

    fn fill_new(&self, new: &New, at: u64, rest: &Source<'_>) -> io::Result<usize> {
        let cluster = self.cluster_size();
        let total = new.count * cluster;
        let head = at - (new.first << self.cluster_bits);
        let len = (rest.len() as u64).min(total - head);
        let tail = total - head - len;
        let last = new.first + new.count - 1;
        // What is zero and is to be zero needs no writing.
        let skip = |kind, number| new.fresh && self.is_zero(kind, number);
        let mut before = vec![0; if skip(new.old.0, new.first) { 0 } else { head as usize }];
        let mut after = vec![0; if skip(new.old.1, last) { 0 } else { tail as usize }];
        if !before.is_empty() {
            self.old_contents(new.old.0, new.first, 0, &mut before)?;
        }
        if !after.is_empty() {
            self.old_contents(new.old.1, last, cluster - tail, &mut after)?;
        }
        let data = rest.slice(0, len as usize);
        let start = new.host + head - before.len() as u64;
        let all = match (before.is_empty(), after.is_empty()) {
            (true, true) => data,
            (true, false) => data.chain(&Source::new(&after)),
            (false, true) => Source::new(&before).chain(&data),
            (false, false) => Source::new(&before).chain(&data).chain(&Source::new(&after)),
        };
        self.storage.write(start, &all)?;
        Ok(len as usize)
    }

    fn link(&self, state: &mut State, new: &New) -> io::Result<()> {
        // Tables that cannot be read must not leave half of it linked.
        for number in 0..new.count {
            self.find(state, new.first + number)?;
        }
        for number in 0..new.count {
            let old = self.find(state, new.first + number)?;
            let host = new.host + (number << self.cluster_bits);
            self.put(state, new.first + number, host | COPIED)?;
            self.give_up(state, old);
        }
        Ok(())
    }

    /// What an entry pointed to has lost this reference.
    fn give_up(&self, state: &mut State, old: Cluster) {
        match old {
            Cluster::Data { host, .. } | Cluster::Zero(Some(host)) => {
                state.free(host >> self.cluster_bits, 1);
            }
            Cluster::Compressed(packed) => {
                let first = packed.host >> self.cluster_bits;
                let last = (packed.host + packed.len - 1) >> self.cluster_bits;
                state.free(first, last - first + 1);
            }
            Cluster::Zero(None) | Cluster::Unallocated => {}
        }
    }

    /// The entry of a cluster that reads as zeros and has no place.
    fn zero_entry(&self) -> u64 {
        if self.version >= 3 && self.backing.is_some() { ZERO } else { 0 }
    }

    /// Makes guest clusters, all of one table, read as zeros; `false`: the image has no way to say
    /// so.
    pub(super) fn zero_clusters(&self, first: u64, count: u64, unmap: bool) -> io::Result<bool> {
        if self.version < 3 && self.backing.is_some() {
            return Ok(false);
        }
        let mut state = self.settle(self.lock(), first, count);
        if self.backing.is_none() && !self.has_table(&state, first)? {
            return Ok(true);
        }
        self.own_table(&mut state, first)?;
        for cluster in first..first + count {
            let old = self.find(&mut state, cluster)?;
            match old {
                _ if self.is_zero(old, cluster)
                    && !(unmap && matches!(old, Cluster::Zero(Some(_)))) => {}
                Cluster::Data { host, copied: true } if !unmap && self.version >= 3 => {
                    self.put(&mut state, cluster, host | COPIED | ZERO)?;
                }
                _ => {
                    self.put(&mut state, cluster, self.zero_entry())?;
                    self.give_up(&mut state, old);
                }
            }
        }
        Ok(true)
    }

    /// Gives up guest clusters, all of one table; they read as zeros then, where the image can say
    /// so.
    pub(super) fn discard_clusters(&self, first: u64, count: u64) -> io::Result<()> {
        let mut state = self.settle(self.lock(), first, count);
        let shows_backing = self.version < 3 && self.backing.is_some();
        if shows_backing || !self.has_table(&state, first)? {
            return Ok(());
        }
        self.own_table(&mut state, first)?;
        for cluster in first..first + count {
            let old = self.find(&mut state, cluster)?;
            if !matches!(old, Cluster::Unallocated | Cluster::Zero(None)) {
                self.put(&mut state, cluster, self.zero_entry())?;
                self.give_up(&mut state, old);
            }
        }
        Ok(())
    }

    /// Leaves all guest clusters to the backing file.
    pub(super) fn forget_clusters(&self) -> io::Result<()> {
        let per_table = self.l2_entries();
        let tables = self.lock().l1.len() as u64;
        for table in 0..tables {
            let first = table * per_table;
            let mut state = self.settle(self.lock(), first, per_table);
            if !self.has_table(&state, first)? {
                continue;
            }
            self.own_table(&mut state, first)?;
            for cluster in first..first + per_table {
                let old = self.find(&mut state, cluster)?;
                if old != Cluster::Unallocated {
                    self.put(&mut state, cluster, 0)?;
                    self.give_up(&mut state, old);
                }
            }
        }
        Ok(())
    }

    /// Makes the disk longer.
    pub(super) fn grow(&self, size: u64) -> Result<(), BlockError> {
        let refused = |why: &str| BlockError::Refused(format!("{}: {why}", self.path));
        if !self.writable {
            return Err(refused("it is opened for reading only"));
        }
        if size < self.size() {
            return Err(refused(
                "a qcow2 image is not made shorter while it is in use: qemu-img resize --shrink does it",
            ));
        }
        let covered = self.cluster_size() * self.l2_entries();
        let entries = size.div_ceil(covered);
        if entries * 8 > MAX_L1_BYTES {
            return Err(refused("a qcow2 image of this cluster size cannot be as large"));
        }
        let write = || -> io::Result<()> {
            let mut state = self.lock();
            if entries > state.l1.len() as u64 {
                self.grow_l1(&mut state, entries as usize)?;
            }
            self.storage.write_bytes(field::SIZE, &size.to_be_bytes())?;
            self.storage.sync()
        };
        write().map_err(|cause| BlockError::Io {
            path: self.path.clone(),
            what: "making the image longer",
            cause,
        })?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn grow_l1(&self, state: &mut State, entries: usize) -> io::Result<()> {
        let mut l1 = state.l1.clone();
        l1.resize(entries, 0);
        let clusters = (entries as u64 * 8).div_ceil(self.cluster_size());
        let offset = self.allocate_run(state, clusters)? << self.cluster_bits;
        let mut bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize((clusters << self.cluster_bits) as usize, 0);
        self.write_refcounts(state)?;
        self.storage.write_bytes(offset, &bytes)?;
        self.storage.sync()?;
        let mut fields = (entries as u32).to_be_bytes().to_vec();
        fields.extend_from_slice(&offset.to_be_bytes());
        self.storage.write_bytes(field::L1_SIZE, &fields)?;
        self.storage.sync()?;
        let old = (state.l1.len() as u64 * 8).div_ceil(self.cluster_size());
        state.free(state.l1_offset >> self.cluster_bits, old);
        state.l1 = l1;
        state.l1_offset = offset;
        Ok(())
    }
}
