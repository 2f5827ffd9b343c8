//! Far branches, software interrupts, IRET, and the fast system calls.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{Exec, control};
use crate::arch::interrupt::{Event, Source};
use crate::arch::segment::Descriptor;
use crate::arch::task::Cause;
use crate::cpu::{BS, Bits, Cpu, RCX, RDX, RSP, cr4, efer, seg};
use crate::fault::{Res, vector};
use crate::flags::bit;
use crate::int::mask;

pub(super) fn find(instr: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    let direct = matches!(instr.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    Some(match instr.mnemonic() {
        M::Jmp if direct || instr.is_jmp_far_indirect() => |cpu, i| far(cpu, i, false),
        M::Call if direct || instr.is_call_far_indirect() => |cpu, i| far(cpu, i, true),
        M::Jmp => control::jmp,
        M::Call => control::call,
        M::Retf => retf,
        M::Iret | M::Iretd | M::Iretq => iret,
        M::Int => |cpu, i| raise_soft(cpu, i.immediate8(), Source::IntN),
        M::Int3 => |cpu, _| raise_soft(cpu, vector::BP, Source::Trap),
        M::Into => into,
        M::Int1 => icebp,
        M::Syscall => syscall,
        M::Sysret | M::Sysretq => sysret,
        M::Sysenter => sysenter,
        M::Sysexit | M::Sysexitq => sysexit,
        _ => return None,
    })
}

fn into(cpu: &mut Cpu, _: &Instruction) -> Res {
    if cpu.flags.of() { raise_soft(cpu, vector::OF, Source::Trap) } else { Ok(()) }
}

/// INT1: unlike INT n, it is not subject to the gate's DPL. DR6 does not show it.
fn icebp(cpu: &mut Cpu, _: &Instruction) -> Res {
    raise_soft(cpu, vector::DB, Source::Hardware)?;
    // Whatever enters the handler of #DB ends general detect.
    cpu.debug.control &= !(1 << 13);
    Ok(())
}

/// An interrupt with RIP behind the instruction. It clears TF, so that no single step follows.
fn raise_soft(cpu: &mut Cpu, vector: u8, source: Source) -> Res {
    let at = cpu.rip;
    cpu.rip = cpu.next_rip;
    let result = cpu.deliver(Event { vector, error: None, source, fault: false });
    // A fault of the delivery is one of the instruction, unless it arose in a new task.
    if result.is_err() && !cpu.in_new_task {
        cpu.rip = at;
    }
    cpu.step_trap = false;
    result
}

/// JMP and CALL far.
fn far(cpu: &mut Cpu, instr: &Instruction, call: bool) -> Res {
    let size = match instr.code() {
        Code::Jmp_ptr1616 | Code::Call_ptr1616 | Code::Jmp_m1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    };
    let (selector, offset) = match instr.op0_kind() {
        OpKind::FarBranch16 => (instr.far_branch_selector(), u64::from(instr.far_branch16())),
        OpKind::FarBranch32 => (instr.far_branch_selector(), u64::from(instr.far_branch32())),
        _ => {
            let linear = cpu.address(instr, size + 2, false)?;
            let offset = cpu.load_n(linear, size)?;
            (cpu.load_n(linear.wrapping_add(size), 2)? as u16, offset)
        }
    };
    if cpu.real_like() {
        if offset > u64::from(cpu.segs[seg::CS].limit) {
            return cpu.gp(0);
        }
        if call {
            push_return(cpu, size)?;
        }
        cpu.load_real(seg::CS, selector);
        cpu.next_rip = offset;
        cpu.update_mode();
        return Ok(());
    }
    if selector & !3 == 0 {
        return cpu.gp(0);
    }
    let target = cpu.descriptor(selector, vector::GP, 0)?;
    if target.s() {
        segment(cpu, target, selector, offset, size, call)
    } else {
        system(cpu, target, selector, call)
    }
}

fn push_return(cpu: &mut Cpu, size: u64) -> Res {
    let old = cpu.regs[RSP];
    cpu.push(size, u64::from(cpu.segs[seg::CS].selector))?;
    let result = cpu.push(size, cpu.next_rip);
    if result.is_err() {
        cpu.regs[RSP] = old;
    }
    result
}

/// To a code segment.
fn segment(
    cpu: &mut Cpu,
    mut code: Descriptor,
    selector: u16,
    offset: u64,
    size: u64,
    call: bool,
) -> Res {
    let error = u32::from(selector & !3);
    let rpl = (selector & 3) as u8;
    let level = if code.conforming() {
        code.dpl() <= cpu.cpl
    } else {
        rpl <= cpu.cpl && code.dpl() == cpu.cpl
    };
    if !code.is_code() || !level || cpu.long() && code.long() && code.db() {
        return cpu.gp(error);
    }
    if !code.present() {
        return cpu.raise_error(vector::NP, error);
    }
    let to64 = cpu.long() && code.long();
    let offset = offset & mask(size);
    let inside =
        if to64 { cpu.canonical(offset) } else { offset <= u64::from(code.segment(0).limit) };
    if !inside {
        return cpu.gp(0);
    }
    if call {
        push_return(cpu, size)?;
    }
    cpu.mark_accessed(&mut code)?;
    let cpl = cpu.cpl;
    cpu.set_cs(code.segment(selector), cpl);
    cpu.next_rip = offset;
    cpu.update_mode();
    Ok(())
}

/// To a gate or a TSS.
fn system(cpu: &mut Cpu, gate: Descriptor, selector: u16, call: bool) -> Res {
    let error = u32::from(selector & !3);
    let rpl = (selector & 3) as u8;
    let known = match gate.kind() {
        12 => true,
        1 | 4 | 5 | 9 => !cpu.long(),
        _ => false,
    };
    if !known || gate.dpl() < cpu.cpl || gate.dpl() < rpl {
        return cpu.gp(error);
    }
    if !gate.present() {
        return cpu.raise_error(vector::NP, error);
    }
    let cause = if call { Cause::Call } else { Cause::Jump };
    match gate.kind() {
        1 | 9 => cpu.task_switch_checked(selector, cause, 0),
        5 => cpu.task_switch_checked(gate.gate().selector, cause, 0),
        _ => call_gate(cpu, gate, call),
    }
}

fn call_gate(cpu: &mut Cpu, gate: Descriptor, call: bool) -> Res {
    let g = gate.gate();
    if g.selector & !3 == 0 {
        return cpu.gp(0);
    }
    let error = u32::from(g.selector & !3);
    let mut code = cpu.descriptor(g.selector, vector::GP, 0)?;
    let long = cpu.long();
    if !code.is_code() || code.dpl() > cpu.cpl || long && (!code.long() || code.db()) {
        return cpu.gp(error);
    }
    if !code.present() {
        return cpu.raise_error(vector::NP, error);
    }
    let size: u64 = if long {
        8
    } else if gate.kind() & 8 != 0 {
        4
    } else {
        2
    };
    let inner = call && !code.conforming() && code.dpl() < cpu.cpl;
    if !inner && !code.conforming() && code.dpl() != cpu.cpl {
        return cpu.gp(error);
    }
    let offset = if size == 2 { g.offset & 0xFFFF } else { g.offset };
    let inside =
        if long { cpu.canonical(offset) } else { offset <= u64::from(code.segment(0).limit) };
    if !inside {
        return cpu.gp(0);
    }
    let cpl = if inner { code.dpl() } else { cpu.cpl };
    if inner {
        inner_stack(cpu, cpl, size, u64::from(g.count))?;
    } else if call {
        push_return(cpu, size)?;
    }
    cpu.mark_accessed(&mut code)?;
    cpu.set_cs(code.segment(g.selector), cpl);
    cpu.next_rip = offset;
    cpu.update_mode();
    Ok(())
}

/// Changes to the stack of level `cpl`: the old stack pointer, `count` parameters and the return
/// address are pushed there.
fn inner_stack(cpu: &mut Cpu, cpl: u8, size: u64, count: u64) -> Res {
    let (old_ss, old_sp) = (cpu.segs[seg::SS], cpu.regs[RSP]);
    let mut items = vec![u64::from(old_ss.selector), old_sp];
    let (stack, sp) = if size == 8 {
        let mut stack = crate::arch::segment::null(u16::from(cpl));
        stack.attributes |= u32::from(cpl) << 5;
        (stack, cpu.tss_load(4 + 8 * u64::from(cpl), 8, 0)?)
    } else {
        let (selector, sp) = cpu.tss_stack(cpl, 0)?;
        for i in (0..count).rev() {
            items.push(cpu.peek(size, i)?);
        }
        (cpu.stack_segment(selector, cpl, vector::TS, 0)?, sp)
    };
    items.push(u64::from(cpu.segs[seg::CS].selector));
    items.push(cpu.next_rip);
    let width = if size == 8 {
        8
    } else if stack.db() {
        4
    } else {
        2
    };
    let bottom = sp.wrapping_sub(size * items.len() as u64) & mask(width);
    let mut bytes = Vec::with_capacity(items.len() * size as usize);
    for item in items.iter().rev() {
        bytes.extend_from_slice(&item.to_le_bytes()[..size as usize]);
    }
    if size == 8 && !cpu.canonical(bottom) {
        return cpu.raise_error(vector::SS, 0);
    }
    let linear = if size == 8 { bottom } else { stack.base.wrapping_add(bottom) & 0xFFFF_FFFF };
    let access = cpu.stack_access(cpl);
    cpu.write_as(linear, &bytes, access)?;
    cpu.segs[seg::SS] = stack;
    cpu.set_reg(RSP, width, bottom);
    Ok(())
}

fn retf(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let arguments = if instr.op_count() == 1 { u64::from(instr.immediate16()) } else { 0 };
    let size = match instr.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let offset = cpu.peek(size, 0)?;
    let selector = cpu.peek(size, 1)? as u16;
    if cpu.real_like() {
        if offset > u64::from(cpu.segs[seg::CS].limit) {
            return cpu.gp(0);
        }
        cpu.drop_stack(2 * size + arguments);
        cpu.load_real(seg::CS, selector);
        cpu.next_rip = offset;
        cpu.update_mode();
        return Ok(());
    }
    let outer = (selector & 3) as u8 > cpu.cpl;
    let stack = if outer {
        let at = 2 * size + arguments;
        let read = |cpu: &mut Cpu, offset: u64| {
            let sp = cpu.regs[RSP].wrapping_add(offset) & mask(cpu.stack_size());
            let linear = cpu.linear(seg::SS, sp, size, false)?;
            cpu.load_n(linear, size)
        };
        Some((read(cpu, at + size)? as u16, read(cpu, at)?))
    } else {
        None
    };
    return_to(cpu, selector, offset, stack)?;
    if outer {
        cpu.drop_stack(arguments);
    } else {
        cpu.drop_stack(2 * size + arguments);
    }
    Ok(())
}

/// The part that RETF and IRET have in common: loads CS, and on a return to an outer level (or in
/// 64-bit mode by IRET) SS and the stack pointer. Nothing has changed on error.
fn return_to(cpu: &mut Cpu, selector: u16, offset: u64, stack: Option<(u16, u64)>) -> Res {
    if selector & !3 == 0 {
        return cpu.gp(0);
    }
    let error = u32::from(selector & !3);
    let rpl = (selector & 3) as u8;
    let mut code = cpu.descriptor(selector, vector::GP, 0)?;
    let level = if code.conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
    if !code.is_code() || rpl < cpu.cpl || !level || cpu.long() && code.long() && code.db() {
        return cpu.gp(error);
    }
    if !code.present() {
        return cpu.raise_error(vector::NP, error);
    }
    let to64 = cpu.long() && code.long();
    let new_stack = match stack {
        Some((ss, sp)) => {
            // A null SS is legal for 64-bit code of an inner level only.
            let bits = cpu.bits;
            cpu.bits = if to64 { Bits::B64 } else { Bits::B32 };
            let segment = cpu.stack_segment(ss, rpl, vector::GP, 0);
            cpu.bits = bits;
            Some((segment?, sp))
        }
        None => None,
    };
    let inside =
        if to64 { cpu.canonical(offset) } else { offset <= u64::from(code.segment(0).limit) };
    if !inside {
        return cpu.gp(0);
    }
    cpu.mark_accessed(&mut code)?;
    let outer = rpl > cpu.cpl;
    cpu.set_cs(code.segment(selector), rpl);
    cpu.next_rip = offset;
    if let Some((segment, sp)) = new_stack {
        cpu.segs[seg::SS] = segment;
        cpu.update_mode();
        cpu.set_sp(sp);
    }
    if outer {
        cpu.drop_privileged_segments();
    }
    cpu.update_mode();
    Ok(())
}

fn iret(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = match instr.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    if cpu.v86() && cpu.iopl() < 3 {
        return iret_vme(cpu, size);
    }
    let arith = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
    if cpu.real_like() {
        let (offset, selector, flags) =
            (cpu.peek(size, 0)?, cpu.peek(size, 1)? as u16, cpu.peek(size, 2)?);
        if offset > u64::from(cpu.segs[seg::CS].limit) {
            return cpu.gp(0);
        }
        let mut change = (arith | bit::IF) & mask(size);
        if !cpu.v86() {
            change |= bit::IOPL;
        }
        cpu.drop_stack(3 * size);
        cpu.flags.set(cpu.flags.get() & !change | flags & change);
        cpu.load_real(seg::CS, selector);
        cpu.next_rip = offset;
        cpu.nmi_masked = false;
        cpu.update_mode();
        return Ok(());
    }
    if cpu.flags.rest & bit::NT != 0 {
        if cpu.long() {
            return cpu.gp(0);
        }
        let link = cpu.tss_load(0, 2, 0)? as u16;
        cpu.nmi_masked = false;
        return cpu.task_switch_checked(link, Cause::Return, 0);
    }
    let (offset, selector, flags) =
        (cpu.peek(size, 0)?, cpu.peek(size, 1)? as u16, cpu.peek(size, 2)?);
    if !cpu.long() && flags & bit::VM != 0 && cpu.cpl == 0 && size == 4 {
        return iret_to_v86(cpu, offset, selector, flags);
    }
    let mut change = arith;
    if cpu.cpl <= cpu.iopl() {
        change |= bit::IF;
    }
    if cpu.cpl == 0 {
        change |= bit::IOPL | bit::VIF | bit::VIP;
    }
    change &= mask(size);
    let outer = (selector & 3) as u8 > cpu.cpl;
    let stack = if outer || cpu.bits == Bits::B64 {
        let sp = cpu.peek(size, 3)?;
        Some((cpu.peek(size, 4)? as u16, sp))
    } else {
        None
    };
    return_to(cpu, selector, offset, stack)?;
    if stack.is_none() {
        cpu.drop_stack(3 * size);
    }
    cpu.flags.set(cpu.flags.get() & !change | flags & change);
    cpu.nmi_masked = false;
    cpu.update_mode();
    Ok(())
}

/// IRET of virtual-8086 code below IOPL 3, with VME.
fn iret_vme(cpu: &mut Cpu, size: u64) -> Res {
    if cpu.cr4 & cr4::VME == 0 || size != 2 {
        return cpu.gp(0);
    }
    let (offset, selector, flags) = (cpu.peek(2, 0)?, cpu.peek(2, 1)? as u16, cpu.peek(2, 2)?);
    let old = cpu.flags.get();
    if flags & bit::TF != 0 || flags & bit::IF != 0 && old & bit::VIP != 0 {
        return cpu.gp(0);
    }
    let keep = bit::IF | bit::IOPL;
    let vif = if flags & bit::IF != 0 { bit::VIF } else { 0 };
    cpu.drop_stack(6);
    cpu.flags.set(old & (keep | !0xFFFF) & !bit::VIF | flags & 0xFFFF & !keep | vif);
    cpu.load_real(seg::CS, selector);
    cpu.next_rip = offset;
    cpu.update_mode();
    Ok(())
}

fn iret_to_v86(cpu: &mut Cpu, offset: u64, selector: u16, flags: u64) -> Res {
    let sp = cpu.peek(4, 3)?;
    let mut selectors = [0; 6];
    for (slot, register) in [(4, seg::SS), (5, seg::ES), (6, seg::DS), (7, seg::FS), (8, seg::GS)] {
        selectors[register] = cpu.peek(4, slot)? as u16;
    }
    selectors[seg::CS] = selector;
    cpu.flags.set(flags);
    for (i, selector) in selectors.iter().enumerate() {
        cpu.load_real(i, *selector);
    }
    cpu.cpl = 3;
    cpu.regs[RSP] = sp;
    cpu.next_rip = offset & 0xFFFF;
    cpu.nmi_masked = false;
    cpu.update_mode();
    Ok(())
}

/// A flat segment as the fast system calls load it.
fn flat(selector: u16, code: bool, dpl: u8, long: bool) -> board::vcpu::Segment {
    let kind = if code { 0xB } else { 3 };
    // Present, S; 4 GiB; 32 bits unless it is 64-bit code.
    let width = if long { 1 << 13 } else { 1 << 14 };
    let attributes = kind | 1 << 4 | u32::from(dpl) << 5 | 1 << 7 | 1 << 15 | width;
    board::vcpu::Segment { selector, base: 0, limit: u32::MAX, attributes }
}

impl Cpu {
    fn enter_flat(&mut self, code: u16, stack: u16, cpl: u8, long: bool) {
        self.segs[seg::CS] = flat(code, true, cpl, long);
        self.segs[seg::SS] = flat(stack, false, cpl, false);
        self.cpl = cpl;
        self.update_mode();
    }
}

fn syscall(cpu: &mut Cpu, _: &Instruction) -> Res {
    // Intel's form: 64-bit code only.
    if cpu.efer & efer::SCE == 0 || cpu.bits != Bits::B64 {
        return cpu.ud();
    }
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.regs[RCX] = cpu.next_rip;
    cpu.regs[11] = cpu.flags.get() & !bit::RF;
    cpu.flags.set(cpu.flags.get() & !(cpu.msrs.fmask | bit::RF));
    // Whether a single step traps is decided by TF as FMASK leaves it.
    cpu.step_trap &= cpu.flags.rest & bit::TF != 0;
    cpu.enter_flat(selector, selector + 8, 0, true);
    cpu.next_rip = cpu.msrs.lstar;
    Ok(())
}

fn sysret(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.efer & efer::SCE == 0 || cpu.bits != Bits::B64 {
        return cpu.ud();
    }
    cpu.ring0()?;
    let long = instr.code() == Code::Sysretq;
    let to = cpu.regs[RCX];
    if long && !cpu.canonical(to) {
        return cpu.gp(0);
    }
    let selector = (cpu.msrs.star >> 48) as u16;
    let code = selector.wrapping_add(if long { 16 } else { 0 }) | 3;
    let change = bit::ALL & !(bit::RF | bit::VM);
    cpu.flags.set(cpu.regs[11] & change);
    // A step that was masked at SYSCALL traps here, as if SYSCALL had just ended.
    cpu.step_trap = false;
    if cpu.flags.rest & bit::TF != 0 {
        cpu.watch_hit |= BS;
    }
    cpu.enter_flat(code, selector.wrapping_add(8) | 3, 3, long);
    cpu.next_rip = if long { to } else { to & 0xFFFF_FFFF };
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Instruction) -> Res {
    let selector = cpu.msrs.sysenter_cs as u16;
    if !cpu.protected() || selector & !3 == 0 {
        return cpu.gp(0);
    }
    cpu.flags.rest &= !(bit::VM | bit::IF | bit::RF);
    let long = cpu.long();
    cpu.enter_flat(selector & !3, (selector & !3) + 8, 0, long);
    let width = if long { u64::MAX } else { 0xFFFF_FFFF };
    cpu.regs[RSP] = cpu.msrs.sysenter_esp & width;
    cpu.next_rip = cpu.msrs.sysenter_eip & width;
    Ok(())
}

fn sysexit(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let selector = cpu.msrs.sysenter_cs as u16;
    if !cpu.protected() || selector & !3 == 0 || cpu.cpl != 0 {
        return cpu.gp(0);
    }
    let long = instr.code() == Code::Sysexitq;
    let (to, sp) = (cpu.regs[RDX], cpu.regs[RCX]);
    if long && !(cpu.canonical(to) && cpu.canonical(sp)) {
        return cpu.gp(0);
    }
    let base = (selector & !3).wrapping_add(if long { 32 } else { 16 }) | 3;
    cpu.enter_flat(base, base.wrapping_add(8), 3, long);
    let width = if long { u64::MAX } else { 0xFFFF_FFFF };
    cpu.regs[RSP] = sp & width;
    cpu.next_rip = to & width;
    Ok(())
}
