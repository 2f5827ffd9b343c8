//! A machine: its memory, buses, chips and vCPUs, and whether it runs.
//!
//! [`Machine::build`] (in `build.rs`) puts it together. All methods are called on the main loop's
//! thread.

mod build;
mod core_dump;
mod debug;
mod net;
mod pci;
mod requests;
mod virtio;
mod virtio_info;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use board::accel::{ClockState, Doorbells};
use board::device::{Notifier, Paused};
use board::memory::MemoryMap;
use board::vcpu::{Cpuid, MpState};
use board::{Accel, Bus, Clock, LoopHandle, Slot, SystemRequest, VcpuState};
use devices::block::{Disks, ErrorReport, OnError};
use devices::chardev::{BackendKind, BackendSpec, CharPort, ChardevError, Chardevs};
use devices::chip::irqchip::Irqchip;
use devices::net::Netdevs;
use monitor::state::{PciBus, RunState};
use monitor::{BlockIoError, Cause, CommandError, Event, PanicAction};

use crate::boot::{self, BootConfig, BootError, Entry, Firmware};
use crate::config::{Config, DeviceSpec, MachineKind, Transport};
use crate::doorbell::DoorbellTable;
use crate::log::Log;
use crate::report;
use crate::vcpu::{VcpuEvent, Vcpus};
use crate::{Error, acpi};

use debug::Debugger;

pub use build::Frontends;
pub(crate) use pci::{ECAM, HOTPLUG_PORT};
pub use requests::{Request, Requests};
pub use virtio::{VirtioDevices, VirtioEntry};

/// What is to become of the gdb stub.
pub enum GdbWish {
    /// It serves this port, in place of what it has served.
    Serve(Box<dyn CharPort>),
    /// It ends.
    End,
}

/// How the program is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The process's exit status.
    pub status: u8,
}

/// What starts the boot vCPU.
enum Payload {
    /// `--kernel`, loaded anew at each reset.
    Kernel,
    /// `--bios`.
    Firmware(Firmware),
}

/// A machine.
pub struct Machine {
    config: Config,
    log: Arc<Log>,
    events: LoopHandle,
    clock: Clock,
    map: MemoryMap,
    accel: Arc<dyn Accel>,
    doorbells: Arc<DoorbellTable>,
    vcpus: Vcpus,
    cpuids: Vec<Cpuid>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    slots: Vec<Arc<Slot>>,
    irqchip: Option<Arc<Irqchip>>,
    pci: Option<pci::Pci>,
    virtio: VirtioDevices,
    disks: Disks,
    requests: Arc<Requests>,
    power_button: Option<Notifier>,
    chardevs: Chardevs,
    netdevs: Netdevs,
    payload: Payload,
    serial_ports: Vec<acpi::SerialPort>,
    state: RunState,
    /// The paravirtual clock at the last stop.
    stopped_clock: Option<ClockState>,
    ending: Option<Ending>,
    /// What has become of the last memory dump, and its bytes.
    last_core: (&'static str, u64),
    /// What a debugger wants.
    debugger: Debugger,
    /// What `gdbserver` has asked for, until the program sees to it.
    gdb_wish: Option<GdbWish>,
    /// QMP's events that have not been sent yet.
    news: Vec<Event>,
}

impl Machine {
    /// What the machine was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The files that are read again at a reset.
    pub fn files(&self) -> Vec<PathBuf> {
        let kernel = self.config.kernel.iter().cloned();
        // The user network looks who the name server is now.
        let resolver = self.config.networks.need_sockets().then(|| "/etc/resolv.conf".into());
        kernel
            .chain(resolver)
            .chain(self.config.initrd.as_deref().into_iter().flat_map(boot::initrd_files))
            .collect()
    }

    /// The state that the machine is in.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// Set once the program is to end.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// QMP's events since the last call.
    pub fn take_news(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.news)
    }

    /// What is to become of the gdb stub, if something is.
    pub fn take_gdb_wish(&mut self) -> Option<GdbWish> {
        self.gdb_wish.take()
    }

