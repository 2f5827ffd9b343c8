//! The software TLB: a direct-mapped cache from linear page to host page.
//!
//! There is one table for each kind of access right: supervisor, supervisor with EFLAGS.AC set
//! (SMAP lets it reach user pages), and user. An entry has one tag for each of read, write and
//! execute; a tag is the linear page with a generation number in its low 12 bits, so that a flush
//! is a new generation. The two halves of the address space have generations of their own: the
//! upper one holds global pages on all common kernels and survives a CR3 write.

use std::collections::HashMap;

/// Entries in a table.
const ENTRIES: usize = 1024;
/// No page has this tag: its generation is 0.
const NONE: u64 = 0;
const PAGE: u64 = !0xFFF;

/// The rights under which an access is made; the number of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    Supervisor = 0,
    SupervisorAc = 1,
    User = 2,
    /// User, with alignment checks: only fetches are cached.
    UserAligned = 3,
}

/// A cached translation. Tags are [`NONE`] where the access must take the slow path.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) exec: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
}

const EMPTY: Entry = Entry { read: NONE, write: NONE, exec: NONE, addend: 0 };

/// What of an entry the hot path does not need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cold {
    /// Guest-physical page.
    pub(crate) phys: u64,
    /// A tag that is set where writes are allowed but the page may hold decoded code.
    pub(crate) guarded: u64,
}

