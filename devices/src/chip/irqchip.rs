//! The interrupt controllers of a PC: both 8259As and the I/O APIC, behind one lock.
//!
//! Inputs are global system interrupts. GSI 0 to 15 are the ISA IRQs and drive a PIC and the I/O
//! APIC at once, IRQ 0 the I/O APIC's input 2 (ACPI 6.5, 5.2.12.5: an interrupt source override
//! says so in the MADT); GSI 16 to 23 drive the I/O APIC only. There is no GSI 2.
//!
//! Whatever changes a controller ends with the same two steps: the PICs' INTR is compared with what
//! the boot vCPU last heard, and the I/O APIC's messages are taken and sent. Both happen under the
//! lock, so that vCPUs hear of events in their order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use board::accel::ApicBus;
use board::irq::{IrqSink, Msi};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, Region};

use super::ioapic::{IoApic, IoApicV1, IoApicView, PINS};
use super::pic::{Chip, PicPair, PicPairV1, PicView};

/// What a change of INTR is told to. It may notify a vCPU and calls nothing else.
type OnIntr = Box<dyn Fn(bool) + Send + Sync>;

/// Both PICs and the I/O APIC.
pub struct Irqchip {
    controllers: Mutex<Controllers>,
    /// INTR as the boot vCPU last heard of it; written under the lock.
    intr: AtomicBool,
    on_intr: OnIntr,
    bus: Arc<dyn ApicBus>,
}

#[derive(Default)]
struct Controllers {
    pics: PicPair,
    ioapic: IoApic,
    /// What the bus was last told about each input.
    routes: [Option<Msi>; PINS],
    /// Rising edges of each GSI.
    counts: [u64; PINS],
}

impl Irqchip {
    /// Controllers after reset. Messages go to `bus`; `on_intr` hears each change of the PICs'
    /// INTR, with the controllers locked.
    pub fn new(bus: Arc<dyn ApicBus>, on_intr: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            controllers: Mutex::default(),
            intr: AtomicBool::new(false),
            on_intr: Box::new(on_intr),
            bus,
        })
    }

    /// Whether the PICs assert INTR. Takes no lock.
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }

    /// The boot vCPU's interrupt-acknowledge cycle: the vector, in service from now on. If the
    /// request is gone it is that of IRQ 7 or 15, spurious.
    pub fn intr_ack(&self) -> u8 {
        let mut controllers = self.lock();
        let vector = controllers.pics.acknowledge();
        self.update_intr(&controllers);
        vector
    }

    /// A local APIC broadcasts the end of the level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        let mut controllers = self.lock();
        controllers.ioapic.eoi(vector);
        self.update_routes(&mut controllers);
        self.send(&mut controllers);
    }

    /// What `info pic` shows: master, slave.
    pub fn pics(&self) -> [PicView; 2] {
        self.lock().pics.view()
    }

    /// What `info pic` shows of the I/O APIC.
    pub fn ioapic(&self) -> IoApicView {
        self.lock().ioapic.view()
    }

    /// What `info irq` shows: how often each GSI was asserted since the machine was created.
    pub fn counts(&self) -> [u64; PINS] {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Controllers> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_pics<T>(&self, access: impl FnOnce(&mut PicPair) -> T) -> T {
        let mut controllers = self.lock();
        let result = access(&mut controllers.pics);
        self.update_intr(&controllers);
        result
    }

    fn update_intr(&self, controllers: &Controllers) {
        let intr = controllers.pics.intr();
        if self.intr.swap(intr, Ordering::AcqRel) != intr {
            (self.on_intr)(intr);
        }
    }

    /// Routes come before messages: the end of a message is reported only where a route says so.
    fn update_routes(&self, controllers: &mut Controllers) {
        let Controllers { ioapic, routes, .. } = controllers;
        for (pin, old) in routes.iter_mut().enumerate() {
            let new = ioapic.level_route(pin);
            if *old != new {
                *old = new;
                self.bus.route_level(pin as u32, new);
            }
        }
    }

    fn send(&self, controllers: &mut Controllers) {
        while let Some(msi) = controllers.ioapic.next_message() {
            self.bus.send(msi);
        }
    }
}

impl IrqSink for Irqchip {
    fn set_irq(&self, gsi: u32, level: bool) {
        let pin = match gsi {
            0 => 2,
            1 | 3..=23 => gsi as usize,
            _ => return,
        };
        let mut controllers = self.lock();
        let rises = level && !controllers.ioapic.line(pin);
        controllers.counts[gsi as usize] += u64::from(rises);
        if gsi < 16 {
            controllers.pics.set_irq(gsi as u8, level);
            self.update_intr(&controllers);
        }
        controllers.ioapic.set_line(pin, level);
        self.send(&mut controllers);
    }
}

