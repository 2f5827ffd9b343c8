//! Guest-physical memory as vCPUs see it: slots, the pages that hold decoded code, the dirty log.
//!
//! All vCPUs share one [`PhysMap`]; a change of the memory map makes a new one. It has a bit for
//! each [`LINE`] bytes that says whether some vCPU may hold decoded blocks of them. A write to a
//! page with such bits takes the slow path, which drops the blocks that it changes and tells every
//! other vCPU to. A byte says whose TLBs may lead writes to the page past that: before a vCPU reads
//! the first code of it, those have to give that up.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use board::memory::{MemoryMap, PAGE_SIZE};

/// No TLB leads writes to the page past the slow path, since it holds code. The bits above count how
/// often code of the page was dropped.
const SETTLED: u8 = 1;
const STEP: u8 = 2;

/// More than one vCPU, or one whose number does not fit, may write the page unnoticed.
const SEVERAL: u8 = u8::MAX;

/// What [`PhysMap::set_code`] leaves to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    state: u8,
    /// Whose TLBs may lead writes to the page past the slow path: nobody's but the caller's.
    pub(crate) only_own: bool,
}

/// Bytes that a bit of [`Slot::code`] stands for.
const LINE: u64 = PAGE_SIZE / 64;

/// Bytes of one guest-physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Address of the page.
    pub(crate) page: u64,
    /// Offsets of the first and the last byte.
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl Span {
    /// `len` bytes, at least one, at `phys`; what is beyond the page's end is left out.
    pub(crate) fn new(phys: u64, len: u64) -> Self {
        let first = phys % PAGE_SIZE;
        let last = (first + len - 1).min(PAGE_SIZE - 1);
        Self { page: phys - first, first: first as u16, last: last as u16 }
    }

    /// The lines that it touches, one bit each.
    pub(crate) fn lines(self) -> u64 {
        let (first, last) = (u64::from(self.first) / LINE, u64::from(self.last) / LINE);
        u64::MAX << first & u64::MAX >> (63 - last)
    }

    /// The same, up to the bounds of its lines.
    pub(crate) fn whole_lines(self) -> Self {
        let line = LINE as u16;
        Self { first: self.first / line * line, last: self.last / line * line + (line - 1), ..self }
    }
}

/// A slot with the state of its pages.
#[derive(Debug)]
struct Slot {
    start: u64,
    size: u64,
    host: *mut u8,
    readonly: bool,
    log: bool,
    /// For each page the lines of which some vCPU may hold code.
    code: Box<[AtomicU64]>,
    settled: Box<[AtomicU8]>,
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
                    code: zeros(pages),
                    settled: zero_bytes(pages),
                    writers: zero_bytes(pages),
                    dirty: zeros(words),
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

    /// The lines of the page of which some vCPU may hold code.
    #[inline]
    pub(crate) fn code(&self, page: Page) -> u64 {
        self.slots[page.slot].code[page.index].load(Ordering::SeqCst)
    }

    /// Notes that vCPU `id` is about to read code of `lines`. If something comes back, writes to
    /// the page may still go unnoticed: they have to be stopped, then [`PhysMap::settle`] called,
    /// before the code is read.
    pub(crate) fn set_code(&self, page: Page, lines: u64, id: u32) -> Option<Unsettled> {
        let slot = &self.slots[page.slot];
        let settled = &slot.settled[page.index];
        // Read first: what is dropped later makes settling fail.
        let state = settled.load(Ordering::SeqCst);
        if slot.code[page.index].fetch_or(lines, Ordering::SeqCst) == 0 {
            // Who notes itself after this sees the lines.
            let writers = slot.writers[page.index].swap(0, Ordering::SeqCst);
            let only_own = writers == 0 || Some(writers) == number(id);
            return Some(Unsettled { state, only_own });
        }
        if state & SETTLED != 0 && settled.load(Ordering::SeqCst) == state {
            return None;
        }
        // Another vCPU is at it, and knows whose writes they are.
        Some(Unsettled { state, only_own: false })
    }

    /// Writes to the page are noticed from now on, unless code of it has been dropped meanwhile.
    pub(crate) fn settle(&self, page: Page, unsettled: Unsettled) {
        let settled = &self.slots[page.slot].settled[page.index];
        let (old, new) = (unsettled.state, unsettled.state | SETTLED);
        // Failing: dropped.
        let _ = settled.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Notes that the TLB of vCPU `id` is about to lead writes straight to the page, if that holds
    /// no code when it is looked at after this.
    pub(crate) fn note_writer(&self, page: Page, id: u32) {
        let writers = &self.slots[page.slot].writers[page.index];
        let own = number(id).unwrap_or(SEVERAL);
        let now = writers.load(Ordering::SeqCst);
        if now != own && now != SEVERAL {
            let first = writers.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst);
            if first.is_err() {
                writers.store(SEVERAL, Ordering::SeqCst);
            }
        }
    }

    /// Notes that all vCPUs drop the code that they hold of `lines`.
    pub(crate) fn clear_code(&self, page: Page, lines: u64) {
        let slot = &self.slots[page.slot];
        let next = |state: u8| Some((state & !SETTLED).wrapping_add(STEP));
        // It always has a next state.
        let _ = slot.settled[page.index].fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        slot.code[page.index].fetch_and(!lines, Ordering::SeqCst);
    }

    /// Notes a write for the dirty log.
    #[inline]
    pub(crate) fn mark_dirty(&self, page: Page) {
        let slot = &self.slots[page.slot];
        if slot.log {
            slot.dirty[page.index / 64].fetch_or(1 << (page.index % 64), Ordering::SeqCst);
        }
    }

    /// The address behind the last slot.
    pub(crate) fn end(&self) -> u64 {
        self.slots.iter().map(|slot| slot.start + slot.size).max().unwrap_or(0)
    }

    /// Takes the dirty log of slot `slot`.
    pub(crate) fn take_dirty(&self, slot: usize) -> Vec<u64> {
        self.slots.get(slot).map_or_else(Vec::new, |slot| {
            slot.dirty.iter().map(|word| word.swap(0, Ordering::SeqCst)).collect()
        })
    }
}

/// Words of zero that take host memory only once they are written.
fn zeros(n: usize) -> Box<[AtomicU64]> {
    let plain = Box::into_raw(vec![0_u64; n].into_boxed_slice());
    // SAFETY: the box is given up above, and AtomicU64 has the layout of u64.
    unsafe { Box::from_raw(plain as *mut [AtomicU64]) }
}

/// Bytes of the same kind.
fn zero_bytes(n: usize) -> Box<[AtomicU8]> {
    let plain = Box::into_raw(vec![0_u8; n].into_boxed_slice());
    // SAFETY: the box is given up above, and AtomicU8 has the layout of u8.
    unsafe { Box::from_raw(plain as *mut [AtomicU8]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_touches_the_lines_of_its_bytes() {
        assert_eq!(Span::new(0x1000, 1).lines(), 1);
        assert_eq!(Span::new(0x103F, 2).lines(), 0b11);
        assert_eq!(Span::new(0x1FFF, 1).lines(), 1 << 63);
        assert_eq!(Span::new(0x1FFF, 8).lines(), 1 << 63, "the rest is another page's");
        assert_eq!(Span::new(0x1000, PAGE_SIZE).lines(), u64::MAX);
        assert_eq!(Span::new(0x1045, 100).whole_lines(), Span::new(0x1040, 128));
    }
}
