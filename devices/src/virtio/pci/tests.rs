use std::sync::{Arc, Mutex};

use board::device::Slot;
use board::irq::{IrqProbe, Msi, MsiSink};
use board::{Clock, Entropy, EventLoop, IrqLine};

use super::super::driver::{Buffer, Rig, Ring, poke};
use super::super::rng::Rng;
use super::super::{F_VERSION_1, Status};
use super::*;

#[derive(Default)]
struct Messages(Mutex<Vec<u32>>);

impl MsiSink for Messages {
    fn send(&self, msi: Msi) {
        self.0.lock().unwrap().push(msi.data);
    }
}

struct Bench {
    ram: GuestRam,
    events: EventLoop,
    slot: Arc<Slot>,
    line: Arc<IrqProbe>,
    messages: Arc<Messages>,
}

impl Bench {
    fn new() -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let events = EventLoop::new(Clock::stopped()).unwrap();
        let (intx, line) = IrqLine::probe();
        let messages = Arc::<Messages>::default();
        let lines = PciLines { intx, msi: messages.clone() };
        let options = RingOptions::default();
        let parts = PciParts { ram: ram.clone(), lines, options, vectors: None };
        let slot = Slot::plug("rng", &events.handle(), |attach| {
            VirtioPci::new(Box::new(Rng::new(Entropy::seeded(1, "rng"))), parts, attach).unwrap()
        });
        let bench = Self { ram, events, slot, line, messages };
        // Bus master, memory.
        bench.config_write(4, &[6, 0]);
        bench
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut device = self.slot.lock();
        let _ = device.pci().unwrap().config_write(offset, data);
    }

    fn config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.slot.lock().pci().unwrap().config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write<const N: usize>(&self, offset: usize, data: [u8; N]) {
        self.slot.lock().write(Region(4), offset as u64, &data);
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        self.slot.lock().read(Region(4), offset as u64, &mut data);
        data
    }

    /// Offset of the vendor capability of a type.
    fn capability(&self, kind: u8) -> u16 {
        let mut at = (self.config(0x34) & 0xFC) as u16;
        while at != 0 {
            let [id, next, _, found] = self.config(at).to_le_bytes();
            if id == VENDOR_CAPABILITY && found == kind {
                return at;
            }
            at = next.into();
        }
        panic!("no capability of type {kind}");
    }

    fn start(&mut self) -> Ring {
        self.write(common::DEVICE_STATUS, [0]);
        self.write(common::DEVICE_STATUS, [3]);
        self.write(common::DRIVER_FEATURE_SELECT, 1_u32.to_le_bytes());
        self.write(common::DRIVER_FEATURE, ((F_VERSION_1 >> 32) as u32).to_le_bytes());
        self.write(common::DEVICE_STATUS, [11]);
        let ring = Ring::new(&self.ram, 0x1000, 8);
        self.write(common::QUEUE_SELECT, [0, 0]);
        self.write(common::QUEUE_SIZE, ring.size.to_le_bytes());
        self.write(common::QUEUE_DESC, ring.descriptors.to_le_bytes());
        self.write(common::QUEUE_DRIVER, ring.avail.to_le_bytes());
        self.write(common::QUEUE_DEVICE, ring.used.to_le_bytes());
        self.write(common::QUEUE_ENABLE, [1, 0]);
        self.write(common::DEVICE_STATUS, [15]);
        self.turn();
        ring
    }

    fn turn(&mut self) {
        for _ in 0..3 {
            self.events.turn(Some(std::time::Duration::ZERO)).unwrap();
        }
    }
}

#[test]
fn configuration_space_says_what_and_where() {
    let bench = Bench::new();
    assert_eq!(bench.config(0), 0x1044_1AF4);
    assert_eq!(bench.config(8), 0x00FF_0001);
    for (kind, place) in
        [(CFG_COMMON, COMMON), (CFG_ISR, ISR), (CFG_DEVICE, DEVICE), (CFG_NOTIFY, NOTIFY)]
    {
        let at = bench.capability(kind);
        let bar = bench.config(at + 4).to_le_bytes()[0];
        let (offset, length) = (bench.config(at + 8), bench.config(at + 12));
        assert_eq!((bar, offset, length), (BAR, place as u32, 0x1000));
    }
    assert_eq!(bench.config(bench.capability(CFG_NOTIFY) + 16), NOTIFY_MULTIPLIER);
    assert_eq!(bench.read(common::NUM_QUEUES), [1, 0]);
    let doorbells = bench.slot.lock().pci().unwrap().doorbells();
    assert_eq!((doorbells.len(), doorbells[0].offset, doorbells[0].width), (1, NOTIFY, 2));
}

