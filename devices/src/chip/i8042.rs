//! The register machine of a PC's keyboard controller, an 8042 with IBM's program for keyboard and
//! auxiliary device (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and auxiliary
//! device controller"), and the two devices that are plugged into it.
//!
//! Answers of the controller itself are there at once. A byte of a device follows the last one after
//! [`TRANSFER`], so that handlers which read port 0x60 twice for one interrupt get the same byte.

use std::time::Duration;

use board::{StateError, VmTime};
use serde::{Deserialize, Serialize};

use super::ps2_keyboard::{Keyboard, KeyboardV1, Translator};
use super::ps2_mouse::{Mouse, MouseV1};

/// The time that a device's byte takes to the controller. The wires need about a millisecond.
pub const TRANSFER: Duration = Duration::from_micros(100);

/// The controller's RAM, of which byte 0 is the command byte.
const RAM_SIZE: usize = 32;

/// Bits of the command byte.
mod ctr {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const AUX_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM_FLAG: u8 = 1 << 2;
    pub(super) const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub(super) const AUX_DISABLED: u8 = 1 << 5;
    pub(super) const TRANSLATE: u8 = 1 << 6;
}

/// Bits of the status register.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM_FLAG: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const NOT_INHIBITED: u8 = 1 << 4;
    pub(super) const AUX_OUTPUT_FULL: u8 = 1 << 5;
}

/// Bits of the output port.
mod port {
    pub(super) const NO_RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
    pub(super) const KEYBOARD_OUTPUT_FULL: u8 = 1 << 4;
    pub(super) const AUX_OUTPUT_FULL: u8 = 1 << 5;
    /// Lines that are high when nothing pulls them down.
    pub(super) const IDLE: u8 = 0xCC;
}

/// Commands, written to port 0x64.
mod command {
    pub(super) const READ_RAM: u8 = 0x20;
    pub(super) const READ_RAM_LAST: u8 = 0x3F;
    pub(super) const WRITE_RAM: u8 = 0x60;
    pub(super) const WRITE_RAM_LAST: u8 = 0x7F;
    pub(super) const TEST_PASSWORD: u8 = 0xA4;
    pub(super) const DISABLE_AUX: u8 = 0xA7;
    pub(super) const ENABLE_AUX: u8 = 0xA8;
    pub(super) const TEST_AUX: u8 = 0xA9;
    pub(super) const SELF_TEST: u8 = 0xAA;
    pub(super) const TEST_KEYBOARD: u8 = 0xAB;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xAD;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xAE;
    pub(super) const READ_INPUT_PORT: u8 = 0xC0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xD0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xD1;
    pub(super) const WRITE_KEYBOARD_OUTPUT: u8 = 0xD2;
    pub(super) const WRITE_AUX_OUTPUT: u8 = 0xD3;
    pub(super) const WRITE_AUX: u8 = 0xD4;
    pub(super) const CLOSE_A20: u8 = 0xDD;
    pub(super) const OPEN_A20: u8 = 0xDF;
    pub(super) const PULSE: u8 = 0xF0;
}

const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_TEST_PASSED: u8 = 0x00;
const NO_PASSWORD: u8 = 0xF1;
/// The input port: the keyboard is not locked.
const NOT_LOCKED: u8 = 0x80;

/// A byte in the output buffer, and whether it is marked as the auxiliary device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    byte: u8,
    aux: bool,
}

/// The controller with a keyboard and a mouse.
#[derive(Debug)]
pub struct I8042 {
    /// The keyboard.
    pub keyboard: Keyboard,
    /// The auxiliary device.
    pub mouse: Mouse,
    ram: [u8; RAM_SIZE],
    translator: Translator,
    output: Option<Output>,
    /// An answer of the controller that waits for the output buffer.
    answer: Option<Output>,
    /// What port 0x60 shows while the output buffer is empty.
    last_read: u8,
    /// A command that waits for its parameter.
    command: Option<u8>,
    command_written: bool,
    a20: bool,
    reset: bool,
    /// From when on a device's byte may be in the output buffer.
    ready_at: VmTime,
}

impl Default for I8042 {
    fn default() -> Self {
        let mut ram = [0; RAM_SIZE];
        // As a BIOS leaves it, for kernels that are booted without one.
        ram[0] = ctr::KEYBOARD_INTERRUPT | ctr::AUX_INTERRUPT | ctr::TRANSLATE;
        Self {
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            ram,
            translator: Translator::default(),
            output: None,
            answer: None,
            last_read: 0,
            command: None,
            command_written: false,
            a20: true,
            reset: false,
            ready_at: VmTime::ZERO,
        }
    }
}

