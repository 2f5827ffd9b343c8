//! The PCI bus: which functions there are, how the guest reaches their configuration space, and
//! where their BARs are mapped.
//!
//! Configuration space is reached by the two ports of configuration mechanism 1 (PCI 3.0, 3.2.2.3.2)
//! and by ECAM (PCI Express 5.0, 7.2.2), in which each function has 4 KiB. There is one bus,
//! number 0.
//!
//! The bus is no device. A configuration access holds the topology's lock throughout, takes the
//! function's lock for the access itself, and applies what comes of it when that is let go. The
//! order of locks is topology, device, [`board::Bus`]'s map.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use board::Device;
use board::accel::{Doorbell, Doorbells};
use board::bus::{Bridge, Bus, Width};
use board::device::{Region, Slot};
use board::pci::{BARS, BarDoorbell, BarInfo, BarKind, Devfn, Effects, Pin, Windows};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use serde::{Deserialize, Serialize};

use super::config::offset;
use super::router::{Router, RouterV1, pirq};

/// The ports: CONFIG_ADDRESS and CONFIG_DATA.
pub const PORTS: std::ops::RangeInclusive<u64> = 0xCF8..=0xCFF;
/// Bytes of ECAM for one bus.
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// Bits of CONFIG_ADDRESS.
const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = ADDRESS_ENABLE | 0x00FF_FFFC;

/// Why a function cannot be plugged in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    /// There is one already.
    #[error("PCI: slot {0} function {1} not available, in use by {2}: choose another addr=")]
    Taken(u8, u8, String),
    /// All slots are taken.
    #[error("PCI: no slot is left of the 30 that devices can have: leave one out")]
    Full,
    /// The device has no configuration side.
    #[error("{0} is no PCI device")]
    NotPci(String),
}

/// Where firmware puts BARs: the addresses that lead to PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apertures {
    /// Ports.
    pub io: (u64, u64),
    /// Memory below 4 GiB: first and last address.
    pub low: (u64, u64),
    /// Memory above RAM.
    pub high: (u64, u64),
}

/// A function as the monitor shows it.
#[derive(Clone, Debug)]
pub struct FunctionView {
    /// Its place.
    pub devfn: Devfn,
    /// The name of its slot.
    pub name: String,
    /// The first 64 bytes of its configuration space.
    pub header: [u8; 64],
    /// Its BARs.
    pub bars: Vec<BarInfo>,
}

struct Function {
    slot: Arc<Slot>,
    /// What the BARs decode.
    wanted: Windows,
    /// What of it is mapped. The rest collides with something else.
    mapped: Windows,
    doorbells: Vec<BarDoorbell>,
}

#[derive(Default)]
struct Topology {
    /// CONFIG_ADDRESS.
    address: u32,
    functions: BTreeMap<Devfn, Function>,
}

/// The bus.
pub struct PciBus {
    topology: Mutex<Topology>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    doorbells: Arc<dyn Doorbells>,
    router: Arc<Router>,
    /// Who answers at 0xCF8 to 0xCFB but for dwords: the reset control register.
    reset_port: (Arc<Slot>, Region),
}

impl PciBus {
    /// The region of the eight ports, to be mapped with width [`Width::Dword`].
    pub const CONFIG_PORTS: Region = Region(0);
    /// The region of ECAM, [`ECAM_BUS_SIZE`] bytes.
    pub const ECAM: Region = Region(1);

    /// A bus without functions, whose BARs are mapped on `pio` and `mmio`.
    pub fn new(
        pio: Arc<Bus>,
        mmio: Arc<Bus>,
        doorbells: Arc<dyn Doorbells>,
        router: Arc<Router>,
        reset_port: (Arc<Slot>, Region),
    ) -> Arc<Self> {
        let topology = Mutex::default();
        Arc::new(Self { topology, pio, mmio, doorbells, router, reset_port })
    }

    /// The router of the interrupt pins.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    fn lock(&self) -> MutexGuard<'_, Topology> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest device number from 2 on at which there is nothing.
    ///
    /// # Errors
    /// [`PlugError::Full`].
    pub fn free_device(&self) -> Result<Devfn, PlugError> {
        let topology = self.lock();
        let taken = |device| topology.functions.keys().any(|devfn| devfn.device() == device);
        (2..32).find(|&device| !taken(device)).map(|d| Devfn::new(d, 0)).ok_or(PlugError::Full)
    }

