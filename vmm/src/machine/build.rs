//! Putting a machine together: which chip is where, and which line goes to which input.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use board::accel::{ApicBus, Doorbells, Irqchip as Chips};
use board::device::Notifier;
use board::irq::{IrqSink, SharedLine};
use board::memory::MemoryMap;
use board::system::A20Gate;
use board::{
    Accel, Attach, Bus, Device, GuestRam, IrqLine, LoopHandle, Region, Slot, SystemControl, Width,
};
use devices::block::Disks;
use devices::chardev::{BackendKind, CharPort, Chardev, Chardevs, Host, HotKey};
use devices::chip::acpi_pm::{self, AcpiPm};
use devices::chip::debug_exit::DebugExit;
use devices::chip::debugcon::DebugCon;
use devices::chip::fw_cfg::{E820Type, FwCfg, FwCfgItems, key};
use devices::chip::irqchip::{IoApicMmio, Irqchip, PicPorts};
use devices::chip::keyboard_controller::{self, InputQueue, KeyboardController};
use devices::chip::pit::Pit;
use devices::chip::pvpanic::PvPanic;
use devices::chip::reset::{Port92, ResetPort};
use devices::chip::rtc::{CmosLayout, Rtc, UnixTime};
use devices::chip::serial::Serial;
use devices::net::Netdevs;
use monitor::state::RunState;

use crate::acpi::SerialPort;
use crate::boot::{Firmware, e820};
use crate::config::{Config, DeviceSpec, MachineKind};
use crate::doorbell::DoorbellTable;
use crate::log::Log;
use crate::vcpu::{EoiSink, IntrSource, VcpuEvent, Vcpus, Wiring};
use crate::{Error, accel, report};

use super::pci::{Bells, Pci, Surroundings};
use super::virtio::{self, VirtioDevices};
use super::{Machine, Payload, Request, Requests};

const IO_APIC: u64 = 0xFEC0_0000;
pub(super) const SCI: u32 = 9;
const RTC_IRQ: u32 = 8;
pub(super) const PM_BASE: u64 = 0x600;

/// These have one region each, so that its number does not matter.
const SERIAL_REGISTERS: Region = Region(0);
const RTC_PORTS: Region = Region(0);
const PORT92: Region = Region(0);
pub(super) const RESET_PORT: Region = Region(0);

/// COM1 to COM4: first port and ISA interrupt.
const SERIAL_PORTS: [(u16, u8); 4] = [(0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3)];

/// The end of a character device that is for a serial port.
type SerialEnd = Option<Box<dyn CharPort>>;

/// The ends of character devices that are not for chips.
#[derive(Default)]
pub struct Frontends {
    /// The monitor in text form.
    pub hmp: Vec<Box<dyn CharPort>>,
    /// The monitor in JSON form.
    pub qmp: Vec<Box<dyn CharPort>>,
}

/// The PICs as the boot vCPU sees them, and the I/O APIC as local APICs see it.
struct IrqchipPort(Arc<Irqchip>);

impl IntrSource for IrqchipPort {
    fn intr(&self) -> bool {
        self.0.intr()
    }

    fn acknowledge(&self) -> u8 {
        self.0.intr_ack()
    }
}

impl EoiSink for IrqchipPort {
    fn eoi(&self, vector: u8) {
        self.0.eoi(vector);
    }
}

/// What plugging in a chip takes.
pub(super) struct Board<'a> {
    pub(super) events: &'a LoopHandle,
    pub(super) ram: GuestRam,
    pub(super) pio: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    pub(super) slots: Vec<Arc<Slot>>,
    pub(super) virtio: VirtioDevices,
    pub(super) doorbells: Arc<dyn Doorbells>,
    /// ISA interrupts and other GSIs by number.
    pub(super) lines: Vec<Arc<SharedLine>>,
    pub(super) requests: Arc<Requests>,
}

