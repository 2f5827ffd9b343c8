//! Differentiated system description table: the devices that no bus enumerates (ACPI 6.5,
//! 5.2.11.1), and the value that powers the machine off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::sdt::Sdt;

use devices::virtio::mmio::VirtioMmio;

use super::{Platform, VirtioMmioPlace, pci, sdt, to_bytes};

/// The DSDT.
pub(super) fn table(platform: &Platform<'_>) -> Sdt {
    let mut devices: Vec<Vec<u8>> = Vec::new();
    if platform.legacy {
        devices.extend([
            device("RTC_", &EISAName::new("PNP0B00"), None, &[(0x70, 2)], Some(8)),
            device("KBD_", &EISAName::new("PNP0303"), None, &[(0x60, 1), (0x64, 1)], Some(1)),
            device("MOU_", &EISAName::new("PNP0F13"), None, &[], Some(12)),
            // fw_cfg, by the name that its Linux driver knows (QEMU, docs/specs/fw_cfg).
            device("FWCF", &"QEMU0002", None, &[(0x510, 12)], None),
        ]);
    }
    for (number, serial) in (1..).zip(platform.serial) {
        let name = format!("COM{number:X}");
        let ports = [(serial.port, 8)];
        let id = EISAName::new("PNP0501");
        devices.push(device(&name, &id, Some(number), &ports, Some(serial.irq)));
    }
    devices.extend((0..).zip(platform.virtio_mmio).map(|(n, place)| virtio_mmio(n, place)));
    if let Some(apertures) = &platform.pci {
        devices.extend(pci::devices(apertures));
    }
    // S5 is SLP_TYP 0 in both PM1 control registers.
    let soft_off = Name::new("_S5_".into(), &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]));
    let mut table = sdt(*b"DSDT", 2);
    table.append_slice(&to_bytes(&soft_off));
    table.append_slice(&Scope::raw("\\_SB_".into(), devices.concat()));
    if platform.pci.is_some() {
        table.append_slice(&pci::event());
    }
    table
}

/// A virtio device on MMIO, by the id that QEMU and Linux use for it.
fn virtio_mmio(number: u8, place: &VirtioMmioPlace) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, place.base as u32, VirtioMmio::SIZE as u32);
    let irq = Interrupt::new(true, true, false, false, place.gsi.into());
    let id = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &number);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &irq]));
    let name = format!("VR{number:02X}");
    to_bytes(&Device::new(Path::new(&name), vec![&id, &uid, &resources]))
}

/// A device with its id, its I/O ports (first port and count of each range) and its ISA
/// interrupt.
fn device(
    name: &str,
    id: &dyn Aml,
    uid: Option<u8>,
    ports: &[(u16, u8)],
    irq: Option<u8>,
) -> Vec<u8> {
    let name_of = |name: &str, value: &dyn Aml| Name::new(Path::new(name), value);
    let ports: Vec<IO> = ports.iter().map(|&(port, count)| IO::new(port, port, 1, count)).collect();
    // Edge-triggered, active high, not shared, as interrupts of the ISA bus are.
    let irq = irq.map(|irq| Interrupt::new(true, true, false, false, irq.into()));
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.extend(irq.iter().map(|irq| irq as &dyn Aml));

    let id = name_of("_HID", id);
    let uid = uid.map(|uid| name_of("_UID", &uid));
    let resources = name_of("_CRS", &ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&id];
    children.extend(uid.iter().map(|uid| uid as &dyn Aml));
    children.push(&resources);
    to_bytes(&Device::new(Path::new(name), children))
}
