//! The interpreter's side: ring 3 of a 64-bit guest, whose exceptions end in a HLT each.

use std::collections::BTreeMap;

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment, TableRegister, VcpuState};
use board::{Accel, Clock, Exit, Vcpu};
use cpu::{SoftAccel, SoftVcpu};

use crate::common::NoIo;
use crate::{AREA, ARITH, CODE, DATA, DATA_LEN, Input, Outcome, SLOT, comparable};

/// Guest-physical addresses.
const CODE_PHYS: u64 = 0x1_0000;
const DATA_PHYS: u64 = 0x2_0000;
const HANDLERS: u64 = 0x3_0000;
const STACK_TOP: u64 = 0x3_3000;
const GDT: u64 = 0x3_4000;
const IDT: u64 = 0x3_5000;
const TSS: u64 = 0x3_6000;

/// The interpreter's side.
pub(crate) struct Soft {
    ram: GuestRam,
    vcpu: SoftVcpu,
    base: VcpuState,
    host: *mut u8,
}

impl Soft {
    pub(crate) fn new() -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let accel = SoftAccel::new(Clock::running(), None);
        let map = MemoryMap::new(&ram);
        accel.set_memory(&map).unwrap();
        let cpuid = accel.supported_cpuid();
        let mut vcpu = accel.add(0, &cpuid);
        let put = |at: u64, v: u64| ram.write(at, &v.to_le_bytes()).unwrap();
        let user = 7;
        put(0x1000, 0x2000 | user);
        put(0x2000, 0x3000 | user);
        put(0x3000, 0x83);
        put(0x3000 + 8 * (CODE >> 21), 0x4000 | user);
        put(0x3000 + 8 * (DATA >> 21), 0x5000 | user);
        put(0x4000, CODE_PHYS | user);
        for i in 0..DATA_LEN >> 12 {
            put(0x5000 + 8 * i, (DATA_PHYS + (i << 12)) | user);
        }
        // Flat segments: 8 kernel code, 16 kernel data, 24 user data, 32 user code, 40 TSS.
        put(GDT + 8, 0x00AF_9B00_0000_FFFF);
        put(GDT + 16, 0x00CF_9300_0000_FFFF);
        put(GDT + 24, 0x00CF_F300_0000_FFFF);
        put(GDT + 32, 0x00AF_FB00_0000_FFFF);
        put(TSS + 4, STACK_TOP);
        for v in 0..32 {
            let handler = HANDLERS + 16 * v;
            ram.write(handler, &[0xF4]).unwrap();
            let dpl = 3 << 45;
            put(
                IDT + 16 * v,
                handler & 0xFFFF | 8 << 16 | 0x8E << 40 | dpl | (handler >> 16) << 48,
            );
            put(IDT + 16 * v + 8, 0);
        }
        let seg = |selector: u16, attributes: u32| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
        };
        let mut base = vcpu.save().unwrap();
        base.segments.cs = seg(35, 0xA0FB);
        base.segments.ss = seg(27, 0xC0F3);
        base.segments.ds = seg(27, 0xC0F3);
        base.segments.es = seg(27, 0xC0F3);
        base.segments.fs = seg(0, 0xC0F3);
        base.segments.gs = seg(0, 0xC0F3);
        base.segments.tr = Segment { selector: 40, base: TSS, limit: 0x67, attributes: 0x8B };
        base.gdt = TableRegister { base: GDT, limit: 0x3F };
        base.idt = TableRegister { base: IDT, limit: 0x1FF };
        base.cr0 = 0x8005_0033;
        base.cr3 = 0x1000;
        base.cr4 = 0x4_0620 | 1 << 16;
        base.efer = 0xD01;
        base.xcr0 = 7;
        base.mp_state = MpState::Runnable;
        base.msrs.clear();
        let host = map.slots()[0].host as *mut u8;
        vcpu.restore(&base).unwrap();
        base.cpuid.leaves.clear();
        Self { ram, vcpu, base, host }
    }

    pub(crate) fn data(&mut self) -> &mut [u8] {
        // SAFETY: RAM lives as long as `self.ram`; the vCPU is not running.
        unsafe {
            std::slice::from_raw_parts_mut(self.host.add(DATA_PHYS as usize), DATA_LEN as usize)
        }
    }

    pub(crate) fn run(&mut self, bytes: &[u8], input: &Input) -> Outcome {
        let mut code = bytes.to_vec();
        code.push(0xCC);
        self.ram.write(CODE_PHYS + (SLOT - CODE), &code).unwrap();
        let mut state = self.base.clone();
        state.gpr = input.gpr;
        state.rflags = input.flags;
        state.rip = SLOT;
        state.fpu.fcw = input.fcw;
        state.fpu.fsw = input.fsw;
        state.fpu.ftw = input.ftw;
        state.fpu.st = input.st;
        state.fpu.mxcsr = input.mxcsr;
        let mut high = Vec::new();
        for (i, ymm) in input.ymm.iter().enumerate() {
            state.fpu.xmm[i].copy_from_slice(&ymm[..16]);
            high.extend_from_slice(&ymm[16..]);
        }
        state.xsave = BTreeMap::from([(2, high)]);
        self.vcpu.restore(&state).unwrap();
        let exit = self.vcpu.run(&NoIo::default()).unwrap();
        assert!(matches!(exit, Exit::Halted), "{exit:?}");
        let after = self.vcpu.save().unwrap();
        let vector = ((after.rip - 1 - HANDLERS) / 16) as u8;
        let rsp = after.gpr[4];
        let stack = |i: u64| {
            let mut b = [0; 8];
            self.ram.read(rsp + 8 * i, &mut b).unwrap();
            u64::from_le_bytes(b)
        };
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let frame = u64::from(has_error);
        let error = if has_error { stack(0) as u32 } else { 0 };
        let mut gpr = after.gpr;
        gpr[4] = stack(frame + 3);
        let rip = stack(frame);
        let done = vector == 3 && rip == SLOT + bytes.len() as u64 + 1;
        let mut area = [0; AREA];
        area[..2].copy_from_slice(&after.fpu.fcw.to_le_bytes());
        area[2..4].copy_from_slice(&after.fpu.fsw.to_le_bytes());
        area[4] = after.fpu.ftw;
        area[24..28].copy_from_slice(&after.fpu.mxcsr.to_le_bytes());
        for (i, st) in after.fpu.st.iter().enumerate() {
            area[32 + 16 * i..42 + 16 * i].copy_from_slice(st);
            area[160 + 16 * i..176 + 16 * i].copy_from_slice(&after.fpu.xmm[i]);
            area[288 + 16 * i..304 + 16 * i].copy_from_slice(&after.fpu.xmm[8 + i]);
        }
        if let Some(high) = after.xsave.get(&2) {
            area[576..832].copy_from_slice(high);
        }
        area[512] = 7;
        Outcome {
            gpr,
            flags: stack(frame + 2) & ARITH,
            vector: comparable(&area),
            fault: (!done).then(|| {
                let cr2 = if vector == 14 { after.cr2 } else { 0 };
                (vector, if vector == 14 { error & 7 } else { 0 }, cr2, rip - SLOT)
            }),
        }
    }
}
