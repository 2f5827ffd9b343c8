//! Configuration space with all that it is wired to: what a PCI function embeds.

use std::sync::Arc;

use board::IrqLine;
use board::accel::Space;
use board::irq::MsiSink;
use board::pci::{BARS, BarInfo, BarKind, Effects, Window, Windows};
use board::state::StateError;
use serde::{Deserialize, Serialize};

use super::bar::Bar;
use super::config::{ConfigSpace, Identity, command, offset};
use super::msi::{self, Msi, MsiV1};
use super::msix::{self, Layout, Msix, MsixV1};

/// What the bus gives a function for its interrupts.
#[derive(Clone)]
pub struct PciLines {
    /// The wire of its INTx pin.
    pub intx: IrqLine,
    /// Where its messages go.
    pub msi: Arc<dyn MsiSink>,
}

/// The registers of a function with its interrupts.
pub struct PciConfig {
    space: ConfigSpace,
    lines: PciLines,
    /// What the pin was last driven to.
    driven: bool,
    msi: Option<(u16, Arc<Msi>)>,
    msix: Option<(u16, Arc<Msix>)>,
}

/// A saved [`PciConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciConfigV1 {
    config: Vec<u8>,
    driven: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    msi: Option<MsiV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    msix: Option<MsixV1>,
}

impl PciConfig {
    /// A function without BARs and capabilities.
    pub fn new(identity: &Identity, lines: PciLines) -> Self {
        let space = ConfigSpace::new(identity);
        Self { space, lines, driven: false, msi: None, msix: None }
    }

    /// The plain registers, to declare others and to look at them.
    pub fn space(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }

    /// As [`ConfigSpace::add_bar`].
    pub fn add_bar(&mut self, number: u8, bar: Bar) {
        self.space.add_bar(number, bar);
    }

