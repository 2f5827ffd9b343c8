//! Plugging in virtio devices, and how the guest is told where those on MMIO are.

use std::fmt::Write;
use std::sync::Arc;

use board::{Attach, Entropy, GuestRam, Slot, Width};
use devices::block::Disks;
use devices::chardev::Chardevs;
use devices::net::{MacAddress, NetPort, Netdevs};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::blk::{Blk, BlkOptions};
use devices::virtio::console::{Console, MAX_PORTS, PortSpec};
use devices::virtio::mmio::{MmioParts, VirtioMmio};
use devices::virtio::net::{Net, NetOptions};
use devices::virtio::pci::{PciParts, VirtioPci};
use devices::virtio::rng::Rng;

use monitor::Event;

use crate::Error;
use crate::acpi::VirtioMmioPlace;
use crate::config::{
    Config, DeviceSpec, MachineKind, NetSpec, Transport, VirtioKind, VirtioPortSpec, VirtioSpec,
};

use super::build::{Board, no_pci_bus};
use super::pci::Pci;
use super::{Request, Requests};

/// Where the registers of the first device are.
const MMIO_BASE: u64 = 0xFEB0_0000;

/// The interrupts of devices on MMIO, in the order in which they are given out. Kernels that read
/// of the devices on their command line take the number for an ISA interrupt, so those that nothing
/// else uses come first; the others are for kernels with ACPI.
const MMIO_GSIS: [u8; 16] = [5, 6, 7, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// GSIs from here on are no ISA interrupts.
const ISA_IRQS: u8 = 16;

/// A virtio device of the machine, for the monitor.
pub struct VirtioEntry {
    /// Its place among the machine's objects, as QEMU's monitor names it.
    pub path: String,
    /// `id=`.
    pub id: Option<String>,
    /// The model, as `info network` names it: `virtio-net-pci`.
    pub model: String,
    /// What holds it.
    pub slot: Arc<Slot>,
}

/// The virtio devices of a machine.
#[derive(Default)]
pub struct VirtioDevices {
    /// All of them.
    pub entries: Vec<VirtioEntry>,
    /// Where those on MMIO are.
    pub mmio: Vec<VirtioMmioPlace>,
    /// How many without an id there have been.
    anonymous: usize,
}

impl VirtioDevices {
    /// The words for the kernel's command line that name the devices on MMIO.
    pub fn cmdline(&self) -> String {
        let mut words = String::new();
        for place in self.mmio.iter().filter(|place| place.gsi < ISA_IRQS) {
            let VirtioMmioPlace { base, gsi } = place;
            // Writing to a String does not fail.
            let _ = write!(words, " virtio_mmio.device={}@{base:#x}:{gsi}", VirtioMmio::SIZE);
        }
        words
    }
}

/// What devices are made of besides their options.
pub(super) struct Backends<'a> {
    /// Guest RAM.
    pub(super) ram: &'a GuestRam,
    /// For terminals and ports.
    pub(super) chardevs: &'a Chardevs,
    /// For network cards.
    pub(super) netdevs: &'a Netdevs,
    /// Network cards that there are: the next one's address follows from it.
    pub(super) cards: u8,
    /// For disks.
    pub(super) disks: &'a Disks,
    /// All devices that were asked for, among them the ports of a `virtio-serial`.
    pub(super) devices: &'a [DeviceSpec],
    /// vCPUs.
    pub(super) cpus: u32,
    /// `--seed`.
    pub(super) seed: Option<u64>,
    /// Where events go that QMP's clients hear of.
    pub(super) requests: &'a Arc<Requests>,
}

/// The most request queues that a disk has without being asked.
const MAX_AUTO_QUEUES: u32 = 16;

/// The device apart from its transport.
fn make(
    spec: &VirtioSpec,
    path: &str,
    on_pci: bool,
    backends: &Backends<'_>,
    attach: &Attach,
    name: &str,
) -> Result<Box<dyn VirtioDevice>, Error> {
    Ok(match &spec.kind {
        VirtioKind::Net(card) => Box::new(make_card(card, backends, attach)?),
        VirtioKind::Rng => Box::new(Rng::new(Entropy::new(backends.seed, name))),
        VirtioKind::Block { drive, serial, queues, queue_size, rerror, werror, blocks } => {
            let auto = if on_pci { backends.cpus.min(MAX_AUTO_QUEUES) as u16 } else { 1 };
            let queues = queues.unwrap_or(auto);
            let options = BlkOptions { queues, queue_size: *queue_size, serial: serial.clone() };
            let disk = backends.disks.find(drive)?;
            disk.set_policies(*rerror, *werror);
            disk.set_blocks(*blocks);
            Box::new(Blk::new(&disk, backends.ram, path, options, attach)?)
        }
        VirtioKind::Serial { max_ports } => {
            let ports = ports(spec, backends)?;
            let needed = ports.iter().map(|port| port.number + 1).max().unwrap_or(1);
            Box::new(Console::new(ports, max_ports.unwrap_or(needed), attach))
        }
        VirtioKind::Balloon(options) => {
            let (size, requests) = (backends.ram.size(), backends.requests.clone());
            let on_change = move |given: u64| {
                let actual = size.saturating_sub(given);
                requests.push(Request::News(Event::BalloonChange(actual)));
            };
            Box::new(Balloon::new(*options, Box::new(on_change)))
        }
    })
}

