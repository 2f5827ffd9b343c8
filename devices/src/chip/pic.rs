//! Intel 8259A programmable interrupt controller, and the pair of them that a PC has.
//!
//! Source: Intel 8259A datasheet (order 231468-003), "Programming the 8259A"; edge/level control
//! registers and wiring of the pair: Intel 82371 (PIIX), section 2.5.
//!
//! Three places where a PC, or a machine made of software, differs from the lone chip:
//!
//! - The request of an edge-triggered input stays latched until it is acknowledged, also when the
//!   line falls before that. The chip itself would withdraw it, but here a vCPU may lose its host
//!   CPU for longer than a pulse lasts, and must not lose the interrupt.
//! - The cascade is wired: ICW3 and the buffered-mode bits of ICW4 are taken and change nothing,
//!   and IR2 of the master always follows the level of the slave's INT.
//! - An x86 CPU fetches one byte, so that the vector is that of 8086 mode whatever µPM says.

use board::state::{Snapshot, StateError};
use serde::{Deserialize, Serialize};

/// The master's input that the slave's INT is wired to.
const CASCADE: u8 = 2;

/// The level of a spurious interrupt: what was requested is gone when the CPU asks for it.
const SPURIOUS: u8 = 7;

/// One 8259A.
#[derive(Debug, Default)]
pub struct Pic {
    /// Inputs that a slave drives. They are level-triggered at all times.
    slaves: u8,
    /// Inputs whose trigger mode ELCR can change.
    elcr_mask: u8,
    /// Levels of IR0 to IR7.
    lines: u8,
    /// Edges that have not been acknowledged.
    latched: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    /// Bits 3 to 7 of the vector.
    irq_base: u8,
    /// The IR with the highest priority; the others follow in cyclic order.
    highest: u8,
    /// Which ICW the next write to A0 = 1 is, 2 to 4; 0 after initialisation.
    next_icw: u8,
    /// ICW1.IC4: an ICW4 is to come.
    needs_icw4: bool,
    /// ICW1.SNGL: no slaves, no ICW3.
    single: bool,
    /// ICW1.LTIM: all inputs are level-triggered.
    level_triggered: bool,
    /// ICW4.AEOI.
    auto_eoi: bool,
    /// ICW4.SFNM.
    special_fully_nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    /// OCW3.RIS: A0 = 0 reads ISR, else IRR.
    read_isr: bool,
    /// OCW3.P: the next read acknowledges.
    poll: bool,
}

/// What `info pic` shows of one chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicView {
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// The IR with the highest priority.
    pub hprio: u8,
    /// The vector of IR0.
    pub irq_base: u8,
    /// What A0 = 0 reads: false IRR, true ISR.
    pub rr_sel: bool,
    /// Level-triggered inputs.
    pub elcr: u8,
    /// Special fully nested mode.
    pub fnm: bool,
}

impl Pic {
    fn new(slaves: u8, elcr_mask: u8) -> Self {
        Self { slaves, elcr_mask, ..Self::default() }
    }

