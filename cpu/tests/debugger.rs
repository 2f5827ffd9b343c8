//! A debugger outside the guest: it stops exactly where it asked to, and the guest does not notice.

mod common;

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment, VcpuState};
use board::{Accel, Clock, DebugRequest, Exit, Trap, Vcpu, WatchKind, Watchpoint};
use common::{NoIo, Rng};
use cpu::{SoftAccel, SoftVcpu};

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;

struct Guest {
    ram: GuestRam,
    vcpu: SoftVcpu,
    _accel: SoftAccel,
}

impl Guest {
    /// Ring 0 of 64-bit mode at `code`; the first 2 MiB are mapped 1:1.
    fn new(code: &[u8]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let accel = SoftAccel::new(Clock::running(), None);
        accel.set_memory(&MemoryMap::new(&ram)).unwrap();
        let mut vcpu = accel.add(0, &accel.supported_cpuid());
        let segment =
            |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let mut state = vcpu.save().unwrap();
        state.segments.cs = segment(8, 0xA09B);
        for s in [&mut state.segments.ss, &mut state.segments.ds, &mut state.segments.es] {
            *s = segment(16, 0xC093);
        }
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x8005_0033, 0x1000, 0x620, 0xD00);
        (state.rip, state.rflags, state.gpr) = (CODE, 2, [0; 16]);
        state.gpr[4] = STACK;
        state.mp_state = MpState::Runnable;
        for (at, entry) in [(0x1000, 0x2007_u64), (0x2000, 0x3007), (0x3000, 0x87)] {
            ram.write(at, &entry.to_le_bytes()).unwrap();
        }
        ram.write(CODE, code).unwrap();
        vcpu.restore(&state).unwrap();
        Self { ram, vcpu, _accel: accel }
    }

    fn want(&mut self, step: bool, breakpoints: &[u64], watchpoints: &[Watchpoint]) {
        let (breakpoints, watchpoints) = (breakpoints.to_vec(), watchpoints.to_vec());
        self.vcpu.set_debug(&DebugRequest { step, breakpoints, watchpoints }).unwrap();
    }

    /// Runs to the next trap; `None`: to HLT.
    fn run(&mut self) -> Option<Trap> {
        match self.vcpu.run(&NoIo::default()).unwrap() {
            Exit::Debug(trap) => Some(trap),
            Exit::Halted => None,
            other => panic!("{other:?}"),
        }
    }

    /// Executes one instruction, whatever breakpoints there are.
    fn step(&mut self) {
        self.want(true, &[], &[]);
        assert_eq!(self.run(), Some(Trap::Step));
    }

    fn state(&mut self) -> VcpuState {
        self.vcpu.save().unwrap()
    }
}

/// mov ecx, 1000; loop: inc rax; inc rbx; dec ecx; jnz loop; hlt
const LOOP: &[u8] =
    &[0xB9, 0xE8, 3, 0, 0, 0x48, 0xFF, 0xC0, 0x48, 0xFF, 0xC3, 0xFF, 0xC9, 0x75, 0xF6, 0xF4];

#[test]
fn a_breakpoint_stops_before_its_instruction_each_time() {
    let mut guest = Guest::new(LOOP);
    let inc_rbx = CODE + 8;
    for round in 1..=1000 {
        guest.want(false, &[inc_rbx], &[]);
        assert_eq!(guest.run(), Some(Trap::Breakpoint));
        assert_eq!(guest.run(), Some(Trap::Breakpoint), "it stands there still");
        let state = guest.state();
        assert_eq!((state.rip, state.gpr[0], state.gpr[3]), (inc_rbx, round, round - 1));
        guest.step();
    }
    guest.want(false, &[inc_rbx], &[]);
    assert_eq!(guest.run(), None);
    assert_eq!(guest.state().gpr[3], 1000);
}

#[test]
fn breakpoints_reach_code_that_has_run_already_and_only_that() {
    let mut guest = Guest::new(LOOP);
    guest.want(false, &[CODE + 13], &[]);
    assert_eq!(guest.run(), Some(Trap::Breakpoint));
    guest.want(false, &[], &[]);
    assert_eq!(guest.run(), None);
    let mut state = guest.state();
    (state.rip, state.mp_state) = (CODE, MpState::Runnable);
    guest.vcpu.restore(&state).unwrap();
    // The same offset of another page, and the middle of an instruction.
    guest.want(false, &[CODE + 0x1008, CODE + 9], &[]);
    assert_eq!(guest.run(), None);
    let mut state = guest.state();
    (state.rip, state.mp_state) = (CODE, MpState::Runnable);
    guest.vcpu.restore(&state).unwrap();
    guest.want(false, &[CODE + 15], &[]);
    assert_eq!(guest.run(), Some(Trap::Breakpoint));
    assert_eq!(guest.state().gpr[0], 3000);
}

