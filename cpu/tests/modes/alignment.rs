//! #AC of operands larger than a quadword (SDM vol. 3, table 6-7).

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, Guest};

/// Runs `code` in ring 3 with alignment checks and RDI at `address`: the vector that it ends with,
/// #UD if it does nothing wrong.
fn vector(code: &[u8], address: u64) -> u64 {
    let mut guest = Guest::long(&[code, &[0x0F, 0x0B]].concat());
    guest.ring3();
    guest.state.cr0 |= 1 << 18;
    guest.state.rflags = 2 | 1 << 18;
    guest.state.gpr[7] = address;
    guest.state.gpr[6] = DATA + 0x100;
    guest.state.gpr[1] = 8;
    if guest.state.cpuid.get(1, 0).unwrap().ecx & 1 << 28 != 0 {
        guest.state.cr4 |= 1 << 18;
        guest.state.xcr0 = 7;
    }
    let after = guest.run(&NoIo::default());
    let (vector, error, rip) = guest.exception(&after);
    assert!(vector == 6 || (error, rip) == (0, CODE), "{vector} {error:x} {rip:x}");
    vector
}

#[test]
fn large_operands_have_units_of_their_own() {
    // As an AMD EPYC does it natively under CR0.AM.
    let movups: (&[u8], u64) = (&[0x0F, 0x10, 0x07], 16);
    let store: (&[u8], u64) = (&[0x0F, 0x11, 0x07], 16);
    let fld80: (&[u8], u64) = (&[0xDB, 0x2F], 8);
    let fnstenv: (&[u8], u64) = (&[0xD9, 0x37], 4);
    let fnsave: (&[u8], u64) = (&[0xDD, 0x37], 4);
    let movlps: (&[u8], u64) = (&[0x0F, 0x12, 0x07], 8);
    let mut cases = vec![movups, store, fld80, fnstenv, fnsave, movlps];
    if std::arch::is_x86_feature_detected!("avx") {
        // vmovups ymm0, [rdi]
        cases.push((&[0xC5, 0xFC, 0x10, 0x07], 16));
    }
    for (code, unit) in cases {
        for offset in [0, 2, 4, 8, 12, 16, 20, 0xFF8, 0xFFC, 0xFF2] {
            let expected = if offset % unit == 0 { 6 } else { 17 };
            assert_eq!(vector(code, DATA + offset), expected, "{code:x?} + {offset:x}");
        }
    }
}

#[test]
fn string_instructions_are_checked_by_element() {
    // rep movsb; rep movsw; rep stosd
    assert_eq!(vector(&[0xF3, 0xA4], DATA + 1), 6);
    assert_eq!(vector(&[0xF3, 0x66, 0xA5], DATA + 2), 6);
    assert_eq!(vector(&[0xF3, 0x66, 0xA5], DATA + 1), 17);
    assert_eq!(vector(&[0xF3, 0xAB], DATA + 2), 17);
}
