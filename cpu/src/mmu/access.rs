//! Loads and stores at linear addresses.
//!
//! A hit in the TLB is a handful of host instructions. Everything else (a miss, an access that
//! crosses pages, a page of decoded code, MMIO, a watchpoint) goes through the slow functions.
//! Guest memory is only touched by host instructions of the access's size, volatile, so that a
//! guest on several vCPUs sees the host's memory order, which is x86's own.

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use crate::cpu::{Cpu, Todo};
use crate::fault::{Res, vector};
use crate::int::Int;
use crate::mmu::tlb::{Allow, Rights};
use crate::mmu::walk::{Access, Kind};
use crate::phys::{Page, Span};

/// A value in guest memory, at any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T: Copy>(T);

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) phys: u64,
    pub(crate) page: Option<Page>,
}

impl Place {
    /// Host address of the byte, if it is memory that may be accessed directly.
    pub(crate) fn host(&self) -> Option<*mut u8> {
        // SAFETY: the offset stays within the page.
        self.page.map(|page| unsafe { page.host.add((self.phys & 0xFFF) as usize) })
    }

    /// Whether a write ends in memory: no device sees it.
    fn is_plain(&self) -> bool {
        self.page.is_some_and(|page| !page.readonly)
    }
}

impl Cpu {
    /// Reads a `T` at `linear`.
    #[inline(always)]
    pub(crate) fn load<T: Int>(&mut self, linear: u64) -> Res<T> {
        let entry = self.tlb.entry(linear);
        if entry.read == self.tlb.tag(linear.wrapping_add(T::BYTES - 1)) {
            let host = entry.addend.wrapping_add(linear) as *const Unaligned<T>;
            // SAFETY: the entry's tag says that the bytes lie in one page of guest memory, which
            // stays mapped at `host` while the entry is valid.
            return Ok(unsafe { host.read_volatile().0 });
        }
        self.load_slow(linear, T::BYTES).map(T::trunc)
    }

