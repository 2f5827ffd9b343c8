//! Debug registers, single steps and RF (SDM vol. 3, 18.2 and 18.3); INTO, BOUND and INT1.

use board::vcpu::VcpuState;

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, Guest, HANDLERS, IDT, STACK, gate};

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;

/// DR6 bits that say what happened.
fn dr6(state: &VcpuState) -> u64 {
    state.debug.status & 0xE00F
}

/// RFLAGS in the frame of the exception that a 64-bit guest has halted in.
fn frame_flags(guest: &Guest, state: &VcpuState) -> u64 {
    let vector = guest.exception(state).0;
    let error = matches!(vector, 8 | 10..=14 | 17);
    guest.get(state.gpr[4] + 16 + if error { 8 } else { 0 })
}

/// Vector and RIP of the exception.
fn what(guest: &Guest, state: &VcpuState) -> (u64, u64) {
    let (vector, _, rip) = guest.exception(state);
    (vector, rip)
}

/// A guest with an instruction breakpoint at `CODE + at`.
fn breakpoint(code: &[u8], at: u64) -> Guest {
    let mut guest = Guest::long(code);
    guest.state.debug.address[0] = CODE + at;
    guest.state.debug.control = 0x400 | 2;
    guest
}

#[test]
fn faults_push_rf_and_traps_do_not() {
    let cases: [(&[u8], u64, bool); 5] = [
        // ud2; mov rax, [rdi] (a page fault); mov ds, eax (#GP); int3; int1
        (&[0x0F, 0x0B], 6, true),
        (&[0x48, 0x8B, 0x07], 14, true),
        (&[0x8E, 0xD8], 13, true),
        (&[0xCC], 3, false),
        (&[0xF1], 1, false),
    ];
    for (code, vector, rf) in cases {
        let mut guest = Guest::long(code);
        guest.state.gpr[7] = 0x4000_0000;
        guest.state.gpr[0] = 0xFFF0;
        let after = guest.run(&NoIo::default());
        assert_eq!(what(&guest, &after).0, vector);
        assert_eq!(frame_flags(&guest, &after) & RF != 0, rf, "vector {vector}");
        assert_eq!(after.rflags & RF, 0, "the handler begins without");
    }
    let mut guest = breakpoint(&[0x90, 0xF4], 0);
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE), 1));
    assert_eq!(frame_flags(&guest, &after) & RF, 0);
}

#[test]
fn rf_lets_one_instruction_pass_its_breakpoint() {
    // nop; jmp back
    let mut guest = breakpoint(&[0x90, 0xEB, 0xFD], 0);
    guest.state.rflags |= RF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE), 1));
    // The second pass was stopped: the counter of a loop shows it. inc eax; jmp back
    let mut guest = breakpoint(&[0xFF, 0xC0, 0xEB, 0xFC], 0);
    guest.state.rflags |= RF;
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 1);
}

#[test]
fn iret_sets_rf_and_popf_does_not() {
    // iretq, to where the breakpoint is.
    for (flags, rip) in [(2 | RF, CODE + 0x12), (2, CODE + 0x10)] {
        let mut guest = breakpoint(&[0x48, 0xCF], 0x10);
        // nop; ud2
        guest.ram.write(CODE + 0x10, &[0x90, 0x90, 0x0F, 0x0B]).unwrap();
        guest.state.gpr[4] = STACK - 40;
        let stack = [CODE + 0x10, 8, flags, STACK, 16];
        for (at, value) in (STACK - 40..).step_by(8).zip(stack) {
            guest.put(at, value);
        }
        let after = guest.run(&NoIo::default());
        let vector = if flags & RF != 0 { 6 } else { 1 };
        assert_eq!(what(&guest, &after), (vector, rip));
    }
    // push 0x10002; popfq; nop, which has the breakpoint
    let mut guest = breakpoint(&[0x68, 2, 0, 1, 0, 0x9D, 0x90, 0xF4], 6);
    let after = guest.run(&NoIo::default());
    assert_eq!(what(&guest, &after), (1, CODE + 6));
}

#[test]
fn general_detect_guards_the_debug_registers() {
    // mov dr0, rax; mov rax, dr7
    for code in [[0x0F, 0x23, 0xC0], [0x0F, 0x21, 0xF8]] {
        let mut guest = Guest::long(&code);
        guest.state.debug.control = 0x400 | 1 << 13;
        guest.state.gpr[0] = 0x1234;
        let after = guest.run(&NoIo::default());
        assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE), BD));
        assert_eq!((after.debug.control, after.debug.address[0]), (0x400, 0));
        assert_eq!(after.gpr[0], 0x1234);
        assert_ne!(frame_flags(&guest, &after) & RF, 0, "a fault");
    }
}

