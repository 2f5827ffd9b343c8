//! The machine in the terms of gdbstub: vCPUs are threads, numbered from 1.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    self as points, Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint,
    HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::registers::{self, Register};
use super::{Access, Debuggee, Point, Resume, Trap, WatchKind};
use crate::error::CommandError;
use crate::hmp;
use crate::state::RunState;

/// Most of a command's output that goes into one packet.
const OUTPUT_PIECE: usize = 1024;
/// A page: what a mapping covers at least.
const PAGE: u64 = 4096;

/// The machine as gdbstub's target.
pub(super) struct Stub {
    access: Box<dyn Access>,
    /// What the packet in hand says of single vCPUs, and of all others.
    actions: Vec<(usize, Resume)>,
    rest: Resume,
    /// Breakpoints that were set as hardware ones: gdb wants to hear of them as such.
    hard: Vec<u64>,
    /// The vCPU that gdb heard of last.
    pub(super) current: usize,
}

/// x86-64 with the registers of the target description.
pub(super) enum X86 {}

/// The values of all registers, by gdb's numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Values(Vec<Option<u128>>);

#[derive(Debug)]
pub(super) struct Id(Register);

impl Arch for X86 {
    type Usize = u64;
    type Registers = Values;
    type BreakpointKind = usize;
    type RegId = Id;
}

impl RegId for Id {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        registers::by_number(id).map(|(register, size)| (Self(register), NonZeroUsize::new(size)))
    }
}

impl gdbstub::arch::Registers for Values {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for ((_, size), value) in registers::all().zip(&self.0) {
            for index in 0..size {
                write_byte(value.map(|value| value.to_le_bytes()[index]));
            }
        }
    }

    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        self.0.clear();
        for (_, size) in registers::all() {
            // gdb may leave out what comes last.
            if bytes.is_empty() {
                break;
            }
            let (now, rest) = bytes.split_at_checked(size).ok_or(())?;
            self.0.push(Some(number(now)));
            bytes = rest;
        }
        Ok(())
    }
}

/// A little-endian number of up to 16 bytes.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u128::from(*byte))
}

fn tid(cpu: usize) -> Tid {
    Tid::MIN.saturating_add(cpu)
}

fn cpu(tid: Tid) -> usize {
    tid.get() - 1
}

/// What could not be done; the reply is an error packet.
fn refused<E>(_: CommandError) -> TargetError<E> {
    TargetError::Errno(14)
}

impl Stub {
    pub(super) fn new(access: Box<dyn Access>) -> Self {
        Self { access, actions: Vec::new(), rest: Resume::Continue, hard: Vec::new(), current: 0 }
    }

    /// Asks the machine; `None` if there is none any more.
    pub(super) fn ask<R>(&self, question: impl FnOnce(&mut dyn Debuggee) -> R) -> Option<R> {
        let mut question = Some(question);
        let mut answer = None;
        self.access.with(&mut |machine| {
            if let Some(question) = question.take() {
                answer = Some(question(machine));
            }
        });
        answer
    }

    fn try_ask<R>(
        &self,
        question: impl FnOnce(&mut dyn Debuggee) -> Result<R, CommandError>,
    ) -> TargetResult<R, Self> {
        self.ask(question).ok_or(TargetError::NonFatal)?.map_err(refused)
    }

    /// The same about the vCPU that is thread `tid`.
    fn try_ask_cpu<R>(
        &self,
        tid: Tid,
        question: impl FnOnce(&mut dyn Debuggee, usize) -> Result<R, CommandError>,
    ) -> TargetResult<R, Self> {
        let cpu = cpu(tid);
        self.try_ask(|machine| {
            if cpu >= machine.cpus().len() {
                return Err(CommandError::BadValue { name: "cpu-index", expected: "a CPU number" });
            }
            question(machine, cpu)
        })
    }

    pub(super) fn is_running(&self) -> bool {
        self.ask(|machine| machine.status() == RunState::Running).unwrap_or(false)
    }

    /// Why the machine stands still.
    pub(super) fn stop_reason(&mut self) -> MultiThreadStopReason<u64> {
        let stopped = self.ask(|machine| (machine.take_trap(), machine.status()));
        let (trap, status) = stopped.unwrap_or((None, RunState::Shutdown));
        if let Some((cpu, trap)) = trap {
            self.current = cpu;
            let tid = tid(cpu);
            return match trap {
                Trap::Step => {
                    MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }
                }
                Trap::Breakpoint(at) if self.hard.contains(&at) => {
                    MultiThreadStopReason::HwBreak(tid)
                }
                Trap::Breakpoint(_) => MultiThreadStopReason::SwBreak(tid),
                Trap::Watch(addr, kind) => {
                    let kind = match kind {
                        WatchKind::Write => points::WatchKind::Write,
                        WatchKind::Read => points::WatchKind::Read,
                        WatchKind::Access => points::WatchKind::ReadWrite,
                    };
                    MultiThreadStopReason::Watch { tid, kind, addr }
                }
            };
        }
        let signal = match status {
            RunState::Shutdown => Signal::SIGQUIT,
            RunState::IoError => Signal::SIGSTOP,
            RunState::Watchdog => Signal::SIGALRM,
            RunState::InternalError | RunState::GuestPanicked => Signal::SIGABRT,
            RunState::Debug => Signal::SIGTRAP,
            _ => Signal::SIGINT,
        };
        MultiThreadStopReason::SignalWithThread { tid: tid(self.current), signal }
    }

    /// gdb is gone: no breakpoint stays.
    pub(super) fn forget(&mut self) {
        self.hard.clear();
        self.actions.clear();
        self.current = 0;
        self.ask(|machine| machine.clear_points());
    }

    fn set(&mut self, point: Point, on: bool) -> TargetResult<bool, Self> {
        Ok(self.try_ask(|machine| machine.set_point(point, on)).is_ok())
    }
}

