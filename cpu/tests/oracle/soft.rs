//! The interpreter's side: ring 3 of a 64-bit guest.

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment};
use board::{Accel, Clock, Vcpu};
use cpu::bare::{UserFault, UserState};
use cpu::{SoftAccel, SoftVcpu};

use crate::lane::{Lane, RO_PAGES, RW_PAGES};

/// Guest-physical addresses; the two code pages are apart.
const CODE_PHYS: [u64; 2] = [0x1_0000, 0x1_8000];
const DATA_PHYS: u64 = 0x2_0000;
const NX: u64 = 1 << 63;

/// The interpreter's side of a lane.
pub(crate) struct Soft {
    lane: Lane,
    ram: GuestRam,
    pub(crate) vcpu: SoftVcpu,
    host: *mut u8,
}

impl Soft {
    pub(crate) fn new(lane: Lane) -> Self {
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
        put(0x3000 + 8 * (lane.code() >> 21), 0x4000 | user);
        put(0x3000 + 8 * (lane.data() >> 21), 0x5000 | user);
        let entry = |linear: u64| 8 * (linear >> 12 & 0x1FF);
        for i in 0..2 {
            put(0x4000 + entry(lane.code()) + 8 * i, CODE_PHYS[i as usize] | user);
        }
        for i in 0..RW_PAGES + RO_PAGES {
            let rights = if i < RW_PAGES { user } else { user & !2 };
            put(0x5000 + entry(lane.data()) + 8 * i, (DATA_PHYS + (i << 12)) | rights | NX);
        }
        let seg = |selector: u16, attributes: u32| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
        };
        let mut state = vcpu.save().unwrap();
        state.segments.cs = seg(35, 0xA0FB);
        state.segments.ss = seg(27, 0xC0F3);
        state.segments.ds = seg(27, 0xC0F3);
        state.segments.es = seg(27, 0xC0F3);
        state.segments.fs = seg(0, 0xC0F3);
        state.segments.gs = seg(0, 0xC0F3);
        state.cr0 = 0x8005_0033;
        state.cr3 = 0x1000;
        // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE, SMEP.
        state.cr4 = 0x15_0620;
        state.efer = 0xD01;
        state.xcr0 = 7;
        state.mp_state = MpState::Runnable;
        state.rflags = 0x202;
        state.msrs.clear();
        let host = map.slots()[0].host as *mut u8;
        vcpu.restore(&state).unwrap();
        Self { lane, ram, vcpu, host }
    }

    /// The data pages that both sides may write, or all of them.
    pub(crate) fn data(&mut self, pages: u64) -> &mut [u8] {
        // SAFETY: RAM lives as long as `self.ram`; the vCPU is not running.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.host.add(DATA_PHYS as usize),
                (pages << 12) as usize,
            )
        }
    }

    /// Puts instructions at `at`; UD2 ends them there and at `target`.
    pub(crate) fn place(&mut self, at: u64, bytes: &[u8], target: Option<u64>) {
        let mut code = bytes.to_vec();
        code.extend_from_slice(&[0x0F, 0x0B]);
        self.put(at, &code);
        if let Some(target) = target {
            self.put(target, &[0x0F, 0x0B]);
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let offset = at - self.lane.code();
        let first = bytes.len().min((0x1000 - (offset & 0xFFF)) as usize);
        let page = (offset >> 12) as usize;
        self.ram.write(CODE_PHYS[page] + (offset & 0xFFF), &bytes[..first]).unwrap();
        if first < bytes.len() {
            self.ram.write(CODE_PHYS[1], &bytes[first..]).unwrap();
        }
    }

    /// Runs what was placed.
    pub(crate) fn run(&mut self, state: &mut UserState) -> UserFault {
        self.vcpu.run_user(state).expect("instructions that end")
    }
}
