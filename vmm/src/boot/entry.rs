//! The state in which a vCPU starts: after reset, or where a boot protocol wants it.

use board::GuestRam;
use board::VcpuState;
use board::memory::NotRam;
use board::vcpu::{
    Cpuid, DebugRegisters, Fpu, LapicState, MpState, Segment, Segments, TableRegister, gpr, msr,
};

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Segment attributes (see [`Segment::attributes`]), all present and accessed, with DPL 0.
mod attributes {
    pub(super) const CODE_16: u32 = 0x009B;
    pub(super) const DATA_16: u32 = 0x0093;
    pub(super) const CODE_32: u32 = 0xC09B;
    pub(super) const DATA_32: u32 = 0xC093;
    pub(super) const CODE_64: u32 = 0xA09B;
    pub(super) const LDT: u32 = 0x0082;
    pub(super) const TSS_BUSY: u32 = 0x008B;
}

/// `__BOOT_CS` of the Linux boot protocol.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS` of the Linux boot protocol.
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// MSRs with the values that reset gives them; the CPU has more, which software need not rely on.
const RESET_MSRS: [(u32, u64); 14] = [
    (msr::IA32_TSC, 0),
    (0x174, 0),                     // IA32_SYSENTER_CS
    (0x175, 0),                     // IA32_SYSENTER_ESP
    (0x176, 0),                     // IA32_SYSENTER_EIP
    (0x1A0, 1),                     // IA32_MISC_ENABLE: fast strings
    (0x277, 0x0007_0406_0007_0406), // IA32_PAT
    (IA32_MTRR_DEF_TYPE, 0),
    (msr::IA32_TSC_DEADLINE, 0),
    (0xC000_0081, 0), // IA32_STAR
    (0xC000_0082, 0), // IA32_LSTAR
    (0xC000_0083, 0), // IA32_CSTAR
    (0xC000_0084, 0), // IA32_FMASK
    (0xC000_0102, 0), // IA32_KERNEL_GS_BASE
    (0xC000_0103, 0), // IA32_TSC_AUX
];