impl Board<'_> {
    pub(super) fn plug<D: Device + 'static>(
        &mut self,
        name: impl Into<Box<str>>,
        build: impl FnOnce(&Attach) -> D,
    ) -> Arc<Slot> {
        let slot = Slot::plug(name, self.events, build);
        self.slots.push(slot.clone());
        slot
    }

    fn ports(&self, slot: &Arc<Slot>, region: Region, first: u64, count: u64) -> Result<(), Error> {
        Ok(self.pio.map(first..=first + count - 1, slot, region, Width::Byte)?)
    }

    pub(super) fn irq(&self, gsi: u32) -> IrqLine {
        self.lines[gsi as usize].share()
    }

    pub(super) fn system(&self) -> Arc<dyn SystemControl> {
        self.requests.clone()
    }

    /// The interrupt controllers, unless the accelerator has them.
    fn plug_irqchip(
        &mut self,
        bus: Arc<dyn ApicBus>,
        on_intr: impl Fn(bool) + Send + Sync + 'static,
    ) -> Result<Arc<Irqchip>, Error> {
        let irqchip = Irqchip::new(bus, on_intr);
        let pics = self.plug("pic", |_| PicPorts::new(irqchip.clone()));
        self.ports(&pics, PicPorts::MASTER, 0x20, 2)?;
        self.ports(&pics, PicPorts::SLAVE, 0xA0, 2)?;
        self.ports(&pics, PicPorts::ELCR, 0x4D0, 2)?;
        let ioapic = self.plug("ioapic", |_| IoApicMmio::new(irqchip.clone()));
        self.mmio.map(IO_APIC..=IO_APIC + 0xFFF, &ioapic, IoApicMmio::REGISTERS, Width::Qword)?;
        Ok(irqchip)
    }

    fn plug_serial(
        &mut self,
        name: String,
        iobase: u16,
        irq: u8,
        port: Box<dyn CharPort>,
    ) -> Result<SerialPort, Error> {
        let line = self.irq(irq.into());
        let slot = self.plug(name, |attach| Serial::new(line, port, attach));
        self.ports(&slot, SERIAL_REGISTERS, iobase.into(), 8)?;
        Ok(SerialPort { port: iobase, irq })
    }

    fn plug_timers(&mut self, config: &Config, ram: &GuestRam) -> Result<(), Error> {
        let line = self.irq(0);
        let pit = self.plug("pit", |attach| Pit::new(line, attach));
        self.ports(&pit, Pit::COUNTERS, 0x40, 4)?;
        self.ports(&pit, Pit::PORT61, 0x61, 1)?;
        if config.machine == MachineKind::Microvm {
            return Ok(());
        }
        let line = self.irq(RTC_IRQ);
        let cmos = CmosLayout {
            low_ram: ram.low_size(),
            high_ram: ram.high_size(),
            cpus: config.topology.cpus,
        };
        let now = config.rtc.start_nanos();
        let base = UnixTime {
            seconds: now.div_euclid(1_000_000_000) as i64,
            nanos: now.rem_euclid(1_000_000_000) as u32,
        };
        let follows_host = config.rtc.follows_host;
        let rtc = self.plug("rtc", |attach| {
            let rtc = Rtc::new(line, base, &cmos.bytes(), attach);
            if follows_host { rtc.following_host() } else { rtc }
        });
        self.ports(&rtc, RTC_PORTS, 0x70, 2)
    }

    /// The keyboard controller, by which kernels also reset a PC, and the ports that came after it.
    /// Gives back the reset control register, which is mapped unless PCI's ports lie round it.
    fn plug_legacy(&mut self, config: &Config) -> Result<Arc<Slot>, Error> {
        let a20 = A20Gate::open();
        let lines = keyboard_controller::Lines {
            keyboard: self.irq(1),
            aux: self.irq(12),
            a20: a20.clone(),
            system: self.system(),
        };
        let slot =
            self.plug("i8042", |attach| KeyboardController::new(lines, InputQueue::new(), attach));
        self.ports(&slot, KeyboardController::DATA, 0x60, 1)?;
        self.ports(&slot, KeyboardController::COMMAND, 0x64, 1)?;
        let system = self.system();
        let reset = self.plug("reset", |_| ResetPort::new(system));
        if !config.pci {
            self.pio.map(0xCF8..=0xCFB, &reset, RESET_PORT, Width::Dword)?;
        }
        if config.machine == MachineKind::Pc {
            let system = self.system();
            let slot = self.plug("port92", |_| Port92::new(a20, system));
            self.ports(&slot, PORT92, 0x92, 1)?;
        }
        Ok(reset)
    }

    /// The ACPI registers, and their power button.
    fn plug_acpi(&mut self) -> Result<(Arc<Slot>, Notifier), Error> {
        let (sci, system) = (self.irq(SCI), self.system());
        let mut button = None;
        let slot = self.plug("acpi-pm", |attach| {
            button = Some(attach.notifier(AcpiPm::POWER_BUTTON));
            AcpiPm::new(attach, sci, system)
        });
        let end = PM_BASE + acpi_pm::offset::END - 1;
        self.pio.map(PM_BASE..=end, &slot, AcpiPm::REGISTERS, Width::Dword)?;
        let button =
            button.ok_or_else(|| Error::Unsupported("the power button has no wire".into()))?;
        Ok((slot, button))
    }

    fn plug_fw_cfg(&mut self, config: &Config, ram: &GuestRam) -> Result<(), Error> {
        let mut items = FwCfgItems::new();
        items.set(key::UUID, config.uuid);
        items.set_u64(key::RAM_SIZE, ram.size());
        items.set_u16(key::NOGRAPHIC, 1);
        items.set_u16(key::NB_CPUS, config.topology.cpus as u16);
        items.set_u16(key::MAX_CPUS, config.topology.cpus as u16);
        let ranges = e820::firmware_map(ram).into_iter().map(|range| match range.kind {
            e820::Kind::Ram => (range.start, range.size, E820Type::Ram),
            e820::Kind::Reserved => (range.start, range.size, E820Type::Reserved),
        });
        items.add_e820(&ranges.collect::<Vec<_>>())?;
        add_kernel_items(&mut items, config);
        for file in &config.fw_cfg {
            items.add_file(&file.name, file.contents.clone())?;
        }
        let ram = ram.clone();
        let slot = self.plug("fw_cfg", |_| FwCfg::new(items, ram));
        self.pio.map(0x510..=0x511, &slot, FwCfg::SELECTOR_AND_DATA, Width::Word)?;
        self.pio.map(0x514..=0x51B, &slot, FwCfg::DMA, Width::Dword)?;
        Ok(())
    }

    fn plug_device(
        &mut self,
        spec: &DeviceSpec,
        chardevs: &Chardevs,
        netdevs: &Netdevs,
        disks: &Disks,
        config: &Config,
        pci: Option<&mut Pci>,
    ) -> Result<Option<SerialPort>, Error> {
        let backend = |id: &str| -> Result<Arc<Chardev>, Error> {
            chardevs.get(id).ok_or_else(|| {
                Error::Unsupported(format!(
                    "--device: there is no chardev '{id}': make it by --chardev KIND,id={id}"
                ))
            })
        };
        let system = self.system();
        match spec {
            DeviceSpec::DebugExit { iobase, iosize } => {
                let slot = self.plug("isa-debug-exit", |_| DebugExit::new(system));
                let end = u64::from(*iobase) + u64::from(*iosize) - 1;
                self.pio.map((*iobase).into()..=end, &slot, DebugExit::PORT, Width::Qword)?;
            }
            DeviceSpec::Debugcon { iobase, readback, chardev } => {
                let port = backend(chardev)?.attach()?;
                let slot =
                    self.plug("isa-debugcon", |attach| DebugCon::new(attach, port, *readback));
                self.ports(&slot, DebugCon::PORT, (*iobase).into(), 1)?;
            }
            DeviceSpec::Serial { iobase, irq, chardev } => {
                let port = backend(chardev)?.attach()?;
                return self
                    .plug_serial(format!("serial-{chardev}"), *iobase, *irq, port)
                    .map(Some);
            }
            DeviceSpec::Virtio(spec) => {
                self.plug_virtio(spec, config, pci, chardevs, netdevs, disks)?;
            }
            // It is made with its virtio-serial.
            DeviceSpec::VirtioPort(port) => virtio::check_port(port, &config.devices)?,
            DeviceSpec::Pvpanic { ioport } => {
                let slot = self.plug("pvpanic", |_| PvPanic::new(system));
                self.ports(&slot, PvPanic::PORT, (*ioport).into(), 1)?;
            }
            DeviceSpec::Pci(spec) => {
                let slot = pci.ok_or_else(|| no_pci_bus(spec.kind.name()))?.plug(spec)?;
                self.slots.push(slot);
            }
        }
        Ok(None)
    }
}

