//! Small guests that show what an oracle in ring 3 cannot: paging, self-modifying code, faults in
//! the middle, task switches, debug traps, the dirty log, saving and restoring.

mod common;

use std::cell::{Cell, RefCell};

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment};
use board::{Accel, CpuIo, Exit, Vcpu};
use common::guest::{CODE, DATA, GDT, Guest, HANDLERS, IDT, STACK, TABLE, segment};
use common::{NoIo, Rng};

#[test]
fn code_that_changes_the_next_instruction_executes_what_it_wrote() {
    // mov byte [rip + 1], 2; mov al, 1; hlt
    let mut guest = Guest::long(&[0xC6, 0x05, 1, 0, 0, 0, 2, 0xB0, 1, 0xF4]);
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 2);
}

/// Patches the guest's code from a device.
struct Dma<'a> {
    ram: &'a GuestRam,
    rounds: Cell<u32>,
    seen: RefCell<Vec<u8>>,
}

impl CpuIo for Dma<'_> {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0);
    }
    fn pio_write(&self, _port: u16, data: &[u8]) {
        self.seen.borrow_mut().push(data[0]);
        self.rounds.set(self.rounds.get() + 1);
        if self.rounds.get() == 3 {
            self.ram.write(CODE + 1, &[2]).unwrap();
        }
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
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
fn code_that_a_device_overwrites_is_decoded_anew() {
    // mov al, 1; out 0x80, al; cmp al, 2; jne start; hlt
    let mut guest = Guest::long(&[0xB0, 1, 0xE6, 0x80, 0x3C, 2, 0x75, 0xF8, 0xF4]);
    let ram = guest.ram.clone();
    let io = Dma { ram: &ram, rounds: Cell::new(0), seen: RefCell::default() };
    guest.run(&io);
    assert_eq!(*io.seen.borrow(), [1, 1, 1, 2]);
}

#[test]
fn stores_beside_code_change_just_what_they_hit() {
    // Adds of one to registers by turns, at random places of two pages and in random lengths, with jumps that link
    // them; the code before each writes immediates of other adds, and data between them, all the time.
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let mut code = vec![0xCC_u8; 0x2000];
        let spots: Vec<usize> = (0..40).map(|i| i * 200 + rng.below(150) as usize).collect();
        // What each spot adds; the model of what the guest has written.
        let mut adds = vec![1_u32; spots.len()];
        let mut sum = 0_u32;
        let mut order: Vec<usize> = (0..spots.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let mut writes = Vec::new();
        for (n, spot) in order.iter().enumerate() {
            let victim = rng.below(spots.len() as u64) as usize;
            let value = rng.next() as u32;
            // Half of them hit bytes that no instruction has.
            let offset = if rng.below(2) == 0 { spots[victim] + 1 } else { spots[victim] + 40 };
            writes.push((*spot, victim, value, offset == spots[victim] + 1));
            let at = spots[*spot];
            let next = order.get(n + 1).map_or(0x1FF0, |next| spots[*next]);
            // add eax, adds; mov dword [CODE + offset], value; jmp next
            let mut bytes = vec![0x05, 1, 0, 0, 0, 0xC7, 0x04, 0x25];
            bytes.extend((CODE as u32 + offset as u32).to_le_bytes());
            bytes.extend(value.to_le_bytes());
            bytes.push(0xE9);
            bytes.extend((next as i32 - (at + bytes.len() + 4) as i32).to_le_bytes());
            code[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        // dec ecx; jz over the jump; jmp to the first; hlt
        let mut end = vec![0xFF, 0xC9, 0x74, 5, 0xE9];
        end.extend((spots[order[0]] as i32 - (0x1FF0 + 9)).to_le_bytes());
        end.push(0xF4);
        code[0x1FF0..0x1FF0 + end.len()].copy_from_slice(&end);
        let mut guest = Guest::long(&code);
        guest.state.rip = CODE + spots[order[0]] as u64;
        guest.state.gpr[1] = 3;
        let state = guest.run(&NoIo::default());
        for _ in 0..3 {
            for (spot, victim, value, hits) in &writes {
                sum = sum.wrapping_add(adds[*spot]);
                if *hits {
                    adds[*victim] = *value;
                }
            }
        }
        assert_eq!(state.gpr[0] as u32, sum, "seed {seed}");
    }
}

#[test]
fn an_instruction_across_pages_follows_its_second_page() {
    // At the end of the page: mov eax, 0x11111111; then hlt in the next page.
    let mut guest = Guest::long(&[]);
    guest.ram.write(CODE + 0xFFE, &[0xB8, 0x11, 0x11, 0x11, 0x11, 0xF4]).unwrap();
    guest.state.rip = CODE + 0xFFE;
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 0x1111_1111);
    guest.ram.write(CODE + 0x1000, &[0x22]).unwrap();
    assert_eq!(guest.run(&NoIo::default()).gpr[0], 0x1111_2211);
    // The second page is gone: the fault is at its first byte, RIP at the instruction.
    guest.put(TABLE + 8 * (CODE / 4096 + 1), 0);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 0x10, CODE + 0xFFE));
    assert_eq!(after.cr2, CODE + 0x1000);
}

