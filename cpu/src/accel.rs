//! The accelerator: vCPUs and the memory map that they share.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use board::accel::{ApicBus, ClockState, Irqchip};
use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{Cpuid, VcpuState};
use board::{
    Accel, AccelError, Clock, CpuIo, DebugRequest, Entropy, Exit, Kicker, LocalApic, Vcpu,
};

use crate::count::{Count, Counting};
use crate::cpu::{Cpu, Mailbox, Shared, Todo, WallClock};
use crate::features;
use crate::phys::{PhysMap, Span};

/// The local APICs of the machine, which another crate has.
pub struct Apics {
    /// Makes the local APIC with this id. The kicker is its vCPU's, for when something arrives.
    pub make: Box<dyn Fn(u32, Kicker) -> Box<dyn LocalApic> + Send + Sync>,
    /// The way to them.
    pub bus: Arc<dyn ApicBus>,
}

/// The software CPU as an accelerator.
pub struct SoftAccel {
    shared: Arc<Shared>,
    clock: Clock,
    apics: Option<Apics>,
    counting: Option<Counting>,
    seed: Option<u64>,
}

impl SoftAccel {
    /// An accelerator whose TSCs follow `clock`. Without `apics`, the PICs interrupt the vCPUs
    /// directly.
    pub fn new(clock: Clock, apics: Option<Apics>) -> Self {
        Self { shared: Arc::default(), clock, apics, counting: None, seed: None }
    }

    /// The same with a clock that the instructions of its one vCPU drive.
    pub fn counting(self, counting: Counting) -> Self {
        Self { counting: Some(counting), ..self }
    }

    /// The same with RDRAND and RDSEED from the stream that `seed` gives; `None`: from the host.
    pub fn seeded(self, seed: Option<u64>) -> Self {
        Self { seed, ..self }
    }

    /// The same with a wall clock other than the host's, for the paravirtual clock.
    pub fn with_wall_clock(self, wall: WallClock) -> Self {
        let _ = self.shared.wall.set(wall);
        self
    }

    /// As [`Accel::add_vcpu`], with the concrete type.
    pub fn add(&self, id: u32, cpuid: &Cpuid) -> SoftVcpu {
        let mailbox = Arc::new(Mailbox::default());
        self.shared.mailboxes.write().unwrap_or_else(|e| e.into_inner()).push(mailbox.clone());
        let apic = self.apics.as_ref().map(|apics| {
            let mailbox = mailbox.clone();
            (apics.make)(id, Kicker::new(move || mailbox.attend()))
        });
        let mut cpu = Cpu::new(id, cpuid, &self.shared, &mailbox, &self.clock, apic);
        cpu.entropy = Entropy::new(self.seed, &format!("cpu{id}"));
        if let Some(counting) = &self.counting {
            let mailbox = mailbox.clone();
            counting.events.set_driver(move || mailbox.attend());
            cpu.count = Some(Count::new(counting.clone()));
        }
        SoftVcpu { cpu: Box::new(cpu), mailbox }
    }

    /// Has vCPUs drop the code that they hold of RAM which the host writes, such as by DMA.
    fn watch_ram(&self, ram: &GuestRam) {
        let shared = Arc::downgrade(&self.shared);
        ram.watch_writes(move |address, len| {
            let Some(shared) = shared.upgrade() else { return };
            let map = shared.map();
            let last = address + len.saturating_sub(1);
            for page_start in (address & !0xFFF..=last).step_by(4096) {
                let start = address.max(page_start);
                let span = Span::new(start, last - start + 1);
                if let Some(page) = map.page(start)
                    && map.code(page) & span.lines() != 0
                {
                    map.clear_code(page, span.lines());
                    shared.tell_all(Todo::DropCode(span.whole_lines()));
                }
            }
        });
    }
}

impl Accel for SoftAccel {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn add_vcpu(&self, id: u32, cpuid: &Cpuid) -> Result<Box<dyn Vcpu>, AccelError> {
        let mut vcpu = self.add(id, cpuid);
        vcpu.cpu.vector.code.reserve().map_err(|cause| AccelError::Host {
            call: format!("mmap of executable memory for vCPU {id}"),
            cause,
        })?;
        Ok(Box::new(vcpu))
    }

    fn irqchip(&self) -> Irqchip {
        match &self.apics {
            Some(apics) => Irqchip::Split(apics.bus.clone()),
            None => Irqchip::Soft,
        }
    }

    fn set_memory(&self, map: &MemoryMap) -> Result<(), AccelError> {
        self.watch_ram(map.ram());
        let new = Arc::new(PhysMap::new(map));
        *self.shared.map.write().unwrap_or_else(|e| e.into_inner()) = new;
        self.shared.tell_all(Todo::NewMap);
        Ok(())
    }

    fn take_dirty(&self, slot: usize) -> Result<Vec<u64>, AccelError> {
        let taken = self.shared.map().take_dirty(slot);
        // From now on, every first write to a page is to be seen again.
        self.shared.tell_all(Todo::ProtectAll);
        Ok(taken)
    }

    fn clock(&self) -> Result<ClockState, AccelError> {
        let offset = self.shared.kvmclock.load(Ordering::SeqCst);
        Ok(ClockState { nanos: self.clock.now().nanos().wrapping_add(offset) })
    }

    fn set_clock(&self, clock: &ClockState) -> Result<(), AccelError> {
        let offset = clock.nanos.wrapping_sub(self.clock.now().nanos());
        if self.shared.kvmclock.swap(offset, Ordering::SeqCst) != offset {
            self.shared.tell_all(Todo::NewClock);
        }
        Ok(())
    }

    fn supported_cpuid(&self) -> Cpuid {
        features::supported()
    }
}

/// A vCPU of the software CPU.
pub struct SoftVcpu {
    cpu: Box<Cpu>,
    mailbox: Arc<Mailbox>,
}

impl SoftVcpu {
    /// Instructions executed since the vCPU was made. A string instruction counts as one.
    pub fn instructions(&self) -> u64 {
        self.cpu.icount
    }

    pub(crate) fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Calls `f` while the machine is `io`.
    pub(crate) fn with_io<R>(&mut self, io: &dyn CpuIo, f: impl FnOnce(&mut Cpu) -> R) -> R {
        let io: *const (dyn CpuIo + '_) = io;
        // SAFETY: only the lifetime changes; `io` is cleared below, before the borrow ends.
        let io: *const (dyn CpuIo + 'static) = unsafe { std::mem::transmute(io) };
        self.cpu.io = Some(io);
        let result = f(&mut self.cpu);
        self.cpu.io = None;
        result
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError> {
        let mailbox = self.mailbox.clone();
        Ok(self.with_io(io, |cpu| {
            loop {
                mailbox.enter();
                let exit = cpu.execute();
                mailbox.leave();
                match exit {
                    // Whatever ends the halt comes through the mailbox.
                    Exit::Halted if cpu.apic.is_some() => mailbox.wait(),
                    exit => break exit,
                }
            }
        }))
    }

    fn kicker(&self) -> Kicker {
        let mailbox = self.mailbox.clone();
        Kicker::new(move || mailbox.kick())
    }

    fn save(&mut self) -> Result<VcpuState, AccelError> {
        Ok(self.cpu.save_state())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        crate::state::check(state).map_err(AccelError::Unsupported)?;
        self.cpu.restore_state(state);
        Ok(())
    }

    fn nmi(&mut self) -> Result<(), AccelError> {
        self.cpu.nmi_pending = true;
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), AccelError> {
        self.cpu.set_debugger(request);
        Ok(())
    }
}