/// A PCI device was asked for, and there is no bus for it.
pub(super) fn no_pci_bus(device: &str) -> Error {
    Error::Unsupported(format!(
        "--device {device}: this machine has no PCI bus: ask for --machine pc, without pci=off",
    ))
}

/// The kernel, its initrd and its command line, for firmware that boots them itself. A kernel that
/// is entered directly does without, so what cannot be read is left out: loading will say why.
fn add_kernel_items(items: &mut FwCfgItems, config: &Config) {
    let mut add = |path: &Path, size_key, data_key| {
        let Ok(file) = File::open(path) else { return };
        let size = file.metadata().map_or(0, |m| u32::try_from(m.len()).unwrap_or(u32::MAX));
        if items.set_file(data_key, file).is_ok() {
            items.set_u32(size_key, size);
        }
    };
    let Some(kernel) = &config.kernel else { return };
    add(kernel, key::KERNEL_SIZE, key::KERNEL_DATA);
    if let Some(initrd) = &config.initrd {
        add(initrd.as_ref(), key::INITRD_SIZE, key::INITRD_DATA);
    }
    let mut cmdline = config.append.clone().into_bytes();
    cmdline.push(0);
    items.set_u32(key::CMDLINE_SIZE, cmdline.len() as u32);
    items.set(key::CMDLINE_DATA, cmdline);
}

