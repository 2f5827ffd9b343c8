//! The traditional memory balloon (Virtio 1.2, 5.5): the driver gives pages to the host, and takes
//! them back. Pages that are given, or reported to be free, are holes in guest RAM from then on.

use board::GuestRam;
use board::device::Paused;
use board::memory::PAGE_SIZE;
use board::state::{ErasedSnapshot, Snapshot, StateError};
use serde::{Deserialize, Serialize};

use super::Io;
use super::chain::Chain;
use super::device::{BALLOON, Kind, VirtioDevice, read_bytes};

/// Feature bits (5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

const FEATURE_NAMES: &[(u32, &str)] = &[
    (0, "BALLOON_F_MUST_TELL_HOST"),
    (1, "BALLOON_F_STATS_VQ"),
    (2, "BALLOON_F_DEFLATE_ON_OOM"),
    (5, "BALLOON_F_REPORTING"),
];

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;

/// Offset of `actual` in the configuration.
const ACTUAL: usize = 4;

/// The most page numbers that are taken of one chain. Linux sends 256.
const MAX_PAGES: usize = 16384;

/// Bytes of a statistic: a tag of 16 bits, a value of 64.
const STAT: usize = 10;

/// What the guest says of its memory, by tag (5.5.6.4). The last two are newer than the others.
pub const STAT_NAMES: [&str; 10] = [
    "mem_swapped_in",
    "mem_swapped_out",
    "major_page_faults",
    "minor_page_faults",
    "free_mem",
    "total_mem",
    "available_mem",
    "disk_caches",
    "hugetlb_pgalloc",
    "hugetlb_pgfail",
];

/// How the device is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// `deflate-on-oom=`: the guest may take pages back before it runs out of memory.
    pub deflate_on_oom: bool,
    /// `free-page-reporting=`: the guest reports free pages without being asked.
    pub free_page_reporting: bool,
}

/// What the machine hears when the balloon's size has changed.
pub type OnChange = Box<dyn Fn(u64) + Send>;

/// The device.
pub struct Balloon {
    options: BalloonOptions,
    /// Pages that the host wants, and pages that the guest has given.
    wanted: u32,
    actual: u32,
    /// What the guest has said of its memory.
    stats: [Option<u64>; STAT_NAMES.len()],
    /// The driver's buffer for statistics; giving it back asks for new ones.
    asking: Option<Chain>,
    /// Its head when the device was saved.
    restored: Option<u16>,
    on_change: OnChange,
}

impl Balloon {
    /// An empty balloon. `on_change` is called with the bytes that the guest has given, whenever
    /// that changes, with the device's lock held.
    pub fn new(options: BalloonOptions, on_change: OnChange) -> Self {
        Self {
            options,
            wanted: 0,
            actual: 0,
            stats: [None; STAT_NAMES.len()],
            asking: None,
            restored: None,
            on_change,
        }
    }

    /// Asks the guest for `bytes` altogether.
    pub fn set_target(&mut self, bytes: u64, io: &mut Io<'_>) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        if self.wanted != pages {
            self.wanted = pages;
            io.config_changed();
        }
    }

    /// Bytes that the guest has given.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual) * PAGE_SIZE
    }

    /// What the guest has last said of its memory, in the order of [`STAT_NAMES`]; and asks for new
    /// figures.
    pub fn stats(&mut self, io: &mut Io<'_>) -> [Option<u64>; STAT_NAMES.len()] {
        if let Some(chain) = self.asking.take() {
            io.push(STATS, chain, 0);
            io.signal(STATS);
        }
        self.stats
    }

    /// The queue of free pages: queues of features that the driver does not take are left out.
    fn reporting_queue(io: &Io<'_>) -> usize {
        if io.has(F_STATS_VQ) { STATS + 1 } else { STATS }
    }

    /// Takes the page numbers of a chain.
    fn inflate(chain: &Chain, ram: &GuestRam) {
        let count = (chain.readable_len() as usize / 4).min(MAX_PAGES);
        let mut bytes = vec![0; count * 4];
        chain.read_at(ram, 0, &mut bytes);
        let number = |b: &[u8]| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut pages: Vec<u64> = bytes.chunks_exact(4).map(number).collect();
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            ram.discard(run[0] * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
        }
    }

    fn take_stats(&mut self, chain: &Chain, ram: &GuestRam) {
        for at in (0..chain.readable_len()).step_by(STAT).take(64) {
            let Some([t0, t1, value @ ..]) = chain.read_array::<STAT>(ram, at) else { break };
            let tag = usize::from(u16::from_le_bytes([t0, t1]));
            if let Some(stat) = self.stats.get_mut(tag) {
                *stat = Some(u64::from_le_bytes(value));
            }
        }
    }

    fn config(&self) -> [u8; 8] {
        (u64::from(self.wanted) | u64::from(self.actual) << 32).to_le_bytes()
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        BALLOON
    }

    fn features(&self) -> u64 {
        let mut features = F_STATS_VQ;
        if self.options.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if self.options.free_page_reporting {
            features |= F_PAGE_REPORTING;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128; if self.options.free_page_reporting { 4 } else { 3 }]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8], _io: &mut Io<'_>) {
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            let actual = u32::from_le_bytes(bytes);
            if std::mem::replace(&mut self.actual, actual) != actual {
                (self.on_change)(self.actual());
            }
        }
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        match queue {
            INFLATE => io.serve(queue, |io, chain| {
                Self::inflate(&chain, io.ram());
                io.push(queue, chain, 0);
            }),
            // The pages are there as soon as the guest touches them.
            DEFLATE => io.serve(queue, |io, chain| io.push(queue, chain, 0)),
            _ if queue == Self::reporting_queue(io) && io.has(F_PAGE_REPORTING) => {
                io.serve(queue, |io, chain| {
                    for segment in chain.writable() {
                        io.ram().discard(segment.address, segment.len.into());
                    }
                    io.push(queue, chain, 0);
                });
            }
            STATS => io.serve(queue, |io, chain| {
                self.take_stats(&chain, io.ram());
                // There is one buffer; a second one sends the first back.
                if let Some(earlier) = self.asking.replace(chain) {
                    io.push(queue, earlier, 0);
                }
            }),
            _ => {}
        }
    }

    fn reset(&mut self) -> Paused {
        self.actual = 0;
        self.stats = [None; STAT_NAMES.len()];
        (self.asking, self.restored) = (None, None);
        Paused::Done
    }

    fn resume(&mut self, io: &mut Io<'_>) {
        if let Some(head) = self.restored.take() {
            self.asking = io.take_up(STATS, head);
        }
    }

    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        Some(self)
    }

    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        FEATURE_NAMES
    }
}

/// The saved state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BalloonV1 {
    wanted: u32,
    actual: u32,
    stats: Vec<Option<u64>>,
    asking: Option<u16>,
}

impl Snapshot for Balloon {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u32 = 1;
    type State = BalloonV1;

    fn save(&self) -> BalloonV1 {
        let Self { options: _, wanted, actual, stats, asking, restored, on_change: _ } = self;
        BalloonV1 {
            wanted: *wanted,
            actual: *actual,
            stats: stats.to_vec(),
            asking: asking.as_ref().map(Chain::head).or(*restored),
        }
    }

    fn restore(&mut self, state: BalloonV1) -> Result<(), StateError> {
        let BalloonV1 { wanted, actual, mut stats, asking } = state;
        stats.resize(STAT_NAMES.len(), None);
        (self.wanted, self.actual) = (wanted, actual);
        self.stats.copy_from_slice(&stats);
        (self.asking, self.restored) = (None, asking);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
