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
