//! `acpi`: RSDP, XSDT and the tables that hang from it are there, with right checksums; what they say of processors, interrupt
//! controllers and the PM block is printed.

#![no_std]
#![no_main]

use runtime::acpi::{self, Table};
use runtime::port::read;
use runtime::serial::{Hex, Text};
use runtime::{Verdict, clock, ensure, guest, port, say};

guest!("acpi", main);

fn main() -> Verdict {
    let rsdp = acpi::rsdp().ok_or("there is no RSDP")?;
    let revision: u8 = read(rsdp + 15);
    say!("RSDP ", Hex(rsdp), " revision ", revision, " OEM ", Text(&read::<[u8; 6]>(rsdp + 9)));
    if revision >= 2 {
        ensure!(acpi::sum(rsdp, 36) == 0, "the RSDP's extended checksum");
        let xsdt = Table(read(rsdp + 24));
        ensure!(xsdt.signature() == *b"XSDT" && xsdt.sound(), "the XSDT");
        say!("XSDT ", Hex(xsdt.0));
    } else {
        let rsdt = Table(read::<u32>(rsdp + 16).into());
        ensure!(rsdt.signature() == *b"RSDT" && rsdt.sound(), "the RSDT");
        say!("RSDT ", Hex(rsdt.0));
    }
    for table in acpi::tables() {
        show(table)?;
    }
    madt(acpi::find(b"APIC").ok_or("there is no MADT")?);
    fadt(acpi::find(b"FACP").ok_or("there is no FADT")?)
}

fn show(table: Table) -> Verdict {
    say!(Text(&table.signature()), " ", Hex(table.0), " length ", table.length());
    ensure!(table.sound(), "a table's checksum");
    Ok(())
}

fn madt(madt: Table) {
    say!("local APIC ", Hex(madt.field::<u32>(36).into()));
    for (kind, entry) in acpi::madt_entries(madt) {
        match kind {
            1 => {
                let (id, address): (u8, u32) = (read(entry + 2), read(entry + 4));
                say!("I/O APIC ", id, " at ", Hex(address.into()));
            }
            2 => {
                let (irq, gsi, flags): (u8, u32, u16) =
                    (read(entry + 3), read(entry + 4), read(entry + 8));
                say!("IRQ ", irq, " is GSI ", gsi, " flags ", Hex(flags.into()));
            }
            _ => {}
        }
    }
    say!("processors ", acpi::processors().count());
}

fn fadt(fadt: Table) -> Verdict {
    let pm_timer: u32 = fadt.field(76);
    say!("SCI ", fadt.field::<u16>(46));
    say!("PM1a event block ", Hex(fadt.field::<u32>(56).into()));
    say!("PM1a control block ", Hex(fadt.field::<u32>(64).into()));
    say!("PM timer ", Hex(pm_timer.into()));
    let first = port::inl(pm_timer as u16);
    clock::delay(100);
    ensure!(port::inl(pm_timer as u16) != first, "the PM timer stands still");
    if fadt.field::<u32>(112) & 1 << 10 != 0 {
        let (address, value): (u64, u8) = (fadt.field(120), fadt.field(128));
        say!("reset register ", Hex(address), " value ", Hex(value.into()));
    }
    let extended: u64 = if fadt.length() >= 148 { fadt.field(140) } else { 0 };
    let dsdt = Table(if extended != 0 { extended } else { fadt.field::<u32>(40).into() });
    ensure!(dsdt.signature() == *b"DSDT", "the FADT names no DSDT");
    show(dsdt)
}
