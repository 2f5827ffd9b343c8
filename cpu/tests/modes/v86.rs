//! Virtual-8086 mode (SDM vol. 3, 21.2 and 21.3).

use board::vcpu::{Segment, VcpuState};

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, Guest, HANDLERS, IDT, STACK, TSS, gate};

const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const IOPL: u64 = 3 << 12;
const VM: u64 = 1 << 17;
const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;
const VME: u64 = 1;
/// Where programs begin, as selector and linear address; their stack is the same segment's.
const CS: u16 = (CODE >> 4) as u16;
const SP: u64 = 0x8000;
/// Where a redirected interrupt goes.
const HANDLER: u64 = 0x900;
const GP: (u64, u32) = (13, 0);

fn real(selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, limit: 0xFFFF, attributes: 0xF3 }
}

/// A program in virtual-8086 mode with `flags` beside VM. The TSS has an I/O bitmap that allows
/// port 0x80 alone, and in front of it a redirection bitmap that redirects INT 0x20 alone. HLT,
/// which faults, ends it.
fn program(code: &[u8], flags: u64) -> Guest {
    let mut guest = Guest::protected(&[code, &[0xF4]].concat());
    let map = 0x68 + 32;
    guest.ram.write(TSS + 102, &u16::to_le_bytes(map)).unwrap();
    guest.ram.write(TSS + 0x68, &[0xFF; 32 + 33]).unwrap();
    guest.ram.write(TSS + 0x68 + 4, &[0xFE]).unwrap();
    guest.ram.write(TSS + u64::from(map) + 16, &[0xFE, 0xFF]).unwrap();
    // INT 3, 4, 0x20 and 0x21 may be called from ring 3.
    for vector in [3, 4, 0x20, 0x21] {
        guest.put(IDT + 8 * vector, gate(HANDLERS + 16 * vector, 8, 0xEE));
        guest.ram.write(HANDLERS + 16 * vector, &[0xF4]).unwrap();
    }
    guest.put32(4 * 0x20, (HANDLER as u32) | u32::from(CS) << 16);
    guest.ram.write(CODE + HANDLER, &[0xF4]).unwrap();
    let s = &mut guest.state;
    s.segments.tr.limit = 0x68 + 32 + 32;
    s.idt.limit = 0x22 * 8 - 1;
    s.rflags = 2 | VM | flags;
    s.segments.cs = real(CS);
    s.segments.ss = real(CS);
    s.segments.ds = real((DATA >> 4) as u16);
    s.segments.es = real(0x2222);
    s.segments.fs = real(0x3333);
    s.segments.gs = real(0x4444);
    s.rip = 0;
    s.gpr[4] = SP;
    guest
}

/// Vector and error code that the program ended in, with the frame; INT's are counted too.
fn end(guest: &Guest, after: &VcpuState) -> ((u64, u32), [u32; 9]) {
    let vector = (after.rip - 1 - HANDLERS) / 16;
    if vector >= 32 {
        return ((vector, 0), std::array::from_fn(|i| guest.get32(after.gpr[4] + 4 * i as u64)));
    }
    let (vector, error, frame) = guest.frame32(after);
    ((vector, error), frame)
}

/// Runs `code`: what ended it, at which IP, with which EFLAGS.
fn run(code: &[u8], flags: u64, cr4: u64) -> ((u64, u32), u32, u64) {
    let mut guest = program(code, flags);
    guest.state.cr4 = cr4;
    let after = guest.run(&NoIo::default());
    let (what, frame) = end(&guest, &after);
    (what, frame[0], u64::from(frame[2]))
}

