//! The software CPU in another accelerator's place: what it executes, what it leaves, and where a
//! stretch ends.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{Segment, TableRegister, VcpuState};
use board::{AccelError, Clock, CpuIo};
use cpu::SoftAccel;
use cpu::assist::{Assistant, Done, Lender, Limit, Memory, Start};

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STACK: u64 = 0x3_3000;

/// One device, at port 0x80.
#[derive(Default)]
struct Io(Cell<u32>);

impl CpuIo for Io {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {
        self.0.set(self.0.get() + 1);
    }
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn intr(&self) -> bool {
        true
    }
    fn intr_ack(&self) -> u8 {
        panic!("interrupts are the accelerator's")
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        false
    }
}

/// Gives what is asked for, and counts.
#[derive(Default)]
struct Bank {
    vectors: u32,
    msrs: u32,
}

impl Lender for Bank {
    fn vectors(&mut self, state: &mut VcpuState) -> Result<(), AccelError> {
        self.vectors += 1;
        state.xcr0 = 3;
        state.fpu.xmm[1] = [3; 16];
        Ok(())
    }
    fn msrs(&mut self) -> Result<BTreeMap<u32, u64>, AccelError> {
        self.msrs += 1;
        Ok([(0xC000_0102, 0xAAAA), (0xC000_0103, 5), (0x10, 1000)].into())
    }
}

struct Guest {
    ram: GuestRam,
    memory: Memory,
    assistant: Assistant,
    state: VcpuState,
    bank: Bank,
    io: Io,
}

impl Guest {
    /// Ring 0 of 64-bit mode, with 2 MiB mapped 1:1 for both rings.
    fn new(code: &[u8]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let mut map = MemoryMap::new(&ram);
        map.log_dirty(true);
        let memory = Memory::new(&map);
        let cpuid = board::Accel::supported_cpuid(&SoftAccel::new(Clock::stopped(), None));
        let assistant = Assistant::new(&memory, 0, &cpuid).unwrap();
        let segment =
            |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let mut state = VcpuState::default();
        state.segments.cs = segment(8, 0xA09B);
        for s in [&mut state.segments.ss, &mut state.segments.ds, &mut state.segments.es] {
            *s = segment(16, 0xC093);
        }
        state.gdt = TableRegister { base: 0x3_4000, limit: 0x3F };
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x8005_0033, 0x1000, 0x620, 0xD00);
        (state.rflags, state.rip, state.gpr[4]) = (2, CODE, STACK);
        state.apic_base = 0xFEE0_0900;
        let guest =
            Self { ram, memory, assistant, state, bank: Bank::default(), io: Io::default() };
        for (at, entry) in [(0x1000, 0x2027), (0x2000, 0x3027), (0x3000, 0xE7)] {
            guest.put(at, entry);
        }
        guest.ram.write(CODE, code).unwrap();
        guest
    }

    fn put(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes()).unwrap();
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn run(&mut self, start: Start, stretch: bool) -> Done {
        let stop = || false;
        let stretch = stretch.then_some(Duration::from_secs(5));
        let limit = Limit { stretch, stop: &stop, shadows: true };
        let state = &mut self.state;
        self.assistant.run(state, start, &mut self.bank, &self.io, &limit).unwrap()
    }
}

#[test]
fn one_instruction_is_executed_and_no_more() {
    // popcnt rax, rbx; inc rax
    let mut guest = Guest::new(&[0xF3, 0x48, 0x0F, 0xB8, 0xC3, 0x48, 0xFF, 0xC0]);
    guest.state.gpr[3] = 0xFF;
    let done = guest.run(Start::Here, false);
    assert_eq!((done.instructions, done.vectors, done.msrs), (1, false, false));
    assert_eq!((guest.state.rip, guest.state.gpr[0]), (CODE + 5, 8));
    assert_eq!((guest.bank.vectors, guest.bank.msrs), (0, 0));
}

#[test]
fn vectors_and_msrs_are_fetched_when_they_are_needed() {
    // paddb xmm1, xmm1; swapgs; hlt
    let mut guest = Guest::new(&[0x66, 0x0F, 0xFC, 0xC9, 0x0F, 0x01, 0xF8, 0xF4]);
    guest.state.segments.gs.base = 0x1234;
    let done = guest.run(Start::Here, true);
    assert_eq!((done.instructions, done.vectors, done.msrs), (2, true, true));
    assert_eq!(guest.state.fpu.xmm[1], [6; 16]);
    assert_eq!(guest.state.segments.gs.base, 0xAAAA);
    assert_eq!(guest.state.msrs[&0xC000_0102], 0x1234);
    assert_eq!((guest.bank.vectors, guest.bank.msrs), (1, 1));
    assert_eq!(guest.state.rip, CODE + 7, "HLT is the accelerator's");
}

