//! The machine's drives by name.

use std::io;
use std::sync::{Arc, Mutex};

use super::disk::{Disk, DiskParts, Properties};
use super::engine::{Behaviour, lock};
use super::error::BlockError;
use super::image::Image;
use super::open::{self, Aio, Format, ImageOptions};
use super::policy::{ErrorReport, OnError};
use super::segments::{Source, Target};
use super::throttle::Limits;

/// A drive to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveOptions {
    /// Its id.
    pub id: String,
    /// The image; none in an empty drive.
    pub image: Option<ImageOptions>,
    /// What becomes of writes that fail.
    pub werror: OnError,
    /// What becomes of reads that fail.
    pub rerror: OnError,
    /// Limits.
    pub limits: Limits,
    /// What get-id answers.
    pub serial: String,
    /// Writes of zeros become holes.
    pub detect_zeroes: bool,
    /// A `--blockdev`: its id is a node's name.
    pub node: bool,
    /// Bytes of a logical and of a physical block.
    pub blocks: (u32, u32),
}

impl DriveOptions {
    /// A drive with the defaults of `--drive`.
    pub fn new(id: impl Into<String>, image: Option<ImageOptions>) -> Self {
        Self {
            id: id.into(),
            image,
            werror: OnError::Enospc,
            rerror: OnError::Report,
            limits: Limits::default(),
            serial: String::new(),
            detect_zeroes: false,
            node: false,
            blocks: (512, 512),
        }
    }
}

/// A drive with what it was made of.
struct Entry {
    disk: Arc<Disk>,
    options: DriveOptions,
}

/// What the monitor shows of a drive.
#[derive(Clone)]
pub struct DriveView {
    /// It.
    pub disk: Arc<Disk>,
    /// What it was made of.
    pub options: DriveOptions,
}

/// All drives. Clones are the same.
#[derive(Clone)]
pub struct Disks {
    entries: Arc<Mutex<Vec<Entry>>>,
    on_error: Arc<dyn Fn(ErrorReport) + Send + Sync>,
    warn: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Disks {
    /// No drives. `on_error` hears of failed requests, `warn` of what the user should know.
    pub fn new(
        on_error: Arc<dyn Fn(ErrorReport) + Send + Sync>,
        warn: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Self { entries: Arc::default(), on_error, warn }
    }

    /// Opens a drive's image and starts its threads.
    ///
    /// # Errors
    /// With the cause and the remedy.
    pub fn add(&self, options: DriveOptions) -> Result<Arc<Disk>, BlockError> {
        if lock(&self.entries).iter().any(|entry| entry.options.id == options.id) {
            return Err(BlockError::Duplicate { name: options.id });
        }
        options.limits.check().map_err(BlockError::Refused)?;
        let image = self.open(options.image.as_ref())?;
        let spec = options.image.as_ref();
        let cache = spec.map(|image| image.cache).unwrap_or_default();
        let discard = spec.is_some_and(|image| image.discard);
        let disk = Disk::start(DiskParts {
            name: options.id.clone(),
            image,
            behaviour: Behaviour {
                on_read_error: options.rerror,
                on_write_error: options.werror,
                write_through: cache.write_through,
                discard,
                detect_zeroes: options.detect_zeroes,
                direct: cache.direct,
                aio: spec.map_or(Aio::Threads, |image| image.aio),
                on_error: self.on_error.clone(),
            },
            limits: options.limits,
            properties: Properties {
                sectors: 0,
                logical_block: options.blocks.0,
                physical_block: options.blocks.1,
                readonly: spec.is_some_and(|image| image.readonly),
                discard,
                write_cache: !cache.write_through,
                serial: options.serial.clone(),
            },
            threads: if cache.direct { 16 } else { 4 },
        })?;
        lock(&self.entries).push(Entry { disk: disk.clone(), options });
        Ok(disk)
    }

    fn open(&self, options: Option<&ImageOptions>) -> Result<Option<Arc<dyn Image>>, BlockError> {
        let Some(options) = options else { return Ok(None) };
        let opened = open::open(options)?;
        opened.warnings.iter().for_each(|text| (self.warn)(text));
        Ok(Some(opened.image))
    }

    /// The drive of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Disk>> {
        let entries = lock(&self.entries);
        entries.iter().find(|entry| entry.options.id == name).map(|entry| entry.disk.clone())
    }

