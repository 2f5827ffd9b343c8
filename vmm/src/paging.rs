//! Page-table walks for those who look at a machine from outside: the monitor, the gdb stub.
//!
//! A walk changes nothing (no accessed or dirty bits) and checks no permissions. Intel SDM vol. 3,
//! chapter 4.

use board::VcpuState;
use board::memory::MemoryMap;
use monitor::state::Translation;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;

/// The guest-physical address behind linear address `linear`; `None` where nothing is mapped.
pub fn translate(state: &VcpuState, memory: &MemoryMap, linear: u64) -> Option<u64> {
    if state.cr0 & CR0_PG == 0 {
        return Some(linear & 0xFFFF_FFFF);
    }
    if state.long_mode() {
        let levels = if state.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        let canonical = (linear as i64) << (64 - 12 - 9 * levels) >> (64 - 12 - 9 * levels);
        return (canonical as u64 == linear)
            .then(|| walk_64(memory, state.cr3 & ADDRESS, levels, linear))?;
    }
    let linear = linear & 0xFFFF_FFFF;
    if state.cr4 & CR4_PAE != 0 {
        let pdpte = read(memory, (state.cr3 & 0xFFFF_FFE0) + 8 * (linear >> 30), 8)?;
        return (pdpte & PRESENT != 0).then(|| walk_64(memory, pdpte & ADDRESS, 2, linear))?;
    }
    walk_32(state, memory, linear)
}

/// Tables that a walk of everything looks at, at most: those of 128 GiB in small pages. Page tables
/// can lead to themselves.
const MAX_TABLES: u32 = 1 << 16;

/// Whoever looks at each mapped page, by ascending address.
struct Walk<'a> {
    memory: &'a MemoryMap,
    /// Bytes in an entry.
    width: usize,
    /// Large pages of tables with 4-byte entries.
    pse: bool,
    tables: u32,
    visit: &'a mut dyn FnMut(Translation) -> bool,
}

/// Calls `visit` with each mapped page until it says false, or the tables are too many. Whether all
/// have been visited. Without paging there are none.
pub fn walk_pages(
    state: &VcpuState,
    memory: &MemoryMap,
    visit: &mut dyn FnMut(Translation) -> bool,
) -> bool {
    if state.cr0 & CR0_PG == 0 {
        return true;
    }
    let wide = state.long_mode() || state.cr4 & CR4_PAE != 0;
    let pse = state.cr4 & CR4_PSE != 0;
    let mut walk = Walk { memory, width: if wide { 8 } else { 4 }, pse, tables: MAX_TABLES, visit };
    if state.long_mode() {
        let levels = if state.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        walk.table(state.cr3 & ADDRESS, 512, levels - 1, 0, (true, true))
    } else if wide {
        walk.table(state.cr3 & 0xFFFF_FFE0, 4, 2, 0, (true, true))
    } else {
        walk.table(state.cr3 & 0xFFFF_F000, 1024, 1, 0, (true, true))
    }
}

impl Walk<'_> {
    /// The table at `address` with `count` entries, which maps from `linear` on. `rights` are those
    /// of user and of writing that the levels above leave.
    fn table(
        &mut self,
        address: u64,
        count: u64,
        level: u32,
        linear: u64,
        rights: (bool, bool),
    ) -> bool {
        let Some(left) = self.tables.checked_sub(1) else { return false };
        self.tables = left;
        let mut bytes = vec![0; count as usize * self.width];
        if self.memory.read(address, &mut bytes).is_err() {
            return true;
        }
        let shift = if self.width == 8 { 12 + 9 * level } else { 12 + 10 * level };
        for (index, entry) in bytes.chunks_exact(self.width).enumerate() {
            let entry = entry.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            if entry & PRESENT == 0 {
                continue;
            }
            let mut linear = linear | (index as u64) << shift;
            if level >= 3 && linear >> (shift + 8) & 1 != 0 {
                // The upper half of the canonical addresses.
                linear |= u64::MAX << (shift + 8);
            }
            // The entries of PAE's top table have no rights.
            let (user, write) = match count {
                4 => rights,
                _ => (rights.0 && entry & 4 != 0, rights.1 && entry & 2 != 0),
            };
            let large = entry & LARGE != 0
                && if self.width == 8 { (1..=2).contains(&level) && count != 4 } else { self.pse };
            let next = entry & if self.width == 8 { ADDRESS } else { 0xFFFF_F000 };
            let goes_on = if level == 0 || large {
                let size = 1 << shift;
                let physical = match self.width {
                    // PSE-36.
                    4 if level == 1 => (entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000,
                    _ => next & !(size - 1),
                };
                (self.visit)(Translation { linear, physical, size, entry, user, write })
            } else {
                let count = if self.width == 8 { 512 } else { 1024 };
                self.table(next, count, level - 1, linear, (user, write))
            };
            if !goes_on {
                return false;
            }
        }
        true
    }
}

