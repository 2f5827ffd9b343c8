use super::*;

const COM1: SerialPort = SerialPort { port: 0x3F8, irq: 4 };
const COM2: SerialPort = SerialPort { port: 0x2F8, irq: 3 };

/// Guest memory as a kernel finds it.
struct Guest(GuestRam);

impl Guest {
    fn with_cpus(apic_ids: &[u32]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let rsdp = install(
            &Platform {
                apic_ids,
                serial: &[COM1, COM2],
                legacy: true,
                acpi: true,
                pci: None,
                virtio_mmio: &[],
            },
            &ram,
        )
        .unwrap()
        .unwrap();
        assert_eq!(rsdp, layout::ACPI_TABLES);
        Self(ram)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.0.read(address, &mut data).unwrap();
        data
    }

    fn number(&self, address: u64, length: usize) -> u64 {
        self.bytes(address, length)
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// A table whose length and checksum are right.
    fn table(&self, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let table = self.bytes(address, self.number(address + 4, 4) as usize);
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(&table), 0, "{}", String::from_utf8_lossy(signature));
        table
    }

    /// Finds the RSDP as kernels do, and the tables in its XSDT.
    fn tables(&self) -> Vec<u64> {
        let rsdp = (0xE_0000..0x10_0000)
            .step_by(16)
            .find(|&address| self.bytes(address, 8) == b"RSD PTR ")
            .expect("an RSDP");
        assert_eq!(sum(&self.bytes(rsdp, 20)), 0);
        assert_eq!(sum(&self.bytes(rsdp, 36)), 0);
        let xsdt = self.table(self.number(rsdp + 24, 8), b"XSDT");
        xsdt[36..]
            .chunks_exact(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
            .collect()
    }

    /// The MADT's structures.
    fn madt(&self) -> Vec<Vec<u8>> {
        let madt = self.table(self.tables()[1], b"APIC");
        assert_eq!(madt[36..44], [0, 0, 0xE0, 0xFE, 1, 0, 0, 0]);
        let mut rest = &madt[44..];
        let mut structures = Vec::new();
        while !rest.is_empty() {
            let (structure, after) = rest.split_at(rest[1].into());
            structures.push(structure.to_vec());
            rest = after;
        }
        structures
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_fadt_leads_to_the_registers() {
    let guest = Guest::with_cpus(&[0]);
    let fadt_at = guest.tables()[0];
    let fadt = guest.table(fadt_at, b"FACP");
    assert_eq!(fadt.len(), 276);
    let facs = guest.number(fadt_at + 36, 4);
    assert_eq!((guest.bytes(facs, 4), facs % 64), (b"FACS".to_vec(), 0));
    guest.table(guest.number(fadt_at + 40, 4), b"DSDT");
    assert_eq!(guest.number(fadt_at + 140, 8), guest.number(fadt_at + 40, 4));
    assert_eq!(guest.number(fadt_at + 46, 2), 9);
    assert_eq!(guest.number(fadt_at + 48, 4), 0);
    assert_eq!(guest.number(fadt_at + 56, 4), 0x600);
    assert_eq!(guest.number(fadt_at + 64, 4), 0x604);
    assert_eq!(guest.number(fadt_at + 76, 4), 0x608);
    assert_eq!(guest.number(fadt_at + 80, 4), 0x620);
    let flags = guest.number(fadt_at + 112, 4);
    assert_eq!((flags >> 4 & 1, flags >> 8 & 1, flags >> 10 & 1), (0, 0, 1));
    // RESET_REG: I/O port 0xCF9, one byte.
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0, 0x0F]);
}

#[test]
fn the_madt_lists_cpus_and_overrides() {
    let structures = Guest::with_cpus(&[0, 1, 4]).madt();
    let expected: [&[u8]; 7] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 4, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0],
        &[4, 6, 0xFF, 0, 0, 1],
    ];
    assert_eq!(structures, expected);
}