    /// Whether nothing is at `devfn`.
    ///
    /// # Errors
    /// [`PlugError::Taken`].
    pub fn check_free(&self, devfn: Devfn) -> Result<(), PlugError> {
        self.lock().check_free(devfn)
    }

    /// Plugs `slot`'s device in at `devfn`.
    ///
    /// # Errors
    /// [`PlugError`]; nothing has changed then.
    pub fn plug(&self, devfn: Devfn, slot: &Arc<Slot>) -> Result<(), PlugError> {
        let mut topology = self.lock();
        topology.check_free(devfn)?;
        let (doorbells, windows) = {
            let mut device = slot.lock();
            let function = device.pci().ok_or_else(|| PlugError::NotPci(slot.name().to_owned()))?;
            (function.doorbells(), function.windows())
        };
        let function =
            Function { slot: slot.clone(), wanted: [None; BARS], mapped: [None; BARS], doorbells };
        topology.functions.insert(devfn, function);
        self.apply(&mut topology, devfn, windows);
        Ok(())
    }

    /// Pulls all functions of `device` out, and gives them back.
    pub fn unplug(&self, device: u8) -> Vec<Arc<Slot>> {
        let mut topology = self.lock();
        let there = topology.functions.keys().copied();
        let gone: Vec<_> = there.filter(|devfn| devfn.device() == device).collect();
        let take = |devfn| {
            self.apply(&mut topology, devfn, [None; BARS]);
            self.router.release(devfn);
            topology.functions.remove(&devfn).map(|function| function.slot)
        };
        gone.into_iter().filter_map(take).collect()
    }

    /// Looks at what all functions decode now, after a reset or a restore of theirs.
    pub fn synchronize(&self) {
        let mut topology = self.lock();
        let functions: Vec<_> =
            topology.functions.iter().map(|(devfn, f)| (*devfn, f.slot.clone())).collect();
        for (devfn, slot) in functions {
            let windows = slot.lock().pci().map(|function| function.windows());
            self.apply(&mut topology, devfn, windows.unwrap_or([None; BARS]));
        }
    }

    /// All functions in the order of their places.
    pub fn functions(&self) -> Vec<FunctionView> {
        let topology = self.lock();
        let view = |(devfn, function): (&Devfn, &Function)| {
            let mut device = function.slot.lock();
            let pci = device.pci()?;
            let mut header = [0; 64];
            for (at, dword) in (0..).step_by(4).zip(header.chunks_mut(4)) {
                pci.config_read(at, dword);
            }
            let name = function.slot.name().to_owned();
            Some(FunctionView { devfn: *devfn, name, header, bars: pci.bars() })
        };
        topology.functions.iter().filter_map(view).collect()
    }

    /// Reads configuration space as the guest does: all ones where no function is.
    pub fn config_read(&self, devfn: Devfn, offset: u16, data: &mut [u8]) {
        let topology = self.lock();
        data.fill(0xFF);
        let Some(function) = topology.functions.get(&devfn) else { return };
        if let Some(pci) = function.slot.lock().pci() {
            let mut from = 0;
            while from < data.len() {
                let at = offset + from as u16;
                let to = data.len().min(from + 4 - usize::from(at & 3));
                pci.config_read(at, &mut data[from..to]);
                from = to;
            }
        }
    }

    /// Writes configuration space as the guest does.
    pub fn config_write(&self, devfn: Devfn, offset: u16, data: &[u8]) {
        self.write(&mut self.lock(), devfn, offset, data);
    }

    fn write(&self, topology: &mut Topology, devfn: Devfn, offset: u16, data: &[u8]) {
        let Some(function) = topology.functions.get(&devfn) else { return };
        let slot = function.slot.clone();
        let mut from = 0;
        while from < data.len() {
            let at = offset + from as u16;
            let to = data.len().min(from + 4 - usize::from(at & 3));
            // The function's lock is let go before its effects are applied.
            let effects = slot.lock().pci().map(|pci| pci.config_write(at, &data[from..to]));
            if let Some(Effects::Windows(windows)) = effects {
                self.apply(topology, devfn, windows);
            }
            from = to;
        }
    }

