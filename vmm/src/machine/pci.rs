//! The PCI bus of the machine: its addresses, the chipset's functions, the user's devices, and
//! plugging and unplugging while the machine runs.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use board::accel::{Doorbell, Doorbells, Irqchip as Chips};
use board::irq::{MsiSink, SharedLine};
use board::memory::HIGH_RAM_START;
use board::pci::{BarInfo, BarKind, Devfn, Pin};
use board::vcpu::Cpuid;
use board::{
    Accel, AccelError, Bus, EventTarget, GuestRam, IrqLine, LoopHandle, Slot, VmTime, Width,
};
use devices::chip::acpi_pm::AcpiPm;
use devices::pci::bus::{
    Apertures, ECAM_BUS_SIZE, FunctionView, PORTS, PciBus, PciBusRegisters, PlugError,
};
use devices::pci::config::offset;
use devices::pci::function::PciLines;
use devices::pci::hotplug::{self, PciHotplug};
use devices::pci::i440fx::HostBridge;
use devices::pci::piix::{IsaBridge, PowerManagement};
use devices::pci::router::{FIRST_GSI, Outputs, PIRQS, Router};
use devices::pci::testdev::TestDevice;

use monitor::CommandError;
use monitor::state::{PciClass, PciDevice, PciId, PciRegion};

use crate::Error;
use crate::boot::{e820, layout};
use crate::config::{PciKind, PciSpec};
use crate::doorbell::DoorbellTable;

use super::build::{Board, PM_BASE, RESET_PORT, SCI};

/// ECAM of bus 0. There is room for those of 255 more behind it.
pub(crate) const ECAM: u64 = 0xC000_0000;
/// Memory for BARs below 4 GiB, up to the I/O APIC.
const LOW_APERTURE: (u64, u64) = (0xD000_0000, 0xFEBF_FFFF);
/// Ports for BARs, above those of ISA devices.
const IO_APERTURE: (u64, u64) = (0x1000, 0xFFFF);
/// Memory for BARs above RAM begins at a multiple of this.
const HIGH_ALIGNMENT: u64 = 4 << 30;
/// Bytes of it, at most.
const HIGH_SIZE: u64 = 64 << 30;
/// The hot-plug registers.
pub(crate) const HOTPLUG_PORT: u64 = 0xCC0;

const HOST_BRIDGE: Devfn = Devfn::new(0, 0);
const ISA_BRIDGE: Devfn = Devfn::new(1, 0);
const POWER_MANAGEMENT: Devfn = Devfn::new(1, 3);

/// The ISA interrupts that PCI interrupts share for systems without an I/O APIC, as PC firmware
/// has it.
const ISA_IRQS: [u8; PIRQS] = [10, 10, 11, 11];
/// The edge/level control registers of both PICs, in which those interrupts are levels.
const ELCR: u64 = 0x4D0;

/// Doorbells: the accelerator's, or else those of the vCPUs' threads.
pub(super) struct Bells {
    pub(super) accel: Arc<dyn Accel>,
    pub(super) table: Arc<DoorbellTable>,
}

impl Bells {
    fn there(&self) -> &dyn Doorbells {
        self.accel.doorbells().unwrap_or(&*self.table)
    }
}

impl Doorbells for Bells {
    fn add(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        self.there().add(bell, eventfd)
    }

    fn remove(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        self.there().remove(bell, eventfd)
    }
}

/// What making a PCI device takes.
pub(super) struct PciParts {
    /// The loop for its timers and fds.
    pub(super) events: LoopHandle,
    /// What it reaches as a bus master.
    #[allow(dead_code, reason = "the test device is no bus master")]
    pub(super) ram: GuestRam,
    /// The accelerator, for [`devices::pci::msix::MsixVector::connect`].
    #[allow(dead_code, reason = "the test device connects no eventfd to its vectors")]
    pub(super) accel: Arc<dyn Accel>,
}

/// A device of the user's.
struct Card {
    id: Option<String>,
    devfn: Devfn,
    slot: Arc<Slot>,
    /// The guest has been asked to give it up.
    unplugging: bool,
}

/// The bus and what is plugged into it.
pub(super) struct Pci {
    bus: Arc<PciBus>,
    pio: Arc<Bus>,
    msi: Arc<dyn MsiSink>,
    parts: PciParts,
    apertures: Apertures,
    hotplug: Arc<Slot>,
    /// Where general-purpose events are raised.
    pm: Arc<Slot>,
    cards: Vec<Card>,
}

/// What [`Pci::new`] needs of the rest of the machine.
pub(super) struct Surroundings<'a> {
    pub(super) accel: &'a Arc<dyn Accel>,
    pub(super) ram: &'a GuestRam,
    pub(super) cpuid: &'a Cpuid,
    /// The reset control register, which lies between the ports of PCI.
    pub(super) reset_port: &'a Arc<Slot>,
    /// The ACPI registers.
    pub(super) pm: &'a Arc<Slot>,
}