fn make_card(spec: &NetSpec, backends: &Backends<'_>, attach: &Attach) -> Result<Net, Error> {
    let NetSpec {
        netdev,
        mac,
        mq,
        rx_queue_size,
        tx_queue_size,
        mrg_rxbuf,
        ctrl_vq,
        offloads,
        host_mtu,
    } = spec;
    let port = match netdev {
        Some(id) => backends.netdevs.port(id)?,
        None => NetPort::default(),
    };
    let options = NetOptions {
        mac: mac.unwrap_or(MacAddress::of_card(backends.cards)),
        rx_queue_size: *rx_queue_size,
        tx_queue_size: *tx_queue_size,
        mq: *mq,
        mrg_rxbuf: *mrg_rxbuf,
        ctrl_vq: *ctrl_vq,
        offloads: *offloads,
        host_mtu: *host_mtu,
    };
    Ok(Net::new(port, options, attach))
}

/// The `virtio-serial` that a port is part of.
fn bus_of<'a>(port: &VirtioPortSpec, devices: &'a [DeviceSpec]) -> Option<&'a VirtioSpec> {
    devices.iter().find_map(|device| match device {
        DeviceSpec::Virtio(spec) if matches!(spec.kind, VirtioKind::Serial { .. }) => {
            (port.bus.is_none() || port.bus == spec.id).then_some(spec)
        }
        _ => None,
    })
}

/// Checks that there is something for the port to be part of.
pub(super) fn check_port(port: &VirtioPortSpec, devices: &[DeviceSpec]) -> Result<(), Error> {
    if bus_of(port, devices).is_some() {
        return Ok(());
    }
    let with_id = port.bus.as_ref().map_or(String::new(), |id| format!(",id={id}"));
    Err(Error::Unsupported(format!(
        "--device {} is a port of a virtio-serial: give --device virtio-serial{with_id} as well",
        port.type_name
    )))
}

/// The ports of a `virtio-serial`, in the order in which they were asked for.
fn ports(serial: &VirtioSpec, backends: &Backends<'_>) -> Result<Vec<PortSpec>, Error> {
    let mut ports: Vec<PortSpec> = Vec::new();
    let mine = backends.devices.iter().filter_map(|device| match device {
        DeviceSpec::VirtioPort(port) => {
            let bus = bus_of(port, backends.devices);
            bus.is_some_and(|bus| std::ptr::eq(bus, serial)).then_some(port)
        }
        _ => None,
    });
    for spec in mine {
        let taken = |number: u32| ports.iter().any(|port| port.number == number);
        // Number 0 is for a terminal: a simple driver takes it for one.
        let first = u32::from(!spec.console);
        let number = spec.number.or_else(|| (first..MAX_PORTS).find(|n| !taken(*n)));
        let Some(number) = number.filter(|number| !taken(*number)) else {
            return Err(Error::Unsupported(format!(
                "--device {},chardev={}: its number is taken, or all are: give another nr",
                spec.type_name, spec.chardev
            )));
        };
        if number == 0 && !spec.console {
            return Err(Error::Unsupported(
                "--device virtserialport,nr=0: port 0 is for a virtconsole: give another nr".into(),
            ));
        }
        let chardev = backends.chardevs.get(&spec.chardev).ok_or_else(|| {
            let id = &spec.chardev;
            Error::Unsupported(format!(
                "--device: there is no chardev '{id}': make it by --chardev KIND,id={id}"
            ))
        })?;
        ports.push(PortSpec {
            number,
            console: spec.console,
            name: spec.name.clone(),
            port: chardev.attach()?,
        });
    }
    Ok(ports)
}

impl VirtioDevices {
    /// How many network cards there are.
    pub(super) fn cards(&self) -> u8 {
        self.entries.iter().filter(|entry| entry.model.starts_with("virtio-net")).count() as u8
    }

