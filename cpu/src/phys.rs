//! Guest-physical memory as vCPUs see it: slots, the pages that hold decoded code, the dirty log.
//!
//! All vCPUs share one [`PhysMap`]; a change of the memory map makes a new one. A page's state
//! byte says whether some vCPU holds decoded blocks of it: a write to such a page takes the slow
//! path, which tells every vCPU to drop those blocks. Another byte says whose TLBs may lead writes to
//! the page past that: before a vCPU reads code of it, those have to give that up.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use board::memory::{MemoryMap, PAGE_SIZE};

/// Some vCPU holds decoded code of the page, or is about to.
const CODE: u8 = 1;
/// And no TLB leads writes to it any more. What is above counts how often CODE was set.
const SETTLED: u8 = 2;
const STEP: u8 = 4;

/// More than one vCPU, or one whose number does not fit, may write the page unnoticed.
const SEVERAL: u8 = u8::MAX;

/// What [`PhysMap::set_code`] leaves to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    state: u8,
    /// Whose TLBs may lead writes to the page past the slow path: nobody's but the caller's.
    pub(crate) only_own: bool,
}

/// A slot with the state of its pages.
#[derive(Debug)]
struct Slot {
    start: u64,
    size: u64,
    host: *mut u8,
    readonly: bool,
    log: bool,
    pages: Box<[AtomicU8]>,
    /// By page: 0, or the only vCPU's number plus 1, or `SEVERAL`.
    writers: Box<[AtomicU8]>,
    dirty: Box<[AtomicU64]>,
}

// SAFETY: `host` points to guest RAM or ROM, which `PhysMap::_keep` keeps mapped; it is accessed
// by volatile and atomic host instructions only, as the memory of a machine is.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

/// Where a guest-physical page lives on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Host address of the page's first byte.
    pub(crate) host: *mut u8,
    /// Writes go to [`board::CpuIo::mmio_write`].
    pub(crate) readonly: bool,
    slot: usize,
    index: usize,
}

/// What stands for a vCPU among the writers of a page, if it fits.
fn number(id: u32) -> Option<u8> {
    u8::try_from(id + 1).ok().filter(|number| *number != SEVERAL)
}

/// The memory map.
#[derive(Debug, Default)]
pub(crate) struct PhysMap {
    slots: Vec<Slot>,
    _keep: Option<MemoryMap>,
}

impl PhysMap {
    /// The map of `map`.
    pub(crate) fn new(map: &MemoryMap) -> Self {
        let slots = map
            .slots()
            .iter()
            .map(|slot| {
                let pages = (slot.size / PAGE_SIZE) as usize;
                let words = if slot.log_dirty { pages.div_ceil(64) } else { 0 };
                Slot {
                    start: slot.start,
                    size: slot.size,
                    host: slot.host as *mut u8,
                    readonly: slot.readonly,
                    log: slot.log_dirty,
                    pages: (0..pages).map(|_| AtomicU8::new(0)).collect(),
                    writers: (0..pages).map(|_| AtomicU8::new(0)).collect(),
                    dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
                }
            })
            .collect();
        Self { slots, _keep: Some(map.clone()) }
    }

    /// The page at guest-physical address `phys`, if it is RAM or ROM.
    #[inline]
    pub(crate) fn page(&self, phys: u64) -> Option<Page> {
        for (i, slot) in self.slots.iter().enumerate() {
            let offset = phys.wrapping_sub(slot.start);
            if offset < slot.size {
                let offset = offset & !(PAGE_SIZE - 1);
                return Some(Page {
                    // SAFETY: `offset` is below the slot's size, and the slot is that long.
                    host: unsafe { slot.host.add(offset as usize) },
                    readonly: slot.readonly,
                    slot: i,
                    index: (offset / PAGE_SIZE) as usize,
                });
            }
        }
        None
    }

    /// Whether some vCPU holds code of the page.
    pub(crate) fn has_code(&self, page: Page) -> bool {
        self.slots[page.slot].pages[page.index].load(Ordering::SeqCst) & CODE != 0
    }

    /// Notes that vCPU `id` is about to read code of the page. If something comes back, writes to
    /// the page may still go unnoticed: they have to be stopped, then [`PhysMap::settle`] called,
    /// before the code is read.
    pub(crate) fn set_code(&self, page: Page, id: u32) -> Option<Unsettled> {
        let state = &self.slots[page.slot].pages[page.index];
        let set = |old: u8| (old & CODE == 0).then(|| (old & !SETTLED).wrapping_add(STEP) | CODE);
        match state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set) {
            Ok(old) => {
                let writers = &self.slots[page.slot].writers[page.index];
                // Who notes itself after this sees CODE.
                let writers = writers.swap(0, Ordering::SeqCst);
                let state = (old & !SETTLED).wrapping_add(STEP) | CODE;
                Some(Unsettled { state, only_own: writers == 0 || Some(writers) == number(id) })
            }
            Err(state) if state & SETTLED != 0 => None,
            // Another vCPU is at it, and knows whose writes they are.
            Err(state) => Some(Unsettled { state, only_own: false }),
        }
    }

    /// Writes to the page are noticed from now on, unless its code has been dropped meanwhile.
    pub(crate) fn settle(&self, page: Page, unsettled: Unsettled) {
        let state = &self.slots[page.slot].pages[page.index];
        let settled = unsettled.state | SETTLED;
        // Failing: dropped.
        let _ =
            state.compare_exchange(unsettled.state, settled, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether the TLB of vCPU `id` may lead writes straight to the page. Until code is read of it
    /// they go unnoticed.
    pub(crate) fn may_write(&self, page: Page, id: u32) -> bool {
        let writers = &self.slots[page.slot].writers[page.index];
        let own = number(id).unwrap_or(SEVERAL);
        let now = writers.load(Ordering::SeqCst);
        if now != own && now != SEVERAL {
            let first = writers.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst);
            if first.is_err() {
                writers.store(SEVERAL, Ordering::SeqCst);
            }
        }
        !self.has_code(page)
    }

    /// Notes that all vCPUs have been told to drop the page's code; true if there was any.
    pub(crate) fn clear_code(&self, page: Page) -> bool {
        let state = &self.slots[page.slot].pages[page.index];
        state.fetch_and(!(CODE | SETTLED), Ordering::SeqCst) & CODE != 0
    }

    /// Notes a write for the dirty log.
    #[inline]
    pub(crate) fn mark_dirty(&self, page: Page) {
        let slot = &self.slots[page.slot];
        if slot.log {
            slot.dirty[page.index / 64].fetch_or(1 << (page.index % 64), Ordering::SeqCst);
        }
    }

    /// Takes the dirty log of slot `slot`.
    pub(crate) fn take_dirty(&self, slot: usize) -> Vec<u64> {
        self.slots.get(slot).map_or_else(Vec::new, |slot| {
            slot.dirty.iter().map(|word| word.swap(0, Ordering::SeqCst)).collect()
        })
    }
}
