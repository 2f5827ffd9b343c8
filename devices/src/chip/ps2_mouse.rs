//! A PS/2 mouse with three buttons (IBM PS/2 Hardware Interface Technical Reference, "Mouse").

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes that wait for the controller to take them.
const QUEUE_SIZE: usize = 16;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const TEST_PASSED: u8 = 0xAA;
const DEVICE_ID: u8 = 0x00;

mod command {
    pub(super) const SCALING_1_TO_1: u8 = 0xE6;
    pub(super) const SCALING_2_TO_1: u8 = 0xE7;
    pub(super) const SET_RESOLUTION: u8 = 0xE8;
    pub(super) const STATUS_REQUEST: u8 = 0xE9;
    pub(super) const STREAM_MODE: u8 = 0xEA;
    pub(super) const READ_DATA: u8 = 0xEB;
    pub(super) const RESET_WRAP_MODE: u8 = 0xEC;
    pub(super) const WRAP_MODE: u8 = 0xEE;
    pub(super) const REMOTE_MODE: u8 = 0xF0;
    pub(super) const IDENTIFY: u8 = 0xF2;
    pub(super) const SET_SAMPLE_RATE: u8 = 0xF3;
    pub(super) const ENABLE: u8 = 0xF4;
    pub(super) const DISABLE: u8 = 0xF5;
    pub(super) const SET_DEFAULTS: u8 = 0xF6;
    pub(super) const RESEND: u8 = 0xFE;
    pub(super) const RESET: u8 = 0xFF;
}

/// Buttons that are held down: left in bit 0, right in bit 1, middle in bit 2.
pub const BUTTONS: u8 = 0x07;

/// The mouse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mouse {
    queue: VecDeque<u8>,
    /// A command that waits for its parameter.
    command: Option<u8>,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling_2_to_1: bool,
    /// The logarithm of the counts per millimetre.
    resolution: u8,
    /// Reports a second.
    sample_rate: u8,
    buttons: u8,
    /// Movement that has not been reported.
    dx: i32,
    dy: i32,
    last_sent: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            queue: VecDeque::with_capacity(QUEUE_SIZE),
            command: None,
            reporting: false,
            remote: false,
            wrap: false,
            scaling_2_to_1: false,
            resolution: 2,
            sample_rate: 100,
            buttons: 0,
            dx: 0,
            dy: 0,
            last_sent: 0,
        }
    }
}

impl Mouse {
    /// The state after power-on and self-test: nothing is reported.
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
        if self.queue.is_empty() && (self.dx, self.dy) != (0, 0) {
            self.report();
        }
        Some(byte)
    }

    /// The mouse is moved right by `dx` and up by `dy` counts, and holds `buttons` down.
    pub fn moved(&mut self, dx: i32, dy: i32, buttons: u8) {
        let clicked = buttons & BUTTONS != self.buttons;
        self.buttons = buttons & BUTTONS;
        self.dx = self.dx.saturating_add(dx);
        self.dy = self.dy.saturating_add(dy);
        if clicked || (self.queue.is_empty() && (self.dx, self.dy) != (0, 0)) {
            self.report();
        }
    }

    /// Sends a packet if the mouse reports by itself. Movement that comes before it has been taken
    /// is added up.
    fn report(&mut self) {
        if self.remote {
            return;
        }
        if !self.reporting || self.wrap {
            (self.dx, self.dy) = (0, 0);
        } else if self.queue.len() + 3 <= QUEUE_SIZE {
            let packet = self.packet();
            self.queue.extend(packet);
        }
    }

    fn packet(&mut self) -> [u8; 3] {
        let counts = |left: &mut i32| {
            let counts = (*left).clamp(-256, 255);
            *left -= counts;
            counts
        };
        let (dx, dy) = (counts(&mut self.dx), counts(&mut self.dy));
        let signs = u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        [self.buttons | 1 << 3 | signs, dx as u8, dy as u8]
    }

    /// The host sends `byte`: a command, or the parameter of one.
    pub fn receive(&mut self, byte: u8) {
        // What waited is void: the answer comes first.
        self.queue.clear();
        if self.wrap && !matches!(byte, command::RESET_WRAP_MODE | command::RESET) {
            self.queue.push_back(byte);
            return;
        }
        match self.command.take() {
            Some(command::SET_RESOLUTION) if byte <= 3 => self.resolution = byte,
            Some(command::SET_SAMPLE_RATE) if byte != 0 => self.sample_rate = byte,
            Some(_) => {
                self.queue.push_back(RESEND);
                return;
            }
            None => return self.command(byte),
        }
        self.queue.push_back(ACK);
    }

    fn command(&mut self, command: u8) {
        match command {
            command::SCALING_1_TO_1 => self.scaling_2_to_1 = false,
            command::SCALING_2_TO_1 => self.scaling_2_to_1 = true,
            command::SET_RESOLUTION | command::SET_SAMPLE_RATE => self.command = Some(command),
            command::STATUS_REQUEST => {
                // The buttons stand in the other order than in a packet.
                let buttons =
                    self.buttons >> 1 & 1 | self.buttons >> 1 & 2 | (self.buttons & 1) << 2;
                let status = buttons
                    | u8::from(self.scaling_2_to_1) << 4
                    | u8::from(self.reporting) << 5
                    | u8::from(self.remote) << 6;
                self.queue.extend([ACK, status, self.resolution, self.sample_rate]);
                return;
            }
            command::STREAM_MODE => self.remote = false,
            command::READ_DATA => {
                let packet = self.packet();
                self.queue.push_back(ACK);
                self.queue.extend(packet);
                return;
            }
            command::RESET_WRAP_MODE => self.wrap = false,
            command::WRAP_MODE => self.wrap = true,
            command::REMOTE_MODE => self.remote = true,
            command::IDENTIFY => {
                self.queue.extend([ACK, DEVICE_ID]);
                return;
            }
            command::ENABLE => self.reporting = true,
            command::DISABLE => self.reporting = false,
            command::SET_DEFAULTS => *self = Self { buttons: self.buttons, ..Self::new() },
            command::RESEND => {
                self.queue.push_back(self.last_sent);
                return;
            }
            command::RESET => {
                *self = Self { buttons: self.buttons, ..Self::new() };
                self.queue.extend([ACK, TEST_PASSED, DEVICE_ID]);
                return;
            }
            _ => {
                self.queue.push_back(RESEND);
                return;
            }
        }
        self.queue.push_back(ACK);
    }
}

