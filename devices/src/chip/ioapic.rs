//! Intel 82093AA I/O APIC: 24 inputs that become interrupt messages.
//!
//! Source: Intel 82093AA datasheet (order 290566-001), section 3. Version 0x20 and the EOI register
//! at offset 0x40 are those of its successors in the ICH chipsets (Intel ICH9 datasheet, 13.5).
//!
//! - An edge on a masked input is lost, as the datasheet has it: "neither delivered nor held
//!   pending". A level on a masked input is seen when the mask goes.
//! - A line keeps its level. A level-triggered input that has sent its message (Remote IRR) is
//!   looked at again at EOI, and a message goes out again if the line is still high.
//! - Polarity is kept and changes nothing: a line says asserted or not, not high or low voltage.
//! - NMI, SMI, INIT and ExtINT are edge-triggered whatever the trigger bit says.
//! - Delivery is instantaneous, so that Delivery Status always reads idle.

use board::irq::Msi;
use board::state::{Snapshot, StateError};
use serde::{Deserialize, Serialize};

/// Inputs of an I/O APIC.
pub const PINS: usize = 24;

/// The version: there is an EOI register.
pub const VERSION: u8 = 0x20;

/// A redirection table entry (82093AA, 3.2.4).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const REMOTE_IRR: u64 = 1 << 14;
    const TRIGGER_LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination. Delivery
    /// Status and Remote IRR are read-only.
    const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

    const LOWEST_PRIORITY: u8 = 1;

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn delivery_mode(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn is_level(self) -> bool {
        self.has(Self::TRIGGER_LEVEL) && self.delivery_mode() <= Self::LOWEST_PRIORITY
    }

    /// Whether an interrupt on the input makes a message: delivery modes 3 and 6 are reserved.
    fn sends(self) -> bool {
        !self.has(Self::MASKED) && !matches!(self.delivery_mode(), 3 | 6)
    }

    fn write(&mut self, value: u64) {
        self.0 = self.0 & Self::REMOTE_IRR | value & Self::WRITABLE;
        // Software clears a Remote IRR that hangs by making the input edge-triggered for a moment.
        if !self.is_level() {
            self.0 &= !Self::REMOTE_IRR;
        }
    }

    /// The message as a device would send it (Intel SDM vol. 3, 11.11).
    fn message(self) -> Msi {
        let destination = self.0 >> 56;
        let logical = self.0 >> 11 & 1;
        let hint = u64::from(self.delivery_mode() == Self::LOWEST_PRIORITY);
        let level = if self.is_level() { 0b11 << 14 } else { 0 };
        Msi {
            address: 0xFEE0_0000 | destination << 12 | hint << 3 | logical << 2,
            data: u32::from(self.vector()) | u32::from(self.delivery_mode()) << 8 | level,
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self(Self::MASKED)
    }
}

/// An I/O APIC. Whoever changes it takes its messages by [`IoApic::next_message`].
#[derive(Default)]
pub struct IoApic {
    /// Four bits.
    id: u8,
    /// IOREGSEL.
    select: u8,
    entries: [Entry; PINS],
    /// Levels of the inputs.
    lines: u32,
    /// Edges whose message has not been taken.
    edges: u32,
}

/// What `info ioapic` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicView {
    /// APIC id, 0 to 15.
    pub id: u8,
    /// IOREGSEL: the index that IOWIN gives access to.
    pub select: u8,
    /// The redirection table.
    pub entries: [u64; PINS],
    /// Levels of all inputs, one bit each.
    pub lines: u32,
    /// Level-triggered inputs that are asserted.
    pub irr: u32,
    /// Level-triggered inputs whose message has been sent and whose EOI has not come.
    pub remote_irr: u32,
}

impl IoApic {
    /// Offset of IOREGSEL.
    pub const IOREGSEL: u64 = 0x00;
    /// Offset of IOWIN.
    pub const IOWIN: u64 = 0x10;
    /// Offset of the EOI register.
    pub const EOI: u64 = 0x40;

