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
        for (bar, window) in windows.iter().enumerate() {
            if function.mapped[bar] != *window {
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

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    use std::time::Duration;

    use board::accel::Space;
    use board::{AccelError, Clock, EventLoop, IrqLine};

    use super::super::super::chip::reset::ResetPort;
    use super::super::super::chip::testing::{Random, Requests};
    use super::super::i440fx::HostBridge;
    use super::super::router::Outputs;
    use super::super::testdev::TestDevice;
    use super::super::testing;
    use super::*;

    /// Doorbells that are written down.
    #[derive(Default)]
    struct Bells(Mutex<Vec<(Space, u64, RawFd)>>);

    impl Doorbells for Bells {
        fn add(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
            self.0.lock().unwrap().push((bell.space, bell.address, eventfd.as_raw_fd()));
            Ok(())
        }
        fn remove(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
            let gone = (bell.space, bell.address, eventfd.as_raw_fd());
            self.0.lock().unwrap().retain(|bell| *bell != gone);
            Ok(())
        }
    }

    impl Bells {
        fn addresses(&self) -> Vec<u64> {
            self.0.lock().unwrap().iter().map(|(_, address, _)| *address).collect()
        }
    }

    struct Fixture {
        pio: Arc<Bus>,
        mmio: Arc<Bus>,
        bus: Arc<PciBus>,
        bells: Arc<Bells>,
        requests: Arc<Requests>,
        events: EventLoop,
    }

    const ECAM: u64 = 0xE000_0000;
    const CARD: Devfn = Devfn::new(3, 0);

    impl Fixture {
        fn new() -> Self {
            let events = EventLoop::new(Clock::stopped()).unwrap();
            let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
            let (bells, requests) = (Arc::new(Bells::default()), Arc::new(Requests::default()));
            let gsis = [0; 4].map(|_| IrqLine::unconnected());
            let router = Router::new(Outputs { gsis, isa: Vec::new() });
            let system = requests.clone();
            let reset = Slot::plug("reset", &events.handle(), |_| ResetPort::new(system));
            let reset = (reset, Region(0));
            let bus = PciBus::new(pio.clone(), mmio.clone(), bells.clone(), router, reset);
            pio.map_bridge(PORTS, bus.clone(), PciBus::CONFIG_PORTS, Width::Dword).unwrap();
            let ecam = ECAM..=ECAM + ECAM_BUS_SIZE - 1;
            mmio.map_bridge(ecam, bus.clone(), PciBus::ECAM, Width::Qword).unwrap();
            let host =
                Slot::plug("host", &events.handle(), |_| HostBridge::new(testing::lines().0));
            bus.plug(Devfn::new(0, 0), &host).unwrap();
            Self { pio, mmio, bus, bells, requests, events }
        }

        fn card(&self, devfn: Devfn) -> Arc<Slot> {
            let slot = Slot::plug("card", &self.events.handle(), |attach| {
                TestDevice::new(attach, testing::lines().0, 4096)
            });
            self.bus.plug(devfn, &slot).unwrap();
            slot
        }

        fn config(&self, devfn: Devfn, offset: u16) -> u32 {
            let address = 0x8000_0000 | u32::from(devfn.byte()) << 8 | u32::from(offset);
            self.pio.write(0xCF8, &address.to_le_bytes());
            number(|data| self.pio.read(0xCFC, data))
        }

        fn set_config(&self, devfn: Devfn, offset: u16, value: u32) {
            let at = ECAM + u64::from(devfn.byte()) * 4096 + u64::from(offset);
            self.mmio.write(at, &value.to_le_bytes());
        }

        fn identity_at(&self, address: u64) -> u32 {
            number(|data| self.mmio.read(address, data))
        }
    }

    fn number(read: impl FnOnce(&mut [u8])) -> u32 {
        let mut data = [0; 4];
        read(&mut data);
        u32::from_le_bytes(data)
    }

    const MAGIC: u32 = 0x5453_4554;

    #[test]
    fn functions_are_found_by_ports_and_by_ecam() {
        let f = Fixture::new();
        f.card(CARD);
        assert_eq!(f.config(Devfn::new(0, 0), 0), 0x1237_8086);
        assert_eq!(f.config(CARD, 0), 0x0005_1B36);
        assert_eq!(f.config(Devfn::new(3, 1), 0), 0xFFFF_FFFF);
        assert_eq!(f.config(Devfn::new(4, 0), 0), 0xFFFF_FFFF);
        // Another bus, and with the enable bit off.
        for address in [0x8001_1800_u32, 0x0000_1800] {
            f.pio.write(0xCF8, &address.to_le_bytes());
            assert_eq!(number(|data| f.pio.read(0xCFC, data)), 0xFFFF_FFFF);
            f.pio.write(0xCFC, &[0; 4]);
        }
        assert_eq!(number(|data| f.pio.read(0xCF8, data)), 0x0000_1800);
        let mut wide = [0; 8];
        f.mmio.read(ECAM + 0x1_8000, &mut wide);
        assert_eq!(wide, [0x36, 0x1B, 5, 0, 0, 0, 0x10, 0]);
        let mut across = [0; 4];
        f.mmio.read(ECAM + 0x1_8002, &mut across);
        assert_eq!(across, [5, 0, 0, 0]);
        f.mmio.read(ECAM + 0x1_8100, &mut across);
        assert_eq!(across, [0xFF; 4], "no extended space");
        // Bytes and words of the data port.
        f.pio.write(0xCF8, &0x8000_1800_u32.to_le_bytes());
        let mut word = [0; 2];
        f.pio.read(0xCFE, &mut word);
        assert_eq!(word, [5, 0]);
    }

    #[test]
    fn port_cf9_resets_and_a_dword_over_it_does_not() {
        let f = Fixture::new();
        f.pio.write(0xCF8, &[0x06, 0x06, 0x06, 0x80]);
        assert_eq!(f.requests.take(), []);
        f.pio.write(0xCF9, &[0x06]);
        assert_eq!(f.requests.take(), [board::SystemRequest::Reset]);
        assert_eq!(number(|data| f.pio.read(0xCF8, data)), 0x8006_0604);
    }

    #[test]
    fn a_bar_answers_where_the_guest_puts_it() {
        let f = Fixture::new();
        f.card(CARD);
        f.set_config(CARD, 0x10, 0xD000_0000);
        assert_eq!(f.identity_at(0xD000_0000), 0xFFFF_FFFF, "decoding is off");
        f.set_config(CARD, 0x04, 2);
        assert_eq!((f.identity_at(0xD000_0000), f.bells.addresses()), (MAGIC, vec![0xD000_0010]));
        f.set_config(CARD, 0x10, 0xD123_4000);
        assert_eq!(f.identity_at(0xD000_0000), 0xFFFF_FFFF);
        assert_eq!((f.identity_at(0xD123_4000), f.bells.addresses()), (MAGIC, vec![0xD123_4010]));
        f.set_config(CARD, 0x14, 0x1000);
        f.set_config(CARD, 0x04, 3);
        assert_eq!(number(|data| f.pio.read(0x1000, data)), MAGIC);
        // A 64-bit one, half by half.
        f.set_config(CARD, 0x1C, 8);
        f.mmio.write(8 << 32, &[1, 2, 3, 4]);
        assert_eq!(f.identity_at((8 << 32) + 0x1000), 0xFFFF_FFFF);
        assert_eq!(f.identity_at(8 << 32), 0x0403_0201);
        f.set_config(CARD, 0x04, 0);
        assert_eq!((f.mmio.mappings().len(), f.bells.addresses()), (1, vec![]));
    }

    #[test]
    fn what_collides_is_mapped_once_the_other_moves() {
        let f = Fixture::new();
        f.card(CARD);
        f.card(Devfn::new(4, 0));
        for device in [3, 4] {
            f.set_config(Devfn::new(device, 0), 0x10, 0xD000_0000);
            f.set_config(Devfn::new(device, 0), 0x04, 2);
        }
        f.mmio.write(0xD000_0004, &7_u32.to_le_bytes());
        f.set_config(CARD, 0x10, ECAM as u32);
        assert_eq!(f.config(CARD, 0), 0x0005_1B36, "configuration space is not covered");
        assert_eq!(f.identity_at(0xD000_0004), 0xFFFF_FFFF, "the other one's register");
        assert_eq!(f.identity_at(0xD000_0000), MAGIC);
    }

    #[test]
    fn a_place_is_taken_once_and_free_after_the_device_is_gone() {
        let f = Fixture::new();
        let slot = f.card(CARD);
        let error = f.bus.plug(CARD, &slot).unwrap_err();
        assert_eq!(error, PlugError::Taken(3, 0, "card".into()));
        let plain = f.bus.reset_port.0.clone();
        assert_eq!(f.bus.plug(Devfn::new(9, 0), &plain), Err(PlugError::NotPci("reset".into())));
        f.set_config(CARD, 0x10, 0xD000_0000);
        f.set_config(CARD, 0x04, 2);
        assert_eq!(f.bus.unplug(3).len(), 1);
        assert_eq!(f.config(CARD, 0), 0xFFFF_FFFF);
        assert_eq!((f.identity_at(0xD000_0000), f.bells.addresses()), (0xFFFF_FFFF, vec![]));
        f.set_config(CARD, 0x04, 2);
        f.card(CARD);
        assert_eq!(f.config(CARD, 0x04), 0x0010_0000);
        for device in 2..32 {
            let free = f.bus.free_device().unwrap();
            if device == 3 {
                assert_eq!(free, Devfn::new(4, 0));
                continue;
            }
            assert_eq!(free, Devfn::new(device, 0));
            f.card(free);
        }
        assert_eq!(f.bus.free_device(), Err(PlugError::Full));
    }

    #[test]
    fn an_ejected_device_asserts_nothing_any_more() {
        let f = Fixture::new();
        let (line, probe) = IrqLine::probe();
        let gsis = [0, 1, 2].map(|_| IrqLine::unconnected());
        let [a, b, c] = gsis;
        let router = Router::new(Outputs { gsis: [a, b, line, c], isa: Vec::new() });
        let reset = f.bus.reset_port.clone();
        let (pio, mmio) = (f.pio.clone(), f.mmio.clone());
        let bus = PciBus::new(pio, mmio, f.bells.clone(), router, reset);
        let intx = bus.router().line(CARD, Pin::A);
        let lines = super::super::function::PciLines { intx, ..testing::lines().0 };
        let slot =
            Slot::plug("card", &f.events.handle(), |attach| TestDevice::new(attach, lines, 4096));
        bus.plug(CARD, &slot).unwrap();
        slot.lock().write(Region(0), 8, &1_u32.to_le_bytes());
        assert!(probe.level());
        bus.unplug(3);
        assert!(!probe.level());
    }

    #[test]
    fn firmware_puts_bars_side_by_side_and_leaves_them_off() {
        let f = Fixture::new();
        for device in 2..6 {
            f.card(Devfn::new(device, 0));
        }
        let apertures = Apertures {
            io: (0x1000, 0x105F),
            low: (0xD000_0000, 0xD00F_FFFF),
            high: (1 << 32, 2 << 32),
        };
        f.bus.assign(&apertures, [10, 10, 11, 11]);
        assert!(f.bus.functions().iter().all(|f| f.bars.iter().all(|bar| bar.address.is_none())));
        assert_eq!(f.config(Devfn::new(2, 0), 0x3C), 0x0000_010A);
        assert_eq!(f.config(Devfn::new(4, 0), 0x3C), 0x0000_010B);
        for device in 2..6 {
            f.set_config(Devfn::new(device, 0), 4, 3);
        }
        // Four of each: all three memory BARs, and three of the port BARs, for which there is room.
        assert_eq!((f.mmio.mappings().len(), f.pio.mappings().len()), (13, 4));
        let first = f.mmio.mappings()[0].start;
        assert_eq!(first, 0xD000_0000);
    }

    #[test]
    fn a_reset_takes_the_bars_out_and_a_restore_brings_them_back() {
        let f = Fixture::new();
        let slot = f.card(CARD);
        f.set_config(CARD, 0x10, 0xD000_0000);
        f.set_config(CARD, 0x04, 2);
        let saved = slot.lock().snapshot().unwrap().save_value();
        slot.lock().reset();
        f.bus.synchronize();
        assert_eq!(f.identity_at(0xD000_0000), 0xFFFF_FFFF);
        slot.lock().snapshot().unwrap().restore_value(1, saved.clone()).unwrap();
        f.bus.synchronize();
        assert_eq!(f.identity_at(0xD000_0000), MAGIC);
        assert_eq!(slot.lock().snapshot().unwrap().save_value(), saved);

        let mut registers = PciBusRegisters::new(f.bus.clone());
        f.pio.write(0xCF8, &0x8000_1810_u32.to_le_bytes());
        let state = registers.save();
        registers.reset();
        assert_eq!(number(|data| f.pio.read(0xCF8, data)), 0);
        registers.restore(state.clone()).unwrap();
        assert_eq!(number(|data| f.pio.read(0xCF8, data)), 0x8000_1810);
        let damaged = PciBusV1 { address: 1, ..state };
        assert!(registers.restore(damaged).is_err());
    }

    #[test]
    fn a_doorbell_arrives_by_its_eventfd_and_by_a_write() {
        let mut f = Fixture::new();
        let slot = f.card(CARD);
        f.set_config(CARD, 0x10, 0xD000_0000);
        f.set_config(CARD, 0x04, 2);
        f.mmio.write(0xD000_0010, &[0; 4]);
        let bell = slot.lock().pci().unwrap().doorbells().pop().unwrap();
        rustix::io::write(&*bell.eventfd, &2_u64.to_ne_bytes()).unwrap();
        while f.identity_at(0xD000_0010) != 3 {
            f.events.turn(Some(Duration::from_millis(10))).unwrap();
        }
    }

    #[test]
    fn any_accesses_keep_the_map_in_step_with_the_bars() {
        let f = Fixture::new();
        let cards = [2, 3, 4].map(|device| f.card(Devfn::new(device, 0)));
        let mut random = Random::new(9);
        for round in 0..30_000 {
            let devfn = Devfn::from_byte(random.below(48) as u8);
            let at = random.below(0x60) as u16;
            let value = match random.below(3) {
                0 => random.next() as u32,
                1 => 0xD000_0000 | (random.below(4) << 12) as u32,
                _ => random.below(8) as u32,
            };
            match random.below(5) {
                0 => drop(f.config(devfn, at)),
                1 => f.bus.config_write(devfn, at, &value.to_le_bytes()),
                2 => f.mmio.write(0xD000_0000 + random.below(0x4000), &value.to_le_bytes()),
                _ => f.set_config(devfn, at & !3, value),
            }
            if round % 100 == 0 {
                // Each mapped range is one that a BAR decodes at the moment.
                let mapped = f.mmio.mappings().len() + f.pio.mappings().len() - 2;
                let bars = cards.iter().flat_map(|card| card.lock().pci().unwrap().bars());
                let decoded: Vec<_> = bars.filter_map(|bar| bar.address).collect();
                assert!(mapped <= decoded.len());
                for mapping in f.mmio.mappings().into_iter().chain(f.pio.mappings()) {
                    let bridge = matches!(mapping.target, board::bus::Target::Bridge(_));
                    assert!(bridge || decoded.contains(&mapping.start), "{:#x}", mapping.start);
                }
            }
        }
    }
}