impl Target for Stub {
    type Arch = X86;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl TargetDescriptionXmlOverride for Stub {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = registers::description().as_bytes().get(offset..).unwrap_or_default();
        let count = rest.len().min(length).min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

impl MultiThreadBase for Stub {
    fn read_registers(&mut self, regs: &mut Values, tid: Tid) -> TargetResult<(), Self> {
        let values = self.try_ask_cpu(tid, |machine, cpu| machine.registers(cpu))?;
        regs.0 =
            registers::all().map(|(register, _)| registers::value(&values, register)).collect();
        Ok(())
    }

    fn write_registers(&mut self, regs: &Values, tid: Tid) -> TargetResult<(), Self> {
        self.try_ask_cpu(tid, |machine, cpu| {
            let now = machine.registers(cpu)?;
            let new = registers::all().zip(&regs.0);
            let changed: Vec<_> = new
                .filter(|((register, _), value)| registers::value(&now, *register) != **value)
                .filter_map(|((register, _), value)| Some((register, (*value)?)))
                .collect();
            machine.write_registers(cpu, &changed)
        })
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        self.try_ask_cpu(tid, |machine, cpu| {
            if machine.read_virtual(cpu, start, data).is_ok() {
                return Ok(data.len());
            }
            let mut done = 0;
            while done < data.len() {
                let at = start.wrapping_add(done as u64);
                let piece = ((PAGE - at % PAGE) as usize).min(data.len() - done);
                match machine.read_virtual(cpu, at, &mut data[done..done + piece]) {
                    Ok(()) => done += piece,
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(done)
        })
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        self.try_ask_cpu(tid, |machine, cpu| machine.write_virtual(cpu, start, data))
    }

    fn list_active_threads(
        &mut self,
        thread_is_active: &mut dyn FnMut(Tid),
    ) -> Result<(), Infallible> {
        let count = self.ask(|machine| machine.cpus().len()).unwrap_or(0);
        (0..count).for_each(|cpu| thread_is_active(tid(cpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Stub {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Infallible> {
        let cpu = cpu(tid);
        let halted = self.ask(|machine| machine.cpus().get(cpu).map(|cpu| cpu.halted));
        let word = if halted.flatten().unwrap_or(true) { "halted " } else { "running" };
        let text = format!("CPU#{cpu} [{word}]");
        let count = text.len().min(buf.len());
        buf[..count].copy_from_slice(&text.as_bytes()[..count]);
        Ok(count)
    }
}

impl SingleRegisterAccess<Tid> for Stub {
    fn read_register(&mut self, tid: Tid, id: Id, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let values = self.try_ask_cpu(tid, |machine, cpu| machine.registers(cpu))?;
        let Some(value) = registers::value(&values, id.0) else { return Ok(0) };
        let count = buf.len().min(16);
        buf[..count].copy_from_slice(&value.to_le_bytes()[..count]);
        Ok(count)
    }

    fn write_register(&mut self, tid: Tid, id: Id, val: &[u8]) -> TargetResult<(), Self> {
        if val.len() > 16 {
            return Err(TargetError::NonFatal);
        }
        let new = [(id.0, number(val))];
        self.try_ask_cpu(tid, |machine, cpu| machine.write_registers(cpu, &new))
    }
}

impl MultiThreadResume for Stub {
    fn resume(&mut self) -> Result<(), Infallible> {
        let (actions, rest) = (std::mem::take(&mut self.actions), self.rest);
        self.ask(|machine| {
            let mut all = vec![rest; machine.cpus().len()];
            for (cpu, action) in actions {
                if let Some(entry) = all.get_mut(cpu) {
                    *entry = action;
                }
            }
            // What keeps it from running shows in its state.
            let _ = machine.resume(&all);
        });
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.actions.clear();
        self.rest = Resume::Continue;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Infallible> {
        self.actions.push((cpu(tid), Resume::Continue));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Stub {
    fn set_resume_action_step(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Infallible> {
        self.actions.push((cpu(tid), Resume::Step));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Stub {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.rest = Resume::Stay;
        Ok(())
    }
}

impl Breakpoints for Stub {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Stub {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.set(Point::Software(addr), true)
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.set(Point::Software(addr), false)
    }
}

impl HwBreakpoint for Stub {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        let done = self.set(Point::Hardware(addr), true)?;
        if done {
            self.hard.push(addr);
        }
        Ok(done)
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.hard.retain(|at| *at != addr);
        self.set(Point::Hardware(addr), false)
    }
}

fn watchpoint(address: u64, len: u64, kind: points::WatchKind) -> Point {
    let kind = match kind {
        points::WatchKind::Write => WatchKind::Write,
        points::WatchKind::Read => WatchKind::Read,
        points::WatchKind::ReadWrite => WatchKind::Access,
    };
    Point::Watch { address, len, kind }
}

impl HwWatchpoint for Stub {
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: points::WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set(watchpoint(addr, len, kind), true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: points::WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set(watchpoint(addr, len, kind), false)
    }
}

impl MonitorCmd for Stub {
    fn handle_monitor_cmd(
        &mut self,
        cmd: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Infallible> {
        let line = String::from_utf8_lossy(cmd);
        let current = self.current;
        let text = self.ask(|machine| hmp::print_line(machine, current, &line));
        for piece in text.unwrap_or_default().as_bytes().chunks(OUTPUT_PIECE) {
            out.write_raw(piece);
            out.flush();
        }
        Ok(())
    }
}
