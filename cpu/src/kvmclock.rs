//! The paravirtual clock by which guests of KVM tell the time without an exit (Linux,
//! Documentation/virt/kvm/x86/msr.rst and cpuid.rst; the structures are pvclock-abi.h's).
//!
//! A vCPU's page says how its TSC becomes nanoseconds. Both follow the VM clock here, so that one
//! pair of moments is right for ever: what the TSC and the clock showed when the VM clock began. The
//! page is written when the guest names it, and again only if that pair changes; a saved machine
//! that is restored finds its page as it left it.

use std::sync::atomic::Ordering;

use crate::cpu::{Bits, Cpu, RAX};
use crate::fault::Res;
use crate::mmu::access::Place;

pub(crate) const WALL_CLOCK_OLD: u32 = 0x11;
pub(crate) const SYSTEM_TIME_OLD: u32 = 0x12;
pub(crate) const WALL_CLOCK: u32 = 0x4B56_4D00;
pub(crate) const SYSTEM_TIME: u32 = 0x4B56_4D01;

/// Bits of CPUID leaf 0x4000_0001, EAX.
const CLOCKSOURCE: u32 = 1;
const CLOCKSOURCE2: u32 = 1 << 3;
const STABLE: u32 = 1 << 24;
/// What of that leaf works here.
pub(crate) const FEATURES: u32 = CLOCKSOURCE | CLOCKSOURCE2 | STABLE;

/// Bit 0 of MSR SYSTEM_TIME: the page is to be kept.
const ENABLE: u64 = 1;
/// Flag: the clocks of all vCPUs agree.
const TSC_STABLE: u8 = 1;
/// What hypercalls return (Linux, include/uapi/linux/kvm_para.h).
const KVM_EPERM: i64 = 1;
const KVM_ENOSYS: i64 = 1000;

/// The guest's wishes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KvmClock {
    /// What was last written to WALL_CLOCK, and to SYSTEM_TIME.
    pub(crate) wall: u64,
    pub(crate) system: u64,
    /// What is in the page: the TSC and the clock at the VM clock's beginning.
    shown: Option<(u64, u64)>,
    version: u32,
}

impl Cpu {
    fn pv_features(&self) -> u32 {
        self.cpuid.get(0x4000_0001, 0).map_or(0, |leaf| leaf.eax)
    }

    /// VMCALL and VMMCALL: there are no calls, and only ring 0 may ask.
    ///
    /// # Errors
    /// #UD where CPUID does not say that there is a hypervisor of this kind.
    pub(crate) fn hypercall(&mut self) -> Res {
        if self.cpuid.get(0x4000_0001, 0).is_none() {
            return self.ud();
        }
        let result = if self.cpl == 0 { -KVM_ENOSYS } else { -KVM_EPERM };
        self.set_reg(RAX, if self.bits == Bits::B64 { 8 } else { 4 }, result as u64);
        Ok(())
    }

    /// Reads an MSR of the clock; `None` where CPUID does not offer it.
    pub(crate) fn read_clock_msr(&self, msr: u32) -> Option<u64> {
        let needs =
            if matches!(msr, WALL_CLOCK | SYSTEM_TIME) { CLOCKSOURCE2 } else { CLOCKSOURCE };
        let clock = &self.msrs.kvmclock;
        (self.pv_features() & needs != 0).then_some(match msr {
            WALL_CLOCK | WALL_CLOCK_OLD => clock.wall,
            _ => clock.system,
        })
    }

    /// Writes an MSR of the clock; false where CPUID does not offer it.
    pub(crate) fn write_clock_msr(&mut self, msr: u32, value: u64) -> bool {
        if self.read_clock_msr(msr).is_none() {
            return false;
        }
        match msr {
            WALL_CLOCK | WALL_CLOCK_OLD => {
                self.msrs.kvmclock.wall = value;
                self.show_wall_clock();
            }
            _ => {
                self.msrs.kvmclock.system = value;
                self.msrs.kvmclock.shown = None;
                self.show_system_time();
            }
        }
        true
    }

    /// Takes on what a saved state holds, whose memory holds the pages.
    pub(crate) fn restore_clock(&mut self, wall: Option<u64>, system: Option<u64>) {
        let clock = &mut self.msrs.kvmclock;
        *clock = KvmClock {
            wall: wall.unwrap_or(0),
            system: system.unwrap_or(0),
            ..KvmClock::default()
        };
        if clock.system & ENABLE != 0 {
            let mut page = [0; 24];
            self.read_physical(self.msrs.kvmclock.system & !ENABLE, &mut page);
            let word = |at| u64::from_le_bytes(std::array::from_fn(|i| page[at + i]));
            self.msrs.kvmclock.version = word(0) as u32 & !1;
            self.msrs.kvmclock.shown = Some((word(8), word(16)));
        }
    }

