//! Paging (SDM vol. 3, 4): formats, rights, error codes, PCIDs.

use std::cell::RefCell;

use board::CpuIo;
use board::vcpu::VcpuState;

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, Guest, HANDLERS, IDT, STACK, TABLE, segment};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;
/// The tables that map linear page 0 in [`Guest::long`].
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// Room for other tables.
const SPARE: u64 = 0x5000;
const GIB: u64 = 1 << 30;
const CR0_WP: u64 = 1 << 16;
const CR0_CD: u64 = 1 << 30;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const PCIDE: u64 = 1 << 17;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
/// mov rax, [rdi]; hlt. The same in 32-bit code without the prefix.
const READ: [u8; 4] = [0x48, 0x8B, 0x07, 0xF4];
const READ32: [u8; 3] = [0x8B, 0x07, 0xF4];
/// A bit above the guest-physical addresses.
const ABOVE: u64 = 1 << 45;

/// The page fault that a guest has ended in: its error code.
fn fault(guest: &Guest, after: &VcpuState) -> Option<u64> {
    guest.in_handler(after).then(|| {
        let (vector, error, _) = guest.exception(after);
        assert_eq!(vector, 14);
        error
    })
}

#[test]
fn large_pages_of_2_mib_and_1_gib() {
    // mov rax, [rdi]; mov [rsi], rax; hlt
    let mut guest = Guest::long(&[0x48, 0x8B, 0x07, 0x48, 0x89, 0x06, 0xF4]);
    guest.put(PDPT + 8, SPARE | P | W);
    guest.put(SPARE, 0x20_0000 | PS | P | W);
    guest.put(PDPT + 16, PS | P | W);
    guest.put(0x20_0000 + DATA, 77);
    guest.state.gpr[7] = GIB + DATA;
    guest.state.gpr[6] = 2 * GIB + DATA;
    guest.run(&NoIo::default());
    assert_eq!(guest.get(DATA), 77);
    let bits = |at: u64| guest.get(at) & (A | D);
    assert_eq!((bits(PDPT + 8), bits(SPARE), bits(PDPT + 16)), (A, A, A | D));
    // Without 1 GiB pages the bit is reserved.
    guest.state.cpuid.get_mut(0x8000_0001, 0).unwrap().edx &= !(1 << 26);
    let after = guest.run(&NoIo::default());
    assert_eq!(fault(&guest, &after), Some(0xB));
}

#[test]
fn reserved_bits_of_4_level_paging() {
    let leaf = P | W | U;
    // Where, what, error code of a read.
    let cases = [
        (PML4 + 8, SPARE | leaf | PS, Some(9)),
        (PML4 + 8, SPARE | leaf | ABOVE, Some(9)),
        (PML4 + 8, SPARE | PS, Some(0)),
        (SPARE, leaf | PS | 1 << 13, Some(9)),
        (SPARE, leaf | PS | 1 << 29, Some(9)),
        (SPARE, leaf | PS | 1 << 12, None),
        (SPARE, leaf | PS | ABOVE, Some(9)),
        (SPARE, leaf | PS | 0x7FF << 52, None),
        (SPARE + 0x1000, leaf | PS | 1 << 13, Some(9)),
        (SPARE + 0x1000, leaf | PS | 1 << 20, Some(9)),
        (SPARE + 0x1000, leaf | PS | 1 << 12, None),
        (SPARE + 0x1000, leaf | ABOVE, Some(9)),
        // Bit 7 of a leaf of the last level is PAT.
        (SPARE + 0x2000, leaf | PS, None),
        (SPARE + 0x2000, leaf | ABOVE, Some(9)),
        (SPARE + 0x2000, leaf | 0xE00, None),
    ];
    for (at, entry, expected) in cases {
        let mut guest = Guest::long(&READ);
        guest.put(PML4 + 8, SPARE | leaf);
        guest.put(SPARE, (SPARE + 0x1000) | leaf);
        guest.put(SPARE + 0x1000, (SPARE + 0x2000) | leaf);
        guest.put(SPARE + 0x2000, DATA | leaf);
        guest.put(at, entry);
        guest.state.gpr[7] = 1 << 39;
        let after = guest.run(&NoIo::default());
        assert_eq!(fault(&guest, &after), expected, "{entry:x} at {at:x}");
    }
    // Bit 63 where EFER.NXE is clear, at any level.
    for at in [PML4 + 8, SPARE, SPARE + 0x1000, SPARE + 0x2000] {
        let mut guest = Guest::long(&READ);
        guest.put(PML4 + 8, SPARE | leaf);
        guest.put(SPARE, (SPARE + 0x1000) | leaf);
        guest.put(SPARE + 0x1000, (SPARE + 0x2000) | leaf);
        guest.put(SPARE + 0x2000, DATA | leaf);
        guest.put(at, guest.get(at) | NX);
        guest.state.gpr[7] = 1 << 39;
        let after = guest.run(&NoIo::default());
        assert_eq!(fault(&guest, &after), None);
        guest.state.efer &= !(1 << 11);
        let after = guest.run(&NoIo::default());
        assert_eq!(fault(&guest, &after), Some(9));
    }
}