    /// Has the gdb stub serve a backend, in place of the one that it has served.
    ///
    /// # Errors
    /// When the backend cannot be opened; then it serves none.
    pub fn serve_gdb(&mut self, spec: &BackendSpec) -> Result<(), ChardevError> {
        self.chardevs.remove("gdb");
        self.gdb_wish = Some(GdbWish::End);
        if spec.kind != BackendKind::None {
            let port = self.chardevs.open(spec, "gdb")?.attach()?;
            self.gdb_wish = Some(GdbWish::Serve(port));
        }
        Ok(())
    }

    /// The accelerator.
    pub fn accel(&self) -> &dyn Accel {
        &*self.accel
    }

    /// Doorbells: the accelerator's, or else those of the vCPUs' threads.
    pub fn doorbells(&self) -> &dyn Doorbells {
        self.accel.doorbells().unwrap_or(&*self.doorbells)
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// RAM and ROM.
    pub fn memory(&self) -> &MemoryMap {
        &self.map
    }

    /// The VM clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// The port space.
    pub fn pio(&self) -> &Bus {
        &self.pio
    }

    /// The MMIO space.
    pub fn mmio(&self) -> &Bus {
        &self.mmio
    }

    /// The PICs and the I/O APIC, where the accelerator does not have them.
    pub fn irqchip(&self) -> Option<&Irqchip> {
        self.irqchip.as_deref()
    }

    /// The virtio devices.
    pub fn virtio(&self) -> &VirtioDevices {
        &self.virtio
    }

    /// The drives.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// The character devices.
    pub fn chardevs(&self) -> &Chardevs {
        &self.chardevs
    }

    /// The state of vCPU `index`, which is stopped for a moment if it runs.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn vcpu_state(&self, index: usize) -> Result<VcpuState, Error> {
        Ok(self.vcpus.with(index, |vcpu| vcpu.save())?)
    }

    /// Loads the kernel and puts all vCPUs into the state after reset.
    ///
    /// # Errors
    /// When the kernel cannot be loaded (any more), or the accelerator fails.
    pub fn load(&mut self) -> Result<(), Error> {
        let entry = self.load_payload()?;
        for (index, cpuid) in self.cpuids.iter().enumerate() {
            let mut state = boot::reset_state(index as u32, cpuid);
            if let Some(entry) = entry.as_ref().filter(|_| index == 0) {
                entry.apply(&mut state);
            }
            self.vcpus.with(index, move |vcpu| vcpu.restore(&state))?;
        }
        Ok(())
    }

    fn load_payload(&self) -> Result<Option<Entry>, BootError> {
        let ram = self.map.ram();
        match (&self.payload, &self.config.kernel) {
            (Payload::Kernel, Some(kernel)) => {
                let apic_ids: Vec<_> = (0..self.config.topology.cpus).collect();
                let platform = acpi::Platform {
                    apic_ids: &apic_ids,
                    serial: &self.serial_ports,
                    legacy: self.config.machine == MachineKind::Pc,
                    acpi: self.config.acpi,
                    pci: self.pci.as_ref().map(pci::Pci::apertures),
                    virtio_mmio: &self.virtio.mmio,
                };
                let rsdp = acpi::install(&platform, ram)?;
                if let Some(pci) = &self.pci {
                    pci.assign();
                }
                let cmdline = format!("{}{}", self.config.append, self.virtio.cmdline());
                let config = BootConfig {
                    kernel,
                    initrd: self.config.initrd.as_deref(),
                    cmdline: cmdline.trim_start(),
                    rsdp,
                    ecam: self.pci.as_ref().map(pci::Pci::ecam),
                };
                Ok(Some(boot::load(&config, ram)?.entry))
            }
            (Payload::Firmware(firmware), _) => {
                firmware.shadow(ram)?;
                Ok(None)
            }
            (Payload::Kernel, None) => Ok(None),
        }
    }

    /// Lets the machine run. No effect if it does, or if only a reset leads on.
    pub fn cont(&mut self) {
        if self.state == RunState::Running || self.state.needs_reset() {
            return;
        }
        self.end_steps();
        self.run_on();
    }

    /// The machine runs, each vCPU as it has been told.
    fn run_on(&mut self) {
        if let Some(clock) = self.stopped_clock.take() {
            // A guest without a paravirtual clock does not miss it.
            let _ = self.accel.set_clock(&clock);
        }
        self.clock.start();
        self.events.clock_changed();
        for slot in &self.slots {
            slot.lock().resume();
        }
        self.state = RunState::Running;
        self.news.push(Event::Resume);
        self.vcpus.resume();
    }

