//! ACPI fixed hardware: PM1 event and control blocks, PM timer, general-purpose event block 0.
//!
//! Source: ACPI 6.5, section 4.8. The layout is that of Intel's ICH9 (datasheet, 13.8.3) with a
//! smaller GPE0 block. What the FADT and the DSDT have to say to match:
//!
//! - The machine is in ACPI mode at all times: SCI_EN is always set and SMI_CMD is 0.
//! - The PM timer has 24 bits: TMR_VAL_EXT is clear. Its MSB toggles every 2.34 s, which sets
//!   TMR_STS; a host timer runs for that only while TMR_EN is set and TMR_STS is not.
//! - There is a power button in the fixed hardware, no sleep button and no RTC wake-up.
//! - `\_S5` has SLP_TYP 0. No other sleep state exists, and a request for one is ignored.
//!
//! The SCI is a level: it is asserted while any event that is enabled has its status bit set.

use std::sync::Arc;

use board::device::{Attach, Device, Region, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{IrqLine, SystemControl, SystemRequest, VmTime};
use serde::{Deserialize, Serialize};

use super::glue::{Deadline, Pin};

/// Frequency of the PM timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// Width of the PM timer.
const PM_TIMER_BITS: u32 = 24;

/// Ticks between two toggles of the PM timer's MSB.
const TOGGLE_TICKS: u64 = 1 << (PM_TIMER_BITS - 1);

/// Offsets of the register blocks in the one region, in bytes.
pub mod offset {
    /// PM1a_EVT_BLK: PM1 status, 2 bytes; PM1 enable, 2 bytes.
    pub const PM1_EVENT: u64 = 0x00;
    /// PM1a_CNT_BLK: PM1 control, 2 bytes.
    pub const PM1_CONTROL: u64 = 0x04;
    /// PM_TMR_BLK: 4 bytes.
    pub const PM_TIMER: u64 = 0x08;
    /// GPE0_BLK: status of events 0 to 15, 2 bytes; their enables, 2 bytes.
    pub const GPE0: u64 = 0x20;
    /// One beyond the last register.
    pub const END: u64 = 0x24;
}

/// Bits of PM1 status and PM1 enable (ACPI 6.5, tables 4.13 and 4.14).
mod pm1 {
    pub(super) const TMR: u16 = 1 << 0;
    pub(super) const GBL: u16 = 1 << 5;
    pub(super) const PWRBTN: u16 = 1 << 8;
    pub(super) const SLPBTN: u16 = 1 << 9;
    pub(super) const RTC: u16 = 1 << 10;
    /// What PM1 enable keeps.
    pub(super) const ALL: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
}

/// Bits of PM1 control (ACPI 6.5, table 4.15).
mod control {
    pub(super) const SCI_EN: u16 = 1 << 0;
    pub(super) const BM_RLD: u16 = 1 << 1;
    pub(super) const SLP_TYP: u16 = 7 << 10;
    pub(super) const SLP_EN: u16 = 1 << 13;
    /// What is kept. GBL_RLS and SLP_EN are commands and read 0.
    pub(super) const KEPT: u16 = BM_RLD | SLP_TYP;
}

/// The registers.
#[derive(Debug, Default)]
struct Registers {
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    gpe0_status: u16,
    gpe0_enable: u16,
    /// The tick at which the PM timer's MSB toggles next.
    next_toggle: u64,
}

/// The offset of the second half of an event block, its enables.
const ENABLE: u64 = 2;

impl Registers {
    fn new(now: VmTime) -> Self {
        Self { next_toggle: Self::toggle_after(now), ..Self::default() }
    }

    fn toggle_after(now: VmTime) -> u64 {
        (now.ticks(PM_TIMER_HZ) / TOGGLE_TICKS + 1) * TOGGLE_TICKS
    }

    /// Brings TMR_STS up to `now`.
    fn evaluate(&mut self, now: VmTime) {
        if now.ticks(PM_TIMER_HZ) >= self.next_toggle {
            self.pm1_status |= pm1::TMR;
            self.next_toggle = Self::toggle_after(now);
        }
    }

    fn sci(&self) -> bool {
        self.pm1_status & self.pm1_enable != 0 || self.gpe0_status & self.gpe0_enable != 0
    }

    /// When the PM timer will assert the SCI.
    fn deadline(&self) -> Option<VmTime> {
        let armed = self.pm1_enable & pm1::TMR != 0 && self.pm1_status & pm1::TMR == 0;
        armed.then(|| VmTime::at_tick(self.next_toggle, PM_TIMER_HZ))
    }

    fn timer(now: VmTime) -> u32 {
        (now.ticks(PM_TIMER_HZ) as u32) & ((1 << PM_TIMER_BITS) - 1)
    }

    /// Reads at `offset`, an access of any width. What is no register reads 0.
    fn read(&self, offset: u64, data: &mut [u8], now: VmTime) {
        let timer = Self::timer(now);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let word = match at & !1 {
                offset::PM1_EVENT => self.pm1_status,
                enable if enable == offset::PM1_EVENT + ENABLE => self.pm1_enable,
                offset::PM1_CONTROL => self.pm1_control | control::SCI_EN,
                offset::PM_TIMER => timer as u16,
                upper if upper == offset::PM_TIMER + 2 => (timer >> 16) as u16,
                offset::GPE0 => self.gpe0_status,
                enable if enable == offset::GPE0 + ENABLE => self.gpe0_enable,
                _ => 0,
            };
            *byte = word.to_le_bytes()[(at & 1) as usize];
        }
    }

    /// Writes at `offset`, an access of any width. Returns the SLP_TYP of a sleep command.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let mut sleep = None;
        for (&byte, at) in data.iter().zip(offset..) {
            let shift = 8 * (at & 1);
            let value = u16::from(byte) << shift;
            let merge = |old: u16, writable: u16| old & !(0xFF << shift) | value & writable;
            match at & !1 {
                offset::PM1_EVENT => self.pm1_status &= !value,
                enable if enable == offset::PM1_EVENT + ENABLE => {
                    self.pm1_enable = merge(self.pm1_enable, pm1::ALL);
                }
                offset::PM1_CONTROL => {
                    self.pm1_control = merge(self.pm1_control, control::KEPT);
                    if value & control::SLP_EN != 0 {
                        sleep = Some((value & control::SLP_TYP) >> 10);
                    }
                }
                offset::GPE0 => self.gpe0_status &= !value,
                enable if enable == offset::GPE0 + ENABLE => {
                    self.gpe0_enable = merge(self.gpe0_enable, 0xFFFF);
                }
                _ => {}
            }
        }
        sleep
    }
}