#[test]
fn error_codes_of_user_code() {
    // mov rax, [rdi]; ud2 and mov [rdi], rax; ud2 and jmp rdi, which leads to ud2
    let read: &[u8] = &[0x48, 0x8B, 0x07, 0x0F, 0x0B];
    let write: &[u8] = &[0x48, 0x89, 0x07, 0x0F, 0x0B];
    let exec: &[u8] = &[0xFF, 0xE7];
    let cases = [
        (read, W | U, Some(4)),
        (write, W | U, Some(6)),
        (exec, W | U, Some(0x14)),
        (read, P | W, Some(5)),
        (write, P | W, Some(7)),
        (exec, P | W, Some(0x15)),
        (read, P | U, None),
        (write, P | U, Some(7)),
        (exec, P | U | NX, Some(0x15)),
        (exec, P | U, None),
        (read, P | U | ABOVE, Some(0xD)),
        (write, P | U | ABOVE, Some(0xF)),
        (exec, P | U | ABOVE, Some(0x1D)),
    ];
    for (i, (code, bits, expected)) in cases.into_iter().enumerate() {
        for wp in [0, CR0_WP] {
            let mut guest = Guest::long(code);
            guest.ring3();
            guest.state.cr0 = guest.state.cr0 & !CR0_WP | wp;
            let page = DATA + 0x2000;
            guest.ram.write(page, &[0x0F, 0x0B]).unwrap();
            guest.put(TABLE + 8 * (page / 4096), page | bits);
            guest.state.gpr[7] = page;
            let after = guest.run(&NoIo::default());
            let (vector, error, _) = guest.exception(&after);
            let found = (vector == 14).then_some(error);
            assert_eq!(found, expected, "case {i}");
            assert_eq!(after.cr2, if expected.is_some() { page } else { 0 });
        }
    }
}

#[test]
fn rights_of_all_levels_are_combined() {
    let levels = [PML4 + 8, SPARE, SPARE + 0x1000, SPARE + 0x2000];
    // mov rax, [rdi]; mov [rdi], rax; jmp rdi, which leads to ud2
    let (read, write, exec): (&[u8], &[u8], &[u8]) =
        (&[0x48, 0x8B, 0x07], &[0x48, 0x89, 0x07], &[0xFF, 0xE7]);
    for at in levels {
        for (flip, code, expected) in
            [(W, write, 7), (U, read, 5), (U, exec, 0x15), (NX, exec, 0x15), (P, write, 6)]
        {
            let mut guest = Guest::long(code);
            guest.ring3();
            for (level, next) in
                levels.into_iter().zip([SPARE, SPARE + 0x1000, SPARE + 0x2000, DATA])
            {
                guest.put(level, next | 7);
            }
            guest.put(at, guest.get(at) ^ flip);
            guest.state.gpr[7] = 1 << 39;
            let after = guest.run(&NoIo::default());
            let (vector, error, _) = guest.exception(&after);
            assert_eq!((vector, error), (14, expected), "{at:x} {flip:x}");
        }
    }
}

/// 32-bit paging: the first 4 MiB are mapped 1:1 by pages of 4 KiB.
fn legacy(code: &[u8], cr4: u64) -> Guest {
    let mut guest = Guest::protected(code);
    for page in 0..1024 {
        guest.put32(SPARE + 0x1000 + 4 * page, (page << 12 | P | W | U) as u32);
    }
    guest.put32(SPARE, (SPARE + 0x1000) as u32 | 7);
    (guest.state.cr0, guest.state.cr3, guest.state.cr4) = (0x8001_0033, SPARE, cr4);
    guest.state.efer = 1 << 11;
    guest
}

