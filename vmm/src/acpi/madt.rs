//! Multiple APIC description table (ACPI 6.5, 5.2.12).

use acpi_tables::sdt::Sdt;

use super::{FIRST_X2APIC_ID, IO_APIC, IO_APIC_ID, LOCAL_APIC, Platform, SCI, TIMER_GSI, sdt};

/// Table flag: there are two 8259A as well.
const PCAT_COMPAT: u32 = 1;
/// Local APIC flag.
const ENABLED: u32 = 1;

const ISA_BUS: u8 = 0;
/// MPS INTI flags (table 5.26): as the bus has it, edge and active high on ISA.
const CONFORMS: u16 = 0;
/// Active high, level-triggered.
const HIGH_LEVEL: u16 = 0b1101;
const ALL_PROCESSORS: u8 = 0xFF;
const ALL_X2APIC_PROCESSORS: u32 = 0xFFFF_FFFF;
const LINT1: u8 = 1;

/// The MADT.
pub(super) fn table(platform: &Platform<'_>) -> Sdt {
    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    let mut add = |kind: u8, fields: &[&[u8]]| {
        let fields = fields.concat();
        body.extend([kind, fields.len() as u8 + 2]);
        body.extend(fields);
    };
    for (uid, &id) in (0_u32..).zip(platform.apic_ids) {
        let (uid, flags) = (uid.to_le_bytes(), ENABLED.to_le_bytes());
        if id < FIRST_X2APIC_ID {
            add(0, &[&uid[..1], &[id as u8], &flags]);
        } else {
            add(9, &[&[0; 2], &id.to_le_bytes(), &flags, &uid]);
        }
    }
    add(1, &[&[IO_APIC_ID, 0], &IO_APIC.to_le_bytes(), &0_u32.to_le_bytes()]);
    for (irq, gsi, flags) in [(0, TIMER_GSI, CONFORMS), (SCI, SCI, HIGH_LEVEL)] {
        add(2, &[&[ISA_BUS, irq], &u32::from(gsi).to_le_bytes(), &flags.to_le_bytes()]);
    }
    add(4, &[&[ALL_PROCESSORS], &CONFORMS.to_le_bytes(), &[LINT1]]);
    if platform.apic_ids.iter().any(|&id| id >= FIRST_X2APIC_ID) {
        let all = ALL_X2APIC_PROCESSORS.to_le_bytes();
        add(10, &[&CONFORMS.to_le_bytes(), &all, &[LINT1, 0, 0, 0]]);
    }
    let mut table = sdt(*b"APIC", 5);
    table.append_slice(&body);
    table
}
