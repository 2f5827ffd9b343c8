//! Configuration space of a type 0 function: the registers, without what they are wired to.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; status and command bits 6.2.2 and 6.2.3,
//! BARs 6.2.5, capabilities 6.7. Of the 256 bytes each bit is read-only, writable or cleared by
//! writing 1; whatever has not been declared reads 0 and cannot be written.

use board::pci::{BarInfo, Pin};
use board::state::StateError;

use super::bar::Bar;

/// Bytes.
pub const SIZE: usize = 256;

/// Offsets of registers.
pub mod offset {
    /// Vendor ID, 16 bits.
    pub const VENDOR: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision, 8 bits; above it the class code, 24 bits.
    pub const REVISION: u16 = 0x08;
    /// Class code: programming interface, sub-class, base class.
    pub const CLASS: u16 = 0x09;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE: u16 = 0x0C;
    /// Latency timer, 8 bits.
    pub const LATENCY: u16 = 0x0D;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0E;
    /// BAR 0 of six, 32 bits each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2C;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM: u16 = 0x2E;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3C;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3D;
    /// Where the function's own registers begin.
    pub const END_OF_HEADER: u16 = 0x40;
}

/// Bits of the command register.
pub mod command {
    /// The function answers in I/O space.
    pub const IO: u16 = 1 << 0;
    /// The function answers in memory space.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory, which includes sending MSIs.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Parity errors are dealt with.
    pub const PARITY: u16 = 1 << 6;
    /// SERR# is enabled.
    pub const SERR: u16 = 1 << 8;
    /// INTx is not to be asserted.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub mod status {
    /// The function asserts its INTx, or would if it were allowed to.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
    /// Errors, which a write of 1 clears.
    pub const ERRORS: u16 = 0xF900;
}

const COMMAND_BITS: u16 = command::IO
    | command::MEMORY
    | command::BUS_MASTER
    | command::PARITY
    | command::SERR
    | command::INTX_DISABLE;

/// Header type bit: the device has functions besides function 0.
const MULTI_FUNCTION: u8 = 1 << 7;

/// What a function is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code: base class in bits 23 to 16, sub-class, programming interface.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// The interrupt pin, if it has one.
    pub pin: Option<Pin>,
}

/// What a write has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The command register.
    pub command: bool,
    /// What the BARs decode may have changed.
    pub decode: bool,
}

/// The registers.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// Bits that can be written.
    writable: [u8; SIZE],
    /// Bits that a write of 1 clears.
    clearable: [u8; SIZE],
    /// The bytes after reset.
    initial: [u8; SIZE],
    bars: [Option<Bar>; 6],
    last_capability: Option<u8>,
    free: usize,
}