/// The ACPI PM block: one region, best mapped with width [`board::Width::Dword`].
pub struct AcpiPm {
    registers: Registers,
    deadline: Deadline,
    sci: Pin,
    system: Arc<dyn SystemControl>,
}

impl AcpiPm {
    /// The one region, [`offset::END`] bytes.
    pub const REGISTERS: Region = Region(0);

    const PM_TIMER: Tag = Tag(0);

    /// The event that presses the power button.
    pub const POWER_BUTTON: Tag = Tag(1);

    /// The event that sets the status bit of general-purpose event `number`, 0 to 15.
    pub const fn gpe(number: u8) -> Tag {
        Tag(0x10 | (number & 0xF) as u32)
    }

    /// A PM block whose interrupt is `sci` and which turns the machine off by `system`.
    pub fn new(attach: &Attach, sci: IrqLine, system: Arc<dyn SystemControl>) -> Self {
        let deadline = Deadline::new(attach, Self::PM_TIMER);
        let registers = Registers::new(deadline.now());
        Self { registers, deadline, sci: Pin::new(sci), system }
    }

    /// Presses and releases the power button. A guest that does not listen takes no notice.
    pub fn press_power_button(&mut self) {
        self.registers.pm1_status |= pm1::PWRBTN;
        self.update(self.deadline.now());
    }

    /// Brings the status up to `now`, and the SCI and the host timer up to the status.
    fn update(&mut self, now: VmTime) {
        self.registers.evaluate(now);
        self.sci.set(self.registers.sci());
        self.deadline.set(self.registers.deadline());
    }
}