#[test]
fn apic_ids_from_255_on_are_x2apic_ids() {
    let ids: Vec<u32> = (0..300).collect();
    let structures = Guest::with_cpus(&ids).madt();
    let of = |kind| structures.iter().filter(move |s| s[0] == kind).collect::<Vec<_>>();
    assert_eq!(of(0).len(), 255);
    assert_eq!(of(9).len(), 45);
    assert_eq!(of(9)[1][..], [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(of(10)[0][..], [10, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
}

#[test]
fn too_many_cpus_are_an_error_that_names_the_option() {
    let ids: Vec<u32> = (0..10_000).collect();
    let ram = GuestRam::new(4 << 20).unwrap();
    let error = install(
        &Platform {
            apic_ids: &ids,
            serial: &[],
            legacy: true,
            acpi: true,
            pci: None,
            virtio_mmio: &[],
        },
        &ram,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("10000") && error.contains("--smp"), "{error}");
    let ids = &ids[..3000];
    assert!(
        install(
            &Platform {
                apic_ids: ids,
                serial: &[],
                legacy: true,
                acpi: true,
                pci: None,
                virtio_mmio: &[]
            },
            &ram
        )
        .is_ok()
    );
}

#[test]
fn the_dsdt_has_soft_off_and_the_serial_ports() {
    let guest = Guest::with_cpus(&[0]);
    let dsdt = guest.table(guest.number(guest.tables()[0] + 40, 4), b"DSDT");
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\x08_S5_\x12\x06\x04\0\0\0\0"));
    // COM2 with its _CRS: ports 0x2F8 to 0x2FF, interrupt 3.
    assert!(has(b"COM2\x08_HID\x0C\x41\xD0\x05\x01\x08_UID\x0A\x02"));
    assert!(has(b"\x47\x01\xF8\x02\xF8\x02\x01\x08\x89\x06\0\x03\x01\x03\0\0\0\x79"));
    assert!(!has(b"COM3"));
}

#[test]
fn both_mp_pointers_lead_to_the_same_table() {
    let guest = Guest::with_cpus(&[0, 1, 2]);
    let ebda = guest.number(layout::BDA_EBDA_SEGMENT, 2) << 4;
    assert_eq!(ebda, 0x9_FC00);
    assert_eq!(guest.number(layout::BDA_BASE_MEMORY, 2), 639);
    for at in [layout::MP_POINTER, ebda] {
        let pointer = guest.bytes(at, 16);
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        let at = guest.number(at + 4, 4);
        let length = guest.number(at + 4, 2) as usize;
        let table = guest.bytes(at, length);
        assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
        let mut rest = &table[44..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            kinds.push(rest[0]);
            rest = &rest[if rest[0] == 0 { 20 } else { 8 }..];
        }
        assert_eq!(kinds.len() as u64, guest.number(at + 34, 2));
        let count = |kind| kinds.iter().filter(|&&k| k == kind).count();
        assert_eq!([0, 1, 2, 3, 4].map(count), [3, 1, 1, 15, 2]);
        assert!(kinds.is_sorted());
    }
}

const APERTURES: Apertures = Apertures {
    io: (0x1000, 0xFFFF),
    low: (0xD000_0000, 0xFEBF_FFFF),
    high: (0x1_0000_0000, 0x10_FFFF_FFFF),
};

#[test]
fn pci_has_its_tables() {
    let ram = GuestRam::new(4 << 20).unwrap();
    let pci = Some(APERTURES);
    let platform =
        Platform { apic_ids: &[0], serial: &[], legacy: true, acpi: true, pci, virtio_mmio: &[] };
    install(&platform, &ram).unwrap();
    let guest = Guest(ram);
    let tables = guest.tables();
    let mcfg = guest.table(tables[2], b"MCFG");
    // ECAM at 0xC000_0000, segment 0, buses 0 to 0.
    assert_eq!(mcfg[44..56], [0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(mcfg.len(), 60);

    let dsdt = guest.table(guest.number(tables[0] + 40, 4), b"DSDT");
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // Slot 5, pin A: GSI 16; slot 31, pin D: GSI 17.
    assert!(has(b"\x12\x0B\x04\x0C\xFF\xFF\x05\0\0\0\x0A\x10"));
    assert!(has(b"\x12\x0C\x04\x0C\xFF\xFF\x1F\0\x0A\x03\0\x0A\x11"));
    // The memory window below 4 GiB: first and last address, translation, length.
    let window = [0, 0xD000_0000, 0xFEBF_FFFF, 0, 0x2EC0_0000_u32].map(u32::to_le_bytes).concat();
    assert!(has(&window));
    assert!(has(b"S1F_\x08_ADR\x0C\0\0\x1F\0\x08_SUN\x0A\x1F"));
    assert!(has(b"_EJ0") && has(b"_E01") && has(b"PCIU") && has(b"PCID") && has(b"B0EJ"));
}

#[test]
fn the_mp_table_has_the_pins_of_pci() {
    let platform = Platform {
        apic_ids: &[0],
        serial: &[],
        legacy: true,
        acpi: false,
        pci: Some(APERTURES),
        virtio_mmio: &[],
    };
    let table = mp_table::configuration(&platform);
    assert_eq!(sum(&table), 0);
    let has = |bytes: &[u8]| table.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\x01\0PCI   \x01\x01ISA   "));
    // Slot 5, pin A: bus 0, source 5 << 2, I/O APIC 0, pin 16; COM1's interrupt is bus 1's.
    assert!(has(&[3, 0, 0, 0, 0, 5 << 2, 0, 16]));
    assert!(has(&[3, 0, 0, 0, 1, 4, 0, 4]));
}
