//! Random paging structures: the page walk against an independent one that is written as the SDM
//! (vol. 3, 4.3 to 4.7) tells it, table by table.
//!
//! Input: three bytes for the mode and the access, sixteen for addresses, then what entries are
//! made of.

use board::memory::{GuestRam, MemoryMap};
use board::{Accel, Clock};

use crate::SoftAccel;
use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::fault::Why;
use crate::mmu::walk::{Access, Kind};

/// Pages that hold tables.
const PAGES: u64 = 16;
const PAGE: u64 = 4096;

/// The mode and the access, as bits of the input.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// 2: 32-bit, 3: PAE, 4 and 5: levels of long mode.
    levels: u32,
    pse: bool,
    nxe: bool,
    wp: bool,
    smep: bool,
    smap: bool,
    kind: Kind,
    user: bool,
}

/// The tables of the reference walk.
struct Reference<'a> {
    case: Case,
    memory: &'a mut [u8],
}

impl Reference<'_> {
    fn entry(&self, at: u64, wide: bool) -> u64 {
        let size = if wide { 8 } else { 4 };
        let Some(bytes) = self.memory.get(at as usize..at as usize + size) else { return 0 };
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn fault(&self, present: bool, reserved: bool) -> u32 {
        let case = &self.case;
        let fetch = case.kind == Kind::Exec && (case.smep || case.nxe && case.levels > 2);
        u32::from(present)
            | u32::from(case.kind == Kind::Write) << 1
            | u32::from(case.user) << 2
            | u32::from(reserved) << 3
            | u32::from(fetch) << 4
    }

    /// The physical address that `linear` leads to, or the error code. Sets the bits that a walk
    /// which succeeds sets.
    fn walk(&mut self, cr3: u64, pdptr: [u64; 4], linear: u64) -> Result<u64, u32> {
        let case = self.case;
        let (wide, bits) = if case.levels == 2 { (false, 10) } else { (true, 9) };
        let mut table = cr3;
        let mut level = case.levels;
        if case.levels == 3 {
            let pointer = pdptr[(linear >> 30 & 3) as usize];
            if pointer & 1 == 0 {
                return Err(self.fault(false, false));
            }
            table = pointer & 0xFF_FFFF_F000;
            level = 2;
        }
        let (mut write, mut user, mut no_execute) = (true, true, false);
        let mut used = Vec::new();
        loop {
            let shift = 12 + (level - 1) * bits;
            let at = table + (linear >> shift & ((1 << bits) - 1)) * if wide { 8 } else { 4 };
            let entry = self.entry(at, wide);
            if entry & 1 == 0 {
                return Err(self.fault(false, false));
            }
            let large = entry >> 7 & 1 != 0
                && match (case.levels, level) {
                    (_, 1) => false,
                    (2, _) => case.pse,
                    (3, _) => true,
                    (_, level) => level <= 3,
                };
            // Bits that must be clear in this entry.
            let reserved = match (wide, level, large) {
                (false, _, true) => 1 << 21,
                (false, ..) => 0,
                (true, 2, true) => 0x1F_E000,
                (true, 3, true) => 0x3FFF_E000,
                (true, 4 | 5, _) => 1 << 7,
                _ => 0,
            } | if wide { 0xFFF << 40 } else { 0 }
                | if wide && !case.nxe { 1 << 63 } else { 0 }
                | if case.levels == 3 { 0x7FF << 52 } else { 0 };
            if entry & reserved != 0 {
                return Err(self.fault(true, true));
            }
            write &= entry >> 1 & 1 != 0;
            user &= entry >> 2 & 1 != 0;
            no_execute |= wide && case.nxe && entry >> 63 != 0;
            used.push((at, entry));
            if level > 1 && !large {
                table = entry & if wide { 0xFF_FFFF_F000 } else { 0xFFFF_F000 };
                level -= 1;
                continue;
            }
            let denied = match case.kind {
                Kind::Read | Kind::Write if case.user && !user => true,
                Kind::Read | Kind::Write if !case.user && user && case.smap => true,
                Kind::Read => false,
                Kind::Write => !write && (case.user || case.wp),
                Kind::Exec => no_execute || case.user && !user || !case.user && user && case.smep,
            };
            if denied {
                return Err(self.fault(true, false));
            }
            let last = used.len() - 1;
            for (i, (at, entry)) in used.into_iter().enumerate() {
                let dirty = i == last && case.kind == Kind::Write;
                let new = entry | 1 << 5 | u64::from(dirty) << 6;
                let size = if wide { 8 } else { 4 };
                self.memory[at as usize..at as usize + size]
                    .copy_from_slice(&new.to_le_bytes()[..size]);
            }
            let within = (1 << shift) - 1;
            let frame = match (wide, large) {
                (true, _) => entry & 0xFF_FFFF_F000 & !within,
                (false, false) => entry & 0xFFFF_F000,
                (false, true) => entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32,
            };
            return Ok(frame | linear & within);
        }
    }
}

