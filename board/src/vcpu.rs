//! The architectural state of a vCPU, the same type for every accelerator.
//!
//! Names and layouts follow the Intel SDM; numbers of XSAVE components and MSRs are the
//! architecture's, so that nothing in a saved state depends on the host that it was saved on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Indices of [`VcpuState::gpr`], in the order of instruction encoding.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
}

/// Numbers of MSRs that more than one part of the machine uses (Intel SDM vol. 4).
pub mod msr {
    #![allow(missing_docs)]
    pub const IA32_TSC: u32 = 0x10;
    pub const IA32_APIC_BASE: u32 = 0x1B;
    pub const IA32_TSC_DEADLINE: u32 = 0x6E0;
    pub const IA32_EFER: u32 = 0xC000_0080;
    pub const FS_BASE: u32 = 0xC000_0100;
    pub const GS_BASE: u32 = 0xC000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear address of byte 0.
    pub base: u64,
    /// Last byte's offset, in bytes whatever the granularity.
    pub limit: u32,
    /// Bits 8 to 23 of the descriptor's second dword, shifted down by 8: type in bits 0-3, S in 4,
    /// DPL in 5-6, P in 7, AVL in 12, L in 13, D/B in 14, G in 15. Bit 16 set: unusable.
    pub attributes: u32,
}

impl Segment {
    /// Bit 16 of `attributes`: a null selector was loaded.
    pub const UNUSABLE: u32 = 1 << 16;

    /// Type, bits 0 to 3.
    pub const fn kind(&self) -> u8 {
        (self.attributes & 0xF) as u8
    }

    /// Code or data (true) or system (false).
    pub const fn s(&self) -> bool {
        self.attributes & 1 << 4 != 0
    }

    /// Descriptor privilege level, 0 to 3.
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Present.
    pub const fn present(&self) -> bool {
        self.attributes & 1 << 7 != 0
    }

    /// Available to software.
    pub const fn avl(&self) -> bool {
        self.attributes & 1 << 12 != 0
    }

    /// 64-bit code.
    pub const fn long(&self) -> bool {
        self.attributes & 1 << 13 != 0
    }

    /// Default operand size or stack size is 32 bits.
    pub const fn db(&self) -> bool {
        self.attributes & 1 << 14 != 0
    }

    /// The limit is counted in pages.
    pub const fn granular(&self) -> bool {
        self.attributes & 1 << 15 != 0
    }

    /// A null selector was loaded.
    pub const fn unusable(&self) -> bool {
        self.attributes & Self::UNUSABLE != 0
    }
}

/// The six segment registers, LDTR and TR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldt: Segment,
    pub tr: Segment,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// Debug registers; DR4 and DR5 are names of DR6 and DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR6.
    pub status: u64,
    /// DR7.
    pub control: u64,
}

impl Default for DebugRegisters {
    /// After reset (SDM vol. 3, table 10-1).
    fn default() -> Self {
        Self { address: [0; 4], status: 0xFFFF_0FF0, control: 0x400 }
    }
}

/// What the legacy region of the XSAVE area holds (SDM vol. 1, table 10-2), and MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word, TOP included.
    pub fsw: u16,
    /// Abridged tag word: bit i set, physical register i is not empty.
    pub ftw: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// ST(0) to ST(7) as they lie in the XSAVE area: 80 bits, little-endian.
    pub st: [[u8; 10]; 8],
    /// XMM0 to XMM15, little-endian.
    pub xmm: [[u8; 16]; 16],
}

impl Default for Fpu {
    /// After FNINIT and with MXCSR's reset value.
    fn default() -> Self {
        Self {
            fcw: 0x37F,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1F80,
            st: [[0; 10]; 8],
            xmm: [[0; 16]; 16],
        }
    }
}

/// Whether the vCPU executes (SDM vol. 3, 9.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// It executes instructions.
    #[default]
    Runnable,
    /// HLT: it waits for an interrupt.
    Halted,
    /// An application processor that has had no INIT.
    WaitForInit,
    /// After INIT: it waits for a startup IPI.
    WaitForSipi,
}

/// Events that are pending or under delivery between two instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// An exception that has been recognised and not delivered.
    pub exception: Option<Exception>,
    /// A vector that was taken from a controller and not delivered; true: a software interrupt.
    pub interrupt: Option<(u8, bool)>,
    /// Interrupts are held off for one instruction after STI.
    pub sti_shadow: bool,
    /// Interrupts are held off for one instruction after MOV SS or POP SS.
    pub mov_ss_shadow: bool,
    /// An NMI is under delivery.
    pub nmi_injected: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The vector of a startup IPI that has been received and not acted upon.
    pub sipi_vector: u8,
    /// A triple fault is pending.
    pub triple_fault: bool,
}

/// An exception under delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// Recognised only; its side effects on CR2 or DR6 are still to come.
    pub pending: bool,
    /// What CR2 or DR6 will be set to.
    pub payload: Option<u64>,
}

