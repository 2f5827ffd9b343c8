//! Random bytes as code, in each mode: nothing may panic, and blocks must do what single steps do.
//!
//! Input: a byte for the mode, one for the privilege, sixteen that registers follow from, then code.

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{Cpuid, MpState, Segment, TableRegister, VcpuState};
use board::{Accel, Clock, Exit, Vcpu};

use crate::{NoMachine, SoftAccel, SoftVcpu};

const RAM: u64 = 0x8_0000;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x6000;
const IDT: u64 = 0x7000;
const TSS: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const STACK: u64 = 0xF000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
/// Blocks that are run.
const BLOCKS: u64 = 40;
/// Turns that single steps may take for as many instructions: more where these fault.
const TURNS: u64 = 40 * BLOCKS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    V86,
    Protected16,
    Protected32,
    Paged,
    Pae,
    Compatibility,
    Long,
}

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::V86,
    Mode::Protected16,
    Mode::Protected32,
    Mode::Paged,
    Mode::Pae,
    Mode::Compatibility,
    Mode::Long,
];

impl Mode {
    fn long(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }
}

/// A vCPU with memory of its own.
struct Guest {
    ram: GuestRam,
    vcpu: SoftVcpu,
}

/// All that is offered but random numbers.
fn cpuid(accel: &SoftAccel) -> Cpuid {
    let mut cpuid = accel.supported_cpuid();
    if let Some(leaf) = cpuid.get_mut(1, 0) {
        leaf.ecx &= !(1 << 30);
    }
    if let Some(leaf) = cpuid.get_mut(7, 0) {
        leaf.ebx &= !(1 << 18);
    }
    cpuid
}

impl Guest {
    fn new(mode: Mode, user: bool, seeds: &[u8], code: &[u8]) -> Self {
        let ram = GuestRam::new(RAM).expect("memory for a guest");
        let accel = SoftAccel::new(Clock::stopped(), None);
        accel.set_memory(&MemoryMap::new(&ram)).expect("any map");
        let cpuid = cpuid(&accel);
        let vcpu = accel.add(0, &cpuid);
        let mut guest = Self { ram, vcpu };
        guest.tables(mode);
        guest.descriptors(mode);
        guest.ram.write(CODE, code).expect("code that fits");
        guest.ram.write(DATA, code).expect("data that fit");
        let mut state = guest.vcpu.save().expect("a state");
        guest.state(&mut state, mode, user, seeds);
        guest.vcpu.restore(&state).expect("a legal state");
        guest
    }