    /// Power-on: registers are cleared; the lines are what they are.
    fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.slaves, self.elcr_mask) };
    }

    fn set_line(&mut self, ir: u8, level: bool) {
        let bit = 1 << ir;
        if level {
            self.latched |= bit & !self.lines & !self.level_inputs();
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    fn level_inputs(&self) -> u8 {
        if self.level_triggered { 0xFF } else { self.elcr | self.slaves }
    }

    fn irr(&self) -> u8 {
        self.latched | self.lines & self.level_inputs()
    }

    /// The IR of highest priority among `irs`.
    fn first(&self, irs: u8) -> Option<u8> {
        let rank = irs.rotate_right(self.highest.into()).trailing_zeros() as u8;
        (rank < 8).then_some((self.highest + rank) & 7)
    }

    /// 0 for the highest priority, 7 for the lowest.
    fn rank(&self, ir: u8) -> u8 {
        ir.wrapping_sub(self.highest) & 7
    }

    /// In-service bits that hold off others and that a non-specific EOI ends. In special mask mode
    /// those masked by IMR are none of them.
    fn serving(&self) -> u8 {
        if self.special_mask { self.isr & !self.imr } else { self.isr }
    }

    /// The request that INT stands for.
    fn request(&self) -> Option<u8> {
        let ir = self.first(self.irr() & !self.imr)?;
        let Some(serving) = self.first(self.serving()) else {
            return Some(ir);
        };
        // A slave that is in service may have a more urgent request than the one served.
        let nested = self.special_fully_nested && ir == serving && self.slaves & 1 << ir != 0;
        (nested || self.rank(ir) < self.rank(serving)).then_some(ir)
    }

    /// The INTA cycle; `None` is a spurious interrupt, which is not in service.
    fn acknowledge(&mut self) -> Option<u8> {
        let ir = self.request()?;
        self.latched &= !(1 << ir);
        if !self.auto_eoi {
            self.isr |= 1 << ir;
        } else if self.rotate_on_auto_eoi {
            self.make_lowest(ir);
        }
        Some(ir)
    }

    fn vector(&self, ir: Option<u8>) -> u8 {
        self.irq_base | ir.unwrap_or(SPURIOUS)
    }

    fn make_lowest(&mut self, ir: u8) {
        self.highest = (ir + 1) & 7;
    }

    fn read(&mut self, a0: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.acknowledge().map_or(0, |ir| 0x80 | ir);
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }

    fn write(&mut self, a0: bool, value: u8) {
        match (a0, self.next_icw) {
            (false, _) if value & 0x10 != 0 => self.icw1(value),
            (false, _) if value & 0x08 != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, 2) => {
                self.irq_base = value & 0xF8;
                self.next_icw = match (self.single, self.needs_icw4) {
                    (false, _) => 3,
                    (true, true) => 4,
                    (true, false) => 0,
                };
            }
            (true, 3) => self.next_icw = if self.needs_icw4 { 4 } else { 0 },
            (true, 4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.next_icw = 0;
            }
            (true, _) => self.imr = value,
        }
    }

    /// Starts the initialisation sequence. After it an edge-triggered input has to rise anew.
    fn icw1(&mut self, value: u8) {
        *self = Self {
            elcr: self.elcr,
            irq_base: self.irq_base,
            lines: self.lines,
            next_icw: 2,
            needs_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            level_triggered: value & 0x08 != 0,
            ..Self::new(self.slaves, self.elcr_mask)
        };
    }

    /// End of interrupt and rotation.
    fn ocw2(&mut self, value: u8) {
        const ROTATE: u8 = 0x80;
        const SPECIFIC: u8 = 0x40;
        const EOI: u8 = 0x20;
        let level = value & 7;
        match value & (ROTATE | SPECIFIC | EOI) {
            0 => self.rotate_on_auto_eoi = false,
            ROTATE => self.rotate_on_auto_eoi = true,
            SPECIFIC => {}
            command if command == ROTATE | SPECIFIC => self.make_lowest(level),
            command => {
                let ended =
                    if command & SPECIFIC != 0 { Some(level) } else { self.first(self.serving()) };
                if let Some(ir) = ended {
                    self.isr &= !(1 << ir);
                    if command & ROTATE != 0 {
                        self.make_lowest(ir);
                    }
                }
            }
        }
    }

    /// Special mask mode, poll command, choice of the register to read.
    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }

    fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
        self.latched &= !self.level_inputs();
    }

    fn view(&self) -> PicView {
        PicView {
            irr: self.irr(),
            imr: self.imr,
            isr: self.isr,
            hprio: self.highest,
            irq_base: self.irq_base,
            rr_sel: self.read_isr,
            elcr: self.elcr,
            fnm: self.special_fully_nested,
        }
    }

    fn save(&self) -> PicV1 {
        let Self {
            slaves: _,
            elcr_mask: _,
            lines,
            latched,
            imr,
            isr,
            elcr,
            irq_base,
            highest,
            next_icw,
            needs_icw4,
            single,
            level_triggered,
            auto_eoi,
            special_fully_nested,
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        } = *self;
        PicV1 {
            lines,
            latched,
            imr,
            isr,
            elcr,
            irq_base,
            highest,
            next_icw,
            needs_icw4,
            single,
            level_triggered,
            auto_eoi,
            special_fully_nested,
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        }
    }

    /// This chip's wiring with `state` in its registers.
    fn restored(&self, state: PicV1) -> Result<Self, StateError> {
        let damaged = |cause: String| StateError::Damaged { kind: PicPair::KIND, cause };
        if state.highest > 7 {
            return Err(damaged(format!("highest is {}, not 0 to 7", state.highest)));
        }
        if !matches!(state.next_icw, 0 | 2..=4) {
            return Err(damaged(format!("next_icw is {}, not 0 or 2 to 4", state.next_icw)));
        }
        if state.irq_base & 7 != 0 {
            return Err(damaged(format!("irq_base is {}, no multiple of 8", state.irq_base)));
        }
        if state.elcr & !self.elcr_mask != 0 {
            return Err(damaged(format!(
                "elcr is {:#x}, beyond {:#x}",
                state.elcr, self.elcr_mask
            )));
        }
        Ok(Self {
            slaves: self.slaves,
            elcr_mask: self.elcr_mask,
            lines: state.lines,
            latched: state.latched,
            imr: state.imr,
            isr: state.isr,
            elcr: state.elcr,
            irq_base: state.irq_base,
            highest: state.highest,
            next_icw: state.next_icw,
            needs_icw4: state.needs_icw4,
            single: state.single,
            level_triggered: state.level_triggered,
            auto_eoi: state.auto_eoi,
            special_fully_nested: state.special_fully_nested,
            rotate_on_auto_eoi: state.rotate_on_auto_eoi,
            special_mask: state.special_mask,
            read_isr: state.read_isr,
            poll: state.poll,
        })
    }
}