/// Vector and error code that a 32-bit guest has ended in.
fn ended32(guest: &Guest, after: &VcpuState) -> Option<(u64, u32)> {
    guest.in_handler(after).then(|| {
        let (vector, error, _) = guest.frame32(after);
        (vector, error)
    })
}

/// Notes where memory that is not there is read.
#[derive(Default)]
struct Outside(RefCell<Vec<u64>>);

impl CpuIo for Outside {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.0.borrow_mut().push(address);
        data.fill(0x5A);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn intr(&self) -> bool {
        false
    }
    fn intr_ack(&self) -> u8 {
        0
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        false
    }
}

#[test]
fn pages_of_4_mib() {
    let mut guest = legacy(&READ32, PSE);
    guest.put32(SPARE + 4, (PS | P | W) as u32);
    guest.put32(DATA, 55);
    guest.state.gpr[7] = 0x40_0000 + DATA;
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 55);
    assert_eq!(u64::from(guest.get32(SPARE + 4)) & (A | D), A);
    // Without CR4.PSE the bit means nothing: the entry leads to a table, at 0 here.
    guest.state.cr4 = 0;
    guest.put32(4 * (DATA / 4096), (DATA + 0x1000) as u32 | 3);
    guest.put32(DATA + 0x1000, 66);
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 66);
}

#[test]
fn pse_36_reaches_above_4_gib() {
    let mut guest = legacy(&READ32, PSE);
    // Address bits 32 to 39 lie in bits 13 to 20.
    guest.put32(SPARE + 4, (0x00C0_0000 | 0xA5 << 13 | PS | P | W) as u32);
    guest.state.gpr[7] = 0x40_0000 + DATA;
    let io = Outside::default();
    assert_eq!(guest.run(&io).gpr[0], 0x5A5A_5A5A);
    assert_eq!(*io.0.borrow(), [0xA5_00C0_0000 + DATA]);
    // Bit 21 is reserved.
    guest.put32(SPARE + 4, (1 << 21 | PS | P | W) as u32);
    let after = guest.run(&NoIo::default());
    assert_eq!((ended32(&guest, &after), after.cr2), (Some((14, 9)), 0x40_0000 + DATA));
    // With 36 address bits, or without the feature, so are more.
    for (bits, pse36, bit) in [(36, true, 17), (40, false, 13)] {
        let leaf = guest.state.cpuid.get_mut(0x8000_0008, 0).unwrap();
        leaf.eax = leaf.eax & !0xFF | bits;
        let leaf = guest.state.cpuid.get_mut(1, 0).unwrap();
        leaf.edx = leaf.edx & !(1 << 17) | u32::from(pse36) << 17;
        guest.put32(SPARE + 4, (1 << bit | PS | P | W) as u32);
        let after = guest.run(&NoIo::default());
        assert_eq!(ended32(&guest, &after), Some((14, 9)));
    }
}

#[test]
fn fetches_show_in_32_bit_error_codes_only_with_smep() {
    // jmp edi
    let mut guest = legacy(&[0xFF, 0xE7], 0);
    guest.state.gpr[7] = 0x40_0000;
    let after = guest.run(&NoIo::default());
    assert_eq!(ended32(&guest, &after), Some((14, 0)));
    let mut guest = legacy(&[0xFF, 0xE7], SMEP);
    for page in 0..1024 {
        guest.put32(SPARE + 0x1000 + 4 * page, (page << 12 | P | W) as u32);
    }
    guest.state.gpr[7] = 0x40_0000;
    let after = guest.run(&NoIo::default());
    assert_eq!(ended32(&guest, &after), Some((14, 0x10)));
}

/// PAE paging, the first GiB of which is 1:1 for 2 MiB; the PDPTEs are at [`PDPTES`].
fn pae(code: &[u8]) -> Guest {
    let mut guest = Guest::protected(code);
    guest.put(PDPTES, PD | P);
    guest.put(PD, TABLE | 7);
    (guest.state.cr0, guest.state.cr3, guest.state.cr4) = (0x8001_0033, PDPTES, PAE);
    guest.state.efer = 1 << 11;
    guest.state.pdptr = [PD | P, 0, 0, 0];
    guest
}

const PDPTES: u64 = 0x6020;