    /// An I/O APIC after reset, all lines low.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reset: everything is masked; the lines are what they are.
    pub fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::default() };
    }

    /// Sets the level of input `pin`, 0 to 23.
    pub fn set_line(&mut self, pin: usize, level: bool) {
        let bit = 1 << pin;
        let rises = level && !self.line(pin);
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let entry = self.entries[pin];
        if rises && !entry.is_level() && entry.sends() {
            self.edges |= bit;
        }
    }

    /// The level of input `pin`, 0 to 23.
    pub fn line(&self, pin: usize) -> bool {
        self.lines & 1 << pin != 0
    }

    /// A message that is to be sent now.
    pub fn next_message(&mut self) -> Option<Msi> {
        let pin = (0..PINS).find(|&pin| self.is_ready(pin))?;
        self.edges &= !(1 << pin);
        let entry = &mut self.entries[pin];
        if entry.is_level() {
            entry.0 |= Entry::REMOTE_IRR;
        }
        Some(entry.message())
    }

    fn is_ready(&self, pin: usize) -> bool {
        let entry = self.entries[pin];
        if entry.is_level() {
            self.line(pin) && entry.sends() && !entry.has(Entry::REMOTE_IRR)
        } else {
            self.edges & 1 << pin != 0
        }
    }

    /// The message of input `pin` if its end is to be reported: it is level-triggered and may
    /// interrupt, or has interrupted and was masked before the EOI came.
    pub fn level_route(&self, pin: usize) -> Option<Msi> {
        let entry = self.entries[pin];
        let awaits_eoi = entry.sends() || entry.has(Entry::REMOTE_IRR);
        (entry.is_level() && awaits_eoi).then(|| entry.message())
    }

    /// A local APIC has ended the interrupt with `vector`.
    pub fn eoi(&mut self, vector: u8) {
        for entry in self.entries.iter_mut().filter(|entry| entry.vector() == vector) {
            entry.0 &= !Entry::REMOTE_IRR;
        }
    }

    /// Reads the register at `offset`; what is no register reads 0.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            Self::IOREGSEL => self.select.into(),
            Self::IOWIN => match self.select {
                // The identification register and the arbitration register.
                0 | 2 => u32::from(self.id) << 24,
                1 => u32::from(VERSION) | (PINS as u32 - 1) << 16,
                _ => self
                    .selected_entry()
                    .map_or(0, |(pin, shift)| (self.entries[pin].0 >> shift) as u32),
            },
            _ => 0,
        }
    }

    /// Writes the register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32) {
        match offset {
            Self::IOREGSEL => self.select = value as u8,
            Self::IOWIN if self.select == 0 => self.id = (value >> 24 & 0xF) as u8,
            Self::IOWIN => {
                if let Some((pin, shift)) = self.selected_entry() {
                    let kept = self.entries[pin].0 & !(0xFFFF_FFFF << shift);
                    self.entries[pin].write(kept | u64::from(value) << shift);
                }
            }
            Self::EOI => self.eoi(value as u8),
            _ => {}
        }
    }

    /// The input and the shift of the half of its entry that IOREGSEL names.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let index = usize::from(self.select.checked_sub(0x10)?);
        let pin = index / 2;
        (pin < PINS).then_some((pin, if index % 2 == 0 { 0 } else { 32 }))
    }

    /// What `info ioapic` shows.
    pub fn view(&self) -> IoApicView {
        let pins = |is: &dyn Fn(Entry) -> bool| {
            (0..PINS).filter(|&pin| is(self.entries[pin])).fold(0, |mask, pin| mask | 1 << pin)
        };
        IoApicView {
            id: self.id,
            select: self.select,
            entries: self.entries.map(|entry| entry.0),
            lines: self.lines,
            irr: self.lines & pins(&|entry| entry.is_level()),
            remote_irr: pins(&|entry| entry.has(Entry::REMOTE_IRR)),
        }
    }
}

/// A saved [`IoApic`].
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct IoApicV1 {
    pub id: u8,
    pub select: u8,
    pub entries: [u64; PINS],
    pub lines: u32,
    pub edges: u32,
}

impl Snapshot for IoApic {
    const KIND: &'static str = "ioapic";
    const VERSION: u32 = 1;
    type State = IoApicV1;

    fn save(&self) -> IoApicV1 {
        let Self { id, select, entries, lines, edges } = *self;
        IoApicV1 { id, select, entries: entries.map(|entry| entry.0), lines, edges }
    }

