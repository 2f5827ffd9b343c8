//! Hardware task switches (SDM vol. 3, 8).

use board::vcpu::{Segment, VcpuState};

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, GDT, Guest, HANDLERS, IDT, STACK, TSS, gate, system};

/// The TSS that guests switch to, of 32 or 16 bits.
const OTHER: u64 = 0x3_8000;
const OTHER_SELECTOR: u16 = 0x30;
/// The TSS of the task that handles faults.
const THIRD: u64 = 0x3_9000;
const THIRD_SELECTOR: u16 = 0x38;
const LINK: u64 = 0;
const EIP: u64 = 32;
const EFLAGS: u64 = 36;
const ESP: u64 = 56;
const ES: u64 = 72;
const CS: u64 = 76;
const SS: u64 = 80;
const DS: u64 = 84;
const LDT: u64 = 96;
const NT: u32 = 1 << 14;
const TASK_GATE: u64 = 0x85;
/// jmp OTHER:0; hlt
const JUMP: [u8; 8] = [0xEA, 0, 0, 0, 0, OTHER_SELECTOR as u8, 0, 0xF4];

fn busy(guest: &Guest, selector: u16) -> bool {
    guest.get(GDT + u64::from(selector)) >> 41 & 1 != 0
}

/// A guest in task [`TSS`] with 32-bit tasks [`OTHER`], whose code is at [`DATA`], and [`THIRD`],
/// which halts. The faults of a task switch go to the third.
fn tasks(code: &[u8], other: &[u8]) -> Guest {
    let guest = Guest::protected(code);
    guest.ram.write(DATA, other).unwrap();
    guest.ram.write(DATA + 0x800, &[0xF4]).unwrap();
    for (tss, selector, eip, esp) in [
        (OTHER, OTHER_SELECTOR, DATA, STACK - 0x400),
        (THIRD, THIRD_SELECTOR, DATA + 0x800, STACK - 0x800),
    ] {
        guest.put(GDT + u64::from(selector), system(tss, 0x67, 0x89));
        guest.put32(tss + EIP, eip as u32);
        guest.put32(tss + EFLAGS, 2);
        guest.put32(tss + ESP, esp as u32);
        guest.put32(tss + CS, 8);
        for at in [ES, SS, DS] {
            guest.put32(tss + at, 0x10);
        }
    }
    for vector in 10..13 {
        guest.put(IDT + 8 * vector, gate(0, THIRD_SELECTOR.into(), TASK_GATE));
    }
    guest
}

/// What a guest that has halted in the third task got as error code, and in which task that was.
fn third(guest: &Guest, after: &VcpuState) -> (u32, u16) {
    assert_eq!(after.segments.tr.selector, THIRD_SELECTOR, "rip {:x}", after.rip);
    assert_eq!(after.rip, DATA + 0x801);
    (guest.get32(after.gpr[4]), guest.get32(THIRD + LINK) as u16)
}

#[test]
fn a_call_links_tasks_and_iret_goes_back() {
    // call OTHER:0; hlt. The task: mov eax, 5; iretd
    let mut guest = tasks(&[0x9A, 0, 0, 0, 0, 0x30, 0, 0xF4], &[0xB8, 5, 0, 0, 0, 0xCF]);
    guest.state.gpr[0] = 7;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, after.gpr[0]), (CODE + 8, 7));
    assert_eq!(after.segments.tr.selector, 0x28);
    assert_eq!(guest.get32(OTHER + LINK), 0x28);
    assert_eq!(guest.get32(OTHER + 40), 5, "EAX of the task");
    assert_eq!(guest.get32(OTHER + EIP), DATA as u32 + 6);
    assert_eq!(guest.get32(OTHER + EFLAGS) & NT, 0, "IRET clears it");
    assert_eq!(after.rflags & u64::from(NT), 0);
    assert_eq!((busy(&guest, 0x28), busy(&guest, OTHER_SELECTOR)), (true, false));
}