#[test]
fn page_directory_pointers_are_those_of_the_last_load() {
    // mov [esi], edx; invlpg [edi]; mov eax, [edi]; mov cr3, ecx; mov ebx, [edi]; hlt
    let mut guest =
        pae(&[0x89, 0x16, 0x0F, 0x01, 0x3F, 0x8B, 0x07, 0x0F, 0x22, 0xD9, 0x8B, 0x1F, 0xF4]);
    // The second GiB: page 0 is DATA by one directory and the page after by another.
    for (directory, page) in [(0x7000, DATA), (0x9000, DATA + 0x1000)] {
        guest.put(directory, (directory + 0x1000) | 7);
        guest.put(directory + 0x1000, page | 7);
    }
    guest.put(PDPTES + 8, 0x7000 | P);
    guest.state.pdptr[1] = 0x7000 | P;
    guest.put32(DATA, 1);
    guest.put32(DATA + 0x1000, 2);
    let s = &mut guest.state;
    (s.gpr[6], s.gpr[2]) = (PDPTES + 8, 0x9000 | P);
    (s.gpr[7], s.gpr[1]) = (GIB, PDPTES);
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[0], after.gpr[3]), (1, 2));
    assert_eq!(after.pdptr[1], 0x9000 | P);
}

#[test]
fn reserved_bits_of_page_directory_pointers() {
    // mov cr3, ecx; mov cr4, ecx; mov cr0, ecx
    let (cr3, cr4, cr0) = ([0x0F, 0x22, 0xD9], [0x0F, 0x22, 0xE1], [0x0F, 0x22, 0xC1]);
    // Which write, its value, and whether it loads them.
    let cases = [
        (cr3, PDPTES, true),
        (cr4, PAE | PGE, true),
        (cr4, PAE | PSE, true),
        (cr4, PAE | SMEP, true),
        (cr4, PAE | 8, false),
        (cr0, 0x8001_0033 | CR0_CD, true),
        (cr0, 0x8000_0033, false),
    ];
    for (code, value, loads) in cases {
        for bit in [1, 2, 5, 6, 7, 8, 40, 63] {
            let mut guest = pae(&[&code[..], &[0xF4]].concat());
            // Supervisor pages, for SMEP.
            for page in 0..512 {
                guest.put(TABLE + 8 * page, page << 12 | P | W);
            }
            guest.put(PDPTES + 24, P | 1 << bit);
            guest.state.gpr[1] = value;
            let after = guest.run(&NoIo::default());
            assert_eq!(ended32(&guest, &after), loads.then_some((13, 0)), "{value:x} bit {bit}");
            if loads {
                assert_eq!((after.cr4, after.cr0), (guest.state.cr4, guest.state.cr0));
            }
        }
        // Allowed bits, and any where it is not present.
        for entry in [P | 0x18 | 0xE00, !P] {
            let mut guest = pae(&[&code[..], &[0xF4]].concat());
            for page in 0..512 {
                guest.put(TABLE + 8 * page, page << 12 | P | W);
            }
            guest.put(PDPTES + 24, entry);
            guest.state.gpr[1] = value;
            let after = guest.run(&NoIo::default());
            assert_eq!(ended32(&guest, &after), None);
            assert_eq!(after.pdptr[3], if loads { entry } else { 0 });
        }
    }
}

#[test]
fn pae_is_turned_on_with_its_pointers() {
    // mov cr0, ecx
    let mut guest = pae(&[0x0F, 0x22, 0xC1, 0xF4]);
    guest.state.cr0 = 0x33;
    guest.state.pdptr = [0; 4];
    guest.state.gpr[1] = 0x8001_0033;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, after.pdptr[0]), (CODE + 4, PD | P));
    guest.put(PDPTES + 16, P | 2);
    let after = guest.run(&NoIo::default());
    assert_eq!((ended32(&guest, &after), after.cr0), (Some((13, 0)), 0x33));
}

