//! Reading.

use std::io;
use std::sync::{Arc, TryLockError};

use super::super::image::{Image, Place, Run};
use super::super::segments::Target;
use super::entry::{Cluster, Packed};
use super::{Qcow2, State, damaged};

/// Where a part of a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The file, from an offset on.
    File(u64),
    /// Nowhere.
    Zero,
    /// What the image is based on.
    Backing,
    /// A compressed cluster, from an offset within it on.
    Packed(Packed, u64),
}

#[derive(Clone, Copy, Debug)]
struct Part {
    from: From,
    len: usize,
}

impl Qcow2 {
    /// Whether a guest cluster reads as zeros without looking anywhere.
    pub(super) fn is_zero(&self, kind: Cluster, cluster: u64) -> bool {
        match kind {
            Cluster::Zero(_) => true,
            Cluster::Unallocated => {
                let start = cluster << self.cluster_bits;
                self.backing.as_ref().is_none_or(|backing| start >= backing.size())
            }
            Cluster::Data { .. } | Cluster::Compressed(_) => false,
        }
    }

    /// Where a range comes from; `None`: telling takes reading a table, and not `load`.
    fn parts(
        &self,
        state: &mut State,
        offset: u64,
        len: usize,
        load: bool,
    ) -> io::Result<Option<Vec<Part>>> {
        let mut parts: Vec<Part> = Vec::with_capacity(2);
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (cluster, within) = (at >> self.cluster_bits, at & (self.cluster_size() - 1));
            let count = (self.cluster_size() - within).min((len - done) as u64) as usize;
            let Some(kind) = self.lookup(state, cluster, load)? else { return Ok(None) };
            let from = match kind {
                kind if self.is_zero(kind, cluster) => From::Zero,
                Cluster::Unallocated | Cluster::Zero(_) => From::Backing,
                Cluster::Data { host, .. } => From::File(host + within),
                Cluster::Compressed(packed) => From::Packed(packed, within),
            };
            match parts.last_mut() {
                Some(last) if goes_on(last, from) => last.len += count,
                _ => parts.push(Part { from, len: count }),
            }
            done += count;
        }
        Ok(Some(parts))
    }

    /// Reads a range.
    pub(super) fn read_at(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        let mut state = self.lock();
        let _lease = state.lease();
        let parts = self.parts(&mut state, offset, target.len(), true)?.ok_or_else(damaged)?;
        drop(state);
        let mut done = 0;
        for part in parts {
            let piece = target.slice(done, part.len);
            match part.from {
                From::File(at) => self.storage.read(at, &piece)?,
                From::Zero => piece.zero(),
                From::Backing => self.read_backing(offset + done as u64, &piece)?,
                From::Packed(packed, within) => {
                    let data = self.unpack(packed)?;
                    piece.copy_from(&data[within as usize..within as usize + part.len]);
                }
            }
            done += part.len;
        }
        Ok(())
    }

    /// Reads a range if that takes no waiting.
    pub(super) fn read_cached(&self, offset: u64, target: &Target<'_>) -> io::Result<bool> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let _lease = state.lease();
        let Some(parts) = self.parts(&mut state, offset, target.len(), false)? else {
            return Ok(false);
        };
        drop(state);
        let mut done = 0;
        for part in parts {
            let piece = target.slice(done, part.len);
            let at_once = match (part.from, &self.backing) {
                (From::File(at), _) => self.storage.read_now(at, &piece)?,
                (From::Zero, _) => {
                    piece.zero();
                    true
                }
                (From::Backing, Some(backing)) => {
                    let at = offset + done as u64;
                    at + part.len as u64 <= backing.size() && backing.read_now(at, &piece)?
                }
                _ => false,
            };
            if !at_once {
                return Ok(false);
            }
            done += part.len;
        }
        Ok(true)
    }

    /// Reads what the image is based on, which may be shorter.
    pub(super) fn read_backing(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        let Some(backing) = &self.backing else {
            target.zero();
            return Ok(());
        };
        let there = backing.size().saturating_sub(offset).min(target.len() as u64) as usize;
        if there > 0 {
            backing.read(offset, &target.slice(0, there))?;
        }
        target.slice(there, target.len() - there).zero();
        Ok(())
    }

    /// Where a range lies, if it is all in the file as it is.
    pub(super) fn place_of(&self, offset: u64, len: u64, write: bool) -> Option<Place> {
        let fd = self.storage.fd().filter(|_| len > 0 && (self.writable || !write))?;
        let mut state = self.state.try_lock().ok()?;
        let mut runs: Vec<Run> = Vec::with_capacity(1);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (cluster, within) = (at >> self.cluster_bits, at & (self.cluster_size() - 1));
            let count = (self.cluster_size() - within).min(len - done);
            let host = match self.lookup(&mut state, cluster, false) {
                Ok(Some(Cluster::Data { host, copied })) if copied || !write => host,
                _ => return None,
            };
            if write && (state.busy.contains(&cluster) || !self.may_write(&state, host)) {
                return None;
            }
            match runs.last_mut() {
                Some(last) if last.offset + last.len == host + within => last.len += count,
                _ => runs.push(Run { offset: host + within, len: count }),
            }
            done += count;
        }
        Some(Place { fd, runs, lease: Some(state.lease()) })
    }

    /// Calls `each` with the ranges that are not left to the backing file.
    pub(super) fn for_own_clusters(
        &self,
        each: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (size, per_table) = (self.size(), self.l2_entries());
        let clusters = size.div_ceil(self.cluster_size());
        for first in (0..clusters).step_by(per_table as usize) {
            let mut state = self.lock();
            if !self.has_table(&state, first)? {
                continue;
            }
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for cluster in first..clusters.min(first + per_table) {
                if self.find(&mut state, cluster)? == Cluster::Unallocated {
                    continue;
                }
                match runs.last_mut() {
                    Some((start, count)) if *start + *count == cluster => *count += 1,
                    _ => runs.push((cluster, 1)),
                }
            }
            drop(state);
            for (start, count) in runs {
                let from = start << self.cluster_bits;
                each(from, (count << self.cluster_bits).min(size - from))?;
            }
        }
        Ok(())
    }

    /// What a guest cluster holds in `range` of its bytes before it gets another place.
    pub(super) fn old_contents(
        &self,
        kind: Cluster,
        cluster: u64,
        within: u64,
        data: &mut [u8],
    ) -> io::Result<()> {
        match kind {
            kind if self.is_zero(kind, cluster) => data.fill(0),
            Cluster::Data { host, .. } => self.storage.read_bytes(host + within, data)?,
            Cluster::Compressed(packed) => {
                let all: Arc<[u8]> = self.unpack(packed)?;
                data.copy_from_slice(&all[within as usize..within as usize + data.len()]);
            }
            Cluster::Unallocated | Cluster::Zero(_) => {
                let at = (cluster << self.cluster_bits) + within;
                self.read_backing(at, &Target::new(data))?;
            }
        }
        Ok(())
    }
}

fn goes_on(last: &Part, from: From) -> bool {
    match (last.from, from) {
        (From::File(start), From::File(at)) => start + last.len as u64 == at,
        (From::Zero, From::Zero) | (From::Backing, From::Backing) => true,
        _ => false,
    }
}
