//! What [`Control`](crate::Control) tells about drives, and what it can be asked to do with them.
//! The serialised names are QMP's.

use serde::Serialize;

/// A drive.
#[derive(Clone, Debug, Serialize)]
pub struct BlockInfo {
    /// Its id; empty for a node of `--blockdev`.
    pub device: String,
    /// The device that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qdev: Option<String>,
    /// Of no meaning any more.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether the guest can open it.
    pub removable: bool,
    /// Whether the guest has locked it.
    pub locked: bool,
    /// The image; none in an empty drive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inserted: Option<BlockInserted>,
}

/// The image in a drive.
#[derive(Clone, Debug, Serialize)]
pub struct BlockInserted {
    /// The file.
    pub file: String,
    /// The name of its node.
    #[serde(rename = "node-name")]
    pub node_name: String,
    /// Writes are refused.
    pub ro: bool,
    /// The format.
    pub drv: &'static str,
    /// What the image is based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// How many images are below it.
    pub backing_file_depth: u64,
    /// Never.
    pub encrypted: bool,
    /// "off", "on"
    pub detect_zeroes: &'static str,
    /// The limits.
    #[serde(flatten)]
    pub limits: IoLimits,
    /// The image itself.
    pub image: BlockImage,
    /// How the host caches it.
    pub cache: BlockCache,
    /// Of no meaning any more.
    pub write_threshold: u64,
}

/// An image.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockImage {
    /// The file.
    pub filename: String,
    /// The format.
    pub format: &'static str,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that the file takes on the host.
    pub actual_size: u64,
    /// Bytes of a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// What it is based on, as the image has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
}

/// How the host caches an image.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockCache {
    /// The guest has to flush.
    pub writeback: bool,
    /// Past the page cache.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
}

/// Limits, in units a second; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are QMP's: bytes and requests, read and written")]
pub struct IoLimits {
    pub bps: u64,
    pub bps_rd: u64,
    pub bps_wr: u64,
    pub iops: u64,
    pub iops_rd: u64,
    pub iops_wr: u64,
}

/// A drive's counters.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStatsReply {
    /// Its id.
    pub device: String,
    /// The device that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qdev: Option<String>,
    /// The counters.
    pub stats: BlockCounters,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are QMP's")]
pub struct BlockCounters {
    pub rd_bytes: u64,
    pub wr_bytes: u64,
    pub unmap_bytes: u64,
    pub rd_operations: u64,
    pub wr_operations: u64,
    pub flush_operations: u64,
    pub unmap_operations: u64,
    pub rd_total_time_ns: u64,
    pub wr_total_time_ns: u64,
    pub flush_total_time_ns: u64,
    pub unmap_total_time_ns: u64,
    pub rd_merged: u64,
    pub wr_merged: u64,
    pub failed_rd_operations: u64,
    pub failed_wr_operations: u64,
    pub failed_flush_operations: u64,
    pub failed_unmap_operations: u64,
    pub invalid_rd_operations: u64,
    pub invalid_wr_operations: u64,
    pub invalid_flush_operations: u64,
    pub invalid_unmap_operations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_time_ns: Option<u64>,
}

/// What can be done with drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockAction {
    /// Another size, in bytes.
    Resize {
        /// The drive.
        device: String,
        /// Bytes.
        size: u64,
    },
    /// Other limits.
    Throttle {
        /// The drive.
        device: String,
        /// The limits.
        limits: IoLimits,
    },
    /// A new drive, as `--drive` has it.
    Add(String),
    /// No drive of this name any more.
    Delete(String),
    /// No image in it.
    Eject(String),
    /// Another image in it.
    Change {
        /// The drive.
        device: String,
        /// The file.
        file: String,
        /// Its format; guessed otherwise.
        format: Option<String>,
        /// Whether it is read-only; as before otherwise.
        readonly: Option<bool>,
    },
    /// What the image holds goes into the one that it is based on.
    Commit(String),
}
