//! A drive: an image with its threads, limits and what becomes of errors.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use board::GuestRam;
use board::device::Notifier;

use super::channel::Channel;
use super::engine::{Behaviour, Engine, lock};
use super::error::BlockError;
use super::image::{Image, ImageInfo};
use super::memory::Null;
use super::policy::OnError;
use super::stats::DiskStats;
use super::throttle::Limits;

/// What a device tells its guest about a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// 512-byte sectors; 0 without a medium.
    pub sectors: u64,
    /// Bytes of a block that the guest should not go below.
    pub logical_block: u32,
    /// Bytes that the host writes in one go.
    pub physical_block: u32,
    /// Writes are refused.
    pub readonly: bool,
    /// Discards have an effect.
    pub discard: bool,
    /// There is something to flush.
    pub write_cache: bool,
    /// What get-id answers.
    pub serial: String,
}

/// What a drive is made of besides its image.
pub struct DiskParts {
    /// Its id.
    pub name: String,
    /// The image; none in an empty drive.
    pub image: Option<Arc<dyn Image>>,
    /// How requests are carried out.
    pub behaviour: Behaviour,
    /// Limits.
    pub limits: Limits,
    /// What the device is told; the sectors are the image's.
    pub properties: Properties,
    /// How many requests may wait for the host at once.
    pub threads: usize,
}

#[derive(Default)]
struct Holder {
    owner: Option<String>,
    resized: Option<Notifier>,
}

/// A drive.
pub struct Disk {
    engine: Arc<Engine>,
    properties: Mutex<Properties>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    holder: Mutex<Holder>,
}

impl Disk {
    /// Starts a drive's threads.
    ///
    /// # Errors
    /// When the host has none to give.
    pub fn start(parts: DiskParts) -> Result<Arc<Self>, BlockError> {
        let DiskParts { name, image, behaviour, limits, mut properties, threads } = parts;
        properties.sectors = image.as_ref().map_or(0, |image| image.size() / 512);
        let (engine, workers) =
            Engine::start(&name, image, behaviour, limits, threads).map_err(|cause| {
                BlockError::Refused(format!(
                    "cannot start the threads of drive '{name}' ({cause}): raise the limit on processes (ulimit -u)"
                ))
            })?;
        Ok(Arc::new(Self {
            engine,
            properties: Mutex::new(properties),
            workers: Mutex::new(workers),
            holder: Mutex::default(),
        }))
    }

