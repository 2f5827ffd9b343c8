//! Disks: image formats, and the threads that carry out a device's requests on them.
//!
//! From below: a [`Storage`] is a file's bytes; an [`Image`] makes a disk of one, or of a chain of
//! them (`raw`, `qcow2`); a [`Disk`] is an image with worker threads, limits and a policy for
//! errors; a [`Channel`] is a device queue's way to it. Formats know nothing of guests, the engine
//! nothing of formats.

mod channel;
mod disk;
mod drives;
mod engine;
mod error;
mod file;
mod image;
mod locks;
mod memory;
mod open;
mod policy;
mod probe;
pub mod qcow2;
mod raw;
mod request;
mod ring;
mod segments;
mod stats;
mod storage;
mod throttle;

#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use disk::{Claim, Disk, DiskParts, Properties};
pub use drives::{Disks, DriveOptions, DriveView};
pub use engine::Behaviour;
pub use error::BlockError;
pub use file::{FileMode, HostFile};
pub use image::{Image, ImageInfo, Place, Run};
pub use memory::{Memory, Null};
pub use open::{Aio, CacheMode, Format, ImageOptions, Opened, chain_files, open};
pub use policy::{ErrorReport, OnError};
pub use probe::{Probed, probe};
pub use raw::Raw;
pub use request::{Completion, Op, Request, Status};
pub use segments::{GuestRange, Source, Target, mark_written};
pub use stats::{Counts, DiskStats};
pub use storage::Storage;
pub use throttle::{Direction, Limits, Rate, Throttle};