#[test]
fn int1_is_a_trap_without_a_sign_in_dr6() {
    let mut guest = Guest::long(&[0xF1]);
    guest.state.debug.control = 0x400 | 1 << 13;
    guest.state.rflags |= TF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 1), 0));
    assert_eq!(after.debug.control, 0x400, "the handler may use the registers");
    assert_eq!(after.rip, HANDLERS + 0x11, "no step behind it");
    // The gate's DPL does not count, where INT 1 is refused.
    guest.ring3();
    let after = guest.run(&NoIo::default());
    assert_eq!(what(&guest, &after), (1, CODE + 1));
    guest.ram.write(CODE, &[0xCD, 1]).unwrap();
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 8 + 2, CODE));
    // Nor can it be delivered without a gate: the fault is the instruction's.
    guest.ram.write(CODE, &[0xF1]).unwrap();
    guest.put(IDT + 16, 0);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 8 + 3, CODE));
}

#[test]
fn into_traps_on_overflow() {
    let mut guest = Guest::protected(&[0xCE, 0xF4]);
    assert_eq!(guest.run(&NoIo::default()).rip, CODE + 2);
    guest.state.rflags |= 1 << 11;
    let after = guest.run(&NoIo::default());
    let (vector, _, frame) = guest.frame32(&after);
    assert_eq!((vector, frame[0], frame[2] & RF as u32), (4, CODE as u32 + 1, 0));
    // In ring 3 the gate's DPL counts.
    let s = &mut guest.state;
    (s.segments.cs.selector, s.segments.cs.attributes) = (0x1B, 0xC0FB);
    (s.segments.ss.selector, s.segments.ss.attributes) = (0x23, 0xC0F3);
    let after = guest.run(&NoIo::default());
    let (vector, error, frame) = guest.frame32(&after);
    assert_eq!((vector, error, frame[0]), (13, 4 * 8 + 2, CODE as u32));
    guest.put(IDT + 8 * 4, gate(HANDLERS + 16 * 4, 8, 0xEE));
    let after = guest.run(&NoIo::default());
    let (vector, _, frame) = guest.frame32(&after);
    assert_eq!((vector, frame[0], frame[1]), (4, CODE as u32 + 1, 0x1B));
    // 64-bit mode has none.
    let mut guest = Guest::long(&[0xCE]);
    let after = guest.run(&NoIo::default());
    assert_eq!(what(&guest, &after), (6, CODE));
}

#[test]
fn bound_faults_outside_its_bounds() {
    // bound eax, [edi]; hlt
    for (value, faults) in [(-3_i32, true), (-2, false), (0, false), (9, false), (10, true)] {
        let mut guest = Guest::protected(&[0x62, 0x07, 0xF4]);
        guest.put32(DATA, -2_i32 as u32);
        guest.put32(DATA + 4, 9);
        guest.state.gpr[7] = DATA;
        guest.state.gpr[0] = u64::from(value as u32);
        let after = guest.run(&NoIo::default());
        if faults {
            let (vector, _, frame) = guest.frame32(&after);
            assert_eq!((vector, frame[0]), (5, CODE as u32), "{value}");
            assert_ne!(frame[2] & RF as u32, 0);
        } else {
            assert_eq!(after.rip, CODE + 3, "{value}");
        }
    }
    // bound ax, [edi]
    let mut guest = Guest::protected(&[0x66, 0x62, 0x07, 0xF4]);
    guest.put32(DATA, 0x0005_FFFF);
    guest.state.gpr[7] = DATA;
    for (value, rip) in [(0x1_FFFF, CODE + 4), (5, CODE + 4), (6, HANDLERS + 0x51)] {
        guest.state.gpr[0] = value;
        assert_eq!(guest.run(&NoIo::default()).rip, rip, "{value:x}");
    }
}

#[test]
fn a_step_is_decided_at_the_instructions_beginning() {
    // popfq that clears TF; iretq that sets it
    let mut guest = Guest::long(&[0x9D, 0x90, 0xF4]);
    guest.put(STACK - 8, 2);
    (guest.state.gpr[4], guest.state.rflags) = (STACK - 8, 2 | TF);
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 1), BS));
    assert_eq!(frame_flags(&guest, &after) & TF, 0);

    let mut guest = Guest::long(&[0x48, 0xCF, 0x90, 0x90, 0xF4]);
    guest.state.gpr[4] = STACK - 40;
    for (at, value) in (STACK - 40..).step_by(8).zip([CODE + 2, 8, 2 | TF, STACK, 16]) {
        guest.put(at, value);
    }
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 3), BS));
    assert_ne!(frame_flags(&guest, &after) & TF, 0);
    assert_eq!(after.rflags & TF, 0, "the handler is not stepped");
}

#[test]
fn no_step_traps_behind_a_software_interrupt() {
    for (code, length) in [(&[0xCD, 3][..], 2), (&[0xCC], 1)] {
        let mut guest = Guest::long(code);
        guest.state.rflags |= TF;
        let after = guest.run(&NoIo::default());
        assert_eq!((what(&guest, &after), dr6(&after)), ((3, CODE + length), 0));
        assert_ne!(frame_flags(&guest, &after) & TF, 0);
        assert_eq!(after.rip, HANDLERS + 0x31);
    }
}