/// An address space, which tells the log of accesses to nothing where `-d unimp` asks for it.
fn new_bus(log: &Arc<Log>, space: &'static str) -> Arc<Bus> {
    let log = log.clone();
    Arc::new(Bus::with_witness(move |address, access| log.unclaimed(space, address, access)))
}

/// Opens the serial ports' and the monitors' backends, in the order of their labels. A port that
/// is `None` is not there.
fn open_consoles(
    config: &Config,
    chardevs: &mut Chardevs,
) -> Result<(Vec<SerialEnd>, Frontends), Error> {
    for spec in &config.chardevs {
        chardevs.open(spec, "")?;
    }
    let mut frontends = Frontends::default();
    let mut serials = Vec::new();
    for (index, spec) in config.serials.iter().enumerate() {
        let Some(spec) = spec else {
            serials.push(None);
            continue;
        };
        let chardev = chardevs.open(spec, &format!("serial{index}"))?;
        serials.push(Some(chardev.attach()?));
        if spec.mux {
            frontends.hmp.push(chardev.attach()?);
        }
    }
    let monitors = config.monitor.iter().map(|spec| (spec, false));
    let qmps = config.qmp.iter().map(|spec| (spec, true));
    for (index, (spec, json)) in monitors.chain(qmps).enumerate() {
        if spec.kind == BackendKind::None {
            continue;
        }
        let port = chardevs.open(spec, &format!("compat_monitor{index}"))?.attach()?;
        if json { frontends.qmp.push(port) } else { frontends.hmp.push(port) }
    }
    Ok((serials, frontends))
}

impl Machine {
    /// Makes the machine that `config` asks for, loaded, with its vCPUs parked. Requests that come
    /// up go to `requests`.
    ///
    /// # Errors
    /// With the cause and the remedy; nothing is left behind then.
    pub fn build(
        config: Config,
        events: &LoopHandle,
        requests: Arc<Requests>,
    ) -> Result<(Self, Frontends), Error> {
        Self::build_on(accel::open, config, events, requests)
    }

