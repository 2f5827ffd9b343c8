//! The interval timer of a PC: an 82C54 and port 0x61, which holds the gate of counter 2.
//!
//! OUT of counter 0 is IRQ 0. A timer is armed for its rising edges only: a falling edge shows when
//! the guest looks at the chip, or just before the next rising one. Edges that come later than the
//! next one is due are delivered as one.
//!
//! Port 0x61 (IBM PC/AT Technical Reference, "System control port B"): bit 0 is the gate of counter
//! 2, bit 1 lets OUT 2 reach the speaker, bits 2 and 3 disable parity and channel checks; bit 4
//! toggles with each refresh request, bit 5 is OUT 2.

use board::device::{Region, Tag};
use board::state::ErasedSnapshot;
use board::{Attach, Device, IrqLine, Snapshot, StateError, VmTime};
use serde::{Deserialize, Serialize};

use super::glue::{Deadline, Pin};
use super::i8254::{CountersV1, I8254, PIT_HZ};

const TAG_RISE: Tag = Tag(0);

/// Bits of port 0x61 that are read back as written; bit 0 is the gate itself.
const KEPT: u8 = 0x0E;
const GATE2: u8 = 1 << 0;
const REFRESH: u8 = 1 << 4;
const OUT2: u8 = 1 << 5;

/// CLK pulses from one refresh request to the next, as counter 1 is programmed by every BIOS.
const REFRESH_PULSES: u64 = 18;

/// The timer.
pub struct Pit {
    chip: I8254,
    port61: u8,
    irq: Pin,
    rise: Deadline,
}

impl Pit {
    /// Ports 0x40 to 0x43.
    pub const COUNTERS: Region = Region(0);
    /// Port 0x61.
    pub const PORT61: Region = Region(1);

    /// A timer whose OUT 0 drives `irq`.
    pub fn new(irq: IrqLine, attach: &Attach) -> Self {
        Self {
            chip: I8254::new(),
            port61: 0,
            irq: Pin::new(irq),
            rise: Deadline::new(attach, TAG_RISE),
        }
    }

    fn update(&mut self) {
        if self.chip.take_rise() {
            self.irq.set(false);
            // It stays high even if OUT has fallen meanwhile, so that no edge is withdrawn.
            self.irq.set(true);
        } else {
            self.irq.set(self.chip.out(0));
        }
    }

    /// Brings the chip and its line up to the time that is returned.
    fn evaluate(&mut self) -> VmTime {
        let now = self.rise.now();
        self.chip.evaluate(now);
        self.update();
        now
    }
}

impl Device for Pit {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        let now = self.evaluate();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = if region == Self::PORT61 {
                let refresh = (now.ticks(PIT_HZ) / REFRESH_PULSES) & 1 != 0;
                self.port61
                    | if self.chip.gate2() { GATE2 } else { 0 }
                    | if refresh { REFRESH } else { 0 }
                    | if self.chip.out(2) { OUT2 } else { 0 }
            } else {
                self.chip.read(offset + i as u64)
            };
        }
        self.rise.set(self.chip.deadline());
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        self.evaluate();
        for (i, &byte) in data.iter().enumerate() {
            if region == Self::PORT61 {
                self.port61 = byte & KEPT;
                self.chip.set_gate2(byte & GATE2 != 0);
            } else {
                self.chip.write(offset + i as u64, byte);
            }
        }
        self.update();
        self.rise.set(self.chip.deadline());
    }

    fn event(&mut self, _tag: Tag, now: VmTime) {
        self.rise.fired();
        self.chip.evaluate(now);
        self.update();
        self.rise.set(self.chip.deadline());
    }

    fn reset(&mut self) {
        self.chip.reset(self.rise.now());
        self.port61 = 0;
        self.update();
        self.rise.set(None);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// The saved state of the timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitV1 {
    counters: CountersV1,
    port61: u8,
    /// The level of IRQ 0, which may lag behind OUT 0.
    irq: bool,
}

impl Snapshot for Pit {
    const KIND: &'static str = I8254::KIND;
    const VERSION: u32 = 1;
    type State = PitV1;

    fn save(&self) -> PitV1 {
        let Self { chip, port61, irq, rise: _ } = self;
        PitV1 { counters: chip.save(), port61: *port61, irq: irq.level() }
    }