#[test]
fn instructions_that_iopl_guards() {
    // cli; sti; pushf; popf; int 0x21; int 3 in two bytes; iret
    let codes: [&[u8]; 7] =
        [&[0xFA], &[0xFB], &[0x9C], &[0x9D], &[0xCD, 0x21], &[0xCD, 3], &[0xCF]];
    for code in codes {
        for iopl in 0..3 {
            assert_eq!(run(code, iopl << 12, 0).0, GP, "{code:x?}");
            assert_eq!(run(code, iopl << 12, 0).1, 0);
        }
    }
    // At 3 they work as in real mode.
    let end_of = |code: &[u8], flags: u64| {
        let (what, ip, flags) = run(code, flags | IOPL, 0);
        assert_eq!((what, ip), (GP, code.len() as u32), "it got to the HLT");
        flags & (IF | IOPL | VM)
    };
    assert_eq!(end_of(&[0xFA], IF), IOPL | VM);
    assert_eq!(end_of(&[0xFB], 0), IF | IOPL | VM);
    // push 0x200; popf: IOPL stays
    assert_eq!(end_of(&[0x68, 0, 2, 0x9D], 0), IF | IOPL | VM);
    let (what, ip, flags) = run(&[0xCD, 0x21], IOPL | IF, 0);
    assert_eq!((what, ip), ((0x21, 0), 2));
    assert_eq!(flags & (IF | VM | IOPL), IF | VM | IOPL);
}

#[test]
fn breakpoints_and_into_are_not_guarded() {
    for cr4 in [0, VME] {
        assert_eq!(run(&[0xCC], 0, cr4).0, (3, 0));
        assert_eq!(run(&[0xCE], 1 << 11, cr4).0, (4, 0));
        let (what, ip, _) = run(&[0xF1], 0, cr4);
        assert_eq!((what, ip), ((1, 0), 1));
    }
}

#[test]
fn instructions_of_ring_0_and_of_protected_mode() {
    // lgdt [0]; mov eax, cr0; lmsw ax; clts; invlpg [0]; rdmsr; wbinvd
    let privileged: [&[u8]; 7] = [
        &[0x0F, 0x01, 0x16, 0, 0],
        &[0x0F, 0x20, 0xC0],
        &[0x0F, 0x01, 0xF0],
        &[0x0F, 0x06],
        &[0x0F, 0x01, 0x3E, 0, 0],
        &[0x0F, 0x32],
        &[0x0F, 0x09],
    ];
    for code in privileged {
        assert_eq!(run(code, IOPL, 0).0, GP, "{code:x?}");
        assert_eq!(run(code, IOPL, 0).1, 0);
    }
    // sldt ax; str ax; lldt ax; ltr ax; verr ax; lar ax, ax; lsl ax, ax; arpl ax, ax
    let unknown: [&[u8]; 8] = [
        &[0x0F, 0x00, 0xC0],
        &[0x0F, 0x00, 0xC8],
        &[0x0F, 0x00, 0xD0],
        &[0x0F, 0x00, 0xD8],
        &[0x0F, 0x00, 0xE0],
        &[0x0F, 0x02, 0xC0],
        &[0x0F, 0x03, 0xC0],
        &[0x63, 0xC0],
    ];
    for code in unknown {
        assert_eq!(run(code, IOPL, 0).0, (6, 0), "{code:x?}");
    }
    // smsw ax is for everybody, but for UMIP.
    assert_eq!(run(&[0x0F, 0x01, 0xE0], 0, 0).1, 3);
    assert_eq!(run(&[0x0F, 0x01, 0xE0], 0, 1 << 11).1, 0);
}

#[test]
fn ports_go_by_the_bitmap_whatever_the_iopl() {
    // in al, 0x80; in ax, 0x80; in al, 0x81; in al, dx with DX = 0x108, beyond the bitmap
    for iopl in [0, IOPL] {
        assert_eq!(run(&[0xE4, 0x80], iopl, 0).1, 2);
        assert_eq!(run(&[0xE5, 0x80], iopl, 0).1, 0, "the port after is not allowed");
        assert_eq!(run(&[0xE4, 0x81], iopl, 0).1, 0);
        assert_eq!(run(&[0xBA, 0x08, 0x01, 0xEC], iopl, 0).1, 3);
    }
}

