//! The gdb stub: bytes of gdb's remote serial protocol in, bytes out (gdb's manual, appendix E).
//!
//! gdbstub knows the packets; [`Gdb`] is round it what a session on a wire that may lose bytes needs,
//! so that whatever a client sends, the session goes on. The machine is reached through
//! [`Debuggee`], which `vmm` implements.

mod frame;
mod registers;
mod target;

use std::convert::Infallible;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as State;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};

use crate::control::Control;
use crate::error::CommandError;
use frame::{Frame, Framer};
use target::Stub;

pub use registers::Register;

/// Longest packet that is taken, in bytes.
const PACKET_SIZE: usize = 16384;

/// Which accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Both.
    Access,
}

/// A breakpoint or watchpoint, at a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// An instruction to stop before; memory may be changed for it.
    Software(u64),
    /// An instruction to stop before; memory is not changed.
    Hardware(u64),
    /// Memory whose accesses to stop after.
    Watch {
        /// The first byte.
        address: u64,
        /// Bytes.
        len: u64,
        /// Which accesses.
        kind: WatchKind,
    },
}

/// Why a vCPU has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// It was to execute one instruction, and has.
    Step,
    /// It is at this breakpoint.
    Breakpoint(u64),
    /// It has touched the watchpoint at this address.
    Watch(u64, WatchKind),
}

/// What a vCPU is to do when the machine goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Run.
    Continue,
    /// Execute one instruction; then the machine stops.
    Step,
    /// Stay where it is.
    Stay,
}

/// The machine as a debugger sees it, beyond what the console sees.
pub trait Debuggee: Control {
    /// Changes registers of vCPU `cpu`, all or none.
    ///
    /// # Errors
    /// [`CommandError::Refused`] where the vCPU does not take a value.
    fn write_registers(
        &mut self,
        cpu: usize,
        values: &[(Register, u128)],
    ) -> Result<(), CommandError>;

    /// Writes memory at virtual address `addr` through the page tables of vCPU `cpu`, also what its
    /// guest could not write.
    ///
    /// # Errors
    /// [`CommandError::Unmapped`]; what lies before that address has been written.
    fn write_virtual(&mut self, cpu: usize, addr: u64, data: &[u8]) -> Result<(), CommandError>;

    /// Sets a point for all vCPUs, or removes it. The same one may be set more than once.
    ///
    /// # Errors
    /// [`CommandError::Refused`] says what the accelerator lacks for it.
    fn set_point(&mut self, point: Point, on: bool) -> Result<(), CommandError>;

    /// Removes all points.
    fn clear_points(&mut self);

    /// Lets the machine go on, each vCPU as `how` says.
    ///
    /// # Errors
    /// [`CommandError::NeedsReset`], [`CommandError::Refused`]: it stands still.
    fn resume(&mut self, how: &[Resume]) -> Result<(), CommandError>;

    /// What stopped the machine, once: the vCPU and why; `None` if it was no vCPU.
    fn take_trap(&mut self) -> Option<(usize, Trap)>;
}

/// The way to the machine, which others use as well.
pub trait Access: Send {
    /// Calls `f` with the machine, unless it is gone.
    fn with(&self, f: &mut dyn FnMut(&mut dyn Debuggee));
}

/// What is to go out.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Connection for Wire {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn write_all(&mut self, buf: &[u8]) -> Result<(), Infallible> {
        self.0.extend_from_slice(buf);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A session with a gdb.
pub struct Gdb {
    target: Stub,
    /// `None` while a packet is being handled, and after one that broke the state machine.
    state: Option<State<'static, Stub, Wire>>,
    framer: Framer,
    /// The last answer, for a client that did not get it whole.
    last: Vec<u8>,
    /// A client is there.
    attached: bool,
}

impl Gdb {
    /// A session with nobody yet.
    pub fn new(access: Box<dyn Access>) -> Self {
        let framer = Framer::new(PACKET_SIZE);
        Self { target: Stub::new(access), state: None, framer, last: Vec::new(), attached: false }
    }

    /// A client has come: the machine stops.
    pub fn open(&mut self) {
        self.attach();
        self.framer = Framer::new(PACKET_SIZE);
        self.target.ask(|machine| machine.stop());
    }