#[test]
fn requests_are_served_with_a_level_interrupt() {
    let mut bench = Bench::new();
    let mut ring = bench.start();
    assert_eq!(bench.read::<1>(common::DEVICE_STATUS), [15]);
    let head = ring.add(&[Buffer::room(Rig::BUFFERS, 16)]).unwrap();
    bench.write(NOTIFY as usize, [0, 0]);
    bench.turn();
    assert_eq!(ring.take(), Some((head, 16)));
    assert!(bench.line.level());
    assert_eq!((bench.read::<1>(ISR as usize), bench.line.level()), ([1], false));
    assert_eq!(bench.read::<1>(ISR as usize), [0]);
}

#[test]
fn each_cause_has_its_message() {
    let mut bench = Bench::new();
    for vector in 0..2_u64 {
        let entry = [0, 0, 0xE0, 0xFE, 0, 0, 0, 0, 0x30 + vector as u8, 0, 0, 0, 0, 0, 0, 0];
        for (at, dword) in entry.chunks(4).enumerate() {
            bench.slot.lock().write(Region(1), vector * 16 + 4 * at as u64, dword);
        }
    }
    let mut at = (bench.config(0x34) & 0xFC) as u16;
    while bench.config(at) as u8 != 0x11 {
        at = (bench.config(at) >> 8) as u8 as u16;
    }
    bench.config_write(at + 2, &[0, 0x80]);
    let mut ring = bench.start();
    bench.write(common::QUEUE_MSIX_VECTOR, [1, 0]);
    bench.write(common::CONFIG_MSIX_VECTOR, [0, 0]);
    assert_eq!(bench.read::<2>(common::QUEUE_MSIX_VECTOR), [1, 0]);
    ring.add(&[Buffer::room(Rig::BUFFERS, 16)]);
    bench.write(NOTIFY as usize, [0, 0]);
    bench.turn();
    ring.publish(200);
    bench.write(NOTIFY as usize, [0, 0]);
    bench.turn();
    assert_eq!(*bench.messages.0.lock().unwrap(), [0x31, 0x30]);
    assert!(!bench.line.level());
    assert_eq!(bench.read::<1>(common::DEVICE_STATUS)[0] & 0x40, Status::NEEDS_RESET.bits());
    bench.write(common::QUEUE_MSIX_VECTOR, [2, 0]);
    assert_eq!(bench.read::<2>(common::QUEUE_MSIX_VECTOR), [0xFF, 0xFF], "there are two");
}

#[test]
fn the_window_in_configuration_space_leads_to_the_bar() {
    let bench = Bench::new();
    let window = bench.capability(CFG_PCI);
    let aim = |offset: u32, len: u32| {
        bench.config_write(window + 4, &[BAR]);
        bench.config_write(window + 8, &offset.to_le_bytes());
        bench.config_write(window + 12, &len.to_le_bytes());
    };
    aim(common::DEVICE_STATUS as u32, 1);
    bench.config_write(window + 16, &[3, 0, 0, 0]);
    assert_eq!(bench.read::<1>(common::DEVICE_STATUS), [3]);
    assert_eq!(bench.config(window + 16), 3);
    for (offset, len) in [(1, 2), (0, 3), (BAR_SIZE as u32, 4), (u32::MAX, 1), (0, u32::MAX)] {
        aim(offset, len);
        bench.config_write(window + 16, &[0; 4]);
        bench.config(window + 16);
    }
    assert_eq!(bench.read::<1>(common::DEVICE_STATUS), [3]);
}

#[test]
fn a_state_goes_into_another_device() {
    let mut bench = Bench::new();
    let mut ring = bench.start();
    ring.add(&[Buffer::room(Rig::BUFFERS, 16)]);
    bench.write(NOTIFY as usize, [0, 0]);
    bench.turn();
    let other = Bench::new();
    for page in 1..8 {
        let mut data = [0; 4096];
        bench.ram.read(page * 4096, &mut data).unwrap();
        poke(&other.ram, page * 4096, &data);
    }
    let mut device = bench.slot.lock();
    let state = device.snapshot().unwrap().save_value();
    let mut twin = other.slot.lock();
    let snapshot = twin.snapshot().unwrap();
    let own = snapshot.save_value();
    let mut bad = state.clone();
    *bad.pointer_mut("/core/queues/0/used").unwrap() = (1_u64 << 40).into();
    assert!(snapshot.restore_value(1, bad).is_err());
    assert_eq!(snapshot.save_value(), own);
    snapshot.restore_value(1, state.clone()).unwrap();
    assert_eq!(snapshot.save_value(), state);
    assert_eq!(other.line.take_edges(), 0);
}
