//! Guest RAM and ROM, and the map of both that accelerators are given.
//!
//! RAM is one memfd, so that it can later be shared, mapped lazily or copied on write. Every write
//! from user space goes through [`GuestRam`] and marks its pages; the marks, OR-ed with the
//! accelerator's own, are the dirty log.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// Bytes in a page, the unit of the dirty log.
pub const PAGE_SIZE: u64 = 4096;

/// RAM ends here at the latest and goes on at [`HIGH_RAM_START`]; between them lie PCI and chips.
pub const LOW_RAM_END: u64 = 0xC000_0000;

/// Where RAM beyond [`LOW_RAM_END`] goes on: 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// vm-memory's view of guest RAM, for virtio-queue, linux-loader and others that speak it.
pub type Ram = GuestMemoryMmap<PageMarks>;

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// memfd_create, ftruncate or mmap failed.
    #[error("cannot allocate {size} of guest RAM ({cause}): give a smaller -m")]
    Allocate {
        /// The size that was asked for.
        size: ByteSize,
        /// The system's error.
        cause: io::Error,
    },
}

/// Bytes, displayed as a person writes them: `128 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut value = self.0;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            if value < 1024 || !value.is_multiple_of(1024) {
                break;
            }
            value /= 1024;
            unit = next;
        }
        write!(f, "{value} {unit}")
    }
}

/// One bit a page; a set bit means that the page was written since the bit was taken.
#[derive(Clone, Debug, Default)]
pub struct PageMarks(Arc<Marks>);

#[derive(Debug, Default)]
struct Marks {
    pages: usize,
    enabled: AtomicBool,
    /// Allocated when the log is first turned on: most machines never turn it on.
    words: OnceLock<Box<[AtomicU64]>>,
    watch: OnceLock<WriteWatch>,
}

/// Is told the offset and length of each write.
struct WriteWatch(Box<dyn Fn(u64, u64) + Send + Sync>);

impl std::fmt::Debug for WriteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteWatch")
    }
}

impl PageMarks {
    /// Starts or stops marking. Starting clears what was marked.
    fn enable(&self, on: bool) {
        if on {
            let words = self.0.pages.div_ceil(64);
            self.0.words.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
            self.take();
        }
        self.0.enabled.store(on, Ordering::SeqCst);
    }

    fn words(&self) -> &[AtomicU64] {
        self.0.words.get().map_or(&[], |words| words)
    }

    /// The marks, which are cleared: bit `i % 64` of word `i / 64` is page `i`.
    fn take(&self) -> Vec<u64> {
        self.words().iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }
}

impl NewBitmap for PageMarks {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE as usize);
        Self(Arc::new(Marks { pages, ..Marks::default() }))
    }
}

impl<'a> WithBitmapSlice<'a> for PageMarks {
    type S = MarksSlice<'a>;
}

impl Bitmap for PageMarks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len > 0
            && let Some(watch) = self.0.watch.get()
        {
            (watch.0)(offset as u64, len as u64);
        }
        if len == 0 || !self.0.enabled.load(Ordering::Relaxed) {
            return;
        }
        let page = PAGE_SIZE as usize;
        for page in offset / page..=(offset + len - 1) / page {
            if let Some(word) = self.words().get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        let word = self.words().get(page / 64).map_or(0, |w| w.load(Ordering::Acquire));
        word & 1 << (page % 64) != 0
    }

    fn slice_at(&self, offset: usize) -> MarksSlice<'_> {
        MarksSlice { marks: self, base: offset }
    }
}

/// [`PageMarks`] seen from an offset on.
#[derive(Clone, Copy, Debug)]
pub struct MarksSlice<'a> {
    marks: &'a PageMarks,
    base: usize,
}

impl<'a, 'b> WithBitmapSlice<'b> for MarksSlice<'a> {
    type S = Self;
}

impl BitmapSlice for MarksSlice<'_> {}

impl Bitmap for MarksSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.marks.mark_dirty(self.base + offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.marks.dirty_at(self.base + offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { marks: self.marks, base: self.base + offset }
    }
}

/// The machine's RAM. Clones are the same RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    map: Ram,
    size: u64,
}