#[test]
fn pae_pages_of_2_mib_and_reserved_bits() {
    for (entry, nxe, expected) in [
        (PS | P | W, true, None),
        (PS | P | W | 1 << 13, true, Some((14, 9))),
        (PS | P | W | 1 << 45, true, Some((14, 9))),
        (PS | P | W | 1 << 52, true, Some((14, 9))),
        (PS | P | W | 1 << 62, true, Some((14, 9))),
        (PS | P | W | NX, true, None),
        (PS | P | W | NX, false, Some((14, 9))),
        (PS | W, true, Some((14, 0))),
    ] {
        let mut guest = pae(&READ32);
        guest.put(PD + 8, entry);
        guest.put32(DATA, 99);
        guest.state.gpr[7] = 0x20_0000 + DATA;
        if !nxe {
            guest.state.efer = 0;
        }
        let after = guest.run(&NoIo::default());
        assert_eq!(ended32(&guest, &after), expected, "{entry:x}");
        assert_eq!(after.gpr[0], if expected.is_none() { 99 } else { 0 });
    }
    // No page-directory pointer: nothing is there.
    let mut guest = pae(&READ32);
    guest.state.gpr[7] = 3 * GIB;
    let after = guest.run(&NoIo::default());
    assert_eq!(ended32(&guest, &after), Some((14, 0)));
}

#[test]
fn control_register_writes_that_are_refused_in_64_bit_mode() {
    // mov cr0, rax; mov cr3, rax; mov cr4, rax
    let (cr0, cr3, cr4) = ([0x0F, 0x22, 0xC0], [0x0F, 0x22, 0xD8], [0x0F, 0x22, 0xE0]);
    let cases = [
        (cr0, 0x8005_0033, true),
        (cr0, 0x0005_0033, false),
        (cr0, 0x8005_0032, false),
        (cr0, 0xA005_0033, false),
        (cr0, 0x1_8005_0033, false),
        (cr3, 0x1018, true),
        (cr3, 0x1000 | ABOVE, false),
        // Bit 63 has a meaning with PCIDs only.
        (cr3, 0x1000 | NX, false),
        (cr4, 0x600, false),
        (cr4, 0x620, true),
        (cr4, 0x620 | 1 << 12, false),
        (cr4, 0x620 | 1 << 15, false),
        (cr4, 0x620 | 1 << 32, false),
        (cr4, 0x620 | PCIDE, true),
    ];
    for (code, value, allowed) in cases {
        let mut guest = Guest::long(&[&code[..], &[0xF4]].concat());
        guest.state.gpr[0] = value;
        let after = guest.run(&NoIo::default());
        if allowed {
            assert_eq!(after.rip, CODE + 4, "{value:x}");
        } else {
            assert_eq!(guest.exception(&after), (13, 0, CODE), "{value:x}");
            assert_eq!((after.cr0, after.cr3), (guest.state.cr0, guest.state.cr3));
            assert_eq!(after.cr4, guest.state.cr4);
        }
    }
    // PCIDs begin with that of 0, and CR0.PG cannot end while there are any.
    let mut guest = Guest::long(&[&cr4[..], &[0xF4]].concat());
    guest.state.cr3 |= 1;
    guest.state.gpr[0] = 0x620 | PCIDE;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 0, CODE));
}

#[test]
fn smap_spares_user_pages_where_ac_is_set() {
    // stac; mov rax, [rdi]; clac; mov rbx, [rdi]
    let mut guest =
        Guest::long(&[0x0F, 1, 0xCB, 0x48, 0x8B, 0x07, 0x0F, 1, 0xCA, 0x48, 0x8B, 0x1F]);
    for page in 0..512 {
        guest.put(TABLE + 8 * page, page << 12 | P | W);
    }
    guest.put(TABLE + 8 * (DATA / 4096), DATA | P | W | U);
    guest.put(DATA, 5);
    guest.state.cr4 |= SMAP;
    guest.state.gpr[7] = DATA;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 1, CODE + 9));
    assert_eq!((after.gpr[0], after.gpr[3]), (5, 0));
    // Accesses of the processor itself have no such licence: mov ds, ax by an LDT in that page.
    let mut guest = guest;
    guest.ram.write(CODE, &[0x8E, 0xD8, 0xF4]).unwrap();
    guest.put(DATA, 0x00CF_9300_0000_FFFF);
    guest.state.segments.ldt = segment(0x40, 0x82);
    (guest.state.segments.ldt.base, guest.state.segments.ldt.limit) = (DATA, 7);
    guest.state.gpr[0] = 4;
    guest.state.rflags |= 1 << 18;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 1, CODE));
    guest.state.cr4 &= !SMAP;
    assert_eq!(guest.run(&NoIo::default()).rip, CODE + 3);
}

