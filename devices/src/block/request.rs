//! What a device asks of a drive, and what it hears back.

use super::segments::GuestRange;
use super::stats::Kind;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Data from the disk into the buffers.
    Read,
    /// Data from the buffers to the disk.
    Write,
    /// Whatever was completed before is to be durable.
    Flush,
    /// The contents are of no use any more.
    Discard {
        /// Bytes.
        len: u64,
    },
    /// The range is to read as zeros.
    WriteZeroes {
        /// Bytes.
        len: u64,
        /// Its space may be given back.
        unmap: bool,
    },
}

impl Op {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Read => Kind::Read,
            Self::Write => Kind::Write,
            Self::Flush => Kind::Flush,
            Self::Discard { .. } | Self::WriteZeroes { .. } => Kind::Unmap,
        }
    }

    /// Whether it changes the disk.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Discard { .. } | Self::WriteZeroes { .. })
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub op: Op,
    /// The first byte on the disk.
    pub offset: u64,
    /// The memory of a read or write, in order.
    pub buffers: Vec<GuestRange>,
    /// The device's own name for it.
    pub token: u64,
}

impl Request {
    /// Bytes of the disk that it is about.
    pub fn len(&self) -> u64 {
        match self.op {
            Op::Read | Op::Write => self.buffers.iter().map(|range| u64::from(range.len)).sum(),
            Op::Flush => 0,
            Op::Discard { len } | Op::WriteZeroes { len, .. } => len,
        }
    }

    /// Whether it is about no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is done.
    Done,
    /// It failed.
    Error,
    /// The drive does not do this.
    Unsupported,
    /// It was not done, and is to be submitted again when the machine goes on.
    Again,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's.
    pub token: u64,
    /// How it ended.
    pub status: Status,
}