    /// Maps what the BARs of `devfn` decode in place of what they decoded before. What collides
    /// with something else is not mapped, until that has moved.
    fn apply(&self, topology: &mut Topology, devfn: Devfn, windows: Windows) {
        let Some(function) = topology.functions.get_mut(&devfn) else { return };
        function.wanted = windows;
        for bar in 0..BARS {
            if function.mapped[bar] != windows[bar] {
                self.unmap(function, bar);
            }
        }
        for function in topology.functions.values_mut() {
            for bar in 0..BARS {
                if function.mapped[bar].is_none() {
                    self.map(function, bar);
                }
            }
        }
    }

    fn space(&self, space: board::accel::Space) -> &Bus {
        match space {
            board::accel::Space::Pio => &self.pio,
            board::accel::Space::Mmio => &self.mmio,
        }
    }

    fn map(&self, function: &mut Function, bar: usize) {
        let Some(window) = function.wanted[bar] else { return };
        let range = window.start..=window.start + window.size - 1;
        let bus = self.space(window.space);
        if bus.map(range, &function.slot, Region(bar as u16), Width::Qword).is_err() {
            return;
        }
        function.mapped[bar] = Some(window);
        for (bell, eventfd) in function.bells(bar) {
            // Without its doorbell a write arrives at the device, which is slower and as good.
            let _ = self.doorbells.add(bell, eventfd);
        }
    }

    fn unmap(&self, function: &mut Function, bar: usize) {
        for (bell, eventfd) in function.bells(bar) {
            // It fails for one that could not be added.
            let _ = self.doorbells.remove(bell, eventfd);
        }
        if let Some(window) = function.mapped[bar].take() {
            self.space(window.space).unmap(window.start);
        }
    }

    /// Gives all BARs addresses and all pins interrupt lines, as firmware does. Decoding stays as
    /// it is, which is off after a reset. What finds no room keeps its address.
    pub fn assign(&self, apertures: &Apertures, lines: [u8; 4]) {
        let mut topology = self.lock();
        let mut bars = Vec::new();
        let places: Vec<_> = topology.functions.keys().copied().collect();
        for devfn in places {
            let Some(function) = topology.functions.get(&devfn) else { continue };
            let slot = function.slot.clone();
            let mut pin = [0];
            {
                let mut device = slot.lock();
                let Some(pci) = device.pci() else { continue };
                bars.extend(pci.bars().into_iter().map(|bar| (devfn, bar)));
                pci.config_read(offset::INTERRUPT_PIN, &mut pin);
            }
            let pin = match pin[0] {
                1 => Pin::A,
                2 => Pin::B,
                3 => Pin::C,
                4 => Pin::D,
                _ => continue,
            };
            let line = lines[pirq(devfn.device(), pin)];
            self.write(&mut topology, devfn, offset::INTERRUPT_LINE, &[line]);
        }
        // The largest first, so that alignment wastes nothing.
        bars.sort_by_key(|(devfn, bar)| (std::cmp::Reverse(bar.size), *devfn, bar.number));
        let mut next = *apertures;
        for (devfn, bar) in bars {
            let Some(start) = next.take(&bar) else { continue };
            let at = offset::BAR0 + u16::from(bar.number) * 4;
            let wide = matches!(bar.kind, BarKind::Memory { wide: true, .. });
            let len = if wide { 8 } else { 4 };
            self.write(&mut topology, devfn, at, &start.to_le_bytes()[..len]);
        }
    }
}

/// 64-bit BARs up to this size are put where systems without 64 bits reach them.
const LOW_LIMIT: u64 = 64 << 20;

impl Apertures {
    /// Takes room for `bar`.
    fn take(&mut self, bar: &BarInfo) -> Option<u64> {
        let wide = matches!(bar.kind, BarKind::Memory { wide: true, .. });
        let first = match bar.kind {
            BarKind::Io => &mut self.io,
            BarKind::Memory { .. } if wide && bar.size > LOW_LIMIT => &mut self.high,
            BarKind::Memory { .. } => &mut self.low,
        };
        Self::take_from(first, bar.size)
            .or_else(|| if wide { Self::take_from(&mut self.high, bar.size) } else { None })
    }

