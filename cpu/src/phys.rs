//! Guest-physical memory as vCPUs see it: slots, the pages that hold decoded code, the dirty log.
//!
//! All vCPUs share one [`PhysMap`]; a change of the memory map makes a new one. A page's state
//! byte says whether some vCPU holds decoded blocks of it: a write to such a page takes the slow
//! path, which tells every vCPU to drop those blocks.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use board::memory::{MemoryMap, PAGE_SIZE};

/// Some vCPU holds decoded code of the page.
const CODE: u8 = 1;

/// A slot with the state of its pages.
#[derive(Debug)]
struct Slot {
    start: u64,
    size: u64,
    host: *mut u8,
    readonly: bool,
    log: bool,
    pages: Box<[AtomicU8]>,
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

    /// Notes that a vCPU is about to read code of the page; true if none had before.
    pub(crate) fn set_code(&self, page: Page) -> bool {
        self.slots[page.slot].pages[page.index].fetch_or(CODE, Ordering::SeqCst) & CODE == 0
    }

    /// Notes that all vCPUs have been told to drop the page's code; true if there was any.
    pub(crate) fn clear_code(&self, page: Page) -> bool {
        self.slots[page.slot].pages[page.index].fetch_and(!CODE, Ordering::SeqCst) & CODE != 0
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