impl I8042 {
    /// The state after power-on.
    pub fn new() -> Self {
        Self::default()
    }

    /// IRQ 1: the output buffer holds a byte of the keyboard or the controller.
    pub fn keyboard_irq(&self) -> bool {
        self.has(ctr::KEYBOARD_INTERRUPT) && self.output.is_some_and(|output| !output.aux)
    }

    /// IRQ 12: the output buffer holds a byte of the auxiliary device.
    pub fn aux_irq(&self) -> bool {
        self.has(ctr::AUX_INTERRUPT) && self.output.is_some_and(|output| output.aux)
    }

    /// Bit 1 of the output port as it was last driven.
    pub fn a20(&self) -> bool {
        self.a20
    }

    /// Tells the controller the level of the A20 gate, which others drive as well.
    pub fn set_a20(&mut self, open: bool) {
        self.a20 = open;
    }

    /// Whether the reset line was pulled since the last call.
    pub fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// When a device's byte will be there that interrupts.
    pub fn deadline(&self) -> Option<VmTime> {
        let keyboard = self.keyboard_ready() && self.has(ctr::KEYBOARD_INTERRUPT);
        let aux = self.aux_ready() && self.has(ctr::AUX_INTERRUPT);
        (self.output.is_none() && (keyboard || aux)).then_some(self.ready_at)
    }

    /// Fills the output buffer if it is empty and a byte has come by `now`.
    pub fn evaluate(&mut self, now: VmTime) {
        if self.output.is_none() {
            self.output = self.answer.take();
        }
        while self.output.is_none() && now >= self.ready_at {
            if self.keyboard_ready() {
                let byte = self.keyboard.send();
                let byte = if self.has(ctr::TRANSLATE) {
                    byte.and_then(|byte| self.translator.translate(byte))
                } else {
                    byte
                };
                // A break prefix is swallowed, and the next byte follows at once.
                self.output = byte.map(|byte| Output { byte, aux: false });
            } else if self.aux_ready() {
                self.output = self.mouse.send().map(|byte| Output { byte, aux: true });
            } else {
                return;
            }
        }
    }

    /// Reads port 0x64. To be called after [`I8042::evaluate`].
    pub fn read_status(&self) -> u8 {
        let output = match self.output {
            None => 0,
            Some(Output { aux: false, .. }) => status::OUTPUT_FULL,
            Some(Output { aux: true, .. }) => status::OUTPUT_FULL | status::AUX_OUTPUT_FULL,
        };
        output
            | status::NOT_INHIBITED
            | if self.has(ctr::SYSTEM_FLAG) { status::SYSTEM_FLAG } else { 0 }
            | if self.command_written { status::COMMAND } else { 0 }
    }

    /// Reads port 0x60 at `now`. To be called after [`I8042::evaluate`].
    pub fn read_data(&mut self, now: VmTime) -> u8 {
        if let Some(output) = self.output.take() {
            self.last_read = output.byte;
            self.ready_at = now + TRANSFER;
        }
        self.last_read
    }

    /// Writes port 0x60 at `now`.
    pub fn write_data(&mut self, value: u8, now: VmTime) {
        self.command_written = false;
        match self.command.take() {
            None => {
                // Talking to a device enables its interface.
                self.ram[0] &= !ctr::KEYBOARD_DISABLED;
                self.keyboard.receive(value);
                self.translator = Translator::default();
                self.ready_at = self.ready_at.max(now + TRANSFER);
            }
            Some(command::WRITE_OUTPUT_PORT) => {
                self.a20 = value & port::A20 != 0;
                self.reset |= value & port::NO_RESET == 0;
            }
            Some(command::WRITE_KEYBOARD_OUTPUT) => self.answer(value, false),
            Some(command::WRITE_AUX_OUTPUT) => self.answer(value, true),
            Some(command::WRITE_AUX) => {
                self.ram[0] &= !ctr::AUX_DISABLED;
                self.mouse.receive(value);
                self.ready_at = self.ready_at.max(now + TRANSFER);
            }
            Some(write_ram) => self.ram[usize::from(write_ram) % RAM_SIZE] = value,
        }
    }

