//! qcow2 images, versions 2 and 3 (QEMU, docs/interop/qcow2.txt).
//!
//! How an image stays sound whenever the process or the host dies:
//!
//! 1. A cluster is claimed in the refcounts (in memory), then its data is written, then the L2
//!    entry points to it (in memory).
//! 2. Refcounts reach the file before L2 entries do, with a barrier in between; L1 entries and
//!    entries of the refcount table are written when what they point to is in the file.
//! 3. What is given up keeps its refcount until the L2 entry that pointed to it has been replaced
//!    in the file, and until no request that may still use it is under way.
//!
//! So a crash leaves clusters with too high a refcount (leaked), never one with too low a one.
//!
//! All tables are under one lock; data is read and written outside it.

mod cache;
mod compressed;
mod create;
mod entry;
mod flush;
mod header;
mod read;
mod refcounts;
mod tables;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::engine::lock;
use super::error::BlockError;
use super::image::{Image, ImageInfo, Place, write_zeros};
use super::segments::{Source, Target};
use super::storage::Storage;
use cache::Cache;
use compressed::Unpacked;
use header::{Header, Refusal, be64, field};

pub use create::{CreateOptions, create};
pub use header::Compression;

/// Bytes of a slice of a table in memory, at most.
const SLICE: u64 = 4096;
/// Memory for L2 tables: with 64 KiB clusters this maps 256 GiB.
const L2_CACHE: usize = 32 << 20;
/// Memory for refcounts.
const REF_CACHE: usize = 4 << 20;
/// Clusters given up but not free yet that cause a flush of our own.
const MAX_FREED: u64 = 4096;

/// A qcow2 image.
pub struct Qcow2 {
    path: String,
    storage: Arc<dyn Storage>,
    backing: Option<Arc<dyn Image>>,
    writable: bool,
    /// Free clusters become holes in the file.
    punch: bool,
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    compression: Compression,
    backing_file: Option<String>,
    size: AtomicU64,
    state: Mutex<State>,
    /// Is signalled when clusters are busy no more.
    settled: Condvar,
    /// Is held during a flush.
    flushing: Mutex<()>,
    unpacked: Mutex<Unpacked>,
}

/// What was given up since a point in time, and who may still use it.
#[derive(Default)]
struct Epoch {
    /// Each request under way holds the lease of the epoch in which it began.
    lease: Arc<()>,
    /// Runs of clusters, by number: first and count.
    freed: Vec<(u64, u64)>,
}

struct State {
    l1: Vec<u64>,
    l1_offset: u64,
    l2: Cache,
    reftable: Vec<u64>,
    reftable_offset: u64,
    refblocks: Cache,
    /// No cluster below this one is free.
    hint: u64,
    /// Nothing was ever written from here on.
    file_end: u64,
    /// Guest clusters that are being given a place.
    busy: BTreeSet<u64>,
    /// The last one is the present.
    epochs: VecDeque<Epoch>,
    /// Clusters in `epochs`.
    freed: u64,
}

/// The image contradicts itself.
fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// How an image is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Not only for reading.
    pub write: bool,
    /// What is freed becomes a hole in the file.
    pub punch: bool,
}

/// What an image says that it is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The name as it stands in the image.
    pub file: String,
    /// The format, if it stands there.
    pub format: Option<String>,
}

/// Reads what the image in `storage` says that it is based on.
///
/// # Errors
/// When it is no sound image, or needs what is not there.
pub fn backing(path: &str, storage: &dyn Storage) -> Result<Option<Backing>, BlockError> {
    let header = read_header(path, storage)?;
    Ok(header.backing_file.map(|file| Backing { file, format: header.backing_format }))
}

fn read_header(path: &str, storage: &dyn Storage) -> Result<Header, BlockError> {
    let io = |cause| BlockError::Io { path: path.to_owned(), what: "reading its header", cause };
    let len = storage.len().map_err(io)?;
    // The header lies in the first cluster, whose size the header tells.
    let mut head = vec![0; len.min(4096) as usize];
    storage.read_bytes(0, &mut head).map_err(io)?;
    let mut parsed = Header::parse(&head, len);
    if head.len() >= 24 && len > 4096 {
        let bits = header::be32(&head, 20);
        if (13..=21).contains(&bits) {
            head = vec![0; len.min(1 << bits) as usize];
            storage.read_bytes(0, &mut head).map_err(io)?;
            parsed = Header::parse(&head, len);
        }
    }
    parsed.map_err(|refusal| match refusal {
        Refusal::Damaged(cause) => {
            BlockError::Damaged { path: path.to_owned(), format: "qcow2", cause }
        }
        Refusal::Unsupported(what) => BlockError::Unsupported { path: path.to_owned(), what },
    })
}