/// One chip of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// IRQ 0 to 7, ports 0x20, 0x21 and 0x4D0.
    Master,
    /// IRQ 8 to 15, ports 0xA0, 0xA1 and 0x4D1.
    Slave,
}

/// Both 8259As of a PC, the slave's INT on IR2 of the master.
#[derive(Debug)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// The pair after power-on, all lines low.
    pub fn new() -> Self {
        // IRQ 0, 1, 2, 8 and 13 are edge-triggered on every PC.
        Self { master: Pic::new(1 << CASCADE, 0xF8), slave: Pic::new(0, 0xDE) }
    }

    /// Power-on: registers are cleared; the lines are what they are.
    pub fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
        self.cascade();
    }

    /// Sets the line of `irq`, 0 to 15. There is no line 2: the cascade is there.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, level),
            8..=15 => {
                self.slave.set_line(irq - 8, level);
                self.cascade();
            }
            _ => {}
        }
    }

    /// The master's INT: the CPU's INTR.
    pub fn intr(&self) -> bool {
        self.master.request().is_some()
    }

    /// The CPU's acknowledge cycle: the vector, which is in service from now on.
    pub fn acknowledge(&mut self) -> u8 {
        match self.master.acknowledge() {
            Some(CASCADE) if !self.master.single => {
                let ir = self.slave.acknowledge();
                self.cascade();
                self.slave.vector(ir)
            }
            ir => self.master.vector(ir),
        }
    }

    /// Reads a chip's port; `a0` is the port's lowest address bit.
    pub fn read(&mut self, chip: Chip, a0: bool) -> u8 {
        let value = self.chip(chip).read(a0);
        self.cascade();
        value
    }

    /// Writes a chip's port; `a0` is the port's lowest address bit.
    pub fn write(&mut self, chip: Chip, a0: bool, value: u8) {
        self.chip(chip).write(a0, value);
        self.cascade();
    }

    /// Reads a chip's edge/level control register: a set bit is a level-triggered input.
    pub fn elcr(&self, chip: Chip) -> u8 {
        match chip {
            Chip::Master => self.master.elcr,
            Chip::Slave => self.slave.elcr,
        }
    }

    /// Writes a chip's edge/level control register.
    pub fn set_elcr(&mut self, chip: Chip, value: u8) {
        self.chip(chip).set_elcr(value);
        self.cascade();
    }

    /// What `info pic` shows of the master and the slave.
    pub fn view(&self) -> [PicView; 2] {
        [self.master.view(), self.slave.view()]
    }

    fn chip(&mut self, chip: Chip) -> &mut Pic {
        match chip {
            Chip::Master => &mut self.master,
            Chip::Slave => &mut self.slave,
        }
    }

    fn cascade(&mut self) {
        self.master.set_line(CASCADE, self.slave.request().is_some());
    }
}

