//! The page walk (SDM vol. 3, 4): 32-bit, PAE, 4-level and 5-level paging.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::fault::{Exception, Res, vector};
use crate::flags::bit;

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Error code bits of a page fault.
mod code {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 1 << 1;
    pub(super) const U: u32 = 1 << 2;
    pub(super) const RSVD: u32 = 1 << 3;
    pub(super) const I: u32 = 1 << 4;
}

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Exec,
}

/// An access as paging sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) kind: Kind,
    /// Made at CPL 3, and not one of the implicit accesses to a system structure.
    pub(crate) user: bool,
    /// SMAP forbids user pages: supervisor, and EFLAGS.AC is clear or the access is implicit.
    pub(crate) smap: bool,
}

/// A successful walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Guest-physical address of the page that holds the linear address.
    pub(crate) phys: u64,
    /// Other accesses under the same rights that need no further walk.
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) exec: bool,
    pub(crate) global: bool,
    pub(crate) large: bool,
}

/// A format of paging structures.
struct Format {
    levels: u32,
    /// Linear address bits that each level translates.
    bits: u32,
    /// Bytes in an entry.
    entry: u64,
}

impl Cpu {
    /// Walks the paging structures for `linear`; sets accessed and dirty bits.
    ///
    /// # Errors
    /// A page fault.
    pub(crate) fn walk(&mut self, linear: u64, access: Access) -> Res<Walk> {
        if self.cr0 & cr0::PG == 0 {
            let phys = linear & 0xFFFF_F000;
            return Ok(Walk {
                phys,
                read: true,
                write: true,
                exec: true,
                global: true,
                large: false,
            });
        }
        let format = if self.efer & efer::LMA != 0 {
            Format { levels: if self.cr4 & cr4::LA57 != 0 { 5 } else { 4 }, bits: 9, entry: 8 }
        } else if self.cr4 & cr4::PAE != 0 {
            Format { levels: 2, bits: 9, entry: 8 }
        } else {
            Format { levels: 2, bits: 10, entry: 4 }
        };
        'again: loop {
            let mut table = self.cr3 & 0x000F_FFFF_FFFF_F000;
            if self.efer & efer::LMA == 0 {
                table &= 0xFFFF_FFFF;
                if format.entry == 8 {
                    let pdpte = self.pdptr[(linear >> 30) as usize & 3];
                    if pdpte & P == 0 {
                        return self.page_fault(linear, access, 0);
                    }
                    table = pdpte & self.phys_mask() & !0xFFF;
                }
            }
            let mut path = [(0_u64, 0_u64); 5];
            let mut rights = W | U;
            let mut nx = false;
            let mut level = format.levels;
            let leaf = loop {
                level -= 1;
                let shift = 12 + level * format.bits;
                let index = linear >> shift & ((1 << format.bits) - 1);
                let address = table + index * format.entry;
                let entry = self.read_entry(address, format.entry);
                if entry & P == 0 {
                    return self.page_fault(linear, access, 0);
                }
                let large = level > 0 && entry & PS != 0 && self.large_allowed(&format, level);
                if entry & self.reserved(&format, level, large) != 0 {
                    return self.page_fault(linear, access, code::P | code::RSVD);
                }
                path[level as usize] = (address, entry);
                rights &= entry;
                nx |= entry & NX != 0;
                if level == 0 || large {
                    break entry;
                }
                table = entry & self.phys_mask() & !0xFFF;
            };
            nx &= format.entry == 8 && self.efer & efer::NXE != 0;
            let user_page = rights & U != 0;
            let wp = self.cr0 & cr0::WP != 0;
            let can_data = if access.user { user_page } else { !(user_page && access.smap) };
            let can_write = can_data && (rights & W != 0 || !access.user && !wp);
            let can_exec = !nx
                && if access.user { user_page } else { !(user_page && self.cr4 & cr4::SMEP != 0) };
            let allowed = match access.kind {
                Kind::Read => can_data,
                Kind::Write => can_write,
                Kind::Exec => can_exec,
            };
            if !allowed {
                return self.page_fault(linear, access, code::P);
            }
            for (i, &(address, entry)) in path.iter().enumerate().rev() {
                if i < level as usize || i >= format.levels as usize {
                    continue;
                }
                let mut wanted = entry | A;
                if i == level as usize && access.kind == Kind::Write {
                    wanted |= D;
                }
                if wanted != entry && !self.update_entry(address, entry, wanted, format.entry) {
                    continue 'again;
                }
            }
            let offset_bits = 12 + level * format.bits;
            let within = (1_u64 << offset_bits) - 1;
            let mut base = leaf & self.phys_mask() & !within;
            if format.entry == 4 {
                base = leaf & 0xFFFF_FFFF & !within;
                if level > 0 {
                    // PSE-36: address bits 32 to 39 lie in bits 13 to 20.
                    base = leaf & 0xFFC0_0000 | (leaf >> 13 & 0xFF) << 32;
                }
            }
            return Ok(Walk {
                phys: (base | linear & within) & !0xFFF,
                read: can_data,
                write: can_write && (leaf & D != 0 || access.kind == Kind::Write),
                exec: can_exec,
                global: leaf & G != 0 && self.cr4 & cr4::PGE != 0,
                large: level > 0,
            });
        }
    }

    /// All bits that a guest-physical address can have.
    pub(crate) fn phys_mask(&self) -> u64 {
        (1 << self.phys_bits) - 1
    }

    fn large_allowed(&self, format: &Format, level: u32) -> bool {
        match (format.entry, level) {
            (4, _) => self.cr4 & cr4::PSE != 0,
            (_, 1) => true,
            // A set bit 7 is reserved in level 2 without 1 GiB pages and above; `reserved` says so.
            (_, level) => level == 2 && self.features.gib_pages,
        }
    }

    /// Bits that must be zero in an entry.
    fn reserved(&self, format: &Format, level: u32, large: bool) -> u64 {
        if format.entry == 4 {
            // Bits 13 to 21 are address bits 32 to 40, as far as there are such.
            let top = if self.features.pse36 { self.phys_bits.min(40) } else { 32 };
            return if large { (1 << 22) - (1 << (top - 19)) } else { 0 };
        }
        let mut bits = 0x000F_FFFF_FFFF_F000 & !self.phys_mask();
        if self.efer & efer::NXE == 0 {
            bits |= NX;
        }
        if self.efer & efer::LMA == 0 {
            bits |= 0x7FF0_0000_0000_0000;
        }
        if large {
            bits |= ((1 << (12 + level * 9)) - 1) & !0x1FFF;
        } else if level >= 2 {
            bits |= PS;
        }
        bits
    }

    /// Raises a page fault at `linear`.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn page_fault<T>(&mut self, linear: u64, access: Access, present: u32) -> Res<T> {
        let mut error = present;
        if access.kind == Kind::Write {
            error |= code::W;
        }
        if access.user {
            error |= code::U;
        }
        let nx = self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0;
        if access.kind == Kind::Exec && (nx || self.cr4 & cr4::SMEP != 0) {
            error |= code::I;
        }
        let exception = Exception { vector: vector::PF, error: Some(error), payload: linear };
        self.raise(exception)
    }

    fn read_entry(&self, address: u64, size: u64) -> u64 {
        let Some(page) = self.phys.page(address) else { return 0 };
        // SAFETY: `page.host` is a page of guest RAM or ROM, and a naturally aligned entry does
        // not leave it.
        unsafe {
            let host = page.host.add((address & 0xFFF) as usize);
            if size == 4 {
                u64::from((*host.cast::<AtomicU32>()).load(Ordering::Relaxed))
            } else {
                (*host.cast::<AtomicU64>()).load(Ordering::Relaxed)
            }
        }
    }

    /// Replaces an entry that is still `old`; false if it is not.
    fn update_entry(&self, address: u64, old: u64, new: u64, size: u64) -> bool {
        let Some(page) = self.phys.page(address) else { return true };
        if page.readonly {
            return true;
        }
        self.phys.mark_dirty(page);
        // SAFETY: as in `read_entry`; the page is writable.
        unsafe {
            let host = page.host.add((address & 0xFFF) as usize);
            let order = Ordering::SeqCst;
            if size == 4 {
                let entry = &*host.cast::<AtomicU32>();
                entry.compare_exchange(old as u32, new as u32, order, order).is_ok()
            } else {
                (*host.cast::<AtomicU64>()).compare_exchange(old, new, order, order).is_ok()
            }
        }
    }

    /// Loads the four page-directory pointers of PAE paging from memory (SDM vol. 3, 4.4.1).
    ///
    /// # Errors
    /// #GP(0) when one has a reserved bit set; nothing has changed then.
    pub(crate) fn load_pdptrs(&mut self, cr3: u64) -> Res {
        let mut pdptr = [0; 4];
        for (i, entry) in pdptr.iter_mut().enumerate() {
            *entry = self.read_entry((cr3 & 0xFFFF_FFE0) + 8 * i as u64, 8);
            if *entry & P != 0 && *entry & (!self.phys_mask() | 0x1E6) != 0 {
                return self.gp(0);
            }
        }
        self.pdptr = pdptr;
        Ok(())
    }

    /// An ordinary data access by the running program.
    pub(crate) fn data_access(&self, write: bool) -> Access {
        let user = self.cpl == 3;
        let kind = if write { Kind::Write } else { Kind::Read };
        let smap = self.cr4 & cr4::SMAP != 0 && !user && self.flags.rest & bit::AC == 0;
        Access { kind, user, smap }
    }

    /// An access to a system structure, such as the GDT: supervisor whatever the CPL.
    pub(crate) fn system_access(&self, write: bool) -> Access {
        let kind = if write { Kind::Write } else { Kind::Read };
        Access { kind, user: false, smap: self.cr4 & cr4::SMAP != 0 }
    }
}