    /// Writes a `T` at `linear`.
    #[inline(always)]
    pub(crate) fn store<T: Int>(&mut self, linear: u64, value: T) -> Res {
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear.wrapping_add(T::BYTES - 1)) {
            let host = entry.addend.wrapping_add(linear) as *mut Unaligned<T>;
            // SAFETY: as in `load`; a write tag is set for writable memory only.
            unsafe { host.write_volatile(Unaligned(value)) };
            return Ok(());
        }
        self.store_slow(linear, value.zext(), T::BYTES)
    }

    /// Reads `N` bytes at `linear`.
    #[inline(always)]
    pub(crate) fn load_array<const N: usize>(&mut self, linear: u64) -> Res<[u8; N]> {
        let entry = self.tlb.entry(linear);
        if entry.read == self.tlb.tag(linear.wrapping_add(N as u64 - 1)) {
            let host = entry.addend.wrapping_add(linear) as *const [u8; N];
            // SAFETY: the entry's tag says that the bytes lie in one page of guest memory, which
            // stays mapped at `host` while the entry is valid. An array of bytes has no alignment.
            return Ok(unsafe { host.read_volatile() });
        }
        let mut data = [0; N];
        self.read_bytes(linear, &mut data)?;
        Ok(data)
    }

    /// Writes `N` bytes at `linear`, none if any of them faults.
    #[inline(always)]
    pub(crate) fn store_array<const N: usize>(&mut self, linear: u64, data: [u8; N]) -> Res {
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear.wrapping_add(N as u64 - 1)) {
            let host = entry.addend.wrapping_add(linear) as *mut [u8; N];
            // SAFETY: as in `load_array`; a write tag is set for writable memory only.
            unsafe { host.write_volatile(data) };
            return Ok(());
        }
        self.write_bytes(linear, &data)
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, linear: u64, size: u64) -> Res<u64> {
        let mut bytes = [0; 8];
        self.read_as(linear, &mut bytes[..size as usize], self.data_access(false))?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, linear: u64, value: u64, size: u64) -> Res {
        let bytes = value.to_le_bytes();
        let cold = self.tlb.cold(linear);
        if cold.guarded == self.tlb.tag(linear.wrapping_add(size - 1))
            && let Some(page) = self.phys.page(cold.phys)
            && self.phys.code(page) != 0
        {
            let place = Place { phys: cold.phys | linear & 0xFFF, page: Some(page) };
            self.write_place(place, &bytes[..size as usize]);
            return Ok(());
        }
        self.write_as(linear, &bytes[..size as usize], self.data_access(true))
    }

    /// Reads `size` bytes (1 to 8), zero-extended.
    pub(crate) fn load_n(&mut self, linear: u64, size: u64) -> Res<u64> {
        crate::int::by_size!(size, T => self.load::<T>(linear).map(Int::zext))
    }

    /// Writes the low `size` bytes (1 to 8) of `value`.
    pub(crate) fn store_n(&mut self, linear: u64, size: u64, value: u64) -> Res {
        crate::int::by_size!(size, T => self.store::<T>(linear, <T as Int>::trunc(value)))
    }

    /// Reads any number of bytes up to a page.
    pub(crate) fn read_bytes(&mut self, linear: u64, data: &mut [u8]) -> Res {
        self.read_as(linear, data, self.data_access(false))
    }

    /// Writes any number of bytes up to a page; none if any of them faults.
    pub(crate) fn write_bytes(&mut self, linear: u64, data: &[u8]) -> Res {
        self.write_as(linear, data, self.data_access(true))
    }

    /// Reads a little-endian number from a system structure.
    pub(crate) fn load_system(&mut self, linear: u64, size: usize) -> Res<u64> {
        let mut bytes = [0; 8];
        self.read_as(linear, &mut bytes[..size], self.system_access(false))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a little-endian number to a system structure.
    pub(crate) fn store_system(&mut self, linear: u64, size: usize, value: u64) -> Res {
        self.write_as(linear, &value.to_le_bytes()[..size], self.system_access(true))
    }

    /// Fails as a write of `size` bytes would, and does nothing else.
    pub(crate) fn probe_write(&mut self, linear: u64, size: u64) -> Res {
        let access = self.data_access(true);
        let place = self.translate(linear, access)?;
        let last = linear.wrapping_add(size - 1);
        if (last ^ linear) >> 12 != 0 {
            let rest = self.translate(last & !0xFFF, access)?;
            self.admit_store(rest, (last & 0xFFF) as usize + 1)?;
        }
        self.admit_store(place, self.room(linear).min(size as usize))
    }

    pub(crate) fn read_as(&mut self, linear: u64, data: &mut [u8], access: Access) -> Res {
        let linear = self.wrap(linear);
        self.watch(linear, data.len() as u64, access.kind);
        if self.debugger.watching && access.kind == Kind::Write {
            // What is read here is written next.
            self.debugger_watch(linear, data.len() as u64, Kind::Read);
        }
        let first = self.room(linear).min(data.len());
        let place = self.translate(linear, access)?;
        if first < data.len() {
            let rest = self.translate(self.wrap(linear.wrapping_add(first as u64)), access)?;
            self.check_alignment(linear, data.len(), access)?;
            if place.page.is_none() || rest.page.is_none() {
                self.alone()?;
            }
            self.admit_device(place)?;
            self.admit_device(rest)?;
            let (a, b) = data.split_at_mut(first);
            self.read_place(place, a);
            self.read_place(rest, b);
        } else {
            self.check_alignment(linear, data.len(), access)?;
            if place.page.is_none() {
                self.alone()?;
            }
            self.admit_device(place)?;
            self.read_place(place, data);
        }
        Ok(())
    }

    pub(crate) fn write_as(&mut self, linear: u64, data: &[u8], access: Access) -> Res {
        let linear = self.wrap(linear);
        self.watch(linear, data.len() as u64, access.kind);
        let first = self.room(linear).min(data.len());
        let place = self.translate(linear, access)?;
        if first < data.len() {
            let rest = self.translate(self.wrap(linear.wrapping_add(first as u64)), access)?;
            self.check_alignment(linear, data.len(), access)?;
            if !place.is_plain() || !rest.is_plain() {
                self.alone()?;
            }
            let (a, b) = data.split_at(first);
            self.admit_store(place, a.len())?;
            self.admit_store(rest, b.len())?;
            self.write_place(place, a);
            self.write_place(rest, b);
        } else {
            self.check_alignment(linear, data.len(), access)?;
            if !place.is_plain() {
                self.alone()?;
            }
            self.admit_store(place, data.len())?;
            self.write_place(place, data);
        }
        Ok(())
    }

    /// Raises #AC for a misaligned operand where that is checked (SDM vol. 3, table 6-7). What the
    /// table leaves to the processor (unaligned vectors) is as AMD's processors do it: 16 bytes.
    fn check_alignment(&mut self, linear: u64, size: usize, access: Access) -> Res {
        let unit = match size {
            2 | 4 | 8 | 16 => size,
            10 => 8,
            32 => 16,
            // The x87 environment and state, of 32 and of 16 bits.
            28 | 108 => 4,
            14 | 94 => 2,
            _ => 1,
        };
        if access.user && linear & (unit as u64 - 1) != 0 && self.checks_alignment() {
            return self.raise_error(vector::AC, 0);
        }
        Ok(())
    }

    /// Linear addresses have 32 bits outside long mode.
    pub(crate) fn wrap(&self, linear: u64) -> u64 {
        if self.efer & crate::cpu::efer::LMA == 0 { linear & 0xFFFF_FFFF } else { linear }
    }

    /// Bytes from `linear` to the end of its page.
    fn room(&self, linear: u64) -> usize {
        4096 - (linear & 0xFFF) as usize
    }

    /// Where `linear` leads for `access`; the TLB learns it.
    ///
    /// # Errors
    /// A page fault, or #GP(0) for an address that is not canonical.
    pub(crate) fn translate(&mut self, linear: u64, access: Access) -> Res<Place> {
        if self.efer & crate::cpu::efer::LMA != 0 && !self.canonical(linear) {
            return self.raise_error(vector::GP, 0);
        }
        let walk = self.walk(linear, access)?;
        let phys = walk.phys | linear & 0xFFF;
        let page = if self.apic_page(walk.phys) { None } else { self.phys.page(walk.phys) };
        if let Some(page) = page {
            let rights = match access {
                Access { user: true, .. } if self.checks_alignment() => Rights::UserAligned,
                Access { user: true, .. } => Rights::User,
                Access { smap: true, .. } => Rights::Supervisor,
                _ if self.cr4 & crate::cpu::cr4::SMAP == 0 => Rights::Supervisor,
                _ => Rights::SupervisorAc,
            };
            // What an assistant writes is looked at each time.
            let writable = walk.write && !page.readonly && self.assist.is_none();
            if writable {
                self.phys.note_writer(page, self.id);
            }
            let code = self.phys.code(page) != 0;
            let write = writable && !code;
            if write {
                self.phys.mark_dirty(page);
            }
            let watched = self.watched_page(linear) || rights == Rights::UserAligned;
            let allow = Allow {
                read: walk.read && !watched,
                write: write && !watched,
                exec: walk.exec,
                guarded: writable && code && !watched,
            };
            let (global, large) = (walk.global, walk.large);
            self.tlb.insert(rights, linear, walk.phys, page.host as u64, allow, global, large);
        }
        Ok(Place { phys, page })
    }

    /// Reads from one page.
    pub(crate) fn read_place(&mut self, place: Place, data: &mut [u8]) {
        match place.host() {
            // SAFETY: `host` points into a page of guest memory, and the caller stays within it.
            Some(host) => unsafe { copy_from_guest(host, data) },
            None => self.mmio_read(place.phys, data),
        }
    }

    /// Writes to one page.
    pub(crate) fn write_place(&mut self, place: Place, data: &[u8]) {
        match place.page {
            Some(page) if !page.readonly => {
                // SAFETY: `host` points into a writable page of guest memory, and the caller stays
                // within it.
                unsafe { copy_to_guest(page.host.add((place.phys & 0xFFF) as usize), data) };
                self.wrote(page, Span::new(place.phys, data.len() as u64));
            }
            _ => self.mmio_write(place.phys, data),
        }
    }

    /// After a write to `span` of `page`: notes it for the dirty log, and has every vCPU drop the
    /// code that it holds of it.
    pub(crate) fn wrote(&mut self, page: Page, span: Span) {
        self.phys.mark_dirty(page);
        // Another vCPU marks the line, then reads the code; here it is written, then looked for.
        fence(Ordering::SeqCst);
        if self.phys.code(page) & span.lines() != 0 {
            self.wrote_code(page, span);
        }
    }

    #[cold]
    fn wrote_code(&mut self, page: Page, span: Span) {
        // The mark stays where this vCPU holds code beside what was written.
        let remain = self.drop_code(span);
        self.phys.clear_code(page, span.lines() & !remain);
        self.shared.tell_others(&self.mailbox, Todo::DropCode(span.whole_lines()));
    }

    fn mmio_read(&mut self, phys: u64, data: &mut [u8]) {
        if self.apic_page(phys & !0xFFF) {
            return self.apic_read(phys, data);
        }
        // MMIO reads of odd lengths come as the accesses that hardware would make.
        let mut at = phys;
        let mut rest = data;
        while !rest.is_empty() {
            let n = chunk(at, rest.len());
            let (now, later) = rest.split_at_mut(n);
            self.io().mmio_read(at, now);
            at += n as u64;
            rest = later;
        }
    }

    fn mmio_write(&mut self, phys: u64, data: &[u8]) {
        if self.apic_page(phys & !0xFFF) {
            return self.apic_write(phys, data);
        }
        self.mailbox.attention.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut at = phys;
        let mut rest = data;
        while !rest.is_empty() {
            let n = chunk(at, rest.len());
            let (now, later) = rest.split_at(n);
            self.io().mmio_write(at, now);
            at += n as u64;
            rest = later;
        }
    }

    /// The host address of `size` bytes at `linear` that may be written in place, and their page;
    /// `None` when they cross pages or are not plain memory.
    pub(crate) fn writable_host(
        &mut self,
        linear: u64,
        size: u64,
    ) -> Res<Option<(NonNull<u8>, Place)>> {
        let access = self.data_access(true);
        let linear = self.wrap(linear);
        self.watch(linear, size, Kind::Write);
        if self.debugger.watching {
            // Whoever writes in place reads first.
            self.debugger_watch(linear, size, Kind::Read);
        }
        let place = self.translate(linear, access)?;
        let crosses = self.room(linear) < size as usize;
        if crosses {
            self.translate(self.wrap(linear.wrapping_add(size - 1) & !0xFFF), access)?;
        }
        self.check_alignment(linear, size as usize, access)?;
        if crosses {
            return Ok(None);
        }
        self.admit_store(place, size as usize)?;
        Ok(place
            .host()
            .filter(|_| place.is_plain())
            .and_then(NonNull::new)
            .map(|host| (host, place)))
    }
}