/// A saved [`Pic`].
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PicV1 {
    pub lines: u8,
    pub latched: u8,
    pub imr: u8,
    pub isr: u8,
    pub elcr: u8,
    pub irq_base: u8,
    pub highest: u8,
    pub next_icw: u8,
    pub needs_icw4: bool,
    pub single: bool,
    pub level_triggered: bool,
    pub auto_eoi: bool,
    pub special_fully_nested: bool,
    pub rotate_on_auto_eoi: bool,
    pub special_mask: bool,
    pub read_isr: bool,
    pub poll: bool,
}

/// A saved [`PicPair`].
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PicPairV1 {
    pub master: PicV1,
    pub slave: PicV1,
}

impl Snapshot for PicPair {
    const KIND: &'static str = "i8259";
    const VERSION: u32 = 1;
    type State = PicPairV1;

    fn save(&self) -> PicPairV1 {
        let Self { master, slave } = self;
        PicPairV1 { master: master.save(), slave: slave.save() }
    }

    fn restore(&mut self, state: PicPairV1) -> Result<(), StateError> {
        let PicPairV1 { master, slave } = state;
        let master = self.master.restored(master)?;
        let slave = self.slave.restored(slave)?;
        *self = Self { master, slave };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Chip::{Master, Slave};
    use super::*;

    const NON_SPECIFIC_EOI: u8 = 0x20;

    /// A pair initialised as every PC's firmware does it: bases 0x08 and 0x70.
    fn pair() -> PicPair {
        pair_with(0x11, 0x01)
    }

    fn pair_with(icw1: u8, icw4: u8) -> PicPair {
        let mut pics = PicPair::new();
        for (chip, base, icw3) in [(Master, 0x08, 0x04), (Slave, 0x70, 0x02)] {
            pics.write(chip, false, icw1);
            pics.write(chip, true, base);
            if icw1 & 0x02 == 0 {
                pics.write(chip, true, icw3);
            }
            if icw1 & 0x01 != 0 {
                pics.write(chip, true, icw4);
            }
        }
        pics
    }

    fn pulse(pics: &mut PicPair, irq: u8) {
        pics.set_irq(irq, true);
        pics.set_irq(irq, false);
    }

    fn eoi(pics: &mut PicPair, chip: Chip) {
        pics.write(chip, false, NON_SPECIFIC_EOI);
    }

    fn irr(pics: &mut PicPair, chip: Chip) -> u8 {
        pics.write(chip, false, 0x0A);
        pics.read(chip, false)
    }

    fn isr(pics: &mut PicPair, chip: Chip) -> u8 {
        pics.write(chip, false, 0x0B);
        pics.read(chip, false)
    }

    #[test]
    fn an_edge_is_delivered_once() {
        let mut pics = pair();
        pics.set_irq(4, true);
        assert!(pics.intr());
        assert_eq!(irr(&mut pics, Master), 0x10);
        assert_eq!(pics.acknowledge(), 0x0C);
        assert!(!pics.intr());
        assert_eq!((irr(&mut pics, Master), isr(&mut pics, Master)), (0, 0x10));
        eoi(&mut pics, Master);
        assert_eq!(isr(&mut pics, Master), 0);
        pics.set_irq(4, true);
        assert!(!pics.intr(), "a line that stays high is no edge");
        pics.set_irq(4, false);
        pics.set_irq(4, true);
        assert!(pics.intr());
    }

    #[test]
    fn an_edge_outlives_its_pulse() {
        let mut pics = pair();
        pulse(&mut pics, 0);
        assert!(pics.intr());
        assert_eq!(pics.acknowledge(), 0x08);
        assert!(!pics.intr());
    }

    #[test]
    fn a_level_is_delivered_as_long_as_it_is_high() {
        let mut pics = pair();
        pics.set_elcr(Master, 0xFF);
        pics.set_elcr(Slave, 0xFF);
        assert_eq!((pics.elcr(Master), pics.elcr(Slave)), (0xF8, 0xDE));
        pics.set_irq(5, true);
        assert_eq!(pics.acknowledge(), 0x0D);
        assert!(!pics.intr());
        eoi(&mut pics, Master);
        assert!(pics.intr());
        pics.set_irq(5, false);
        assert!(!pics.intr());
    }

    #[test]
    fn ltim_makes_every_input_level_triggered() {
        let mut pics = pair_with(0x19, 0x01);
        pulse(&mut pics, 0);
        assert!(!pics.intr());
        pics.set_irq(1, true);
        assert_eq!(pics.acknowledge(), 0x09);
        eoi(&mut pics, Master);
        assert!(pics.intr());
    }

    #[test]
    fn a_switch_to_level_mode_forgets_the_edge() {
        let mut pics = pair();
        pulse(&mut pics, 5);
        pics.set_elcr(Master, 0x20);
        assert!(!pics.intr());
        pics.set_elcr(Master, 0);
        assert!(!pics.intr());
    }

    #[test]
    fn fully_nested_lets_only_higher_priorities_interrupt() {
        let mut pics = pair();
        pulse(&mut pics, 4);
        assert_eq!(pics.acknowledge(), 0x0C);
        pulse(&mut pics, 6);
        pulse(&mut pics, 4);
        assert!(!pics.intr());
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x09);
        assert_eq!(isr(&mut pics, Master), 0x12);
        eoi(&mut pics, Master);
        assert_eq!(isr(&mut pics, Master), 0x10, "the higher priority ends first");
        eoi(&mut pics, Master);
        assert_eq!(pics.acknowledge(), 0x0C);
        eoi(&mut pics, Master);
        assert_eq!(pics.acknowledge(), 0x0E);
    }