    fn restore(&mut self, state: IoApicV1) -> Result<(), StateError> {
        let IoApicV1 { id, select, entries, lines, edges } = state;
        let damaged = |cause| Err(StateError::Damaged { kind: Self::KIND, cause });
        if id > 15 {
            return damaged(format!("id is {id}, not 0 to 15"));
        }
        if (lines | edges) >> PINS != 0 {
            return damaged(format!("there are {PINS} inputs, but lines or edges name more"));
        }
        for (pin, entry) in entries.iter().enumerate() {
            if entry & !(Entry::WRITABLE | Entry::REMOTE_IRR) != 0 {
                return damaged(format!("entry {pin} is {entry:#x}, which has reserved bits"));
            }
        }
        *self = Self { id, select, entries: entries.map(Entry), lines, edges };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: u64 = Entry::TRIGGER_LEVEL;
    const NONE: [u32; 0] = [];

    fn set_entry(apic: &mut IoApic, pin: u32, entry: u64) {
        for (half, value) in [(1, entry >> 32), (0, entry)] {
            apic.write(IoApic::IOREGSEL, 0x10 + pin * 2 + half);
            apic.write(IoApic::IOWIN, value as u32);
        }
    }

    fn entry(apic: &mut IoApic, pin: u32) -> u64 {
        let mut half = |half| {
            apic.write(IoApic::IOREGSEL, 0x10 + pin * 2 + half);
            u64::from(apic.read(IoApic::IOWIN))
        };
        half(0) | half(1) << 32
    }

    fn messages(apic: &mut IoApic) -> Vec<Msi> {
        std::iter::from_fn(|| apic.next_message()).collect()
    }

    fn vectors(apic: &mut IoApic) -> Vec<u32> {
        messages(apic).iter().map(|msi| msi.data & 0xFF).collect()
    }

    #[test]
    fn identification_version_and_arbitration() {
        let mut apic = IoApic::new();
        apic.write(IoApic::IOWIN, 0xFF00_0000);
        assert_eq!(apic.read(IoApic::IOWIN), 0x0F00_0000);
        apic.write(IoApic::IOREGSEL, 2);
        assert_eq!(apic.read(IoApic::IOWIN), 0x0F00_0000);
        apic.write(IoApic::IOREGSEL, 1);
        assert_eq!(apic.read(IoApic::IOWIN), 0x0017_0020);
        apic.write(IoApic::IOWIN, 0);
        assert_eq!(apic.read(IoApic::IOWIN), 0x0017_0020);
        assert_eq!(apic.read(IoApic::IOREGSEL), 1);
    }

    #[test]
    fn what_is_no_register_reads_zero() {
        let mut apic = IoApic::new();
        for index in [3, 0x0F, 0x40, 0xFF] {
            apic.write(IoApic::IOREGSEL, index);
            apic.write(IoApic::IOWIN, 0xFFFF_FFFF);
            assert_eq!(apic.read(IoApic::IOWIN), 0);
        }
        assert_eq!((apic.read(0x20), apic.read(IoApic::EOI)), (0, 0));
    }

    #[test]
    fn entries_are_masked_at_first_and_have_read_only_bits() {
        let mut apic = IoApic::new();
        assert_eq!(entry(&mut apic, 23), 0x1_0000);
        set_entry(&mut apic, 23, u64::MAX);
        assert_eq!(entry(&mut apic, 23), 0xFF00_0000_0001_AFFF);
    }

    #[test]
    fn an_edge_sends_one_message() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 4, 0x0300_0000_0000_0034);
        apic.set_line(4, true);
        apic.set_line(4, true);
        assert_eq!(messages(&mut apic), [Msi { address: 0xFEE0_3000, data: 0x34 }]);
        assert_eq!(apic.level_route(4), None);
        apic.set_line(4, false);
        assert_eq!(apic.next_message(), None);
        apic.set_line(4, true);
        assert_eq!(vectors(&mut apic), [0x34]);
    }

    #[test]
    fn the_message_carries_destination_mode_and_delivery_mode() {
        let mut apic = IoApic::new();
        for (mode, data) in [(0, 0x50), (1, 0x150), (2, 0x250), (4, 0x450), (5, 0x550), (7, 0x750)]
        {
            let hint = if mode == 1 { 8 } else { 0 };
            for (logical, bit) in [(0, 0), (1 << 11, 4)] {
                set_entry(&mut apic, 7, 0xAB00_0000_0000_0050 | mode << 8 | logical);
                apic.set_line(7, true);
                apic.set_line(7, false);
                let expected = Msi { address: 0xFEEA_B000 | hint | bit, data };
                assert_eq!(messages(&mut apic), [expected], "delivery mode {mode}");
            }
        }
        for reserved in [3, 6] {
            set_entry(&mut apic, 7, 0x50 | reserved << 8);
            apic.set_line(7, true);
            apic.set_line(7, false);
            set_entry(&mut apic, 7, 0x50);
            assert_eq!(vectors(&mut apic), NONE);
        }
    }

    #[test]
    fn an_edge_on_a_masked_input_is_lost() {
        let mut apic = IoApic::new();
        apic.set_line(3, true);
        set_entry(&mut apic, 3, 0x40);
        assert_eq!(apic.next_message(), None);
        apic.set_line(3, false);
        apic.set_line(3, true);
        assert_eq!(vectors(&mut apic), [0x40]);
    }

    #[test]
    fn a_level_on_a_masked_input_is_seen_when_the_mask_goes() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 9, 0x60 | LEVEL | Entry::MASKED);
        apic.set_line(9, true);
        assert_eq!(apic.next_message(), None);
        set_entry(&mut apic, 9, 0x60 | LEVEL);
        assert_eq!(messages(&mut apic), [Msi { address: 0xFEE0_0000, data: 0xC060 }]);
    }

    #[test]
    fn a_level_is_looked_at_again_at_eoi() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        apic.set_line(16, true);
        assert_eq!(vectors(&mut apic), [0x60]);
        assert_eq!(entry(&mut apic, 16), 0x60 | LEVEL | Entry::REMOTE_IRR);
        apic.set_line(16, false);
        apic.set_line(16, true);
        assert_eq!(vectors(&mut apic), NONE, "Remote IRR holds it back");
        apic.eoi(0x61);
        assert_eq!(vectors(&mut apic), NONE);
        apic.eoi(0x60);
        assert_eq!(vectors(&mut apic), [0x60], "still asserted");
        apic.set_line(16, false);
        apic.write(IoApic::EOI, 0x60);
        assert_eq!(vectors(&mut apic), NONE);
        assert_eq!(entry(&mut apic, 16), 0x60 | LEVEL);
    }

    #[test]
    fn one_eoi_ends_all_inputs_of_its_vector() {
        let mut apic = IoApic::new();
        for pin in [16, 17] {
            set_entry(&mut apic, pin, 0x60 | LEVEL);
            apic.set_line(pin as usize, true);
        }
        assert_eq!(vectors(&mut apic), [0x60, 0x60]);
        apic.eoi(0x60);
        assert_eq!(vectors(&mut apic), [0x60, 0x60]);
    }

    #[test]
    fn a_message_in_service_awaits_its_eoi_when_masked() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        apic.set_line(16, true);
        let route = apic.next_message();
        set_entry(&mut apic, 16, 0x60 | LEVEL | Entry::MASKED);
        assert_eq!(apic.level_route(16), route);
        apic.eoi(0x60);
        assert_eq!((apic.level_route(16), apic.next_message()), (None, None));
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        assert_eq!(apic.next_message(), route);
    }

    #[test]
    fn a_moment_of_edge_mode_clears_remote_irr() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        apic.set_line(16, true);
        assert_eq!(vectors(&mut apic), [0x60]);
        set_entry(&mut apic, 16, 0x60 | Entry::MASKED);
        assert_eq!(entry(&mut apic, 16) & Entry::REMOTE_IRR, 0);
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        assert_eq!(vectors(&mut apic), [0x60]);
    }

    #[test]
    fn an_nmi_is_edge_triggered_whatever_the_entry_says() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 5, 4 << 8 | LEVEL);
        apic.set_line(5, true);
        assert_eq!(messages(&mut apic), [Msi { address: 0xFEE0_0000, data: 0x400 }]);
        assert_eq!((apic.level_route(5), entry(&mut apic, 5) & Entry::REMOTE_IRR), (None, 0));
    }

    #[test]
    fn a_restored_apic_sees_no_edge() {
        let mut apic = IoApic::new();
        set_entry(&mut apic, 4, 0x34);
        set_entry(&mut apic, 16, 0x60 | LEVEL);
        apic.set_line(4, true);
        apic.set_line(16, true);
        assert_eq!(vectors(&mut apic), [0x34, 0x60]);
        let mut copy = IoApic::new();
        copy.restore(apic.save()).unwrap();
        assert_eq!(copy.view(), apic.view());
        assert_eq!((copy.view().irr, copy.view().remote_irr), (1 << 16, 1 << 16));
        copy.set_line(4, true);
        copy.set_line(16, true);
        assert_eq!(vectors(&mut copy), NONE);
        copy.eoi(0x60);
        assert_eq!(vectors(&mut copy), [0x60]);
    }

    #[test]
    fn damaged_states_are_refused() {
        let damage: [fn(&mut IoApicV1); 3] =
            [|s| s.id = 16, |s| s.lines = 1 << 24, |s| s.entries[3] = 1 << 12];
        for damage in damage {
            let mut apic = IoApic::new();
            let mut state = apic.save();
            damage(&mut state);
            assert!(matches!(apic.restore(state), Err(StateError::Damaged { .. })));
        }
    }
}