    fn restore(&mut self, state: PitV1) -> Result<(), StateError> {
        let PitV1 { counters, port61, irq } = state;
        self.chip.restore(counters)?;
        self.port61 = port61 & KEPT;
        self.irq.restore(irq);
        self.rise.set(self.chip.deadline());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use board::irq::IrqProbe;

    use super::super::testing::Bench;
    use super::*;

    fn pit() -> (Bench, Arc<IrqProbe>) {
        let (line, probe) = IrqLine::probe();
        (Bench::plug(|attach| Pit::new(line, attach)), probe)
    }

    fn program(bench: &Bench, control: u8, count: u16) {
        bench.write(Pit::COUNTERS, 3, control);
        let counter = u64::from(control >> 6);
        for byte in count.to_le_bytes() {
            bench.write(Pit::COUNTERS, counter, byte);
        }
    }

    #[test]
    fn counter_0_interrupts_each_period() {
        for control in [0x34, 0x36] {
            let (mut bench, probe) = pit();
            program(&bench, control, 11_932);
            probe.take_edges();
            for _ in 0..3 {
                bench.advance(Duration::from_millis(11));
                bench.deliver();
                assert!(probe.take_edges() >= 1);
            }
        }
    }

    #[test]
    fn a_rise_that_is_seen_late_is_one_edge_and_not_withdrawn() {
        let (bench, probe) = pit();
        program(&bench, 0x36, 10_000);
        bench.read(Pit::COUNTERS, 0);
        probe.take_edges();
        // Three and three quarters of a period: OUT is low.
        bench.advance(Duration::from_nanos(37_500 * 1_000_000_000 / PIT_HZ));
        bench.read(Pit::COUNTERS, 0);
        assert_eq!((probe.take_edges(), probe.level()), (1, true));
        bench.read(Pit::COUNTERS, 0);
        assert_eq!((probe.take_edges(), probe.level()), (0, false));
    }

    #[test]
    fn port_61_gates_counter_2_and_shows_its_output() {
        let (bench, _) = pit();
        program(&bench, 0xB0, 1_193);
        bench.advance(Duration::from_millis(5));
        assert_eq!(bench.read(Pit::PORT61, 0) & !REFRESH, 0x00, "the gate holds the counter");
        bench.write(Pit::PORT61, 0, 0xFF);
        bench.advance(Duration::from_micros(900));
        assert_eq!(bench.read(Pit::PORT61, 0) & !REFRESH, 0x0F);
        bench.advance(Duration::from_micros(200));
        assert_eq!(bench.read(Pit::PORT61, 0) & !REFRESH, 0x2F);
    }

    #[test]
    fn the_refresh_bit_toggles_every_15_microseconds() {
        let (bench, _) = pit();
        let mut toggles = 0;
        let mut last = bench.read(Pit::PORT61, 0);
        for _ in 0..1_000 {
            bench.advance(Duration::from_micros(1));
            let value = bench.read(Pit::PORT61, 0);
            toggles += u32::from((value ^ last) & REFRESH != 0);
            last = value;
        }
        assert_eq!(toggles, 66);
    }

    #[test]
    fn reset_stops_everything() {
        let (mut bench, probe) = pit();
        program(&bench, 0x34, 1_000);
        bench.write(Pit::PORT61, 0, 3);
        bench.slot.lock().reset();
        probe.take_edges();
        bench.advance(Duration::from_secs(1));
        bench.deliver();
        assert_eq!((probe.take_edges(), bench.read(Pit::PORT61, 0) & !REFRESH), (0, 0));
    }

    #[test]
    fn a_restored_timer_makes_no_edge_and_goes_on() {
        let (bench, probe) = pit();
        bench.advance(Duration::from_secs(1));
        program(&bench, 0x34, 11_932);
        program(&bench, 0xB6, 1_000);
        bench.write(Pit::PORT61, 0, 3);
        bench.advance(Duration::from_millis(4));
        bench.read(Pit::COUNTERS, 0);
        assert!(probe.level());
        let (mut other, other_probe) = pit();
        bench.copy_to(&other);
        assert_eq!(other_probe.take_edges(), 0);
        assert_eq!(other.read(Pit::PORT61, 0), bench.read(Pit::PORT61, 0));
        other.advance(Duration::from_millis(10));
        other.deliver();
        assert!(other_probe.take_edges() >= 1);
    }
}
