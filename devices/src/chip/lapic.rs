//! The local APIC of the software CPU: registers, mailbox and timer.
//!
//! Timer registers follow "evaluate, then arm": an access brings them up to the VM clock and sets
//! the main loop's timer for the next expiry; that timer only has the vCPU look here.

use std::sync::Arc;

use board::vcpu::LapicState;
use board::vcpu::msr::IA32_TSC_DEADLINE;
use board::{ApicEvent, CpuIo, LocalApic, Timer, VmTime};

use super::apic_bus::{LocalApics, Mailbox};
use super::lapic_registers::{Effect, Registers, reg};

/// The MSR of the first x2APIC register.
const X2APIC: u32 = 0x800;

/// A local APIC, on its vCPU's thread.
pub struct Lapic {
    registers: Registers,
    mailbox: Arc<Mailbox>,
    bus: Arc<LocalApics>,
    timer: Timer,
    /// What `timer` is set to.
    armed: Option<VmTime>,
}

impl Lapic {
    pub(super) fn new(id: u32, mailbox: Arc<Mailbox>, bus: Arc<LocalApics>, timer: Timer) -> Self {
        let mut this = Self { registers: Registers::new(id), mailbox, bus, timer, armed: None };
        this.settle();
        this
    }

    /// Takes what has arrived since the last call.
    fn collect(&mut self) {
        let Self { registers, mailbox, .. } = self;
        if mailbox.take(|vector, level| registers.receive(vector, level)) {
            self.armed = None;
            self.registers.evaluate(self.timer.now());
            self.arm();
        }
    }

    fn arm(&mut self) {
        let next = self.registers.next_event();
        if self.armed != next {
            self.armed = next;
            self.timer.set(next);
        }
    }

    /// After a change of whatever kind.
    fn settle(&mut self) {
        self.registers.evaluate(self.timer.now());
        self.arm();
        self.mailbox.publish(self.registers.address());
    }

    fn perform(&mut self, number: u32, effect: Effect, io: &dyn CpuIo) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.bus.deliver(&message),
            Effect::Eoi(vector) => io.eoi(vector),
        }
        // These are frequent and change nothing that others know of.
        if !matches!(number, reg::TPR | reg::EOI | reg::ICR | reg::ICR2 | reg::SELF_IPI) {
            self.settle();
        }
    }

    /// The time for an access to register `number`, up to which the timer has been brought if that
    /// matters there.
    fn time_for(&mut self, number: u32) -> VmTime {
        if !matches!(number, reg::LVT_TIMER | reg::INITIAL_COUNT..=reg::DIVIDE) {
            return VmTime::ZERO;
        }
        let now = self.timer.now();
        self.registers.evaluate(now);
        now
    }
}

impl LocalApic for Lapic {
    fn base(&self) -> u64 {
        self.registers.base()
    }

    fn set_base(&mut self, value: u64) -> bool {
        self.collect();
        let legal = self.registers.set_base(value);
        self.settle();
        legal
    }

    fn read(&mut self, offset: u32) -> u32 {
        self.collect();
        let number = offset >> 4;
        let now = self.time_for(number);
        self.registers.read(number, now)
    }