impl GuestRam {
    /// `size` bytes of zeroed RAM, a multiple of [`PAGE_SIZE`]: from 0 to at most
    /// [`LOW_RAM_END`], the rest from [`HIGH_RAM_START`] on. Pages are allocated when touched.
    ///
    /// # Errors
    /// [`MemoryError::Allocate`] when the host refuses.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        Self::allocate(size).map_err(|cause| MemoryError::Allocate { size: ByteSize(size), cause })
    }

    fn allocate(size: u64) -> io::Result<Self> {
        let memfd = memfd_create("guest-ram", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, size)?;
        let file = Arc::new(File::from(memfd));
        let low = size.min(LOW_RAM_END);
        let mut map = Ram::new();
        for (start, offset, len) in [(0, 0, low), (HIGH_RAM_START, low, size - low)] {
            if len == 0 {
                continue;
            }
            let bytes = usize::try_from(len).map_err(io::Error::other)?;
            let region = MmapRegionBuilder::new_with_bitmap(bytes, PageMarks::with_len(bytes))
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(|e| match e {
                    vm_memory::mmap::MmapRegionError::Mmap(cause) => cause,
                    other => io::Error::other(other),
                })?;
            let region = GuestRegionMmap::new(region, GuestAddress(start))
                .ok_or_else(|| io::Error::other("region ends past the address space"))?;
            map = map.insert_region(Arc::new(region)).map_err(io::Error::other)?;
        }
        Ok(Self { map, size })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of RAM below 4 GiB.
    pub fn low_size(&self) -> u64 {
        self.size.min(LOW_RAM_END)
    }

    /// Bytes of RAM from 4 GiB on.
    pub fn high_size(&self) -> u64 {
        self.size - self.low_size()
    }

    /// vm-memory's view, for crates that speak it. Writes through it are marked.
    pub fn map(&self) -> &Ram {
        &self.map
    }

    /// Copies guest memory at `address` into `data`.
    ///
    /// # Errors
    /// [`NotRam`] when any of it is no RAM; the readable part may have been copied.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), NotRam> {
        self.map.read_slice(data, GuestAddress(address)).map_err(|_| NotRam(address))
    }

    /// Copies `data` to guest memory at `address`.
    ///
    /// # Errors
    /// [`NotRam`] when any of it is no RAM; the part before that may have been written.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), NotRam> {
        self.map.write_slice(data, GuestAddress(address)).map_err(|_| NotRam(address))
    }

    /// Whether `len` bytes at `address` are RAM throughout.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        let Some(end) = address.checked_add(len) else {
            return false;
        };
        end <= self.low_size()
            || (address >= HIGH_RAM_START && end <= HIGH_RAM_START + self.high_size())
    }

    /// Gives the memory of whole pages at `address` back to the host; they read as zeros from then
    /// on. What is no RAM, and parts of pages, are left as they are.
    pub fn discard(&self, address: u64, len: u64) {
        let Some(start) = address.checked_next_multiple_of(PAGE_SIZE) else { return };
        let end = address.saturating_add(len) & !(PAGE_SIZE - 1);
        for region in self.map.iter() {
            let base = region.start_addr().0;
            let (first, last) = (start.max(base), end.min(base + region.len()));
            let Some(file) = region.file_offset().filter(|_| first < last) else { continue };
            let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (offset, len) = (first - base, last - first);
            // Where the host cannot, the guest has its memory for longer.
            if fallocate(file.file(), holes, file.start() + offset, len).is_ok() {
                region.bitmap().mark_dirty(offset as usize, len as usize);
            }
        }
    }

    /// Has `watch` called after each write from user space, with its guest-physical address and
    /// length, on the thread that wrote. It serves a CPU that keeps decoded code. Only the first
    /// watch of a RAM has an effect.
    pub fn watch_writes(&self, watch: impl Fn(u64, u64) + Send + Sync + 'static) {
        let watch = Arc::new(watch);
        for region in self.map.iter() {
            let (start, watch) = (region.start_addr().0, watch.clone());
            let watch = WriteWatch(Box::new(move |offset, len| watch(start + offset, len)));
            // A second watch is refused as documented.
            let _ = region.bitmap().marks.0.watch.set(watch);
        }
    }

    /// Starts or stops the log of pages that user space writes. Starting clears it.
    pub fn log_dirty(&self, on: bool) {
        for region in self.map.iter() {
            region.bitmap().marks.enable(on);
        }
    }

    /// Takes the log of pages written by user space since it was last taken, one bitmap for each
    /// slot of [`GuestRam::slots`], in the same order.
    pub fn take_dirty(&self) -> Vec<Vec<u64>> {
        self.map.iter().map(|region| region.bitmap().marks.take()).collect()
    }

    /// The RAM as slots for an accelerator.
    pub fn slots(&self) -> Vec<MemorySlot> {
        self.map
            .iter()
            .map(|region| MemorySlot {
                start: region.start_addr().0,
                size: region.len(),
                host: region.as_ptr() as u64,
                readonly: false,
                log_dirty: false,
                name: if region.start_addr().0 == 0 { "pc.ram" } else { "pc.ram-above-4g" },
            })
            .collect()
    }
}

