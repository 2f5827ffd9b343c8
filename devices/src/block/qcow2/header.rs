//! The header of a qcow2 image and its extensions (QEMU, docs/interop/qcow2.txt, "Header").

use super::super::probe::{Probed, probe};

/// Incompatible feature: refcounts may be wrong.
const DIRTY: u64 = 1;
/// Incompatible feature: the image is known to be damaged.
pub(super) const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Bytes of the header of version 2.
const V2_LEN: usize = 72;
/// Bytes of version 3's header with the compression type.
pub(super) const V3_LEN: usize = 112;
/// The longest backing file name.
const MAX_NAME: u32 = 1023;
/// The most bytes of an L1 table, as QEMU has it.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// The most bytes of a refcount table.
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// The most snapshots.
const MAX_SNAPSHOTS: u32 = 65536;

/// Offsets of the fields that are changed in place.
pub(super) mod field {
    pub(in super::super) const SIZE: u64 = 24;
    pub(in super::super) const L1_SIZE: u64 = 36;
    pub(in super::super) const REFTABLE_OFFSET: u64 = 48;
    pub(in super::super) const INCOMPATIBLE: u64 = 72;
    pub(in super::super) const AUTOCLEAR: u64 = 88;
}

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const FEATURE_NAMES: u32 = 0x6803_F857;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// A Zstandard frame.
    Zstd,
}

/// An image's header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_size: u32,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    pub(super) backing_file: Option<String>,
    pub(super) backing_format: Option<String>,
    /// Autoclear features, of which this program knows none.
    pub(super) autoclear: u64,
    /// Why the image cannot be written, if so.
    pub(super) readonly_because: Option<&'static str>,
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is damaged.
    Damaged(String),
    /// It needs what is not there.
    Unsupported(String),
}

fn damaged<T>(cause: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Damaged(cause.into()))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Reads a header from the start of a file of `file_len` bytes; `head` is its first cluster,
    /// or what there is of it up to 2 MiB.
    pub(super) fn parse(head: &[u8], file_len: u64) -> Result<Self, Refusal> {
        if head.len() < V2_LEN || probe(head) != Probed::Qcow2 {
            return damaged("it has no qcow2 header");
        }
        let version = be32(head, 4);
        let (mut incompatible, mut autoclear) = (0, 0);
        let (mut refcount_order, mut header_len) = (4, V2_LEN);
        let mut compression = Compression::Zlib;
        if version >= 3 {
            if head.len() < 104 {
                return damaged("its header is cut off");
            }
            incompatible = be64(head, field::INCOMPATIBLE as usize);
            autoclear = be64(head, field::AUTOCLEAR as usize);
            refcount_order = be32(head, 96);
            header_len = be32(head, 100) as usize;
            if header_len < 104 || header_len % 8 != 0 || header_len > head.len() {
                return damaged(format!("its header claims to have {header_len} bytes"));
            }
        }
        let cluster_bits = be32(head, 20);
        if !(9..=21).contains(&cluster_bits) {
            return damaged(format!("a cluster has 2^{cluster_bits} bytes"));
        }
        let cluster = 1_u64 << cluster_bits;
        let head = &head[..head.len().min(cluster as usize)];
        if header_len > head.len() {
            return damaged("its header does not fit into a cluster");
        }
        let extensions = Extensions::parse(head, header_len);
        let backing_file = backing_name(head, header_len, cluster)?;
        Self::check_features(incompatible, &extensions)?;
        if incompatible & COMPRESSION_TYPE != 0 {
            compression = match head.get(104).filter(|_| header_len > 104) {
                Some(0) | None => return damaged("its compression type is not there"),
                Some(1) => Compression::Zstd,
                Some(n) => {
                    return Err(Refusal::Unsupported(format!(
                        "its clusters are compressed by method {n}; known are zlib and zstd: \
                         convert it by qemu-img convert"
                    )));
                }
            };
        }
        if be32(head, 32) != 0 {
            return Err(Refusal::Unsupported(
                "it is encrypted, which vmm does not do: decrypt it by qemu-img convert".into(),
            ));
        }
        if refcount_order > 6 {
            return damaged(format!("a refcount has 2^{refcount_order} bits"));
        }
        let header = Self {
            version,
            cluster_bits,
            size: be64(head, 24),
            l1_size: be32(head, 36),
            l1_offset: be64(head, 40),
            reftable_offset: be64(head, 48),
            reftable_clusters: be32(head, 56),
            snapshots: be32(head, 60),
            refcount_order,
            compression,
            backing_file,
            backing_format: extensions.backing_format,
            autoclear,
            readonly_because: match incompatible {
                bits if bits & CORRUPT != 0 => Some("it is marked as corrupt"),
                bits if bits & DIRTY != 0 => {
                    Some("its refcounts were not written (lazy refcounts)")
                }
                _ => None,
            },
        };
        header.check_tables(file_len)?;
        Ok(header)
    }

    fn check_features(incompatible: u64, extensions: &Extensions) -> Result<(), Refusal> {
        let known = DIRTY | CORRUPT | COMPRESSION_TYPE;
        let unknown = incompatible & !known;
        let what = match unknown {
            0 => return Ok(()),
            bits if bits & EXTENDED_L2 != 0 => "subclusters (extended_l2=on)".to_owned(),
            bits if bits & DATA_FILE != 0 => "a data file of its own (data_file=)".to_owned(),
            bits => {
                let bit = bits.trailing_zeros() as u8;
                let named = extensions.features.iter().find(|(n, _)| *n == bit);
                named.map_or_else(|| format!("feature {bit}"), |(_, name)| format!("'{name}'"))
            }
        };
        Err(Refusal::Unsupported(format!(
            "it uses {what}, which vmm does not know: convert it by qemu-img convert -O qcow2"
        )))
    }

    fn check_tables(&self, file_len: u64) -> Result<(), Refusal> {
        let cluster = self.cluster_size();
        let file_end = file_len.next_multiple_of(cluster);
        let inside = |offset: u64, len: u64| {
            offset.is_multiple_of(cluster)
                && offset >= cluster
                && offset.checked_add(len).is_some_and(|end| end <= file_end)
        };
        // An entry of L1 stands for a cluster of L2 entries, 8 bytes each.
        let covered = u128::from(self.l1_size) << (2 * self.cluster_bits - 3);
        let l1_bytes = u64::from(self.l1_size) * 8;
        if !self.size.is_multiple_of(512) {
            return damaged(format!(
                "its size, {} bytes, is no whole number of sectors",
                self.size
            ));
        }
        if l1_bytes > MAX_L1_BYTES {
            return damaged(format!("its L1 table has {} entries", self.l1_size));
        }
        if u128::from(self.size) > covered {
            return damaged("its L1 table is too short for its size");
        }
        if self.l1_size > 0 && !inside(self.l1_offset, l1_bytes) {
            return damaged(format!("its L1 table lies at {:#x}", self.l1_offset));
        }
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable_bytes == 0 || reftable_bytes > MAX_REFTABLE_BYTES {
            return damaged(format!("its refcount table has {} clusters", self.reftable_clusters));
        }
        if !inside(self.reftable_offset, reftable_bytes) {
            return damaged(format!("its refcount table lies at {:#x}", self.reftable_offset));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return damaged(format!("it has {} snapshots", self.snapshots));
        }
        Ok(())
    }
}

