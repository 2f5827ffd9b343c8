//! Base address registers (PCI 3.0, 6.2.5).

use board::pci::BarKind;

/// What a BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Ports: a power of two from 4 to 256.
    Io {
        /// Bytes.
        size: u64,
    },
    /// Memory below 4 GiB: a power of two from 16 to 2 GiB.
    Memory32 {
        /// Bytes.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere: a power of two from 16 on. It takes the next BAR as well.
    Memory64 {
        /// Bytes.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// Bit 0: ports.
const IO_SPACE: u32 = 1 << 0;
/// Bits 2 and 1: 64 bits wide.
const TYPE_64: u32 = 0b10 << 1;
const PREFETCHABLE: u32 = 1 << 3;
/// The low bits that are no address.
const IO_FLAGS: u32 = 0b11;
const MEMORY_FLAGS: u32 = 0b1111;

/// Addresses from here on are beyond any CPU's: a 64-bit BAR whose upper half is being sized.
const PHYSICAL_END: u64 = 1 << 52;

impl Bar {
    /// Bytes.
    pub fn size(self) -> u64 {
        match self {
            Self::Io { size } | Self::Memory32 { size, .. } | Self::Memory64 { size, .. } => size,
        }
    }

    /// Its kind.
    pub fn kind(self) -> BarKind {
        match self {
            Self::Io { .. } => BarKind::Io,
            Self::Memory32 { prefetchable, .. } => BarKind::Memory { wide: false, prefetchable },
            Self::Memory64 { prefetchable, .. } => BarKind::Memory { wide: true, prefetchable },
        }
    }

    /// Whether the next BAR is its upper half.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::Memory64 { .. })
    }

    /// Whether the size is one that a BAR can ask for.
    pub(super) fn is_valid(self) -> bool {
        let (least, most) = match self {
            Self::Io { .. } => (4, 256),
            Self::Memory32 { .. } => (16, 1 << 31),
            Self::Memory64 { .. } => (16, PHYSICAL_END >> 1),
        };
        self.size().is_power_of_two() && (least..=most).contains(&self.size())
    }

    /// The register's read-only low bits.
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Io { .. } => IO_SPACE,
            Self::Memory32 { prefetchable, .. } => flag(prefetchable),
            Self::Memory64 { prefetchable, .. } => TYPE_64 | flag(prefetchable),
        }
    }

    /// The bits that can be written, both halves.
    pub(super) fn writable(self) -> u64 {
        let bits = match self {
            Self::Memory64 { .. } => u64::MAX,
            _ => u32::MAX.into(),
        };
        bits & !(self.size() - 1)
    }

    /// Where a register of this value decodes. None: at no address that can be, as while a guest
    /// finds out the size, and at 0, where registers stand after reset.
    pub(super) fn address(self, value: u64) -> Option<u64> {
        let (mask, end) = match self {
            Self::Io { .. } => (!u64::from(IO_FLAGS), 0x1_0000),
            Self::Memory32 { .. } => (!u64::from(MEMORY_FLAGS), 1 << 32),
            Self::Memory64 { .. } => (!u64::from(MEMORY_FLAGS), PHYSICAL_END),
        };
        let start = value & mask;
        let last = start.checked_add(self.size() - 1)?;
        (start != 0 && last < end && last != u64::from(u32::MAX)).then_some(start)
    }
}

fn flag(prefetchable: bool) -> u32 {
    if prefetchable { PREFETCHABLE } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_within_the_kinds_limits() {
        let memory = |size| Bar::Memory32 { size, prefetchable: false };
        let wide = |size| Bar::Memory64 { size, prefetchable: true };
        for (bar, valid) in [
            (Bar::Io { size: 4 }, true),
            (Bar::Io { size: 256 }, true),
            (Bar::Io { size: 2 }, false),
            (Bar::Io { size: 512 }, false),
            (memory(16), true),
            (memory(8), false),
            (memory(24), false),
            (memory(1 << 31), true),
            (memory(1 << 32), false),
            (wide(1 << 40), true),
            (wide(1 << 52), false),
        ] {
            assert_eq!(bar.is_valid(), valid, "{bar:x?}");
        }
    }

    #[test]
    fn nothing_decodes_at_0_nor_while_its_size_is_asked() {
        let io = Bar::Io { size: 32 };
        let memory = Bar::Memory32 { size: 4096, prefetchable: false };
        let wide = Bar::Memory64 { size: 4096, prefetchable: true };
        for (bar, value, address) in [
            (io, 0x1001, Some(0x1000)),
            (io, 0x0001, None),
            (io, 0xFFFF_FFE1, None),
            (io, 0x1_0001, None),
            (memory, 0xD000_0000, Some(0xD000_0000)),
            (memory, 0x0, None),
            (memory, 0xFFFF_F000, None),
            (wide, 0x1_0000_000C, Some(0x1_0000_0000)),
            (wide, 0xFFFF_F00C, None),
            (wide, 0xFFFF_FFFF_0000_000C, None),
        ] {
            assert_eq!(bar.address(value), address, "{bar:?} {value:#x}");
        }
    }
}
