//! MONITOR and MWAIT: a hint, and only where CPUID says so.

use crate::common::NoIo;
use crate::common::guest::{CODE, DATA, Guest};

/// monitor; mwait; hlt
const CODE_BYTES: [u8; 7] = [0x0F, 0x01, 0xC8, 0x0F, 0x01, 0xC9, 0xF4];

fn offered() -> Guest {
    let mut guest = Guest::long(&CODE_BYTES);
    guest.state.cpuid.get_mut(1, 0).unwrap().ecx |= 1 << 3;
    guest.state.gpr[0] = DATA;
    guest
}

#[test]
fn they_are_undefined_unless_asked_for() {
    let mut guest = Guest::long(&CODE_BYTES);
    assert_eq!(guest.state.cpuid.get(1, 0).unwrap().ecx & 1 << 3, 0);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (6, 0, CODE));
    guest.state.rip = CODE + 3;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (6, 0, CODE + 3));
}

#[test]
fn mwait_does_not_wait() {
    assert_eq!(offered().run(&NoIo::default()).rip, CODE + 7);
}

#[test]
fn they_check_their_operands_and_the_ring() {
    let mut guest = offered();
    guest.state.gpr[1] = 1;
    for at in [CODE, CODE + 3] {
        guest.state.rip = at;
        let after = guest.run(&NoIo::default());
        assert_eq!(guest.exception(&after), (13, 0, at), "extensions");
    }
    guest.state.gpr[1] = 0;
    guest.state.rip = CODE;
    guest.state.gpr[0] = 0x4000_0000;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 0, CODE));
    guest.ring3();
    for at in [CODE, CODE + 3] {
        guest.state.rip = at;
        let after = guest.run(&NoIo::default());
        assert_eq!(guest.exception(&after), (6, 0, at), "ring 3");
    }
}
