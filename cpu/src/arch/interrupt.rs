//! Delivery of interrupts and exceptions (SDM vol. 3, 6.12 to 6.15, 21.1 and 21.3).

use board::vcpu::Segment;

use crate::arch::segment::{Descriptor, null};
use crate::arch::task::Cause;
use crate::cpu::{Bits, Cpu, RSP, cr4, seg};
use crate::fault::{Exception, Res, Stop, Why, vector};
use crate::flags::bit;
use crate::int::mask;
use crate::mmu::walk::{Access, Kind};

/// Something to be delivered through the interrupt table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error: Option<u32>,
    pub(crate) source: Source,
    /// A fault, other than that of an instruction breakpoint: the frame has RF set.
    pub(crate) fault: bool,
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An interrupt, an exception, or INT1: error codes have the EXT bit.
    Hardware,
    /// INT3 or INTO: the gate's DPL counts.
    Trap,
    /// INT n: the gate's DPL counts, and in virtual-8086 mode IOPL and the redirection bitmap.
    IntN,
}

impl Event {
    fn soft(&self) -> bool {
        self.source != Source::Hardware
    }

    fn ext(&self) -> u32 {
        u32::from(!self.soft())
    }
}

/// A stack to push a frame on, apart from the one in use.
struct Frame {
    stack: Segment,
    sp: u64,
    size: u64,
    /// The frame is pushed in 64-bit mode, without segment checks.
    flat: bool,
    access: Access,
    /// Error code of the #SS where it does not fit.
    error: u32,
}

impl Frame {
    fn push(&mut self, cpu: &mut Cpu, value: u64) -> Res {
        let width = if self.flat {
            8
        } else if self.stack.db() {
            4
        } else {
            2
        };
        let sp = self.sp.wrapping_sub(self.size) & mask(width);
        let linear = if self.flat {
            sp
        } else {
            let limit = u64::from(self.stack.limit);
            let down = cpu.protected() && !cpu.v86() && self.stack.kind() & 4 != 0;
            let inside = if down { sp > limit } else { sp + self.size - 1 <= limit };
            if !inside {
                return cpu.raise_error(vector::SS, self.error);
            }
            self.stack.base.wrapping_add(sp) & 0xFFFF_FFFF
        };
        if self.flat && !cpu.canonical(linear) {
            return cpu.raise_error(vector::SS, self.error);
        }
        cpu.write_as(linear, &value.to_le_bytes()[..self.size as usize], self.access)?;
        self.sp = self.sp & !mask(width) | sp;
        Ok(())
    }
}

