//! Opening an image with all that it is based on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::BlockError;
use super::file::{FileMode, HostFile};
use super::image::Image;
use super::locks::lock_image;
use super::memory::Null;
use super::probe::{Probed, probe};
use super::qcow2::{self, CreateOptions, Qcow2};
use super::raw::Raw;
use super::storage::Storage;

/// The most images of a chain.
const MAX_CHAIN: usize = 64;

/// An image's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes are the file's.
    Raw,
    /// QEMU's.
    Qcow2,
}

impl Format {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// `cache=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMode {
    /// Past the host's page cache.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
    /// Each write is durable before it is complete.
    pub write_through: bool,
}

/// Who carries out transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// Threads with plain system calls.
    #[default]
    Threads,
    /// The kernel's submission ring, with threads for what is no plain transfer.
    IoUring,
}

/// An image to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// The file; empty for a null disk.
    pub file: PathBuf,
    /// Its format; it is guessed otherwise.
    pub format: Option<Format>,
    /// Writes are refused.
    pub readonly: bool,
    /// How the host caches.
    pub cache: CacheMode,
    /// Who carries out transfers.
    pub aio: Aio,
    /// What is discarded becomes holes.
    pub discard: bool,
    /// Writes go to a file that is thrown away.
    pub snapshot: bool,
    /// Locks that other programs heed.
    pub locking: bool,
    /// A disk of this many bytes that is nowhere, in place of a file.
    pub null: Option<u64>,
}

impl ImageOptions {
    /// The file with the defaults of `--drive`.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            format: None,
            readonly: false,
            cache: CacheMode::default(),
            aio: Aio::Threads,
            discard: false,
            snapshot: false,
            locking: true,
            null: None,
        }
    }
}

/// An open image.
pub struct Opened {
    /// It.
    pub image: Arc<dyn Image>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A file on the way down a chain, with the images above it.
struct Chain<'a> {
    cache: CacheMode,
    locking: bool,
    discard: bool,
    seen: Vec<(u64, u64)>,
    warnings: &'a mut Vec<String>,
}

/// Opens an image and all that it is based on.
///
/// # Errors
/// With the cause and the remedy.
pub fn open(options: &ImageOptions) -> Result<Opened, BlockError> {
    let mut warnings = Vec::new();
    if let Some(size) = options.null {
        return Ok(Opened { image: Arc::new(Null(size)), warnings });
    }
    let mut chain = Chain {
        cache: options.cache,
        locking: options.locking,
        discard: options.discard,
        seen: Vec::new(),
        warnings: &mut warnings,
    };
    let write = !options.readonly && !options.snapshot;
    let mut image = chain.open(&options.file, options.format, write)?;
    if options.snapshot && !options.readonly {
        image = overlay(image, options)?;
    }
    Ok(Opened { image, warnings })
}

/// An image over `base` that takes all writes and is thrown away.
fn overlay(base: Arc<dyn Image>, options: &ImageOptions) -> Result<Arc<dyn Image>, BlockError> {
    let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let path = shown(&dir);
    let refused =
        |cause| BlockError::File { what: "make a temporary file in", path: path.clone(), cause };
    let file = anonymous(&dir).map_err(refused)?;
    let storage: Arc<dyn Storage> = Arc::new(HostFile::anonymous(file));
    let create = CreateOptions {
        size: base.size(),
        backing: Some((shown(&options.file), base.info().format.to_owned())),
        cluster_bits: None,
    };
    qcow2::create(&*storage, &create).map_err(refused)?;
    let mode = qcow2::OpenOptions { write: true, punch: true };
    Ok(Arc::new(Qcow2::open("the temporary overlay", storage, Some(base), mode)?))
}

/// A file without a name in `dir`.
fn anonymous(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    match options.custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(dir) {
        Ok(file) => Ok(file),
        // File systems without O_TMPFILE.
        Err(_) => {
            let name = dir.join(format!(".vmm-overlay-{}", std::process::id()));
            let file = options.custom_flags(libc::O_CLOEXEC).create_new(true).open(&name)?;
            std::fs::remove_file(&name)?;
            Ok(file)
        }
    }
}

