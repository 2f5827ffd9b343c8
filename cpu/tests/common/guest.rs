//! A guest of a few instructions, in a machine of memory alone.

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment, TableRegister, VcpuState};
use board::{Accel, Clock, CpuIo, Exit, Vcpu};
use cpu::{SoftAccel, SoftVcpu};

pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
pub const HANDLERS: u64 = 0x3_0000;
pub const IDT: u64 = 0x3_5000;
pub const GDT: u64 = 0x3_4000;
pub const STACK: u64 = 0x3_3000;
/// The TSS of the task that a guest begins in.
pub const TSS: u64 = 0x3_7000;
/// The page table that maps the first 2 MiB, page by page.
pub const TABLE: u64 = 0x4000;

pub struct Guest {
    pub ram: GuestRam,
    pub accel: SoftAccel,
    pub vcpu: SoftVcpu,
    pub state: VcpuState,
}

pub fn segment(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

impl Guest {
    /// Ring 0 of 64-bit mode; memory is mapped 1:1; every exception ends in HLT.
    pub fn long(code: &[u8]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let accel = SoftAccel::new(Clock::running(), None);
        accel.set_memory(&MemoryMap::new(&ram)).unwrap();
        let mut vcpu = accel.add(0, &accel.supported_cpuid());
        let mut state = vcpu.save().unwrap();
        state.segments.cs = segment(8, 0xA09B);
        for s in [&mut state.segments.ss, &mut state.segments.ds, &mut state.segments.es] {
            *s = segment(16, 0xC093);
        }
        state.gdt = TableRegister { base: GDT, limit: 0x7F };
        state.idt = TableRegister { base: IDT, limit: 0x1FF };
        state.cr0 = 0x8005_0033;
        state.cr3 = 0x1000;
        state.cr4 = 0x620;
        state.efer = 0xD00;
        state.rflags = 2;
        state.rip = CODE;
        state.gpr = [0; 16];
        state.gpr[4] = STACK;
        state.mp_state = MpState::Runnable;
        let guest = Self { ram, accel, vcpu, state };
        guest.put(0x1000, 0x2007);
        guest.put(0x2000, 0x3007);
        guest.put(0x3000, TABLE | 7);
        for page in 0..512 {
            guest.put(TABLE + 8 * page, page << 12 | 7);
        }
        guest.put(GDT + 8, 0x00AF_9B00_0000_FFFF);
        guest.put(GDT + 16, 0x00CF_9300_0000_FFFF);
        for vector in 0..32 {
            let handler = HANDLERS + 16 * vector;
            guest.ram.write(handler, &[0xF4]).unwrap();
            guest.put(
                IDT + 16 * vector,
                handler & 0xFFFF | 8 << 16 | 0x8E << 40 | (handler >> 16) << 48,
            );
        }
        guest.ram.write(CODE, code).unwrap();
        guest
    }

    pub fn put(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes()).unwrap();
    }

    pub fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Runs from `state` until the guest halts.
    pub fn run(&mut self, io: &dyn CpuIo) -> VcpuState {
        self.vcpu.restore(&self.state).unwrap();
        let exit = self.vcpu.run(io).unwrap();
        assert!(matches!(exit, Exit::Halted), "{exit:?}");
        self.vcpu.save().unwrap()
    }

    /// Vector, error code and RIP of the exception that a halted guest is in.
    pub fn exception(&self, state: &VcpuState) -> (u64, u64, u64) {
        let vector = (state.rip - 1 - HANDLERS) / 16;
        let with_error = matches!(vector, 8 | 10..=14 | 17);
        let word = |i: u64| self.get(state.gpr[4] + 8 * i);
        if with_error { (vector, word(0), word(1)) } else { (vector, 0, word(0)) }
    }

    /// Makes ring 3 of 64-bit mode the state to begin with, with a TSS for entering ring 0.
    pub fn ring3(&mut self) {
        self.put(TSS + 4, STACK);
        let s = &mut self.state;
        s.segments.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8B };
        s.segments.cs = segment(0x33, 0xA0FB);
        s.segments.ss = segment(0x3B, 0xC0F3);
        s.segments.ds = segment(0x3B, 0xC0F3);
        s.gpr[4] = DATA + 0x800;
    }

    /// Ring 0 of 32-bit protected mode without paging, in the task of the TSS at [`TSS`]. The GDT
    /// has flat code and data of ring 0 (8, 0x10) and of ring 3 (0x1B, 0x23); exceptions end in HLT.
    pub fn protected(code: &[u8]) -> Self {
        let mut guest = Self::long(code);
        guest.put(GDT + 8, 0x00CF_9B00_0000_FFFF);
        guest.put(GDT + 0x18, 0x00CF_FB00_0000_FFFF);
        guest.put(GDT + 0x20, 0x00CF_F300_0000_FFFF);
        guest.put(GDT + 0x28, system(TSS, 0x67, 0x8B));
        guest.put(TSS + 4, STACK | 0x10 << 32);
        for vector in 0..32 {
            guest.put(IDT + 8 * vector, gate(HANDLERS + 16 * vector, 8, 0x8E));
        }
        let s = &mut guest.state;
        (s.cr0, s.cr4, s.efer) = (0x33, 0, 0);
        s.segments.cs = segment(8, 0xC09B);
        s.segments.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8B };
        guest
    }

    pub fn put32(&self, at: u64, value: u32) {
        self.ram.write(at, &value.to_le_bytes()).unwrap();
    }

    pub fn get32(&self, at: u64) -> u32 {
        self.get(at) as u32
    }

    /// Whether a halted guest is in the handler of an exception.
    pub fn in_handler(&self, state: &VcpuState) -> bool {
        (HANDLERS..HANDLERS + 0x200).contains(&state.rip)
    }

    /// What lies on the stack of a halted guest in a handler of [`Guest::protected`], without the
    /// error code: EIP, CS, EFLAGS and so on; vector and error code come first.
    pub fn frame32(&self, state: &VcpuState) -> (u64, u32, [u32; 9]) {
        assert!(self.in_handler(state), "{:x}", state.rip);
        let vector = (state.rip - 1 - HANDLERS) / 16;
        let with_error = matches!(vector, 8 | 10..=14 | 17);
        let at = state.gpr[4] + if with_error { 4 } else { 0 };
        let error = if with_error { self.get32(at - 4) } else { 0 };
        (vector, error, std::array::from_fn(|i| self.get32(at + 4 * i as u64)))
    }
}

/// A 32-bit gate.
pub fn gate(offset: u64, selector: u64, kind: u64) -> u64 {
    offset & 0xFFFF | selector << 16 | kind << 40 | (offset >> 16) << 48
}

/// A system descriptor below 16 MiB, such as that of a TSS.
pub fn system(base: u64, limit: u64, kind: u64) -> u64 {
    limit | base << 16 | kind << 40
}
