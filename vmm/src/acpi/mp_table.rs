//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4).

use devices::pci::router::{FIRST_GSI, pirq};

use super::{FIRST_X2APIC_ID, IO_APIC, IO_APIC_ID, LOCAL_APIC, Platform, SCI, TIMER_GSI, pci};

const SPEC_REVISION: u8 = 4;
const HEADER: usize = 44;
/// The PCI bus has its own number, as kernels expect; the ISA bus comes after it.
const PCI_BUS_ID: u8 = 0;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1 << 0;
const BOOT_PROCESSOR: u8 = 1 << 1;
/// Family 6; what the CPU says of itself in CPUID counts for more.
const CPU_SIGNATURE: u32 = 0x600;
/// FPU and local APIC.
const CPU_FEATURES: u32 = 1 << 9 | 1 << 0;

/// Interrupt types (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Interrupt flags: as the bus has it.
const CONFORMS: u16 = 0;
/// Active high, level-triggered.
const HIGH_LEVEL: u16 = 0b1101;
const ALL_LOCAL_APICS: u8 = 0xFF;

/// The floating pointer structure (4.1) to the configuration table at `table`.
pub(super) fn floating_pointer(table: u32) -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // Paragraphs.
    pointer[9] = SPEC_REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// The configuration table (4.2, 4.3). It lists the vCPUs whose APIC id has 8 bits.
pub(super) fn configuration(platform: &Platform<'_>) -> Vec<u8> {
    let mut entries = Entries::default();
    let (signature, features) = (CPU_SIGNATURE.to_le_bytes(), CPU_FEATURES.to_le_bytes());
    for (index, &id) in platform.apic_ids.iter().enumerate() {
        if id < FIRST_X2APIC_ID {
            let flags = if index == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
            let start = [0, id as u8, LOCAL_APIC_VERSION, flags];
            entries.add(&[&start, &signature, &features, &[0; 8]]);
        }
    }
    let isa_bus = if platform.pci.is_some() { PCI_BUS_ID + 1 } else { 0 };
    if platform.pci.is_some() {
        entries.add(&[&[1, PCI_BUS_ID], b"PCI   "]);
    }
    entries.add(&[&[1, isa_bus], b"ISA   "]);
    let io_apic = [2, IO_APIC_ID, IO_APIC_VERSION, ENABLED];
    entries.add(&[&io_apic, &IO_APIC.to_le_bytes()]);
    for irq in (0..16).filter(|&irq| irq != TIMER_GSI) {
        let pin = if irq == 0 { TIMER_GSI } else { irq };
        let flags = if irq == SCI { HIGH_LEVEL } else { CONFORMS };
        entries.add(&[&[3, INT], &flags.to_le_bytes(), &[isa_bus, irq, IO_APIC_ID, pin]]);
    }
    if platform.pci.is_some() {
        let flags = CONFORMS.to_le_bytes();
        for (device, pin) in pci::pins() {
            let gsi = FIRST_GSI as u8 + pirq(device, pin) as u8;
            let source = device << 2 | (pin as u8 - 1);
            entries.add(&[&[3, INT], &flags, &[PCI_BUS_ID, source, IO_APIC_ID, gsi]]);
        }
    }
    // The 8259A at the boot vCPU's LINT0, NMI at every LINT1.
    let flags = CONFORMS.to_le_bytes();
    let boot = platform.apic_ids.first().map_or(0, |&id| id as u8);
    entries.add(&[&[4, EXT_INT], &flags, &[isa_bus, 0, boot, 0]]);
    entries.add(&[&[4, NMI], &flags, &[isa_bus, 0, ALL_LOCAL_APICS, 1]]);
    entries.into_table()
}

#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, fields: &[&[u8]]) {
        self.bytes.extend(fields.concat());
        self.count += 1;
    }

    fn into_table(self) -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table[..4].copy_from_slice(b"PCMP");
        table[4..6].copy_from_slice(&((HEADER + self.bytes.len()) as u16).to_le_bytes());
        table[6] = SPEC_REVISION;
        table[8..16].copy_from_slice(b"VMM     ");
        table[16..28].copy_from_slice(b"PC          ");
        table[34..36].copy_from_slice(&self.count.to_le_bytes());
        table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
        table.extend(self.bytes);
        table[7] = checksum(&table);
        table
    }
}

/// What makes the bytes sum up to 0, the checksum's own byte being 0 as yet.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}
