//! New images.

use std::io;

use super::super::storage::Storage;
use super::entry::set_refcount;
use super::header::{Compression, Header, MAX_L1_BYTES, build};

/// What a new image is like.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes of the disk, a multiple of 512.
    pub size: u64,
    /// Its backing file's name and format.
    pub backing: Option<(String, String)>,
    /// log2 of the bytes of a cluster, 9 to 21; 16 otherwise.
    pub cluster_bits: Option<u32>,
}

/// Makes an empty image, of version 3, in `storage`, which is empty.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a size that does not fit; the host's.
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> io::Result<()> {
    let cluster_bits = options.cluster_bits.unwrap_or(16);
    let cluster = 1_u64 << cluster_bits;
    let l1_size = options.size.div_ceil(cluster * cluster / 8);
    let l1_clusters = (l1_size * 8).div_ceil(cluster).max(1);
    // Header, refcount table, one refcount block, L1 table.
    let used = 3 + l1_clusters;
    if l1_size * 8 > MAX_L1_BYTES || used > cluster / 2 || !options.size.is_multiple_of(512) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let header = build(&Header {
        version: 3,
        cluster_bits,
        size: options.size,
        l1_size: l1_size as u32,
        l1_offset: 3 * cluster,
        reftable_offset: cluster,
        reftable_clusters: 1,
        snapshots: 0,
        refcount_order: 4,
        compression: Compression::Zlib,
        backing_file: options.backing.as_ref().map(|(file, _)| file.clone()),
        backing_format: options.backing.as_ref().map(|(_, format)| format.clone()),
        autoclear: 0,
        readonly_because: None,
    });
    if header.len() as u64 > cluster {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut block = vec![0; cluster as usize];
    (0..used as usize).for_each(|index| set_refcount(&mut block, 4, index, 1));
    storage.write_bytes(cluster, &(2 * cluster).to_be_bytes())?;
    storage.write_bytes(2 * cluster, &block)?;
    storage.set_len(used * cluster)?;
    storage.write_bytes(0, &header)
}
