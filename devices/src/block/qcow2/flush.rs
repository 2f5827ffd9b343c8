//! Bringing tables to the file, in the order that keeps it sound.

use std::io;
use std::sync::Arc;

use super::super::engine::lock;
use super::cache::Slice;
use super::{Epoch, Qcow2, State};

impl Qcow2 {
    /// Writes changed refcounts.
    pub(super) fn write_refcounts(&self, state: &mut State) -> io::Result<()> {
        let offsets = state.refblocks.take_dirty();
        for (done, offset) in offsets.iter().enumerate() {
            let Some(slice) = state.refblocks.peek(*offset) else { continue };
            let version = slice.version;
            if let Err(error) = self.storage.write_bytes(*offset, &slice.data) {
                state.refblocks.put_back_dirty(&offsets[done..]);
                return Err(error);
            }
            state.refblocks.wrote(*offset, version);
        }
        Ok(())
    }

    /// Writes all changed tables while the lock is held: to make room for others.
    pub(super) fn write_tables(&self, state: &mut State) -> io::Result<()> {
        self.write_refcounts(state)?;
        self.storage.sync()?;
        let offsets = state.l2.take_dirty();
        for (done, offset) in offsets.iter().enumerate() {
            let Some(slice) = state.l2.peek(*offset) else { continue };
            let version = slice.version;
            if let Err(error) = self.storage.write_bytes(*offset, &slice.data) {
                state.l2.put_back_dirty(&offsets[done..]);
                return Err(error);
            }
            state.l2.wrote(*offset, version);
        }
        Ok(())
    }

    /// Makes durable whatever was linked before.
    pub(super) fn flush_tables(&self) -> io::Result<()> {
        let _one = lock(&self.flushing);
        // Refcounts first; of the L2 tables what they are now, since what comes later may count on
        // refcounts that come later too.
        let mut state = self.lock();
        self.write_refcounts(&mut state)?;
        let copies: Vec<(u64, u64, Box<[u8]>)> = state
            .l2
            .take_dirty()
            .into_iter()
            .filter_map(|offset| {
                let slice: &Slice = state.l2.peek(offset)?;
                Some((offset, slice.version, slice.data.clone()))
            })
            .collect();
        state.epochs.push_back(Epoch::default());
        drop(state);
        if copies.is_empty() {
            self.storage.sync()?;
        } else {
            // Data that was copied on write must be there as well before an entry leads to it.
            self.sync_or_put_back(&copies)?;
            self.write_copies(&copies)?;
            self.sync_or_put_back(&copies)?;
        }
        self.release_freed(&mut self.lock())
    }

    fn sync_or_put_back(&self, copies: &[(u64, u64, Box<[u8]>)]) -> io::Result<()> {
        self.storage.sync().inspect_err(|_| {
            let offsets: Vec<u64> = copies.iter().map(|(offset, ..)| *offset).collect();
            self.lock().l2.put_back_dirty(&offsets);
        })
    }

    fn write_copies(&self, copies: &[(u64, u64, Box<[u8]>)]) -> io::Result<()> {
        let mut state = self.lock();
        for (done, (offset, version, data)) in copies.iter().enumerate() {
            // It may have been written since, to make room, or given up.
            if state.l2.peek(*offset).is_none_or(|slice| slice.written >= *version) {
                continue;
            }
            if let Err(error) = self.storage.write_bytes(*offset, data) {
                let rest: Vec<u64> = copies[done..].iter().map(|(offset, ..)| *offset).collect();
                state.l2.put_back_dirty(&rest);
                return Err(error);
            }
            state.l2.wrote(*offset, *version);
        }
        Ok(())
    }

    /// Frees what was given up before the last flush and is used by nobody any more. The present
    /// epoch's is not in the file yet.
    fn release_freed(&self, state: &mut State) -> io::Result<()> {
        while state.epochs.len() > 1
            && state.epochs.front().is_some_and(|epoch| Arc::strong_count(&epoch.lease) == 1)
        {
            let Some(epoch) = state.epochs.pop_front() else { break };
            for (first, count) in epoch.freed {
                state.freed -= count;
                for cluster in first..first + count {
                    self.release(state, cluster)?;
                }
            }
        }
        Ok(())
    }
}
