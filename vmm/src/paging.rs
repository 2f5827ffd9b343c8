//! Page-table walks for those who look at a machine from outside: the monitor, the gdb stub.
//!
//! A walk changes nothing (no accessed or dirty bits) and checks no permissions. Intel SDM vol. 3,
//! chapter 4.

use board::VcpuState;
use board::memory::MemoryMap;

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