impl Cpu {
    /// Delivers an exception that the instruction at RIP raised, and what its delivery raises in
    /// turn, up to a double fault.
    ///
    /// # Errors
    /// With `stop` at [`Why::Shutdown`]: a triple fault.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Res {
        let mut current = exception;
        loop {
            self.exception_effects(&current);
            let (vector, error) = (current.vector, current.error);
            let fault = current.is_fault();
            let event = Event { vector, error, source: Source::Hardware, fault };
            if self.deliver(event).is_ok() {
                return Ok(());
            }
            current = self.escalate(current.vector)?;
        }
    }

    /// Delivers an interrupt, and what its delivery raises.
    ///
    /// # Errors
    /// With `stop` at [`Why::Shutdown`]: a triple fault.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) -> Res {
        match self.deliver(Event { vector, error: None, source: Source::Hardware, fault: false }) {
            Ok(()) => Ok(()),
            Err(Stop) => match self.stop.take() {
                Some(Why::Exception(exception)) => self.deliver_exception(exception),
                other => {
                    self.stop = other;
                    Err(Stop)
                }
            },
        }
    }

    /// What follows an exception raised while `first` was delivered.
    fn escalate(&mut self, first: u8) -> Res<Exception> {
        let Some(Why::Exception(second)) = self.stop.take() else {
            self.stop = Some(Why::Shutdown);
            return Err(Stop);
        };
        if first == vector::DF {
            self.stop = Some(Why::Shutdown);
            return Err(Stop);
        }
        if second.doubles(first) {
            return Ok(Exception { vector: vector::DF, error: Some(0), payload: 0 });
        }
        Ok(second)
    }

    fn exception_effects(&mut self, exception: &Exception) {
        match exception.vector {
            vector::PF => self.cr2 = exception.payload,
            vector::DB => {
                self.debug.status |= exception.payload;
                // General detect ends with the exception that it causes.
                self.debug.control &= !(1 << 13);
            }
            _ => {}
        }
    }

    /// Delivers one event; RIP is what the handler is to return to. Nothing has changed on error.
    ///
    /// # Errors
    /// An exception of the delivery itself.
    pub(crate) fn deliver(&mut self, event: Event) -> Res {
        self.next_rip = self.rip;
        self.in_new_task = false;
        // What the last block wanted to go on with is not what comes next.
        self.link = None;
        let result = if !self.protected() {
            self.deliver_real(event)
        } else if self.long() {
            self.deliver_long(event)
        } else {
            self.deliver_protected(event)
        };
        if result.is_ok() {
            self.next_rip = self.rip;
            self.update_mode();
        }
        result
    }

    fn deliver_real(&mut self, event: Event) -> Res {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idt.limit) {
            return self.gp(0);
        }
        let entry = self.load_system(self.idt.base.wrapping_add(at), 4)?;
        let flags = self.flags.get();
        self.frame_real(entry, flags, bit::IF | bit::TF | bit::AC)
    }

    /// Pushes `flags`, CS and IP, 16 bits each, clears `clear` and goes to the far pointer `entry`.
    fn frame_real(&mut self, entry: u64, flags: u64, clear: u64) -> Res {
        let mut frame = self.current_frame(2, 0);
        frame.push(self, flags)?;
        frame.push(self, u64::from(self.segs[seg::CS].selector))?;
        frame.push(self, self.rip)?;
        self.set_reg(RSP, 2, frame.sp);
        self.flags.rest &= !clear;
        self.load_real(seg::CS, (entry >> 16) as u16);
        self.rip = entry & 0xFFFF;
        Ok(())
    }

    fn current_frame(&self, size: u64, error: u32) -> Frame {
        Frame {
            stack: self.segs[seg::SS],
            sp: self.regs[RSP],
            size,
            flat: self.long() && self.bits == Bits::B64,
            access: Access { user: self.cpl == 3, ..self.system_access(true) },
            error,
        }
    }

    /// Reads the gate for `event` and checks what is common to all modes.
    fn gate(&mut self, event: &Event, size: u64) -> Res<Descriptor> {
        let ext = event.ext();
        let error = u32::from(event.vector) * 8 + 2;
        let at = u64::from(event.vector) * size;
        if at + size - 1 > u64::from(self.idt.limit) {
            return self.gp(error | ext);
        }
        let at = self.idt.base.wrapping_add(at);
        let raw = self.load_system(at, 8)?;
        let high = if size == 16 { self.load_system(at.wrapping_add(8), 8)? } else { 0 };
        let gate = Descriptor { raw, high, at };
        let legal = match gate.kind() {
            14 | 15 => true,
            5..=7 => size == 8,
            _ => false,
        };
        if gate.s() || !legal || event.soft() && gate.dpl() < self.cpl {
            return self.gp(error | ext);
        }
        if !gate.present() {
            return self.raise_error(vector::NP, error | ext);
        }
        Ok(gate)
    }

    /// The handler's code segment and the privilege that it will run at.
    fn handler(&mut self, selector: u16, ext: u32) -> Res<(Descriptor, u8)> {
        if selector & !3 == 0 {
            return self.gp(ext);
        }
        let error = u32::from(selector & !3) | ext;
        let mut code = self.descriptor(selector, vector::GP, ext)?;
        if !code.is_code() || code.dpl() > self.cpl {
            return self.gp(error);
        }
        if self.long() && (!code.long() || code.db()) {
            return self.gp(error);
        }
        if !code.present() {
            return self.raise_error(vector::NP, error);
        }
        let cpl = if code.conforming() { self.cpl } else { code.dpl() };
        if self.v86() && cpl != 0 {
            return self.gp(error);
        }
        self.mark_accessed(&mut code)?;
        Ok((code, cpl))
    }

    fn deliver_protected(&mut self, event: Event) -> Res {
        let ext = event.ext();
        if self.v86()
            && event.source == Source::IntN
            && let Some(done) = self.redirect_v86(&event)?
        {
            return done;
        }
        let gate = self.gate(&event, 8)?;
        let g = gate.gate();
        if gate.kind() == 5 {
            self.task_switch_checked(g.selector, Cause::Interrupt, ext)?;
            if let Some(error) = event.error {
                let size = if self.segs[seg::TR].kind() & 8 != 0 { 4 } else { 2 };
                self.push(size, u64::from(error))?;
            }
            return Ok(());
        }
        let (code, cpl) = self.handler(g.selector, ext)?;
        let size = if gate.kind() & 8 != 0 { 4 } else { 2 };
        let old = (self.segs[seg::SS].selector, self.regs[RSP]);
        let switch = cpl < self.cpl;
        let mut frame = if switch {
            let (ss, sp) = self.tss_stack(cpl, ext)?;
            let stack = self.stack_segment(ss, cpl, vector::TS, ext)?;
            let access = Access { user: cpl == 3, ..self.system_access(true) };
            Frame { stack, sp, size, flat: false, access, error: u32::from(ss & !3) | ext }
        } else {
            self.current_frame(size, ext)
        };
        let v86 = self.v86();
        // The frame is a supervisor's even when it interrupts virtual-8086 code.
        if v86 {
            for i in [seg::GS, seg::FS, seg::DS, seg::ES] {
                frame.push(self, u64::from(self.segs[i].selector))?;
            }
        }
        if switch {
            frame.push(self, u64::from(old.0))?;
            frame.push(self, old.1)?;
        }
        frame.push(self, self.pushed_flags(&event))?;
        frame.push(self, u64::from(self.segs[seg::CS].selector))?;
        frame.push(self, self.rip)?;
        if let Some(error) = event.error {
            frame.push(self, u64::from(error))?;
        }
        let limit = u64::from(code.segment(0).limit);
        let entry = if size == 4 { g.offset & 0xFFFF_FFFF } else { g.offset & 0xFFFF };
        if entry > limit {
            return self.gp(ext);
        }
        if v86 {
            for i in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[i] = null(0);
            }
        }
        if switch {
            self.segs[seg::SS] = frame.stack;
        }
        let width = if frame.stack.db() { 4 } else { 2 };
        self.set_reg(RSP, width, frame.sp);
        self.enter_handler(code.segment(g.selector), cpl, gate.kind() & 1 == 0, entry);
        Ok(())
    }

    fn deliver_long(&mut self, event: Event) -> Res {
        let ext = event.ext();
        let gate = self.gate(&event, 16)?;
        let g = gate.gate();
        let (code, cpl) = self.handler(g.selector, ext)?;
        let switch = cpl < self.cpl;
        let old = (self.segs[seg::SS].selector, self.regs[RSP]);
        let sp = if g.ist != 0 {
            self.tss_load(28 + 8 * u64::from(g.ist), 8, ext)?
        } else if switch {
            self.tss_load(4 + 8 * u64::from(cpl), 8, ext)?
        } else {
            self.regs[RSP]
        };
        if !self.canonical(sp) {
            return self.raise_error(vector::SS, ext);
        }
        let access = Access { user: cpl == 3, ..self.system_access(true) };
        let stack = self.segs[seg::SS];
        let mut frame = Frame { stack, sp: sp & !15, size: 8, flat: true, access, error: ext };
        frame.push(self, u64::from(old.0))?;
        frame.push(self, old.1)?;
        frame.push(self, self.pushed_flags(&event))?;
        frame.push(self, u64::from(self.segs[seg::CS].selector))?;
        frame.push(self, self.rip)?;
        if let Some(error) = event.error {
            frame.push(self, u64::from(error))?;
        }
        if !self.canonical(g.offset) {
            return self.gp(ext);
        }
        if switch {
            self.segs[seg::SS] = null(u16::from(cpl));
            self.segs[seg::SS].attributes |= u32::from(cpl) << 5;
        }
        self.regs[RSP] = frame.sp;
        self.enter_handler(code.segment(g.selector), cpl, gate.kind() & 1 == 0, g.offset);
        Ok(())
    }

    /// RFLAGS for the frame: RF is set when a fault is delivered, so that the instruction is not
    /// stopped by its own breakpoint again.
    fn pushed_flags(&self, event: &Event) -> u64 {
        self.flags.get() | if event.fault { bit::RF } else { 0 }
    }

    fn enter_handler(&mut self, code: Segment, cpl: u8, interrupt_gate: bool, rip: u64) {
        self.flags.rest &= !(bit::TF | bit::NT | bit::VM | bit::RF);
        if interrupt_gate {
            self.flags.rest &= !bit::IF;
        }
        self.set_cs(code, cpl);
        self.rip = rip;
    }

    /// With VME, INT n of virtual-8086 code can go to its own table (SDM vol. 3, 21.3).
    fn redirect_v86(&mut self, event: &Event) -> Res<Option<Res>> {
        let vme = self.cr4 & cr4::VME != 0;
        let redirected = vme && {
            let map = self.tss_load(102, 2, 0)?;
            let bit = u64::from(event.vector);
            let at = map.wrapping_sub(32) + bit / 8;
            at <= u64::from(self.segs[seg::TR].limit)
                && self.tss_load(at, 1, 0)? >> (bit & 7) & 1 == 0
        };
        if !redirected {
            return if self.iopl() < 3 { self.gp(0) } else { Ok(None) };
        }
        let entry = self.load_system(u64::from(event.vector) * 4, 4)?;
        let flags = self.flags.get();
        Ok(Some(if self.iopl() == 3 {
            self.frame_real(entry, flags, bit::IF | bit::TF)
        } else {
            let shown = self.virtual_flags(flags);
            self.frame_real(entry, shown, bit::VIF | bit::TF)
        }))
    }

    /// FLAGS as virtual-8086 code below IOPL 3 sees them with VME: VIF in place of IF, and IOPL 3.
    pub(crate) fn virtual_flags(&self, flags: u64) -> u64 {
        flags & !bit::IF | bit::IOPL | if flags & bit::VIF != 0 { bit::IF } else { 0 }
    }

    /// Reads a field of the TSS; #TS if it lies beyond the limit.
    pub(crate) fn tss_load(&mut self, offset: u64, size: usize, ext: u32) -> Res<u64> {
        let tr = self.segs[seg::TR];
        if offset + size as u64 - 1 > u64::from(tr.limit) {
            return self.raise_error(vector::TS, u32::from(tr.selector & !3) | ext);
        }
        self.load_system(tr.base.wrapping_add(offset), size)
    }

    /// SS and ESP for privilege `cpl` from a 16-bit or 32-bit TSS.
    pub(crate) fn tss_stack(&mut self, cpl: u8, ext: u32) -> Res<(u16, u64)> {
        let cpl = u64::from(cpl);
        if self.segs[seg::TR].kind() & 8 != 0 {
            let sp = self.tss_load(4 + 8 * cpl, 4, ext)?;
            Ok((self.tss_load(8 + 8 * cpl, 2, ext)? as u16, sp))
        } else {
            let sp = self.tss_load(2 + 4 * cpl, 2, ext)?;
            Ok((self.tss_load(4 + 4 * cpl, 2, ext)? as u16, sp))
        }
    }

    /// An access to the stack of the level that a transfer goes to.
    pub(crate) fn stack_access(&self, cpl: u8) -> Access {
        Access { kind: Kind::Write, user: cpl == 3, ..self.system_access(true) }
    }
}
