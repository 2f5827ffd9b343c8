//! What ACPI says of PCI: the host bridge with its addresses and interrupts (ACPI 6.5, 6.2.2,
//! 6.2.13), ECAM (PCI Firmware Specification 3.3, 4.1.2), and plugging and unplugging (ACPI 6.5,
//! 5.6.4, 6.3.3).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method, MethodCall,
    Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::mcfg::MCFG;
use board::pci::Pin;
use devices::pci::bus::{Apertures, ECAM_BUS_SIZE};
use devices::pci::hotplug;
use devices::pci::router::{FIRST_GSI, pirq};

use crate::machine::{ECAM, HOTPLUG_PORT};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, to_bytes};

/// The slots for devices; the chipset has the others.
const SLOTS: std::ops::Range<u8> = 2..32;
/// The ACPI registers: PM block and GPE0.
const PM_PORTS: (u16, u8) = (0x600, 0x24);
/// The ports of configuration mechanism 1.
const CONFIG_PORTS: (u16, u8) = (0xCF8, 8);

/// Notifications: look for a new device, give up the device (ACPI 6.5, table 5.187).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The pins of all devices that there can be.
pub(super) fn pins() -> impl Iterator<Item = (u8, Pin)> {
    SLOTS.flat_map(|device| [Pin::A, Pin::B, Pin::C, Pin::D].map(|pin| (device, pin)))
}

/// The MCFG table.
pub(super) fn mcfg() -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(ECAM, 0, 0, 0);
    to_bytes(&table)
}

/// What belongs below `\_SB`: the host bridge, and the addresses that belong to the mainboard.
pub(super) fn devices(apertures: &Apertures) -> Vec<Vec<u8>> {
    vec![host_bridge(apertures), mainboard()]
}

fn host_bridge(apertures: &Apertures) -> Vec<u8> {
    let mut parts = vec![
        named("_HID", &EISAName::new("PNP0A03")),
        named("_UID", &ZERO),
        named("_ADR", &ZERO),
        named("_BBN", &ZERO),
        resources(apertures),
        routing_table(),
    ];
    parts.extend(hotplug_registers());
    parts.extend(SLOTS.map(slot));
    parts.push(notify_method());
    device("PCI0", parts)
}

/// The addresses that lead to PCI. The ports and the video memory that ISA devices and firmware know
/// are among them, as on any PC.
fn resources(apertures: &Apertures) -> Vec<u8> {
    let memory = AddressSpaceCacheable::NotCacheable;
    let (low, high) = (apertures.low, apertures.high);
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let config = IO::new(CONFIG_PORTS.0, CONFIG_PORTS.0, 1, CONFIG_PORTS.1);
    let isa = AddressSpace::<u16>::new_io(0, 0x0CF7, None);
    let io = AddressSpace::<u16>::new_io(0x0D00, 0xFFFF, None);
    let video = AddressSpace::<u32>::new_memory(memory, true, 0xA_0000, 0xB_FFFF, None);
    let low = AddressSpace::<u32>::new_memory(memory, true, low.0 as u32, low.1 as u32, None);
    let mut list: Vec<&dyn Aml> = vec![&bus, &config, &isa, &io, &video, &low];
    let high = (high.0 < high.1)
        .then(|| AddressSpace::<u64>::new_memory(memory, true, high.0, high.1, None));
    list.extend(high.iter().map(|range| range as &dyn Aml));
    named("_CRS", &ResourceTemplate::new(list))
}

/// Each pin of each device, and the GSI that it is.
fn routing_table() -> Vec<u8> {
    let entry = |(device, pin)| {
        let (address, index) = (u32::from(device) << 16 | 0xFFFF, pin as u8 - 1);
        let gsi = FIRST_GSI as u8 + pirq(device, pin) as u8;
        Raw(to_bytes(&Package::new(vec![&address, &index, &ZERO, &gsi])))
    };
    let entries: Vec<Raw> = pins().map(entry).collect();
    named("_PRT", &Package::new(entries.iter().map(|entry| entry as &dyn Aml).collect()))
}

/// The registers of [`hotplug`].
fn hotplug_registers() -> Vec<Vec<u8>> {
    let (port, size) = (HOTPLUG_PORT as u16, hotplug::SIZE as u8);
    let named = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    let field = Field::new(
        Path::new("PCIR"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![named(b"PCIU"), named(b"PCID"), named(b"B0EJ")],
    );
    let region = OpRegion::new(Path::new("PCIR"), OpRegionSpace::SystemIO, &port, &size);
    vec![to_bytes(&region), to_bytes(&field)]
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

/// A slot, whether there is a device in it or not: its device can be given up.
fn slot(slot: u8) -> Vec<u8> {
    let (register, bit) = (Path::new("B0EJ"), 1_u32 << slot);
    let eject = Store::new(&register, &bit);
    let parts = vec![
        named("_ADR", &(u32::from(slot) << 16)),
        named("_SUN", &slot),
        to_bytes(&Method::new(Path::new("_EJ0"), 1, true, vec![&eject])),
    ];
    device(&slot_name(slot), parts)
}

/// `DVNT(slots, notification)`: notifies each slot whose bit is set.
fn notify_method() -> Vec<u8> {
    let mut body = Vec::new();
    for slot in SLOTS {
        let (bit, path, slots) = (1_u32 << slot, Path::new(&slot_name(slot)), Arg(0));
        let set = And::new(&ZERO, &slots, &bit);
        let notify = Notify::new(&path, &Arg(1));
        If::new(&set, vec![&notify]).to_aml_bytes(&mut body);
    }
    to_bytes(&Method::new(Path::new("DVNT"), 2, true, vec![&Raw(body)]))
}

/// What belongs below `\_GPE`: the method of the general-purpose event.
pub(super) fn event() -> Vec<u8> {
    let path = |name: &str| Path::new(&format!("\\_SB_.PCI0.{name}"));
    let mut body = Vec::new();
    for (register, notification) in [("PCIU", DEVICE_CHECK), ("PCID", EJECT_REQUEST)] {
        Store::new(&Local(0), &path(register)).to_aml_bytes(&mut body);
        MethodCall::new(path("DVNT"), vec![&Local(0), &notification]).to_aml_bytes(&mut body);
    }
    let name = format!("_E{:02X}", hotplug::GPE);
    let method = to_bytes(&Method::new(Path::new(&name), 0, true, vec![&Raw(body)]));
    Scope::raw("\\_GPE".into(), method)
}

/// The mainboard's own addresses, which no BAR may take.
fn mainboard() -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_BUS_SIZE as u32);
    let pm = IO::new(PM_PORTS.0, PM_PORTS.0, 1, PM_PORTS.1);
    let port = HOTPLUG_PORT as u16;
    let hotplug = IO::new(port, port, 1, hotplug::SIZE as u8);
    let parts = vec![
        named("_HID", &EISAName::new("PNP0C02")),
        named("_UID", &ZERO),
        named("_CRS", &ResourceTemplate::new(vec![&ecam, &pm, &hotplug])),
    ];
    device("MBRS", parts)
}

/// AML that is there already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn named(name: &str, value: &dyn Aml) -> Vec<u8> {
    to_bytes(&Name::new(Path::new(name), value))
}

fn device(name: &str, parts: Vec<Vec<u8>>) -> Vec<u8> {
    to_bytes(&Device::new(Path::new(name), vec![&Raw(parts.concat())]))
}
