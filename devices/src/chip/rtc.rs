//! The real-time clock of a PC: an MC146818A behind ports 0x70 (index) and 0x71 (data), IRQ 8, and
//! the contents that firmware expects in its RAM.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use board::device::{Paused, Region, Tag};
use board::state::ErasedSnapshot;
use board::{Attach, Device, IrqLine, Snapshot, StateError, VmTime};
use serde::{Deserialize, Serialize};

use super::glue::{Deadline, Pin};
use super::mc146818::{CMOS_SIZE, Mc146818, Mc146818V1};

const TAG_INTERRUPT: Tag = Tag(0);

/// Memory sizes and CPU count as PC firmware reads them from CMOS RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmosLayout {
    /// Bytes of RAM from address 0 on.
    pub low_ram: u64,
    /// Bytes of RAM from 4 GiB on.
    pub high_ram: u64,
    /// CPUs that firmware is to wait for.
    pub cpus: u32,
}

impl CmosLayout {
    /// The bytes with their addresses: the AT's equipment and memory sizes (0x14 to 0x18, 0x30,
    /// 0x31), and what QEMU adds for its firmware: RAM above 16 MiB (0x34, 0x35) and above 4 GiB
    /// (0x5B to 0x5D) in units of 64 KiB, and the number of CPUs less one (0x5F).
    pub fn bytes(&self) -> Vec<(u8, u8)> {
        let word = |units: u64| u16::try_from(units).unwrap_or(u16::MAX).to_le_bytes();
        let [base_low, base_high] = word((self.low_ram >> 10).min(640));
        let [extended_low, extended_high] = word((self.low_ram >> 10).saturating_sub(1 << 10));
        let [above_16m_low, above_16m_high] = word((self.low_ram >> 16).saturating_sub(1 << 8));
        let high = (self.high_ram >> 16).min(0xFF_FFFF).to_le_bytes();
        let cpus = u8::try_from(self.cpus.saturating_sub(1)).unwrap_or(u8::MAX);
        // A coprocessor, a PS/2 mouse, a VGA, no floppy.
        let equipment = 0x06;
        vec![
            (0x14, equipment),
            (0x15, base_low),
            (0x16, base_high),
            (0x17, extended_low),
            (0x18, extended_high),
            (0x30, extended_low),
            (0x31, extended_high),
            (0x34, above_16m_low),
            (0x35, above_16m_high),
            (0x5B, high[0]),
            (0x5C, high[1]),
            (0x5D, high[2]),
            (0x5F, cpus),
        ]
    }
}

/// A moment of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixTime {
    /// Seconds since 1970-01-01 00:00, negative before.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// The clock.
pub struct Rtc {
    chip: Mc146818,
    /// Port 0x70: bit 7 masks NMI, the others are the index.
    index: u8,
    irq: Pin,
    interrupt: Deadline,
    /// For a clock that follows the host's: the microseconds that it is ahead of it.
    ahead_of_host: Option<i64>,
}

impl Rtc {
    /// A clock that shows `base` at VM time zero, as local time or UTC as the user wishes, and that
    /// has `cmos`, pairs of address and value, in its RAM.
    pub fn new(irq: IrqLine, base: UnixTime, cmos: &[(u8, u8)], attach: &Attach) -> Self {
        let mut chip = Mc146818::new(base.seconds, base.nanos);
        for &(index, value) in cmos {
            chip.write(index, value);
        }
        // The AT's checksum of 0x10 to 0x2D, high byte first.
        let sum: u16 = (0x10..=0x2D).map(|index| u16::from(chip.read(index))).sum();
        let [high, low] = sum.to_be_bytes();
        chip.write(0x2E, high);
        chip.write(0x2F, low);
        Self {
            chip,
            index: 0,
            irq: Pin::new(irq),
            interrupt: Deadline::new(attach, TAG_INTERRUPT),
            ahead_of_host: None,
        }
    }

    /// Lets the clock go on while the machine is stopped or lies in a snapshot: when it runs again,
    /// the clock is as far ahead of the host's as it was when it was paused.
    pub fn following_host(mut self) -> Self {
        self.ahead_of_host = Some(self.measure());
        self
    }

