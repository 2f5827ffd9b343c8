//! Model-specific registers (SDM vol. 4). An MSR that is not here raises #GP.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use board::vcpu::msr::{IA32_APIC_BASE, IA32_EFER, IA32_TSC, IA32_TSC_DEADLINE};

use crate::cpu::{Cpu, Todo, cr0, efer, seg};
use crate::fault::Res;
use crate::kvmclock::{KvmClock, SYSTEM_TIME, SYSTEM_TIME_OLD, WALL_CLOCK, WALL_CLOCK_OLD};

const IA32_TSC_ADJUST: u32 = 0x3B;
const IA32_BIOS_SIGN_ID: u32 = 0x8B;
const IA32_MTRRCAP: u32 = 0xFE;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_PAT: u32 = 0x277;
const IA32_STAR: u32 = 0xC000_0081;
const IA32_LSTAR: u32 = 0xC000_0082;
const IA32_CSTAR: u32 = 0xC000_0083;
const IA32_FMASK: u32 = 0xC000_0084;
const IA32_FS_BASE: u32 = 0xC000_0100;
const IA32_GS_BASE: u32 = 0xC000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;
const IA32_TSC_AUX: u32 = 0xC000_0103;

/// MTRRs: fixed and variable ranges and the default type.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20F, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26F, 0x2FF..=0x2FF];

/// What an MSR without an effect of its own holds after reset. Those that only read as constants
/// have no mask of writable bits.
const PLAIN: [(u32, u64, u64); 17] = [
    // IA32_PLATFORM_ID, IA32_FEATURE_CONTROL (locked), MSR_SMI_COUNT.
    (0x17, 0, 0),
    (0x3A, 1, 0),
    // IA32_SPEC_CTRL and IA32_PRED_CMD have no effect: nothing is speculated.
    (0x48, 0, 7),
    (0x49, 0, 1),
    // IA32_ARCH_CAPABILITIES: not subject to any of the known leaks.
    (0x10A, 0x4000_0000_0C10_E17B, 0),
    (0x34, 0, 0),
    // MSR_PLATFORM_INFO, IA32_MPERF, IA32_APERF.
    (0xCE, 0, 0),
    (0xE7, 0, u64::MAX),
    (0xE8, 0, u64::MAX),
    // IA32_MCG_CAP, IA32_MCG_STATUS: no banks.
    (0x179, 0, 0),
    (0x17A, 0, u64::MAX),
    // IA32_MISC_ENABLE: fast strings.
    (0x1A0, 1, u64::MAX),
    // IA32_DEBUGCTL, last branch and exception records.
    (0x1D9, 0, u64::MAX),
    (0x1DB, 0, 0),
    (0x1DC, 0, 0),
    (0xC001_1029, 0, u64::MAX),
    // IA32_XSS.
    (0xDA0, 0, 0),
];

/// The MSRs of a vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) fmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) pat: u64,
    /// Added to what the clock gives; also IA32_TSC_ADJUST's share.
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_adjust: u64,
    pub(crate) apic_base: u64,
    pub(crate) tsc_deadline: u64,
    pub(crate) kvmclock: KvmClock,
    /// Those without an effect.
    plain: BTreeMap<u32, u64>,
}

impl Msrs {
    /// After reset.
    pub(crate) fn new() -> Self {
        Self { pat: 0x0007_0406_0007_0406, apic_base: 0xFEE0_0900, ..Self::default() }
    }
}

fn is_mtrr(msr: u32) -> bool {
    MTRRS.iter().any(|range| range.contains(&msr))
}

