//! CPUID: what this CPU can show, and what follows from what it does show.

use board::vcpu::{Cpuid, CpuidLeaf};
use iced_x86::{CpuidFeature as F, Instruction, Mnemonic};

use crate::cpu::{Cpu, cr4, efer};

/// Guest-physical address bits.
const PHYS_BITS: u32 = 40;

/// A CPUID register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reg {
    B,
    C,
    D,
}

/// A feature: leaf, register, bit, the instructions that it brings, and the CR4 bits.
struct Feature {
    leaf: u32,
    reg: Reg,
    bit: u32,
    codes: &'static [F],
    cr4: u64,
}

const fn feature(leaf: u32, reg: Reg, bit: u32, codes: &'static [F], cr4: u64) -> Feature {
    Feature { leaf, reg, bit, codes, cr4 }
}

const EXTENDED: u32 = 0x8000_0001;

/// Everything that can be switched by CPUID (SDM vol. 2, CPUID).
const FEATURES: &[Feature] = &[
    feature(1, Reg::D, 0, &[F::FPU, F::FPU287, F::FPU387], 0),
    feature(1, Reg::D, 1, &[], cr4::VME | cr4::PVI),
    feature(1, Reg::D, 2, &[], cr4::DE),
    feature(1, Reg::D, 3, &[], cr4::PSE),
    feature(1, Reg::D, 4, &[F::TSC], cr4::TSD),
    feature(1, Reg::D, 5, &[F::MSR], 0),
    feature(1, Reg::D, 6, &[], cr4::PAE),
    feature(1, Reg::D, 7, &[], cr4::MCE),
    feature(1, Reg::D, 8, &[F::CX8], 0),
    feature(1, Reg::D, 9, &[], 0),
    feature(1, Reg::D, 11, &[F::SEP], 0),
    feature(1, Reg::D, 12, &[], 0),
    feature(1, Reg::D, 13, &[], cr4::PGE),
    feature(1, Reg::D, 14, &[], 0),
    feature(1, Reg::D, 15, &[F::CMOV], 0),
    feature(1, Reg::D, 16, &[], 0),
    feature(1, Reg::D, 17, &[], 0),
    feature(1, Reg::D, 19, &[F::CLFSH], 0),
    feature(1, Reg::D, 23, &[F::MMX], 0),
    feature(1, Reg::D, 24, &[F::FXSR], cr4::OSFXSR),
    feature(1, Reg::D, 25, &[F::SSE], cr4::OSXMMEXCPT),
    feature(1, Reg::D, 26, &[F::SSE2, F::PAUSE], 0),
    feature(1, Reg::C, 0, &[F::SSE3], 0),
    feature(1, Reg::C, 1, &[F::PCLMULQDQ], 0),
    feature(1, Reg::C, 3, &[F::MONITOR], 0),
    feature(1, Reg::C, 9, &[F::SSSE3], 0),
    feature(1, Reg::C, 12, &[F::FMA], 0),
    feature(1, Reg::C, 13, &[F::CMPXCHG16B], 0),
    feature(1, Reg::C, 17, &[], cr4::PCIDE),
    feature(1, Reg::C, 19, &[F::SSE4_1], 0),
    feature(1, Reg::C, 20, &[F::SSE4_2], 0),
    feature(1, Reg::C, 21, &[], 0),
    feature(1, Reg::C, 22, &[F::MOVBE], 0),
    feature(1, Reg::C, 23, &[F::POPCNT], 0),
    feature(1, Reg::C, 24, &[], 0),
    feature(1, Reg::C, 25, &[F::AES], 0),
    feature(1, Reg::C, 26, &[F::XSAVE], cr4::OSXSAVE),
    feature(1, Reg::C, 28, &[F::AVX], 0),
    feature(1, Reg::C, 29, &[F::F16C], 0),
    feature(1, Reg::C, 30, &[F::RDRAND], 0),
    feature(1, Reg::C, 31, &[], 0),
    feature(7, Reg::B, 0, &[F::FSGSBASE], cr4::FSGSBASE),
    feature(7, Reg::B, 1, &[], 0),
    feature(7, Reg::B, 3, &[F::BMI1], 0),
    feature(7, Reg::B, 5, &[F::AVX2], 0),
    feature(7, Reg::B, 7, &[], cr4::SMEP),
    feature(7, Reg::B, 8, &[F::BMI2], 0),
    feature(7, Reg::B, 9, &[], 0),
    feature(7, Reg::B, 10, &[F::INVPCID], 0),
    feature(7, Reg::B, 18, &[F::RDSEED], 0),
    feature(7, Reg::B, 19, &[F::ADX], 0),
    feature(7, Reg::B, 20, &[F::SMAP], cr4::SMAP),
    feature(7, Reg::B, 23, &[F::CLFLUSHOPT], 0),
    feature(7, Reg::B, 24, &[F::CLWB], 0),
    feature(7, Reg::B, 29, &[F::SHA], 0),
    feature(7, Reg::C, 2, &[], cr4::UMIP),
    feature(7, Reg::C, 22, &[F::RDPID], 0),
    feature(7, Reg::D, 4, &[], 0),
    feature(7, Reg::D, 26, &[], 0),
    feature(7, Reg::D, 29, &[], 0),
    feature(EXTENDED, Reg::C, 0, &[], 0),
    feature(EXTENDED, Reg::C, 5, &[F::LZCNT], 0),
    feature(EXTENDED, Reg::C, 8, &[F::PREFETCHW], 0),
    feature(EXTENDED, Reg::D, 11, &[F::SYSCALL], 0),
    feature(EXTENDED, Reg::D, 20, &[], 0),
    feature(EXTENDED, Reg::D, 26, &[], 0),
    feature(EXTENDED, Reg::D, 27, &[F::RDTSCP], 0),
    feature(EXTENDED, Reg::D, 29, &[F::X64], 0),
];

