//! Control and debug registers, MSRs, CPUID, TSC, TLB and cache maintenance, HLT.

use board::vcpu::MpState;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::operand::segment_number;
use super::tables::{store16, umip};
use super::{Exec, control};
use crate::cpu::{Bits, Cpu, RAX, RBX, RCX, RDX, cr0, cr4, efer, seg};
use crate::fault::{Exception, Res, vector};
use crate::flags::bit;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Cli => |cpu, _| control::interrupt_flag(cpu, false),
        M::Sti => |cpu, _| control::interrupt_flag(cpu, true),
        M::Hlt => hlt,
        M::Monitor => monitor,
        M::Mwait => mwait,
        M::Lmsw => lmsw,
        M::Smsw => smsw,
        M::Clts => clts,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Wbinvd | M::Invd | M::Wbnoinvd => |cpu, _| cpu.ring0(),
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Rdtsc => |cpu, _| rdtsc(cpu, false),
        M::Rdtscp => |cpu, _| rdtsc(cpu, true),
        M::Rdpid => rdpid,
        M::Rdpmc => |cpu, _| cpu.gp(0),
        M::Cpuid => cpuid,
        M::Vmcall | M::Vmmcall => |cpu, _| cpu.hypercall(),
        M::Swapgs => swapgs,
        M::Rdfsbase => |cpu, i| read_base(cpu, i, seg::FS),
        M::Rdgsbase => |cpu, i| read_base(cpu, i, seg::GS),
        M::Wrfsbase => |cpu, i| write_base(cpu, i, seg::FS),
        M::Wrgsbase => |cpu, i| write_base(cpu, i, seg::GS),
        M::Clzero => clzero,
        M::Stac => |cpu, _| access_check(cpu, bit::AC),
        M::Clac => |cpu, _| access_check(cpu, 0),
        _ => return None,
    })
}