    fn write(&mut self, offset: u32, value: u32, io: &dyn CpuIo) {
        self.collect();
        let number = offset >> 4;
        let now = self.time_for(number);
        let effect = self.registers.write(number, value, now);
        self.perform(number, effect, io);
    }

    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        self.collect();
        if msr == IA32_TSC_DEADLINE {
            self.registers.evaluate(self.timer.now());
            return Some(self.registers.deadline().map_or(0, VmTime::nanos));
        }
        let number = msr.checked_sub(X2APIC).filter(|_| self.registers.x2apic())?;
        let now = self.time_for(number);
        self.registers.read_msr(number, now)
    }

    fn write_msr(&mut self, msr: u32, value: u64, io: &dyn CpuIo) -> bool {
        self.collect();
        if msr == IA32_TSC_DEADLINE {
            self.registers.set_deadline((value != 0).then_some(VmTime(value)));
            self.registers.evaluate(self.timer.now());
            self.arm();
            return true;
        }
        let Some(number) = msr.checked_sub(X2APIC).filter(|_| self.registers.x2apic()) else {
            return false;
        };
        let now = self.time_for(number);
        let Some(effect) = self.registers.write_msr(number, value, now) else { return false };
        self.perform(number, effect, io);
        true
    }

    fn tpr(&self) -> u8 {
        self.registers.tpr()
    }

    fn set_tpr(&mut self, value: u8) {
        self.registers.set_tpr(value);
    }

    fn pending(&mut self) -> Option<u8> {
        self.collect();
        self.registers.pending()
    }

    fn accept(&mut self) -> Option<u8> {
        self.collect();
        self.registers.accept()
    }

    fn passes_intr(&self) -> bool {
        self.registers.passes_intr()
    }

    fn take_event(&mut self) -> Option<ApicEvent> {
        self.mailbox.take_event()
    }

    fn init(&mut self) {
        self.mailbox.clear(false);
        self.registers.reset();
        self.settle();
    }

    fn save(&mut self) -> LapicState {
        self.collect();
        let now = self.timer.now();
        self.registers.evaluate(now);
        self.arm();
        self.registers.save(now)
    }

    fn restore(&mut self, base: u64, state: &LapicState) {
        self.mailbox.clear(true);
        self.registers.restore(base, state, self.timer.now());
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use board::accel::Kicker;
    use board::{Clock, EventLoop, Msi, MsiSink};

    use super::super::testing::Random;
    use super::*;

    const BASE: u64 = 0xFEE0_0800;
    const EXTD: u64 = 1 << 10;

    /// A machine that hears EOI broadcasts.
    #[derive(Default)]
    struct Machine(RefCell<Vec<u8>>);

    impl CpuIo for Machine {
        fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
        fn pio_write(&self, _port: u16, _data: &[u8]) {}
        fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
        fn mmio_write(&self, _address: u64, _data: &[u8]) {}
        fn intr(&self) -> bool {
            false
        }
        fn intr_ack(&self) -> u8 {
            0xFF
        }
        fn eoi(&self, vector: u8) {
            self.0.borrow_mut().push(vector);
        }
        fn wants_exit(&self) -> bool {
            false
        }
    }

    struct Fixture {
        clock: Clock,
        events: EventLoop,
        machine: Machine,
        bus: Arc<LocalApics>,
        apics: Vec<Lapic>,
        kicks: Vec<Arc<AtomicU32>>,
    }

    /// `count` local APICs, enabled by software.
    fn fixture(count: u32) -> Fixture {
        let clock = Clock::stopped();
        let events = EventLoop::new(clock.clone()).unwrap();
        let bus = LocalApics::new();
        let kicks: Vec<_> = (0..count).map(|_| Arc::new(AtomicU32::new(0))).collect();
        let machine = Machine::default();
        let make = |(id, kicks): (u32, &Arc<AtomicU32>)| {
            let kicks = kicks.clone();
            let kicker = Kicker::new(move || {
                kicks.fetch_add(1, Ordering::SeqCst);
            });
            let mut apic = bus.add(id, kicker, &events.handle());
            apic.write(0xF0, 0x1FF, &machine);
            apic
        };
        let apics = (0..).zip(&kicks).map(make).collect();
        Fixture { clock, events, machine, bus, apics, kicks }
    }

    impl Fixture {
        fn read(&mut self, offset: u32) -> u32 {
            self.apics[0].read(offset)
        }
        fn write(&mut self, offset: u32, value: u32) {
            self.apics[0].write(offset, value, &self.machine);
        }
        fn write_msr(&mut self, msr: u32, value: u64) -> bool {
            self.apics[0].write_msr(msr, value, &self.machine)
        }
        fn x2apic(&mut self, id: usize) {
            let base = self.apics[id].base();
            assert!(self.apics[id].set_base(base | EXTD));
        }
        fn msi(&self, address: u64, data: u32) {
            self.bus.send(Msi { address: 0xFEE0_0000 | address, data });
        }
        /// What is pending at each APIC; it is accepted and ended.
        fn take(&mut self) -> Vec<Option<u8>> {
            let machine = &self.machine;
            let take = |apic: &mut Lapic| {
                let vector = apic.accept();
                if apic.registers.x2apic() {
                    apic.write_msr(0x80B, 0, machine);
                } else {
                    apic.write(0xB0, 0, machine);
                }
                vector
            };
            self.apics.iter_mut().map(take).collect()
        }
        fn advance(&self, nanos: u64) {
            self.clock.set(self.clock.now() + Duration::from_nanos(nanos));
        }
        /// Has the main loop deliver timers that are due.
        fn deliver(&mut self) {
            self.clock.start();
            self.events.handle().clock_changed();
            self.events.turn(Some(Duration::from_millis(20))).unwrap();
            self.clock.stop();
            self.events.handle().clock_changed();
        }
    }

    #[test]
    fn after_reset() {
        let mut f = fixture(2);
        let apic = &mut f.apics[1];
        apic.init();
        let expected = [
            (0x20, 1 << 24),
            (0x30, 0x0106_0014),
            (0x80, 0),
            (0xA0, 0),
            (0xD0, 0),
            (0xE0, u32::MAX),
            (0xF0, 0xFF),
            (0x280, 0),
            (0x2F0, 0x1_0000),
            (0x320, 0x1_0000),
            (0x350, 0x1_0000),
            (0x370, 0x1_0000),
            (0x380, 0),
            (0x390, 0),
        ];
        for (offset, value) in expected {
            assert_eq!(apic.read(offset), value, "{offset:#x}");
        }
        assert_eq!((apic.base(), f.apics[0].base()), (BASE, BASE | 0x100));
        assert!(f.apics[0].passes_intr(), "LINT0 of the boot processor connects the PICs");
        assert!(!f.apics[1].passes_intr());
    }

    #[test]
    fn priorities_decide_what_is_pending() {
        let mut f = fixture(1);
        for vector in [0x31, 0x52, 0x58] {
            f.msi(0, vector);
        }
        assert_eq!(f.apics[0].pending(), Some(0x58));
        f.apics[0].set_tpr(0x50);
        assert_eq!(f.apics[0].pending(), None, "its class is not above the TPR's");
        assert_eq!(f.read(0xA0), 0x50);
        f.apics[0].set_tpr(0x4F);
        assert_eq!(f.apics[0].accept(), Some(0x58));
        assert_eq!((f.read(0xA0), f.read(0x120), f.read(0x220)), (0x50, 1 << 0x18, 1 << 0x12));
        assert_eq!(f.apics[0].pending(), None, "0x52 is of the class in service");
        f.msi(0, 0x60);
        assert_eq!(f.apics[0].accept(), Some(0x60), "a higher class nests");
        f.write(0xB0, 0);
        assert_eq!(f.read(0xA0), 0x50);
        f.write(0xB0, 0);
        assert_eq!(f.read(0xA0), 0x4F);
        assert_eq!(f.apics[0].accept(), Some(0x52));
        f.write(0xB0, 0);
        assert_eq!(f.apics[0].pending(), None, "0x31 is below the TPR");
        assert_eq!(f.read(0x90), 0x4F, "arbitration priority");
        f.write(0x80, 0);
        assert_eq!(f.read(0x90), 0x30);
        assert_eq!(f.apics[0].accept(), Some(0x31));
    }

    #[test]
    fn a_disabled_apic_accepts_events_but_no_interrupts() {
        let mut f = fixture(1);
        f.msi(0, 0x40);
        f.write(0x350, 0x700);
        f.write(0xF0, 0xFF);
        assert_eq!(f.read(0x350), 0x1_0700, "software-disabled: all entries are masked");
        f.write(0x350, 0x700);
        assert_eq!(f.read(0x350), 0x1_0700, "and stay so");
        assert_eq!(f.apics[0].accept(), Some(0x40), "what had been requested stays");
        f.msi(0, 0x50);
        assert_eq!(f.apics[0].pending(), None);
        f.msi(0, 0x400);
        assert_eq!(f.apics[0].take_event(), Some(ApicEvent::Nmi));
        assert!(f.apics[0].set_base(0xFEE0_0100));
        assert!(f.apics[0].passes_intr());
        f.msi(0, 0x400);
        assert_eq!(f.apics[0].take_event(), None, "globally disabled: not on the bus");
    }

    #[test]
    fn physical_destinations() {
        let mut f = fixture(3);
        f.msi(1 << 12, 0x41);
        assert_eq!(f.take(), [None, Some(0x41), None]);
        assert_eq!(f.kicks[1].load(Ordering::SeqCst), 1);
        f.msi(7 << 12, 0x42);
        assert_eq!(f.take(), [None; 3]);
        f.msi(0xFF << 12, 0x43);
        assert_eq!(f.take(), [Some(0x43); 3]);
        f.bus.send(Msi { address: 0xFED0_0000, data: 0x44 });
        assert_eq!(f.take(), [None; 3], "no address of local APICs");
    }

    #[test]
    fn logical_destinations_flat_and_in_clusters() {
        let mut f = fixture(3);
        for (i, apic) in f.apics.iter_mut().enumerate() {
            apic.write(0xD0, 1 << (24 + i), &f.machine);
        }
        f.msi(0b101 << 12 | 4, 0x41);
        assert_eq!(f.take(), [Some(0x41), None, Some(0x41)]);
        for (i, apic) in f.apics.iter_mut().enumerate() {
            apic.write(0xE0, 0, &f.machine);
            assert_eq!(apic.read(0xE0), 0x0FFF_FFFF);
            let cluster = i as u32 / 2;
            apic.write(0xD0, (cluster << 4 | 1 << (i % 2)) << 24, &f.machine);
        }
        f.msi(0x03 << 12 | 4, 0x42);
        assert_eq!(f.take(), [Some(0x42), Some(0x42), None]);
        f.msi(0x11 << 12 | 4, 0x43);
        assert_eq!(f.take(), [None, None, Some(0x43)]);
        f.msi(0xF1 << 12 | 4, 0x44);
        assert_eq!(f.take(), [Some(0x44), None, Some(0x44)], "all clusters");
        for i in 0..3 {
            f.x2apic(i);
            assert_eq!(f.apics[i].read_msr(0x80D), Some(1 << i));
        }
        f.msi(0x06 << 12 | 4, 0x45);
        assert_eq!(f.take(), [None, Some(0x45), Some(0x45)]);
    }

    #[test]
    fn one_of_the_destinations_takes_a_lowest_priority_message() {
        let mut f = fixture(4);
        f.apics[2].write(0xF0, 0xFF, &f.machine);
        for vector in 0x40..0x50 {
            f.msi(0xFF << 12 | 4, 0x100 | vector);
            let taken = f.take();
            assert_eq!(taken.iter().flatten().count(), 1, "{taken:?}");
            assert_eq!(taken[2], None, "it is disabled");
        }
        f.msi(0xFF << 12 | 1 << 3, 0x51);
        assert_eq!(f.take().iter().flatten().count(), 1, "the redirection hint says the same");
    }

    #[test]
    fn interprocessor_interrupts() {
        let mut f = fixture(3);
        f.write(0x310, 2 << 24);
        f.write(0x300, 0x4061);
        assert_eq!(f.take(), [None, None, Some(0x61)]);
        assert_eq!((f.read(0x310), f.read(0x300)), (2 << 24, 0x4061));
        for (shorthand, expected) in [
            (1, [Some(0x62), None, None]),
            (2, [Some(0x62), Some(0x62), Some(0x62)]),
            (3, [None, Some(0x62), Some(0x62)]),
        ] {
            f.write(0x300, shorthand << 18 | 0x4062);
            assert_eq!(f.take(), expected);
        }
        f.write(0x310, 0xFF00_0000);
        f.write(0x300, 0x4063);
        assert_eq!(f.take(), [Some(0x63); 3]);
        f.write(0x300, 3 << 18 | 0x400);
        assert_eq!(f.apics[0].take_event(), None);
        assert_eq!(f.apics[1].take_event(), Some(ApicEvent::Nmi));
        f.write(0x300, 3 << 18 | 0x200);
        assert_eq!(f.apics[1].take_event(), None, "SMIs are ignored");
    }

    #[test]
    fn starting_a_processor() {
        let mut f = fixture(2);
        f.msi(1 << 12, 0x51);
        f.write(0x310, 1 << 24);
        f.write(0x300, 0xC500);
        f.write(0x300, 0x8500);
        f.write(0x300, 0x4609);
        assert_eq!(f.kicks[1].load(Ordering::SeqCst), 3, "the de-assert is no message");
        let apic = &mut f.apics[1];
        assert_eq!(apic.take_event(), Some(ApicEvent::Init));
        apic.init();
        assert_eq!(apic.take_event(), Some(ApicEvent::Startup(9)));
        assert_eq!(apic.take_event(), None);
        assert_eq!((apic.pending(), apic.read(0xF0)), (None, 0xFF));
        f.write(0x300, 0x4609);
        f.write(0x300, 0xC500);
        assert_eq!(f.apics[1].take_event(), Some(ApicEvent::Init));
        assert_eq!(f.apics[1].take_event(), None, "an INIT ends what it finds");
        f.msi(1 << 12, 0x609);
        assert_eq!(f.apics[1].take_event(), None, "no device starts a processor");
    }

    #[test]
    fn the_end_of_a_level_interrupt_is_broadcast() {
        let mut f = fixture(1);
        f.msi(0, 0xC071);
        f.msi(0, 0x81);
        assert_eq!(f.apics[0].accept(), Some(0x81));
        assert_eq!((f.read(0x1B0), f.read(0x1C0)), (1 << 0x11, 0));
        f.write(0xB0, 0);
        assert!(f.machine.0.take().is_empty());
        assert_eq!(f.take(), [Some(0x71)]);
        assert_eq!(f.machine.0.take(), [0x71]);
        f.write(0xB0, 0);
        assert!(f.machine.0.take().is_empty(), "nothing was in service");
        f.write(0xF0, 0x11FF);
        f.msi(0, 0xC071);
        assert_eq!(f.take(), [Some(0x71)]);
        assert!(f.machine.0.take().is_empty(), "the SVR suppresses it");
        f.write(0xF0, 0x1FF);
        f.msi(0, 0x71);
        assert_eq!(f.take(), [Some(0x71)]);
        assert!(f.machine.0.take().is_empty(), "an edge this time");
    }

    #[test]
    fn errors_are_latched_by_a_write_and_interrupt() {
        let mut f = fixture(1);
        f.write(0x370, 0xE0);
        f.msi(0, 0x0F);
        assert_eq!(f.apics[0].pending(), Some(0xE0));
        f.write(0x300, 0x4005);
        f.write(0x300, 1 << 18 | 0x4005);
        assert_eq!(f.read(0x400), 0);
        f.write(0x0, 1);
        assert_eq!(f.read(0x280), 0);
        f.write(0x280, 0);
        assert_eq!(f.read(0x280), 0xE0);
        f.write(0x280, 0);
        assert_eq!(f.read(0x280), 0);
        f.write(0x20, u32::MAX);
        f.write(0x280, 0);
        assert_eq!((f.read(0x20), f.read(0x280)), (0, 0), "writing a fixed register is no error");
    }

    #[test]
    fn the_timer_interrupts_once_or_again_and_again() {
        let mut f = fixture(1);
        f.write(0x3E0, 0xB);
        f.write(0x320, 0x40);
        f.write(0x380, 1_000_000);
        f.advance(999_999);
        assert_eq!((f.read(0x390), f.apics[0].pending()), (1, None));
        f.advance(1);
        assert_eq!((f.read(0x390), f.take()[0]), (0, Some(0x40)));
        f.write(0x320, 0x2_0041);
        f.write(0x380, 1_000_000);
        for _ in 0..3 {
            f.advance(1_000_000);
            assert_eq!((f.read(0x390), f.take()[0]), (1_000_000, Some(0x41)));
        }
        f.write(0x320, 0x3_0041);
        f.advance(5_000_000);
        assert_eq!((f.read(0x390), f.apics[0].pending()), (1_000_000, None), "masked, it runs");
        f.write(0x320, 0x0F);
        f.write(0x380, 1);
        f.advance(1);
        f.read(0x390);
        f.write(0x280, 0);
        assert_eq!((f.read(0x280), f.apics[0].pending()), (0x40, None), "an illegal vector");
    }

    #[test]
    fn the_main_loop_has_the_processor_look_at_its_timer() {
        let mut f = fixture(1);
        f.write(0x3E0, 0xB);
        f.write(0x320, 0x40);
        f.write(0x380, 1_000_000);
        f.deliver();
        assert_eq!(f.kicks[0].load(Ordering::SeqCst), 1);
        assert_eq!(f.take(), [Some(0x40)]);
        f.write(0x320, 0x1_0040);
        f.write(0x380, 1_000_000);
        assert_eq!(f.apics[0].armed, None, "a masked timer wakes nobody");
    }

    #[test]
    fn the_tsc_deadline() {
        let mut f = fixture(1);
        assert!(f.write_msr(IA32_TSC_DEADLINE, 1));
        assert_eq!(f.apics[0].read_msr(IA32_TSC_DEADLINE), Some(0), "another mode");
        f.write(0x320, 0x4_0042);
        assert!(f.write_msr(IA32_TSC_DEADLINE, 1000));
        f.advance(999);
        assert_eq!(f.apics[0].read_msr(IA32_TSC_DEADLINE), Some(1000));
        f.advance(1);
        assert_eq!(f.apics[0].read_msr(IA32_TSC_DEADLINE), Some(0));
        assert_eq!(f.take(), [Some(0x42)]);
        f.write_msr(IA32_TSC_DEADLINE, 5);
        assert_eq!(f.take(), [Some(0x42)], "the past is due at once");
        f.write_msr(IA32_TSC_DEADLINE, u64::MAX);
        f.write_msr(IA32_TSC_DEADLINE, 0);
        assert_eq!(f.apics[0].armed, None);
    }

    #[test]
    fn modes_change_only_as_the_manual_says() {
        let mut f = fixture(1);
        let apic = &mut f.apics[0];
        for (base, legal) in [
            (0xFEE0_0400, false), // Never x2APIC without the APIC.
            (BASE | EXTD, true),
            (BASE, false), // Not straight back.
            (BASE | EXTD | 1, false),
            (BASE | EXTD | 1 << 52, false),
            (0xFEE0_0000, true),
            (BASE | EXTD, false), // Nor straight there.
            (BASE, true),
            (0xFED0_0800, true),
        ] {
            let before = apic.base();
            assert_eq!(apic.set_base(base), legal, "{base:#x}");
            assert_eq!(apic.base(), if legal { base } else { before });
        }
        assert_eq!(apic.read(0xF0), 0xFF, "disabling it was a reset");
    }

    #[test]
    fn x2apic_registers_and_their_faults() {
        let mut f = fixture(3);
        assert_eq!(f.apics[2].read_msr(0x802), None, "not in xAPIC mode");
        for i in 0..3 {
            f.x2apic(i);
        }
        assert_eq!(f.apics[2].read_msr(0x802), Some(2));
        assert!(f.write_msr(0x830, 1 << 32 | 0x4061));
        assert_eq!(f.take(), [None, Some(0x61), None]);
        assert!(f.write_msr(0x830, 0b110 << 32 | 0x4862));
        assert_eq!(f.take(), [None, Some(0x62), Some(0x62)]);
        assert!(f.write_msr(0x830, 0xFFFF_FFFF_0000_4063));
        assert_eq!(f.take(), [Some(0x63); 3]);
        assert!(f.write_msr(0x83F, 0x64));
        assert_eq!(f.take(), [Some(0x64), None, None]);
        for (msr, value) in [
            (0x802, 0), // Read-only.
            (0x803, 0),
            (0x80D, 0),
            (0x80E, 0), // Not in this mode.
            (0x831, 0),
            (0x80B, 1), // Must be zero.
            (0x828, 1),
            (0x808, 0x100), // Reserved bits.
            (0x80F, 1 << 10),
            (0x832, 1 << 20),
            (0x83F, 0x100),
            (0x830, 1 << 20),
            (0x838, 1 << 32),
            (0x840, 0), // Nothing there.
            (0x8FF, 0),
        ] {
            assert!(!f.write_msr(msr, value), "{msr:#x}");
        }
        for msr in [0x80B, 0x80E, 0x831, 0x83F, 0x809, 0x80C, 0x800, 0x840, 0x8FF] {
            assert_eq!(f.apics[0].read_msr(msr), None, "{msr:#x}");
        }
        let base = f.apics[1].base();
        f.apics[1].init();
        assert_eq!((f.apics[1].base(), f.apics[1].read_msr(0x80D)), (base, Some(2)));
    }

    #[test]
    fn a_saved_apic_goes_on_in_another_one() {
        let mut f = fixture(2);
        f.write(0x3E0, 0xB);
        f.write(0x320, 0x2_0040);
        f.write(0x380, 3_000_000);
        f.advance(1_000_000);
        f.msi(0, 0xC071);
        f.apics[0].accept();
        f.msi(0, 0x90);
        f.msi(0, 0x3);
        let base = f.apics[0].base();
        let state = f.apics[0].save();
        assert_eq!(state.registers[0x24], 1 << 0x10, "what was in the mailbox is in the IRR");

        let mut copy = fixture(1);
        copy.clock.set(VmTime(77));
        copy.x2apic(0);
        copy.msi(0, 0xA0);
        copy.apics[0].restore(base, &state);
        assert_eq!(copy.apics[0].save(), state);
        assert_eq!(copy.apics[0].base(), base, "even where a guest could not go");
        assert_eq!(copy.take(), [Some(0x90)]);
        copy.write(0xB0, 0);
        assert_eq!(copy.machine.0.take(), [0x71]);
        copy.write(0x280, 0);
        assert_eq!(copy.read(0x280), 0x40);
        copy.advance(2_000_000);
        assert_eq!((copy.read(0x390), copy.take()[0]), (3_000_000, Some(0x40)));

        f.x2apic(1);
        let (base, state) = (f.apics[1].base(), f.apics[1].save());
        assert_eq!(state.registers[2], 1 << 24, "as KVM shows it");
        f.apics[1].restore(base, &state);
        assert_eq!(f.apics[1].read_msr(0x802), Some(1));
    }

    #[test]
    fn nothing_a_guest_or_a_device_does_breaks_it() {
        let mut f = fixture(3);
        let mut random = Random::new(11);
        for _ in 0..200_000 {
            let i = random.below(3) as usize;
            let (apic, machine) = (&mut f.apics[i], &f.machine);
            let value = random.next();
            // The page is there in xAPIC mode only.
            let page = !apic.registers.x2apic();
            match random.below(12) {
                0 | 1 => drop(apic.read((value & 0xFF0) as u32)),
                2 | 3 if page => apic.write((value & 0xFF0) as u32, (value >> 32) as u32, machine),
                4 => drop(apic.read_msr(0x800 + (value & 0xFF) as u32)),
                5 => drop(apic.write_msr(0x800 + (value & 0x3F) as u32, random.next(), machine)),
                6 => {
                    if page {
                        apic.write(0xF0, 0x1FF, machine);
                    }
                    f.bus.send(Msi { address: 0xFEE0_0000 | value & 0xF_FFFF, data: value as u32 });
                }
                7 => {
                    let bits = [0, 0x800, 0xC00][random.below(3) as usize];
                    apic.set_base(0xFEE0_0000 | bits);
                }
                8 => drop(apic.write_msr(IA32_TSC_DEADLINE, value >> random.below(64), machine)),
                9 => {
                    let pending = apic.pending();
                    assert_eq!(apic.accept(), pending);
                    assert!(apic.pending() <= pending, "what is in service holds off its class");
                }
                10 => {
                    apic.take_event();
                    apic.set_tpr(value as u8);
                }
                _ => {
                    let (base, state) = (apic.base(), apic.save());
                    apic.restore(base, &state);
                    assert_eq!(apic.save(), state);
                }
            }
            f.machine.0.borrow_mut().clear();
            if random.below(4) == 0 {
                f.advance(random.next() >> 40);
            }
        }
    }
}