#[test]
fn a_string_instruction_stops_where_it_faults() {
    // rep movsb
    let mut guest = Guest::long(&[0xF3, 0xA4]);
    guest.put(TABLE + 8 * (DATA / 4096 + 2), 0);
    guest.state.gpr[1] = 0x3000;
    guest.state.gpr[6] = DATA + 0x10_000;
    guest.state.gpr[7] = DATA + 0x10;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (14, 2, CODE));
    assert_eq!(after.cr2, DATA + 0x2000);
    let done = 0x2000 - 0x10;
    assert_eq!(after.gpr[1], 0x3000 - done);
    assert_eq!(after.gpr[6], DATA + 0x10_000 + done);
    assert_eq!(after.gpr[7], DATA + 0x2000);
}

#[test]
fn page_rights_and_error_codes() {
    const NX: u64 = 1 << 63;
    let page = DATA / 4096;
    let at = DATA | 7;
    // mov rax, [rdi]; mov [rdi], rax; call rdi
    let (read, write, exec): (&[u8], &[u8], &[u8]) =
        (&[0x48, 0x8B, 0x07, 0xF4], &[0x48, 0x89, 0x07, 0xF4], &[0xFF, 0xE7]);
    // Code, entry, CR0.WP, CR4 bits, the error code of the page fault or none.
    type Case<'a> = (&'a [u8], u64, bool, u64, Option<u64>);
    let cases: &[Case] = &[
        (read, at & !1, true, 0, Some(0)),
        (write, at & !1, true, 0, Some(2)),
        (read, at & !2, true, 0, None),
        (write, at & !2, true, 0, Some(3)),
        (write, at & !2, false, 0, None),
        (exec, at | NX, true, 0, Some(0x11)),
        // SMEP and SMAP: user pages.
        (exec, at, true, 1 << 20, Some(0x11)),
        (read, at, true, 1 << 21, Some(1)),
        (read, at & !4, true, 1 << 21, None),
        // A bit above the physical addresses is reserved.
        (read, at | 1 << 45, true, 0, Some(9)),
    ];
    for (i, (code, entry, wp, cr4, expected)) in cases.iter().enumerate() {
        let mut guest = Guest::long(code);
        // All other pages are the supervisor's, so that SMEP and SMAP concern this one alone.
        for page in 0..512 {
            guest.put(TABLE + 8 * page, page << 12 | 3);
        }
        guest.put(TABLE + 8 * page, *entry);
        guest.ram.write(DATA, &[0xF4]).unwrap();
        guest.state.gpr[7] = DATA;
        guest.state.cr4 |= cr4;
        if !wp {
            guest.state.cr0 &= !(1 << 16);
        }
        let after = guest.run(&NoIo::default());
        let fault =
            (HANDLERS..HANDLERS + 0x1000).contains(&after.rip).then(|| guest.exception(&after));
        assert_eq!(fault.map(|f| (f.0, f.1)), expected.map(|e| (14, e)), "case {i}");
        assert_eq!(after.cr2, if expected.is_some() { DATA } else { 0 }, "case {i}");
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_by_what_touches_a_page() {
    // mov rax, [rdi]; mov [rsi], rax; hlt
    let mut guest = Guest::long(&[0x48, 0x8B, 0x07, 0x48, 0x89, 0x06, 0xF4]);
    (guest.state.gpr[7], guest.state.gpr[6]) = (DATA, DATA + 0x1000);
    guest.run(&NoIo::default());
    let entry = |page: u64| guest.get(TABLE + 8 * page) & 0x60;
    let page = DATA / 4096;
    assert_eq!((entry(page), entry(page + 1), entry(page + 2)), (0x20, 0x60, 0));
}

#[test]
fn invlpg_makes_a_new_mapping_seen() {
    // mov rax, [rdi]; mov [rsi], rdx; invlpg [rdi]; mov rbx, [rdi]; hlt
    let mut guest = Guest::long(&[
        0x48, 0x8B, 0x07, 0x48, 0x89, 0x16, 0x0F, 0x01, 0x3F, 0x48, 0x8B, 0x1F, 0xF4,
    ]);
    guest.put(DATA, 1);
    guest.put(DATA + 0x1000, 2);
    guest.state.gpr[7] = DATA;
    guest.state.gpr[6] = TABLE + 8 * (DATA / 4096);
    guest.state.gpr[2] = (DATA + 0x1000) | 7;
    let after = guest.run(&NoIo::default());
    assert_eq!((after.gpr[0], after.gpr[3]), (1, 2));
}

#[test]
fn a_single_step_traps_behind_the_instruction() {
    // push 0x102; popfq; nop; nop
    let mut guest = Guest::long(&[0x68, 2, 1, 0, 0, 0x9D, 0x90, 0x90, 0xF4]);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (1, 0, CODE + 7));
    assert_eq!(after.debug.status & 0xF00F, 0x4000);
}

