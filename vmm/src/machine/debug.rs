//! The machine as the gdb stub sees it: breakpoints, steps, and what stopped it.

use board::{AccelError, DebugRequest, VcpuState, WatchKind, Watchpoint};
use monitor::CommandError;
use monitor::gdb::{self, Debuggee, Point, Register, Resume, Trap};
use monitor::state::RunState;

use super::{Machine, Request};
use crate::vcpu::VcpuEvent;
use crate::{inspect, paging, report};

/// A debugger's points, and what has come of them.
#[derive(Default)]
pub(super) struct Debugger {
    /// Every point as often as it was set.
    points: Vec<Point>,
    /// What each vCPU has been told; empty: nothing yet.
    told: Vec<DebugRequest>,
    /// What stopped the machine.
    trap: Option<(usize, Trap)>,
}

impl Debugger {
    /// What is asked of a vCPU.
    fn request(&self, step: bool) -> DebugRequest {
        let mut request = DebugRequest { step, ..DebugRequest::default() };
        for point in &self.points {
            match *point {
                Point::Software(at) | Point::Hardware(at) => {
                    if !request.breakpoints.contains(&at) {
                        request.breakpoints.push(at);
                    }
                }
                Point::Watch { address, len, kind } => {
                    let kind = match kind {
                        gdb::WatchKind::Write => WatchKind::Write,
                        gdb::WatchKind::Read => WatchKind::Read,
                        gdb::WatchKind::Access => WatchKind::Access,
                    };
                    let point = Watchpoint { address, len, kind };
                    if !request.watchpoints.contains(&point) {
                        request.watchpoints.push(point);
                    }
                }
            }
        }
        request
    }
}

impl Machine {
    /// Tells the vCPUs what the debugger wants of them now; those that are to `step` are told anew.
    fn tell_debugger(&mut self, step: impl Fn(usize) -> bool) -> Result<(), AccelError> {
        self.debugger.told.resize(self.vcpus.count(), DebugRequest::default());
        for index in 0..self.vcpus.count() {
            let request = self.debugger.request(step(index));
            if request.step || request != self.debugger.told[index] {
                let sent = request.clone();
                self.vcpus.with(index, move |vcpu| vcpu.set_debug(&sent))?;
                self.debugger.told[index] = request;
            }
        }
        Ok(())
    }

    /// Before the machine runs because of anybody but the debugger: no vCPU steps or stays behind.
    pub(super) fn end_steps(&mut self) {
        self.debugger.trap = None;
        if self.debugger.told.iter().any(|request| request.step) {
            // Less is asked than before, so it cannot be too much.
            let _ = self.tell_debugger(|_| false);
        }
        self.vcpus.freeze(vec![false; self.vcpus.count()]);
    }

    /// A vCPU has stopped for the debugger.
    pub(super) fn trapped(&mut self, vcpu: usize, trap: board::Trap) {
        if self.state != RunState::Running || !self.is_wanted(vcpu, trap) {
            return;
        }
        self.stop(RunState::Debug);
        // Another that stopped at the same time comes to its breakpoint again.
        self.requests.forget(|request| matches!(request, Request::Vcpu(_, VcpuEvent::Debug(_))));
        let trap = match trap {
            board::Trap::Step => Trap::Step,
            board::Trap::Breakpoint => {
                let at = self.vcpu_state(vcpu).map_or(0, |state| state.linear_rip());
                Trap::Breakpoint(at)
            }
            board::Trap::Watch(point) => {
                let kind = match point.kind {
                    WatchKind::Write => gdb::WatchKind::Write,
                    WatchKind::Read => gdb::WatchKind::Read,
                    WatchKind::Access => gdb::WatchKind::Access,
                };
                Trap::Watch(point.address, kind)
            }
        };
        self.debugger.trap = Some((vcpu, trap));
    }
}

impl Machine {
    /// Whether the debugger still wants to hear of `trap`, which may have happened before it changed
    /// its mind.
    fn is_wanted(&self, vcpu: usize, trap: board::Trap) -> bool {
        let Some(told) = self.debugger.told.get(vcpu) else { return false };
        match trap {
            board::Trap::Step => told.step,
            board::Trap::Watch(point) => told.watchpoints.contains(&point),
            board::Trap::Breakpoint => self
                .vcpu_state(vcpu)
                .is_ok_and(|state| told.breakpoints.contains(&state.linear_rip())),
        }
    }
}

fn refused(error: impl std::fmt::Display) -> CommandError {
    CommandError::Refused(error.to_string())
}

impl Debuggee for Machine {
    fn write_registers(
        &mut self,
        cpu: usize,
        values: &[(Register, u128)],
    ) -> Result<(), CommandError> {
        let mut state = self.vcpu_state(cpu).map_err(refused)?;
        for (register, value) in values {
            inspect::set_register(&mut state, *register, *value).map_err(refused)?;
        }
        self.vcpus.with(cpu, move |vcpu| vcpu.restore(&state)).map_err(refused)
    }

    fn write_virtual(&mut self, cpu: usize, addr: u64, data: &[u8]) -> Result<(), CommandError> {
        let state: VcpuState = self.vcpu_state(cpu).map_err(refused)?;
        paging::write_linear(&state, &self.map, addr, data).map_err(CommandError::Unmapped)
    }

    fn set_point(&mut self, point: Point, on: bool) -> Result<(), CommandError> {
        let points = &mut self.debugger.points;
        if on {
            points.push(point);
        } else {
            let place = points.iter().position(|known| *known == point);
            points.swap_remove(place.ok_or_else(|| refused("there is no such point"))?);
        }
        let Err(error) = self.tell_debugger(|_| false) else { return Ok(()) };
        if on {
            self.debugger.points.pop();
            // What was in force before can be so again.
            let _ = self.tell_debugger(|_| false);
            report::note(&format!("gdb: {error}"));
        }
        Err(refused(error))
    }

    fn clear_points(&mut self) {
        self.debugger.points.clear();
        let _ = self.tell_debugger(|_| false);
    }

    fn resume(&mut self, how: &[Resume]) -> Result<(), CommandError> {
        if self.state.needs_reset() {
            return Err(CommandError::NeedsReset);
        }
        if self.state == RunState::Running {
            return Ok(());
        }
        self.end_steps();
        let what = |index: usize| how.get(index).copied().unwrap_or(Resume::Continue);
        self.tell_debugger(|index| what(index) == Resume::Step).map_err(refused)?;
        let stays = |index| what(index) == Resume::Stay;
        self.vcpus.freeze((0..self.vcpus.count()).map(stays).collect());
        self.run_on();
        Ok(())
    }

    fn take_trap(&mut self) -> Option<(usize, Trap)> {
        self.debugger.trap.take()
    }
}