    /// As [`ConfigSpace::add_capability`].
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        self.space.add_capability(id, body, writable)
    }

    /// Adds MSI with so many vectors (a power of two up to 32).
    pub fn add_msi(&mut self, vectors: u8) -> Arc<Msi> {
        let chip = Msi::new(vectors, self.lines.msi.clone());
        let at = self.space.add_capability(msi::ID, &[0; msi::BODY], &[]);
        self.msi = Some((u16::from(at) + 2, chip.clone()));
        chip
    }

    /// Adds MSI-X with so many vectors (1 to 2048). The caller hands accesses of the BAR to the
    /// chip ([`Msix::read`], [`Msix::write`]).
    pub fn add_msix(&mut self, vectors: u16, layout: Layout) -> Arc<Msix> {
        let chip = Msix::new(vectors, layout, self.lines.msi.clone());
        let at = self.space.add_capability(msix::ID, &chip.body(), &[]);
        self.msix = Some((u16::from(at) + 2, chip.clone()));
        chip
    }

    /// MSI, if it has been added.
    pub fn msi(&self) -> Option<&Arc<Msi>> {
        self.msi.as_ref().map(|(_, chip)| chip)
    }

    /// MSI-X, if it has been added.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref().map(|(_, chip)| chip)
    }

    /// Whether the guest lets the function access memory.
    pub fn bus_master(&self) -> bool {
        self.space.command(command::BUS_MASTER)
    }

    /// Asserts the interrupt pin or takes it back. Interrupt Status shows it; the pin follows
    /// unless the guest has disabled it or uses messages.
    pub fn set_intx(&mut self, asserted: bool) {
        self.space.set_interrupt_status(asserted);
        self.drive();
    }

    /// Whether the interrupt pin is asserted, as Interrupt Status shows it.
    pub fn intx(&self) -> bool {
        self.space.interrupt_status()
    }

    fn drive(&mut self) {
        let by_message = self.msi().is_some_and(|chip| chip.enabled())
            || self.msix().is_some_and(|chip| chip.enabled());
        let level = self.space.interrupt_status()
            && !self.space.command(command::INTX_DISABLE)
            && !by_message;
        if self.driven != level {
            self.driven = level;
            self.lines.intx.set(level);
        }
    }

    /// Reads configuration space; as [`board::PciFunction::config_read`].
    pub fn read(&self, at: u16, data: &mut [u8]) {
        self.space.read(at, data);
        if let Some((from, chip)) = &self.msi {
            overlay(*from, &chip.body(), at, data);
        }
        if let Some((from, chip)) = &self.msix {
            overlay(*from, &chip.control().to_le_bytes(), at, data);
        }
    }

    /// Writes configuration space; as [`board::PciFunction::config_write`].
    pub fn write(&mut self, at: u16, data: &[u8]) -> Effects {
        let before = self.windows();
        let touched = self.space.write(at, data);
        if touched.command {
            self.tell_bus_master();
        }
        if let Some((from, chip)) = &self.msi
            && let Some((offset, data)) = part(*from, msi::BODY, at, data)
        {
            chip.write(offset, data);
        }
        if let Some((from, chip)) = &self.msix
            && let Some((offset, data)) = part(*from, 2, at, data)
        {
            let mut control = chip.control().to_le_bytes();
            control[offset..offset + data.len()].copy_from_slice(data);
            chip.set_control(u16::from_le_bytes(control));
        }
        if at >= offset::END_OF_HEADER || touched.command {
            self.drive();
        }
        let after = self.windows();
        if touched.decode && before != after { Effects::Windows(after) } else { Effects::None }
    }

    fn tell_bus_master(&self) {
        let on = self.bus_master();
        if let Some(chip) = self.msi() {
            chip.set_bus_master(on);
        }
        if let Some(chip) = self.msix() {
            chip.set_bus_master(on);
        }
    }

    /// As [`board::PciFunction::bars`].
    pub fn bars(&self) -> Vec<BarInfo> {
        self.space.bars()
    }

    /// As [`board::PciFunction::windows`].
    pub fn windows(&self) -> Windows {
        windows(&self.space.bars())
    }

    /// The state after reset: the BARs decode nothing, and the pin is let go.
    pub fn reset(&mut self) {
        self.space.reset();
        if let Some(chip) = self.msi() {
            chip.reset();
        }
        if let Some(chip) = self.msix() {
            chip.reset();
        }
        self.drive();
    }

    /// The state, to be saved within the device's.
    pub fn save(&self) -> PciConfigV1 {
        let Self { space, lines: _, driven, msi, msix } = self;
        PciConfigV1 {
            config: space.bytes().to_vec(),
            driven: *driven,
            msi: msi.as_ref().map(|(_, chip)| chip.save()),
            msix: msix.as_ref().map(|(_, chip)| chip.save()),
        }
    }

    /// Takes on a saved state, without an interrupt: the line is not driven and nothing is sent.
    ///
    /// # Errors
    /// [`StateError::Damaged`] in the name of `kind` if it is that of another function; nothing has
    /// changed then.
    pub fn restore(&mut self, kind: &'static str, state: PciConfigV1) -> Result<(), StateError> {
        let PciConfigV1 { config, driven, msi, msix } = state;
        let other =
            |what| StateError::Damaged { kind, cause: format!("{what} is not as it is here") };
        match (&self.msi, &msi) {
            (Some((_, chip)), Some(saved)) => chip.check(kind, saved)?,
            (None, None) => {}
            _ => return Err(other("MSI")),
        }
        match (&self.msix, &msix) {
            (Some((_, chip)), Some(saved)) => chip.check(kind, saved)?,
            (None, None) => {}
            _ => return Err(other("MSI-X")),
        }
        self.space.restore(kind, &config)?;
        self.driven = driven;
        let bus_master = self.bus_master();
        if let (Some((_, chip)), Some(saved)) = (&self.msi, msi) {
            chip.restore(saved, bus_master);
        }
        if let (Some((_, chip)), Some(saved)) = (&self.msix, msix) {
            chip.restore(saved, bus_master);
        }
        Ok(())
    }
}

/// What these BARs decode.
fn windows(bars: &[BarInfo]) -> Windows {
    let mut windows = [None; BARS];
    for bar in bars {
        let space = match bar.kind {
            BarKind::Io => Space::Pio,
            BarKind::Memory { .. } => Space::Mmio,
        };
        windows[usize::from(bar.number)] =
            bar.address.map(|start| Window { space, start, size: bar.size });
    }
    windows
}

/// Puts the part of `bytes`, which stand at `from`, that an access at `at` sees into its data.
fn overlay(from: u16, bytes: &[u8], at: u16, data: &mut [u8]) {
    for (at, byte) in (at..).zip(data) {
        if let Some(value) = at.checked_sub(from).and_then(|i| bytes.get(usize::from(i))) {
            *byte = *value;
        }
    }
}

/// The part of a write of `data` at `at` that falls on `len` bytes at `from`: offset into them, and
/// the data.
fn part(from: u16, len: usize, at: u16, data: &[u8]) -> Option<(usize, &[u8])> {
    let (from, at) = (usize::from(from), usize::from(at));
    let (first, last) = (from.max(at), (from + len).min(at + data.len()));
    (first < last).then(|| (first - from, &data[first - at..last - at]))
}

