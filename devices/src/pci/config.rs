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

#[cfg(test)]
mod tests {
    use board::pci::BarKind;

    use super::super::super::chip::testing::Random;
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: 0x02_0304,
        subsystem_vendor: 0xABCD,
        subsystem: 0xEF01,
        pin: Some(Pin::B),
    };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.add_bar(0, Bar::Memory32 { size: 8192, prefetchable: true });
        space.add_bar(1, Bar::Io { size: 64 });
        space.add_bar(2, Bar::Memory64 { size: 1 << 33, prefetchable: false });
        space
    }

    fn read(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(space: &mut ConfigSpace, offset: u16, value: u32) -> Touched {
        space.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn the_header_says_what_it_is_and_cannot_be_changed() {
        let mut space = space();
        let header = [(0x00, 0x5678_1234), (0x08, 0x0203_0409), (0x2C, 0xEF01_ABCD)];
        for (offset, value) in header {
            write(&mut space, offset, !value);
            assert_eq!(read(&space, offset), value);
        }
        write(&mut space, 0x3C, 0xFFFF_FFFF);
        assert_eq!(read(&space, 0x3C), 0x0000_02FF, "the line can be written, the pin cannot");
        assert_eq!(read(&space, 0x100), 0xFFFF_FFFF, "there is no extended space");
        write(&mut space, 0xFFC, 0);
    }

    #[test]
    fn a_bar_tells_its_size_and_its_kind() {
        let mut space = space();
        for at in (0x10..0x28).step_by(4) {
            write(&mut space, at, 0xFFFF_FFFF);
        }
        let sizes: Vec<_> = (0x10..0x28).step_by(4).map(|at| read(&space, at)).collect();
        assert_eq!(sizes, [0xFFFF_E008, 0xFFFF_FFC1, 0x0000_0004, 0xFFFF_FFFE, 0, 0]);
    }

    #[test]
    fn a_bar_decodes_while_the_command_register_lets_it() {
        let mut space = space();
        write(&mut space, 0x10, 0xD000_1FFF);
        write(&mut space, 0x14, 0x0000_C0FF);
        write(&mut space, 0x1C, 0x0000_0002);
        let addresses =
            |space: &ConfigSpace| space.bars().iter().map(|bar| bar.address).collect::<Vec<_>>();
        assert_eq!(addresses(&space), [None; 3]);
        assert_eq!(write(&mut space, 0x04, 1), Touched { command: true, decode: true });
        assert_eq!(addresses(&space), [None, Some(0xC0C0), None]);
        write(&mut space, 0x04, 3);
        assert_eq!(addresses(&space), [Some(0xD000_0000), Some(0xC0C0), Some(2 << 32)]);
        assert_eq!(space.write(0x13, &[0xE0]), Touched { command: false, decode: true });
        assert_eq!(addresses(&space)[0], Some(0xE000_0000), "a byte moves it");
        let kind = BarKind::Memory { wide: true, prefetchable: false };
        let info = BarInfo { number: 2, kind, size: 1 << 33, address: Some(2 << 32) };
        assert_eq!(space.bars()[2], info);
        assert_eq!(write(&mut space, 0x40, 0), Touched { command: false, decode: false });
    }

    #[test]
    fn command_bits_that_are_not_there_read_0_and_errors_are_cleared_by_1() {
        let mut space = space();
        write(&mut space, 0x04, 0x0000_FFFF);
        assert_eq!(read(&space, 0x04), 0x0000_0547);
        space.set_interrupt_status(true);
        space.bytes[7] = 0xF9;
        write(&mut space, 0x04, 0x0108_0000);
        assert_eq!(read(&space, 0x04), 0xF808_0000, "Interrupt Status is read-only");
        write(&mut space, 0x04, 0xFFFF_0000);
        assert_eq!(read(&space, 0x04), 0x0008_0000);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        assert_eq!(read(&space, 0x34), 0);
        let first = space.add_capability(0x09, &[1, 2, 3], &[0, 0xF0, 0]);
        let second = space.add_capability(0x11, &[0; 10], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!((space.word(offset::STATUS), read(&space, 0x34)), (0x10, 0x40));
        write(&mut space, 0x40, 0);
        assert_eq!(read(&space, 0x40), 0x0201_4809 & !0xFF00_0000 | 0x0201_0000 & 0xFF00_0000);
        space.write(0x43, &[0xFF]);
        assert_eq!(space.bytes[0x43], 0xF2);
        assert_eq!(read(&space, 0x48) & 0xFFFF, 0x0011);
        space.reset();
        assert_eq!((space.bytes[0x43], space.word(offset::STATUS)), (2, 0x10));
    }

    #[test]
    fn a_state_of_another_function_is_refused() {
        let mut space = space();
        write(&mut space, 0x10, 0xD000_0000);
        write(&mut space, 0x04, 7);
        let saved = *space.bytes();
        let mut copy = super::tests::space();
        copy.restore("test", &saved).unwrap();
        assert_eq!(copy.bytes(), space.bytes());
        for (at, bit) in [(0, 1), (0x10, 1), (0x11, 1), (0x3D, 1), (0x80, 0x80), (0x05, 8)] {
            let mut damaged = saved;
            damaged[at] ^= bit;
            assert!(copy.restore("test", &damaged).is_err(), "{at:#x}");
        }
        assert!(copy.restore("test", &saved[1..]).is_err());
        assert_eq!(copy.bytes(), space.bytes());
    }

    #[test]
    fn whatever_is_written_read_only_bits_stay_and_a_state_can_be_restored() {
        let mut random = Random::new(4);
        let mut space = space();
        space.add_capability(0x09, &[7; 14], &[0x5A; 14]);
        for _ in 0..20_000 {
            let offset = random.below(0x110) as u16;
            let data = random.next().to_le_bytes();
            let len = 1 + random.below(4) as usize;
            let _ = space.write(offset, &data[..len]);
            space.read(offset, &mut [0; 4][..len]);
            for bar in space.bars() {
                assert!(bar.address.is_none_or(|at| at.is_multiple_of(bar.size)));
            }
            let mut copy = super::tests::space();
            copy.add_capability(0x09, &[7; 14], &[0x5A; 14]);
            copy.restore("test", space.bytes()).unwrap();
        }
        assert_eq!(read(&space, 0), 0x5678_1234);
    }
}
