//! ACPI tables (ACPI 6.5, chapter 5.2), as far as a guest has to know them.

use crate::port::read;

/// A system description table.
#[derive(Clone, Copy)]
pub struct Table(pub u64);

impl Table {
    /// The four characters that say what it is.
    pub fn signature(self) -> [u8; 4] {
        read(self.0)
    }

    /// Its size with the header.
    pub fn length(self) -> u64 {
        read::<u32>(self.0 + 4).into()
    }

    /// Whether its bytes add up to zero.
    pub fn sound(self) -> bool {
        sum(self.0, self.length()) == 0
    }

    /// A field of it.
    pub fn field<T: Copy>(self, offset: u64) -> T {
        read(self.0 + offset)
    }
}

/// The sum of bytes, modulo 256.
pub fn sum(address: u64, length: u64) -> u8 {
    (address..address + length).fold(0, |sum, at| sum.wrapping_add(read(at)))
}

/// The RSDP: where the loader says, or where the BIOS area has it.
pub fn rsdp() -> Option<u64> {
    let found = |address: &u64| read::<[u8; 8]>(*address) == *b"RSD PTR " && sum(*address, 20) == 0;
    crate::boot::rsdp().filter(found).or_else(|| (0xe_0000..0x10_0000).step_by(16).find(found))
}

/// The tables that the XSDT, or where there is none the RSDT, names.
pub fn tables() -> impl Iterator<Item = Table> {
    let (root, width) = match rsdp() {
        Some(rsdp) if read::<u8>(rsdp + 15) >= 2 => (read::<u64>(rsdp + 24), 8),
        Some(rsdp) => (read::<u32>(rsdp + 16).into(), 4),
        None => (0, 8),
    };
    let end = if root == 0 { 0 } else { root + Table(root).length() };
    (root + 36..end)
        .step_by(width)
        .map(move |entry| Table(if width == 8 { read(entry) } else { read::<u32>(entry).into() }))
}

/// The first table with this signature.
pub fn find(signature: &[u8; 4]) -> Option<Table> {
    tables().find(|table| table.signature() == *signature)
}

/// Type and address of each interrupt controller structure of the MADT.
pub fn madt_entries(madt: Table) -> impl Iterator<Item = (u8, u64)> {
    let end = madt.0 + madt.length();
    let mut next = madt.0 + 44;
    core::iter::from_fn(move || {
        let entry = next;
        let length = if entry + 2 <= end { read::<u8>(entry + 1) } else { 0 };
        next += u64::from(length);
        (length >= 2).then(|| (read(entry), entry))
    })
}

/// The APIC ids of the processors that the MADT calls enabled.
pub fn processors() -> impl Iterator<Item = u32> {
    find(b"APIC").into_iter().flat_map(madt_entries).filter_map(|(kind, entry)| match kind {
        0 if read::<u32>(entry + 4) & 1 != 0 => Some(read::<u8>(entry + 3).into()),
        9 if read::<u32>(entry + 8) & 1 != 0 => Some(read(entry + 4)),
        _ => None,
    })
}