#[cfg(test)]
mod tests {
    use super::super::super::chip::testing::Random;
    use super::super::testing;
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 1,
        device: 2,
        revision: 0,
        class: 0xFF_0000,
        subsystem_vendor: 3,
        subsystem: 4,
        pin: Some(board::pci::Pin::A),
    };

    /// MSI at 0x40, MSI-X at 0x58.
    fn function(lines: PciLines) -> PciConfig {
        let mut config = PciConfig::new(&IDENTITY, lines);
        config.add_bar(0, Bar::Memory32 { size: 4096, prefetchable: false });
        config.add_msi(2);
        config.add_msix(4, Layout { bar: 0, table: 0x800, pba: 0xC00 });
        config
    }

    fn word(config: &PciConfig, at: u16) -> u16 {
        let mut data = [0; 2];
        config.read(at, &mut data);
        u16::from_le_bytes(data)
    }

    fn set_word(config: &mut PciConfig, at: u16, value: u16) {
        let _ = config.write(at, &value.to_le_bytes());
    }

    #[test]
    fn the_pin_follows_its_status_unless_disabled_or_replaced_by_messages() {
        let (lines, _, pin) = testing::lines();
        let mut config = function(lines);
        config.set_intx(true);
        assert_eq!((pin.level(), word(&config, 0x06)), (true, 0x18));
        set_word(&mut config, 0x04, 1 << 10);
        assert_eq!((pin.level(), word(&config, 0x06)), (false, 0x18));
        set_word(&mut config, 0x04, 0);
        assert!(pin.level());
        set_word(&mut config, 0x42, 1);
        assert!(!pin.level(), "MSI is on");
        set_word(&mut config, 0x42, 0);
        assert!(pin.level());
        set_word(&mut config, 0x5A, 0x8000);
        assert!(!pin.level(), "MSI-X is on");
        set_word(&mut config, 0x5A, 0);
        config.set_intx(false);
        assert_eq!((pin.level(), word(&config, 0x06)), (false, 0x10));
        config.set_intx(true);
        config.reset();
        assert_eq!((pin.level(), word(&config, 0x06)), (false, 0x10));
    }

    #[test]
    fn capabilities_are_what_their_chips_say() {
        let (lines, sink, _) = testing::lines();
        let mut config = function(lines);
        assert_eq!((word(&config, 0x34), word(&config, 0x40)), (0x40, 0x5805));
        assert_eq!((word(&config, 0x42), word(&config, 0x58)), (0x0182, 0x0011));
        set_word(&mut config, 0x5A, 0xFFFF);
        assert_eq!(word(&config, 0x5A), 0xC003, "four vectors");
        assert_eq!((word(&config, 0x5C), word(&config, 0x60)), (0x0800, 0x0C00));
        // A byte of the control word alone.
        let _ = config.write(0x5B, &[0x80]);
        assert_eq!(word(&config, 0x5A), 0x8003);
        let chip = config.msix().unwrap().clone();
        chip.write(0x800, &0xFEE0_0000_u64.to_le_bytes());
        chip.write(0x808, &0x55_u64.to_le_bytes());
        chip.vector(0).notify();
        assert_eq!(sink.take(), [], "no bus master");
        set_word(&mut config, 0x04, 4);
        assert_eq!(sink.take(), [(0xFEE0_0000, 0x55)]);
    }

    #[test]
    fn only_a_change_of_what_bars_decode_has_effects() {
        let (lines, ..) = testing::lines();
        let mut config = function(lines);
        assert_eq!(config.write(0x10, &0xD000_0000_u32.to_le_bytes()), Effects::None);
        let Effects::Windows(windows) = config.write(0x04, &[2]) else { panic!("it decodes") };
        let window = Window { space: Space::Mmio, start: 0xD000_0000, size: 4096 };
        assert_eq!(windows, [Some(window), None, None, None, None, None, None]);
        assert_eq!(config.write(0x04, &[6]), Effects::None);
        assert_eq!(config.write(0x10, &0xD000_0FFF_u32.to_le_bytes()), Effects::None);
        assert!(matches!(config.write(0x13, &[0xE0]), Effects::Windows(_)));
    }

    #[test]
    fn any_accesses_leave_a_state_that_can_be_restored_without_an_interrupt() {
        let (lines, ..) = testing::lines();
        let mut config = function(lines);
        let mut random = Random::new(21);
        for _ in 0..3_000 {
            let data = random.next().to_le_bytes();
            let len = 1 << random.below(3);
            match random.below(6) {
                0 => config.set_intx(random.below(2) == 0),
                1 => config.msix().unwrap().vector(random.below(5) as u16).notify(),
                2 => config.msi().unwrap().notify(random.byte()),
                3 => drop(config.msix().unwrap().write(0x800 + random.below(0x40), &data)),
                _ => drop(config.write(random.below(0x70) as u16, &data[..len])),
            }
            let saved = config.save();
            let (lines, sink, pin) = testing::lines();
            let mut copy = function(lines);
            copy.restore("test", saved.clone()).unwrap();
            assert_eq!((copy.save(), sink.take(), pin.level()), (saved, vec![], false));
        }
        let (lines, ..) = testing::lines();
        let mut other = PciConfig::new(&IDENTITY, lines);
        assert!(other.restore("test", config.save()).is_err());
    }
}
