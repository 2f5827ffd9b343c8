//! What the multiplexer of a shared terminal does to the bytes: the escape key and time stamps.
//!
//! Several frontends (serial ports, the monitor) share one backend; keys go to the one that has
//! the focus. A key after the escape key (Ctrl-A unless set otherwise) is a command to the
//! multiplexer, with the letters that QEMU's users know.

use std::time::Instant;

/// What a byte that was typed comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// It is for the frontend that has the focus.
    Byte(u8),
    Help,
    Quit,
    SaveDisks,
    Timestamps,
    Break,
    Switch,
}

/// The state of the keyboard's escape and of the time stamps.
#[derive(Debug)]
pub(super) struct Mux {
    escape: u8,
    escaped: bool,
    stamps_since: Option<Instant>,
    at_line_start: bool,
}

impl Mux {
    pub(super) fn new(escape: u8) -> Self {
        Self { escape, escaped: false, stamps_since: None, at_line_start: true }
    }

    /// Takes a byte from the terminal. `None`: it was the escape key, or no command.
    pub(super) fn typed(&mut self, byte: u8) -> Option<Typed> {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == self.escape;
            return (!self.escaped).then_some(Typed::Byte(byte));
        }
        if byte == self.escape {
            return Some(Typed::Byte(byte));
        }
        match byte {
            b'h' | b'?' => Some(Typed::Help),
            b'x' => Some(Typed::Quit),
            b's' => Some(Typed::SaveDisks),
            b't' => Some(Typed::Timestamps),
            b'b' => Some(Typed::Break),
            b'c' => Some(Typed::Switch),
            _ => None,
        }
    }

    /// The peer has gone: a half-typed command is not for the next one to finish.
    pub(super) fn reset(&mut self) {
        self.escaped = false;
    }

    /// Turns time stamps on, counted from now, or off.
    pub(super) fn toggle_stamps(&mut self) {
        self.stamps_since = match self.stamps_since {
            Some(_) => None,
            None => Some(Instant::now()),
        };
        self.at_line_start = true;
    }

    /// Whether lines of output get time stamps.
    pub(super) fn stamps(&self) -> bool {
        self.stamps_since.is_some()
    }

    /// The stamp that belongs before the next byte of output, if it begins a line.
    pub(super) fn stamp(&self) -> Option<String> {
        let since = self.stamps_since.filter(|_| self.at_line_start)?;
        let ms = since.elapsed().as_millis();
        let (s, ms) = (ms / 1000, ms % 1000);
        Some(format!("[{:02}:{:02}:{:02}.{ms:03}] ", s / 3600, s / 60 % 60, s % 60))
    }

    /// `output`, a part of a line, was written.
    pub(super) fn wrote(&mut self, output: &[u8]) {
        if let Some(&last) = output.last() {
            self.at_line_start = last == b'\n';
        }
    }

    /// The answer to the key h.
    pub(super) fn help(&self) -> String {
        let key = match self.escape {
            control @ 0..=0x1f => format!("Ctrl-{}", char::from(control + b'@')),
            key => char::from(key).to_string(),
        };
        let rows = [
            ("h", "this list"),
            ("x", "quit"),
            ("s", "write the disks' snapshot data back to their files"),
            ("t", "time stamps on or off"),
            ("b", "send a break (SysRq on a serial console)"),
            ("c", "switch between console and monitor"),
            (key.as_str(), "send the key itself"),
        ];
        let mut text = String::from("\r\n");
        for (letter, meaning) in rows {
            text += &format!("{key} {letter:<8}{meaning}\r\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(mux: &mut Mux, keys: &[u8]) -> Vec<Typed> {
        keys.iter().filter_map(|&key| mux.typed(key)).collect()
    }

    #[test]
    fn the_escape_key_makes_commands() {
        use Typed::{Break, Byte, Help, Quit, SaveDisks, Switch, Timestamps};
        let mut mux = Mux::new(1);
        assert_eq!(
            typed(&mut mux, b"ch\x01h\x01?\x01x\x01s\x01t\x01b\x01c"),
            [Byte(b'c'), Byte(b'h'), Help, Help, Quit, SaveDisks, Timestamps, Break, Switch]
        );
        assert_eq!(typed(&mut mux, b"\x01\x01c"), [Byte(1), Byte(b'c')]);
        assert_eq!(typed(&mut mux, b"\x01zc"), [Byte(b'c')], "an unknown command is swallowed");
    }

    #[test]
    fn another_escape_key_leaves_ctrl_a_alone() {
        let mut mux = Mux::new(b'~');
        assert_eq!(typed(&mut mux, b"\x01~x"), [Typed::Byte(1), Typed::Quit]);
        assert!(mux.help().contains("~ x"));
        assert!(Mux::new(1).help().contains("Ctrl-A Ctrl-A"));
    }

    #[test]
    fn a_new_peer_starts_unescaped() {
        let mut mux = Mux::new(1);
        assert_eq!(mux.typed(1), None);
        mux.reset();
        assert_eq!(mux.typed(b'x'), Some(Typed::Byte(b'x')));
    }

    #[test]
    fn stamps_stand_at_line_starts_only() {
        let mut mux = Mux::new(1);
        assert_eq!(mux.stamp(), None);
        mux.toggle_stamps();
        let stamp = mux.stamp().unwrap();
        assert!(stamp.starts_with("[00:00:0") && stamp.ends_with("] "), "{stamp}");
        mux.wrote(b"half");
        assert_eq!(mux.stamp(), None);
        mux.wrote(b" line\n");
        assert!(mux.stamp().is_some());
        mux.toggle_stamps();
        assert_eq!(mux.stamp(), None);
    }
}