    fn put(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes()).expect("within RAM");
    }

    /// RAM is mapped where it is, for everybody.
    fn tables(&self, mode: Mode) {
        let (all, pages) = (7, RAM >> 12);
        let next = |n: u64| (TABLES + 0x1000 * n) | all;
        match mode {
            Mode::Paged => {
                self.ram.write(TABLES, &(next(1) as u32).to_le_bytes()).expect("within RAM");
                for i in 0..pages {
                    let entry = (i << 12 | all) as u32;
                    let at = TABLES + 0x1000 + 4 * i;
                    self.ram.write(at, &entry.to_le_bytes()).expect("within RAM");
                }
            }
            Mode::Pae => {
                self.put(TABLES, next(1) & !6);
                self.put(TABLES + 0x1000, next(2));
                (0..pages).for_each(|i| self.put(TABLES + 0x2000 + 8 * i, i << 12 | all));
            }
            _ => {
                (0..3).for_each(|n| self.put(TABLES + 0x1000 * n, next(n + 1)));
                (0..pages).for_each(|i| self.put(TABLES + 0x3000 + 8 * i, i << 12 | all));
            }
        }
    }

    /// Segments, and gates that lead to a HLT for each vector.
    fn descriptors(&self, mode: Mode) {
        let long = mode.long();
        self.put(GDT + 8, if long { 0x00AF_9B00_0000_FFFF } else { 0x00CF_9B00_0000_FFFF });
        self.put(GDT + 16, 0x00CF_9300_0000_FFFF);
        self.put(GDT + 24, 0x00CF_F300_0000_FFFF);
        self.put(GDT + 32, 0x00CF_FB00_0000_FFFF);
        self.put(GDT + 40, 0x00AF_FB00_0000_FFFF);
        self.put(GDT + 48, 0x0000_8B00_0000_0067 | TSS << 16);
        self.put(TSS + 4, if long { STACK } else { STACK | 16 << 32 });
        for vector in 0..32 {
            let handler = HANDLERS + 16 * vector;
            self.ram.write(handler, &[0xF4]).expect("within RAM");
            let gate = handler & 0xFFFF | 8 << 16 | 0xEE00 << 32 | (handler >> 16) << 48;
            self.put(IDT + if long { 16 } else { 8 } * vector, gate);
        }
    }

    fn state(&self, s: &mut VcpuState, mode: Mode, user: bool, seeds: &[u8]) {
        let flat = |selector: u16, attributes: u32| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
        };
        let real = |base: u64, attributes: u32| Segment {
            selector: (base >> 4) as u16,
            base,
            limit: 0xFFFF,
            attributes,
        };
        let user = user && mode != Mode::Real;
        let dpl = if user { 0x60 } else { 0 };
        let code = match mode {
            Mode::Long => 0xA09B,
            Mode::Protected16 => 0x009B,
            _ => 0xC09B,
        };
        let (code_selector, data_selector) = match (user, mode) {
            (false, _) => (8, 16),
            (true, Mode::Long) => (43, 27),
            (true, _) => (35, 27),
        };
        let g = &mut s.segments;
        if matches!(mode, Mode::Real | Mode::V86) {
            let attributes = if mode == Mode::Real { 0x93 } else { 0xF3 };
            g.cs = real(CODE, attributes);
            g.ss = real(STACK & !0xFFF, attributes);
            (g.ds, g.es) = (real(DATA, attributes), real(DATA, attributes));
        } else {
            g.cs = flat(code_selector, code | dpl);
            let data = flat(data_selector, 0xC093 | dpl);
            (g.ss, g.ds, g.es, g.fs, g.gs) = (data, data, data, data, data);
        }
        g.tr = Segment { selector: 48, base: TSS, limit: 0x67, attributes: 0x8B };
        s.gdt = TableRegister { base: GDT, limit: 0x3F };
        s.idt = match mode {
            Mode::Real => TableRegister { base: 0, limit: 0x3FF },
            _ => TableRegister { base: IDT, limit: if mode.long() { 0x1FF } else { 0xFF } },
        };
        s.cr3 = TABLES;
        // NE, ET, MP; OSFXSR, OSXMMEXCPT, OSXSAVE, FSGSBASE.
        (s.cr0, s.cr4, s.efer) = (0x32, 0x5_0600, 0x800);
        match mode {
            Mode::Real => {}
            Mode::V86 | Mode::Protected16 | Mode::Protected32 => s.cr0 |= 1,
            Mode::Paged => s.cr0 |= 0x8001_0001,
            Mode::Pae => {
                s.cr0 |= 0x8001_0001;
                s.cr4 |= 0x20;
                s.pdptr[0] = (TABLES + 0x1000) | 1;
            }
            Mode::Compatibility | Mode::Long => {
                s.cr0 |= 0x8001_0001;
                s.cr4 |= 0x20;
                s.efer |= 0x501;
            }
        }
        s.xcr0 = 7;
        s.rflags = match mode {
            Mode::V86 => 0x2_3002,
            _ => 2,
        };
        s.rip = if matches!(mode, Mode::Real | Mode::V86) { 0 } else { CODE };
        for (i, r) in s.gpr.iter_mut().enumerate() {
            let seed = u64::from(seeds.get(i).copied().unwrap_or(0));
            *r = match (mode, seed >> 6) {
                (Mode::Real | Mode::V86, _) => seed * 16,
                (_, 0) => seed & 0x3F,
                (_, 1) => CODE + (seed & 0x3F) * 4,
                (_, 2) => DATA + (seed & 0x3F) * 64,
                _ => (seed & 0x3F).wrapping_sub(8).rotate_right(4),
            };
        }
        s.gpr[4] = if matches!(mode, Mode::Real | Mode::V86) { 0xF00 } else { STACK };
        s.mp_state = MpState::Runnable;
    }

    fn memory(&self) -> Vec<u8> {
        let mut all = vec![0; RAM as usize];
        self.ram.read(0, &mut all).expect("within RAM");
        all
    }

    fn saved(&mut self) -> String {
        format!("{:x?}", self.vcpu.save().expect("a state"))
    }
}

/// Runs `bytes` as code by blocks, then again by single steps, and compares.
///
/// # Panics
/// When the two differ, or anything panics.
pub fn interpreter(bytes: &[u8]) {
    let [mode, user, rest @ ..] = bytes else { return };
    let (seeds, code) = rest.split_at(rest.len().min(16));
    let (mode, user) = (MODES[usize::from(*mode) % MODES.len()], user & 1 != 0);
    let code = &code[..code.len().min(0x1000)];
    let mut blocks = Guest::new(mode, user, seeds, code);
    let exit = blocks.vcpu.run_blocks(&NoMachine, BLOCKS);
    assert!(!matches!(exit, Some(Exit::InternalError(_))), "{exit:?}");
    let executed = blocks.vcpu.instructions();
    let (wanted, memory) = (blocks.saved(), blocks.memory());

    let mut steps = Guest::new(mode, user, seeds, code);
    let mut last = None;
    for _ in 0..TURNS {
        if steps.vcpu.instructions() == executed && exit.is_none() {
            // What a block has begun and not ended, such as a fault that was not yet delivered,
            // is not part of the state.
            if steps.saved() == wanted && steps.memory() == memory {
                return;
            }
        }
        assert!(
            steps.vcpu.instructions() <= executed,
            "{mode:?}: by steps the state after {executed} instructions is none that blocks reach"
        );
        // A step executes one instruction at most.
        let missing = executed - steps.vcpu.instructions();
        last = steps.vcpu.run_steps(&NoMachine, missing.max(1));
        if last.is_some() {
            break;
        }
    }
    let exits = [&exit, &last].map(|exit| format!("{exit:?}"));
    assert_eq!(exits[0], exits[1], "{mode:?}");
    assert_eq!(executed, steps.vcpu.instructions(), "{mode:?}");
    assert_eq!(wanted, steps.saved(), "{mode:?}");
    assert!(memory == steps.memory(), "{mode:?}: memory differs");
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_do_what_single_steps_do() {
        board::fuzz::seeded(1, 500, 400, super::interpreter);
    }
}