impl Qcow2 {
    /// Opens the image in `storage`, which is based on `backing`.
    ///
    /// # Errors
    /// When it is no sound image, needs what is not there, or the host fails.
    pub fn open(
        path: &str,
        storage: Arc<dyn Storage>,
        backing: Option<Arc<dyn Image>>,
        options: OpenOptions,
    ) -> Result<Self, BlockError> {
        let header = read_header(path, &*storage)?;
        if let Some(why) = header.readonly_because.filter(|_| options.write) {
            return Err(BlockError::Unsupported {
                path: path.to_owned(),
                what: format!("{why}: repair it by qemu-img check -r all, or add readonly=on"),
            });
        }
        let io =
            |cause| BlockError::Io { path: path.to_owned(), what: "reading its tables", cause };
        let cluster = header.cluster_size();
        let l1 = read_table(&*storage, header.l1_offset, header.l1_size as usize).map_err(io)?;
        let entries = (u64::from(header.reftable_clusters) * cluster / 8) as usize;
        let reftable = read_table(&*storage, header.reftable_offset, entries).map_err(io)?;
        let file_end = storage.len().map_err(io)?.next_multiple_of(cluster);
        let slice = SLICE.min(cluster) as usize;
        let image = Self {
            path: path.to_owned(),
            storage,
            backing,
            writable: options.write,
            punch: options.punch,
            version: header.version,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            compression: header.compression,
            backing_file: header.backing_file,
            size: AtomicU64::new(header.size),
            state: Mutex::new(State {
                l1,
                l1_offset: header.l1_offset,
                l2: Cache::new(slice, L2_CACHE),
                reftable,
                reftable_offset: header.reftable_offset,
                refblocks: Cache::new(slice, REF_CACHE),
                hint: 0,
                file_end,
                busy: BTreeSet::new(),
                epochs: VecDeque::from([Epoch::default()]),
                freed: 0,
            }),
            settled: Condvar::new(),
            flushing: Mutex::new(()),
            unpacked: Mutex::default(),
        };
        if options.write && header.autoclear != 0 {
            // Whoever does not keep such a feature's data up to date clears its bit.
            image.storage.write_bytes(field::AUTOCLEAR, &[0; 8]).map_err(|cause| {
                BlockError::Io { path: path.to_owned(), what: "writing its header", cause }
            })?;
        }
        Ok(image)
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// L2 entries of a table.
    fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn read_table(storage: &dyn Storage, offset: u64, entries: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; entries * 8];
    storage.read_bytes(offset, &mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

impl State {
    /// The lease that a request holds while it uses what it has looked up.
    fn lease(&self) -> Arc<()> {
        self.epochs.back().map(|epoch| epoch.lease.clone()).unwrap_or_default()
    }

    /// Gives up `count` clusters from number `first` on, once that is safe.
    fn free(&mut self, first: u64, count: u64) {
        if let Some(epoch) = self.epochs.back_mut() {
            epoch.freed.push((first, count));
            self.freed += count;
        }
    }
}

impl Image for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        self.read_at(offset, target)
    }

    fn read_now(&self, offset: u64, target: &Target<'_>) -> io::Result<bool> {
        self.read_cached(offset, target)
    }

    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        self.check_writable()?;
        self.write_at(offset, source)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        self.over_clusters(
            offset,
            len,
            |cluster, count| self.zero_clusters(cluster, count, unmap),
            |at, len| write_zeros(at, len, &mut |at, zeros| self.write_at(at, zeros)),
        )
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        // Parts of clusters stay as they are.
        self.over_clusters(
            offset,
            len,
            |cluster, count| self.discard_clusters(cluster, count).map(|()| true),
            |_, _| Ok(()),
        )
    }

    fn flush(&self) -> io::Result<()> {
        if self.writable { self.flush_tables() } else { Ok(()) }
    }

    fn resize(&self, size: u64) -> Result<(), BlockError> {
        self.grow(size)
    }

    fn place(&self, offset: u64, len: u64, write: bool) -> Option<Place> {
        self.place_of(offset, len, write)
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: "qcow2",
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            cluster_size: Some(self.cluster_size()),
            backing_file: self.backing_file.clone(),
        }
    }

    fn own_ranges(&self, each: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
        self.for_own_clusters(each)
    }

    fn forget(&self) -> io::Result<()> {
        self.check_writable()?;
        self.forget_clusters()?;
        self.flush_tables()
    }
}

impl Qcow2 {
    fn check_writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EROFS)),
        }
    }

    /// Splits a range into whole clusters, for `whole` (which may decline), and the rest.
    fn over_clusters(
        &self,
        offset: u64,
        len: u64,
        whole: impl Fn(u64, u64) -> io::Result<bool>,
        part: impl Fn(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (cluster, end) = (self.cluster_size(), offset + len);
        let first = offset.next_multiple_of(cluster);
        // The last cluster of the disk may be cut off: what lies past the end does not matter.
        let last = if end == self.size() {
            end.next_multiple_of(cluster)
        } else {
            end / cluster * cluster
        };
        if first >= last {
            return part(offset, len);
        }
        if offset < first {
            part(offset, first - offset)?;
        }
        // Piece by piece, so that nobody waits long for the tables.
        let (mut at, step) = (first >> self.cluster_bits, self.l2_entries());
        let stop = last >> self.cluster_bits;
        while at < stop {
            let count = (step - at % step).min(stop - at);
            if !whole(at, count)? {
                let from = at << self.cluster_bits;
                part(from, (count << self.cluster_bits).min(end - from))?;
            }
            at += count;
        }
        if end > last {
            part(last, end - last)?;
        }
        if self.lock().freed > MAX_FREED {
            self.flush_tables()?;
        }
        Ok(())
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.writable {
            // What cannot be written leaks, as after a crash; there is nobody to tell.
            let _ = self.flush_tables();
            let _ = self.write_refcounts(&mut self.lock());
        }
    }
}