impl Cpu {
    /// MOV to a segment register.
    pub(crate) fn mov_to_segment(&mut self, instr: &Instruction) -> Res {
        let register = instr.op0_register();
        if register == Register::CS {
            return self.ud();
        }
        let selector = match instr.op1_kind() {
            OpKind::Register => self.get(instr.op1_register()),
            _ => {
                let linear = self.address(instr, 2, false)?;
                self.load_n(linear, 2)?
            }
        };
        self.load_segment(segment_number(register), selector as u16)?;
        if register == Register::SS {
            self.mov_ss_shadow = true;
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to a control or debug register.
    pub(crate) fn mov_to_system(&mut self, instr: &Instruction) -> Res {
        let value = self.get(instr.op1_register());
        let register = instr.op0_register();
        if register.is_dr() {
            return self.set_debug(register.number(), value);
        }
        if !register.is_cr() {
            return self.ud();
        }
        self.ring0()?;
        match register {
            Register::CR0 => self.set_cr0(value),
            Register::CR2 => {
                self.cr2 = value;
                Ok(())
            }
            Register::CR3 => self.set_cr3(value),
            Register::CR4 => self.set_cr4(value),
            Register::CR8 => self.set_cr8(value),
            _ => self.ud(),
        }
    }

    /// MOV from a control or debug register.
    pub(crate) fn mov_from_system(&mut self, instr: &Instruction) -> Res {
        let register = instr.op1_register();
        let value = if register.is_dr() {
            self.debug_access(register.number())?;
            match register.number() {
                n @ 0..=3 => self.debug.address[n],
                4 | 6 => self.debug.status,
                _ => self.debug.control,
            }
        } else {
            self.ring0()?;
            match register {
                Register::CR0 => self.cr0,
                Register::CR2 => self.cr2,
                Register::CR3 => self.cr3,
                Register::CR4 => self.cr4,
                Register::CR8 => self.task_priority(),
                _ => return self.ud(),
            }
        };
        self.put(instr.op0_register(), value);
        Ok(())
    }

    /// CR8: bits 4 to 7 of the local APIC's task priority.
    pub(crate) fn task_priority(&self) -> u64 {
        self.apic.as_ref().map_or(self.cr8, |apic| u64::from(apic.tpr() >> 4))
    }

    fn set_cr8(&mut self, value: u64) -> Res {
        if value > 15 {
            return self.gp(0);
        }
        self.cr8 = value;
        if let Some(apic) = &mut self.apic {
            apic.set_tpr((value << 4) as u8);
        }
        self.mailbox.attention.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// CR0, CR3 or CR4 has changed so much that nothing that is cached is good.
    pub(crate) fn new_address_space(&mut self) {
        let pcide = self.cr4 & cr4::PCIDE != 0;
        self.tlb.begin(if pcide { (self.cr3 & 0xFFF) as u16 } else { 0 });
    }

    /// Writes CR0 with all checks and effects.
    pub(crate) fn set_cr0(&mut self, value: u64) -> Res {
        const KNOWN: u64 = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        if value >> 32 != 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
        {
            return self.gp(0);
        }
        let value = value & KNOWN | cr0::ET;
        let old = self.cr0;
        let paging = (old ^ value) & cr0::PG != 0;
        if paging && value & cr0::PG != 0 {
            let long = self.efer & efer::LME != 0;
            if long && (self.cr4 & cr4::PAE == 0 || self.segs[seg::CS].long()) {
                return self.gp(0);
            }
        } else if paging && (self.bits == Bits::B64 || self.cr4 & cr4::PCIDE != 0) {
            return self.gp(0);
        }
        let reloads = (old ^ value) & (cr0::CD | cr0::NW | cr0::PG) != 0;
        let long = self.efer & efer::LME != 0;
        if reloads && value & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !long {
            self.load_pdptrs(self.cr3)?;
        }
        self.cr0 = value;
        if paging {
            let active = value & cr0::PG != 0 && self.efer & efer::LME != 0;
            self.efer = self.efer & !efer::LMA | if active { efer::LMA } else { 0 };
        }
        if (old ^ value) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.tlb.flush_all();
        }
        self.protection_changed();
        self.update_mode();
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Res {
        let mut value = value;
        if self.long() {
            let pcide = self.cr4 & cr4::PCIDE != 0;
            let keep = pcide && value >> 63 != 0;
            if pcide {
                value &= !(1 << 63);
            }
            if value & !self.phys_mask() != 0 {
                return self.gp(0);
            }
            self.cr3 = value;
            if pcide {
                self.tlb.switch((value & 0xFFF) as u16, keep);
            } else {
                self.tlb.flush_local();
            }
            return Ok(());
        }
        value &= 0xFFFF_FFFF;
        if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.load_pdptrs(value)?;
        }
        self.cr3 = value;
        self.tlb.flush_local();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Res {
        let old = self.cr4;
        let changed = old ^ value;
        if value & !self.features.cr4 != 0
            || self.long() && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || changed & value & cr4::PCIDE != 0 && (!self.long() || self.cr3 & 0xFFF != 0)
        {
            return self.gp(0);
        }
        let paging =
            cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::LA57;
        if changed & (cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP) != 0
            && self.cr0 & cr0::PG != 0
            && value & cr4::PAE != 0
            && !self.long()
        {
            self.load_pdptrs(self.cr3)?;
        }
        self.cr4 = value;
        if changed & paging != 0 {
            self.new_address_space();
        }
        self.update_mode();
        Ok(())
    }

    /// What MOV to and from debug registers needs.
    fn debug_access(&mut self, n: usize) -> Res {
        if matches!(n, 4 | 5) && self.cr4 & cr4::DE != 0 {
            return self.ud();
        }
        self.ring0()?;
        if self.debug.control & 1 << 13 != 0 {
            // General detect.
            return self.raise(Exception { vector: vector::DB, error: None, payload: 1 << 13 });
        }
        Ok(())
    }

    fn set_debug(&mut self, n: usize, value: u64) -> Res {
        self.debug_access(n)?;
        if n >= 4 && value >> 32 != 0 {
            return self.gp(0);
        }
        match n {
            0..=3 => self.debug.address[n] = value,
            4 | 6 => self.debug.status = value & 0xE00F | 0xFFFF_0FF0,
            _ => self.debug.control = value & 0xFFFF_23FF | 0x400,
        }
        self.tlb.flush_all();
        Ok(())
    }

    /// The time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        let khz = u128::from(self.tsc_khz.max(1));
        let ticks = u128::from(self.now().nanos()) * khz / 1_000_000;
        (ticks as u64).wrapping_add(self.msrs.tsc_offset)
    }
}

fn hlt(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.ring0()?;
    cpu.mp_state = MpState::Halted;
    Ok(())
}

/// MONITOR checks its byte; nothing is armed, since MWAIT does not wait.
fn monitor(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    // There are no extensions.
    if cpu.reg(RCX, 4) != 0 {
        return cpu.gp(0);
    }
    let size = match instr.op0_register() {
        Register::AX => 2,
        Register::EAX => 4,
        _ => 8,
    };
    let segment = match instr.segment_prefix() {
        Register::None => seg::DS,
        register => segment_number(register),
    };
    let linear = cpu.linear(segment, cpu.reg(RAX, size), 1, false)?;
    cpu.load_n(linear, 1)?;
    Ok(())
}

/// MWAIT is a hint; it ends as soon as it begins, but lets other threads run.
fn mwait(cpu: &mut Cpu, _: &Instruction) -> Res {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    if cpu.reg(RCX, 4) != 0 {
        return cpu.gp(0);
    }
    std::thread::yield_now();
    Ok(())
}

fn lmsw(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.ring0()?;
    let value = match instr.op0_kind() {
        OpKind::Register => cpu.get(instr.op0_register()),
        _ => {
            let linear = cpu.address(instr, 2, false)?;
            cpu.load_n(linear, 2)?
        }
    };
    // PE can be set here, never cleared.
    let change = cr0::MP | cr0::EM | cr0::TS | if value & 1 != 0 { cr0::PE } else { 0 };
    cpu.set_cr0(cpu.cr0 & !change | value & change)
}

fn smsw(cpu: &mut Cpu, instr: &Instruction) -> Res {
    umip(cpu)?;
    let value = cpu.cr0;
    store16(cpu, instr, value)
}

fn clts(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.ring0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

fn invlpg(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.ring0()?;
    let offset = cpu.offset(instr);
    let linear = offset.wrapping_add(cpu.seg_base[segment_number(instr.memory_segment())]);
    cpu.tlb.flush_page(cpu.wrap(linear));
    cpu.flushed = true;
    Ok(())
}

fn invpcid(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.ring0()?;
    let kind = cpu.get(instr.op0_register());
    let at = cpu.address(instr, 16, false)?;
    let mut bytes = [0; 16];
    cpu.read_bytes(at, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let bad_pcid = kind < 2 && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0;
    if kind > 3 || pcid >> 12 != 0 || bad_pcid || kind == 0 && !cpu.canonical(linear) {
        return cpu.gp(0);
    }
    match kind {
        0 if pcid == cpu.cr3 & 0xFFF || cpu.cr4 & cr4::PCIDE == 0 => cpu.tlb.flush_page(linear),
        0 | 1 => cpu.tlb.forget_space(pcid as u16),
        _ => cpu.tlb.flush_all(),
    }
    cpu.flushed = true;
    Ok(())
}

fn rdmsr(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.ring0()?;
    let value = cpu.read_msr(cpu.regs[RCX] as u32)?;
    cpu.regs[RAX] = value & 0xFFFF_FFFF;
    cpu.regs[RDX] = value >> 32;
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.ring0()?;
    let value = cpu.reg(RDX, 4) << 32 | cpu.reg(RAX, 4);
    cpu.write_msr(cpu.regs[RCX] as u32, value)
}

fn rdtsc(cpu: &mut Cpu, with_aux: bool) -> Res {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return cpu.gp(0);
    }
    let tsc = cpu.tsc();
    cpu.regs[RAX] = tsc & 0xFFFF_FFFF;
    cpu.regs[RDX] = tsc >> 32;
    if with_aux {
        cpu.regs[RCX] = cpu.msrs.tsc_aux & 0xFFFF_FFFF;
    }
    Ok(())
}

fn rdpid(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let value = cpu.msrs.tsc_aux & 0xFFFF_FFFF;
    cpu.put(instr.op0_register(), value);
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Instruction) -> Res {
    let [a, b, c, d] = cpu.cpuid_leaf(cpu.regs[RAX] as u32, cpu.regs[RCX] as u32);
    cpu.regs[RAX] = u64::from(a);
    cpu.regs[RBX] = u64::from(b);
    cpu.regs[RCX] = u64::from(c);
    cpu.regs[RDX] = u64::from(d);
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Instruction) -> Res {
    if cpu.bits != Bits::B64 {
        return cpu.ud();
    }
    cpu.ring0()?;
    std::mem::swap(&mut cpu.segs[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    cpu.seg_base[seg::GS] = cpu.segs[seg::GS].base;
    Ok(())
}

fn base_access(cpu: &mut Cpu) -> Res {
    if cpu.cr4 & cr4::FSGSBASE == 0 || cpu.bits != Bits::B64 { cpu.ud() } else { Ok(()) }
}

fn read_base(cpu: &mut Cpu, instr: &Instruction, i: usize) -> Res {
    base_access(cpu)?;
    let value = cpu.segs[i].base;
    cpu.put(instr.op0_register(), value);
    Ok(())
}

fn write_base(cpu: &mut Cpu, instr: &Instruction, i: usize) -> Res {
    base_access(cpu)?;
    let value = cpu.get(instr.op0_register());
    if !cpu.canonical(value) {
        return cpu.gp(0);
    }
    cpu.segs[i].base = value;
    cpu.seg_base[i] = value;
    Ok(())
}

/// Zeros the cache line at RAX (AMD APM vol. 3). Only assistants offer it.
fn clzero(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let width = match instr.code() {
        Code::Clzerow => 2,
        Code::Clzerod => 4,
        _ => 8,
    };
    let line = cpu.reg(RAX, width) & !63;
    let linear = cpu.linear(segment_number(instr.memory_segment()), line, 64, true)?;
    cpu.write_bytes(linear, &[0; 64])
}

fn access_check(cpu: &mut Cpu, ac: u64) -> Res {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    cpu.flags.rest = cpu.flags.rest & !bit::AC | ac;
    cpu.update_rights();
    Ok(())
}