/// What every CPU of this kind executes. End-branch and shadow-stack hints are NOPs.
const ALWAYS: &[F] = &[
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::CPUID,
    F::CET_IBT,
    F::MULTIBYTENOP,
    F::CLDEMOTE,
];

/// Whether the host's units can execute the feature's instructions, as far as they do it here.
fn host_has(f: F) -> bool {
    use std::arch::is_x86_feature_detected as has;
    match f {
        F::SSE3 => has!("sse3"),
        F::SSSE3 => has!("ssse3"),
        F::SSE4_1 => has!("sse4.1"),
        F::SSE4_2 => has!("sse4.2"),
        F::AES => has!("aes"),
        F::PCLMULQDQ => has!("pclmulqdq"),
        F::SHA => has!("sha"),
        F::AVX => has!("avx"),
        F::AVX2 => has!("avx2"),
        F::FMA => has!("fma"),
        F::F16C => has!("f16c"),
        _ => true,
    }
}

/// Everything that the software CPU can show on this host. Topology is the caller's affair.
pub(crate) fn supported() -> Cpuid {
    let bits = |leaf: u32, reg: Reg| {
        FEATURES
            .iter()
            .filter(|f| f.leaf == leaf && f.reg == reg && !f.codes.contains(&F::MONITOR))
            .filter(|f| f.codes.iter().all(|c| host_has(*c)))
            .fold(0, |bits, f| bits | 1_u32 << f.bit)
    };
    let text = |s: &[u8]| {
        let mut chars = [0; 4];
        chars[..s.len()].copy_from_slice(s);
        u32::from_le_bytes(chars)
    };
    let leaf =
        |function, eax, ebx, ecx, edx| CpuidLeaf { function, index: None, eax, ebx, ecx, edx };
    let sub = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidLeaf {
        function,
        index: Some(index),
        eax,
        ebx,
        ecx,
        edx,
    };
    let avx = host_has(F::AVX);
    let (components, area) = if avx { (7, 832) } else { (3, 576) };
    let mut leaves = vec![
        leaf(0, 0x16, text(b"Genu"), text(b"ntel"), text(b"ineI")),
        // Family 6, model 143; CLFLUSH line of 64 bytes.
        leaf(1, 0x0008_06F8, 8 << 8, bits(1, Reg::C), bits(1, Reg::D)),
        leaf(2, 0x00FF_FF01, 0, 0, 0),
        sub(4, 0, [0; 4]),
        // MONITOR of 64-byte lines. MWAIT does not wait, so that leaf 1 shows it on request only.
        leaf(5, 64, 64, 0, 0),
        leaf(6, 1 << 2, 0, 0, 0),
        sub(7, 0, [0, bits(7, Reg::B), bits(7, Reg::C), bits(7, Reg::D)]),
        sub(0xD, 0, [components, area, area, 0]),
        // XSAVEOPT, XSAVEC, XGETBV with ECX = 1.
        sub(0xD, 1, [7, area, 0, 0]),
        // The TSC runs at 1 GHz.
        leaf(0x15, 1, 1, 1_000_000_000, 0),
        leaf(0x16, 1000, 1000, 100, 0),
        // KVM's signature: guests look for its clock under no other.
        leaf(0x4000_0000, 0x4000_0010, text(b"KVMK"), text(b"VMKV"), text(b"M")),
        leaf(0x4000_0001, crate::kvmclock::FEATURES, 0, 0, 0),
        // TSC and APIC timer in kHz, where VMware has them and KVM's users put them.
        leaf(0x4000_0010, 1_000_000, 1_000_000, 0, 0),
        leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
        leaf(EXTENDED, 0, 0, bits(EXTENDED, Reg::C), bits(EXTENDED, Reg::D)),
        leaf(0x8000_0002, text(b"vmm "), text(b"soft"), text(b"ware"), text(b" CPU")),
        leaf(0x8000_0003, 0, 0, 0, 0),
        leaf(0x8000_0004, 0, 0, 0, 0),
        leaf(0x8000_0006, 0, 0, 0x0100_6040, 0),
        // The TSC does not stop and does not change its rate.
        leaf(0x8000_0007, 0, 0, 0, 1 << 8),
        leaf(0x8000_0008, PHYS_BITS | 48 << 8, 0, 0, 0),
    ];
    if avx {
        leaves.push(sub(0xD, 2, [256, 576, 0, 0]));
    }
    Cpuid { leaves }
}