    /// A drive with plain behaviour on `image`.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn plain(name: &str, image: Arc<dyn Image>) -> Result<Arc<Self>, BlockError> {
        Self::start(DiskParts {
            name: name.to_owned(),
            image: Some(image),
            behaviour: Behaviour {
                on_read_error: OnError::Report,
                on_write_error: OnError::Report,
                write_through: false,
                discard: true,
                detect_zeroes: false,
                direct: false,
                aio: super::open::Aio::Threads,
                on_error: Arc::new(|_| ()),
            },
            limits: Limits::default(),
            properties: Properties {
                sectors: 0,
                logical_block: 512,
                physical_block: 512,
                readonly: false,
                discard: true,
                write_cache: true,
                serial: String::new(),
            },
            threads: 2,
        })
    }

    /// A drive of `sectors` that moves no data, for benchmarks and tests.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn null(sectors: u64) -> Result<Arc<Self>, BlockError> {
        Self::plain("null", Arc::new(Null(sectors * 512)))
    }

    /// A drive in memory that begins with `bytes`, for tests.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn memory(bytes: Vec<u8>) -> Result<Arc<Self>, BlockError> {
        let storage = Arc::new(super::memory::Memory::new(bytes));
        Self::plain("memory", Arc::new(super::raw::Raw::new("memory", storage, false)?))
    }

    /// Its id.
    pub fn name(&self) -> &str {
        &self.engine.name
    }

    /// What a device tells its guest. The sectors change by [`Disk::resize`].
    pub fn properties(&self) -> Properties {
        lock(&self.properties).clone()
    }

    /// Makes `owner` the one device that uses this drive. `resized` is notified when the sectors
    /// change.
    ///
    /// # Errors
    /// [`BlockError::InUse`].
    pub fn claim(
        self: &Arc<Self>,
        ram: &GuestRam,
        owner: &str,
        resized: Notifier,
    ) -> Result<Arc<Claim>, BlockError> {
        let mut holder = lock(&self.holder);
        if let Some(owner) = &holder.owner {
            return Err(BlockError::InUse { name: self.name().to_owned(), owner: owner.clone() });
        }
        *holder = Holder { owner: Some(owner.to_owned()), resized: Some(resized) };
        Ok(Arc::new(Claim { disk: self.clone(), ram: ram.clone() }))
    }

    /// The device that uses it.
    pub fn owner(&self) -> Option<String> {
        lock(&self.holder).owner.clone()
    }

    /// Sets what becomes of reads and of other requests that fail, where given.
    pub fn set_policies(&self, read: Option<OnError>, write: Option<OnError>) {
        self.engine.set_policies(read, write);
    }

    /// Sets the bytes of a logical and of a physical block that the guest is told.
    pub fn set_blocks(&self, (logical, physical): (u32, u32)) {
        let mut properties = lock(&self.properties);
        properties.logical_block = logical;
        properties.physical_block = physical;
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        lock(&self.workers).len()
    }

    /// Has each of its threads call `chore` once, and waits for that.
    pub fn on_each_thread(&self, chore: Arc<dyn Fn() + Send + Sync>) {
        self.engine.on_each_thread(self.threads(), chore);
    }

    /// What is counted.
    pub fn stats(&self) -> DiskStats {
        self.engine.stats.snapshot()
    }

    /// The image.
    pub fn image(&self) -> Option<Arc<dyn Image>> {
        self.engine.image.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the image is.
    pub fn image_info(&self) -> Option<ImageInfo> {
        self.image().map(|image| image.info())
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.engine.limits()
    }

    /// Sets other limits.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn set_limits(&self, limits: Limits) -> Result<(), BlockError> {
        limits.check().map_err(BlockError::Refused)?;
        self.engine.set_limits(limits);
        Ok(())
    }

    /// Makes the disk `size` bytes long, which the guest is told. Waits for what is under way.
    ///
    /// # Errors
    /// When the size is not a multiple of 512, or the image cannot have it.
    pub fn resize(&self, size: u64) -> Result<(), BlockError> {
        if !size.is_multiple_of(512) {
            return Err(BlockError::Refused(format!(
                "a disk of {size} bytes has no whole number of sectors: give a multiple of 512"
            )));
        }
        if lock(&self.properties).readonly {
            return Err(BlockError::Refused(format!("drive '{}' is read-only", self.name())));
        }
        let Some(image) = self.image() else {
            return Err(BlockError::Refused(format!("drive '{}' is empty", self.name())));
        };
        self.engine.quietly(|| image.resize(size))?;
        self.set_sectors(size / 512);
        Ok(())
    }

    /// Puts in what `change` makes of the image, or none. Waits for what is under way. When `change`
    /// fails, the drive is as `change` has left it: empty, unless it gives the old image back.
    ///
    /// # Errors
    /// What `change` says.
    pub fn replace<E>(
        &self,
        readonly: bool,
        change: impl FnOnce(&mut Option<Arc<dyn Image>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut sectors = 0;
        let result = self.engine.quietly(|| {
            let mut place = self.engine.image.write().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut place);
            sectors = place.as_ref().map_or(0, |image| image.size() / 512);
            result
        });
        lock(&self.properties).readonly = readonly;
        self.set_sectors(sectors);
        result
    }

    /// Runs `change` on the image while no request is under way.
    pub fn quietly<T>(&self, change: impl FnOnce(Option<&dyn Image>) -> T) -> T {
        let image = self.image();
        self.engine.quietly(|| change(image.as_deref()))
    }

    fn set_sectors(&self, sectors: u64) {
        lock(&self.properties).sectors = sectors;
        if let Some(resized) = &lock(&self.holder).resized {
            resized.notify();
        }
    }

    /// Makes durable what was written, as before the machine ends.
    ///
    /// # Errors
    /// The host's.
    pub fn flush(&self) -> std::io::Result<()> {
        self.image().map_or(Ok(()), |image| image.flush())
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.engine.end();
        for worker in lock(&self.workers).drain(..) {
            // It has ended, by a panic or not.
            let _ = worker.join();
        }
        // Nobody is left who could be told of an error; the image's own drop tells the user.
        let _ = self.flush();
    }
}

/// A device's hold on a drive. Dropping it, and its channels, lets the drive go.
pub struct Claim {
    disk: Arc<Disk>,
    ram: GuestRam,
}

impl Claim {
    /// The drive.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// A way to the drive. `done` is notified when completions are there.
    pub fn channel(self: &Arc<Self>, done: Notifier) -> Channel {
        Channel::new(self.clone(), done)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *lock(&self.disk.holder) = Holder::default();
    }
}