#[test]
fn umip_hides_tables_from_user_code() {
    // sgdt, sidt, sldt, str, smsw to [rdi]; smsw eax
    let codes: [&[u8]; 6] = [
        &[0x0F, 0x01, 0x07],
        &[0x0F, 0x01, 0x0F],
        &[0x0F, 0x00, 0x07],
        &[0x0F, 0x00, 0x0F],
        &[0x0F, 0x01, 0x27],
        &[0x0F, 0x01, 0xE0],
    ];
    for code in codes {
        let mut guest = Guest::long(&[code, &[0x0F, 0x0B]].concat());
        guest.ring3();
        guest.state.gpr[7] = DATA;
        let after = guest.run(&NoIo::default());
        assert_eq!(guest.exception(&after), (6, 0, CODE + 3), "{code:x?}");
        guest.state.cr4 |= 1 << 11;
        let after = guest.run(&NoIo::default());
        assert_eq!(guest.exception(&after), (13, 0, CODE), "{code:x?}");
        let kernel = Guest::long(&[]).state.segments;
        (guest.state.segments.cs, guest.state.segments.ss) = (kernel.cs, kernel.ss);
        let after = guest.run(&NoIo::default());
        assert_eq!(guest.exception(&after), (6, 0, CODE + 3), "{code:x?}");
    }
}

/// A guest with PCIDs and a second set of tables at [`SPARE`], in which [`DATA`] is the page after.
/// The first words of these pages are 1 and 2.
fn spaces(code: &[u8]) -> Guest {
    let mut guest = Guest::long(code);
    guest.put(SPARE, (SPARE + 0x1000) | 7);
    guest.put(SPARE + 0x1000, (SPARE + 0x2000) | 7);
    guest.put(SPARE + 0x2000, (SPARE + 0x3000) | 7);
    for page in 0..512 {
        guest.put(SPARE + 0x3000 + 8 * page, page << 12 | 7);
    }
    guest.put(SPARE + 0x3000 + 8 * (DATA / 4096), (DATA + 0x1000) | 7);
    guest.put(DATA, 1);
    guest.put(DATA + 0x1000, 2);
    guest.state.cr4 |= PCIDE;
    guest.state.gpr[7] = DATA;
    guest
}

#[test]
fn pcids_keep_address_spaces_apart() {
    // mov rax, [rdi]; mov cr3, rcx; mov rbx, [rdi]; mov cr3, rdx; mov rbp, [rdi]; hlt
    let code = [
        0x48, 0x8B, 0x07, 0x0F, 0x22, 0xD9, 0x48, 0x8B, 0x1F, 0x0F, 0x22, 0xDA, 0x48, 0x8B, 0x2F,
        0xF4,
    ];
    for keep in [0, NX] {
        // The PCID in use may be any when the guest's state is restored.
        for (first, second) in [(0, 1), (1, 0), (3, 4), (4, 3), (7, 0)] {
            let mut guest = spaces(&code);
            for _ in 0..2 {
                guest.state.cr3 = PML4 | first;
                guest.state.gpr[1] = SPARE | second | keep;
                guest.state.gpr[2] = PML4 | first | keep;
                let after = guest.run(&NoIo::default());
                let seen = (after.gpr[0], after.gpr[3], after.gpr[5]);
                assert_eq!(seen, (1, 2, 1), "{first} {second}");
                assert_eq!(after.cr3, PML4 | first, "bit 63 is not stored");
                // The other way round, in the same CPU.
                guest.state.cr3 = SPARE | second;
                guest.state.gpr[1] = PML4 | first | keep;
                guest.state.gpr[2] = SPARE | second | keep;
                let after = guest.run(&NoIo::default());
                let seen = (after.gpr[0], after.gpr[3], after.gpr[5]);
                assert_eq!(seen, (2, 1, 2), "{second} {first}");
            }
        }
    }
}

#[test]
fn a_write_of_cr3_without_bit_63_forgets_its_pcid() {
    // mov rax, [rdi]; mov cr3, rcx (another); mov [rsi], rbp (the entry of the first);
    // mov cr3, rdx (back); mov rbx, [rdi]; hlt
    let mut guest = spaces(&[
        0x48, 0x8B, 0x07, 0x0F, 0x22, 0xD9, 0x48, 0x89, 0x2E, 0x0F, 0x22, 0xDA, 0x48, 0x8B, 0x1F,
        0xF4,
    ]);
    let s = &mut guest.state;
    s.cr3 = PML4 | 3;
    (s.gpr[1], s.gpr[2]) = (SPARE | 4 | NX, PML4 | 3);
    (s.gpr[6], s.gpr[5]) = (TABLE + 8 * (DATA / 4096), (DATA + 0x1000) | 7);
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[0], after.gpr[3]), (1, 2));
}

