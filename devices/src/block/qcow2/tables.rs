//! L1 and L2 tables (docs/interop/qcow2.txt, "Cluster mapping").

use std::io;

use super::entry::{COPIED, Cluster, OFFSET, decode};
use super::header::be64;
use super::{Qcow2, State, damaged};

/// Where an L2 entry is: the slice's offset in the file, and the index within the slice.
struct Spot {
    slice: u64,
    index: usize,
}

impl Qcow2 {
    /// The L2 table that guest cluster `cluster` has its entry in; `None`: there is none.
    fn l2_table(&self, state: &State, cluster: u64) -> io::Result<Option<u64>> {
        let entry = state.l1.get((cluster / self.l2_entries()) as usize).ok_or_else(damaged)?;
        match entry & OFFSET {
            0 => Ok(None),
            table if table % self.cluster_size() != 0 || table >= state.file_end => Err(damaged()),
            table => Ok(Some(table)),
        }
    }

    fn spot(&self, state: &State, table: u64, cluster: u64) -> Spot {
        let at = cluster % self.l2_entries() * 8;
        let len = state.l2.slice_len() as u64;
        Spot { slice: table + at / len * len, index: (at % len) as usize }
    }

    /// Has a slice of an L2 table in memory.
    fn load_l2(&self, state: &mut State, slice: u64) -> io::Result<()> {
        if state.l2.get(slice).is_some() {
            return Ok(());
        }
        if !state.l2.make_room() {
            self.write_tables(state)?;
            state.l2.make_room();
        }
        let mut data = vec![0; state.l2.slice_len()];
        self.storage.read_bytes(slice, &mut data)?;
        state.l2.insert(slice, data.into());
        Ok(())
    }

    /// Looks a guest cluster up. Unless `load`, `None` where that takes reading a table.
    pub(super) fn lookup(
        &self,
        state: &mut State,
        cluster: u64,
        load: bool,
    ) -> io::Result<Option<Cluster>> {
        let Some(table) = self.l2_table(state, cluster)? else {
            return Ok(Some(Cluster::Unallocated));
        };
        let spot = self.spot(state, table, cluster);
        if load {
            self.load_l2(state, spot.slice)?;
        }
        let Some(slice) = state.l2.get(spot.slice) else { return Ok(None) };
        let entry = be64(&slice.data, spot.index);
        decode(entry, self.cluster_bits, self.version).ok_or_else(damaged).map(Some)
    }

    /// Looks a guest cluster up.
    pub(super) fn find(&self, state: &mut State, cluster: u64) -> io::Result<Cluster> {
        self.lookup(state, cluster, true)?.ok_or_else(damaged)
    }

    /// Puts an L2 entry, whose table is there and ours alone.
    pub(super) fn put(&self, state: &mut State, cluster: u64, entry: u64) -> io::Result<()> {
        let table = self.l2_table(state, cluster)?.ok_or_else(damaged)?;
        let spot = self.spot(state, table, cluster);
        self.load_l2(state, spot.slice)?;
        let put = |data: &mut [u8]| {
            data[spot.index..spot.index + 8].copy_from_slice(&entry.to_be_bytes());
        };
        state.l2.change(spot.slice, put).ok_or_else(damaged)
    }

    /// Whether the table for a guest cluster is there at all.
    pub(super) fn has_table(&self, state: &State, cluster: u64) -> io::Result<bool> {
        Ok(self.l2_table(state, cluster)?.is_some())
    }

    /// Makes sure that the table for a guest cluster is there and not shared with a snapshot.
    pub(super) fn own_table(&self, state: &mut State, cluster: u64) -> io::Result<()> {
        let index = (cluster / self.l2_entries()) as usize;
        let old = self.l2_table(state, cluster)?;
        if old.is_some() && state.l1[index] & COPIED != 0 {
            return Ok(());
        }
        let (number, _) = self.allocate(state, 1)?;
        let table = number << self.cluster_bits;
        let mut data = vec![0; self.cluster_size() as usize];
        if let Some(old) = old {
            // A shared table is never changed in memory, so the file has all of it.
            self.storage.read_bytes(old, &mut data)?;
            // None of its clusters is this table's alone.
            for entry in data.chunks_exact_mut(8) {
                entry[0] &= !0x80;
            }
        }
        state.l2.forget(table, self.cluster_size());
        self.write_refcounts(state)?;
        self.storage.write_bytes(table, &data)?;
        self.storage.sync()?;
        let entry = table | COPIED;
        self.storage.write_bytes(state.l1_offset + index as u64 * 8, &entry.to_be_bytes())?;
        state.l1[index] = entry;
        if let Some(old) = old {
            state.free(old >> self.cluster_bits, 1);
        }
        Ok(())
    }
}