impl Pci {
    /// A bus with the chipset's functions.
    pub(super) fn new(board: &mut Board<'_>, around: &Surroundings<'_>) -> Result<Self, Error> {
        let share = |gsi: u32| -> IrqLine { SharedLine::share(&board.lines[gsi as usize]) };
        let gsis = [0, 1, 2, 3].map(|pirq| share(FIRST_GSI + pirq));
        let router = Router::new(Outputs { gsis, isa: (0..16).map(share).collect() });
        let msi: Arc<dyn MsiSink> = match around.accel.irqchip() {
            Chips::Full { msi, .. } => msi,
            Chips::Split(bus) => bus,
            Chips::Soft => {
                return Err(Error::Unsupported("there are no local APICs to send MSIs to".into()));
            }
        };
        let reset_port = (around.reset_port.clone(), RESET_PORT);
        let (pio, mmio) = (board.pio.clone(), board.mmio.clone());
        let bus = PciBus::new(pio.clone(), mmio, board.doorbells.clone(), router, reset_port);
        pio.map_bridge(PORTS, bus.clone(), PciBus::CONFIG_PORTS, Width::Dword)?;
        let ecam = ECAM..=ECAM + ECAM_BUS_SIZE - 1;
        board.mmio.map_bridge(ecam, bus.clone(), PciBus::ECAM, Width::Qword)?;
        board.plug("pci-bus", |_| PciBusRegisters::new(bus.clone()));

        let system = board.system();
        let hotplug = board.plug("acpi-pci-hotplug", |_| PciHotplug::new(system));
        let ports = HOTPLUG_PORT..=HOTPLUG_PORT + hotplug::SIZE - 1;
        board.pio.map(ports, &hotplug, PciHotplug::REGISTERS, Width::Dword)?;

        // The chipset's functions have no pins.
        let lines = PciLines { intx: IrqLine::unconnected(), msi: msi.clone() };
        let slot = board.plug("i440fx", |_| HostBridge::new(lines.clone()));
        bus.plug(HOST_BRIDGE, &slot)?;
        let router = bus.router().clone();
        let slot = board.plug("piix3", |_| IsaBridge::new(lines.clone(), router));
        bus.plug(ISA_BRIDGE, &slot)?;
        let base = PM_BASE as u16;
        let slot = board.plug("piix4-pm", |_| PowerManagement::new(lines, base, SCI as u8));
        bus.plug(POWER_MANAGEMENT, &slot)?;

        let (ram, accel) = (around.ram.clone(), around.accel.clone());
        let high = high_aperture(&ram, around.cpuid);
        Ok(Self {
            bus,
            pio,
            msi,
            apertures: Apertures { io: IO_APERTURE, low: LOW_APERTURE, high },
            parts: PciParts { events: board.events.clone(), ram, accel },
            hotplug,
            pm: around.pm.clone(),
            cards: Vec::new(),
        })
    }

    /// Plugs a device in and gives back its slot. The guest is not told.
    pub(super) fn plug(&mut self, spec: &PciSpec) -> Result<Arc<Slot>, Error> {
        let name = spec.id.clone().unwrap_or_else(|| spec.kind.name().to_owned());
        self.plug_card(spec.id.as_deref(), spec.addr, |lines, parts| {
            make(&spec.kind, name, lines, parts)
        })
    }

    /// The same with what `make` makes.
    pub(super) fn plug_card(
        &mut self,
        id: Option<&str>,
        addr: Option<Devfn>,
        make: impl FnOnce(PciLines, &PciParts) -> Result<Arc<Slot>, Error>,
    ) -> Result<Arc<Slot>, Error> {
        if let Some(id) = id
            && self.cards.iter().any(|card| card.id.as_deref() == Some(id))
        {
            return Err(Error::Unsupported(format!(
                "--device: there is a device '{id}' already: give this one another id"
            )));
        }
        let devfn = match addr {
            Some(devfn) => devfn,
            None => self.bus.free_device()?,
        };
        self.bus.check_free(devfn)?;
        let intx = self.bus.router().line(devfn, Pin::A);
        let lines = PciLines { intx, msi: self.msi.clone() };
        let slot = make(lines, &self.parts)?;
        self.bus.plug(devfn, &slot)?;
        let card = Card { id: id.map(str::to_owned), devfn, slot: slot.clone(), unplugging: false };
        self.cards.push(card);
        Ok(slot)
    }

    /// Tells the guest of the device that was plugged in last.
    pub(super) fn announce(&self, now: VmTime) {
        if let Some(card) = self.cards.last() {
            self.hotplug.event(PciHotplug::plugged(card.devfn.device()), now);
            self.pm.event(AcpiPm::gpe(hotplug::GPE), now);
        }
    }

    /// Asks the guest to give up the device `id`.
    pub(super) fn unplug(&mut self, id: &str, now: VmTime) -> Result<(), CommandError> {
        let card = self.cards.iter_mut().find(|card| card.id.as_deref() == Some(id));
        let card = card.ok_or_else(|| CommandError::DeviceNotFound(id.to_owned()))?;
        if card.unplugging {
            let text = format!("Device {id} is already in the process of unplug");
            return Err(CommandError::Refused(text));
        }
        card.unplugging = true;
        self.hotplug.event(PciHotplug::unplug_wanted(card.devfn.device()), now);
        self.pm.event(AcpiPm::gpe(hotplug::GPE), now);
        Ok(())
    }