/// The largest access at `at` that is naturally aligned and at most `len` and 8 bytes long.
fn chunk(at: u64, len: usize) -> usize {
    match len {
        1 | 2 | 4 | 8 => len,
        _ => [8, 4, 2, 1]
            .into_iter()
            .find(|n| len >= *n && at.is_multiple_of(*n as u64))
            .unwrap_or(1),
    }
}

/// Copies by accesses as wide as the length asks for.
///
/// # Safety
/// `host` must point to `data.len()` readable bytes of guest memory.
pub(crate) unsafe fn copy_from_guest(host: *const u8, data: &mut [u8]) {
    // SAFETY: the caller's promise; `Unaligned` has no alignment to keep.
    unsafe {
        match data.len() {
            1 => data[0] = host.read_volatile(),
            2 => {
                data.copy_from_slice(&host.cast::<Unaligned<u16>>().read_volatile().0.to_le_bytes())
            }
            4 => {
                data.copy_from_slice(&host.cast::<Unaligned<u32>>().read_volatile().0.to_le_bytes())
            }
            8 => {
                data.copy_from_slice(&host.cast::<Unaligned<u64>>().read_volatile().0.to_le_bytes())
            }
            n => std::ptr::copy_nonoverlapping(host, data.as_mut_ptr(), n),
        }
    }
}

/// Copies by accesses as wide as the length asks for.
///
/// # Safety
/// `host` must point to `data.len()` writable bytes of guest memory.
pub(crate) unsafe fn copy_to_guest(host: *mut u8, data: &[u8]) {
    fn array<const N: usize>(data: &[u8]) -> [u8; N] {
        std::array::from_fn(|i| data[i])
    }
    // SAFETY: the caller's promise; `Unaligned` has no alignment to keep.
    unsafe {
        match data.len() {
            1 => host.write_volatile(data[0]),
            2 => host
                .cast::<Unaligned<u16>>()
                .write_volatile(Unaligned(u16::from_le_bytes(array(data)))),
            4 => host
                .cast::<Unaligned<u32>>()
                .write_volatile(Unaligned(u32::from_le_bytes(array(data)))),
            8 => host
                .cast::<Unaligned<u64>>()
                .write_volatile(Unaligned(u64::from_le_bytes(array(data)))),
            n => std::ptr::copy_nonoverlapping(data.as_ptr(), host, n),
        }
    }
}