#[test]
fn a_called_task_is_nested() {
    let mut guest = tasks(&[0x9A, 0, 0, 0, 0, 0x30, 0, 0xF4], &[0xF4]);
    let after = guest.run(&NoIo::default());
    assert_eq!(after.rip, DATA + 1);
    assert_ne!(after.rflags & u64::from(NT), 0);
    assert_eq!((busy(&guest, 0x28), busy(&guest, OTHER_SELECTOR)), (true, true));
    assert_eq!(after.segments.tr.attributes & 0xF, 0xB);
    assert_ne!(after.cr0 & 8, 0);
    // A jump nests nothing.
    let mut guest = tasks(&JUMP, &[0xF4]);
    guest.put32(OTHER + LINK, 0x1234);
    let after = guest.run(&NoIo::default());
    assert_eq!(after.rflags & u64::from(NT), 0);
    assert_eq!(guest.get32(OTHER + LINK), 0x1234);
    assert_eq!((busy(&guest, 0x28), busy(&guest, OTHER_SELECTOR)), (false, true));
}

#[test]
fn a_16_bit_tss_saves_and_loads_words() {
    let mut guest = tasks(&JUMP, &[]);
    guest.put(GDT + 0x30, system(OTHER, 0x2B, 0x81));
    // The task: inc ax (of 16 bits); jmp 0x28:0
    guest.ram.write(0x8000, &[0x40, 0xEA, 0, 0, 0x28, 0]).unwrap();
    guest.put(GDT + 0x40, 0x0000_9B00_0000_FFFF);
    let words = [
        (14, 0x8000),
        (16, 0x0202),
        (18, 41),
        (20, 42),
        (26, 0x7000),
        (34, 0x10),
        (36, 0x40),
        (38, 0x10),
        (40, 0x10),
        (42, 0),
    ];
    for (at, value) in words {
        guest.ram.write(OTHER + at, &u16::to_le_bytes(value)).unwrap();
    }
    guest.state.gpr[0] = 0xAAAA_BBBB;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, after.gpr[0]), (CODE + 8, 0xAAAA_BBBB));
    let word = |at: u64| guest.get32(OTHER + at) as u16;
    assert_eq!((word(14), word(18), word(20)), (0x8006, 42, 42));
    assert_eq!((word(16), word(36)), (0x0202, 0x40));
    assert!(!busy(&guest, OTHER_SELECTOR));
}

#[test]
fn selectors_that_cannot_be_switched_to() {
    // Descriptor, selector of the jump, vector and error code.
    let tss = |limit, kind| system(OTHER, limit, kind);
    let cases = [
        (tss(0x67, 0x8B), 0x30, (13, 0x30)),
        (tss(0x67, 0x09), 0x30, (11, 0x30)),
        (tss(0x66, 0x89), 0x30, (10, 0x30)),
        (tss(0x2A, 0x81), 0x30, (10, 0x30)),
        (tss(0x67, 0x82), 0x30, (13, 0x30)),
        // Through a task gate; of the LDT, busy, not present.
        (gate(0, 0x34, TASK_GATE), 0x30, (13, 0x34)),
        (gate(0, 0x28, TASK_GATE), 0x30, (13, 0x28)),
        (gate(0, 0x38, 0x05), 0x30, (11, 0x30)),
    ];
    for (descriptor, selector, expected) in cases {
        let mut guest = tasks(&[0xEA, 0, 0, 0, 0, selector, 0, 0xF4], &[0xF4]);
        guest.put(GDT + 0x30, descriptor);
        for vector in 10..13 {
            guest.put(IDT + 8 * vector, gate(HANDLERS + 16 * vector, 8, 0x8E));
        }
        let after = guest.run(&NoIo::default());
        let (vector, error, frame) = guest.frame32(&after);
        assert_eq!((vector, error), expected, "{descriptor:x}");
        assert_eq!(frame[0], CODE as u32);
        assert_eq!(after.segments.tr.selector, 0x28);
        assert!(busy(&guest, 0x28));
    }
}

