//! The memory map that a PC's firmware reports (ACPI 6.5, 15; INT 15h, E820h), in which every
//! boot protocol describes RAM.

use board::GuestRam;
use board::memory::HIGH_RAM_START;

use super::layout;

/// What a range of physical addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// Bytes, not 0.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// The range from `start` up to `end`.
    pub fn new(start: u64, end: u64, kind: Kind) -> Self {
        Self { start, size: end - start, kind }
    }

    /// As in the zero page and in fw_cfg's `etc/e820`: address, size, type; 20 bytes,
    /// little-endian.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }
}

/// The map that a kernel is given: RAM without the EBDA, the video hole, and the tables and BIOS
/// area below 1 MiB, and what is reserved below 4 GiB, where there is no RAM.
pub fn kernel_map(ram: &GuestRam, reserved: Option<Entry>) -> Vec<Entry> {
    let low = ram.low_size();
    let mut map = vec![
        Entry::new(0, layout::EBDA.min(low), Kind::Ram),
        Entry::new(layout::EBDA, layout::BASE_MEMORY_END, Kind::Reserved),
        Entry::new(layout::ACPI_TABLES, layout::ONE_MIB, Kind::Reserved),
    ];
    if low > layout::ONE_MIB {
        map.push(Entry::new(layout::ONE_MIB, low, Kind::Ram));
    }
    map.extend(reserved);
    map.extend(high(ram));
    map
}

/// The map that firmware is given by fw_cfg (`etc/e820`): RAM alone; what it takes for itself
/// below 1 MiB and elsewhere is its own affair.
pub fn firmware_map(ram: &GuestRam) -> Vec<Entry> {
    let mut map = vec![Entry::new(0, ram.low_size(), Kind::Ram)];
    map.extend(high(ram));
    map
}

fn high(ram: &GuestRam) -> Option<Entry> {
    (ram.high_size() > 0)
        .then(|| Entry::new(HIGH_RAM_START, HIGH_RAM_START + ram.high_size(), Kind::Ram))
}

#[cfg(test)]
mod tests {
    use board::memory::LOW_RAM_END;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn usable_ram_is_all_ram_but_the_reserved_part_of_the_first_mib() {
        for mib in [1, 2, 3, 16, 640, 3071, 3072, 3073, 4096, 8192] {
            let ram = GuestRam::new(mib * MIB).unwrap();
            let map = kernel_map(&ram, None);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start, "{mib} MiB: {map:x?}");
            }
            let usable = map.iter().filter(|entry| entry.kind == Kind::Ram);
            let mut sum = 0;
            for entry in usable {
                assert!(entry.size > 0 && ram.contains(entry.start, entry.size), "{entry:x?}");
                sum += entry.size;
            }
            assert_eq!(sum, mib * MIB - (layout::ONE_MIB - layout::EBDA), "{mib} MiB");
        }
    }

    #[test]
    fn the_hole_below_four_gib_is_in_no_range() {
        let ram = GuestRam::new(8 << 30).unwrap();
        let map = kernel_map(&ram, None);
        assert_eq!(map[3], Entry::new(MIB, LOW_RAM_END, Kind::Ram));
        assert_eq!(map[4], Entry::new(4 << 30, 9 << 30, Kind::Ram));
        assert_eq!(
            firmware_map(&ram),
            [Entry::new(0, LOW_RAM_END, Kind::Ram), Entry::new(4 << 30, 9 << 30, Kind::Ram)]
        );
    }

    #[test]
    fn an_entry_has_twenty_bytes() {
        let bytes = Entry::new(0x1_0000_0000, 0x1_8000_0000, Kind::Ram).to_bytes();
        assert_eq!(bytes, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