impl Chain<'_> {
    fn open(
        &mut self,
        path: &Path,
        format: Option<Format>,
        write: bool,
    ) -> Result<Arc<dyn Image>, BlockError> {
        let name = shown(path);
        let mode = FileMode { write, direct: self.cache.direct, no_flush: self.cache.no_flush };
        let refused = |cause| BlockError::File { what: "open", path: name.clone(), cause };
        let file = HostFile::open(path, mode).map_err(refused)?;
        let meta = file.file().metadata().map_err(refused)?;
        let identity = (meta.dev(), meta.ino());
        if self.seen.contains(&identity) || self.seen.len() == MAX_CHAIN {
            return Err(BlockError::Unsupported {
                path: name,
                what: "its chain of backing files goes round in a circle, or has no end: \
                       correct it by qemu-img rebase -u"
                    .into(),
            });
        }
        self.seen.push(identity);
        if self.locking {
            lock_image(file.file(), &name, write)?;
        }
        let storage: Arc<dyn Storage> = Arc::new(file);
        let (format, guessed) = match format {
            Some(format) => (format, false),
            None => (self.guess(&name, &*storage)?, true),
        };
        match format {
            Format::Raw => {
                let guarded = guessed && write;
                if guarded {
                    self.warnings.push(format!(
                        "{name} has no format that vmm knows, so it is taken as raw, and writes that would give it one are refused: say format=raw to allow them"
                    ));
                }
                Ok(Arc::new(Raw::new(&name, storage, guarded)?))
            }
            Format::Qcow2 => {
                let base = match qcow2::backing(&name, &*storage)? {
                    Some(base) => Some(self.open_base(path, &base)?),
                    None => None,
                };
                let mode = qcow2::OpenOptions { write, punch: self.discard };
                Ok(Arc::new(Qcow2::open(&name, storage, base, mode)?))
            }
        }
    }

    fn open_base(
        &mut self,
        above: &Path,
        base: &qcow2::Backing,
    ) -> Result<Arc<dyn Image>, BlockError> {
        let format = match base.format.as_deref() {
            None => None,
            Some(name) => Some(Format::parse(name).ok_or_else(|| BlockError::Unsupported {
                path: shown(above),
                what: format!(
                    "its backing file has the format {name}; vmm reads raw and qcow2: convert it by qemu-img convert"
                ),
            })?),
        };
        let path = base_path(above, &base.file)?;
        self.open(&path, format, false)
    }

    fn guess(&mut self, name: &str, storage: &dyn Storage) -> Result<Format, BlockError> {
        let mut head = vec![0; 512];
        storage.read_bytes(0, &mut head).map_err(|cause| BlockError::Io {
            path: name.to_owned(),
            what: "reading its start",
            cause,
        })?;
        match probe(&head) {
            Probed::Qcow2 => Ok(Format::Qcow2),
            Probed::Raw => Ok(Format::Raw),
            Probed::Other(format) => Err(BlockError::Unsupported {
                path: name.to_owned(),
                what: format!(
                    "it is a {format} image; vmm reads raw and qcow2: qemu-img convert -O qcow2 makes one of it, format=raw takes it as it is"
                ),
            }),
        }
    }
}

/// Where a backing file is: relative names start at the image's folder.
fn base_path(above: &Path, name: &str) -> Result<PathBuf, BlockError> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    let head = plain.split('/').next().unwrap_or_default();
    if head.contains(':') {
        return Err(BlockError::Unsupported {
            path: shown(above),
            what: format!(
                "its backing file '{name}' is no plain file: make it one by qemu-img convert"
            ),
        });
    }
    Ok(above.parent().unwrap_or(Path::new("")).join(plain))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The files of a chain, the image first, without opening them for good: for a sandbox, and for
/// `info block`. What cannot be read ends the list.
pub fn chain_files(options: &ImageOptions) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let (mut path, mut format) = (options.file.clone(), options.format);
    while options.null.is_none() && files.len() < MAX_CHAIN && !files.contains(&path) {
        files.push(path.clone());
        let mut head = Vec::new();
        let Ok(file) = File::open(&path) else { break };
        if file.take(512).read_to_end(&mut head).is_err() {
            break;
        }
        let is_qcow2 = probe(&head) == Probed::Qcow2 && format != Some(Format::Raw);
        if !is_qcow2 {
            break;
        }
        let Ok(file) = HostFile::open(&path, FileMode::default()) else { break };
        let Ok(Some(base)) = qcow2::backing("", &file) else { break };
        let Ok(next) = base_path(&path, &base.file) else { break };
        format = base.format.as_deref().and_then(Format::parse);
        path = next;
    }
    files
}