impl Device for AcpiPm {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        let now = self.deadline.now();
        self.update(now);
        self.registers.read(offset, data, now);
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let now = self.deadline.now();
        self.registers.evaluate(now);
        if self.registers.write(offset, data) == Some(0) {
            self.system.request(SystemRequest::PowerOff);
        }
        self.update(now);
    }

    fn event(&mut self, tag: Tag, now: VmTime) {
        match tag {
            Self::PM_TIMER => self.deadline.fired(),
            Self::POWER_BUTTON => self.press_power_button(),
            Tag(gpe) => self.registers.gpe0_status |= 1 << (gpe & 0xF),
        }
        self.update(now);
    }

    fn reset(&mut self) {
        let now = self.deadline.now();
        self.registers = Registers::new(now);
        self.update(now);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// A saved [`AcpiPm`].
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AcpiPmV1 {
    pub pm1_status: u16,
    pub pm1_enable: u16,
    pub pm1_control: u16,
    pub gpe0_status: u16,
    pub gpe0_enable: u16,
    /// PM timer ticks since the VM clock's zero.
    pub next_toggle: u64,
}

impl Snapshot for AcpiPm {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u32 = 1;
    type State = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        let Self { registers, deadline: _, sci: _, system: _ } = self;
        let Registers {
            pm1_status,
            pm1_enable,
            pm1_control,
            gpe0_status,
            gpe0_enable,
            next_toggle,
        } = *registers;
        AcpiPmV1 { pm1_status, pm1_enable, pm1_control, gpe0_status, gpe0_enable, next_toggle }
    }

    fn restore(&mut self, state: AcpiPmV1) -> Result<(), StateError> {
        let AcpiPmV1 { pm1_status, pm1_enable, pm1_control, gpe0_status, gpe0_enable, next_toggle } =
            state;
        if pm1_status & !(pm1::TMR | pm1::PWRBTN) != 0
            || pm1_enable & !pm1::ALL != 0
            || pm1_control & !control::KEPT != 0
        {
            let cause = "a reserved bit of a PM1 register is set".into();
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        self.registers = Registers {
            pm1_status,
            pm1_enable,
            pm1_control,
            gpe0_status,
            gpe0_enable,
            next_toggle,
        };
        self.sci.restore(self.registers.sci());
        self.deadline.set(self.registers.deadline());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use board::irq::IrqProbe;

    use super::super::testing::{Bench, Random, Requests};
    use super::*;

    const R: Region = AcpiPm::REGISTERS;

    fn pm() -> (Bench, Arc<IrqProbe>, Arc<Requests>) {
        let (sci, probe) = IrqLine::probe();
        let requests = Arc::new(Requests::default());
        let system = requests.clone();
        let bench = Bench::plug(|attach| AcpiPm::new(attach, sci, system));
        (bench, probe, requests)
    }

    fn read<const N: usize>(bench: &Bench, offset: u64) -> [u8; N] {
        let mut data = [0xAA; N];
        bench.slot.lock().read(R, offset, &mut data);
        data
    }

    fn word(bench: &Bench, offset: u64) -> u16 {
        u16::from_le_bytes(read(bench, offset))
    }

    fn dword(bench: &Bench, offset: u64) -> u32 {
        u32::from_le_bytes(read(bench, offset))
    }

    fn set_word(bench: &Bench, offset: u64, value: u16) {
        bench.slot.lock().write(R, offset, &value.to_le_bytes());
    }

    fn event(bench: &Bench, tag: Tag) {
        let now = bench.clock.now();
        bench.slot.lock().event(tag, now);
    }

    #[test]
    fn slp_en_with_slp_typ_0_powers_off() {
        let (bench, _, requests) = pm();
        set_word(&bench, 4, 0x2000);
        assert_eq!(requests.take(), [SystemRequest::PowerOff]);
        bench.write(R, 5, 0x20);
        assert_eq!(requests.take(), [SystemRequest::PowerOff]);
        set_word(&bench, 4, 0x0000);
        set_word(&bench, 4, 0x3C00);
        set_word(&bench, 2, 0x2000);
        assert_eq!(requests.take(), []);
        assert_eq!(word(&bench, 4), 0x1C01, "SLP_EN reads 0, SCI_EN reads 1");
        set_word(&bench, 4, 0);
        assert_eq!(word(&bench, 4), 1);
    }

    #[test]
    fn the_power_button_asserts_the_sci_while_enabled_and_not_acknowledged() {
        let (bench, sci, _) = pm();
        event(&bench, AcpiPm::POWER_BUTTON);
        assert_eq!((word(&bench, 0), sci.level()), (0x100, false));
        set_word(&bench, 2, 0x100);
        assert!(sci.level());
        set_word(&bench, 0, 0x001);
        assert!(sci.level(), "another bit acknowledged");
        set_word(&bench, 0, 0x100);
        assert_eq!((word(&bench, 0), sci.level()), (0, false));
        event(&bench, AcpiPm::POWER_BUTTON);
        assert!(sci.level());
        bench.slot.lock().reset();
        assert_eq!((word(&bench, 0), word(&bench, 2), sci.level()), (0, 0, false));
    }

    #[test]
    fn the_power_button_is_reached_by_a_notifier() {
        let (sci, probe) = IrqLine::probe();
        let mut button = None;
        let mut bench = Bench::plug(|attach| {
            button = Some(attach.notifier(AcpiPm::POWER_BUTTON));
            AcpiPm::new(attach, sci, Arc::new(Requests::default()))
        });
        set_word(&bench, 2, 0x100);
        button.unwrap().notify();
        bench.deliver();
        assert!(probe.level());
    }

    #[test]
    fn general_purpose_events() {
        let (bench, sci, _) = pm();
        event(&bench, AcpiPm::gpe(9));
        assert_eq!((word(&bench, 0x20), sci.level()), (1 << 9, false));
        set_word(&bench, 0x22, 1 << 9);
        assert_eq!((word(&bench, 0x22), sci.level()), (1 << 9, true));
        bench.write(R, 0x21, 1 << 1);
        assert_eq!((word(&bench, 0x20), sci.level()), (0, false));
    }

    #[test]
    fn the_pm_timer_counts_in_24_bits() {
        let (bench, _, _) = pm();
        assert_eq!(dword(&bench, 8), 0);
        bench.advance(Duration::from_secs(1));
        assert_eq!(dword(&bench, 8), 3_579_545);
        assert_eq!(read::<2>(&bench, 9), [(3_579_545_u32 >> 8) as u8, (3_579_545_u32 >> 16) as u8]);
        bench.advance(Duration::from_secs(4));
        assert_eq!(dword(&bench, 8), (5 * 3_579_545) % (1 << 24));
        bench.slot.lock().write(R, 8, &[0; 4]);
        assert_ne!(dword(&bench, 8), 0, "it is read-only");
    }

    #[test]
    fn tmr_sts_is_set_each_time_the_msb_toggles() {
        let (bench, sci, _) = pm();
        let toggle = VmTime::at_tick(TOGGLE_TICKS, PM_TIMER_HZ);
        bench.clock.set(VmTime(toggle.0 - 1));
        assert_eq!(word(&bench, 0), 0);
        bench.clock.set(toggle);
        assert_eq!((word(&bench, 0), sci.level()), (1, false));
        set_word(&bench, 0, 1);
        set_word(&bench, 2, 1);
        assert_eq!((word(&bench, 0), sci.level()), (0, false));
        bench.clock.set(VmTime::at_tick(5 * TOGGLE_TICKS + 1, PM_TIMER_HZ));
        assert_eq!((word(&bench, 0), sci.level()), (1, true));
        set_word(&bench, 0, 1);
        assert_eq!((word(&bench, 0), sci.level()), (0, false));
    }

    #[test]
    fn the_pm_timer_interrupts_by_itself_only_if_enabled() {
        for enable in [0, 1] {
            let (mut bench, sci, _) = pm();
            set_word(&bench, 2, enable);
            bench.clock.set(VmTime::at_tick(TOGGLE_TICKS, PM_TIMER_HZ));
            bench.deliver();
            assert_eq!(sci.level(), enable == 1);
        }
    }

    #[test]
    fn what_is_no_register_reads_zero() {
        let (bench, _, _) = pm();
        for offset in [6, 0x0C, 0x10, 0x1E, 0x24] {
            set_word(&bench, offset, 0xFFFF);
            assert_eq!(word(&bench, offset), 0);
        }
        set_word(&bench, 2, 0xFFFF);
        assert_eq!(dword(&bench, 0), 0x0721_0000);
        assert_eq!(read::<8>(&bench, 0), [0, 0, 0x21, 0x07, 1, 0, 0, 0]);
    }

    #[test]
    fn a_restored_block_makes_no_edge_and_goes_on() {
        let (bench, _, _) = pm();
        set_word(&bench, 2, 0x101);
        event(&bench, AcpiPm::POWER_BUTTON);
        bench.advance(Duration::from_secs(1));
        let (mut other, sci, _) = pm();
        bench.copy_to(&other);
        assert_eq!(sci.take_edges(), 0);
        set_word(&other, 0, 0x100);
        other.clock.set(VmTime::at_tick(TOGGLE_TICKS, PM_TIMER_HZ));
        other.deliver();
        assert!(sci.level());
    }

    #[test]
    fn reserved_bits_in_a_state_are_refused() {
        let (bench, _, _) = pm();
        let mut device = bench.slot.lock();
        let snapshot = device.snapshot().unwrap();
        let mut state = snapshot.save_value();
        state["pm1_enable"] = 2.into();
        assert!(snapshot.restore_value(1, state).is_err());
    }

    #[test]
    fn the_sci_follows_from_the_registers_after_any_accesses() {
        let (bench, sci, _) = pm();
        let mut random = Random::new(5);
        for _ in 0..20_000 {
            let offset = random.below(offset::END + 8);
            let data = random.next().to_le_bytes();
            let len = 1 << random.below(4);
            match random.below(4) {
                0 => event(&bench, Tag(random.below(40) as u32)),
                1 => bench.advance(Duration::from_millis(random.below(1000))),
                2 => bench.slot.lock().read(R, offset, &mut [0; 8][..len]),
                _ => bench.slot.lock().write(R, offset, &data[..len]),
            }
            let pm1 = word(&bench, 0) & word(&bench, 2);
            let gpe0 = word(&bench, 0x20) & word(&bench, 0x22);
            assert_eq!(sci.level(), pm1 != 0 || gpe0 != 0);
        }
    }
}