fn backing_name(head: &[u8], header_len: usize, cluster: u64) -> Result<Option<String>, Refusal> {
    let (offset, len) = (be64(head, 8), be32(head, 16));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(len.into());
    if len > MAX_NAME || offset < header_len as u64 || end.is_none_or(|end| end > cluster) {
        return damaged("the name of its backing file lies outside the header");
    }
    let Some(bytes) = head.get(offset as usize..offset as usize + len as usize) else {
        return damaged("the name of its backing file is cut off");
    };
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(Some(name.to_owned())),
        _ => damaged("the name of its backing file is no text"),
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    /// Incompatible features by bit.
    features: Vec<(u8, String)>,
}

impl Extensions {
    /// Those that matter here; what is cut off or unknown is passed over.
    fn parse(head: &[u8], mut at: usize) -> Self {
        let mut extensions = Self::default();
        while let Some(start) = head.get(at..at + 8) {
            let (kind, len) = (be32(start, 0), be32(start, 4) as usize);
            let Some(data) = head.get(at + 8..).and_then(|rest| rest.get(..len)) else { break };
            match kind {
                END => break,
                BACKING_FORMAT => {
                    extensions.backing_format = std::str::from_utf8(data).ok().map(str::to_owned);
                }
                FEATURE_NAMES => {
                    for entry in data.chunks_exact(48).filter(|entry| entry[0] == 0) {
                        let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
                        let name = String::from_utf8_lossy(name).into_owned();
                        extensions.features.push((entry[1], name));
                    }
                }
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        extensions
    }
}

/// A new image's header, of version 3 with 16-bit refcounts.
pub(super) fn build(header: &Header) -> Vec<u8> {
    let mut bytes = vec![0; V3_LEN];
    bytes[..4].copy_from_slice(b"QFI\xFB");
    let mut put32 = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put32(4, 3);
    put32(20, header.cluster_bits);
    put32(36, header.l1_size);
    put32(56, header.reftable_clusters);
    put32(96, header.refcount_order);
    put32(100, V3_LEN as u32);
    let mut put64 = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    put64(24, header.size);
    put64(40, header.l1_offset);
    put64(48, header.reftable_offset);
    let mut extension = |kind: u32, data: &[u8]| {
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    if let Some(format) = &header.backing_format {
        extension(BACKING_FORMAT, format.as_bytes());
    }
    extension(END, &[]);
    if let Some(name) = &header.backing_file {
        let at = bytes.len() as u64;
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}
