//! What a debugger outside the guest asks of a vCPU, and what stops the vCPU for it.
//!
//! The guest sees nothing of it: its debug registers, its flags and its memory are its own.

use std::fmt;

/// Which accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads. Instruction fetches are none.
    Read,
    /// Both.
    Access,
}

/// A stretch of linear memory that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address of the first byte.
    pub address: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// Whether an access of `size` bytes at `linear` touches the stretch.
    pub fn overlaps(&self, linear: u64, size: u64) -> bool {
        linear.wrapping_sub(self.address) < self.len || self.address.wrapping_sub(linear) < size
    }
}

/// All that a debugger wants of a vCPU. The default wants nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugRequest {
    /// Stop after the next instruction. Interrupts are held off meanwhile where that is possible, and
    /// a breakpoint at that instruction does not count.
    pub step: bool,
    /// Linear addresses of instructions to stop before.
    pub breakpoints: Vec<u64>,
    /// Accesses to stop after.
    pub watchpoints: Vec<Watchpoint>,
}

impl DebugRequest {
    /// Nothing is wanted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a vCPU has stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// It has executed the one instruction.
    Step,
    /// A breakpoint is at RIP, whose instruction has not been executed.
    Breakpoint,
    /// The instruction before RIP has touched this.
    Watch(Watchpoint),
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step => f.write_str("single step"),
            Self::Breakpoint => f.write_str("breakpoint"),
            Self::Watch(point) => write!(f, "watchpoint at {:#x}", point.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchpoint_is_touched_by_what_overlaps_it() {
        let point = Watchpoint { address: 0x1004, len: 4, kind: WatchKind::Write };
        for (linear, size, touches) in [
            (0x1004, 4, true),
            (0x1007, 1, true),
            (0x1008, 8, false),
            (0x1000, 4, false),
            (0x1000, 5, true),
            (0x1000, 16, true),
        ] {
            assert_eq!(point.overlaps(linear, size), touches, "{size} bytes at {linear:#x}");
        }
    }
}
