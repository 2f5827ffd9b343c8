//! `info pci`.

use std::fmt::{self, Write};

use crate::state::{PciBus, PciDevice, PciRegion};

pub(super) fn buses(out: &mut String, buses: &[PciBus]) -> fmt::Result {
    buses.iter().flat_map(|bus| &bus.devices).try_for_each(|device| function(out, device))
}

fn function(out: &mut String, device: &PciDevice) -> fmt::Result {
    let PciDevice { bus, slot, function, id, class_info, .. } = device;
    writeln!(out, "  Bus {bus:2}, device {slot:3}, function {function}:")?;
    match class_info.desc {
        Some(desc) => write!(out, "    {desc}")?,
        // Four decimal digits, as QEMU has them.
        None => write!(out, "    Class {:04}", class_info.class)?,
    }
    writeln!(out, ": PCI device {:04x}:{:04x}", id.vendor, id.device)?;
    writeln!(out, "      PCI subsystem {:04x}:{:04x}", id.subsystem_vendor, id.subsystem)?;
    if let Some(irq) = device.irq {
        writeln!(out, "      IRQ {irq}, pin {}", char::from(b'A' + device.irq_pin - 1))?;
    }
    device.regions.iter().try_for_each(|one| region(out, one))?;
    writeln!(out, "      id \"{}\"", device.qdev_id)
}

fn region(out: &mut String, region: &PciRegion) -> fmt::Result {
    // A BAR that decodes nothing is at -1, from which its end is counted too.
    let (start, size) = (region.address as u64, region.size);
    let end = start.wrapping_add(size).wrapping_sub(1);
    write!(out, "      BAR{}: ", region.bar)?;
    match (region.mem_type_64, region.prefetch) {
        (Some(wide), prefetch) => {
            let bits = if wide { 64 } else { 32 };
            let prefetchable = if prefetch == Some(true) { " prefetchable" } else { "" };
            writeln!(out, "{bits} bit{prefetchable} memory at {start:#010x} [{end:#010x}].")
        }
        (None, _) => writeln!(out, "I/O at {start:#06x} [{end:#06x}]."),
    }
}