/// The saved state of a mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseV1 {
    queue: Vec<u8>,
    command: Option<u8>,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling_2_to_1: bool,
    resolution: u8,
    sample_rate: u8,
    buttons: u8,
    dx: i32,
    dy: i32,
    last_sent: u8,
}

impl Mouse {
    /// The state now.
    pub fn save(&self) -> MouseV1 {
        let Self {
            ref queue,
            command,
            reporting,
            remote,
            wrap,
            scaling_2_to_1,
            resolution,
            sample_rate,
            buttons,
            dx,
            dy,
            last_sent,
        } = *self;
        MouseV1 {
            queue: queue.iter().copied().collect(),
            command,
            reporting,
            remote,
            wrap,
            scaling_2_to_1,
            resolution,
            sample_rate,
            buttons,
            dx,
            dy,
            last_sent,
        }
    }

    /// The mouse with `state`; `None` if no mouse can have it.
    pub fn restored(state: MouseV1) -> Option<Self> {
        let MouseV1 {
            queue,
            command,
            reporting,
            remote,
            wrap,
            scaling_2_to_1,
            resolution,
            sample_rate,
            buttons,
            dx,
            dy,
            last_sent,
        } = state;
        let possible = queue.len() <= QUEUE_SIZE && resolution <= 3 && buttons & !BUTTONS == 0;
        possible.then(|| Self {
            queue: queue.into(),
            command,
            reporting,
            remote,
            wrap,
            scaling_2_to_1,
            resolution,
            sample_rate,
            buttons,
            dx,
            dy,
            last_sent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.send()).collect()
    }

    fn answer(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        for &byte in bytes {
            mouse.receive(byte);
            answer.extend(sent(mouse));
        }
        answer
    }

    #[test]
    fn commands_are_answered() {
        for (bytes, expected) in [
            (&[0xFF][..], &[0xFA, 0xAA, 0x00][..]),
            (&[0xF2], &[0xFA, 0x00]),
            (&[0xE9], &[0xFA, 0x00, 2, 100]),
            (&[0xF4, 0xE7, 0xF0, 0xE9], &[0xFA, 0xFA, 0xFA, 0xFA, 0x70, 2, 100]),
            (&[0xE8, 3, 0xF3, 200, 0xE9], &[0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 0x00, 3, 200]),
            (&[0xE7, 0xF4, 0xE6, 0xF5, 0xE9], &[0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 0x00, 2, 100]),
            (&[0xF3, 10, 0xF6, 0xE9], &[0xFA, 0xFA, 0xFA, 0xFA, 0x00, 2, 100]),
            (&[0xE8, 4], &[0xFA, 0xFE]),
            (&[0xEE, 0x12, 0xF2, 0xEC, 0xF2], &[0xFA, 0x12, 0xF2, 0xFA, 0xFA, 0x00]),
            (&[0xF2, 0xFE], &[0xFA, 0x00, 0x00]),
            (&[0xEB], &[0xFA, 0x08, 0, 0]),
            (&[0x01], &[0xFE]),
        ] {
            assert_eq!(answer(&mut Mouse::new(), bytes), expected, "{bytes:02X?}");
        }
    }

    #[test]
    fn movement_is_reported_when_it_is_asked_for() {
        let mut mouse = Mouse::new();
        mouse.moved(1, 1, 0);
        assert!(sent(&mut mouse).is_empty(), "reporting is disabled");
        answer(&mut mouse, &[0xF4]);
        mouse.moved(5, -2, 1);
        assert_eq!(sent(&mut mouse), [0x29, 5, 0xFE]);
        mouse.moved(0, 0, 1);
        assert!(sent(&mut mouse).is_empty());
        mouse.moved(0, 0, 6);
        assert_eq!(sent(&mut mouse), [0x0E, 0, 0]);
        assert_eq!(answer(&mut mouse, &[0xE9])[1], 0x23, "right and middle");
    }

    #[test]
    fn long_ways_take_several_packets_and_slow_readers_get_sums() {
        let mut mouse = Mouse::new();
        answer(&mut mouse, &[0xF4]);
        mouse.moved(300, -300, 0);
        assert_eq!(sent(&mut mouse), [0x28, 255, 0, 0x28, 45, 212]);
        for _ in 0..100 {
            mouse.moved(1, 0, 0);
        }
        assert_eq!(sent(&mut mouse), [0x08, 1, 0, 0x08, 99, 0]);
    }

    #[test]
    fn remote_mode_reports_on_demand_only() {
        let mut mouse = Mouse::new();
        answer(&mut mouse, &[0xF4, 0xF0]);
        mouse.moved(1, 2, 2);
        mouse.moved(1, 2, 2);
        assert!(sent(&mut mouse).is_empty());
        assert_eq!(answer(&mut mouse, &[0xEB]), [0xFA, 0x0A, 2, 4]);
    }
}