impl Cpu {
    /// RDMSR at CPL 0.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist.
    pub(crate) fn read_msr(&mut self, msr: u32) -> Res<u64> {
        self.publish();
        Ok(match msr {
            IA32_TSC => self.tsc(),
            IA32_APIC_BASE => self.apic.as_ref().map_or(self.msrs.apic_base, |apic| apic.base()),
            IA32_TSC_ADJUST => self.msrs.tsc_adjust,
            IA32_BIOS_SIGN_ID => 0,
            // 8 variable ranges, fixed ranges, write combining.
            IA32_MTRRCAP => 0x508,
            IA32_SYSENTER_CS => self.msrs.sysenter_cs,
            IA32_SYSENTER_ESP => self.msrs.sysenter_esp,
            IA32_SYSENTER_EIP => self.msrs.sysenter_eip,
            IA32_PAT => self.msrs.pat,
            IA32_EFER => self.efer,
            IA32_STAR => self.msrs.star,
            IA32_LSTAR => self.msrs.lstar,
            IA32_CSTAR => self.msrs.cstar,
            IA32_FMASK => self.msrs.fmask,
            IA32_FS_BASE => self.segs[seg::FS].base,
            IA32_GS_BASE => self.segs[seg::GS].base,
            IA32_KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            IA32_TSC_AUX => self.msrs.tsc_aux,
            IA32_TSC_DEADLINE | 0x800..=0x8FF => {
                match self.apic.as_mut().and_then(|apic| apic.read_msr(msr)) {
                    // What the guest wrote, for as long as the timer is armed.
                    Some(0) if msr == IA32_TSC_DEADLINE => 0,
                    Some(_) if msr == IA32_TSC_DEADLINE => self.msrs.tsc_deadline,
                    Some(value) => value,
                    None => return self.gp(0),
                }
            }
            WALL_CLOCK | WALL_CLOCK_OLD | SYSTEM_TIME | SYSTEM_TIME_OLD => {
                match self.read_clock_msr(msr) {
                    Some(value) => value,
                    None => return self.gp(0),
                }
            }
            _ if is_mtrr(msr) => self.msrs.plain.get(&msr).copied().unwrap_or(0),
            _ => match PLAIN.iter().find(|(number, ..)| *number == msr) {
                Some((_, reset, _)) => self.msrs.plain.get(&msr).copied().unwrap_or(*reset),
                None => return self.gp(0),
            },
        })
    }

