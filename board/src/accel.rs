//! Accelerators: whatever executes guest code. KVM and the software CPU look the same from here on.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::debug::{DebugRequest, Trap};
use crate::irq::{IrqSink, Msi, MsiSink};
use crate::memory::MemoryMap;
use crate::vcpu::{Cpuid, VcpuState};

/// Why an accelerator cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// There is none of this kind here.
    #[error("{accel} is not available: {cause}\n{remedy}")]
    Unavailable {
        /// `"KVM"`.
        accel: &'static str,
        /// What was tried and what the system answered.
        cause: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A call into the host failed.
    #[error("{call}: {cause}")]
    Host {
        /// The call, with what it was to do: `KVM_SET_SREGS of vCPU 0`.
        call: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The state to restore needs something that this accelerator or host lacks.
    #[error("{0}")]
    Unsupported(String),
}

/// All that a CPU may ask of the machine round it. One object serves one vCPU.
pub trait CpuIo {
    /// `in`: `data` is 1, 2 or 4 bytes.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// `out`: `data` is 1, 2 or 4 bytes.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// A read of guest-physical memory that no slot backs.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A write to guest-physical memory that no slot backs, or that is read-only.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// Whether the PICs assert INTR to this vCPU.
    fn intr(&self) -> bool;
    /// The interrupt-acknowledge cycle: the PICs' vector. It is in service from then on.
    fn intr_ack(&self) -> u8;
    /// A local APIC broadcasts the end of interrupt of a level-triggered vector.
    fn eoi(&self, vector: u8);
    /// Whether [`Vcpu::run`] is to return with [`Exit::Kicked`] before the next instruction. An
    /// access above may have caused it.
    fn wants_exit(&self) -> bool;
}

/// Why a vCPU has stopped executing guest code.
#[derive(Debug)]
pub enum Exit {
    /// [`CpuIo::wants_exit`], or a kick.
    Kicked,
    /// The vCPU waits for an interrupt, and the accelerator does not wait for it itself.
    Halted,
    /// Triple fault.
    Shutdown,
    /// Something that [`Vcpu::set_debug`] asked for.
    Debug(Trap),
    /// The accelerator cannot go on. The vCPU's state can still be read.
    InternalError(InternalError),
}

/// What is known of an instruction that an accelerator could not execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM internal error: emulation failure`.
    pub what: String,
    /// Whether RIP is still at the instruction, so that execution can go on once it is dealt with.
    pub resumable: bool,
    /// The bytes at RIP as the accelerator reports them; empty if it does not.
    pub instruction: Vec<u8>,
}

/// Makes a vCPU leave [`Vcpu::run`] soon. Clones kick the same vCPU.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// A kicker that calls `kick`, which must not block.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Kicks. If the vCPU is not in `run`, its next `run` returns at once.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}

/// A vCPU. It belongs to the thread that runs it.
pub trait Vcpu: Send {
    /// Executes guest code until something comes up that `io` cannot handle. It returns at an
    /// instruction boundary: no access is left half done.
    ///
    /// # Errors
    /// [`AccelError::Host`] when the host fails; what the guest does wrong is an [`Exit`].
    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError>;

    /// A kicker for this vCPU.
    fn kicker(&self) -> Kicker;

    /// The complete architectural state.
    ///
    /// # Errors
    /// [`AccelError::Host`] when the host fails.
    fn save(&mut self) -> Result<VcpuState, AccelError>;

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`AccelError::Unsupported`] names what this accelerator lacks; [`AccelError::Host`].
    fn restore(&mut self, state: &VcpuState) -> Result<(), AccelError>;

    /// Makes a non-maskable interrupt pending.
    ///
    /// # Errors
    /// [`AccelError::Host`] when the host fails.
    fn nmi(&mut self) -> Result<(), AccelError>;

    /// Does from now on what a debugger outside the guest wants, in place of what it wanted before.
    /// To be called again for each step.
    ///
    /// # Errors
    /// [`AccelError::Unsupported`] names what this accelerator cannot do; what was in force before
    /// is so still.
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), AccelError> {
        if request.is_none() {
            return Ok(());
        }
        Err(AccelError::Unsupported("this accelerator has no means for a debugger".to_owned()))
    }
}