/// The address is not, or not wholly, RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no RAM at guest address {0:#x}")]
pub struct NotRam(pub u64);

/// A range of guest-physical addresses that is backed by host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySlot {
    /// First guest-physical address, a multiple of [`PAGE_SIZE`].
    pub start: u64,
    /// Bytes, a multiple of [`PAGE_SIZE`].
    pub size: u64,
    /// Host address of the first byte.
    pub host: u64,
    /// Guest writes do not reach the memory.
    pub readonly: bool,
    /// The accelerator logs which pages the guest writes.
    pub log_dirty: bool,
    /// The name that `info mtree` shows.
    pub name: &'static str,
}

/// All memory slots of the machine. The index of a slot is its number in the dirty log.
///
/// It keeps the memory alive that its slots point to.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    slots: Vec<MemorySlot>,
    ram: GuestRam,
    roms: Vec<Arc<Rom>>,
}

impl MemoryMap {
    /// The map of a machine with `ram` and no ROM.
    pub fn new(ram: &GuestRam) -> Self {
        Self { slots: ram.slots(), ram: ram.clone(), roms: Vec::new() }
    }

    /// Adds `rom` at guest-physical address `start`.
    pub fn add_rom(&mut self, rom: &Arc<Rom>, start: u64, name: &'static str) {
        self.slots.push(MemorySlot {
            start,
            size: rom.size(),
            host: rom.host(),
            readonly: true,
            log_dirty: false,
            name,
        });
        self.roms.push(rom.clone());
    }

    /// Turns the accelerator's dirty log on or off for all RAM.
    pub fn log_dirty(&mut self, on: bool) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.readonly) {
            slot.log_dirty = on;
        }
    }

    /// The slots.
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }

    /// The RAM that the map holds.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Reads RAM or ROM.
    ///
    /// # Errors
    /// [`NotRam`] when any of it is neither.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), NotRam> {
        let roms = self.slots.iter().filter(|slot| slot.readonly).zip(&self.roms);
        for (slot, rom) in roms {
            let end = address.checked_add(data.len() as u64).ok_or(NotRam(address))?;
            if address >= slot.start && end <= slot.start + slot.size {
                let from = (address - slot.start) as usize;
                data.copy_from_slice(&rom.bytes()[from..from + data.len()]);
                return Ok(());
            }
        }
        self.ram.read(address, data)
    }
}

/// Read-only memory of the machine, such as a firmware image.
#[derive(Debug)]
pub struct Rom {
    host: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is never written after `new` returns.
unsafe impl Send for Rom {}
// SAFETY: as above: shared access is read access.
unsafe impl Sync for Rom {}

impl Rom {
    /// A ROM with `image` at its end, preceded by 0xFF up to a whole number of pages.
    ///
    /// # Errors
    /// [`MemoryError::Allocate`] when the host refuses.
    pub fn new(image: &[u8]) -> Result<Self, MemoryError> {
        let len = image.len().next_multiple_of(PAGE_SIZE as usize).max(PAGE_SIZE as usize);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other
        // memory.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(MemoryError::Allocate {
                size: ByteSize(len as u64),
                cause: io::Error::last_os_error(),
            });
        }
        // SAFETY: `host` is `len` writable bytes that nobody else knows of yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(host.cast::<u8>(), len) };
        let start = len - image.len();
        bytes[..start].fill(0xFF);
        bytes[start..].copy_from_slice(image);
        Ok(Self { host, len })
    }

    /// Bytes, a multiple of [`PAGE_SIZE`].
    pub fn size(&self) -> u64 {
        self.len as u64
    }

    /// Host address of the first byte.
    pub fn host(&self) -> u64 {
        self.host as u64
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long, initialised, and not written after `new`.
        unsafe { std::slice::from_raw_parts(self.host.cast::<u8>(), self.len) }
    }
}