#[test]
fn invpcid_forgets_what_it_names() {
    // mov rax, [rdi]; mov [rsi], rbp; invpcid rcx, [r8]; mov rbx, [rdi]; hlt
    let code = [
        0x48, 0x8B, 0x07, 0x48, 0x89, 0x2E, 0x66, 0x41, 0x0F, 0x38, 0x82, 0x08, 0x48, 0x8B, 0x1F,
        0xF4,
    ];
    let run = |kind: u64, pcid: u64, address: u64, pcide: bool| {
        let mut guest = spaces(&code);
        guest.put(DATA + 0x2000, pcid);
        guest.put(DATA + 0x2008, address);
        let s = &mut guest.state;
        if pcide {
            s.cr3 |= 3;
        } else {
            s.cr4 &= !PCIDE;
        }
        (s.gpr[1], s.gpr[8]) = (kind, DATA + 0x2000);
        (s.gpr[6], s.gpr[5]) = (TABLE + 8 * (DATA / 4096), (DATA + 0x1000) | 7);
        let after = guest.run(&NoIo::default());
        if guest.in_handler(&after) {
            assert_eq!(guest.exception(&after), (13, 0, CODE + 6));
            None
        } else {
            Some(after.gpr[3])
        }
    };
    assert_eq!(run(0, 3, DATA, true), Some(2));
    assert_eq!(run(1, 3, 0, true), Some(2));
    assert_eq!(run(2, 0, 0, true), Some(2));
    assert_eq!(run(3, 0, 0, true), Some(2));
    assert_eq!(run(0, 0, DATA, false), Some(2));
    assert_eq!(run(1, 0, 0, false), Some(2));
    // What is wrong: the type, reserved bits, the address of type 0, a PCID where there are none.
    assert_eq!(run(4, 0, 0, true), None);
    assert_eq!(run(u64::MAX, 0, 0, true), None);
    for kind in 0..4 {
        assert_eq!(run(kind, 1 << 12, 0, true), None, "type {kind}");
    }
    assert_eq!(run(0, 3, 1 << 47, true), None);
    assert_eq!(run(1, 3, 1 << 47, true), Some(2));
    assert_eq!(run(0, 3, DATA, false), None);
    assert_eq!(run(1, 3, 0, false), None);
    assert_eq!(run(2, 3, 0, false), Some(2));
}

#[test]
fn invpcid_reaches_another_pcid() {
    // mov rax, [rdi]; mov cr3, rcx; mov [rsi], rbp; invpcid r9, [r8]; mov cr3, rdx; mov rbx, [rdi]; hlt
    let code = [
        0x48, 0x8B, 0x07, 0x0F, 0x22, 0xD9, 0x48, 0x89, 0x2E, 0x66, 0x45, 0x0F, 0x38, 0x82, 0x08,
        0x0F, 0x22, 0xDA, 0x48, 0x8B, 0x1F, 0xF4,
    ];
    for kind in 0..4 {
        let mut guest = spaces(&code);
        guest.put(DATA + 0x2000, if kind < 2 { 3 } else { 0 });
        guest.put(DATA + 0x2008, if kind == 0 { DATA } else { 0 });
        let s = &mut guest.state;
        s.cr3 = PML4 | 3;
        (s.gpr[1], s.gpr[2]) = (SPARE | 4 | NX, PML4 | 3 | NX);
        (s.gpr[9], s.gpr[8]) = (kind, DATA + 0x2000);
        (s.gpr[6], s.gpr[5]) = (TABLE + 8 * (DATA / 4096), (DATA + 0x1000) | 7);
        let after = guest.run(&NoIo::default());
        assert_eq!((after.gpr[0], after.gpr[3]), (1, 2), "type {kind}");
    }
}

