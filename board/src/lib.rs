//! What a motherboard offers a chip: memory, buses, interrupt lines, time, the event loop, and
//! the traits that chips and CPUs implement.
//!
//! The traits stand in this crate, below `devices`, `cpu` and `vmm`, so that the compiler keeps
//! the dependency arrows pointing one way. Nothing here knows which accelerator runs the machine.

pub mod accel;
pub mod bus;
pub mod debug;
pub mod device;
pub mod entropy;
pub mod event;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod irq;
pub mod lapic;
pub mod memory;
pub mod pci;
pub mod state;
pub mod system;
pub mod time;
pub mod vcpu;

pub use accel::{Accel, AccelError, CpuIo, Exit, Kicker, Vcpu};
pub use bus::{Bus, Width};
pub use debug::{DebugRequest, Trap, WatchKind, Watchpoint};
pub use device::{Attach, Device, Paused, Region, Slot, Tag};
pub use entropy::Entropy;
pub use event::{Bell, Brake, EventLoop, EventTarget, LoopHandle, Readiness, Timer, Watch};
pub use irq::{IrqLine, IrqSink, Msi, MsiSink};
pub use lapic::{ApicEvent, LocalApic};
pub use memory::GuestRam;
pub use pci::{Devfn, PciFunction};
pub use state::{Snapshot, StateError};
pub use system::{SystemControl, SystemRequest};
pub use time::{Clock, VmTime};
pub use vcpu::VcpuState;