#[test]
fn segments_of_the_new_task_fault_in_it() {
    // What is wrong, the descriptor of selector 0x40 if there is one, vector and error code.
    type Case = (u64, u32, u64, u64, u32);
    let data = |kind: u64| 0x00CF_0000_0000_FFFF | kind << 40;
    let cases: &[Case] = &[
        (DS, 0x40, data(0x99), 10, 0x40),
        (DS, 0x43, data(0x93), 10, 0x40),
        (DS, 0x40, data(0x13), 11, 0x40),
        (DS, 0x80, 0, 10, 0x80),
        (SS, 0x40, data(0x13), 12, 0x40),
        (SS, 0x40, data(0x91), 10, 0x40),
        (SS, 0x41, data(0x93), 10, 0x40),
        (SS, 0, 0, 10, 0),
        (CS, 0, 0, 10, 0),
        (CS, 0x40, data(0x93), 10, 0x40),
        (CS, 0x40, data(0x1B), 11, 0x40),
        (CS, 0x40, data(0xFB), 10, 0x40),
        (LDT, 0x40, system(0, 0, 0x02), 10, 0x40),
        (LDT, 0x40, data(0x93), 10, 0x40),
        (LDT, 0x44, 0, 10, 0x44),
    ];
    for (i, &(field, selector, descriptor, vector, error)) in cases.iter().enumerate() {
        let mut guest = tasks(&JUMP, &[0xF4]);
        guest.put(GDT + 0x40, descriptor);
        guest.put32(OTHER + field, selector);
        // Only the vector that is expected leads to the third task.
        for other in (10..13).filter(|other| *other != vector) {
            guest.put(IDT + 8 * other, 0);
        }
        let after = guest.run(&NoIo::default());
        assert_eq!(third(&guest, &after), (error, OTHER_SELECTOR), "case {i}");
        assert_eq!(guest.get32(OTHER + EIP), DATA as u32, "case {i}");
        assert!(busy(&guest, OTHER_SELECTOR) && !busy(&guest, 0x28), "case {i}");
    }
}

#[test]
fn an_entry_beyond_the_code_segment_faults_in_the_new_task() {
    let mut guest = tasks(&JUMP, &[]);
    guest.put(GDT + 0x40, 0x0040_9B00_0000_0FFF);
    guest.put32(OTHER + CS, 0x40);
    guest.put(IDT + 8 * 13, gate(0, THIRD_SELECTOR.into(), TASK_GATE));
    let after = guest.run(&NoIo::default());
    assert_eq!(third(&guest, &after), (0, OTHER_SELECTOR));
}

#[test]
fn an_exception_through_a_task_gate() {
    // ud2
    let mut guest = tasks(&[0x0F, 0x0B], &[0xF4]);
    guest.put(IDT + 8 * 6, gate(0, OTHER_SELECTOR.into(), TASK_GATE));
    guest.state.gpr[3] = 0x1234;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, after.segments.tr.selector), (DATA + 1, OTHER_SELECTOR));
    assert_eq!(after.gpr[4], STACK - 0x400, "no error code");
    assert_eq!((guest.get32(TSS + EIP), guest.get32(TSS + 52)), (CODE as u32, 0x1234));
    assert_eq!(guest.get32(OTHER + LINK), 0x28);
    assert_ne!(after.rflags & u64::from(NT), 0);
    // mov ds, ax: the error code is pushed on the new stack.
    let mut guest = tasks(&[0x8E, 0xD8], &[0xF4]);
    guest.put(IDT + 8 * 13, gate(0, OTHER_SELECTOR.into(), TASK_GATE));
    guest.state.gpr[0] = 0x91;
    let after = guest.run(&NoIo::default());
    assert_eq!(after.gpr[4], STACK - 0x404);
    assert_eq!(guest.get32(after.gpr[4]), 0x90);
}

#[test]
fn the_error_code_says_what_caused_the_switch() {
    // ud2, whose handler is the busy task; int 6.
    for (code, error) in [([0x0F, 0x0B], 0x29), ([0xCD, 6], 0x28)] {
        let mut guest = tasks(&code, &[0xF4]);
        guest.put(IDT + 8 * 6, gate(0, 0x28, TASK_GATE));
        let after = guest.run(&NoIo::default());
        let (vector, is, frame) = guest.frame32(&after);
        assert_eq!((vector, is, frame[0]), (13, error, CODE as u32));
    }
    // A fault in the new task of int 6 is at that task's first instruction.
    for (code, error) in [([0x0F, 0x0B], 0x81), ([0xCD, 6], 0x80)] {
        let mut guest = tasks(&code, &[0xF4]);
        guest.put(IDT + 8 * 6, gate(0, OTHER_SELECTOR.into(), TASK_GATE));
        guest.put32(OTHER + DS, 0x80);
        let after = guest.run(&NoIo::default());
        assert_eq!(third(&guest, &after), (error, OTHER_SELECTOR));
        assert_eq!(guest.get32(OTHER + EIP), DATA as u32);
        let old = guest.get32(TSS + EIP);
        assert_eq!(old, CODE as u32 + if code[0] == 0xCD { 2 } else { 0 });
    }
}