    /// Pulls out what is in `slots`, a bit a slot, and gives it back with its ids. The chipset
    /// stays.
    pub(super) fn eject(&mut self, slots: u32) -> Vec<(Option<String>, Arc<Slot>)> {
        let gone = |card: &Card| slots >> card.devfn.device() & 1 != 0;
        let (out, stay) = std::mem::take(&mut self.cards).into_iter().partition(gone);
        self.cards = stay;
        let out: Vec<Card> = out;
        for card in &out {
            self.bus.unplug(card.devfn.device());
            card.slot.lock().pause();
        }
        out.into_iter().map(|card| (card.id, card.slot)).collect()
    }

    /// The slots of devices that the guest has been asked to give up, a bit a slot.
    pub(super) fn unplugging(&self) -> u32 {
        let slots = self.cards.iter().filter(|card| card.unplugging);
        slots.fold(0, |slots, card| slots | 1 << card.devfn.device())
    }

    /// Maps what the functions decode after they have been reset or restored.
    pub(super) fn synchronize(&self) {
        self.bus.synchronize();
    }

    /// Does what firmware does, for a kernel that is entered without: addresses for BARs, and
    /// interrupts at the PICs.
    pub(super) fn assign(&self) {
        let router = self.bus.router();
        for (pirq, irq) in ISA_IRQS.into_iter().enumerate() {
            router.set_route(pirq, irq);
        }
        let levels = ISA_IRQS.into_iter().fold(0_u16, |levels, irq| levels | 1 << irq);
        self.pio.write(ELCR, &levels.to_le_bytes());
        self.bus.assign(&self.apertures, ISA_IRQS);
    }

    /// The addresses for BARs.
    pub(super) fn apertures(&self) -> Apertures {
        self.apertures
    }

    /// The range of ECAM, for the memory map.
    pub(super) fn ecam(&self) -> e820::Entry {
        e820::Entry::new(ECAM, ECAM + ECAM_BUS_SIZE, e820::Kind::Reserved)
    }

    /// All functions, for `info pci`.
    pub(super) fn devices(&self) -> Vec<PciDevice> {
        let id = |devfn| {
            let card = self.cards.iter().find(|card| card.devfn == devfn);
            card.and_then(|card| card.id.clone()).unwrap_or_default()
        };
        self.bus.functions().iter().map(|view| describe(view, id(view.devfn))).collect()
    }
}

fn describe(view: &FunctionView, qdev_id: String) -> PciDevice {
    let byte = |at: u16| view.header[usize::from(at)];
    let word = |at: u16| u16::from_le_bytes([byte(at), byte(at + 1)]);
    let irq_pin = byte(offset::INTERRUPT_PIN);
    let region = |bar: &BarInfo| {
        let (kind, prefetch, mem_type_64) = match bar.kind {
            BarKind::Io => ("io", None, None),
            BarKind::Memory { wide, prefetchable } => ("memory", Some(prefetchable), Some(wide)),
        };
        let address = bar.address.map_or(-1, |address| address as i64);
        PciRegion { bar: bar.number, kind, address, size: bar.size, prefetch, mem_type_64 }
    };
    PciDevice {
        bus: 0,
        slot: view.devfn.device(),
        function: view.devfn.function(),
        class_info: PciClass::new(word(offset::CLASS + 1)),
        id: PciId {
            vendor: word(offset::VENDOR),
            device: word(offset::DEVICE),
            subsystem_vendor: word(offset::SUBSYSTEM_VENDOR),
            subsystem: word(offset::SUBSYSTEM),
        },
        irq: (irq_pin != 0).then(|| byte(offset::INTERRUPT_LINE)),
        irq_pin,
        qdev_id,
        regions: view.bars.iter().map(region).collect(),
    }
}

/// The addresses above RAM that vCPUs reach; empty where there are none.
fn high_aperture(ram: &GuestRam, cpuid: &Cpuid) -> (u64, u64) {
    let bits = cpuid.get(0x8000_0008, 0).map_or(36, |leaf| leaf.eax & 0xFF).clamp(32, 52);
    let start = (HIGH_RAM_START + ram.high_size()).next_multiple_of(HIGH_ALIGNMENT);
    let start = start.max(layout::FOUR_GIB);
    let end = (start + HIGH_SIZE).min(1 << bits);
    if end > start { (start, end - 1) } else { (1, 0) }
}

/// Makes a device. It is not plugged in yet.
fn make(
    kind: &PciKind,
    name: String,
    lines: PciLines,
    parts: &PciParts,
) -> Result<Arc<Slot>, Error> {
    Ok(match kind {
        PciKind::TestDevice { size } => {
            Slot::plug(name, &parts.events, |attach| TestDevice::new(attach, lines, *size))
        }
    })
}

impl From<PlugError> for Error {
    fn from(error: PlugError) -> Self {
        Self::Unsupported(error.to_string())
    }
}
