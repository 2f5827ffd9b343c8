//! What the software CPU needs of its local APIC (SDM vol. 3, 11).
//!
//! The APIC belongs to its vCPU's thread. Other threads reach it through a mailbox of the
//! implementation only, and kick the vCPU afterwards.

use crate::accel::CpuIo;
use crate::vcpu::LapicState;

/// Something other than a fixed interrupt that arrived over the APIC bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicEvent {
    /// INIT: the processor resets all but its x87, SSE and MSR state and waits for a startup IPI.
    Init,
    /// A startup IPI: execution starts at physical address `vector << 12`.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// A local APIC as its processor sees it.
pub trait LocalApic: Send {
    /// IA32_APIC_BASE.
    fn base(&self) -> u64;

    /// Sets IA32_APIC_BASE; false, with no effect, when the transition is illegal (#GP).
    fn set_base(&mut self, value: u64) -> bool;

    /// Reads the register at `offset`, a multiple of 16 below 4096.
    fn read(&mut self, offset: u32) -> u32;

    /// Writes the register at `offset`, a multiple of 16 below 4096. An EOI of a level-triggered
    /// vector is broadcast through [`CpuIo::eoi`].
    fn write(&mut self, offset: u32, value: u32, io: &dyn CpuIo);

    /// Reads an MSR of the APIC: 0x800 to 0x8FF in x2APIC mode, or IA32_TSC_DEADLINE. `None`
    /// means #GP. The deadline is in nanoseconds of the VM clock here, 0 when it is not armed.
    fn read_msr(&mut self, msr: u32) -> Option<u64>;

    /// Writes an MSR of the APIC; false, with no effect, means #GP.
    fn write_msr(&mut self, msr: u32, value: u64, io: &dyn CpuIo) -> bool;

    /// The task-priority register.
    fn tpr(&self) -> u8;

    /// Sets the task-priority register; CR8 is its bits 4 to 7.
    fn set_tpr(&mut self, value: u8);

    /// The vector that the processor is to be interrupted with, if any is above its priority.
    fn pending(&mut self) -> Option<u8>;

    /// Moves the vector that [`LocalApic::pending`] names into service and returns it.
    fn accept(&mut self) -> Option<u8>;

    /// Whether INTR of the PICs reaches the processor: the APIC is disabled, or LINT0 is unmasked
    /// and in mode ExtINT.
    fn passes_intr(&self) -> bool;

    /// Takes an INIT, a startup IPI or an NMI that has arrived, INIT first.
    fn take_event(&mut self) -> Option<ApicEvent>;

    /// INIT: all registers but the APIC id and IA32_APIC_BASE as after reset.
    fn init(&mut self);

    /// The registers.
    fn save(&mut self) -> LapicState;

    /// Takes on `state`, and IA32_APIC_BASE `base` whatever it was before.
    fn restore(&mut self, base: u64, state: &LapicState);
}