#[test]
fn a_double_fault_has_a_task_of_its_own() {
    // A stack that cannot take a frame: push eax, #SS, #DF.
    let mut guest = tasks(&[0x50], &[0xF4]);
    guest.put(IDT + 8 * 8, gate(0, OTHER_SELECTOR.into(), TASK_GATE));
    guest.put(IDT + 8 * 12, gate(HANDLERS, 8, 0x8E));
    guest.state.segments.ss = Segment { selector: 0x10, base: 0, limit: 0xFFF, attributes: 0x4093 };
    let after = guest.run(&NoIo::default());
    assert_eq!((after.rip, after.segments.tr.selector), (DATA + 1, OTHER_SELECTOR));
    assert_eq!((after.gpr[4], guest.get32(after.gpr[4])), (STACK - 0x404, 0));
    assert_eq!(guest.get32(TSS + EIP), CODE as u32);
    assert_eq!(guest.get32(TSS + ESP), STACK as u32);
}

#[test]
fn a_return_needs_a_busy_task() {
    // iretd with NT set.
    for (link, kind, vector, error) in [
        (0x30, 0x89, 10, 0x30),
        (0x34, 0x8B, 10, 0x34),
        (0x80, 0x8B, 10, 0x80),
        (0x30, 0x92, 10, 0x30),
        (0x30, 0x0B, 11, 0x30),
    ] {
        let mut guest = tasks(&[0xCF], &[0xF4]);
        guest.put32(TSS + LINK, link);
        guest.put(GDT + 0x30, system(OTHER, 0x67, kind));
        guest.put(IDT + 8 * vector, gate(HANDLERS + 16 * vector, 8, 0x8E));
        guest.state.rflags |= u64::from(NT);
        let after = guest.run(&NoIo::default());
        let (is, code, frame) = guest.frame32(&after);
        assert_eq!((is, code, frame[0]), (vector, error, CODE as u32), "{link:x} {kind:x}");
    }
    // In 64-bit mode there are no tasks.
    let mut guest = Guest::long(&[0x48, 0xCF]);
    guest.state.rflags |= u64::from(NT);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 0, CODE));
}

#[test]
fn the_debug_trap_flag_of_a_tss() {
    let mut guest = tasks(&JUMP, &[0x90, 0xF4]);
    guest.put32(OTHER + 100, 1);
    guest.state.debug.control = 0x700 | 0xFF;
    guest.state.debug.address = [0x7000; 4];
    let after = guest.run(&NoIo::default());
    let (vector, _, frame) = guest.frame32(&after);
    assert_eq!((vector, frame[0]), (1, DATA as u32));
    assert_eq!(after.debug.status & 0xE00F, 0x8000);
    // Local breakpoints end with the task.
    assert_eq!(after.debug.control, 0x600 | 0xAA);
}

#[test]
fn ltr_makes_busy_what_was_not() {
    // ltr ax; hlt
    let mut guest = tasks(&[0x0F, 0x00, 0xD8, 0xF4], &[]);
    guest.state.gpr[0] = 0x30;
    let after = guest.run(&NoIo::default());
    assert_eq!(after.rip, CODE + 4);
    assert!(busy(&guest, 0x30));
    assert_eq!((after.segments.tr.base, after.segments.tr.attributes & 0xF), (OTHER, 0xB));
    for (selector, descriptor, vector, error) in [
        (0x30, system(OTHER, 0x67, 0x8B), 13, 0x30),
        (0x30, system(OTHER, 0x67, 0x09), 11, 0x30),
        (0x34, system(OTHER, 0x67, 0x89), 13, 0x34),
        (0, 0, 13, 0),
    ] {
        let mut guest = tasks(&[0x0F, 0x00, 0xD8, 0xF4], &[]);
        guest.put(IDT + 8 * 11, gate(HANDLERS + 16 * 11, 8, 0x8E));
        guest.put(GDT + 0x30, descriptor);
        guest.state.gpr[0] = selector;
        let after = guest.run(&NoIo::default());
        let (is, code, _) = guest.frame32(&after);
        assert_eq!((is, code), (vector, error), "{descriptor:x}");
    }
}