/// The PICs' ports, to be mapped with width [`board::Width::Byte`].
pub struct PicPorts(Arc<Irqchip>);

impl PicPorts {
    /// Ports 0x20 and 0x21.
    pub const MASTER: Region = Region(0);
    /// Ports 0xA0 and 0xA1.
    pub const SLAVE: Region = Region(1);
    /// Ports 0x4D0 and 0x4D1.
    pub const ELCR: Region = Region(2);

    /// The ports of `irqchip`'s PICs.
    pub fn new(irqchip: Arc<Irqchip>) -> Self {
        Self(irqchip)
    }
}

impl Device for PicPorts {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        let odd = offset & 1 != 0;
        data.fill(0xFF);
        data[0] = self.0.with_pics(|pics| match region {
            Self::MASTER => pics.read(Chip::Master, odd),
            Self::SLAVE => pics.read(Chip::Slave, odd),
            _ => pics.elcr(if odd { Chip::Slave } else { Chip::Master }),
        });
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        let odd = offset & 1 != 0;
        self.0.with_pics(|pics| match region {
            Self::MASTER => pics.write(Chip::Master, odd, data[0]),
            Self::SLAVE => pics.write(Chip::Slave, odd, data[0]),
            _ => pics.set_elcr(if odd { Chip::Slave } else { Chip::Master }, data[0]),
        });
    }

    fn reset(&mut self) {
        self.0.with_pics(PicPair::reset);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl Snapshot for PicPorts {
    const KIND: &'static str = PicPair::KIND;
    const VERSION: u32 = PicPair::VERSION;
    type State = PicPairV1;

    fn save(&self) -> PicPairV1 {
        let Self(irqchip) = self;
        irqchip.lock().pics.save()
    }

    fn restore(&mut self, state: PicPairV1) -> Result<(), StateError> {
        self.0.with_pics(|pics| pics.restore(state))
    }
}

/// The I/O APIC's registers: one region, 4 KiB at 0xFEC0_0000, to be mapped with width
/// [`board::Width::Qword`]. The registers repeat every 256 bytes. IOREGSEL takes any width, IOWIN
/// and EOI take 32 bits only.
pub struct IoApicMmio(Arc<Irqchip>);

impl IoApicMmio {
    /// The one region.
    pub const REGISTERS: Region = Region(0);

    /// The registers of `irqchip`'s I/O APIC.
    pub fn new(irqchip: Arc<Irqchip>) -> Self {
        Self(irqchip)
    }

    fn change<T>(&self, change: impl FnOnce(&mut IoApic) -> T) -> T {
        let mut controllers = self.0.lock();
        let result = change(&mut controllers.ioapic);
        self.0.update_routes(&mut controllers);
        self.0.send(&mut controllers);
        result
    }
}

impl Device for IoApicMmio {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        let offset = offset & 0xFF;
        data.fill(0);
        if offset == IoApic::IOREGSEL || data.len() == 4 {
            let value = self.0.lock().ioapic.read(offset).to_le_bytes();
            let len = data.len().min(value.len());
            data[..len].copy_from_slice(&value[..len]);
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let value = match (offset & 0xFF, data) {
            (_, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            (IoApic::IOREGSEL, &[select, ..]) => select.into(),
            _ => return,
        };
        self.change(|ioapic| ioapic.write(offset & 0xFF, value));
    }

    fn reset(&mut self) {
        self.change(IoApic::reset);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl Snapshot for IoApicMmio {
    const KIND: &'static str = IoApic::KIND;
    const VERSION: u32 = IoApic::VERSION;
    type State = IoApicV1;

    fn save(&self) -> IoApicV1 {
        let Self(irqchip) = self;
        irqchip.lock().ioapic.save()
    }

    fn restore(&mut self, state: IoApicV1) -> Result<(), StateError> {
        // Every message of a saved I/O APIC has been sent: none is due now.
        self.change(|ioapic| ioapic.restore(state))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use board::MsiSink;

    use super::super::testing::Random;
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Event {
        Sent(u32),
        Routed(u32, Option<u32>),
        Intr(bool),
    }
    use Event::{Intr, Routed, Sent};

    /// An APIC bus and a vCPU that write down what they hear.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<Event>>);

    impl Recorder {
        fn note(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
        fn take(&self) -> Vec<Event> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MsiSink for Recorder {
        fn send(&self, msi: Msi) {
            self.note(Sent(msi.data));
        }
    }

    impl ApicBus for Recorder {
        fn route_level(&self, pin: u32, level_msi: Option<Msi>) {
            self.note(Routed(pin, level_msi.map(|msi| msi.data)));
        }
    }

    struct Fixture {
        recorder: Arc<Recorder>,
        irqchip: Arc<Irqchip>,
        pic: PicPorts,
        ioapic: IoApicMmio,
    }

    fn fixture() -> Fixture {
        let recorder = Arc::new(Recorder::default());
        let vcpu: Weak<Recorder> = Arc::downgrade(&recorder);
        let irqchip = Irqchip::new(recorder.clone(), move |level| {
            vcpu.upgrade().unwrap().note(Intr(level));
        });
        let mut pic = PicPorts::new(irqchip.clone());
        for (region, base, icw3) in [(PicPorts::MASTER, 0x20, 4), (PicPorts::SLAVE, 0x28, 2)] {
            for (offset, value) in [(0, 0x11), (1, base), (1, icw3), (1, 1)] {
                pic.write(region, offset, &[value]);
            }
        }
        let ioapic = IoApicMmio::new(irqchip.clone());
        Fixture { recorder, irqchip, pic, ioapic }
    }

    impl Fixture {
        fn write_entry(&mut self, pin: u8, entry: u64) {
            for (half, value) in [(1, entry >> 32), (0, entry)] {
                self.ioapic.write(Region(0), 0x00, &[0x10 + pin * 2 + half]);
                self.ioapic.write(Region(0), 0x10, &(value as u32).to_le_bytes());
            }
        }
    }

    #[test]
    fn an_isa_irq_drives_the_pic_and_the_io_apic() {
        let mut f = fixture();
        f.write_entry(2, 0x30);
        f.write_entry(4, 0x34);
        f.irqchip.set_irq(0, true);
        assert_eq!(f.recorder.take(), [Intr(true), Sent(0x30)], "IRQ 0 is input 2");
        assert!(f.irqchip.intr());
        assert_eq!(f.irqchip.intr_ack(), 0x20);
        assert_eq!(f.recorder.take(), [Intr(false)]);
        assert!(!f.irqchip.intr());
        f.irqchip.set_irq(4, true);
        assert_eq!(f.recorder.take(), [Sent(0x34)], "IRQ 0 is in service, which holds off INTR");
        f.pic.write(PicPorts::MASTER, 0, &[0x20]);
        assert_eq!(f.recorder.take(), [Intr(true)]);
    }

    #[test]
    fn gsis_from_16_on_drive_the_io_apic_only() {
        let mut f = fixture();
        f.write_entry(16, 0x60);
        f.irqchip.set_irq(16, true);
        assert_eq!(f.recorder.take(), [Sent(0x60)]);
    }

    #[test]
    fn there_is_no_gsi_2_and_none_beyond_23() {
        let mut f = fixture();
        f.write_entry(2, 0x30);
        for gsi in [2, 24, 32, u32::MAX] {
            f.irqchip.set_irq(gsi, true);
        }
        assert_eq!(f.recorder.take(), []);
        assert_eq!(f.irqchip.counts(), [0; PINS]);
    }

    #[test]
    fn a_route_is_announced_before_its_message_and_withdrawn_with_the_mask() {
        let mut f = fixture();
        f.irqchip.set_irq(17, true);
        f.write_entry(17, 0x8061);
        assert_eq!(f.recorder.take(), [Routed(17, Some(0xC061)), Sent(0xC061)]);
        f.irqchip.eoi(0x61);
        assert_eq!(f.recorder.take(), [Sent(0xC061)], "the line is still high");
        f.write_entry(17, 0x1_8061);
        assert_eq!(f.recorder.take(), [], "its EOI is still to come");
        f.irqchip.eoi(0x61);
        assert_eq!(f.recorder.take(), [Routed(17, None)]);
        f.irqchip.set_irq(17, false);
        f.write_entry(17, 0x8062);
        assert_eq!(f.recorder.take(), [Routed(17, Some(0xC062))]);
        f.ioapic.reset();
        assert_eq!(f.recorder.take(), [Routed(17, None)]);
    }

    #[test]
    fn counts_are_of_rising_edges() {
        let f = fixture();
        for level in [true, true, false, true] {
            f.irqchip.set_irq(0, level);
            f.irqchip.set_irq(23, level);
        }
        let counts = f.irqchip.counts();
        assert_eq!((counts[0], counts[2], counts[23]), (2, 0, 2));
    }

    #[test]
    fn pic_registers_are_at_their_ports() {
        let mut f = fixture();
        f.pic.write(PicPorts::MASTER, 1, &[0xA5]);
        f.pic.write(PicPorts::SLAVE, 1, &[0x5A]);
        f.pic.write(PicPorts::ELCR, 0, &[0x20]);
        f.pic.write(PicPorts::ELCR, 1, &[0x0C]);
        let mut read = |region, offset| {
            let mut data = [0];
            f.pic.read(region, offset, &mut data);
            data[0]
        };
        assert_eq!((read(PicPorts::MASTER, 1), read(PicPorts::SLAVE, 1)), (0xA5, 0x5A));
        assert_eq!((read(PicPorts::ELCR, 0), read(PicPorts::ELCR, 1)), (0x20, 0x0C));
        let [master, slave] = f.irqchip.pics();
        assert_eq!((master.imr, slave.imr, master.irq_base), (0xA5, 0x5A, 0x20));
    }

    #[test]
    fn io_apic_accesses_of_odd_widths() {
        let mut f = fixture();
        f.ioapic.write(Region(0), 0x100, &[1, 0]);
        let mut data = [0xFF; 8];
        f.ioapic.read(Region(0), 0, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
        let mut version = [0; 4];
        f.ioapic.read(Region(0), 0x10, &mut version);
        assert_eq!(u32::from_le_bytes(version), 0x17_0020);
        f.ioapic.read(Region(0), 0x10, &mut version[..2]);
        assert_eq!(version[..2], [0, 0]);
        f.ioapic.write(Region(0), 0, &[0]);
        f.ioapic.write(Region(0), 0x10, &[0xFF; 8]);
        assert_eq!(f.irqchip.ioapic().id, 0);
    }

    #[test]
    fn a_restored_irqchip_has_its_levels_and_routes_and_sends_nothing() {
        let mut f = fixture();
        f.write_entry(4, 0x34);
        f.write_entry(17, 0x8061);
        f.irqchip.set_irq(4, true);
        f.irqchip.set_irq(17, true);
        let (pics, ioapic) = (f.pic.save_value(), f.ioapic.save_value());

        let mut copy = fixture();
        copy.pic.restore_value(1, pics).unwrap();
        copy.ioapic.restore_value(1, ioapic).unwrap();
        assert_eq!(copy.recorder.take(), [Intr(true), Routed(17, Some(0xC061))]);
        copy.irqchip.set_irq(4, true);
        copy.irqchip.set_irq(17, true);
        assert_eq!(copy.recorder.take(), []);
        assert_eq!(copy.irqchip.intr_ack(), 0x24);
        copy.recorder.take();
        copy.irqchip.eoi(0x61);
        assert_eq!(copy.recorder.take(), [Sent(0xC061)]);
    }

    #[test]
    fn a_reset_withdraws_intr() {
        let mut f = fixture();
        f.irqchip.set_irq(4, true);
        f.pic.reset();
        assert_eq!(f.recorder.take(), [Intr(true), Intr(false)]);
    }

    #[test]
    fn after_any_accesses_the_vcpu_knows_intr_and_no_message_waits() {
        let mut f = fixture();
        let mut random = Random::new(3);
        for _ in 0..50_000 {
            let bytes = random.next().to_le_bytes();
            let mut data = random.next().to_le_bytes();
            let len = 1 << random.below(4);
            let region = Region(random.below(4) as u16);
            match random.below(8) {
                0 => f.ioapic.write(region, random.below(0x1000), &bytes[..len]),
                1 => f.write_entry(random.below(30) as u8, random.next() & 0xFF00_0000_0000_FF3F),
                2 => f.ioapic.read(region, random.below(0x1000), &mut data[..len]),
                3 => f.pic.write(region, random.below(2), &bytes[..1]),
                4 => f.pic.read(region, random.below(2), &mut data[..1]),
                5 => f.irqchip.eoi(random.byte() & 0x3F),
                6 => drop(f.irqchip.intr_ack()),
                _ => f.irqchip.set_irq(random.below(26) as u32, random.below(2) == 1),
            }
            let heard = f.recorder.take();
            let last = heard.iter().rev().find_map(|event| match event {
                Intr(level) => Some(*level),
                _ => None,
            });
            let mut controllers = f.irqchip.lock();
            let intr = controllers.pics.intr();
            assert!(f.irqchip.intr() == intr && last.is_none_or(|last| last == intr));
            assert_eq!(controllers.ioapic.next_message(), None);
        }
    }
}