    /// How far the clock is ahead of the host's, in microseconds.
    fn measure(&mut self) -> i64 {
        self.chip.evaluate(self.interrupt.now());
        self.chip.unix_micros().saturating_sub(host_micros())
    }

    fn update(&mut self) {
        self.irq.set(self.chip.irq());
        self.interrupt.set(self.chip.deadline());
    }
}

impl Device for Rtc {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        self.chip.evaluate(self.interrupt.now());
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = match offset + i as u64 {
                1 => self.chip.read(self.index % CMOS_SIZE as u8),
                // The index cannot be read.
                _ => 0xFF,
            };
        }
        self.update();
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        self.chip.evaluate(self.interrupt.now());
        for (i, &byte) in data.iter().enumerate() {
            match offset + i as u64 {
                0 => self.index = byte,
                _ => self.chip.write(self.index % CMOS_SIZE as u8, byte),
            }
        }
        self.update();
    }

    fn event(&mut self, _tag: Tag, now: VmTime) {
        self.interrupt.fired();
        self.chip.evaluate(now);
        self.update();
    }

    fn reset(&mut self) {
        self.chip.evaluate(self.interrupt.now());
        self.chip.reset();
        self.index = 0;
        self.update();
    }

    fn pause(&mut self) -> Paused {
        if self.ahead_of_host.is_some() {
            self.ahead_of_host = Some(self.measure());
            self.update();
        }
        Paused::Done
    }

    fn resume(&mut self) {
        if let Some(ahead) = self.ahead_of_host {
            let behind = ahead.saturating_sub(self.measure());
            self.chip.shift(behind);
            self.update();
        }
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// Unix time of the host in microseconds.
fn host_micros() -> i64 {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    }
}

/// The saved state of the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcV1 {
    chip: Mc146818V1,
    index: u8,
    ahead_of_host: Option<i64>,
}

impl Snapshot for Rtc {
    const KIND: &'static str = Mc146818::KIND;
    const VERSION: u32 = 1;
    type State = RtcV1;

    fn save(&self) -> RtcV1 {
        let Self { chip, index, irq: _, interrupt: _, ahead_of_host } = self;
        RtcV1 { chip: chip.save(), index: *index, ahead_of_host: *ahead_of_host }
    }