#[test]
fn watchpoints_and_breakpoints() {
    // mov [rdi], eax; nop; hlt
    let mut guest = Guest::long(&[0x89, 0x07, 0x90, 0xF4]);
    guest.state.gpr[7] = DATA + 4;
    guest.state.debug.address[1] = DATA + 4;
    guest.state.debug.control = 0x400 | 1 << 2 | 0xD << 20;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (1, 0, CODE + 2));
    assert_eq!(after.debug.status & 0xF, 2);
    guest.state.debug.address[1] = CODE + 2;
    guest.state.debug.control = 0x400 | 1 << 2;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (1, 0, CODE + 2));
}

#[test]
fn a_port_breakpoint_traps_behind_the_access() {
    // in al, 0x61; nop; hlt
    let mut guest = Guest::long(&[0xE4, 0x61, 0x90, 0xF4]);
    guest.state.debug.address[2] = 0x60;
    // Two bytes, enabled: 0x60 and 0x61.
    guest.state.debug.control = 0x400 | 1 << 4 | 0x6 << 24;
    guest.state.cr4 |= 8;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (1, 0, CODE + 2));
    assert_eq!(after.debug.status & 0xF, 4);
    // Without CR4.DE there are no such breakpoints.
    guest.state.cr4 &= !8;
    assert_eq!(guest.run(&NoIo::default()).rip, CODE + 4);
}

#[test]
fn a_watchpoint_that_is_not_enabled_does_not_trap() {
    // mov [rdi], eax; hlt
    let mut guest = Guest::long(&[0x89, 0x07, 0xF4]);
    guest.state.gpr[7] = DATA;
    guest.state.debug.address = [DATA, DATA + 64, 0, 0];
    // Only the second is enabled.
    guest.state.debug.control = 0x400 | 1 << 2 | 0xDD << 16;
    assert_eq!(guest.run(&NoIo::default()).rip, CODE + 3);
}

#[test]
fn alignment_is_checked_where_it_was_asked_for() {
    // mov eax, [rdi]; ud2
    let mut guest = Guest::long(&[0x8B, 0x07, 0x0F, 0x0B]);
    guest.ring3();
    const AM: u64 = 1 << 18;
    const AC: u64 = 1 << 18;
    for (cr0, flags, address, vector) in [
        (AM, AC, DATA + 2, 17),
        (AM, AC, DATA + 4, 6),
        (AM, 0, DATA + 2, 6),
        (0, AC, DATA + 2, 6),
        // Across pages; and a page fault comes first.
        (AM, AC, DATA + 0xFFE, 17),
        (AM, AC, 0x4000_0002, 14),
    ] {
        guest.state.cr0 = guest.state.cr0 & !AM | cr0;
        guest.state.rflags = 2 | flags;
        guest.state.gpr[7] = address;
        let after = guest.run(&NoIo::default());
        let (is, error, _) = guest.exception(&after);
        assert_eq!(is, vector, "CR0 {cr0:x} flags {flags:x} at {address:x}");
        assert_eq!(error, if vector == 14 { 4 } else { 0 });
    }
    // A locked access, and the supervisor, whom nobody checks.
    guest.ram.write(CODE, &[0xF0, 0xFF, 0x07, 0x0F, 0x0B]).unwrap();
    guest.state.gpr[7] = DATA + 1;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after).0, 17);
    guest.state.segments.cs = segment(8, 0xA09B);
    guest.state.segments.ss = segment(16, 0xC093);
    guest.state.gpr[4] = STACK;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after).0, 6);
}