    /// The same on the accelerator that `open` gives.
    ///
    /// # Errors
    /// As [`Machine::build`], and what `open` says.
    pub fn build_on(
        open: impl FnOnce(&Config, &MemoryMap, &LoopHandle) -> Result<Arc<dyn Accel>, Error>,
        config: Config,
        events: &LoopHandle,
        requests: Arc<Requests>,
    ) -> Result<(Self, Frontends), Error> {
        let log = Log::open(config.log_file.as_deref(), config.log)?;
        let ram = GuestRam::new(config.memory)?;
        let mut map = MemoryMap::new(&ram);
        let payload = match &config.bios {
            Some(path) => {
                let firmware = Firmware::open(path)?;
                firmware.map(&mut map);
                Payload::Firmware(firmware)
            }
            None => Payload::Kernel,
        };
        let accel = open(&config, &map, events)?;

        let cpuid = config.cpu.select(&accel.supported_cpuid())?;
        let cpuids: Vec<_> =
            (0..config.topology.cpus).map(|id| config.topology.apply(&cpuid, id)).collect();
        let mut vcpus = Vec::new();
        for (id, cpuid) in (0..).zip(&cpuids) {
            vcpus.push(accel.add_vcpu(id, cpuid)?);
        }
        let from_vcpu = requests.clone();
        let vcpus = Vcpus::new(vcpus, move |id, event: VcpuEvent| {
            from_vcpu.push(Request::Vcpu(id, event));
        });
        requests.set_holder(vcpus.holder());

        let table = Arc::<DoorbellTable>::default();
        let doorbells = Arc::new(Bells { accel: accel.clone(), table: table.clone() });
        let mut board = Board {
            events,
            ram: ram.clone(),
            virtio: VirtioDevices::default(),
            doorbells,
            pio: new_bus(&log, "port"),
            mmio: new_bus(&log, "address"),
            slots: Vec::new(),
            lines: Vec::new(),
            requests: requests.clone(),
        };
        let mut irqchip = None;
        let lines: Arc<dyn IrqSink> = match accel.irqchip() {
            Chips::Full { lines, .. } => lines,
            Chips::Split(bus) => {
                let boot_cpu = vcpus.holder();
                let chip = board.plug_irqchip(bus, move |intr| {
                    if intr {
                        boot_cpu.kick(0);
                    }
                })?;
                irqchip = Some(chip.clone());
                chip
            }
            Chips::Soft => {
                return Err(Error::Unsupported(format!(
                    "accelerator {} has no local APICs to connect the machine to",
                    accel.name()
                )));
            }
        };
        board.lines =
            (0..24).map(|gsi| SharedLine::new(IrqLine::new(lines.clone(), gsi))).collect();

        let quit = requests.clone();
        let mut chardevs = Chardevs::new(Host {
            events: events.clone(),
            escape: config.escape,
            hot_key: Arc::new(move |key| {
                if key == HotKey::Quit {
                    quit.push(Request::Quit);
                }
            }),
            report: Arc::new(report::note),
        });
        let (serials, frontends) = open_consoles(&config, &mut chardevs)?;
        let mut serial_ports = Vec::new();
        for (index, port) in serials.into_iter().enumerate() {
            let (iobase, irq) = SERIAL_PORTS[index];
            if let Some(port) = port {
                serial_ports.push(board.plug_serial(
                    format!("serial{index}"),
                    iobase,
                    irq,
                    port,
                )?);
            }
        }
        board.plug_timers(&config, &ram)?;
        let reset_port = board.plug_legacy(&config)?;

        let (pm, power_button) = board.plug_acpi()?;
        let mut pci = None;
        if config.pci {
            let around = Surroundings {
                accel: &accel,
                ram: &ram,
                cpuid: &cpuid,
                reset_port: &reset_port,
                pm: &pm,
            };
            pci = Some(Pci::new(&mut board, &around)?);
        }
        if config.machine == MachineKind::Pc {
            board.plug_fw_cfg(&config, &ram)?;
        }
        let on_error = requests.clone();
        let disks =
            Disks::new(Arc::new(move |report| on_error.disk_error(report)), Arc::new(report::note));
        for drive in &config.drives {
            disks.add(drive.options.clone())?;
        }
        let mut netdevs = Netdevs::new(events);
        for spec in &config.networks.netdevs {
            netdevs.add(spec)?;
        }
        for card in &config.networks.cards {
            board.plug_virtio(card, &config, pci.as_mut(), &chardevs, &netdevs, &disks)?;
        }
        for spec in &config.devices {
            serial_ports.extend(board.plug_device(
                spec,
                &chardevs,
                &netdevs,
                &disks,
                &config,
                pci.as_mut(),
            )?);
        }

        let chip = irqchip.clone().map(|chip| Arc::new(IrqchipPort(chip)));
        let wiring = Wiring {
            pio: board.pio.clone(),
            mmio: board.mmio.clone(),
            intr: chip.clone().map(|chip| chip as Arc<dyn IntrSource>),
            eoi: chip.map(|chip| chip as Arc<dyn EoiSink>),
            doorbells: table.clone(),
        };
        let Board { pio, mmio, slots, virtio, .. } = board;
        let mut machine = Self {
            config,
            log,
            clock: events.clock().clone(),
            events: events.clone(),
            map,
            accel,
            doorbells: table,
            vcpus,
            cpuids,
            pio,
            mmio,
            slots,
            irqchip,
            pci,
            virtio,
            disks,
            requests,
            power_button: Some(power_button),
            chardevs,
            netdevs,
            payload,
            serial_ports,
            state: RunState::Prelaunch,
            stopped_clock: None,
            ending: None,
            last_core: ("none", 0),
            debugger: Default::default(),
            gdb_wish: None,
            news: Vec::new(),
        };
        if let Some(spec) = machine.config.gdb.clone() {
            machine.serve_gdb(&spec)?;
        }
        machine.load()?;
        machine.vcpus.start(&wiring).map_err(Error::host("start the vCPU threads"))?;
        Ok((machine, frontends))
    }
}