#[test]
fn a_step_is_one_instruction() {
    let mut guest = Guest::new(LOOP);
    for rip in [5, 8, 11, 13, 5, 8].map(|off| CODE + off) {
        guest.step();
        assert_eq!(guest.state().rip, rip);
    }
    let state = guest.state();
    assert_eq!(state.rflags & 0x100, 0, "the guest's TF");
    assert_eq!(state.debug, board::vcpu::DebugRegisters::default());
}

fn watch(address: u64, len: u64, kind: WatchKind) -> Watchpoint {
    Watchpoint { address, len, kind }
}

#[test]
fn a_watchpoint_stops_after_the_access_that_it_names() {
    // mov [rdi], eax; mov ebx, [rdi]; add [rdi], eax; lock inc dword [rdi]; movdqu [rdi], xmm0
    // push rdi; hlt
    let code =
        [0x89, 0x07, 0x8B, 0x1F, 0x01, 0x07, 0xF0, 0xFF, 0x07, 0xF3, 0x0F, 0x7F, 0x07, 0x57, 0xF4];
    let ends = [2, 4, 6, 9, 13, 14];
    for (kind, address, expected) in [
        (WatchKind::Write, DATA, &[0, 2, 3, 4][..]),
        (WatchKind::Read, DATA + 3, &[1, 2, 3][..]),
        (WatchKind::Access, DATA + 2, &[0, 1, 2, 3, 4][..]),
        (WatchKind::Write, DATA + 8, &[4][..]),
        (WatchKind::Write, STACK - 8, &[5][..]),
        (WatchKind::Access, DATA - 4, &[][..]),
    ] {
        let mut guest = Guest::new(&code);
        let mut state = guest.state();
        state.gpr[7] = DATA;
        guest.vcpu.restore(&state).unwrap();
        let point = watch(address, 1, kind);
        guest.want(false, &[], &[point]);
        for index in expected {
            assert_eq!(guest.run(), Some(Trap::Watch(point)), "{kind:?} at {address:#x}");
            assert_eq!(guest.state().rip, CODE + ends[*index], "{kind:?} at {address:#x}");
        }
        assert_eq!(guest.run(), None, "{kind:?} at {address:#x}");
    }
}

#[test]
fn a_watchpoint_stops_in_the_middle_of_a_repeated_instruction() {
    // mov ecx, 64; rep stosb; hlt
    let mut guest = Guest::new(&[0xB9, 64, 0, 0, 0, 0xF3, 0xAA, 0xF4]);
    let mut state = guest.state();
    state.gpr[7] = DATA;
    guest.vcpu.restore(&state).unwrap();
    let point = watch(DATA + 10, 2, WatchKind::Write);
    guest.want(false, &[], &[point]);
    for left in [53, 52] {
        assert_eq!(guest.run(), Some(Trap::Watch(point)));
        let state = guest.state();
        assert_eq!((state.gpr[1], state.rip), (left, CODE + 5));
    }
    assert_eq!(guest.run(), None);
}

#[test]
fn code_that_a_debugger_writes_is_executed() {
    let mut guest = Guest::new(LOOP);
    guest.want(false, &[CODE + 11], &[]);
    assert_eq!(guest.run(), Some(Trap::Breakpoint));
    // inc rbx becomes dec rbx.
    guest.ram.write(CODE + 8, &[0x48, 0xFF, 0xCB]).unwrap();
    guest.want(false, &[], &[]);
    assert_eq!(guest.run(), None);
    assert_eq!(guest.state().gpr[3], 1_u64.wrapping_sub(999));
}

#[test]
fn an_unused_debugger_changes_no_count() {
    let mut rng = Rng::new(0xD3B6);
    let mut plain = Guest::new(LOOP);
    assert_eq!(plain.run(), None);
    for _ in 0..50 {
        let mut guest = Guest::new(LOOP);
        let stop = CODE + [0, 5, 8, 11, 13, 15][(rng.next() % 6) as usize];
        guest.want(false, &[stop], &[watch(DATA, 8, WatchKind::Access)]);
        for _ in 0..rng.next() % 20 {
            match guest.run() {
                Some(Trap::Breakpoint) => guest.step(),
                _ => break,
            }
            guest.want(false, &[stop], &[]);
        }
        guest.want(false, &[], &[]);
        if guest.state().mp_state == MpState::Runnable {
            assert_eq!(guest.run(), None);
        }
        assert_eq!(guest.vcpu.instructions(), plain.vcpu.instructions());
        assert_eq!(guest.state().gpr, plain.state().gpr);
    }
}
