//! A PS/2 keyboard (IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-key)")
//! that speaks scan code sets 1 and 2. It does not repeat keys: whoever presses them does.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes that wait for the controller to take them.
const QUEUE_SIZE: usize = 16;

/// The longest sequence that a key makes: Pause.
const LONGEST: usize = 8;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const TEST_PASSED: u8 = 0xAA;
const BREAK: u8 = 0xF0;
const EXTENDED: u8 = 0xE0;

mod command {
    pub(super) const SET_LEDS: u8 = 0xED;
    pub(super) const ECHO: u8 = 0xEE;
    pub(super) const SCAN_CODE_SET: u8 = 0xF0;
    pub(super) const IDENTIFY: u8 = 0xF2;
    pub(super) const SET_TYPEMATIC: u8 = 0xF3;
    pub(super) const ENABLE: u8 = 0xF4;
    pub(super) const DISABLE: u8 = 0xF5;
    pub(super) const SET_DEFAULTS: u8 = 0xF6;
    pub(super) const RESEND: u8 = 0xFE;
    pub(super) const RESET: u8 = 0xFF;
}

/// A key of a 102-key keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A key with this make code in set 2.
    Plain(u8),
    /// One whose codes are preceded by 0xE0.
    Extended(u8),
    /// Print Screen.
    Print,
    /// Pause, which has no break code.
    Pause,
}

impl Key {
    /// The key with the name that QEMU's `sendkey` gives it.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, key)| key)
    }

    /// The names that [`Key::by_name`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }

    /// The sequence in set 2.
    fn set2(self, pressed: bool) -> Vec<u8> {
        match (self, pressed) {
            (Self::Plain(code), true) => vec![code],
            (Self::Plain(code), false) => vec![BREAK, code],
            (Self::Extended(code), true) => vec![EXTENDED, code],
            (Self::Extended(code), false) => vec![EXTENDED, BREAK, code],
            (Self::Print, true) => vec![EXTENDED, 0x12, EXTENDED, 0x7C],
            (Self::Print, false) => vec![EXTENDED, BREAK, 0x7C, EXTENDED, BREAK, 0x12],
            (Self::Pause, true) => vec![0xE1, 0x14, 0x77, 0xE1, BREAK, 0x14, BREAK, 0x77],
            (Self::Pause, false) => vec![],
        }
    }
}

/// Turns set 2 into set 1, one byte at a time, as the keyboard controller does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translator {
    /// A break prefix has been swallowed.
    broken: bool,
}

impl Translator {
    /// The byte of set 1 for the next one of set 2, if there is one.
    pub fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == BREAK {
            self.broken = true;
            return None;
        }
        let broken = if std::mem::take(&mut self.broken) { 0x80 } else { 0 };
        Some(match byte {
            0x00..=0x7F => TO_SET_1[usize::from(byte)] | broken,
            0x83 => 0x41 | broken,
            0x84 => 0x54 | broken,
            _ => byte,
        })
    }
}

/// The keyboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyboard {
    queue: VecDeque<u8>,
    /// A command that waits for its parameter.
    command: Option<u8>,
    scanning: bool,
    set: u8,
    leds: u8,
    last_sent: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            queue: VecDeque::with_capacity(QUEUE_SIZE),
            command: None,
            scanning: true,
            set: 2,
            leds: 0,
            last_sent: 0,
        }
    }
}