const IA32_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs enabled, all memory write-back: what firmware leaves behind for RAM.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The architectural state of the vCPU with APIC id `id` after reset (Intel SDM vol. 3, table
/// 10-1; local APIC: 11.4.7.1), which shows `cpuid` to the guest.
///
/// vCPU 0 executes at the reset vector, the others wait for INIT. As on other emulators, and as
/// a BIOS would set it up, the 8259A reaches vCPU 0 through LINT0.
pub fn reset_state(id: u32, cpuid: &Cpuid) -> VcpuState {
    let boot = id == 0;
    let segment =
        |selector, base, attributes| Segment { selector, base, limit: 0xFFFF, attributes };
    let data = segment(0, 0, attributes::DATA_16);
    let table = TableRegister { base: 0, limit: 0xFFFF };
    let mut state = VcpuState {
        rip: 0xFFF0,
        rflags: 2,
        segments: Segments {
            cs: segment(0xF000, 0xFFFF_0000, attributes::CODE_16),
            es: data,
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldt: segment(0, 0, attributes::LDT),
            tr: segment(0, 0, attributes::TSS_BUSY),
        },
        gdt: table,
        idt: table,
        cr0: CR0_CD | CR0_NW | CR0_ET,
        apic_base: 0xFEE0_0800 | if boot { 1 << 8 } else { 0 },
        xcr0: 1,
        debug: DebugRegisters::default(),
        // FCW unmasks nothing as FNINIT would; the registers hold zeros and are not empty.
        fpu: Fpu { fcw: 0x40, ftw: 0xFF, ..Fpu::default() },
        msrs: RESET_MSRS.into_iter().collect(),
        lapic: Some(reset_lapic(id)),
        mp_state: if boot { MpState::Runnable } else { MpState::WaitForInit },
        cpuid: cpuid.clone(),
        ..VcpuState::default()
    };
    state.gpr[gpr::RDX] = cpuid.get(1, 0).map_or(0x600, |leaf| u64::from(leaf.eax));
    state
}

fn reset_lapic(id: u32) -> LapicState {
    const MASKED: u32 = 1 << 16;
    const EXTINT: u32 = 7 << 8;
    let mut registers = vec![0; 64];
    registers[0x02] = id << 24;
    registers[0x03] = 0x0005_0014; // Version 14h, six LVT entries.
    registers[0x0E] = 0xFFFF_FFFF; // Destination format: flat.
    registers[0x0F] = 0xFF; // Spurious vector; software-disabled.
    registers[0x32..=0x37].fill(MASKED);
    if id == 0 {
        registers[0x35] = EXTINT;
    }
    LapicState { registers }
}

/// How a loaded kernel is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    mode: Mode,
    rip: u64,
    /// General-purpose registers that carry something, by [`gpr`] index.
    registers: Vec<(usize, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Flat 32-bit segments, no paging.
    Protected,
    /// 64-bit code over page tables that map the first 4 GiB one to one.
    Long,
}

impl Entry {
    /// The 32-bit state of PVH (Xen `docs/misc/pvh.pandoc`, with the start info in EBX) and of
    /// multiboot (0.6.96, 3.2, with the magic in EAX as well).
    pub(super) fn protected(rip: u32, registers: &[(usize, u32)]) -> Self {
        let registers = registers.iter().map(|&(index, value)| (index, value.into())).collect();
        Self { mode: Mode::Protected, rip: rip.into(), registers }
    }

    /// The 64-bit state of the Linux boot protocol, with the zero page in RSI. Its GDT and page
    /// tables are written to `ram`.
    pub(super) fn long(rip: u64, zero_page: u64, ram: &GuestRam) -> Result<Self, NotRam> {
        write_gdt(ram)?;
        write_page_tables(ram)?;
        Ok(Self { mode: Mode::Long, rip, registers: vec![(gpr::RSI, zero_page)] })
    }

    /// Address of the first instruction.
    pub fn address(&self) -> u64 {
        self.rip
    }

    /// Changes `state`, the boot vCPU's after reset, to this entry's. Interrupts are disabled,
    /// caches on.
    pub fn apply(&self, state: &mut VcpuState) {
        let flat =
            |selector, attributes| Segment { selector, base: 0, limit: 0xFFFF_FFFF, attributes };
        let data = flat(BOOT_DS, attributes::DATA_32);
        let code = match self.mode {
            Mode::Protected => flat(BOOT_CS, attributes::CODE_32),
            Mode::Long => flat(BOOT_CS, attributes::CODE_64),
        };
        state.segments = Segments {
            cs: code,
            es: data,
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldt: Segment { limit: 0xFFFF, attributes: attributes::LDT, ..Segment::default() },
            tr: Segment {
                selector: BOOT_TSS,
                base: 0,
                limit: 0x67,
                attributes: attributes::TSS_BUSY,
            },
        };
        state.idt = TableRegister::default();
        match self.mode {
            Mode::Protected => {
                state.gdt = TableRegister::default();
                state.cr0 = CR0_PE | CR0_ET;
                state.cr3 = 0;
                state.cr4 = 0;
                state.efer = 0;
            }
            Mode::Long => {
                state.gdt =
                    TableRegister { base: layout::GDT, limit: (size_of_val(&GDT) - 1) as u16 };
                state.cr0 = CR0_PE | CR0_ET | CR0_PG;
                state.cr3 = layout::PAGE_TABLES;
                state.cr4 = CR4_PAE;
                state.efer = EFER_LME | EFER_LMA;
            }
        }
        state.gpr = [0; 16];
        for &(index, value) in &self.registers {
            state.gpr[index] = value;
        }
        state.rip = self.rip;
        state.rflags = 2;
        state.msrs.insert(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK);
        state.mp_state = MpState::Runnable;
    }
}

/// Null, unused, `__BOOT_CS`, `__BOOT_DS`, TSS.
const GDT: [u64; 5] = [
    0,
    0,
    descriptor(0xF_FFFF, attributes::CODE_64),
    descriptor(0xF_FFFF, attributes::DATA_32),
    descriptor(0x67, attributes::TSS_BUSY),
];

/// A segment descriptor with base 0 (SDM vol. 3, figure 3-8).
const fn descriptor(limit: u64, attributes: u32) -> u64 {
    limit & 0xFFFF | (limit >> 16 & 0xF) << 48 | (attributes as u64) << 40
}

fn write_gdt(ram: &GuestRam) -> Result<(), NotRam> {
    write_u64s(ram, layout::GDT, GDT)
}

/// Maps the first 4 GiB one to one with pages of 2 MiB (SDM vol. 3, 4.5).
fn write_page_tables(ram: &GuestRam) -> Result<(), NotRam> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let pdpt = layout::PAGE_TABLES + 0x1000;
    let directories = layout::PAGE_TABLES + 0x2000;
    ram.write(layout::PAGE_TABLES, &[0; 0x2000])?;
    write_u64s(ram, layout::PAGE_TABLES, [pdpt | PRESENT_WRITABLE])?;
    write_u64s(ram, pdpt, (0..4).map(|i| (directories + i * 0x1000) | PRESENT_WRITABLE))?;
    write_u64s(ram, directories, (0..4 * 512).map(|i| i << 21 | LARGE | PRESENT_WRITABLE))
}

fn write_u64s(
    ram: &GuestRam,
    address: u64,
    values: impl IntoIterator<Item = u64>,
) -> Result<(), NotRam> {
    let bytes: Vec<u8> = values.into_iter().flat_map(u64::to_le_bytes).collect();
    ram.write(address, &bytes)
}