    fn take_from((start, end): &mut (u64, u64), size: u64) -> Option<u64> {
        let at = start.checked_next_multiple_of(size)?;
        let last = at.checked_add(size - 1)?;
        (last <= *end).then(|| {
            *start = last + 1;
            at
        })
    }
}

impl Topology {
    fn check_free(&self, devfn: Devfn) -> Result<(), PlugError> {
        let holder = self.functions.get(&devfn);
        holder.map_or(Ok(()), |function| {
            let name = function.slot.name().to_owned();
            Err(PlugError::Taken(devfn.device(), devfn.function(), name))
        })
    }
}

impl Function {
    /// The doorbells in a BAR where it is mapped now.
    fn bells(&self, bar: usize) -> impl Iterator<Item = (Doorbell, std::os::fd::BorrowedFd<'_>)> {
        let window = self.mapped[bar];
        self.doorbells.iter().filter(move |bell| usize::from(bell.bar) == bar).filter_map(
            move |bell| {
                let window = window?;
                let address = window.start + bell.offset;
                let (space, width, value) = (window.space, bell.width, bell.value);
                let eventfd = std::os::fd::AsFd::as_fd(&*bell.eventfd);
                Some((Doorbell { space, address, width, value }, eventfd))
            },
        )
    }
}

/// Offset of CONFIG_DATA from CONFIG_ADDRESS.
const DATA: u64 = 4;

impl Bridge for PciBus {
    fn name(&self) -> &str {
        "pci-config"
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        if region == Self::ECAM {
            let devfn = Devfn::from_byte((offset >> 12) as u8);
            return self.config_read(devfn, (offset & 0xFFF) as u16, data);
        }
        match (offset, data) {
            (0, data) if data.len() == 4 => {
                data.copy_from_slice(&self.lock().address.to_le_bytes());
            }
            (0..DATA, data) => {
                let (slot, region) = &self.reset_port;
                slot.lock().read(*region, offset, data);
            }
            (_, data) => {
                let address = self.lock().address;
                match place(address, offset) {
                    Some((devfn, at)) => self.config_read(devfn, at, data),
                    None => data.fill(0xFF),
                }
            }
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        if region == Self::ECAM {
            let devfn = Devfn::from_byte((offset >> 12) as u8);
            return self.config_write(devfn, (offset & 0xFFF) as u16, data);
        }
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                self.lock().address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS;
            }
            (0..DATA, data) => {
                let (slot, region) = &self.reset_port;
                slot.lock().write(*region, offset, data);
            }
            (_, data) => {
                let address = self.lock().address;
                if let Some((devfn, at)) = place(address, offset) {
                    self.config_write(devfn, at, data);
                }
            }
        }
    }
}

/// What CONFIG_ADDRESS and the port of an access to CONFIG_DATA name, if it is on bus 0.
fn place(address: u32, port: u64) -> Option<(Devfn, u16)> {
    let on_bus_0 = address & ADDRESS_ENABLE != 0 && address >> 16 & 0xFF == 0;
    let at = (address & 0xFC) as u16 | (port & 3) as u16;
    on_bus_0.then(|| (Devfn::from_byte((address >> 8) as u8), at))
}

/// The bus's own registers, in a slot for the sake of reset and save.
pub struct PciBusRegisters(Arc<PciBus>);

impl PciBusRegisters {
    /// The registers of `bus`.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self(bus)
    }
}

impl Device for PciBusRegisters {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        self.0.lock().address = 0;
        self.0.router.reset();
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// The saved registers of the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusV1 {
    address: u32,
    router: RouterV1,
}

impl Snapshot for PciBusRegisters {
    const KIND: &'static str = "pci-bus";
    const VERSION: u32 = 1;
    type State = PciBusV1;

    fn save(&self) -> PciBusV1 {
        let Self(bus) = self;
        PciBusV1 { address: bus.lock().address, router: bus.router.save() }
    }

    fn restore(&mut self, state: PciBusV1) -> Result<(), StateError> {
        let PciBusV1 { address, router } = state;
        if address & !ADDRESS_BITS != 0 {
            let cause = format!("CONFIG_ADDRESS is {address:#x}");
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        self.0.lock().address = address;
        self.0.router.restore(router);
        Ok(())
    }
}