impl Drop for Rom {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and is unmapped once.
        unsafe { libc::munmap(self.host, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_three_gib_goes_on_at_four() {
        let ram = GuestRam::new(LOW_RAM_END + 2 * PAGE_SIZE).unwrap();
        assert_eq!(ram.slots().len(), 2);
        assert!(ram.contains(LOW_RAM_END - 1, 1));
        assert!(!ram.contains(LOW_RAM_END - 1, 2));
        assert!(ram.contains(HIGH_RAM_START, 2 * PAGE_SIZE));
        assert!(!ram.contains(HIGH_RAM_START, 2 * PAGE_SIZE + 1));
        assert!(!ram.contains(u64::MAX, 2));
        ram.write(HIGH_RAM_START + 8, b"high").unwrap();
        let mut data = [0; 4];
        ram.read(HIGH_RAM_START + 8, &mut data).unwrap();
        assert_eq!(&data, b"high");
        assert_eq!(ram.read(LOW_RAM_END, &mut data), Err(NotRam(LOW_RAM_END)));
    }

    #[test]
    fn writes_are_logged_by_page_while_the_log_is_on() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(0, &[1]).unwrap();
        ram.log_dirty(true);
        ram.write(PAGE_SIZE * 3 - 1, &[1, 2]).unwrap();
        ram.map().write_obj(7_u64, GuestAddress(PAGE_SIZE * 70)).unwrap();
        let dirty = ram.take_dirty();
        assert_eq!(dirty[0][0], 0b1100);
        assert_eq!(dirty[0][1], 1 << (70 - 64));
        assert!(ram.take_dirty()[0].iter().all(|word| *word == 0));
        ram.log_dirty(false);
        ram.write(0, &[1]).unwrap();
        assert!(ram.take_dirty()[0].iter().all(|word| *word == 0));
    }

    #[test]
    fn discarded_pages_are_zeros_and_count_as_written() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(0, &[1; 5 * PAGE_SIZE as usize]).unwrap();
        ram.log_dirty(true);
        // Parts of pages 0 and 3, and all of 1 and 2.
        ram.discard(100, 3 * PAGE_SIZE);
        assert_eq!(ram.take_dirty()[0][0], 0b110);
        let byte = |page: u64| {
            let mut data = [0];
            ram.read(page * PAGE_SIZE + 200, &mut data).unwrap();
            data[0]
        };
        assert_eq!([0, 1, 2, 3].map(byte), [1, 0, 0, 1]);
        for (address, len) in [(u64::MAX, 1), (u64::MAX - PAGE_SIZE, u64::MAX), (1 << 20, 4096)] {
            ram.discard(address, len);
        }
        assert_eq!(byte(3), 1);
    }

    #[test]
    fn a_refused_size_names_itself_and_the_option() {
        let error = GuestRam::new(1 << 60).unwrap_err().to_string();
        assert!(error.contains("1024 PiB") && error.contains("-m"), "{error}");
    }

    #[test]
    fn a_rom_is_padded_in_front() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let rom = Arc::new(Rom::new(b"tail").unwrap());
        let mut map = MemoryMap::new(&ram);
        map.add_rom(&rom, 0xFFFF_F000, "pc.bios");
        let mut data = [0; 6];
        map.read(0xFFFF_FFFA, &mut data).unwrap();
        assert_eq!(&data, b"\xFF\xFFtail");
        assert!(map.read(0xFFFF_FFFB, &mut data).is_err());
    }
}