impl Keyboard {
    /// The state after power-on and self-test.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a byte waits.
    pub fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends the next byte.
    pub fn send(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    /// Whether there is room for what any key sends.
    pub fn has_room(&self) -> bool {
        self.queue.len() + LONGEST <= QUEUE_SIZE
    }

    /// Num Lock (bit 1), Caps Lock (bit 2) and Scroll Lock (bit 0).
    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// A key goes down or up. It is lost if scanning is disabled or there is no room.
    pub fn key(&mut self, key: Key, pressed: bool) {
        if !self.scanning || !self.has_room() {
            return;
        }
        let codes = key.set2(pressed);
        if self.set == 1 {
            let mut translator = Translator::default();
            self.queue.extend(codes.into_iter().filter_map(|code| translator.translate(code)));
        } else {
            self.queue.extend(codes);
        }
    }

    /// The host sends `byte`: a command, or the parameter of one.
    pub fn receive(&mut self, byte: u8) {
        // What waited is void: the answer comes first.
        self.queue.clear();
        match (self.command.take(), byte) {
            (Some(command::SCAN_CODE_SET), 0) => self.queue.extend([ACK, self.set]),
            (Some(command::SCAN_CODE_SET), set @ (1 | 2)) => {
                self.set = set;
                self.queue.push_back(ACK);
            }
            (Some(command::SCAN_CODE_SET), _) => self.queue.push_back(RESEND),
            (Some(command::SET_LEDS), leds) => {
                self.leds = leds & 7;
                self.queue.push_back(ACK);
            }
            (Some(_), _) => self.queue.push_back(ACK),
            (None, command) => self.command(command),
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            command::SET_LEDS | command::SCAN_CODE_SET | command::SET_TYPEMATIC => {
                self.command = Some(command);
                self.queue.push_back(ACK);
            }
            command::ECHO => self.queue.push_back(command::ECHO),
            command::IDENTIFY => self.queue.extend([ACK, 0xAB, 0x83]),
            command::ENABLE => {
                self.scanning = true;
                self.queue.push_back(ACK);
            }
            command::DISABLE | command::SET_DEFAULTS => {
                self.scanning = command == command::SET_DEFAULTS;
                self.set = 2;
                self.queue.push_back(ACK);
            }
            command::RESEND => self.queue.push_back(self.last_sent),
            command::RESET => {
                *self = Self::new();
                self.queue.extend([ACK, TEST_PASSED]);
            }
            _ => self.queue.push_back(RESEND),
        }
    }
}

/// The saved state of a keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardV1 {
    queue: Vec<u8>,
    command: Option<u8>,
    scanning: bool,
    set: u8,
    leds: u8,
    last_sent: u8,
}

impl Keyboard {
    /// The state now.
    pub fn save(&self) -> KeyboardV1 {
        let Self { queue, command, scanning, set, leds, last_sent } = self;
        KeyboardV1 {
            queue: queue.iter().copied().collect(),
            command: *command,
            scanning: *scanning,
            set: *set,
            leds: *leds,
            last_sent: *last_sent,
        }
    }

    /// The keyboard with `state`; `None` if no keyboard can have it.
    pub fn restored(state: KeyboardV1) -> Option<Self> {
        let KeyboardV1 { queue, command, scanning, set, leds, last_sent } = state;
        let possible = queue.len() <= QUEUE_SIZE && matches!(set, 1 | 2) && leds <= 7;
        let queue = queue.into();
        possible.then_some(Self { queue, command, scanning, set, leds, last_sent })
    }
}

/// Set 1 for the codes of set 2 up to 0x7F.
#[rustfmt::skip]
const TO_SET_1: [u8; 128] = [
    0x7F, 0x43, 0x41, 0x3F, 0x3D, 0x3B, 0x3C, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3E, 0x0F, 0x29, 0x59,
    0x65, 0x38, 0x2A, 0x70, 0x1D, 0x10, 0x02, 0x5A, 0x66, 0x71, 0x2C, 0x1F, 0x1E, 0x11, 0x03, 0x5B,
    0x67, 0x2E, 0x2D, 0x20, 0x12, 0x05, 0x04, 0x5C, 0x68, 0x39, 0x2F, 0x21, 0x14, 0x13, 0x06, 0x5D,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5E, 0x6A, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5F,
    0x6B, 0x33, 0x25, 0x17, 0x18, 0x0B, 0x0A, 0x60, 0x6C, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0C, 0x61,
    0x6D, 0x73, 0x28, 0x74, 0x1A, 0x0D, 0x62, 0x6E, 0x3A, 0x36, 0x1C, 0x1B, 0x75, 0x2B, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7A, 0x0E, 0x7B, 0x7C, 0x4F, 0x7D, 0x4B, 0x47, 0x7E, 0x7F, 0x6F,
    0x52, 0x53, 0x50, 0x4C, 0x4D, 0x48, 0x01, 0x45, 0x57, 0x4E, 0x51, 0x4A, 0x37, 0x49, 0x46, 0x54,
];