#[test]
fn global_pages_end_with_pge_and_invlpg() {
    const HIGH: u64 = 0xFFFF_FF80_0000_0000;
    // mov rax, [rdi]; mov [rsi], rbp; (invalidate); mov rbx, [rdi]; hlt
    let invalidate: [&[u8]; 3] = [
        // invlpg [rdi]
        &[0x0F, 0x01, 0x3F],
        // mov cr4, rcx; mov cr4, rdx
        &[0x0F, 0x22, 0xE1, 0x0F, 0x22, 0xE2],
        // mov cr4, rcx, which lacks PGE
        &[0x0F, 0x22, 0xE1],
    ];
    for middle in invalidate {
        let code =
            [&[0x48, 0x8B, 0x07, 0x48, 0x89, 0x2E], middle, &[0x48, 0x8B, 0x1F, 0xF4]].concat();
        let mut guest = spaces(&code);
        guest.put(PML4 + 8 * 511, PDPT | 7);
        let entry = TABLE + 8 * (DATA / 4096);
        guest.put(entry, DATA | 7 | G);
        let s = &mut guest.state;
        s.cr4 = 0x620 | PGE;
        (s.gpr[1], s.gpr[2]) = (0x620, 0x620 | PGE);
        (s.gpr[7], s.gpr[6], s.gpr[5]) = (HIGH + DATA, entry, (DATA + 0x1000) | 7 | G);
        let after = guest.run(&NoIo::default());
        assert_eq!((after.gpr[0], after.gpr[3]), (1, 2), "{middle:x?}");
    }
    // What is not global does not outlive CR3: mov cr3, r9
    let code = [0x48, 0x8B, 0x07, 0x48, 0x89, 0x2E, 0x41, 0x0F, 0x22, 0xD9, 0x48, 0x8B, 0x1F, 0xF4];
    let mut guest = spaces(&code);
    guest.put(PML4 + 8 * 511, PDPT | 7);
    let s = &mut guest.state;
    s.cr4 = 0x620 | PGE;
    (s.gpr[7], s.gpr[9]) = (HIGH + DATA, PML4);
    (s.gpr[6], s.gpr[5]) = (TABLE + 8 * (DATA / 4096), (DATA + 0x1000) | 7);
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[0], after.gpr[3]), (1, 2));
}

#[test]
fn invlpg_in_32_bit_code_wraps_at_4_gib() {
    // mov eax, [edi]; mov es:[esi], edx; invlpg [ecx]; mov ebx, [edi]; hlt, where the base of DS
    // and EDI make DATA beyond 4 GiB.
    let mut guest = legacy(&[0x8B, 0x07, 0x26, 0x89, 0x16, 0x0F, 0x01, 0x39, 0x8B, 0x1F, 0xF4], 0);
    guest.put32(DATA, 1);
    guest.put32(DATA + 0x1000, 2);
    let s = &mut guest.state;
    s.segments.ds.base = 0xFFFF_0000;
    (s.gpr[7], s.gpr[1]) = (DATA + 0x1_0000, DATA + 0x1_0000);
    (s.gpr[6], s.gpr[2]) = (SPARE + 0x1000 + 4 * (DATA / 4096), (DATA + 0x1000) | 7);
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[0], after.gpr[3]), (1, 2));
}

#[test]
fn int_reads_its_tables_as_the_supervisor() {
    // int 0x20 in ring 3: the IDT, GDT and TSS are in supervisor pages.
    let mut guest = Guest::long(&[0xCD, 0x20]);
    guest.ring3();
    for page in [IDT / 4096, STACK / 4096 - 1] {
        guest.put(TABLE + 8 * page, page << 12 | P | W);
    }
    let handler = HANDLERS + 0x100;
    guest.ram.write(handler, &[0xF4]).unwrap();
    guest.put(IDT + 0x200, handler & 0xFFFF | 8 << 16 | 0xEE << 40 | (handler >> 16) << 48);
    guest.put(IDT + 0x208, 0);
    guest.state.idt.limit = 0x20F;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, guest.get(after.gpr[4])), (handler + 1, CODE + 2));
    // A push beyond what is mapped: the fault is a supervisor's write, in the delivery of the INT.
    guest.put(TABLE + 8 * (DATA / 4096 + 4), 0);
    guest.put(0x3_7000 + 4, DATA + 0x5000);
    guest.put(0x3_7000 + 36, STACK);
    guest.put(IDT + 16 * 14, guest.get(IDT + 16 * 14) | 1 << 32);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 2, CODE));
    assert_eq!(after.cr2, DATA + 0x4FF8);
}