#[test]
fn an_interrupt_saves_the_segments_and_clears_them() {
    let mut guest = program(&[0xCD, 0x21], IOPL | IF);
    let after = guest.run(&NoIo::default());
    let (what, frame) = end(&guest, &after);
    assert_eq!(what, (0x21, 0));
    assert_eq!(after.gpr[4], STACK - 36);
    let flags = (2 | VM | IOPL | IF) as u32;
    let data = (DATA >> 4) as u32;
    assert_eq!(frame, [2, CS.into(), flags, SP as u32, CS.into(), 0x2222, data, 0x3333, 0x4444]);
    assert_eq!(after.rflags & (VM | IF | TF), 0);
    let s = &after.segments;
    for segment in [s.ds, s.es, s.fs, s.gs] {
        assert_eq!((segment.selector, segment.unusable()), (0, true));
    }
    assert_eq!((s.cs.selector, s.ss.selector), (8, 0x10));
    // A handler must be of ring 0: the code segment of ring 3 is refused.
    guest.put(IDT + 8 * 0x21, gate(HANDLERS, 0x18, 0xEE));
    let after = guest.run(&NoIo::default());
    assert_eq!(end(&guest, &after).0, (13, 0x18));
}

#[test]
fn iret_of_ring_0_enters_virtual_8086_mode() {
    // iretd
    let mut guest = Guest::protected(&[0xCF]);
    let flags = 2 | VM | IOPL | 1 << 6;
    let words = [5, 0x2000, flags as u32, 0x1234, 0x3000, 0x111, 0x222, 0x333, 0x444];
    guest.state.gpr[4] = STACK - 36;
    for (at, word) in (STACK - 36..).step_by(4).zip(words) {
        guest.put32(at, word);
    }
    // hlt, which faults there
    guest.ram.write(0x2_0005, &[0xF4]).unwrap();
    let after = guest.run(&NoIo::default());
    let (vector, error, frame) = guest.frame32(&after);
    assert_eq!((vector, error), GP);
    // The fault shows RF.
    assert_eq!(frame[2], flags as u32 | 1 << 16);
    assert_eq!([&frame[..2], &frame[3..]].concat(), [&words[..2], &words[3..]].concat());
    // Ring 3 cannot.
    let s = &mut guest.state;
    (s.segments.cs.selector, s.segments.cs.attributes) = (0x1B, 0xC0FB);
    (s.segments.ss.selector, s.segments.ss.attributes) = (0x23, 0xC0F3);
    guest.put32(STACK - 32, 0x1B);
    guest.put32(STACK - 36, DATA as u32);
    guest.ram.write(DATA, &[0x0F, 0x0B]).unwrap();
    guest.state.gpr[4] = STACK - 36;
    guest.put32(TSS + 4, STACK as u32 - 0x100);
    let after = guest.run(&NoIo::default());
    let (vector, _, frame) = guest.frame32(&after);
    assert_eq!((vector, frame[0], u64::from(frame[2]) & VM), (6, DATA as u32, 0));
}

#[test]
fn iret_in_virtual_8086_mode_at_iopl_3() {
    // push 0x3200 (flags); push CS; push 0x10; iret
    let [low, high] = CS.to_le_bytes();
    let mut code = vec![0x68, 0x00, 0x02, 0x68, low, high, 0x6A, 0x10, 0xCF];
    code.resize(0x10, 0x90);
    let (what, ip, flags) = run(&code, IOPL, 0);
    assert_eq!((what, ip), (GP, 0x10));
    assert_eq!(flags & (VM | IOPL | IF), VM | IOPL | IF, "IOPL stays");
}

#[test]
fn vme_redirects_interrupts_to_the_programs_table() {
    // Flags before, what is pushed as FLAGS, EFLAGS in the handler.
    for (flags, pushed, inside) in [
        (IOPL | IF, IOPL | IF | 2, IOPL),
        (IOPL | IF | VIF, IOPL | IF | 2, IOPL | VIF),
        (VIF, IOPL | IF | 2, 0),
        (IF, IOPL | 2, IF),
        (IF | VIF | VIP, IOPL | IF | 2, IF | VIP),
    ] {
        let mut guest = program(&[0xCD, 0x20], flags);
        guest.state.cr4 = VME;
        let after = guest.run(&NoIo::default());
        let (what, frame) = end(&guest, &after);
        assert_eq!((what, frame[0]), (GP, HANDLER as u32), "{flags:x}");
        assert_eq!(u64::from(frame[2]) & (IF | IOPL | VIF | VIP | VM), inside | VM, "{flags:x}");
        assert_eq!(frame[3], SP as u32 - 6);
        let word = |at: u64| guest.get32(CODE + SP - 6 + at) as u16;
        assert_eq!((word(0), word(2), u64::from(word(4))), (2, CS, pushed), "{flags:x}");
    }
    // Not by the bitmap: the monitor's, or refused.
    assert_eq!(run(&[0xCD, 0x21], IOPL, VME).0, (0x21, 0));
    assert_eq!(run(&[0xCD, 0x21], 0, VME).0, GP);
    // Without CR4.VME the bitmap means nothing.
    assert_eq!(run(&[0xCD, 0x20], IOPL, 0).0, (0x20, 0));
}

