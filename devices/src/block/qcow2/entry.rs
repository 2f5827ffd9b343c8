//! What an L2 entry says about a cluster (docs/interop/qcow2.txt, "Cluster mapping").

/// The cluster's refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3).
pub(super) const ZERO: u64 = 1;
/// The host offset in L1 and L2 entries.
pub(super) const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;

/// Where a guest's cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Not here: in the backing file, or zeros.
    Unallocated,
    /// Reads as zeros; it may have a place in the file.
    Zero(Option<u64>),
    /// At an offset in the file; whether it may be written there.
    Data { host: u64, copied: bool },
    /// Compressed data.
    Compressed(Packed),
}

/// Where compressed data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    /// Its first byte in the file.
    pub(super) host: u64,
    /// Bytes, at most.
    pub(super) len: u64,
}

/// Reads an L2 entry; `None`: it is damaged.
pub(super) fn decode(entry: u64, cluster_bits: u32, version: u32) -> Option<Cluster> {
    if entry & COMPRESSED != 0 {
        // The number of further 512-byte sectors stands above the offset.
        let shift = 62 - (cluster_bits - 8);
        let host = entry & ((1 << shift) - 1);
        let sectors = entry >> shift & ((1 << (cluster_bits - 8)) - 1);
        let len = (sectors + 1) * 512 - (host & 511);
        return Some(Cluster::Compressed(Packed { host, len }));
    }
    let host = entry & OFFSET;
    if host & ((1 << cluster_bits) - 1) != 0 {
        return None;
    }
    let place = (host != 0).then_some(host);
    if version >= 3 && entry & ZERO != 0 {
        return Some(Cluster::Zero(place));
    }
    Some(match place {
        None => Cluster::Unallocated,
        Some(host) => Cluster::Data { host, copied: entry & COPIED != 0 },
    })
}

/// Bits of the refcount at `index` of a block.
pub(super) fn refcount(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..=2 => {
            let bits = 1_usize << order;
            let at = index * bits;
            u64::from(block[at / 8] >> (at % 8) & ((1_u16 << bits) - 1) as u8)
        }
        _ => {
            let bytes = 1_usize << (order - 3);
            let stored = &block[index * bytes..(index + 1) * bytes];
            stored.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

/// Puts the refcount at `index` of a block.
pub(super) fn set_refcount(block: &mut [u8], order: u32, index: usize, value: u64) {
    match order {
        0..=2 => {
            let bits = 1_usize << order;
            let at = index * bits;
            let mask = (((1_u16 << bits) - 1) as u8) << (at % 8);
            let byte = &mut block[at / 8];
            *byte = *byte & !mask | ((value as u8) << (at % 8)) & mask;
        }
        _ => {
            let bytes = 1_usize << (order - 3);
            let stored = &mut block[index * bytes..(index + 1) * bytes];
            stored.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_format_says() {
        assert_eq!(decode(0, 16, 3), Some(Cluster::Unallocated));
        assert_eq!(decode(1, 16, 3), Some(Cluster::Zero(None)));
        assert_eq!(decode(0x50001, 16, 3), Some(Cluster::Zero(Some(0x50000))));
        assert_eq!(
            decode(COPIED | 0x50000, 16, 2),
            Some(Cluster::Data { host: 0x50000, copied: true })
        );
        assert_eq!(decode(0x50200, 16, 3), None);
        // 64 KiB clusters: 54 bits of offset, then 8 of sectors.
        let packed = COMPRESSED | 2 << 54 | 0x5_0123;
        assert_eq!(
            decode(packed, 16, 3),
            Some(Cluster::Compressed(Packed { host: 0x5_0123, len: 3 * 512 - 0x123 }))
        );
    }

    #[test]
    fn refcounts_of_every_width_are_kept_apart() {
        for order in 0..=6 {
            let mut block = [0; 512];
            let entries = (512 * 8) >> order;
            let value = |index: usize| (index as u64 * 7 + 1) & (u64::MAX >> (64 - (1 << order)));
            for index in 0..entries {
                set_refcount(&mut block, order, index, value(index));
            }
            for index in 0..entries {
                assert_eq!(refcount(&block, order, index), value(index), "{order} {index}");
            }
        }
    }
}