    /// Writes port 0x64.
    pub fn write_command(&mut self, value: u8) {
        self.command_written = true;
        self.command = None;
        match value {
            command::READ_RAM..=command::READ_RAM_LAST => {
                self.answer(self.ram[usize::from(value) % RAM_SIZE], false);
            }
            command::WRITE_RAM..=command::WRITE_RAM_LAST
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_OUTPUT
            | command::WRITE_AUX_OUTPUT
            | command::WRITE_AUX => self.command = Some(value),
            command::TEST_PASSWORD => self.answer(NO_PASSWORD, false),
            command::DISABLE_AUX => self.ram[0] |= ctr::AUX_DISABLED,
            command::ENABLE_AUX => self.ram[0] &= !ctr::AUX_DISABLED,
            command::TEST_AUX | command::TEST_KEYBOARD => {
                self.answer(INTERFACE_TEST_PASSED, false);
            }
            command::SELF_TEST => {
                self.ram[0] |= ctr::SYSTEM_FLAG;
                self.answer(SELF_TEST_PASSED, false);
            }
            command::DISABLE_KEYBOARD => self.ram[0] |= ctr::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.ram[0] &= !ctr::KEYBOARD_DISABLED,
            command::READ_INPUT_PORT => self.answer(NOT_LOCKED, false),
            command::READ_OUTPUT_PORT => self.answer(self.output_port(), false),
            command::CLOSE_A20 => self.a20 = false,
            command::OPEN_A20 => self.a20 = true,
            // Bits that are zero are pulsed; bit 0 is the reset line.
            command::PULSE.. => self.reset |= value & port::NO_RESET == 0,
            _ => {}
        }
    }

    fn answer(&mut self, byte: u8, aux: bool) {
        self.answer = Some(Output { byte, aux });
    }

    fn output_port(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some(Output { aux: false, .. }) => port::KEYBOARD_OUTPUT_FULL,
            Some(Output { aux: true, .. }) => port::AUX_OUTPUT_FULL,
        };
        port::IDLE | port::NO_RESET | full | if self.a20 { port::A20 } else { 0 }
    }

    fn has(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    fn keyboard_ready(&self) -> bool {
        self.keyboard.has_output() && !self.has(ctr::KEYBOARD_DISABLED)
    }

    fn aux_ready(&self) -> bool {
        self.mouse.has_output() && !self.has(ctr::AUX_DISABLED)
    }
}

/// The saved state of the controller and its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042V1 {
    keyboard: KeyboardV1,
    mouse: MouseV1,
    ram: Vec<u8>,
    translator: Translator,
    output: Option<Output>,
    answer: Option<Output>,
    last_read: u8,
    command: Option<u8>,
    command_written: bool,
    a20: bool,
    ready_at: VmTime,
}

impl I8042 {
    /// The kind of the section that holds the state.
    pub const KIND: &'static str = "i8042";