#[test]
fn vme_has_an_interrupt_flag_of_the_program() {
    let end_of = |code: &[u8], flags: u64| {
        let (what, ip, flags) = run(code, flags, VME);
        assert_eq!(what, GP);
        (ip, flags & (IF | VIF | VIP | IOPL))
    };
    // sti; cli
    assert_eq!(end_of(&[0xFB], 0), (1, VIF));
    assert_eq!(end_of(&[0xFA], IF | VIF), (1, IF));
    assert_eq!(end_of(&[0xFB], VIP), (0, VIP), "an interrupt waits");
    assert_eq!(end_of(&[0xFA], VIF | VIP), (1, VIP));
    // push 0x200; popf, with VIP and with TF as well; and of 32 bits
    assert_eq!(end_of(&[0x68, 0, 2, 0x9D], IF), (4, IF | VIF));
    assert_eq!(end_of(&[0x68, 0, 0, 0x9D], IF | VIF), (4, IF));
    assert_eq!(end_of(&[0x68, 0, 2, 0x9D], VIP), (3, VIP));
    assert_eq!(end_of(&[0x68, 0, 1, 0x9D], 0), (3, 0));
    assert_eq!(end_of(&[0x66, 0x9D], 0), (0, 0));
    assert_eq!(end_of(&[0x66, 0x9C], 0), (0, 0));
    // pushf shows VIF and IOPL 3.
    for (flags, shown) in [(IF, IOPL | 2), (VIF, IOPL | IF | 2)] {
        let mut guest = program(&[0x9C], flags);
        guest.state.cr4 = VME;
        guest.run(&NoIo::default());
        assert_eq!(u64::from(guest.get32(CODE + SP - 2) as u16), shown);
    }
    // iret to 0x10 with IF; with VIP; with TF; of 32 bits
    let [low, high] = CS.to_le_bytes();
    let iret = |flags: u8| {
        let mut code = vec![0x68, 0, flags, 0x68, low, high, 0x6A, 0x10, 0xCF];
        code.resize(0x10, 0x90);
        code
    };
    assert_eq!(end_of(&iret(2), 0), (0x10, VIF));
    assert_eq!(end_of(&iret(0), VIF), (0x10, 0));
    assert_eq!(end_of(&iret(2), VIP), (8, VIP));
    assert_eq!(end_of(&iret(1), 0), (8, 0));
    assert_eq!(end_of(&[0x66, 0xCF], 0), (0, 0));
}

#[test]
fn pvi_gives_protected_programs_the_same_flag() {
    let run = |code: &[u8], flags: u64, cr4: u64| {
        let mut guest = Guest::protected(&[code, &[0x0F, 0x0B]].concat());
        let s = &mut guest.state;
        (s.segments.cs.selector, s.segments.cs.attributes) = (0x1B, 0xC0FB);
        (s.segments.ss.selector, s.segments.ss.attributes) = (0x23, 0xC0F3);
        s.gpr[4] = DATA;
        s.cr4 = cr4;
        s.rflags |= flags;
        let after = guest.run(&NoIo::default());
        let (vector, _, frame) = guest.frame32(&after);
        (vector, u64::from(frame[2]) & (IF | VIF | VIP))
    };
    const PVI: u64 = 2;
    assert_eq!(run(&[0xFB], IF, 0), (13, IF));
    assert_eq!(run(&[0xFB], IF, PVI), (6, IF | VIF));
    assert_eq!(run(&[0xFA], IF | VIF, PVI), (6, IF));
    assert_eq!(run(&[0xFB], VIP, PVI), (13, VIP));
    assert_eq!(run(&[0xFA], IF | IOPL, PVI), (6, 0));
}
