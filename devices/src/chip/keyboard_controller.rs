//! The keyboard controller of a PC: an 8042 behind ports 0x60 and 0x64, IRQ 1 and IRQ 12, the reset
//! line, the A20 gate, and the queue by which keys and movements come from the host.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use board::device::{Notifier, Region, Tag};
use board::state::ErasedSnapshot;
use board::system::{A20Gate, SystemControl, SystemRequest};
use board::{Attach, Device, IrqLine, Snapshot, StateError, VmTime};

use super::glue::{Deadline, Pin};
use super::i8042::{I8042, I8042V1};
use super::ps2_keyboard::Key;

const TAG_BYTE: Tag = Tag(0);
const TAG_INPUT: Tag = Tag(1);

/// What a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key goes down or up.
    Key {
        /// Which one.
        key: Key,
        /// Down.
        pressed: bool,
    },
    /// The mouse is moved or a button is pressed or let go.
    Mouse {
        /// Counts to the right.
        dx: i32,
        /// Counts upwards.
        dy: i32,
        /// Those that are held down: left in bit 0, right in bit 1, middle in bit 2.
        buttons: u8,
    },
}

/// Where the host puts what a person does. Clones are the same queue.
#[derive(Clone, Default)]
pub struct InputQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Input>>,
    notifier: OnceLock<Notifier>,
}