/// Where interrupts go under this accelerator.
#[derive(Clone)]
pub enum Irqchip {
    /// The accelerator has all controllers: lines end in `lines` (pin = GSI), messages in `msi`.
    Full {
        /// GSIs 0 to 23.
        lines: Arc<dyn IrqSink>,
        /// Messages.
        msi: Arc<dyn MsiSink>,
    },
    /// The accelerator has the local APICs; the machine has the PICs and the I/O APIC.
    Split(Arc<dyn ApicBus>),
    /// The machine has everything, local APICs included.
    Soft,
}

/// The way from an I/O APIC to the local APICs.
pub trait ApicBus: MsiSink {
    /// Input `pin` of the I/O APIC sends `level_msi` as a level-triggered interrupt, so that its
    /// end is to be reported by [`CpuIo::eoi`]; `None` once the pin is masked or edge-triggered and
    /// no such end is outstanding.
    fn route_level(&self, _pin: u32, _level_msi: Option<Msi>) {}
}

/// A guest write that rings a doorbell instead of leaving the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// In which address space.
    pub space: Space,
    /// The exact address written to.
    pub address: u64,
    /// The width of the write, 1, 2, 4 or 8 bytes; 0 for any.
    pub width: u8,
    /// Only writes of this value ring.
    pub value: Option<u64>,
}

/// An address space of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Ports.
    Pio,
    /// Memory-mapped.
    Mmio,
}

/// Doorbells: eventfds that guest writes signal without an exit to user space (ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Rings `eventfd` at each write that matches.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn add(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError>;

    /// Undoes `add`.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn remove(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError>;
}

/// Interrupts that an eventfd raises without a way through user space (irqfd).
pub trait Irqfds: Send + Sync {
    /// Lets `eventfd` send `msi`. The GSI that is returned names the route.
    ///
    /// # Errors
    /// [`AccelError::Host`], also when the host has no GSI left.
    fn add(&self, eventfd: BorrowedFd<'_>, msi: Msi) -> Result<u32, AccelError>;

    /// Changes the message of route `gsi`; `None` masks it.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn set(&self, gsi: u32, msi: Option<Msi>) -> Result<(), AccelError>;

    /// Undoes `add`.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn remove(&self, eventfd: BorrowedFd<'_>, gsi: u32) -> Result<(), AccelError>;
}

/// The paravirtual clock that the accelerator gives its guest, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockState {
    /// Nanoseconds of the guest's clock.
    pub nanos: u64,
}

/// How often the software CPU stood in for another accelerator, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assists {
    /// Instructions that the accelerator could not execute.
    pub failures: u64,
    /// SYSCALL, SYSENTER, INT n and undefined instructions that it may have got wrong.
    pub system_calls: u64,
    /// Other exceptions that had to be looked at for the sake of the former.
    pub exceptions: u64,
    /// Instructions that the software CPU executed on these occasions.
    pub instructions: u64,
}

/// An accelerator, opened for one machine.
pub trait Accel: Send + Sync {
    /// `kvm` or `soft`.
    fn name(&self) -> &'static str;

    /// Makes vCPU `id` (its APIC id as well), which shows `cpuid` to the guest.
    ///
    /// # Errors
    /// [`AccelError::Host`], also when there are too many.
    fn add_vcpu(&self, id: u32, cpuid: &Cpuid) -> Result<Box<dyn Vcpu>, AccelError>;

    /// Where interrupts go.
    fn irqchip(&self) -> Irqchip;

    /// Sets the memory that the guest sees, in place of what was set before.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn set_memory(&self, map: &MemoryMap) -> Result<(), AccelError>;

    /// Takes the log of pages that the guest wrote to slot number `slot` of the map since it was
    /// last taken: bit `i % 64` of word `i / 64` is page `i`. Empty if the slot is not logged.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn take_dirty(&self, slot: usize) -> Result<Vec<u64>, AccelError>;

    /// The paravirtual clock now.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn clock(&self) -> Result<ClockState, AccelError>;

    /// Sets the paravirtual clock.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    fn set_clock(&self, clock: &ClockState) -> Result<(), AccelError>;

    /// What a vCPU can show in CPUID, before topology and the user's wishes.
    fn supported_cpuid(&self) -> Cpuid;

    /// Doorbells, where there are any.
    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }

    /// How often the software CPU stood in, where it can.
    fn assists(&self) -> Option<Assists> {
        None
    }

    /// Interrupts by eventfd, where there are any.
    fn irqfds(&self) -> Option<&dyn Irqfds> {
        None
    }
}