    /// Stops the machine in `state`. Returns once no vCPU executes guest code.
    pub fn stop(&mut self, state: RunState) {
        let ran = self.state == RunState::Running;
        self.vcpus.pause();
        self.state = state;
        if !ran {
            return;
        }
        self.clock.stop();
        self.events.clock_changed();
        self.settle_disks();
        self.stopped_clock = self.accel.clock().ok();
        self.news.push(Event::Stop);
    }

    /// Waits for what devices have in flight, and makes durable what the drives hold.
    fn settle_disks(&mut self) {
        let pending = |slot: &&Arc<Slot>| slot.lock().pause() == Paused::Pending;
        let mut busy: Vec<_> = self.slots.iter().filter(pending).collect();
        while !busy.is_empty() {
            // What is in flight ends in threads of its own, which do not need this one.
            std::thread::sleep(Duration::from_micros(200));
            busy.retain(pending);
        }
        self.disks.flush_all();
    }

    /// A drive's request has failed, and what is to become of it is known.
    fn disk_failed(&mut self, report: ErrorReport) {
        if report.action == OnError::Stop {
            if self.state == RunState::Running {
                report::note(&format!(
                    "drive '{}' failed ({}): the machine is stopped; cont tries again",
                    report.drive, report.reason
                ));
            }
            self.stop(RunState::IoError);
        }
        self.news.push(Event::BlockIoError(BlockIoError {
            device: report.drive,
            write: report.write,
            action: report.action.name(),
            nospace: report.nospace,
            reason: report.reason,
        }));
    }

    /// Presses the reset button, or does what `--no-reboot` says instead.
    pub fn reset(&mut self, cause: Cause) {
        if self.config.no_reboot && cause.by_guest() {
            return self.shut_down(cause);
        }
        let runs = self.state == RunState::Running;
        self.vcpus.pause();
        if self.log.items().cpu_reset {
            self.log_registers("CPU Reset");
        }
        // What the guest was asked to give up has no driver any more.
        if let Some(slots) = self.pci.as_ref().map(pci::Pci::unplugging) {
            self.eject(slots);
        }
        for slot in &self.slots {
            slot.lock().reset();
        }
        if let Some(pci) = &self.pci {
            pci.synchronize();
        }
        self.news.push(Event::Reset(cause));
        if let Err(error) = self.load() {
            report::error(&error);
            self.stop(RunState::InternalError);
            return;
        }
        if runs {
            self.vcpus.resume();
        } else if self.state.needs_reset() {
            self.state = RunState::Paused;
        }
    }

    /// The machine has no power any more: the program ends, or with `--no-shutdown` the machine
    /// stands still to be looked at.
    pub fn shut_down(&mut self, cause: Cause) {
        self.news.push(Event::Shutdown(cause));
        if self.config.no_shutdown {
            self.stop(RunState::Shutdown);
        } else {
            self.end(0);
        }
    }

    /// Ends the program with `status`. The guest does not run any more.
    pub fn end(&mut self, status: u8) {
        self.vcpus.pause();
        self.settle_disks();
        self.ending.get_or_insert(Ending { status });
    }

    /// Ends the program because the user wants it.
    pub fn quit(&mut self, cause: Cause) {
        self.news.push(Event::Shutdown(cause));
        self.end(0);
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&mut self) {
        if let Some(button) = &self.power_button {
            button.notify();
        }
        self.news.push(Event::Powerdown);
    }

    /// Sees to a request. The vCPUs were held when it was made.
    pub fn handle(&mut self, request: Request) {
        match request {
            Request::System(request) => self.handle_system(request),
            Request::Vcpu(id, VcpuEvent::Shutdown) => {
                if self.log.items().cpu_reset {
                    self.log_registers(&format!("Triple fault on CPU {id}"));
                }
                self.reset(Cause::GuestReset);
            }
            Request::Vcpu(id, VcpuEvent::InternalError(error)) => {
                self.stop(RunState::InternalError);
                match self.vcpu_state(id as usize) {
                    Ok(state) => report::internal_error(id, &error, &state, &self.map),
                    Err(cause) => report::error(&cause),
                }
            }
            Request::Vcpu(_, VcpuEvent::Failed(error)) => {
                self.stop(RunState::InternalError);
                report::error(&error);
            }
            Request::Disk(report) => self.disk_failed(report),
            Request::News(event) => self.news.push(event),
            Request::Vcpu(id, VcpuEvent::Debug(trap)) => self.trapped(id as usize, trap),
            Request::Quit => self.quit(Cause::HostUi),
        }
        if self.ending.is_none() && self.state == RunState::Running {
            self.vcpus.resume();
        }
    }