    /// The state now. A pull at the reset line is not part of it: the glue takes it at once.
    pub fn save(&self) -> I8042V1 {
        let Self {
            keyboard,
            mouse,
            ram,
            translator,
            output,
            answer,
            last_read,
            command,
            command_written,
            a20,
            reset: _,
            ready_at,
        } = self;
        I8042V1 {
            keyboard: keyboard.save(),
            mouse: mouse.save(),
            ram: ram.to_vec(),
            translator: *translator,
            output: *output,
            answer: *answer,
            last_read: *last_read,
            command: *command,
            command_written: *command_written,
            a20: *a20,
            ready_at: *ready_at,
        }
    }

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when a part has a state that it can never be in.
    pub fn restore(&mut self, state: I8042V1) -> Result<(), StateError> {
        let I8042V1 {
            keyboard,
            mouse,
            ram,
            translator,
            output,
            answer,
            last_read,
            command,
            command_written,
            a20,
            ready_at,
        } = state;
        let damaged = |what: &str| StateError::Damaged {
            kind: Self::KIND,
            cause: format!("the state of the {what} is impossible"),
        };
        *self = Self {
            keyboard: Keyboard::restored(keyboard).ok_or_else(|| damaged("keyboard"))?,
            mouse: Mouse::restored(mouse).ok_or_else(|| damaged("mouse"))?,
            ram: ram.try_into().map_err(|_| damaged("RAM"))?,
            translator,
            output,
            answer,
            last_read,
            command,
            command_written,
            a20,
            reset: false,
            ready_at,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ps2_keyboard::Key;
    use super::super::testing::Random;
    use super::*;

    /// The controller and the time, which every poll moves on.
    struct Test {
        chip: I8042,
        now: VmTime,
    }

    impl Test {
        fn new() -> Self {
            Self { chip: I8042::new(), now: VmTime(1_000_000) }
        }

        fn status(&mut self) -> u8 {
            self.now = self.now + TRANSFER;
            self.chip.evaluate(self.now);
            self.chip.read_status()
        }

        /// All bytes that come, with 0x100 for those of the auxiliary device.
        fn drain(&mut self) -> Vec<u16> {
            let mut bytes = Vec::new();
            loop {
                let status = self.status();
                if status & 0x01 == 0 {
                    return bytes;
                }
                let aux = u16::from(status & 0x20 != 0) << 8;
                bytes.push(u16::from(self.chip.read_data(self.now)) | aux);
            }
        }

        fn command(&mut self, command: u8) -> Vec<u16> {
            self.chip.write_command(command);
            self.drain()
        }

        fn command_with(&mut self, command: u8, data: u8) -> Vec<u16> {
            self.chip.write_command(command);
            self.data(data)
        }

        fn data(&mut self, data: u8) -> Vec<u16> {
            self.chip.write_data(data, self.now);
            self.drain()
        }
    }

    #[test]
    fn controller_commands_are_answered() {
        let mut t = Test::new();
        assert_eq!(t.command(0xAA), [0x55]);
        assert_eq!(t.command(0xAB), [0x00]);
        assert_eq!(t.command(0xA9), [0x00]);
        assert_eq!(t.command(0xA4), [0xF1]);
        assert_eq!(t.command(0xC0), [0x80]);
        assert_eq!(t.command_with(0xD2, 0x5A), [0x5A]);
        assert_eq!(t.command_with(0xD3, 0x5A), [0x15A]);
        assert_eq!(t.command(0xB5), vec![0; 0], "an unknown command has no answer");
    }

    #[test]
    fn ram_and_the_command_byte() {
        let mut t = Test::new();
        assert_eq!(t.command(0x20), [0x43]);
        t.command_with(0x60, 0x65);
        assert_eq!(t.command(0x20), [0x65]);
        t.command_with(0x7F, 0x99);
        assert_eq!(t.command(0x3F), [0x99]);
        // Linux tells a controller with an auxiliary port by bit 5.
        t.command(0xA7);
        assert_eq!(t.command(0x20), [0x65 | 0x20]);
        t.command(0xA8);
        assert_eq!(t.command(0x20), [0x45]);
        t.command(0xAD);
        assert_eq!(t.command(0x20), [0x55]);
        t.command(0xAE);
        assert_eq!(t.command(0x20), [0x45]);
    }

    #[test]
    fn status_bits() {
        let mut t = Test::new();
        assert_eq!(t.status(), 0x10);
        t.chip.write_command(0xAA);
        assert_eq!(t.status(), 0x1D, "not inhibited, command, system flag, output full");
        assert_eq!(t.chip.read_data(t.now), 0x55);
        t.chip.write_data(0xEE, t.now);
        assert_eq!(t.status(), 0x15);
        t.drain();
        t.chip.write_command(0xD4);
        t.chip.write_data(0xF2, t.now);
        assert_eq!(t.status(), 0x35);
    }

    #[test]
    fn the_output_port_resets_and_gates_a20() {
        let mut t = Test::new();
        assert_eq!(t.command(0xD0), [0xCF]);
        t.command_with(0xD1, 0xDD);
        assert_eq!((t.chip.a20(), t.command(0xD0)), (false, vec![0xCD]));
        t.command(0xDF);
        assert!(t.chip.a20());
        t.command(0xDD);
        assert!(!t.chip.a20());
        t.command_with(0xD1, 0xDF);
        assert!(t.chip.a20() && !t.chip.take_reset());
        t.command_with(0xD1, 0xDE);
        assert!(t.chip.take_reset());
        for pulse in 0xF0..=0xFF {
            t.command(pulse);
            assert_eq!(t.chip.take_reset(), pulse & 1 == 0, "{pulse:#x}");
        }
    }

    #[test]
    fn keyboard_bytes_are_translated() {
        let mut t = Test::new();
        assert_eq!(t.data(0xF2), [0xFA, 0xAB, 0x41]);
        t.chip.keyboard.key(Key::Plain(0x1C), true);
        t.chip.keyboard.key(Key::Plain(0x1C), false);
        t.chip.keyboard.key(Key::Extended(0x75), true);
        t.chip.keyboard.key(Key::Extended(0x75), false);
        assert_eq!(t.drain(), [0x1E, 0x9E, 0xE0, 0x48, 0xE0, 0xC8]);
        t.command_with(0x60, 0x03);
        assert_eq!(t.data(0xF2), [0xFA, 0xAB, 0x83]);
        t.chip.keyboard.key(Key::Plain(0x1C), false);
        assert_eq!(t.drain(), [0xF0, 0x1C]);
    }

    #[test]
    fn the_mouse_answers_behind_d4() {
        let mut t = Test::new();
        assert_eq!(t.command_with(0xD4, 0xFF), [0x1FA, 0x1AA, 0x100]);
        assert_eq!(t.command_with(0xD4, 0xF4), [0x1FA]);
        t.chip.mouse.moved(3, 4, 1);
        assert_eq!(t.drain(), [0x109, 0x103, 0x104]);
    }

    #[test]
    fn interrupts_follow_the_output_buffer() {
        let mut t = Test::new();
        t.chip.keyboard.key(Key::Plain(0x1C), true);
        assert_eq!(t.status() & 0x21, 0x01);
        assert_eq!((t.chip.keyboard_irq(), t.chip.aux_irq()), (true, false));
        t.chip.read_data(t.now);
        assert!(!t.chip.keyboard_irq());
        t.chip.write_command(0xD3);
        t.chip.write_data(1, t.now);
        t.status();
        assert_eq!((t.chip.keyboard_irq(), t.chip.aux_irq()), (false, true));
        t.chip.write_command(0x60);
        t.chip.write_data(0x40, t.now);
        assert_eq!((t.chip.keyboard_irq(), t.chip.aux_irq()), (false, false));
    }

    #[test]
    fn a_second_read_gives_the_same_byte() {
        let mut t = Test::new();
        t.chip.keyboard.key(Key::Plain(0x1C), true);
        t.chip.keyboard.key(Key::Plain(0x32), true);
        t.status();
        for _ in 0..3 {
            t.chip.evaluate(t.now);
            assert_eq!(t.chip.read_data(t.now), 0x1E);
        }
        assert_eq!(t.chip.deadline(), Some(t.now + TRANSFER));
        assert_eq!(t.drain(), [0x30]);
        assert_eq!(t.chip.deadline(), None);
    }

    #[test]
    fn a_disabled_interface_holds_its_bytes() {
        let mut t = Test::new();
        t.command(0xAD);
        t.chip.keyboard.key(Key::Plain(0x1C), true);
        assert_eq!((t.drain(), t.chip.deadline()), (vec![], None));
        t.chip.write_command(0xAE);
        assert_eq!(t.drain(), [0x1E]);
    }

    #[test]
    fn without_its_interrupt_a_byte_needs_no_timer() {
        let mut t = Test::new();
        t.command_with(0x60, 0x40);
        t.chip.keyboard.key(Key::Plain(0x1C), true);
        assert_eq!(t.chip.deadline(), None);
        assert_eq!(t.drain(), [0x1E]);
    }

    #[test]
    fn random_accesses_keep_the_invariants() {
        let mut random = Random::new(8042);
        let mut t = Test::new();
        for _ in 0..200_000 {
            t.now = t.now + Duration::from_nanos(random.below(150_000));
            t.chip.evaluate(t.now);
            match random.below(6) {
                0 => t.chip.write_command(random.byte()),
                1 => t.chip.write_data(random.byte(), t.now),
                2 => drop(t.chip.read_data(t.now)),
                3 => t.chip.keyboard.key(Key::Extended(random.byte()), random.below(2) == 0),
                4 => t.chip.mouse.moved(random.byte().into(), -7, random.byte()),
                _ => drop(t.chip.read_status()),
            }
            t.chip.evaluate(t.now);
            assert!(!(t.chip.keyboard_irq() && t.chip.aux_irq()));
            assert!(t.chip.deadline().is_none_or(|at| at > t.now));
            t.chip.take_reset();
            let saved = t.chip.save();
            t.chip.restore(saved.clone()).unwrap();
            assert_eq!(t.chip.save(), saved);
        }
    }

    #[test]
    fn damaged_states_are_refused() {
        let mut chip = I8042::new();
        let mut state = chip.save();
        state.ram.pop();
        assert!(chip.restore(state).is_err());
        assert_eq!(chip.save(), I8042::new().save());
    }
}