/// Entries of 8 bytes, 512 a table.
fn walk_64(memory: &MemoryMap, mut table: u64, levels: u32, linear: u64) -> Option<u64> {
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = read(memory, table + 8 * (linear >> shift & 0x1FF), 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || (level <= 2 && entry & LARGE != 0) {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Entries of 4 bytes, 1024 a table.
fn walk_32(state: &VcpuState, memory: &MemoryMap, linear: u64) -> Option<u64> {
    let entry = read(memory, (state.cr3 & 0xFFFF_F000) + 4 * (linear >> 22), 4)?;
    if entry & PRESENT == 0 {
        return None;
    }
    if entry & LARGE != 0 && state.cr4 & CR4_PSE != 0 {
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
        let high = (entry >> 13 & 0xFF) << 32;
        return Some(high | entry & 0xFFC0_0000 | linear & 0x3F_FFFF);
    }
    let entry = read(memory, (entry & 0xFFFF_F000) + 4 * (linear >> 12 & 0x3FF), 4)?;
    (entry & PRESENT != 0).then_some(entry & 0xFFFF_F000 | linear & 0xFFF)
}

fn read(memory: &MemoryMap, address: u64, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes[..size]).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Reads linear memory; `Err` holds the first address that has no mapping or no memory.
///
/// # Errors
/// As said.
pub fn read_linear(
    state: &VcpuState,
    memory: &MemoryMap,
    linear: u64,
    data: &mut [u8],
) -> Result<(), u64> {
    let mut done = 0;
    while done < data.len() {
        let address = linear.wrapping_add(done as u64);
        let piece = (data.len() - done).min(4096 - (address & 0xFFF) as usize);
        let physical = translate(state, memory, address).ok_or(address)?;
        memory.read(physical, &mut data[done..done + piece]).map_err(|_| address)?;
        done += piece;
    }
    Ok(())
}

/// Writes linear RAM, whatever the rights of its mapping; `Err` holds the first address that has no
/// mapping or no RAM. What lies before it has been written.
///
/// # Errors
/// As said.
pub fn write_linear(
    state: &VcpuState,
    memory: &MemoryMap,
    linear: u64,
    data: &[u8],
) -> Result<(), u64> {
    let mut done = 0;
    while done < data.len() {
        let address = linear.wrapping_add(done as u64);
        let piece = (data.len() - done).min(4096 - (address & 0xFFF) as usize);
        let physical = translate(state, memory, address).ok_or(address)?;
        memory.ram().write(physical, &data[done..done + piece]).map_err(|_| address)?;
        done += piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use board::GuestRam;

    use super::*;

    fn machine() -> (VcpuState, GuestRam, MemoryMap) {
        let ram = GuestRam::new(4 << 20).unwrap();
        let map = MemoryMap::new(&ram);
        (VcpuState { cr0: CR0_PG | 1, ..Default::default() }, ram, map)
    }

    fn put(ram: &GuestRam, address: u64, entry: u64) {
        ram.write(address, &entry.to_le_bytes()).unwrap();
    }

    #[test]
    fn without_paging_linear_is_physical() {
        let (mut state, _ram, map) = machine();
        state.cr0 = 1;
        assert_eq!(translate(&state, &map, 0x1234), Some(0x1234));
    }

    #[test]
    fn four_levels_and_their_page_sizes() {
        let (mut state, ram, map) = machine();
        state.efer = 1 << 10;
        state.cr4 = CR4_PAE;
        state.cr3 = 0x1000 | 0x18;
        put(&ram, 0x1000 + 8 * 511, 0x2000 | 1);
        put(&ram, 0x2000 + 8 * 510, 0x3000 | 1);
        put(&ram, 0x2000 + 8 * 509, 0x4000_0000 | LARGE | 1);
        put(&ram, 0x3000, 0x4000 | 1);
        put(&ram, 0x3000 + 8, 0x20_0000 | LARGE | 1 | 1 << 63);
        put(&ram, 0x4000 + 8 * 5, 0x7000 | 1);
        let base = 0xFFFF_FFFF_8000_0000;
        assert_eq!(translate(&state, &map, base + 0x5123), Some(0x7123));
        assert_eq!(translate(&state, &map, base + 0x20_0456), Some(0x20_0456));
        assert_eq!(translate(&state, &map, base - (1 << 30) + 7), Some(0x4000_0007));
        assert_eq!(translate(&state, &map, base + 0x6000), None);
        assert_eq!(translate(&state, &map, 0x1FFF_FFFF_8000_0000), None, "not canonical");
    }

    fn all(state: &VcpuState, map: &MemoryMap) -> Vec<Translation> {
        let mut pages = Vec::new();
        assert!(walk_pages(state, map, &mut |page| {
            pages.push(page);
            true
        }));
        for page in &pages {
            assert_eq!(translate(state, map, page.linear), Some(page.physical), "{page:x?}");
        }
        pages
    }

    #[test]
    fn a_walk_finds_every_page_in_order() {
        let (mut state, ram, map) = machine();
        state.efer = 1 << 10;
        state.cr4 = CR4_PAE;
        state.cr3 = 0x1000;
        put(&ram, 0x1000, 0x2000 | 3);
        put(&ram, 0x1000 + 8 * 511, 0x2000 | 7);
        put(&ram, 0x2000 + 8, 0x3000 | 7);
        put(&ram, 0x2000 + 16, 0x4000_0000 | LARGE | 7);
        put(&ram, 0x3000, 0x20_0000 | LARGE | 5);
        put(&ram, 0x3000 + 8, 0x4000 | 7);
        put(&ram, 0x4000 + 8 * 511, 0x5000 | 7);
        let pages = all(&state, &map);
        let seen: Vec<_> = pages.iter().map(|p| (p.linear, p.size, p.user, p.write)).collect();
        let upper = 0xFFFF_FF80_0000_0000;
        let expected = [(0, false), (upper, true)].map(|(base, user)| {
            [
                (base + (1 << 30), 2 << 20, user, false),
                (base + (1 << 30) + (4 << 20) - 4096, 4096, user, true),
                (base + (2 << 30), 1 << 30, user, true),
            ]
        });
        assert_eq!(seen, expected.concat());
        // A table that leads to itself has an end for us.
        put(&ram, 0x1000 + 8 * 5, 0x1000 | 7);
        let mut count = 0_u64;
        let whole = walk_pages(&state, &map, &mut |_| {
            count += 1;
            count < 100_000
        });
        assert!(count <= 100_000 && (whole || count > 100));
    }

    #[test]
    fn a_walk_of_smaller_tables() {
        let (mut state, ram, map) = machine();
        state.cr3 = 0x1000;
        state.cr4 = CR4_PSE;
        ram.write(0x1000 + 4 * 3, &(0x40_0087_u32 | 1 << 13).to_le_bytes()).unwrap();
        ram.write(0x1000 + 4 * 1023, &0x2007_u32.to_le_bytes()).unwrap();
        ram.write(0x2000 + 4 * 1023, &0x5001_u32.to_le_bytes()).unwrap();
        let pages: Vec<_> = all(&state, &map).iter().map(|p| (p.linear, p.write)).collect();
        assert_eq!(pages, [(12 << 20, true), (0xFFFF_F000, false)]);
        state.cr4 = CR4_PAE;
        state.cr3 = 0x20_0020;
        put(&ram, 0x20_0020 + 8 * 3, 0x20_1000 | 1);
        put(&ram, 0x20_1000 + 8 * 2, 0x60_0000 | LARGE | 3);
        let pages: Vec<_> = all(&state, &map).iter().map(|p| (p.linear, p.write)).collect();
        assert_eq!(pages, [(0xC040_0000, true)]);
        state.cr0 = 1;
        assert!(all(&state, &map).is_empty());
    }

    #[test]
    fn pae_and_two_levels() {
        let (mut state, ram, map) = machine();
        state.cr3 = 0x1000;
        put(&ram, 0x1000 + 4, 0x2000 | 1);
        ram.write(0x2000 + 4 * 3, &0x5001_u32.to_le_bytes()).unwrap();
        assert_eq!(translate(&state, &map, 0x40_3ABC), Some(0x5ABC));
        state.cr4 = CR4_PSE;
        ram.write(0x1000, &(0x40_0081_u32 | 1 << 13).to_le_bytes()).unwrap();
        assert_eq!(translate(&state, &map, 0x12_3456), Some(0x1_0052_3456));
        state.cr4 = CR4_PAE;
        state.cr3 = 0x20_0020;
        put(&ram, 0x20_0020 + 8 * 3, 0x20_1000 | 1);
        put(&ram, 0x20_1000 + 8 * 2, 0x60_0000 | LARGE | 1);
        assert_eq!(translate(&state, &map, 0xC040_0010), Some(0x60_0010));
    }

    #[test]
    fn reads_cross_pages_and_name_the_first_bad_address() {
        let (mut state, ram, map) = machine();
        state.cr3 = 0x1000;
        put(&ram, 0x1000, 0x2000 | 1);
        ram.write(0x2000, &0x6001_u32.to_le_bytes()).unwrap();
        ram.write(0x2004, &0x8001_u32.to_le_bytes()).unwrap();
        ram.write(0x6FFE, b"ab").unwrap();
        ram.write(0x8000, b"cd").unwrap();
        let mut data = [0; 4];
        read_linear(&state, &map, 0xFFE, &mut data).unwrap();
        assert_eq!(&data, b"abcd");
        assert_eq!(read_linear(&state, &map, 0x1FFE, &mut data), Err(0x2000));
        write_linear(&state, &map, 0xFFE, b"wxyz").unwrap();
        read_linear(&state, &map, 0xFFE, &mut data).unwrap();
        assert_eq!(&data, b"wxyz");
        assert_eq!(write_linear(&state, &map, 0x1FFF, b"12"), Err(0x2000));
    }
}
