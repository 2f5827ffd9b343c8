//! Does this host's KVM run ring 0 on the CPU, or does it emulate it?
//!
//! Some nested KVMs run ring 3 natively and emulate ring 0 in software, a thousand times slower and
//! with instructions missing. POPCNT is one that every x86-64 CPU of the last fifteen years has and
//! that such an emulator does not know.

use std::path::Path;
use std::sync::OnceLock;

use board::memory::{GuestRam, MemoryMap, PAGE_SIZE};
use board::{Accel as _, AccelError, CpuIo, Exit};

use super::{Device, KernelIrqchip, Kvm};

/// How ring 0 runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring0 {
    /// On the CPU.
    Native,
    /// In software, inside KVM.
    Emulated,
}

/// Whether the loaded modules are the ones that run ring 0 natively; then no probe is needed.
pub fn looks_native() -> bool {
    ["/sys/module/kvm_intel", "/sys/module/kvm_amd"].iter().any(|path| Path::new(path).exists())
}

/// `mov eax, 1; popcnt ecx, eax; out 0x80, al`
const PROGRAM: [u8; 11] = [0x66, 0xB8, 1, 0, 0, 0, 0xF3, 0x0F, 0xB8, 0xC8, 0xE6];
const PORT: u8 = 0x80;

struct ProbeIo(std::cell::Cell<bool>);

impl CpuIo for ProbeIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {
        self.0.set(true);
    }
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn intr(&self) -> bool {
        false
    }
    fn intr_ack(&self) -> u8 {
        0xFF
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        self.0.get()
    }
}

impl Ring0 {
    /// How ring 0 runs on this host, found out once: by the loaded modules or by a probe. A probe
    /// that fails says native.
    pub fn of_host() -> Self {
        static FOUND: OnceLock<Ring0> = OnceLock::new();
        *FOUND.get_or_init(|| {
            if looks_native() { Self::Native } else { Self::probe().unwrap_or(Self::Native) }
        })
    }

    /// Runs a program of three instructions in a VM of its own. Takes about a millisecond.
    ///
    /// # Errors
    /// [`AccelError`] when the VM cannot be made.
    pub fn probe() -> Result<Self, AccelError> {
        let device = Device::open()?;
        let ram = GuestRam::new(PAGE_SIZE)
            .map_err(|e| AccelError::Unsupported(format!("no page for a probe of KVM: {e}")))?;
        let kvm = Kvm::with_gaps(&device, &MemoryMap::new(&ram), KernelIrqchip::Split, true)?;
        let mut vcpu = kvm.add_vcpu(0, &kvm.supported_cpuid())?;
        let mut state = vcpu.save()?;
        state.segments.cs.base = 0;
        state.segments.cs.selector = 0;
        state.rip = 0;
        state.rflags = 2;
        vcpu.restore(&state)?;
        let mut program = PROGRAM.to_vec();
        program.push(PORT);
        ram.write(0, &program)
            .map_err(|e| AccelError::Unsupported(format!("no page for a probe of KVM: {e}")))?;
        let io = ProbeIo(std::cell::Cell::new(false));
        match vcpu.run(&io)? {
            Exit::Kicked => Ok(Self::Native),
            _ => Ok(Self::Emulated),
        }
    }
}
