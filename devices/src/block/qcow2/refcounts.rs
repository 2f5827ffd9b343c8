//! Refcounts, and clusters to be had (docs/interop/qcow2.txt, "Host cluster management").

use std::io;

use super::entry::{refcount, set_refcount};
use super::header::{MAX_REFTABLE_BYTES, field};
use super::{Qcow2, State, damaged};

/// Bits of an entry of the refcount table that are the block's offset.
const BLOCK: u64 = !0x1FF;

impl Qcow2 {
    /// Refcounts of a block.
    fn block_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The refcount block for a cluster; `None`: there is none, and the cluster is free.
    fn block(&self, state: &State, cluster: u64) -> io::Result<Option<u64>> {
        let index = (cluster / self.block_entries()) as usize;
        match state.reftable.get(index).map_or(0, |entry| entry & BLOCK) {
            0 => Ok(None),
            block if block % self.cluster_size() != 0 || block >= state.file_end => Err(damaged()),
            block => Ok(Some(block)),
        }
    }

    /// Refcounts of a slice of a block.
    fn slice_entries(&self, state: &State) -> u64 {
        (state.refblocks.slice_len() as u64 * 8) >> self.refcount_order
    }

    /// The slice with the refcount of a cluster in memory, and the index within it.
    fn load_refs(&self, state: &mut State, block: u64, cluster: u64) -> io::Result<(u64, usize)> {
        let within = cluster % self.block_entries();
        let per_slice = self.slice_entries(state);
        let slice = block + within / per_slice * state.refblocks.slice_len() as u64;
        if state.refblocks.get(slice).is_none() {
            if !state.refblocks.make_room() {
                self.write_refcounts(state)?;
                state.refblocks.make_room();
            }
            let mut data = vec![0; state.refblocks.slice_len()];
            self.storage.read_bytes(slice, &mut data)?;
            state.refblocks.insert(slice, data.into());
        }
        Ok((slice, (within % per_slice) as usize))
    }

    /// A cluster's refcount.
    pub(super) fn refcount_of(&self, state: &mut State, cluster: u64) -> io::Result<u64> {
        let Some(block) = self.block(state, cluster)? else { return Ok(0) };
        let (slice, index) = self.load_refs(state, block, cluster)?;
        let slice = state.refblocks.get(slice).ok_or_else(damaged)?;
        Ok(refcount(&slice.data, self.refcount_order, index))
    }

    /// Takes one off a cluster's refcount. One that is 0 already stays so.
    pub(super) fn release(&self, state: &mut State, cluster: u64) -> io::Result<()> {
        let count = self.refcount_of(state, cluster)?;
        let Some(block) = self.block(state, cluster)?.filter(|_| count > 0) else { return Ok(()) };
        let (slice, index) = self.load_refs(state, block, cluster)?;
        let order = self.refcount_order;
        state.refblocks.change(slice, |data| set_refcount(data, order, index, count - 1));
        if count == 1 {
            state.hint = state.hint.min(cluster);
            let (offset, len) = (cluster << self.cluster_bits, self.cluster_size());
            state.l2.forget(offset, len);
            if self.punch {
                self.storage.discard(offset, len);
            }
        }
        Ok(())
    }

    /// Takes up to `count` free clusters in a row; gives the first one's number and how many.
    pub(super) fn allocate(&self, state: &mut State, count: u64) -> io::Result<(u64, u64)> {
        let order = self.refcount_order;
        loop {
            let at = state.hint;
            // What lies past the end of the file is free, but for little that a crash has left.
            if at > (state.file_end >> self.cluster_bits) + 4 * self.block_entries() + 1024 {
                return Err(damaged());
            }
            let Some(block) = self.block(state, at)? else {
                self.add_block(state, at / self.block_entries())?;
                continue;
            };
            let (slice, from) = self.load_refs(state, block, at)?;
            let entries = self.slice_entries(state) as usize;
            let data = &state.refblocks.get(slice).ok_or_else(damaged)?.data;
            let is_free = |index: &usize| refcount(data, order, *index) == 0;
            let Some(first) = (from..entries).find(is_free) else {
                state.hint = at + (entries - from) as u64;
                continue;
            };
            let number = at + (first - from) as u64;
            let most = entries.min(first.saturating_add(count as usize));
            let run = (first..most).take_while(is_free).count();
            if self.is_table(state, number << self.cluster_bits, (run as u64) << self.cluster_bits)
            {
                return Err(damaged());
            }
            state.refblocks.change(slice, |data| {
                (first..first + run).for_each(|index| set_refcount(data, order, index, 1));
            });
            state.hint = number + run as u64;
            state.file_end = state.file_end.max(state.hint << self.cluster_bits);
            return Ok((number, run as u64));
        }
    }