    fn restore(&mut self, state: RtcV1) -> Result<(), StateError> {
        let RtcV1 { chip, index, ahead_of_host } = state;
        self.chip.restore(chip)?;
        self.index = index;
        self.ahead_of_host = ahead_of_host;
        self.irq.restore(self.chip.irq());
        self.interrupt.set(self.chip.deadline());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use board::irq::IrqProbe;

    use super::super::testing::Bench;
    use super::*;

    const R: Region = Region(0);

    fn rtc(cmos: &[(u8, u8)]) -> (Bench, Arc<IrqProbe>) {
        let (line, probe) = IrqLine::probe();
        let base = UnixTime { seconds: 1_795_392_000, nanos: 0 };
        (Bench::plug(|attach| Rtc::new(line, base, cmos, attach)), probe)
    }

    fn get(bench: &Bench, index: u8) -> u8 {
        bench.write(R, 0, index);
        bench.read(R, 1)
    }

    fn set(bench: &Bench, index: u8, value: u8) {
        bench.write(R, 0, index);
        bench.write(R, 1, value);
    }

    #[test]
    fn index_and_data() {
        let (bench, _) = rtc(&[]);
        assert_eq!([0x32, 9, 8, 7].map(|i| get(&bench, i)), [0x20, 0x26, 0x11, 0x23]);
        set(&bench, 0x80 | 0x50, 0x77);
        assert_eq!(get(&bench, 0x50), 0x77, "bit 7 masks NMI and is not part of the index");
        assert_eq!(bench.read(R, 0), 0xFF);
    }

    #[test]
    fn firmware_finds_memory_sizes_and_cpus() {
        let layout = CmosLayout { low_ram: 0xC000_0000, high_ram: 5 << 30, cpus: 4 };
        let (bench, _) = rtc(&layout.bytes());
        let word = |low, high| u16::from_le_bytes([get(&bench, low), get(&bench, high)]);
        assert_eq!((word(0x15, 0x16), word(0x17, 0x18), word(0x30, 0x31)), (640, 65_535, 65_535));
        assert_eq!(u64::from(word(0x34, 0x35)) << 16, 0xC000_0000 - (16 << 20));
        let high = [0x5B, 0x5C, 0x5D].map(|i| get(&bench, i));
        assert_eq!(
            u32::from_le_bytes([high[0], high[1], high[2], 0]),
            (layout.high_ram >> 16) as u32
        );
        assert_eq!(get(&bench, 0x5F), 3);
        let sum: u16 = (0x10..=0x2D).map(|i| u16::from(get(&bench, i))).sum();
        assert_eq!(word(0x2F, 0x2E), sum);

        let small = CmosLayout { low_ram: 8 << 20, high_ram: 0, cpus: 1 };
        let (bench, _) = rtc(&small.bytes());
        assert_eq!(
            [0x17, 0x18, 0x34, 0x35, 0x5B, 0x5F].map(|i| get(&bench, i)),
            [0, 0x1C, 0, 0, 0, 0]
        );
    }

    #[test]
    fn the_interrupt_line_stays_high_until_register_c_is_read() {
        let (mut bench, probe) = rtc(&[]);
        set(&bench, 0x0B, 0x42);
        for _ in 0..3 {
            bench.advance(Duration::from_millis(1));
            bench.deliver();
            assert_eq!((probe.level(), probe.take_edges()), (true, 1));
            assert_eq!(get(&bench, 0x0C) & 0xC0, 0xC0);
            assert!(!probe.level());
        }
    }

    #[test]
    fn reset_lowers_the_line_and_keeps_the_time() {
        let (bench, probe) = rtc(&[(0x40, 7)]);
        set(&bench, 0x0B, 0x12);
        bench.advance(Duration::from_secs(61));
        get(&bench, 0);
        assert!(probe.level());
        bench.slot.lock().reset();
        assert!(!probe.level());
        assert_eq!([0x00, 0x02, 0x40].map(|i| get(&bench, i)), [0x01, 0x01, 7]);
    }

    #[test]
    fn a_clock_that_follows_the_host_goes_on_while_the_machine_is_stopped() {
        let base = UnixTime { seconds: 1_795_392_000, nanos: 0 };
        let plug = |follows: bool| {
            Bench::plug(|attach| {
                let rtc = Rtc::new(IrqLine::unconnected(), base, &[], attach);
                if follows { rtc.following_host() } else { rtc }
            })
        };
        for (follows, second) in [(true, 0x05), (false, 0x00)] {
            let bench = plug(follows);
            bench.slot.lock().pause();
            // The snapshot was taken five seconds ago.
            let mut state = bench.slot.lock().snapshot().unwrap().save_value();
            if let Some(ahead) = state["ahead_of_host"].as_i64() {
                state["ahead_of_host"] = (ahead + 5_000_000).into();
            }
            let other = plug(!follows);
            other.slot.lock().snapshot().unwrap().restore_value(1, state).unwrap();
            assert_eq!(get(&other, 0), 0);
            other.slot.lock().resume();
            let shown = get(&other, 0);
            assert!((second..second + 2).contains(&shown), "{shown:#x}");
        }
    }

    #[test]
    fn a_restored_clock_makes_no_edge_and_goes_on() {
        let (bench, _) = rtc(&[(0x40, 7)]);
        set(&bench, 0x0B, 0x12);
        bench.advance(Duration::from_secs(5));
        bench.write(R, 0, 0x40);
        let (mut other, probe) = rtc(&[]);
        bench.copy_to(&other);
        assert_eq!((other.read(R, 1), probe.take_edges()), (7, 0));
        assert_eq!(get(&other, 0x0C), 0xD0);
        other.advance(Duration::from_secs(1));
        other.deliver();
        assert_eq!(probe.take_edges(), 1);
        assert_ne!(get(&other, 0), 0x05);
    }
}