    #[test]
    fn simultaneous_requests_come_by_priority() {
        let mut pics = pair();
        for irq in [7, 3, 12, 8, 1, 15, 0] {
            pulse(&mut pics, irq);
        }
        let mut order = Vec::new();
        while pics.intr() {
            let vector = pics.acknowledge();
            order.push(vector);
            if vector >= 0x70 {
                eoi(&mut pics, Slave);
            }
            eoi(&mut pics, Master);
        }
        assert_eq!(order, [0x08, 0x09, 0x70, 0x74, 0x77, 0x0B, 0x0F]);
    }

    #[test]
    fn masked_requests_wait_in_irr() {
        let mut pics = pair();
        pics.write(Master, true, 0x10);
        assert_eq!(pics.read(Master, true), 0x10);
        pulse(&mut pics, 4);
        assert!(!pics.intr());
        assert_eq!(irr(&mut pics, Master), 0x10);
        pics.write(Master, true, 0);
        assert_eq!(pics.acknowledge(), 0x0C);
    }

    #[test]
    fn a_specific_eoi_ends_the_named_level() {
        let mut pics = pair();
        pulse(&mut pics, 4);
        pics.acknowledge();
        pulse(&mut pics, 1);
        pics.acknowledge();
        pics.write(Master, false, 0x60 | 4);
        assert_eq!(isr(&mut pics, Master), 0x02);
    }

    #[test]
    fn rotation_on_non_specific_eoi_makes_the_served_level_lowest() {
        let mut pics = pair();
        pulse(&mut pics, 4);
        pics.acknowledge();
        pics.write(Master, false, 0xA0);
        assert_eq!(pics.view()[0].hprio, 5);
        pulse(&mut pics, 4);
        pulse(&mut pics, 6);
        pulse(&mut pics, 0);
        let order: Vec<u8> = (0..3)
            .map(|_| {
                let vector = pics.acknowledge();
                pics.write(Master, false, 0x60 | vector & 7);
                vector
            })
            .collect();
        assert_eq!(order, [0x0E, 0x08, 0x0C]);
    }

    #[test]
    fn rotation_on_specific_eoi() {
        let mut pics = pair();
        pulse(&mut pics, 3);
        pics.acknowledge();
        pics.write(Master, false, 0xE0 | 3);
        assert_eq!((isr(&mut pics, Master), pics.view()[0].hprio), (0, 4));
    }

    #[test]
    fn set_priority_names_the_lowest_level() {
        let mut pics = pair();
        pics.write(Master, false, 0xC0 | 5);
        pulse(&mut pics, 5);
        pulse(&mut pics, 7);
        assert_eq!(pics.acknowledge(), 0x0F);
        pulse(&mut pics, 6);
        assert_eq!(pics.acknowledge(), 0x0E, "6 is the highest now");
    }

    #[test]
    fn ocw2_without_a_command_does_nothing() {
        let mut pics = pair();
        pulse(&mut pics, 4);
        pics.acknowledge();
        pics.write(Master, false, 0x40 | 4);
        assert_eq!((isr(&mut pics, Master), pics.view()[0].hprio), (0x10, 0));
    }