    /// The drive of this name.
    ///
    /// # Errors
    /// [`BlockError::NoSuchDrive`] with the names that there are.
    pub fn find(&self, name: &str) -> Result<Arc<Disk>, BlockError> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// What to say when there is no drive of this name.
    pub fn missing(&self, name: &str) -> BlockError {
        let names: Vec<_> =
            lock(&self.entries).iter().map(|entry| entry.options.id.clone()).collect();
        let hint = match names.is_empty() {
            true => format!("make it by --drive file=FILE,if=none,id={name}"),
            false => format!("there are {}", names.join(", ")),
        };
        BlockError::NoSuchDrive { name: name.to_owned(), hint }
    }

    /// All drives, in the order in which they were made.
    pub fn all(&self) -> Vec<DriveView> {
        let entries = lock(&self.entries);
        let view =
            |entry: &Entry| DriveView { disk: entry.disk.clone(), options: entry.options.clone() };
        entries.iter().map(view).collect()
    }

    /// Takes a drive out. Its image is closed once no device uses it.
    ///
    /// # Errors
    /// [`BlockError::NoSuchDrive`]; [`BlockError::InUse`].
    pub fn remove(&self, name: &str) -> Result<(), BlockError> {
        let disk = self.find(name)?;
        if let Some(owner) = disk.owner() {
            return Err(BlockError::InUse { name: name.to_owned(), owner });
        }
        lock(&self.entries).retain(|entry| entry.options.id != name);
        Ok(())
    }

    /// Puts another image into a drive, or none.
    ///
    /// # Errors
    /// When there is no such drive, or the image cannot be opened; the old one stays then.
    pub fn change(&self, name: &str, image: Option<ImageOptions>) -> Result<(), BlockError> {
        let disk = self.find(name)?;
        let new = self.open(image.as_ref())?;
        let readonly = image.as_ref().is_some_and(|image| image.readonly);
        disk.replace(readonly, |place| {
            *place = new;
            Ok::<_, BlockError>(())
        })?;
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.options.id == name) {
            entry.options.image = image;
        }
        Ok(())
    }

    /// Moves what a drive's image holds into the image that it is based on. Waits for what is under
    /// way.
    ///
    /// # Errors
    /// When there is nothing to move to, or the host fails; the disk reads as before then.
    pub fn commit(&self, name: &str) -> Result<(), BlockError> {
        let disk = self.find(name)?;
        let options = self.all().into_iter().find(|view| view.options.id == name);
        let Some(spec) = options.and_then(|view| view.options.image) else {
            return Err(BlockError::Refused(format!("drive '{name}' is empty")));
        };
        if spec.readonly {
            return Err(BlockError::Refused(format!("drive '{name}' is read-only")));
        }
        let base = match spec.snapshot {
            true => Some((spec.file.clone(), spec.format)),
            false => {
                let files = open::chain_files(&spec);
                files.get(1).map(|file| (file.clone(), None::<Format>))
            }
        };
        let Some((file, format)) = base else {
            return Err(BlockError::Refused(format!(
                "drive '{name}' is based on no other image that could take what it holds"
            )));
        };
        // Our own chain has the base open for reading, so its locks are ours.
        let base =
            ImageOptions { format, cache: spec.cache, locking: false, ..ImageOptions::new(file) };
        let base = open::open(&base)?.image;
        disk.replace(spec.readonly, |place| {
            let Some(image) = place.as_deref() else { return Ok(()) };
            move_down(image, &*base).map_err(|cause| BlockError::Io {
                path: name.to_owned(),
                what: "committing",
                cause,
            })?;
            // The chain remembers the base as it was.
            drop((base, place.take()));
            *place = self.open(Some(&spec))?;
            Ok(())
        })
    }

    /// Makes durable what all drives hold.
    pub fn flush_all(&self) {
        for view in self.all() {
            if let Err(error) = view.disk.flush() {
                (self.warn)(&format!("drive '{}' could not be flushed ({error})", view.options.id));
            }
        }
    }
}

/// Copies what `image` itself holds to `base`, and has `image` forget it.
fn move_down(image: &dyn Image, base: &dyn Image) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    if base.size() < image.size() {
        base.resize(image.size()).map_err(io::Error::other)?;
    }
    let mut data = vec![0; CHUNK as usize];
    image.own_ranges(&mut |offset, len| {
        let mut at = 0;
        while at < len {
            let piece = &mut data[..(len - at).min(CHUNK) as usize];
            image.read(offset + at, &Target::new(piece))?;
            base.write(offset + at, &Source::new(piece))?;
            at += piece.len() as u64;
        }
        Ok(())
    })?;
    base.flush()?;
    image.forget()
}