#[test]
fn syscall_traps_as_fmask_leaves_tf_and_sysret_as_it_finds_it() {
    const STAR: u32 = 0xC000_0081;
    const LSTAR: u32 = 0xC000_0082;
    const FMASK: u32 = 0xC000_0084;
    let entry = CODE + 0x100;
    for (mask, expected) in [(0, (1, entry)), (TF, (6, entry))] {
        // syscall; at its target ud2
        let mut guest = Guest::long(&[0x0F, 0x05]);
        guest.ram.write(entry, &[0x0F, 0x0B]).unwrap();
        guest.state.msrs.extend([(STAR, 8 << 32), (LSTAR, entry), (FMASK, mask)]);
        guest.state.efer |= 1;
        guest.state.rflags |= TF;
        let after = guest.run(&NoIo::default());
        assert_eq!(what(&guest, &after), expected);
        assert_eq!(dr6(&after), if mask == 0 { BS } else { 0 });
        assert_ne!(after.gpr[11] & TF, 0);
    }
    // sysretq to ring 3 with TF: before the first instruction there.
    let mut guest = Guest::long(&[0x48, 0x0F, 0x07]);
    guest.ring3();
    guest.ram.write(entry, &[0x90, 0x0F, 0x0B]).unwrap();
    let kernel = Guest::long(&[]).state.segments;
    (guest.state.segments.cs, guest.state.segments.ss) = (kernel.cs, kernel.ss);
    guest.state.msrs.insert(STAR, 0x23 << 48);
    guest.state.efer |= 1;
    (guest.state.gpr[1], guest.state.gpr[11]) = (entry, 2 | TF);
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, entry), BS));
    assert_ne!(frame_flags(&guest, &after) & TF, 0);
    // Without TF in R11 it is not: ud2 is what ends it, even if SYSRET itself was stepped.
    guest.state.gpr[11] = 2;
    guest.state.rflags |= TF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((6, entry + 1), 0));
}

#[test]
fn mov_ss_holds_debug_traps_off_for_an_instruction() {
    // mov ss, [rdi]; nop; nop, stepped
    let code = [0x8E, 0x17, 0x90, 0x90, 0xF4];
    let mut guest = Guest::long(&code);
    guest.put(DATA, 0x10);
    guest.state.gpr[7] = DATA;
    guest.state.rflags |= TF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 3), BS));
    // Its operand is watched: the trap is held off as well, and a breakpoint behind it is lost.
    guest.state.rflags = 2;
    guest.state.debug.address = [DATA, CODE + 2, 0, 0];
    guest.state.debug.control = 0x400 | 2 | 8 | 0x7 << 16;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 3), 1));
}

#[test]
fn a_repeated_instruction_is_stepped_by_iteration() {
    // rep stosb
    let mut guest = Guest::long(&[0xF3, 0xAA, 0xF4]);
    (guest.state.gpr[1], guest.state.gpr[7]) = (3, DATA);
    guest.state.rflags |= TF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), after.gpr[1]), ((1, CODE), 2));
    assert_ne!(frame_flags(&guest, &after) & RF, 0);
    guest.state.gpr[1] = 1;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), after.gpr[1]), ((1, CODE + 2), 0));
    assert_eq!(frame_flags(&guest, &after) & RF, 0, "the last iteration");
}

#[test]
fn a_stepped_hlt_goes_on_in_the_handler() {
    let mut guest = Guest::long(&[0xF4]);
    guest.state.rflags |= TF;
    let after = guest.run(&NoIo::default());
    assert_eq!((what(&guest, &after), dr6(&after)), ((1, CODE + 1), BS));
}

#[test]
fn fixed_bits_of_dr6_and_dr7() {
    // mov dr6, rax; mov dr7, rax; mov rbx, dr6; mov rcx, dr7; mov rdx, dr4; mov rsi, dr5; hlt
    let code = [
        0x0F, 0x23, 0xF0, 0x0F, 0x23, 0xF8, 0x0F, 0x21, 0xF3, 0x0F, 0x21, 0xF9, 0x0F, 0x21, 0xE2,
        0x0F, 0x21, 0xEE, 0xF4,
    ];
    let mut guest = Guest::long(&code);
    // All but general detect.
    guest.state.gpr[0] = 0xFFFF_DF00;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[3], after.gpr[1]), (0xFFFF_CFF0, 0xFFFF_0700));
    assert_eq!((after.gpr[2], after.gpr[6]), (after.gpr[3], after.gpr[1]));
    guest.state.gpr[0] = 0;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[3], after.gpr[1]), (0xFFFF_0FF0, 0x400));
    // With CR4.DE there are no DR4 and DR5.
    guest.state.cr4 |= 8;
    let after = guest.run(&NoIo::default());
    assert_eq!(what(&guest, &after), (6, CODE + 12));
    // The upper half of DR6 and DR7 is reserved.
    guest.state.gpr[0] = 1 << 32;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 0, CODE));
    guest.state.rip = CODE + 3;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 0, CODE + 3));
}
