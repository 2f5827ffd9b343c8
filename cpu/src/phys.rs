//! Guest-physical memory as vCPUs see it: slots, the pages that hold decoded code, the dirty log.
//!
//! All vCPUs share one [`PhysMap`]; a change of the memory map makes a new one. It has a bit for
//! each [`LINE`] bytes that says whether some vCPU may hold decoded blocks of them. A write to a
//! page with such bits takes the slow path, which drops the blocks that it changes and tells every
//! other vCPU to.

use std::sync::atomic::{AtomicU64, Ordering};

use board::memory::{MemoryMap, PAGE_SIZE};

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

    /// The whole page at `page`.
    pub(crate) fn page(page: u64) -> Self {
        Self::new(page, PAGE_SIZE)
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
                    code: zeros(pages),
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

    /// Notes that a vCPU is about to read code of `lines`; true if none had of the whole page.
    pub(crate) fn set_code(&self, page: Page, lines: u64) -> bool {
        self.slots[page.slot].code[page.index].fetch_or(lines, Ordering::SeqCst) == 0
    }

    /// Notes that all vCPUs drop the code that they hold of `lines`.
    pub(crate) fn clear_code(&self, page: Page, lines: u64) {
        self.slots[page.slot].code[page.index].fetch_and(!lines, Ordering::SeqCst);
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

/// Zeros that take host memory only once they are written.
fn zeros(n: usize) -> Box<[AtomicU64]> {
    let plain = Box::into_raw(vec![0_u64; n].into_boxed_slice());
    // SAFETY: the box is given up above, and AtomicU64 has the layout of u64.
    unsafe { Box::from_raw(plain as *mut [AtomicU64]) }
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
        assert_eq!(Span::page(0x1000).lines(), u64::MAX);
        assert_eq!(Span::new(0x1045, 100).whole_lines(), Span::new(0x1040, 128));
    }
}