    /// Plugs in a device on PCI. The guest is not told.
    pub(super) fn plug_pci(
        &mut self,
        spec: &VirtioSpec,
        pci: &mut Pci,
        backends: &Backends<'_>,
    ) -> Result<Arc<Slot>, Error> {
        let name = self.name(spec);
        let path = self.path(spec);
        let slot = pci.plug_card(spec.id.as_deref(), spec.addr, |lines, parts| {
            Slot::try_plug(name.as_str(), &parts.events, |attach| {
                let device = make(spec, &path, true, backends, attach, &name)?;
                let ram = parts.ram.clone();
                let parts = PciParts { ram, lines, options: spec.options, vectors: spec.vectors };
                VirtioPci::new(device, parts, attach).map_err(Error::host("make a virtio device"))
            })
        })?;
        self.add(spec, "-pci", slot.clone());
        Ok(slot)
    }

    /// Forgets what is in `slot`, which has been pulled out.
    pub(super) fn remove(&mut self, slot: &Arc<Slot>) {
        self.entries.retain(|entry| !Arc::ptr_eq(&entry.slot, slot));
    }

    /// The name that `info mtree` shows.
    fn name(&self, spec: &VirtioSpec) -> String {
        spec.id.clone().unwrap_or_else(|| {
            let name = spec.name.trim_end_matches("-device").trim_end_matches("-pci");
            format!("{name}{}", self.entries.len())
        })
    }

    /// Its place among the machine's objects.
    fn path(&self, spec: &VirtioSpec) -> String {
        match &spec.id {
            Some(id) => format!("/machine/peripheral/{id}/virtio-backend"),
            None => {
                format!("/machine/peripheral-anon/device[{}]/virtio-backend", self.anonymous)
            }
        }
    }

    fn add(&mut self, spec: &VirtioSpec, bus: &str, slot: Arc<Slot>) {
        let model = format!("{}{bus}", spec.name.trim_end_matches(bus));
        let path = self.path(spec);
        self.anonymous += usize::from(spec.id.is_none());
        self.entries.push(VirtioEntry { path, id: spec.id.clone(), model, slot });
    }
}

impl Board<'_> {
    /// Plugs in a virtio device, on the bus that the machine has.
    pub(super) fn plug_virtio(
        &mut self,
        spec: &VirtioSpec,
        config: &Config,
        pci: Option<&mut Pci>,
        chardevs: &Chardevs,
        netdevs: &Netdevs,
        disks: &Disks,
    ) -> Result<(), Error> {
        let (ram, requests) = (self.ram.clone(), self.requests.clone());
        let backends = Backends {
            ram: &ram,
            chardevs,
            netdevs,
            cards: self.virtio.cards(),
            disks,
            devices: &config.devices,
            cpus: config.topology.cpus,
            seed: config.seed,
            requests: &requests,
        };
        let on_mmio = config.machine == MachineKind::Microvm;
        match spec.transport {
            Transport::Mmio if !on_mmio => Err(Error::Unsupported(format!(
                "--device {}: only --machine microvm has virtio-mmio: give {}-pci",
                spec.name,
                spec.name.trim_end_matches("-device"),
            ))),
            Transport::Pci if on_mmio => Err(Error::Unsupported(format!(
                "--device {}: --machine microvm has no PCI: give {}-device",
                spec.name,
                spec.name.trim_end_matches("-pci"),
            ))),
            _ if on_mmio => self.plug_virtio_mmio(spec, &backends),
            _ => {
                let pci = pci.ok_or_else(|| no_pci_bus(spec.name))?;
                let slot = self.virtio.plug_pci(spec, pci, &backends)?;
                self.slots.push(slot);
                Ok(())
            }
        }
    }

    fn plug_virtio_mmio(
        &mut self,
        spec: &VirtioSpec,
        backends: &Backends<'_>,
    ) -> Result<(), Error> {
        let index = self.virtio.mmio.len();
        let Some(&gsi) = MMIO_GSIS.get(index) else {
            return Err(Error::Unsupported(format!(
                "--device {}: --machine microvm has room for {} virtio devices: give --machine pc",
                spec.name,
                MMIO_GSIS.len()
            )));
        };
        let base = MMIO_BASE + index as u64 * VirtioMmio::SIZE;
        let parts = MmioParts {
            ram: self.ram.clone(),
            line: self.irq(gsi.into()),
            base,
            doorbells: Some(self.doorbells.clone()),
            options: spec.options,
        };
        let name = self.virtio.name(spec);
        let path = self.virtio.path(spec);
        let slot = Slot::try_plug(name.as_str(), self.events, |attach| {
            let device = make(spec, &path, false, backends, attach, &name)?;
            VirtioMmio::new(device, parts, attach).map_err(Error::host("make a virtio device"))
        })?;
        self.slots.push(slot.clone());
        let end = base + VirtioMmio::SIZE - 1;
        self.mmio.map(base..=end, &slot, VirtioMmio::REGISTERS, Width::Qword)?;
        self.virtio.mmio.push(VirtioMmioPlace { base, gsi });
        self.virtio.add(spec, "-device", slot);
        Ok(())
    }
}