#[test]
fn the_kvm_clock_page_says_how_the_tsc_becomes_time() {
    // wrmsr; rdtsc; shl rdx, 32; or rax, rdx; hlt
    let code = [0x0F, 0x30, 0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xF4];
    let mut guest = Guest::long(&code);
    guest.state.gpr[1] = 0x4B56_4D01;
    guest.state.gpr[0] = (DATA + 8) | 1;
    let before = guest.accel.clock().unwrap().nanos;
    let after = guest.run(&NoIo::default());
    let word = |at: u64| guest.get(DATA + 8 + at);
    let (version, began, base) = (word(0) as u32, word(8), word(16));
    let (multiplier, shift, flags) =
        (word(24) as u32, (word(24) >> 32) as i8, (word(24) >> 40) as u8);
    assert_eq!((version % 2, flags), (0, 1));
    assert!(version > 0 && shift >= 0);
    let ticks = u128::from(after.gpr[0].wrapping_sub(began) << shift);
    let now = base.wrapping_add(((ticks * u128::from(multiplier)) >> 32) as u64);
    assert!((before..=guest.accel.clock().unwrap().nanos).contains(&now));

    // It is saved; where CPUID does not offer it, there is no such MSR.
    guest.state = guest.vcpu.save().unwrap();
    assert_eq!(guest.state.msrs[&0x4B56_4D01], (DATA + 8) | 1);
    (guest.state.rip, guest.state.mp_state) = (CODE, MpState::Runnable);
    guest.state.gpr = [0; 16];
    (guest.state.gpr[1], guest.state.gpr[4]) = (0x4B56_4D01, STACK);
    guest.state.cpuid.get_mut(0x4000_0001, 0).unwrap().eax = 0;
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (13, 0, CODE));
}

#[test]
fn a_fault_without_handlers_is_a_triple_fault() {
    let mut guest = Guest::long(&[0x0F, 0x0B]);
    guest.state.idt.limit = 0;
    guest.vcpu.restore(&guest.state).unwrap();
    assert!(matches!(guest.vcpu.run(&NoIo::default()).unwrap(), Exit::Shutdown));
}

#[test]
fn a_page_fault_while_a_page_fault_is_delivered_is_a_double_fault() {
    // mov rax, [rdi]
    let mut guest = Guest::long(&[0x48, 0x8B, 0x07]);
    guest.state.gpr[7] = 0x4000_0000;
    // The gate of #PF leads nowhere; that of #DF works.
    guest.put(IDT + 16 * 14, 0);
    let after = guest.run(&NoIo::default());
    assert_eq!(guest.exception(&after), (8, 0, CODE));
    assert_eq!(after.cr2, 0x4000_0000);
}

#[test]
fn the_dirty_log_names_written_pages_each_time() {
    let mut guest = Guest::long(&[0x89, 0x07, 0xF4]);
    let mut map = MemoryMap::new(&guest.ram);
    map.log_dirty(true);
    guest.accel.set_memory(&map).unwrap();
    guest.state.gpr[7] = DATA;
    for _ in 0..2 {
        guest.run(&NoIo::default());
        let log = guest.accel.take_dirty(0).unwrap();
        let page = DATA / 4096;
        assert_ne!(log[(page / 64) as usize] & 1 << (page % 64), 0);
    }
}

#[test]
fn a_saved_vcpu_goes_on_in_another() {
    // loop: inc rax; addsd xmm0, xmm1; fadd st0, st1; dec rcx; jnz loop; hlt
    let code =
        [0x48, 0xFF, 0xC0, 0xF2, 0x0F, 0x58, 0xC1, 0xD8, 0xC1, 0x48, 0xFF, 0xC9, 0x75, 0xF2, 0xF4];
    let mut guest = Guest::long(&code);
    guest.state.gpr[1] = 2_000_000;
    guest.state.fpu.xmm[1][..8].copy_from_slice(&1.5_f64.to_le_bytes());
    guest.state.fpu.ftw = 0xFF;
    guest.state.fpu.st[1] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0x3F];
    let whole = guest.run(&NoIo::default());

    guest.vcpu.restore(&guest.state).unwrap();
    let kicker = guest.vcpu.kicker();
    let mut exits = 0;
    let end = loop {
        let kicker = kicker.clone();
        let kick = std::thread::spawn(move || kicker.kick());
        let exit = guest.vcpu.run(&NoIo::default()).unwrap();
        kick.join().unwrap();
        let state = guest.vcpu.save().unwrap();
        if matches!(exit, Exit::Halted) {
            break state;
        }
        exits += 1;
        let text = serde_json::to_string(&state).unwrap();
        guest.vcpu = guest.accel.add(0, &state.cpuid);
        guest.vcpu.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        if exits == 20 {
            // The rest without kicks.
            let exit = guest.vcpu.run(&NoIo::default()).unwrap();
            assert!(matches!(exit, Exit::Halted | Exit::Kicked), "{exit:?}");
            break guest.vcpu.save().unwrap();
        }
    };
    assert_eq!((end.gpr, end.rip), (whole.gpr, whole.rip));
    assert_eq!((end.fpu.xmm, end.fpu.st), (whole.fpu.xmm, whole.fpu.st));
}