    /// WRMSR at CPL 0.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist, or a value that it cannot take.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64) -> Res {
        let address = matches!(
            msr,
            IA32_SYSENTER_ESP
                | IA32_SYSENTER_EIP
                | IA32_LSTAR
                | IA32_CSTAR
                | IA32_FS_BASE
                | IA32_GS_BASE
                | IA32_KERNEL_GS_BASE
        );
        if address && !self.canonical(value) {
            return self.gp(0);
        }
        match msr {
            IA32_TSC => {
                let change = value.wrapping_sub(self.tsc());
                self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(change);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(change);
                self.show_system_time();
            }
            IA32_TSC_ADJUST => {
                let change = value.wrapping_sub(self.msrs.tsc_adjust);
                self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(change);
                self.msrs.tsc_adjust = value;
                self.show_system_time();
            }
            IA32_APIC_BASE => {
                let legal = match &mut self.apic {
                    Some(apic) => apic.set_base(value),
                    None => true,
                };
                if !legal {
                    return self.gp(0);
                }
                self.msrs.apic_base = value;
                // Pages that were RAM or the APIC may have changed places.
                self.tlb.flush_all();
            }
            // An update of microcode is accepted and has no effect.
            IA32_BIOS_SIGN_ID | 0x79 => {}
            IA32_SYSENTER_CS => self.msrs.sysenter_cs = value,
            IA32_SYSENTER_ESP => self.msrs.sysenter_esp = value,
            IA32_SYSENTER_EIP => self.msrs.sysenter_eip = value,
            IA32_PAT => {
                let legal = value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7));
                if !legal {
                    return self.gp(0);
                }
                self.msrs.pat = value;
            }
            IA32_EFER => return self.set_efer(value),
            IA32_STAR => self.msrs.star = value,
            IA32_LSTAR => self.msrs.lstar = value,
            IA32_CSTAR => self.msrs.cstar = value,
            IA32_FMASK => self.msrs.fmask = value & 0xFFFF_FFFF,
            IA32_FS_BASE => self.set_base(seg::FS, value),
            IA32_GS_BASE => self.set_base(seg::GS, value),
            IA32_KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            IA32_TSC_AUX => self.msrs.tsc_aux = value & 0xFFFF_FFFF,
            IA32_TSC_DEADLINE | 0x800..=0x8FF => {
                let mut to_apic = value;
                if msr == IA32_TSC_DEADLINE {
                    self.msrs.tsc_deadline = value;
                    to_apic = self.tsc_to_nanos(value);
                }
                let ok = self.with_apic(|apic, io| apic.write_msr(msr, to_apic, io)) == Some(true);
                self.mailbox.attention.store(true, Ordering::Relaxed);
                if !ok {
                    return self.gp(0);
                }
            }
            WALL_CLOCK | WALL_CLOCK_OLD | SYSTEM_TIME | SYSTEM_TIME_OLD => {
                if !self.write_clock_msr(msr, value) {
                    return self.gp(0);
                }
            }
            _ if is_mtrr(msr) => {
                self.msrs.plain.insert(msr, value);
            }
            _ => match PLAIN.iter().find(|(number, ..)| *number == msr) {
                Some((.., writable)) if value & !writable == 0 => {
                    self.msrs.plain.insert(msr, value);
                }
                _ => return self.gp(0),
            },
        }
        Ok(())
    }

    /// When the TSC reaches `tsc`, in nanoseconds of the VM clock; 0 for 0.
    fn tsc_to_nanos(&self, tsc: u64) -> u64 {
        if tsc == 0 {
            return 0;
        }
        // A deadline before the clock's start has passed.
        let ticks = tsc.wrapping_sub(self.msrs.tsc_offset);
        let ticks = if (ticks as i64) < 0 { 1 } else { ticks };
        let nanos = u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX).max(1)
    }

    fn set_base(&mut self, i: usize, value: u64) {
        self.segs[i].base = value;
        self.seg_base[i] = value;
    }

    fn set_efer(&mut self, value: u64) -> Res {
        let known = self.features.efer;
        if value & !known & !efer::LMA != 0
            || (value ^ self.efer) & efer::LME != 0 && self.cr0 & cr0::PG != 0
        {
            return self.gp(0);
        }
        let old = self.efer;
        self.efer = value & !efer::LMA | old & efer::LMA;
        if (old ^ value) & efer::NXE != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    /// All MSRs that a saved state holds by number.
    pub(crate) fn save_msrs(&mut self) -> BTreeMap<u32, u64> {
        let mut all = self.msrs.plain.clone();
        for msr in SAVED {
            if let Ok(value) = self.read_msr(msr) {
                all.insert(msr, value);
            }
        }
        if self.apic.is_some()
            && let Ok(value) = self.read_msr(IA32_TSC_DEADLINE)
        {
            all.insert(IA32_TSC_DEADLINE, value);
        }
        self.stop = None;
        all
    }

    /// Sets MSRs from a saved state; those that are unknown here are left out.
    pub(crate) fn restore_msrs(&mut self, all: &BTreeMap<u32, u64>) {
        self.restore_clock(None, None);
        for (&msr, &value) in all {
            if matches!(msr, WALL_CLOCK | WALL_CLOCK_OLD | SYSTEM_TIME | SYSTEM_TIME_OLD) {
                continue;
            }
            // The TSC goes first into the offset, then TSC_ADJUST says how much of it is whose.
            if self.write_msr(msr, value).is_err() {
                self.stop = None;
            }
        }
        if let Some(&adjust) = all.get(&IA32_TSC_ADJUST) {
            self.msrs.tsc_adjust = adjust;
        }
        if let Some(&tsc) = all.get(&IA32_TSC) {
            self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(tsc.wrapping_sub(self.tsc()));
        }
        let get = |msr, old| all.get(&msr).or(all.get(&old)).copied();
        self.restore_clock(get(WALL_CLOCK, WALL_CLOCK_OLD), get(SYSTEM_TIME, SYSTEM_TIME_OLD));
        // The clock may have been set before the vCPU knew, or the saved one have had another TSC.
        self.mailbox.post(Todo::NewClock);
    }
}

const SAVED: [u32; 16] = [
    IA32_TSC,
    IA32_TSC_ADJUST,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
    IA32_PAT,
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_KERNEL_GS_BASE,
    IA32_TSC_AUX,
    IA32_FS_BASE,
    IA32_GS_BASE,
    WALL_CLOCK,
    SYSTEM_TIME,
];