    /// The client has gone. What it has set goes with it; the machine stays as it is.
    pub fn close(&mut self) {
        if self.attached {
            self.target.forget();
        }
        (self.state, self.attached) = (None, false);
    }

    fn attach(&mut self) {
        self.attached = true;
        self.target.forget();
        self.renew();
    }

    fn renew(&mut self) {
        let stub = GdbStub::builder(Wire::default()).packet_buffer_size(PACKET_SIZE).build();
        // It fails only for a buffer that is given twice.
        self.state = stub.ok().and_then(|stub| stub.run_state_machine(&mut self.target).ok());
        self.last.clear();
    }

    /// Takes bytes that came in and gives the bytes to be written out.
    pub fn feed(&mut self, input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in input {
            match self.framer.push(*byte) {
                None => {}
                Some(Frame::Packet(packet)) => self.packet(&packet, &mut out),
                Some(Frame::Interrupt) => self.packet(&[0x03], &mut out),
                Some(Frame::Damaged) => out.push(b'-'),
                Some(Frame::Nack) => out.extend_from_slice(&self.last),
            }
        }
        out.extend(self.sync());
        out
    }

    /// Tells the client if the machine has stopped since it was let go; to be called whenever it
    /// may have.
    pub fn sync(&mut self) -> Vec<u8> {
        if !matches!(self.state, Some(State::Running(_))) || self.target.is_running() {
            return Vec::new();
        }
        let reason = self.target.stop_reason();
        self.report(reason)
    }

    /// The machine has come to its end; the program's exit status will be `status`.
    pub fn ended(&mut self, status: u8) -> Vec<u8> {
        self.report(MultiThreadStopReason::Exited(status))
    }

    fn report(&mut self, reason: MultiThreadStopReason<u64>) -> Vec<u8> {
        match self.state.take() {
            Some(State::Running(running)) => {
                self.state = running.report_stop(&mut self.target, reason).ok();
                self.settle()
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    /// Handles one packet, whole and with a good checksum, or an interrupt.
    fn packet(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        if !self.attached {
            // After a detach the wire is still there.
            self.attach();
            self.target.ask(|machine| machine.stop());
        }
        let mut fine = true;
        for byte in packet {
            let next = match self.state.take() {
                Some(State::Idle(state)) => state.incoming_data(&mut self.target, *byte),
                Some(State::Running(state)) => state.incoming_data(&mut self.target, *byte),
                other => {
                    self.state = other;
                    break;
                }
            };
            match next {
                Ok(state) => self.state = Some(state),
                Err(_) => fine = false,
            }
        }
        if !fine {
            // A packet that makes no sense. What the client chose before it has to choose again.
            self.renew();
            out.extend_from_slice(b"+$E01#a6");
            return;
        }
        let answer = self.settle();
        if answer.contains(&b'$') {
            self.last.clone_from(&answer);
        }
        out.extend(answer);
    }

    /// Brings the session from a passing state into one that lasts; gives what is to go out.
    fn settle(&mut self) -> Vec<u8> {
        let mut out = self.flush();
        match self.state.take() {
            Some(State::CtrlCInterrupt(state)) => {
                self.target.ask(|machine| machine.stop());
                // Idle: it stands still already. Running: `sync` finds that it does now.
                let none: Option<MultiThreadStopReason<u64>> = None;
                self.state = state.interrupt_handled(&mut self.target, none).ok();
                out.extend(self.flush());
            }
            Some(State::Disconnected(state)) => {
                self.target.forget();
                self.attached = false;
                match state.get_reason() {
                    DisconnectReason::Kill => {
                        self.target.ask(|machine| machine.quit());
                    }
                    DisconnectReason::Disconnect => {
                        // A machine that cannot go on says so to its own console.
                        self.target.ask(|machine| machine.cont());
                    }
                    _ => {}
                }
            }
            other => self.state = other,
        }
        out
    }

    fn flush(&mut self) -> Vec<u8> {
        let wire = match &mut self.state {
            Some(State::Idle(state)) => state.borrow_conn(),
            Some(State::Running(state)) => state.borrow_conn(),
            Some(State::CtrlCInterrupt(state)) => state.borrow_conn(),
            Some(State::Disconnected(state)) => state.borrow_conn(),
            None => return Vec::new(),
        };
        std::mem::take(&mut wire.0)
    }
}
