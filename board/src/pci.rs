//! What a PCI bus asks of a function, and what a function asks of its bus.
//!
//! A function is a [`crate::Device`] in a [`crate::Slot`] like any other: BAR `n` arrives as
//! [`crate::Region`]`(n)`. [`PciFunction`] is its configuration side, called with the same lock
//! held. The bus itself is no device: it serialises configuration accesses, and applies their
//! [`Effects`] once it has let the function's lock go.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::accel::Space;

/// BARs 0 to 5, and the expansion ROM as number 6.
pub const BARS: usize = 7;

/// Device and function number of a function on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(u8);

impl Devfn {
    /// Device 0 to 31, function 0 to 7; higher bits are dropped.
    pub const fn new(device: u8, function: u8) -> Self {
        Self((device & 0x1F) << 3 | function & 7)
    }

    /// From the number as it stands in addresses: device in bits 7 to 3.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The number as it stands in addresses.
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// The device number, which is also called the slot.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Devfn {
    /// As Linux and lspci write it: `02.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device(), self.function())
    }
}

/// An interrupt pin; the value is that of the Interrupt Pin register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pin {
    /// INTA#
    A = 1,
    /// INTB#
    B = 2,
    /// INTC#
    C = 3,
    /// INTD#
    D = 4,
}

/// A range of addresses that a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ports or memory.
    pub space: Space,
    /// First address.
    pub start: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// What each BAR decodes at the moment, by its number; `None` for one that is off or not there.
pub type Windows = [Option<Window>; BARS];

/// What the bus has to do after a write to configuration space.
#[must_use = "the bus has to map what the BARs decode"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effects {
    /// Nothing.
    None,
    /// The BARs decode these ranges from now on.
    Windows(Windows),
}

/// The kind of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory.
    Memory {
        /// It has 64 bits and takes two BARs.
        wide: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A BAR as `info pci` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// Its number; 6 is the expansion ROM.
    pub number: u8,
    /// Its kind.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
    /// Where it decodes, if it does.
    pub address: Option<u64>,
}

/// A doorbell in a BAR: a write there signals an eventfd and does not reach the device. The bus
/// keeps it where the BAR is.
#[derive(Clone, Debug)]
pub struct BarDoorbell {
    /// The BAR.
    pub bar: u8,
    /// The exact offset into it.
    pub offset: u64,
    /// The width of the write, 1, 2, 4 or 8 bytes; 0 for any.
    pub width: u8,
    /// Only writes of this value ring.
    pub value: Option<u64>,
    /// What is signalled.
    pub eventfd: Arc<OwnedFd>,
}

/// The configuration side of a PCI function.
///
/// It is called with the device's lock held, and calls no bus. Accesses are of 1, 2 or 4 bytes and
/// do not cross a dword; `offset` is below 4096, and 256 bytes are enough for a function that is
/// not PCI Express.
pub trait PciFunction {
    /// Reads configuration space.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects;

    /// The BARs there are.
    fn bars(&self) -> Vec<BarInfo>;

    /// What the BARs decode now. The bus asks when a function is plugged in, and after a reset and
    /// a restore.
    fn windows(&self) -> Windows {
        let mut windows = [None; BARS];
        for bar in self.bars() {
            let space = match bar.kind {
                BarKind::Io => Space::Pio,
                BarKind::Memory { .. } => Space::Mmio,
            };
            windows[usize::from(bar.number)] =
                bar.address.map(|start| Window { space, start, size: bar.size });
        }
        windows
    }

    /// The doorbells in the BARs. The bus asks once, when the function is plugged in.
    fn doorbells(&self) -> Vec<BarDoorbell> {
        Vec::new()
    }
}