impl ConfigSpace {
    /// The registers of a function without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            clearable: [0; SIZE],
            initial: [0; SIZE],
            bars: [None; 6],
            last_capability: None,
            free: offset::END_OF_HEADER.into(),
        };
        space.define(offset::VENDOR, &identity.vendor.to_le_bytes());
        space.define(offset::DEVICE, &identity.device.to_le_bytes());
        space.define(offset::REVISION, &[identity.revision]);
        space.define(offset::CLASS, &identity.class.to_le_bytes()[..3]);
        space.define(offset::SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.define(offset::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(offset::COMMAND, &COMMAND_BITS.to_le_bytes());
        space.allow(offset::CACHE_LINE, &[0xFF, 0xFF]);
        if let Some(pin) = identity.pin {
            space.define(offset::INTERRUPT_PIN, &[pin as u8]);
            space.allow(offset::INTERRUPT_LINE, &[0xFF]);
        }
        let errors = status::ERRORS.to_le_bytes();
        space.clearable[usize::from(offset::STATUS)..][..2].copy_from_slice(&errors);
        space
    }

    /// Sets what registers read after reset, from `offset` on.
    pub fn define(&mut self, offset: u16, bytes: &[u8]) {
        let range = usize::from(offset)..usize::from(offset) + bytes.len();
        self.initial[range.clone()].copy_from_slice(bytes);
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Lets the guest write the bits of `mask` from `offset` on.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        self.writable[usize::from(offset)..][..mask.len()].copy_from_slice(mask);
    }

    /// Says that the device has functions besides function 0.
    pub fn set_multi_function(&mut self) {
        let header = self.initial[usize::from(offset::HEADER_TYPE)] | MULTI_FUNCTION;
        self.define(offset::HEADER_TYPE, &[header]);
    }

    /// Adds BAR `number`, 0 to 5, which must be free, as must the next one of a 64-bit BAR.
    ///
    /// # Panics
    /// If it is not, or if its size is none that a BAR can have.
    pub fn add_bar(&mut self, number: u8, bar: Bar) {
        let index = usize::from(number);
        assert!(bar.is_valid(), "BAR {number} has a size that there is not: {bar:x?}");
        assert!(self.bars[index].is_none() && !self.is_upper_half(index), "BAR {number} is taken");
        let at = offset::BAR0 + u16::from(number) * 4;
        self.define(at, &bar.flags().to_le_bytes());
        self.allow(at, &(bar.writable() as u32).to_le_bytes());
        if bar.is_wide() {
            assert!(index < 5 && self.bars[index + 1].is_none(), "BAR {number} has no upper half");
            self.allow(at + 4, &((bar.writable() >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
    }

    fn is_upper_half(&self, index: usize) -> bool {
        index > 0 && self.bars[index - 1].is_some_and(Bar::is_wide)
    }

    /// Adds a capability at the end of the list: `body` is what follows its ID and its pointer,
    /// `writable` the bits of it that can be written. Gives back its offset.
    ///
    /// # Panics
    /// If there is no room left in the 256 bytes.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.free;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        assert!(self.free <= SIZE, "capability {id:#x} does not fit");
        let (pointer, at) = (
            self.last_capability.map_or(offset::CAPABILITIES, |last| u16::from(last) + 1),
            at as u16,
        );
        self.define(pointer, &[at as u8]);
        self.define(at, &[id, 0]);
        self.define(at + 2, body);
        self.allow(at + 2, writable);
        let status = self.initial_word(offset::STATUS) | status::CAPABILITIES;
        self.define(offset::STATUS, &status.to_le_bytes());
        self.last_capability = Some(at as u8);
        at as u8
    }

    fn initial_word(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        u16::from_le_bytes([self.initial[at], self.initial[at + 1]])
    }

    /// Reads. What lies beyond the 256 bytes is all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xFF);
        }
    }

    /// Writes, as far as bits can be written.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Touched {
        let mut touched = Touched { command: false, decode: false };
        for (at, &value) in (usize::from(offset)..).zip(data).take_while(|(at, _)| *at < SIZE) {
            let writable = self.writable[at];
            let clears = self.clearable[at] & value;
            self.bytes[at] = (self.bytes[at] & !writable | value & writable) & !clears;
            let (command, bar0) = (usize::from(offset::COMMAND), usize::from(offset::BAR0));
            touched.command |= (command..command + 2).contains(&at);
            touched.decode |= touched.command || (bar0..bar0 + 24).contains(&at);
        }
        touched
    }

    /// A 16-bit register.
    pub fn word(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// A 32-bit register.
    pub fn dword(&self, offset: u16) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    /// Whether all bits of `mask` are set in the command register.
    pub fn command(&self, mask: u16) -> bool {
        self.word(offset::COMMAND) & mask == mask
    }

    /// Sets or clears Interrupt Status.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let bit = status::INTERRUPT as u8;
        let low = &mut self.bytes[usize::from(offset::STATUS)];
        *low = if asserted { *low | bit } else { *low & !bit };
    }

    /// Whether Interrupt Status is set.
    pub fn interrupt_status(&self) -> bool {
        self.word(offset::STATUS) & status::INTERRUPT != 0
    }

    /// The BARs.
    pub fn bars(&self) -> Vec<BarInfo> {
        let bars = (0..).zip(&self.bars);
        bars.filter_map(|(number, bar)| {
            let bar = (*bar)?;
            let at = offset::BAR0 + number * 4;
            let upper = if bar.is_wide() { self.dword(at + 4) } else { 0 };
            let on = match bar {
                Bar::Io { .. } => command::IO,
                _ => command::MEMORY,
            };
            let value = u64::from(upper) << 32 | u64::from(self.dword(at));
            let address = if self.command(on) { bar.address(value) } else { None };
            Some(BarInfo { number: number as u8, kind: bar.kind(), size: bar.size(), address })
        })
        .collect()
    }

    /// The state after reset.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// Takes on saved bytes.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when there are not 256, or when a read-only one differs: it is the
    /// state of another function.
    pub fn restore(&mut self, kind: &'static str, bytes: &[u8]) -> Result<(), StateError> {
        let damaged = |cause: String| StateError::Damaged { kind, cause };
        let bytes: &[u8; SIZE] = bytes
            .try_into()
            .map_err(|_| damaged(format!("{} bytes of configuration space", bytes.len())))?;
        for (at, byte) in bytes.iter().enumerate() {
            let mut free = self.writable[at] | self.clearable[at];
            if at == usize::from(offset::STATUS) {
                free |= status::INTERRUPT as u8;
            }
            if (byte ^ self.initial[at]) & !free != 0 {
                return Err(damaged(format!("configuration byte {at:#x} is {byte:#x}")));
            }
        }
        self.bytes = *bytes;
        Ok(())
    }
}