    /// Writes the vCPU's page, if it is not right any more.
    pub(crate) fn show_system_time(&mut self) {
        let clock = self.msrs.kvmclock;
        let pair = (self.msrs.tsc_offset, self.shared.kvmclock.load(Ordering::SeqCst));
        if clock.system & ENABLE == 0 || clock.shown == Some(pair) {
            return;
        }
        let version = clock.version.wrapping_add(2) & !1;
        self.msrs.kvmclock.version = version;
        self.msrs.kvmclock.shown = Some(pair);
        let (multiplier, shift) = scale(self.tsc_khz);
        let stable = if self.pv_features() & STABLE != 0 { TSC_STABLE } else { 0 };
        let mut page = [0; 28];
        page[4..12].copy_from_slice(&pair.0.to_le_bytes());
        page[12..20].copy_from_slice(&pair.1.to_le_bytes());
        page[20..24].copy_from_slice(&multiplier.to_le_bytes());
        page[24] = shift as u8;
        page[25] = stable;
        // After the version come four bytes of padding.
        let at = clock.system & !ENABLE;
        self.write_physical(at, &version.wrapping_sub(1).to_le_bytes());
        self.write_physical(at + 4, &page);
        self.write_physical(at, &version.to_le_bytes());
    }

    /// Writes what the wall clock showed when the guest's clock was at zero.
    fn show_wall_clock(&mut self) {
        let clock = self.now().nanos().wrapping_add(self.shared.kvmclock.load(Ordering::SeqCst));
        let began = self.shared.wall_clock().saturating_sub(clock);
        let at = self.msrs.kvmclock.wall;
        let mut old = [0; 4];
        self.read_physical(at, &mut old);
        let version = u32::from_le_bytes(old).wrapping_add(2) & !1;
        self.write_physical(at, &version.wrapping_sub(1).to_le_bytes());
        self.write_physical(at + 4, &((began / 1_000_000_000) as u32).to_le_bytes());
        self.write_physical(at + 8, &((began % 1_000_000_000) as u32).to_le_bytes());
        self.write_physical(at, &version.to_le_bytes());
    }

    /// Writes RAM; what is not RAM is left alone.
    fn write_physical(&mut self, phys: u64, data: &[u8]) {
        let first = data.len().min(4096 - (phys & 0xFFF) as usize);
        for (phys, part) in
            [(phys, &data[..first]), (phys.wrapping_add(first as u64), &data[first..])]
        {
            let page = self.phys.page(phys & !0xFFF).filter(|page| !page.readonly);
            if page.is_some() && !part.is_empty() {
                self.write_place(Place { phys, page }, part);
            }
        }
    }

    /// Reads RAM; what is not RAM is left as it is.
    fn read_physical(&mut self, phys: u64, data: &mut [u8]) {
        let first = data.len().min(4096 - (phys & 0xFFF) as usize);
        let (a, b) = data.split_at_mut(first);
        for (phys, part) in [(phys, a), (phys.wrapping_add(first as u64), b)] {
            let page = self.phys.page(phys & !0xFFF);
            if page.is_some() && !part.is_empty() {
                self.read_place(Place { phys, page }, part);
            }
        }
    }
}

/// How ticks of `khz` become nanoseconds: shift left (right if negative), multiply, drop 32 bits.
fn scale(khz: u32) -> (u32, i8) {
    // 2^32 nanoseconds a tick, as a fraction whose numerator keeps 32 bits.
    let mut nanos = (1_000_000_u128 << 64) / u128::from(khz.max(1));
    let mut shift = 0;
    while nanos >> 64 != 0 {
        nanos >>= 1;
        shift += 1;
    }
    while nanos >> 63 == 0 {
        nanos <<= 1;
        shift -= 1;
    }
    ((nanos >> 32) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_nanos(ticks: u64, khz: u32) -> u64 {
        let (multiplier, shift) = scale(khz);
        let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn scales_keep_time() {
        assert_eq!(scale(1_000_000), (0x8000_0000, 1));
        for khz in [1_000_000, 2_000_000, 2_599_998, 3_456_789, 500_000, 999] {
            let (hour, ticks) = (3_600_000_000_000_u64, u64::from(khz) * 3_600_000);
            let error = to_nanos(ticks, khz).abs_diff(hour);
            assert!(error < 4_000, "{khz} kHz: {error} ns off in an hour");
        }
        assert_eq!(to_nanos(1 << 62, 1_000_000), 1 << 62);
    }
}