#[test]
fn a_jump_to_a_tss_switches_tasks() {
    const TSS_A: u64 = 0x3_7000;
    const TSS_B: u64 = 0x3_8000;
    let mut guest = Guest::long(&[]);
    // jmp 0x28:0; (back in task A) hlt
    guest.ram.write(CODE, &[0xEA, 0, 0, 0, 0, 0x28, 0, 0xF4]).unwrap();
    // Task B: inc eax; iretd is not legal here, so jmp 0x20:0 goes back.
    guest.ram.write(DATA, &[0x40, 0xEA, 0, 0, 0, 0, 0x20, 0]).unwrap();
    guest.put(GDT + 8, 0x00CF_9B00_0000_FFFF);
    let tss = |base: u64, kind: u64| 0x67 | (base & 0xFF_FFFF) << 16 | (0x80 | kind) << 40;
    guest.put(GDT + 0x20, tss(TSS_A, 0xB));
    guest.put(GDT + 0x28, tss(TSS_B, 9));
    let word = |at: u64, v: u32| guest.ram.write(at, &v.to_le_bytes()).unwrap();
    word(TSS_B + 32, DATA as u32);
    word(TSS_B + 36, 2);
    word(TSS_B + 40, 41);
    word(TSS_B + 56, STACK as u32);
    for (i, selector) in [16, 8, 16, 16, 0, 0].into_iter().enumerate() {
        word(TSS_B + 72 + 4 * i as u64, selector);
    }
    let s = &mut guest.state;
    s.cr0 = 0x33;
    s.cr4 = 0;
    s.efer = 0;
    s.segments.cs = segment(8, 0xC09B);
    s.segments.tr = Segment { selector: 0x20, base: TSS_A, limit: 0x67, attributes: 0x8B };
    s.gpr[0] = 7;
    let after = guest.run(&NoIo::default());
    assert_eq!(after.rip, CODE + 8);
    assert_eq!(after.gpr[0], 7, "task A has its own registers");
    assert_eq!(guest.get(TSS_B + 40) as u32, 42, "task B's were saved");
    assert_eq!(after.segments.tr.selector, 0x20);
    assert_ne!(after.cr0 & 8, 0, "TS is set");
    let busy = |at: u64| guest.get(at) >> 41 & 1;
    assert_eq!((busy(GDT + 0x20), busy(GDT + 0x28)), (1, 0));
}

#[test]
fn random_bytes_in_every_mode_never_harm_the_host() {
    let mut rng = Rng::new(7);
    for round in 0..120 {
        let mut guest = Guest::long(&[]);
        let code: Vec<u8> = (0..4096).map(|_| rng.next() as u8).collect();
        guest.ram.write(CODE, &code).unwrap();
        let s = &mut guest.state;
        match round % 4 {
            0 => {}
            // 32-bit and 16-bit protected mode, real mode.
            1 | 2 => {
                (s.cr0, s.cr4, s.efer) = (0x33, 0, 0);
                s.segments.cs = segment(8, if round % 4 == 1 { 0xC09B } else { 0x809B });
            }
            _ => {
                (s.cr0, s.cr4, s.efer) = (0x30, 0, 0);
                let real = |base: u64| Segment {
                    selector: (base >> 4) as u16,
                    base,
                    limit: 0xFFFF,
                    attributes: 0x93,
                };
                s.segments.cs = real(CODE);
                s.segments.ss = real(STACK & !0xF);
                s.segments.ds = real(DATA);
                s.segments.es = real(DATA);
                s.rip = 0;
                s.gpr[4] = 0x800;
            }
        }
        for r in [0, 1, 2, 3, 5, 6, 7] {
            s.gpr[r] = DATA + rng.below(0x1000);
        }
        guest.vcpu.restore(&guest.state).unwrap();
        let kicker = guest.vcpu.kicker();
        let kick = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2));
            kicker.kick();
        });
        let exit = guest.vcpu.run(&NoIo::default()).unwrap();
        assert!(!matches!(exit, Exit::InternalError(_)), "{exit:?}");
        kick.join().unwrap();
        guest.vcpu.save().unwrap();
    }
}