/// A local APIC's registers: entry `i` is the register at offset `16 * i` (SDM vol. 3, table 11-1).
/// As KVM has them: the id is in bits 24 to 31 and the upper half of the ICR at 0x310 in x2APIC mode
/// too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// 64 registers.
    pub registers: Vec<u32>,
}

/// What makes a run repeat exactly, where the accelerator can (`--icount`, `--seed`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// Instructions executed since the machine was made.
    pub instructions: u64,
    /// How many numbers RDRAND and RDSEED have taken of the stream that a seed gives.
    pub random: u64,
}

/// Everything that a guest can observe of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Segment registers.
    pub segments: Segments,
    /// GDTR.
    pub gdt: TableRegister,
    /// IDTR.
    pub idt: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority.
    pub cr8: u64,
    /// Page-directory pointers that PAE paging has loaded; zeros elsewhere.
    pub pdptr: [u64; 4],
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// XCR0.
    pub xcr0: u64,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// x87, MXCSR and XMM.
    pub fpu: Fpu,
    /// XSAVE components from 2 on that are not in their initial state, by number.
    pub xsave: BTreeMap<u8, Vec<u8>>,
    /// Other MSRs by number.
    pub msrs: BTreeMap<u32, u64>,
    /// The local APIC.
    pub lapic: Option<LapicState>,
    /// Pending events.
    pub events: Events,
    /// Whether it executes.
    pub mp_state: MpState,
    /// TSC frequency in kHz; 0 if unknown.
    pub tsc_khz: u32,
    /// What CPUID shows.
    pub cpuid: Cpuid,
    /// Where in its course a run that repeats is; `None` leaves it where it is.
    #[serde(default)]
    pub repeat: Option<Repeat>,
}

/// How wide addresses and operands are by default where the vCPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeWidth {
    /// 16 bits: real and virtual-8086 mode, 16-bit segments.
    Bits16 = 16,
    /// 32 bits.
    Bits32 = 32,
    /// 64 bits: long mode, 64-bit code segment.
    Bits64 = 64,
}

impl VcpuState {
    /// EFER.LMA: long mode is active.
    pub const fn long_mode(&self) -> bool {
        self.efer & 1 << 10 != 0
    }

    /// The width of the code at CS:RIP.
    pub const fn code_width(&self) -> CodeWidth {
        if self.long_mode() && self.segments.cs.long() {
            CodeWidth::Bits64
        } else if self.segments.cs.db() {
            CodeWidth::Bits32
        } else {
            CodeWidth::Bits16
        }
    }

    /// Current privilege level: the DPL of SS.
    pub const fn cpl(&self) -> u8 {
        self.segments.ss.dpl()
    }

    /// Linear address of the next instruction.
    pub const fn linear_rip(&self) -> u64 {
        match self.code_width() {
            CodeWidth::Bits64 => self.rip,
            _ => self.segments.cs.base.wrapping_add(self.rip) & 0xFFFF_FFFF,
        }
    }
}

/// One leaf of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CpuidLeaf {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry; `None` if the leaf does not look at it.
    pub index: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// All that CPUID shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpuid {
    /// The leaves, in any order.
    pub leaves: Vec<CpuidLeaf>,
}

impl Cpuid {
    /// The leaf for `function` and `index`.
    pub fn get(&self, function: u32, index: u32) -> Option<&CpuidLeaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|i| i == index))
    }

    /// The leaf for `function` and `index`, to be changed.
    pub fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut CpuidLeaf> {
        self.leaves
            .iter_mut()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|i| i == index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_width_follows_mode_and_segment() {
        let mut state = VcpuState::default();
        state.segments.cs.base = 0xFFFF_0000;
        state.rip = 0xFFF0;
        assert_eq!((state.code_width(), state.linear_rip()), (CodeWidth::Bits16, 0xFFFF_FFF0));
        state.segments.cs.attributes = 1 << 14;
        assert_eq!(state.code_width(), CodeWidth::Bits32);
        state.efer = 1 << 10;
        state.segments.cs.attributes = 1 << 13;
        state.rip = 0xFFFF_8000_0000_0000;
        assert_eq!(state.code_width(), CodeWidth::Bits64);
        assert_eq!(state.linear_rip(), 0xFFFF_8000_0000_0000);
    }

    #[test]
    fn a_state_survives_json() {
        let mut state = VcpuState { rip: u64::MAX, ..VcpuState::default() };
        state.msrs.insert(msr::IA32_TSC, 5);
        state.xsave.insert(2, vec![1; 256]);
        state.fpu.xmm[3] = [9; 16];
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<VcpuState>(&text).unwrap(), state);
    }

    #[test]
    fn leaves_are_found_by_function_and_index() {
        let leaf = |function, index, eax| CpuidLeaf { function, index, eax, ..Default::default() };
        let cpuid =
            Cpuid { leaves: vec![leaf(1, None, 10), leaf(4, Some(0), 20), leaf(4, Some(1), 21)] };
        assert_eq!(cpuid.get(1, 77).unwrap().eax, 10);
        assert_eq!(cpuid.get(4, 1).unwrap().eax, 21);
        assert!(cpuid.get(4, 2).is_none());
    }
}