    #[test]
    fn auto_eoi_leaves_nothing_in_service_and_may_rotate() {
        let mut pics = pair_with(0x11, 0x03);
        pulse(&mut pics, 4);
        pics.acknowledge();
        assert_eq!((isr(&mut pics, Master), pics.view()[0].hprio), (0, 0));
        pics.write(Master, false, 0x80);
        pulse(&mut pics, 4);
        pics.acknowledge();
        assert_eq!(pics.view()[0].hprio, 5);
        pics.write(Master, false, 0x00);
        pulse(&mut pics, 6);
        pics.acknowledge();
        assert_eq!(pics.view()[0].hprio, 5);
    }

    #[test]
    fn two_requests_at_a_slave_with_auto_eoi_are_both_delivered() {
        let mut pics = pair_with(0x11, 0x03);
        pulse(&mut pics, 9);
        pulse(&mut pics, 12);
        assert_eq!(pics.acknowledge(), 0x71);
        assert!(pics.intr());
        assert_eq!(pics.acknowledge(), 0x74);
        assert!(!pics.intr());
    }

    #[test]
    fn special_mask_mode_lets_lower_priorities_in() {
        let mut pics = pair();
        pulse(&mut pics, 3);
        pics.acknowledge();
        pulse(&mut pics, 6);
        pics.write(Master, true, 1 << 3);
        assert!(!pics.intr());
        pics.write(Master, false, 0x68);
        assert_eq!(pics.acknowledge(), 0x0E);
        eoi(&mut pics, Master);
        assert_eq!(isr(&mut pics, Master), 1 << 3);
        eoi(&mut pics, Master);
        assert_eq!(isr(&mut pics, Master), 1 << 3, "a non-specific EOI spares masked levels");
        pics.write(Master, false, 0x48);
        eoi(&mut pics, Master);
        assert_eq!(isr(&mut pics, Master), 0);
        pics.write(Master, false, 0x28);
        assert!(!pics.master.special_mask, "SMM without ESMM changes nothing");
    }

    #[test]
    fn special_fully_nested_mode_lets_the_same_slave_interrupt_again() {
        for (icw4, nested) in [(0x01, false), (0x11, true)] {
            let mut pics = pair_with(0x11, icw4);
            assert_eq!(pics.view()[0].fnm, nested);
            pulse(&mut pics, 12);
            assert_eq!(pics.acknowledge(), 0x74);
            pulse(&mut pics, 14);
            pulse(&mut pics, 5);
            assert!(!pics.intr(), "neither is more urgent than 12");
            pulse(&mut pics, 8);
            assert_eq!(pics.intr(), nested);
        }
    }

    #[test]
    fn a_poll_acknowledges_by_a_read() {
        let mut pics = pair();
        pics.write(Master, true, 0xFF ^ 0x10);
        pics.write(Master, false, 0x0C);
        assert_eq!(pics.read(Master, false), 0);
        pulse(&mut pics, 4);
        pics.write(Master, false, 0x0C);
        assert_eq!(pics.read(Master, true), 0x84, "any read is the acknowledge");
        assert_eq!(pics.read(Master, true), 0xEF, "one read only");
        assert_eq!(isr(&mut pics, Master), 0x10);
        assert!(!pics.intr());
    }

    #[test]
    fn master_and_slave_are_polled_separately() {
        let mut pics = pair();
        pulse(&mut pics, 9);
        pics.write(Master, false, 0x0C);
        assert_eq!(pics.read(Master, false), 0x82);
        pics.write(Slave, false, 0x0C);
        assert_eq!(pics.read(Slave, false), 0x81);
        eoi(&mut pics, Slave);
        eoi(&mut pics, Master);
        assert!(!pics.intr());
    }

    #[test]
    fn a_request_that_is_gone_is_a_spurious_irq_7() {
        let mut pics = pair();
        pics.set_elcr(Master, 0x20);
        pics.set_irq(5, true);
        assert!(pics.intr());
        pics.set_irq(5, false);
        assert_eq!(pics.acknowledge(), 0x0F);
        assert_eq!(isr(&mut pics, Master), 0, "which needs no EOI");
    }

    #[test]
    fn the_spurious_vector_of_the_slave_is_irq_15() {
        let mut pics = pair();
        pulse(&mut pics, 9);
        // The master's poll reads its request; what the slave wanted is masked meanwhile.
        assert_eq!(pics.master.acknowledge(), Some(CASCADE));
        pics.write(Slave, true, 0xFF);
        assert_eq!(pics.slave.acknowledge(), None);
        assert_eq!(pics.slave.vector(None), 0x77);
        assert_eq!((isr(&mut pics, Master), isr(&mut pics, Slave)), (0x04, 0));
    }