/// Keys by the names of QEMU's `sendkey`.
#[rustfmt::skip]
const NAMES: &[(&str, Key)] = {
    use Key::{Extended, Pause, Plain, Print};
    &[
        ("esc", Plain(0x76)), ("f1", Plain(0x05)), ("f2", Plain(0x06)), ("f3", Plain(0x04)),
        ("f4", Plain(0x0C)), ("f5", Plain(0x03)), ("f6", Plain(0x0B)), ("f7", Plain(0x83)),
        ("f8", Plain(0x0A)), ("f9", Plain(0x01)), ("f10", Plain(0x09)), ("f11", Plain(0x78)),
        ("f12", Plain(0x07)), ("print", Print), ("sysrq", Plain(0x84)), ("scroll_lock", Plain(0x7E)),
        ("pause", Pause),
        ("grave_accent", Plain(0x0E)), ("1", Plain(0x16)), ("2", Plain(0x1E)), ("3", Plain(0x26)),
        ("4", Plain(0x25)), ("5", Plain(0x2E)), ("6", Plain(0x36)), ("7", Plain(0x3D)),
        ("8", Plain(0x3E)), ("9", Plain(0x46)), ("0", Plain(0x45)), ("minus", Plain(0x4E)),
        ("equal", Plain(0x55)), ("backspace", Plain(0x66)),
        ("tab", Plain(0x0D)), ("q", Plain(0x15)), ("w", Plain(0x1D)), ("e", Plain(0x24)),
        ("r", Plain(0x2D)), ("t", Plain(0x2C)), ("y", Plain(0x35)), ("u", Plain(0x3C)),
        ("i", Plain(0x43)), ("o", Plain(0x44)), ("p", Plain(0x4D)), ("bracket_left", Plain(0x54)),
        ("bracket_right", Plain(0x5B)), ("backslash", Plain(0x5D)), ("ret", Plain(0x5A)),
        ("caps_lock", Plain(0x58)), ("a", Plain(0x1C)), ("s", Plain(0x1B)), ("d", Plain(0x23)),
        ("f", Plain(0x2B)), ("g", Plain(0x34)), ("h", Plain(0x33)), ("j", Plain(0x3B)),
        ("k", Plain(0x42)), ("l", Plain(0x4B)), ("semicolon", Plain(0x4C)),
        ("apostrophe", Plain(0x52)),
        ("shift", Plain(0x12)), ("less", Plain(0x61)), ("z", Plain(0x1A)), ("x", Plain(0x22)),
        ("c", Plain(0x21)), ("v", Plain(0x2A)), ("b", Plain(0x32)), ("n", Plain(0x31)),
        ("m", Plain(0x3A)), ("comma", Plain(0x41)), ("dot", Plain(0x49)), ("slash", Plain(0x4A)),
        ("shift_r", Plain(0x59)),
        ("ctrl", Plain(0x14)), ("meta_l", Extended(0x1F)), ("alt", Plain(0x11)),
        ("spc", Plain(0x29)), ("alt_r", Extended(0x11)), ("meta_r", Extended(0x27)),
        ("menu", Extended(0x2F)), ("ctrl_r", Extended(0x14)),
        ("insert", Extended(0x70)), ("home", Extended(0x6C)), ("pgup", Extended(0x7D)),
        ("delete", Extended(0x71)), ("end", Extended(0x69)), ("pgdn", Extended(0x7A)),
        ("up", Extended(0x75)), ("left", Extended(0x6B)), ("down", Extended(0x72)),
        ("right", Extended(0x74)),
        ("num_lock", Plain(0x77)), ("kp_divide", Extended(0x4A)), ("kp_multiply", Plain(0x7C)),
        ("kp_subtract", Plain(0x7B)), ("kp_add", Plain(0x79)), ("kp_enter", Extended(0x5A)),
        ("kp_decimal", Plain(0x71)), ("kp_0", Plain(0x70)), ("kp_1", Plain(0x69)),
        ("kp_2", Plain(0x72)), ("kp_3", Plain(0x7A)), ("kp_4", Plain(0x6B)),
        ("kp_5", Plain(0x73)), ("kp_6", Plain(0x74)), ("kp_7", Plain(0x6C)),
        ("kp_8", Plain(0x75)), ("kp_9", Plain(0x7D)),
    ]
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sent(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.send()).collect()
    }

    fn answer(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        for &byte in bytes {
            keyboard.receive(byte);
            answer.extend(sent(keyboard));
        }
        answer
    }

    fn typed(keyboard: &mut Keyboard, name: &str) -> Vec<u8> {
        let key = Key::by_name(name).unwrap();
        keyboard.key(key, true);
        keyboard.key(key, false);
        sent(keyboard)
    }

    #[test]
    fn commands_are_answered() {
        for (bytes, expected) in [
            (&[0xFF][..], &[0xFA, 0xAA][..]),
            (&[0xED, 0x02], &[0xFA, 0xFA]),
            (&[0xEE], &[0xEE]),
            (&[0xF0, 0x00], &[0xFA, 0xFA, 0x02]),
            (&[0xF0, 0x01, 0xF0, 0x00], &[0xFA, 0xFA, 0xFA, 0xFA, 0x01]),
            (&[0xF0, 0x03], &[0xFA, 0xFE]),
            (&[0xF2], &[0xFA, 0xAB, 0x83]),
            (&[0xF3, 0x20], &[0xFA, 0xFA]),
            (&[0xF4], &[0xFA]),
            (&[0xF5], &[0xFA]),
            (&[0xF6], &[0xFA]),
            (&[0xEE, 0xFE], &[0xEE, 0xEE]),
            (&[0x00], &[0xFE]),
        ] {
            assert_eq!(answer(&mut Keyboard::new(), bytes), expected, "{bytes:02X?}");
        }
        let mut keyboard = Keyboard::new();
        answer(&mut keyboard, &[0xED, 0x05]);
        assert_eq!(keyboard.leds(), 5);
    }

    #[test]
    fn keys_make_and_break() {
        let mut keyboard = Keyboard::new();
        assert_eq!(typed(&mut keyboard, "a"), [0x1C, 0xF0, 0x1C]);
        assert_eq!(typed(&mut keyboard, "up"), [0xE0, 0x75, 0xE0, 0xF0, 0x75]);
        assert_eq!(typed(&mut keyboard, "pause").len(), 8);
        assert_eq!(typed(&mut keyboard, "print").len(), 10);
        answer(&mut keyboard, &[0xF0, 1]);
        assert_eq!(typed(&mut keyboard, "a"), [0x1E, 0x9E]);
        assert_eq!(typed(&mut keyboard, "up"), [0xE0, 0x48, 0xE0, 0xC8]);
        assert_eq!(typed(&mut keyboard, "pause"), [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]);
        answer(&mut keyboard, &[0xF5]);
        assert!(typed(&mut keyboard, "a").is_empty(), "scanning is disabled");
    }

    #[test]
    fn a_full_queue_takes_no_part_of_a_key() {
        let mut keyboard = Keyboard::new();
        for _ in 0..20 {
            keyboard.key(Key::Extended(0x75), false);
        }
        let bytes = sent(&mut keyboard);
        assert!(!bytes.is_empty() && bytes.chunks(3).all(|c| c == [0xE0, 0xF0, 0x75]));
    }

    #[test]
    fn set_1_codes_of_known_keys() {
        for (name, code) in [
            ("esc", 0x01),
            ("1", 0x02),
            ("0", 0x0B),
            ("backspace", 0x0E),
            ("q", 0x10),
            ("p", 0x19),
            ("ret", 0x1C),
            ("ctrl", 0x1D),
            ("a", 0x1E),
            ("l", 0x26),
            ("shift", 0x2A),
            ("z", 0x2C),
            ("m", 0x32),
            ("shift_r", 0x36),
            ("alt", 0x38),
            ("spc", 0x39),
            ("f1", 0x3B),
            ("f7", 0x41),
            ("f10", 0x44),
            ("num_lock", 0x45),
            ("kp_7", 0x47),
            ("kp_decimal", 0x53),
            ("less", 0x56),
            ("f11", 0x57),
            ("f12", 0x58),
        ] {
            let Some(Key::Plain(set2)) = Key::by_name(name) else { panic!("{name}") };
            let mut translator = Translator::default();
            assert_eq!(translator.translate(set2), Some(code), "{name}");
            assert_eq!(translator.translate(0xF0), None);
            assert_eq!(translator.translate(set2), Some(code | 0x80), "{name}");
        }
    }

    #[test]
    fn every_key_has_one_name_and_codes_of_its_own() {
        let names: BTreeSet<_> = Key::names().collect();
        assert_eq!(names.len(), NAMES.len());
        let set1 = |key: Key| {
            let mut translator = Translator::default();
            let codes = key.set2(true).into_iter().filter_map(|c| translator.translate(c));
            codes.collect::<Vec<u8>>()
        };
        let codes: BTreeSet<_> = NAMES.iter().map(|&(_, key)| set1(key)).collect();
        assert_eq!(codes.len(), NAMES.len());
        assert!(Key::by_name("nokey").is_none());
    }
}