/// The tables of one vCPU.
pub(crate) struct Tlb {
    entries: Box<[Entry]>,
    cold: Box<[Cold]>,
    /// First entry of the table in use.
    base: usize,
    /// Generation of the lower and the upper half.
    generation: [u64; 2],
    next_generation: u64,
    /// The lower half's generation for each PCID that has one.
    spaces: HashMap<u16, u64>,
    pcid: u16,
    /// Whether the half holds parts of large pages, the upper half pages that are not global.
    large: [bool; 2],
    local_upper: bool,
    /// Counts what else than a new generation ends the jump cache's knowledge.
    epoch: u64,
    /// Pages of which the jump cache may know code, one bit for all with the same index.
    jumps: [u64; ENTRIES / 64],
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self {
            entries: vec![EMPTY; 4 * ENTRIES].into_boxed_slice(),
            cold: vec![Cold::default(); 4 * ENTRIES].into_boxed_slice(),
            base: 0,
            generation: [1, 2],
            next_generation: 3,
            spaces: HashMap::new(),
            pcid: 0,
            large: [false; 2],
            local_upper: false,
            epoch: 0,
            jumps: [0; ENTRIES / 64],
        }
    }

    /// Chooses the table.
    #[inline]
    pub(crate) fn select(&mut self, rights: Rights) {
        self.base = rights as usize * ENTRIES;
    }

    #[inline(always)]
    fn index(linear: u64) -> usize {
        (linear >> 12) as usize & (ENTRIES - 1)
    }

    /// The tag that an entry for `linear` must have.
    #[inline(always)]
    pub(crate) fn tag(&self, linear: u64) -> u64 {
        linear & PAGE | self.generation[(linear >> 63) as usize]
    }

    /// The entry in use for `linear`.
    #[inline(always)]
    pub(crate) fn entry(&self, linear: u64) -> &Entry {
        // SAFETY: `base` is 0 to 3 times ENTRIES and `index` below ENTRIES; there are
        // 4 * ENTRIES entries.
        unsafe { self.entries.get_unchecked(self.base + Self::index(linear)) }
    }

    /// The guest-physical page of `entry(linear)`.
    #[inline(always)]
    pub(crate) fn phys(&self, linear: u64) -> u64 {
        self.cold[self.base + Self::index(linear)].phys
    }

    /// What the hot path does not need of `entry(linear)`.
    #[inline(always)]
    pub(crate) fn cold(&self, linear: u64) -> Cold {
        self.cold[self.base + Self::index(linear)]
    }

    /// Adds what is known of `linear` under `rights`: tags that are allowed are set.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn insert(
        &mut self,
        rights: Rights,
        linear: u64,
        phys: u64,
        host: u64,
        allow: Allow,
        global: bool,
        large: bool,
    ) {
        let half = (linear >> 63) as usize;
        self.large[half] |= large;
        self.local_upper |= half == 1 && !global;
        let tag = self.tag(linear);
        let i = rights as usize * ENTRIES + Self::index(linear);
        let old = self.entries[i];
        let keep = |t: u64| if t == tag { tag } else { NONE };
        let set = |on: bool, t: u64| if on { tag } else { keep(t) };
        self.entries[i] = Entry {
            read: set(allow.read, old.read),
            write: set(allow.write, old.write),
            exec: set(allow.exec, old.exec),
            addend: host.wrapping_sub(linear & PAGE),
        };
        self.cold[i] = Cold { phys, guarded: set(allow.guarded, self.cold[i].guarded) };
    }

    fn fresh(&mut self) -> u64 {
        if self.next_generation > 0xFFF {
            self.entries.fill(EMPTY);
            self.cold.fill(Cold::default());
            self.spaces.clear();
            self.generation = [1, 2];
            self.next_generation = 3;
            self.forget_jumps();
        }
        self.next_generation += 1;
        self.next_generation - 1
    }

    fn renew(&mut self, half: usize) {
        let generation = self.fresh();
        self.generation[half] = generation;
        self.large[half] = false;
        if half == 0 {
            self.spaces.insert(self.pcid, generation);
        } else {
            self.local_upper = false;
        }
    }

    /// Makes all that the jump cache knows void.
    pub(crate) fn forget_jumps(&mut self) {
        self.epoch += 1;
        self.jumps = [0; ENTRIES / 64];
    }

    /// The jump cache learns of code at `linear`.
    pub(crate) fn note_jump(&mut self, linear: u64) {
        let i = Self::index(linear);
        self.jumps[i / 64] |= 1 << (i % 64);
    }

    /// Drops everything, global pages and other PCIDs included.
    pub(crate) fn flush_all(&mut self) {
        self.spaces.clear();
        self.renew(0);
        self.renew(1);
    }

    /// Drops everything; what is cached from now on is of `pcid`.
    pub(crate) fn begin(&mut self, pcid: u16) {
        self.pcid = pcid;
        self.flush_all();
    }

    /// Drops what is not global, of the current PCID (others may go as well).
    pub(crate) fn flush_local(&mut self) {
        self.renew(0);
        if self.local_upper {
            self.renew(1);
        }
    }

    /// CR3 was written: the address space is now that of `pcid`, and `keep` says that its cached
    /// translations are still good.
    pub(crate) fn switch(&mut self, pcid: u16, keep: bool) {
        let changes = pcid != self.pcid;
        self.pcid = pcid;
        match self.spaces.get(&pcid).copied() {
            Some(generation) if keep => {
                self.generation[0] = generation;
                self.large[0] = true;
            }
            _ => self.renew(0),
        }
        if self.local_upper && (changes || !keep) {
            self.renew(1);
        }
    }

    /// Drops what is cached for another PCID.
    pub(crate) fn forget_space(&mut self, pcid: u16) {
        if pcid == self.pcid {
            self.flush_local();
        } else {
            self.spaces.remove(&pcid);
        }
    }

    /// Drops the page at `linear`, global or not.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let half = (linear >> 63) as usize;
        if self.large[half] {
            self.renew(half);
            return;
        }
        for table in 0..4 {
            let i = table * ENTRIES + Self::index(linear);
            self.entries[i] = EMPTY;
            self.cold[i] = Cold::default();
        }
        let i = Self::index(linear);
        if self.jumps[i / 64] >> (i % 64) & 1 != 0 {
            self.forget_jumps();
        }
    }

    /// Makes writes to the guest-physical page `phys` take the slow path; true if some did not.
    pub(crate) fn protect(&mut self, phys: u64) -> bool {
        let mut any = false;
        for (entry, cold) in self.entries.iter_mut().zip(&mut *self.cold) {
            if cold.phys == phys && entry.write != NONE {
                cold.guarded = entry.write;
                entry.write = NONE;
                any = true;
            }
        }
        any
    }

    /// Calls `f` with the guest-physical page of each entry that allows writes, then makes all
    /// writes take the slow path.
    pub(crate) fn protect_all(&mut self, mut f: impl FnMut(u64)) {
        for (entry, cold) in self.entries.iter_mut().zip(&*self.cold) {
            if entry.write != NONE {
                f(cold.phys);
                entry.write = NONE;
            }
        }
    }

    /// What must be equal for code found earlier at `linear` to be good: its half's generation,
    /// which comes back when an address space does.
    #[inline]
    pub(crate) fn key(&self, linear: u64) -> u64 {
        self.epoch << 14
            | self.generation[(linear >> 63) as usize] << 2
            | (self.base / ENTRIES) as u64
    }
}

/// The accesses that an entry allows without the slow path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allow {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) exec: bool,
    /// Writes, where the page may hold decoded code.
    pub(crate) guarded: bool,
}