    #[test]
    fn masking_the_slave_withdraws_its_int() {
        let mut pics = pair();
        pulse(&mut pics, 9);
        assert!(pics.intr());
        pics.write(Slave, true, 0x02);
        assert!(!pics.intr());
        pics.write(Slave, true, 0);
        assert_eq!(pics.acknowledge(), 0x71);
    }

    #[test]
    fn a_single_chip_takes_no_icw3_and_gives_its_own_vector_for_ir2() {
        let mut pics = pair_with(0x13, 0x03);
        assert!(pics.master.auto_eoi);
        pulse(&mut pics, 8);
        assert_eq!(pics.acknowledge(), 0x0A);
    }

    #[test]
    fn without_ic4_the_functions_of_icw4_are_off() {
        let mut pics = pair_with(0x11, 0x13);
        assert!(pics.master.auto_eoi && pics.master.special_fully_nested);
        pics.write(Master, false, 0x10);
        pics.write(Master, true, 0x20);
        pics.write(Master, true, 0x04);
        pics.write(Master, true, 0xFB);
        assert!(!pics.master.auto_eoi && !pics.master.special_fully_nested);
        assert_eq!((pics.read(Master, true), pics.view()[0].irq_base), (0xFB, 0x20));
    }

    #[test]
    fn icw1_starts_anew() {
        let mut pics = pair();
        pics.set_irq(3, true);
        pics.acknowledge();
        pics.set_irq(4, true);
        pics.write(Master, true, 0x55);
        pics.write(Master, false, 0xC3);
        pics.write(Master, false, 0x6B);
        pics.write(Master, false, 0x11);
        for value in [0x20, 0x04, 0x01] {
            pics.write(Master, true, value);
        }
        assert_eq!(pics.read(Master, true), 0);
        assert_eq!(pics.read(Master, false), 0, "IRR is selected, and its edges are forgotten");
        let view = pics.view()[0];
        assert_eq!((view.isr, view.hprio, view.irq_base, view.rr_sel), (0, 0, 0x20, false));
        pics.set_irq(4, true);
        assert!(!pics.intr(), "an input that stayed high has to rise anew");
    }

    #[test]
    fn there_is_no_irq_2_and_none_beyond_15() {
        let mut pics = pair();
        for irq in [2, 16, 200] {
            pics.set_irq(irq, true);
            assert!(!pics.intr());
        }
    }

    #[test]
    fn a_restored_pair_goes_on_and_sees_no_edge() {
        let mut pics = pair();
        pics.set_irq(4, true);
        assert_eq!(pics.acknowledge(), 0x0C);
        pics.write(Master, false, NON_SPECIFIC_EOI);
        pulse(&mut pics, 9);
        let mut copy = PicPair::new();
        copy.restore(pics.save()).unwrap();
        assert_eq!(copy.view(), pics.view());
        copy.set_irq(4, true);
        assert_eq!(copy.acknowledge(), 0x71);
        eoi(&mut copy, Slave);
        eoi(&mut copy, Master);
        assert!(!copy.intr());
    }

    #[test]
    fn damaged_states_are_refused() {
        let damage: [fn(&mut PicPairV1); 4] = [
            |s| s.master.highest = 8,
            |s| s.slave.next_icw = 1,
            |s| s.slave.irq_base = 1,
            |s| s.master.elcr = 1,
        ];
        for damage in damage {
            let mut pics = pair();
            let mut state = pics.save();
            damage(&mut state);
            assert!(matches!(pics.restore(state), Err(StateError::Damaged { .. })));
            assert_eq!(pics.view()[0].irq_base, 0x08);
        }
    }

    #[test]
    fn reset_keeps_the_lines_and_nothing_else() {
        let mut pics = pair();
        pics.set_elcr(Slave, 0x02);
        pics.set_irq(9, true);
        assert!(pics.intr());
        pics.reset();
        assert!(!pics.intr(), "IRQ 9 is edge-triggered again");
        assert_eq!((pics.elcr(Slave), pics.view()[0].irq_base), (0, 0));
        pics.set_elcr(Slave, 0x02);
        assert!(pics.intr());
    }
}