#[test]
fn a_stretch_leaves_to_the_accelerator_what_is_its_own() {
    // What each instruction is, then whether it is executed before the stretch ends.
    let cases: [(&str, &[u8], bool); 9] = [
        ("hlt", &[0xF4], false),
        ("sti", &[0xFB], false),
        ("wrmsr", &[0x0F, 0x30], false),
        ("mov cr8, rax", &[0x44, 0x0F, 0x22, 0xC0], false),
        ("mov cr3, rax", &[0x0F, 0x22, 0xD8], false),
        ("invlpg [rax]", &[0x0F, 0x01, 0x38], false),
        ("mov eax, [local APIC]", &[0x8B, 0x02], false),
        ("out 0x80, al", &[0xE6, 0x80], true),
        ("popfq, opening interrupts", &[0x9D], true),
    ];
    for (name, code, executed) in cases {
        // inc rcx; the instruction; inc rcx; hlt
        let mut guest =
            Guest::new(&[&[0x48, 0xFF, 0xC1][..], code, &[0x48, 0xFF, 0xC1, 0xF4][..]].concat());
        // The local APIC's page, 1:1; flags with IF on the stack.
        guest.put(0x2018, 0x4027);
        guest.put(0x4000 + 8 * (0xFEE0_0000_u64 >> 21 & 0x1FF), 0xFEE0_00E7);
        guest.put(STACK, 0x202);
        guest.state.gpr[2] = 0xFEE0_0020;
        guest.run(Start::Here, true);
        let end = CODE + 3 + if executed { code.len() as u64 } else { 0 };
        assert_eq!((guest.state.rip, guest.state.gpr[1]), (end, 1), "{name}");
    }
}

#[test]
fn what_the_accelerator_must_execute_itself_is_refused() {
    for code in [&[0xF4][..], &[0x0F, 0x30], &[0x0F, 0x22, 0xD8]] {
        let mut guest = Guest::new(code);
        let before = guest.state.clone();
        assert_eq!(guest.run(Start::Here, true), Done::default());
        assert_eq!(guest.state, before);
    }
}

#[test]
fn entries_that_may_be_shadowed_are_not_overwritten() {
    // inc rcx; mov [rdi], rax; inc rcx; hlt
    let code = [0x48, 0xFF, 0xC1, 0x48, 0x89, 0x07, 0x48, 0xFF, 0xC1, 0xF4];
    let user = 0x20_0000 | 0x67;
    for (old, written) in
        [(user, false), (user & !1, true), (user & !4, true), (user & !0x20, true)]
    {
        let mut guest = Guest::new(&code);
        guest.state.gpr[7] = DATA;
        guest.put(DATA, old);
        guest.run(Start::Here, true);
        assert_eq!(guest.get(DATA) == 0, written, "{old:#x}");
        assert_eq!(guest.state.gpr[1], if written { 2 } else { 1 });
    }
    // A page that holds what no table does is none.
    let mut guest = Guest::new(&code);
    guest.state.gpr[7] = DATA;
    guest.put(DATA, user);
    guest.put(DATA + 8, u64::MAX);
    guest.run(Start::Here, true);
    assert_eq!(guest.get(DATA), 0);
}

#[test]
fn writes_are_in_the_dirty_log_and_code_is_read_anew() {
    // mov [rdi], rax; hlt
    let mut guest = Guest::new(&[0x48, 0x89, 0x07, 0xF4]);
    guest.state.gpr[7] = DATA;
    guest.run(Start::Here, true);
    let page = (DATA >> 12) as usize;
    assert_ne!(guest.memory.take_dirty(0)[page / 64] >> (page % 64) & 1, 0);
    assert!(guest.memory.take_dirty(0).iter().all(|word| *word == 0));
    // Behind its back: inc rcx.
    guest.ram.write(CODE, &[0x48, 0xFF, 0xC1]).unwrap();
    guest.state.rip = CODE;
    guest.run(Start::Here, true);
    assert_eq!((guest.state.gpr[1], guest.state.rip), (1, CODE + 3));
}

#[test]
fn an_exception_is_undone() {
    // At CODE + 0x100 the handler; the frame leads back to CODE: inc rcx.
    let mut guest = Guest::new(&[0x48, 0xFF, 0xC1]);
    guest.put(0x3_4008, 0x00AF_9B00_0000_FFFF);
    guest.put(0x3_4010, 0x00CF_9300_0000_FFFF);
    let frame = [0, CODE, 8, 0x2, STACK, 0x10];
    for (i, word) in (0..).zip(frame) {
        guest.put(STACK - 48 + 8 * i, word);
    }
    guest.state.rip = CODE + 0x100;
    guest.state.gpr[4] = STACK - 48;
    let start = Start::Interrupted { error_code: true, instead: None };
    assert_eq!(guest.run(start, false).instructions, 1);
    assert_eq!((guest.state.rip, guest.state.gpr[1]), (CODE + 3, 1));
    assert_eq!(guest.state.gpr[4], STACK);
}