    fn handle_system(&mut self, request: SystemRequest) {
        match request {
            SystemRequest::Reset => self.reset(Cause::GuestReset),
            SystemRequest::PowerOff => self.shut_down(Cause::GuestShutdown),
            SystemRequest::Exit(status) => {
                self.news.push(Event::Shutdown(Cause::GuestShutdown));
                self.end(status);
            }
            SystemRequest::Panicked => {
                self.stop(RunState::GuestPanicked);
                self.news.push(Event::GuestPanicked(PanicAction::Pause));
            }
            SystemRequest::CrashLoaded => {
                self.news.push(Event::GuestPanicked(PanicAction::Run));
            }
            SystemRequest::EjectPci { slots } => self.eject(slots),
        }
    }

    /// Plugs in the device that `text` describes, as `--device` does, and tells the guest.
    ///
    /// # Errors
    /// With the cause and the remedy; nothing has changed then.
    pub fn device_add(&mut self, text: &str) -> Result<(), Error> {
        let pci = self.pci.as_mut();
        let missing = build::no_pci_bus;
        let (pci, slot) = match DeviceSpec::parse(text)? {
            DeviceSpec::Pci(spec) => {
                let pci = pci.ok_or_else(|| missing(spec.kind.name()))?;
                let slot = pci.plug(&spec)?;
                (pci, slot)
            }
            DeviceSpec::Virtio(spec) if spec.transport != Transport::Mmio => {
                let pci = pci.ok_or_else(|| missing(spec.name))?;
                let backends = virtio::Backends {
                    ram: self.map.ram(),
                    chardevs: &self.chardevs,
                    netdevs: &self.netdevs,
                    cards: self.virtio.cards(),
                    disks: &self.disks,
                    devices: &[],
                    cpus: self.config.topology.cpus,
                    seed: self.config.seed,
                    requests: &self.requests,
                };
                let slot = self.virtio.plug_pci(&spec, pci, &backends)?;
                (pci, slot)
            }
            _ => {
                return Err(Error::Unsupported(format!(
                    "device '{text}' cannot be added to a running machine: give it by --device"
                )));
            }
        };
        self.slots.push(slot);
        pci.announce(self.clock.now());
        Ok(())
    }

    /// Asks the guest to give up the device `id`. DEVICE_DELETED follows once it has.
    ///
    /// # Errors
    /// When there is no such device, or the guest has been asked already.
    pub fn device_del(&mut self, id: &str) -> Result<(), CommandError> {
        let now = self.clock.now();
        match &mut self.pci {
            Some(pci) => pci.unplug(id, now),
            None => Err(CommandError::DeviceNotFound(id.to_owned())),
        }
    }

    /// The PCI bus for `info pci`.
    pub fn pci_buses(&self) -> Vec<PciBus> {
        let devices = self.pci.as_ref().map(pci::Pci::devices);
        devices.map(|devices| PciBus { bus: 0, devices }).into_iter().collect()
    }

    /// Pulls PCI devices out, a bit a slot.
    fn eject(&mut self, slots: u32) {
        let Some(pci) = &mut self.pci else { return };
        for (id, slot) in pci.eject(slots) {
            self.slots.retain(|other| !Arc::ptr_eq(other, &slot));
            self.virtio.remove(&slot);
            self.news.push(Event::DeviceDeleted(id));
        }
    }

    fn log_registers(&self, title: &str) {
        for index in 0..self.vcpus.count() {
            if let Ok(state) = self.vcpu_state(index) {
                let registers = report::registers(&state);
                self.log.write(&format!("{title} (CPU {index})\n{registers}"));
            }
        }
    }

    /// Whether vCPU `index` waits for an interrupt, or has not been started.
    pub fn is_halted(&self, index: usize) -> bool {
        self.vcpu_state(index).is_ok_and(|state| state.mp_state != MpState::Runnable)
    }
}