    /// Takes clusters in a row, at the end of the file if need be.
    pub(super) fn allocate_run(&self, state: &mut State, count: u64) -> io::Result<u64> {
        let hint = state.hint;
        loop {
            let (first, got) = self.allocate(state, count)?;
            if got == count {
                state.hint = hint;
                return Ok(first);
            }
            // A run may go on in the next slice.
            let mut have = got;
            while have < count {
                let (next, more) = self.allocate(state, count - have)?;
                if next != first + have {
                    for cluster in (first..first + have).chain(next..next + more) {
                        self.unallocate(state, cluster)?;
                    }
                    state.hint = next;
                    have = 0;
                    break;
                }
                have += more;
            }
            if have == count {
                state.hint = hint;
                return Ok(first);
            }
        }
    }

    /// Gives back a cluster that nothing has pointed to yet.
    pub(super) fn unallocate(&self, state: &mut State, cluster: u64) -> io::Result<()> {
        let hint = state.hint;
        self.release(state, cluster)?;
        state.hint = hint.min(cluster);
        Ok(())
    }

    /// Whether a range of the file holds a table that is in use: an allocation there would be the
    /// work of a damaged image.
    fn is_table(&self, state: &State, offset: u64, len: u64) -> bool {
        let meets = |start: u64, size: u64| offset < start + size && start < offset + len;
        meets(0, self.cluster_size())
            || meets(state.l1_offset, state.l1.len() as u64 * 8)
            || meets(state.reftable_offset, state.reftable.len() as u64 * 8)
            || state.l2.holds(offset, len)
            || state.refblocks.holds(offset, len)
    }

    /// Adds the refcount block number `index`. It takes the first of the clusters that it counts,
    /// all of which are free.
    fn add_block(&self, state: &mut State, index: u64) -> io::Result<()> {
        if index >= state.reftable.len() as u64 {
            return self.grow_reftable(state, index);
        }
        let cluster = index * self.block_entries();
        let offset = cluster << self.cluster_bits;
        if self.is_table(state, offset, self.cluster_size()) {
            return Err(damaged());
        }
        let mut data = vec![0; self.cluster_size() as usize];
        set_refcount(&mut data, self.refcount_order, 0, 1);
        self.storage.write_bytes(offset, &data)?;
        self.storage.sync()?;
        let at = state.reftable_offset + index * 8;
        self.storage.write_bytes(at, &offset.to_be_bytes())?;
        state.reftable[index as usize] = offset;
        state.file_end = state.file_end.max(offset + self.cluster_size());
        Ok(())
    }

    /// Makes the refcount table long enough for entry `index`, the first that it lacks. The new
    /// table lies behind the blocks that count it, from the first cluster that is not counted yet.
    fn grow_reftable(&self, state: &mut State, index: u64) -> io::Result<()> {
        let (cluster, per_block) = (self.cluster_size(), self.block_entries());
        let old_entries = state.reftable.len() as u64;
        debug_assert_eq!(index, old_entries);
        let first = old_entries * per_block;
        let mut blocks = 1;
        let table_clusters = loop {
            let entries = (old_entries + blocks).max(old_entries * 3 / 2) + 1;
            let clusters = (entries * 8).div_ceil(cluster);
            if blocks * per_block >= blocks + clusters {
                break clusters;
            }
            blocks += 1;
        };
        if table_clusters * cluster > MAX_REFTABLE_BYTES {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let used = blocks + table_clusters;
        let place = |number: u64| (first + number) << self.cluster_bits;
        let mut table = state.reftable.clone();
        table.resize((table_clusters * cluster / 8) as usize, 0);
        for block in 0..blocks {
            let mut data = vec![0; cluster as usize];
            let counted = used.saturating_sub(block * per_block).min(per_block);
            for entry in 0..counted {
                set_refcount(&mut data, self.refcount_order, entry as usize, 1);
            }
            self.storage.write_bytes(place(block), &data)?;
            table[(old_entries + block) as usize] = place(block);
        }
        let offset = place(blocks);
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.storage.write_bytes(offset, &bytes)?;
        self.storage.sync()?;
        let mut fields = offset.to_be_bytes().to_vec();
        fields.extend_from_slice(&(table_clusters as u32).to_be_bytes());
        self.storage.write_bytes(field::REFTABLE_OFFSET, &fields)?;
        self.storage.sync()?;
        let old = state.reftable_offset >> self.cluster_bits;
        state.file_end = state.file_end.max(place(used));
        state.reftable = table;
        state.reftable_offset = offset;
        state.free(old, (old_entries * 8).div_ceil(cluster));
        Ok(())
    }
}