/// What follows from the CPUID that the guest sees.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    offered: [bool; 256],
    /// Bits that CR4 and EFER may have.
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) gib_pages: bool,
    pub(crate) pse36: bool,
    /// Components that XCR0 may enable.
    pub(crate) xcr0: u64,
}

impl Features {
    pub(crate) fn new(cpuid: &Cpuid) -> Self {
        let shown = |f: &Feature| {
            cpuid.get(f.leaf, 0).is_some_and(|leaf| {
                let register = match f.reg {
                    Reg::B => leaf.ebx,
                    Reg::C => leaf.ecx,
                    Reg::D => leaf.edx,
                };
                register >> f.bit & 1 != 0
            })
        };
        let mut offered = [false; 256];
        for f in ALWAYS {
            offered[*f as usize] = true;
        }
        let mut bits4 = cr4::PCE;
        for f in FEATURES.iter().filter(|f| shown(f)) {
            bits4 |= f.cr4;
            for code in f.codes {
                offered[*code as usize] = host_has(*code);
            }
        }
        let sub1 = cpuid.get(0xD, 1).map_or(0, |leaf| leaf.eax);
        if offered[F::XSAVE as usize] {
            offered[F::XSAVEOPT as usize] = sub1 & 1 != 0;
            offered[F::XSAVEC as usize] = sub1 & 2 != 0;
        }
        let extended = cpuid.get(EXTENDED, 0).map_or(0, |leaf| leaf.edx);
        let mut efer_bits = 0;
        for (bit, allowed) in [(11, efer::SCE), (20, efer::NXE), (29, efer::LME | efer::LMA)] {
            if extended >> bit & 1 != 0 {
                efer_bits |= allowed;
            }
        }
        let components = cpuid.get(0xD, 0).map_or(3, |leaf| u64::from(leaf.eax));
        Self {
            xcr0: components & if offered[F::AVX as usize] { 7 } else { 3 },
            offered,
            cr4: bits4,
            efer: efer_bits,
            gib_pages: extended >> 26 & 1 != 0,
            pse36: cpuid.get(1, 0).is_some_and(|leaf| leaf.edx >> 17 & 1 != 0),
        }
    }

    /// Lets the guest use what CPUID here does not show.
    pub(crate) fn offer(&mut self, feature: F) {
        self.offered[feature as usize] = true;
    }

    /// Whether the guest may use `instr`.
    pub(crate) fn offers(&self, instr: &Instruction) -> bool {
        // The guest's side of virtualisation is there without the host's.
        matches!(instr.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall)
            || instr.cpuid_features().iter().all(|f| self.offered[*f as usize])
    }

    /// Physical address bits that `cpuid` shows.
    pub(crate) fn phys_bits(cpuid: &Cpuid) -> u32 {
        cpuid.get(0x8000_0008, 0).map_or(36, |leaf| leaf.eax & 0xFF).clamp(32, 52)
    }
}

impl Cpu {
    /// CPUID (EAX, EBX, ECX, EDX), with what depends on the state of the CPU.
    pub(crate) fn cpuid_leaf(&self, function: u32, index: u32) -> [u32; 4] {
        let Some(leaf) = self.cpuid.get(function, index) else {
            // Beyond the highest basic leaf Intel's processors repeat that leaf.
            let max = self.cpuid.get(0, 0).map_or(0, |leaf| leaf.eax);
            let basic = function < 0x4000_0000 && function > max;
            let last = self.cpuid.get(max, index).filter(|_| basic);
            return last.map_or([0; 4], |l| [l.eax, l.ebx, l.ecx, l.edx]);
        };
        let [eax, mut ebx, mut ecx, edx] = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
        match (function, index) {
            (1, _) => {
                ebx = ebx & 0x00FF_FFFF | (self.id & 0xFF) << 24;
                let osxsave = self.cr4 & cr4::OSXSAVE != 0;
                ecx = ecx & !(1 << 27) | u32::from(osxsave) << 27;
            }
            (0xD, 0) => ebx = if self.xcr0 & 4 != 0 { 832 } else { 576 },
            (0xD, 1) => ebx = if self.xcr0 & 4 != 0 { 832 } else { 576 },
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }
}