impl InputQueue {
    /// More than any person types while a guest does not look.
    const LIMIT: usize = 1024;

    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `input`. It waits while the keyboard is full, and is dropped when 1024 others wait.
    pub fn push(&self, input: Input) {
        let mut queue = self.lock();
        if queue.len() < Self::LIMIT {
            queue.push_back(input);
        }
        drop(queue);
        if let Some(notifier) = self.0.notifier.get() {
            notifier.notify();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Input>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines that a keyboard controller drives.
pub struct Lines {
    /// IRQ 1.
    pub keyboard: IrqLine,
    /// IRQ 12.
    pub aux: IrqLine,
    /// The A20 gate.
    pub a20: A20Gate,
    /// Whom the reset line resets.
    pub system: Arc<dyn SystemControl>,
}

/// The controller.
pub struct KeyboardController {
    chip: I8042,
    keyboard_irq: Pin,
    aux_irq: Pin,
    a20: A20Gate,
    system: Arc<dyn SystemControl>,
    input: InputQueue,
    byte: Deadline,
}

impl KeyboardController {
    /// Port 0x60.
    pub const DATA: Region = Region(0);
    /// Port 0x64.
    pub const COMMAND: Region = Region(1);

    /// A controller that drives `lines` and takes `input`.
    pub fn new(lines: Lines, input: InputQueue, attach: &Attach) -> Self {
        // A queue has one controller; that of an earlier one would keep its notifier.
        let _ = input.0.notifier.set(attach.notifier(TAG_INPUT));
        Self {
            chip: I8042::new(),
            keyboard_irq: Pin::new(lines.keyboard),
            aux_irq: Pin::new(lines.aux),
            a20: lines.a20,
            system: lines.system,
            input,
            byte: Deadline::new(attach, TAG_BYTE),
        }
    }

    fn take_input(&mut self) {
        let mut queue = self.input.lock();
        while let Some(&input) = queue.front() {
            match input {
                Input::Key { .. } if !self.chip.keyboard.has_room() => return,
                Input::Key { key, pressed } => self.chip.keyboard.key(key, pressed),
                Input::Mouse { dx, dy, buttons } => self.chip.mouse.moved(dx, dy, buttons),
            }
            queue.pop_front();
        }
    }

    fn update_lines(&mut self) {
        self.keyboard_irq.set(self.chip.keyboard_irq());
        self.aux_irq.set(self.chip.aux_irq());
    }

    /// Fills the output buffer, drives the lines and arms the timer.
    fn update(&mut self, now: VmTime) {
        // The line falls between two bytes.
        self.update_lines();
        self.chip.evaluate(now);
        self.update_lines();
        self.byte.set(self.chip.deadline());
    }
}

impl Device for KeyboardController {
    fn read(&mut self, region: Region, _offset: u64, data: &mut [u8]) {
        let now = self.byte.now();
        self.chip.evaluate(now);
        self.update_lines();
        data.fill(0xFF);
        if let Some(byte) = data.first_mut() {
            if region == Self::COMMAND {
                *byte = self.chip.read_status();
            } else {
                *byte = self.chip.read_data(now);
                self.take_input();
            }
        }
        self.update(now);
    }

    fn write(&mut self, region: Region, _offset: u64, data: &[u8]) {
        let now = self.byte.now();
        self.chip.evaluate(now);
        self.update_lines();
        let was_open = self.a20.is_open();
        self.chip.set_a20(was_open);
        if let Some(&value) = data.first() {
            if region == Self::COMMAND {
                self.chip.write_command(value);
            } else {
                self.chip.write_data(value, now);
            }
        }
        if self.chip.a20() != was_open {
            self.a20.set(self.chip.a20());
        }
        if self.chip.take_reset() {
            self.system.request(SystemRequest::Reset);
        }
        self.update(now);
    }

    fn event(&mut self, tag: Tag, now: VmTime) {
        if tag == TAG_INPUT {
            self.take_input();
        } else {
            self.byte.fired();
        }
        self.update(now);
    }

    fn reset(&mut self) {
        self.chip = I8042::new();
        self.a20.set(true);
        self.update(self.byte.now());
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        self.chip.set_a20(self.a20.is_open());
        Some(self)
    }
}

impl Snapshot for KeyboardController {
    const KIND: &'static str = I8042::KIND;
    const VERSION: u32 = 1;
    type State = I8042V1;

    fn save(&self) -> I8042V1 {
        // What a person has typed and the guest's keyboard has not taken is the host's.
        let Self { chip, keyboard_irq: _, aux_irq: _, a20: _, system: _, input: _, byte: _ } = self;
        chip.save()
    }

    fn restore(&mut self, state: I8042V1) -> Result<(), StateError> {
        self.chip.restore(state)?;
        self.keyboard_irq.restore(self.chip.keyboard_irq());
        self.aux_irq.restore(self.chip.aux_irq());
        self.a20.set(self.chip.a20());
        self.byte.set(self.chip.deadline());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use board::irq::IrqProbe;

    use super::super::testing::{Bench, Requests};
    use super::*;

    const DATA: Region = KeyboardController::DATA;
    const COMMAND: Region = KeyboardController::COMMAND;

    struct Test {
        bench: Bench,
        input: InputQueue,
        keyboard: Arc<IrqProbe>,
        aux: Arc<IrqProbe>,
        a20: A20Gate,
        requests: Arc<Requests>,
    }

    impl Test {
        fn new() -> Self {
            let (keyboard_line, keyboard) = IrqLine::probe();
            let (aux_line, aux) = IrqLine::probe();
            let (a20, requests, input) =
                (A20Gate::open(), Arc::new(Requests::default()), InputQueue::new());
            let lines = Lines {
                keyboard: keyboard_line,
                aux: aux_line,
                a20: a20.clone(),
                system: requests.clone(),
            };
            let bench = Bench::plug(|attach| KeyboardController::new(lines, input.clone(), attach));
            Self { bench, input, keyboard, aux, a20, requests }
        }

        fn press(&self, name: &str) {
            let key = Key::by_name(name).unwrap();
            for pressed in [true, false] {
                self.input.push(Input::Key { key, pressed });
            }
        }

        /// Serves IRQ 1 until there is no more.
        fn scan_codes(&mut self) -> Vec<u8> {
            let mut codes = Vec::new();
            loop {
                self.bench.advance(Duration::from_millis(1));
                self.bench.deliver();
                if self.keyboard.take_edges() == 0 {
                    return codes;
                }
                codes.push(self.bench.read(DATA, 0));
            }
        }
    }

    #[test]
    fn each_scan_code_is_an_interrupt() {
        let mut t = Test::new();
        t.press("a");
        t.press("ret");
        assert_eq!(t.scan_codes(), [0x1E, 0x9E, 0x1C, 0x9C]);
    }

    #[test]
    fn keys_wait_while_the_keyboard_is_full() {
        let mut t = Test::new();
        for _ in 0..50 {
            t.press("left");
        }
        assert_eq!(t.scan_codes(), [0xE0, 0x4B, 0xE0, 0xCB].repeat(50));
    }

    #[test]
    fn the_mouse_interrupts_on_irq_12() {
        let mut t = Test::new();
        t.bench.write(COMMAND, 0, 0xD4);
        t.bench.write(DATA, 0, 0xF4);
        t.bench.advance(Duration::from_millis(1));
        t.bench.deliver();
        assert_eq!((t.aux.take_edges(), t.bench.read(DATA, 0)), (1, 0xFA));
        t.input.push(Input::Mouse { dx: 1, dy: 0, buttons: 0 });
        t.bench.advance(Duration::from_millis(1));
        t.bench.deliver();
        assert_eq!((t.aux.take_edges(), t.keyboard.take_edges()), (1, 0));
        assert_eq!(t.bench.read(DATA, 0), 0x08);
    }

    #[test]
    fn an_answer_behind_a_full_buffer_is_an_edge_of_its_own() {
        let t = Test::new();
        t.bench.write(COMMAND, 0, 0xAA);
        t.bench.write(COMMAND, 0, 0xAB);
        assert_eq!(t.keyboard.take_edges(), 1);
        assert_eq!(t.bench.read(DATA, 0), 0x55);
        assert_eq!((t.keyboard.take_edges(), t.bench.read(DATA, 0)), (1, 0x00));
        assert!(!t.keyboard.level());
    }

    #[test]
    fn reset_and_a20_reach_the_machine() {
        let t = Test::new();
        t.bench.write(COMMAND, 0, 0xFE);
        assert_eq!(t.requests.take(), [SystemRequest::Reset]);
        t.bench.write(COMMAND, 0, 0xDD);
        assert!(!t.a20.is_open());
        t.a20.set(true);
        t.bench.write(COMMAND, 0, 0xD0);
        assert_eq!(t.bench.read(DATA, 0) & 0x02, 0x02, "port 0x92 has opened it");
        t.bench.write(COMMAND, 0, 0xFF);
        assert_eq!(t.requests.take(), []);
        t.a20.set(false);
        t.bench.slot.lock().reset();
        assert!(t.a20.is_open());
    }

    #[test]
    fn a_restored_controller_makes_no_edge_and_goes_on() {
        let mut t = Test::new();
        t.press("up");
        t.bench.deliver();
        t.a20.set(false);
        assert!(t.keyboard.level());
        let mut other = Test::new();
        t.bench.copy_to(&other.bench);
        assert_eq!((other.keyboard.take_edges(), other.a20.is_open()), (0, false));
        assert_eq!(other.bench.read(DATA, 0), 0xE0);
        assert_eq!(other.scan_codes(), [0x48, 0xE0, 0xC8]);
    }
}
