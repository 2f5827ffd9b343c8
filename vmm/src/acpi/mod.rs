//! ACPI tables of the `pc` machine (ACPI 6.5), and the MP table for kernels without ACPI.
//!
//! They are put into guest memory when a kernel is loaded without firmware; firmware makes its
//! own.

mod dsdt;
mod fadt;
mod madt;
mod mp_table;
mod pci;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use board::GuestRam;
use devices::pci::bus::Apertures;

use crate::boot::{BootError, layout};

const OEM_ID: [u8; 6] = *b"VMM   ";
const OEM_TABLE_ID: [u8; 8] = *b"VMM PC  ";
const OEM_REVISION: u32 = 1;
/// Bytes of the header that tables have in common.
const TABLE_HEADER: u32 = 36;

const IO_APIC: u32 = 0xFEC0_0000;
const IO_APIC_ID: u8 = 0;
const LOCAL_APIC: u32 = 0xFEE0_0000;
/// The system control interrupt, level-triggered and active high.
const SCI: u8 = 9;
/// The I/O APIC's input for ISA IRQ 0; the other ISA interrupts keep their number.
const TIMER_GSI: u8 = 2;
/// APIC ids from here on are x2APIC ids, which the 8-bit fields do not hold.
const FIRST_X2APIC_ID: u32 = 255;

/// What differs from machine to machine.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// APIC id of each vCPU, the boot vCPU's first.
    pub apic_ids: &'a [u32],
    /// The serial ports, COM1 first.
    pub serial: &'a [SerialPort],
    /// There are a real-time clock, a keyboard controller and fw_cfg.
    pub legacy: bool,
    /// There are ACPI tables, and not only the MP table.
    pub acpi: bool,
    /// The addresses for PCI, if there is a PCI bus.
    pub pci: Option<Apertures>,
    /// The virtio devices on MMIO.
    pub virtio_mmio: &'a [VirtioMmioPlace],
}

/// A virtio device on MMIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmioPlace {
    /// The address of its registers.
    pub base: u64,
    /// Its interrupt, edge-triggered.
    pub gsi: u8,
}

/// A 16550A on the ISA bus.
#[derive(Clone, Copy, Debug)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
}

/// Puts the ACPI tables and the MP table into guest memory and gives back the RSDP's address, if
/// there are ACPI tables.
///
/// # Errors
/// [`BootError::TooManyCpus`] when the tables do not fit in their 64 KiB, [`BootError::NotRam`] when
/// the machine has less RAM.
pub fn install(platform: &Platform<'_>, ram: &GuestRam) -> Result<Option<u64>, BootError> {
    let room = layout::ACPI_TABLES_END - layout::ACPI_TABLES;
    let mut tables = Tables::default();
    if platform.acpi {
        tables.add_acpi(platform);
    }
    let mp_table = tables.add(16, &mp_table::configuration(platform));
    if tables.bytes.len() as u64 > room {
        return Err(BootError::TooManyCpus { cpus: platform.apic_ids.len(), room });
    }
    ram.write(layout::ACPI_TABLES, &tables.bytes)?;

    let pointer = mp_table::floating_pointer(mp_table as u32);
    ram.write(layout::MP_POINTER, &pointer)?;
    ram.write(layout::EBDA, &pointer)?;
    ram.write(layout::BDA_EBDA_SEGMENT, &((layout::EBDA >> 4) as u16).to_le_bytes())?;
    ram.write(layout::BDA_BASE_MEMORY, &((layout::EBDA >> 10) as u16).to_le_bytes())?;
    Ok(platform.acpi.then_some(layout::ACPI_TABLES))
}

/// The contents of guest memory from [`layout::ACPI_TABLES`] on.
#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends `table` at a multiple of `align` and gives back its guest address.
    fn add(&mut self, align: usize, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let address = layout::ACPI_TABLES + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }

    /// Appends the ACPI tables with the RSDP at their start, where a scan finds it first.
    fn add_acpi(&mut self, platform: &Platform<'_>) {
        self.bytes.resize(Rsdp::len(), 0);
        let facs = self.add(64, &to_bytes(&FACS::new()));
        let dsdt = self.add(16, &to_bytes(&dsdt::table(platform)));
        let fadt = self.add(16, &to_bytes(&fadt::table(platform, facs as u32, dsdt as u32)));
        let madt = self.add(16, &to_bytes(&madt::table(platform)));
        let mut xsdt = sdt(*b"XSDT", 1);
        let mcfg = platform.pci.map(|_| self.add(16, &pci::mcfg()));
        let tables: Vec<_> = [fadt, madt].into_iter().chain(mcfg).collect();
        for table in tables {
            xsdt.append_slice(&table.to_le_bytes());
        }
        let xsdt = self.add(16, &to_bytes(&xsdt));
        self.bytes[..Rsdp::len()].copy_from_slice(&to_bytes(&Rsdp::new(OEM_ID, xsdt)));
    }
}

/// A table without contents yet.
fn sdt(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, TABLE_HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