/// Bytes of the tables: present as a rule, pointing at one of the tables, now and then with bits
/// that are reserved.
fn tables(seeds: &[u8], wide: bool) -> Vec<u8> {
    let size = if wide { 8 } else { 4 };
    let mut memory = Vec::with_capacity((PAGES * PAGE) as usize);
    let mut at = 0_usize;
    let mut next = || {
        at += 1;
        let seed = u32::from(seeds[at % seeds.len()]);
        // The same seed means something else at another place, but not at all of them.
        seed ^ (at / seeds.len() * 37) as u32 & 0xFF
    };
    while memory.len() < (PAGES * PAGE) as usize {
        let (frame, rights, odd) = (u64::from(next()), u64::from(next()), next());
        let mut entry = (frame % PAGES) << 12 | rights & 0x1FE | u64::from(rights & 0xF0 != 0xF0);
        if odd % 4 != 0 {
            entry |= 6;
        }
        if rights & 0x60 != 0 {
            entry &= !(1 << 7);
        }
        match odd {
            0..=15 => entry |= 1 << (12 + frame % 52),
            16..=23 => entry |= 1 << 63,
            _ => {}
        }
        memory.extend_from_slice(&entry.to_le_bytes()[..size]);
    }
    memory
}

/// Compares the walks of some addresses through random tables.
///
/// # Panics
/// When they differ.
pub fn walker(bytes: &[u8]) {
    let [mode, how, what, rest @ ..] = bytes else { return };
    if rest.len() < 20 {
        return;
    }
    let (places, seeds) = rest.split_at(16);
    let bit = |byte: &u8, n: u32| byte >> n & 1 != 0;
    let case = Case {
        levels: 2 + u32::from(mode & 3),
        pse: bit(mode, 2),
        nxe: bit(mode, 3),
        wp: bit(mode, 4),
        smep: bit(mode, 5),
        smap: bit(how, 2) && !bit(how, 3),
        kind: [Kind::Read, Kind::Write, Kind::Exec, Kind::Write][usize::from(how & 3)],
        user: bit(how, 3),
    };
    let wide = case.levels > 2;
    let mut memory = tables(seeds, wide);
    let ram = GuestRam::new(PAGES * PAGE).expect("memory for tables");
    ram.write(0, &memory).expect("tables that fit");
    let accel = SoftAccel::new(Clock::stopped(), None);
    accel.set_memory(&MemoryMap::new(&ram)).expect("any map");
    let mut vcpu = accel.add(0, &accel.supported_cpuid());
    let cpu = vcpu.cpu_mut();
    cpu.new_map();
    let set = |on: bool, bits: u64| if on { bits } else { 0 };
    cpu.cr0 = cr0::PE | cr0::PG | set(case.wp, cr0::WP);
    cpu.cr4 = set(case.pse, cr4::PSE) | set(case.smep, cr4::SMEP) | set(case.levels > 2, cr4::PAE);
    cpu.cr4 |= set(case.levels == 5, cr4::LA57);
    cpu.efer = set(case.nxe, efer::NXE) | set(case.levels > 3, efer::LMA | efer::LME);
    cpu.cr3 = u64::from(what % PAGES as u8) << 12;
    let pdptr: [u64; 4] = std::array::from_fn(|i| {
        let seed = u64::from(seeds[i % seeds.len()]);
        (seed % PAGES) << 12 | u64::from(seed < 0xE0)
    });
    cpu.pdptr = pdptr;
    let access = Access { kind: case.kind, user: case.user, smap: case.smap };
    for place in places.chunks_exact(4) {
        let word = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        // Nine bits of each level from a few of the place's.
        let linear = if wide {
            let wide = u64::from(word).wrapping_mul(0x0100_0801_0040_0201);
            match case.levels {
                3 => wide & 0xFFFF_FFFF,
                4 => ((wide << 16) as i64 >> 16) as u64,
                _ => ((wide << 7) as i64 >> 7) as u64,
            }
        } else {
            u64::from(word)
        };
        let theirs = outcome(cpu, linear, access);
        let ours = Reference { case, memory: &mut memory }.walk(cpu.cr3, pdptr, linear);
        assert_eq!(theirs, ours, "{case:x?} at {linear:#x}");
        let mut now = vec![0; memory.len()];
        ram.read(0, &mut now).expect("within RAM");
        assert!(now == memory, "{case:x?} at {linear:#x}: accessed and dirty bits differ");
    }
}

fn outcome(cpu: &mut Cpu, linear: u64, access: Access) -> Result<u64, u32> {
    match cpu.walk(linear, access) {
        Ok(walk) => Ok(walk.phys | linear & 0xFFF),
        Err(_) => match cpu.stop.take() {
            Some(Why::Exception(e)) => {
                assert_eq!((e.vector, e.payload), (14, linear));
                Err(e.error.expect("page faults have an error code"))
            }
            other => panic!("{other:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_walk_is_that_of_the_manual() {
        board::fuzz::seeded(1, 4000, 300, super::walker);
    }
}
