//! The software x86-64 CPU.
//!
//! [`SoftAccel`] is an accelerator like any other: the machine gives it a memory map, makes vCPUs
//! and runs each on a thread of its own. It depends on `board` alone.
//!
//! How an instruction is executed:
//! 1. `run` looks between two blocks at interrupts and at other threads' wishes, and asks `block`
//!    for the block at RIP.
//! 2. `block` finds it by link, by linear or by guest-physical address; else `decode` decodes one
//!    with iced-x86, up to the end of its page at most.
//! 3. Each op of the block calls a handler. Common forms of 64-bit code have specialised ones in
//!    `ops`; all other integer and system instructions go to their general implementation in
//!    `exec`; vector and x87 instructions run on the host's own units (`host`).
//! 4. Memory is reached through `mmu`: a software TLB that leads straight to host memory, and the
//!    page walk behind it.
//! 5. What an instruction raises comes back to `run`, which has `arch` deliver it.
//!
//! Guest code never makes this crate fail: what is illegal becomes the exception that the
//! architecture says.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the software CPU runs vector and x87 instructions on the host: x86-64 is needed");

mod accel;
mod arch;
pub mod assist;
pub mod bare;
mod block;
mod count;
mod cpu;
mod debugger;
mod decode;
mod exec;
mod fault;
mod features;
mod flags;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod host;
mod int;
mod kvmclock;
mod mmu;
mod msr;
mod ops;
mod phys;
mod run;
mod state;

pub use accel::{Apics, SoftAccel, SoftVcpu};
pub use count::Counting;
pub use cpu::NoMachine;
pub use cpu::WallClock;
