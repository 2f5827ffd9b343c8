//! Bytes from a terminal (or a pipe) to keys: UTF-8, control characters and the escape sequences
//! of ECMA-48 terminals, cut anywhere between two reads.

/// A key, as far as the line editor tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A character to insert.
    Char(char),
    Enter,
    Tab,
    Left,
    Right,
    WordLeft,
    WordRight,
    Home,
    End,
    Up,
    Down,
    Backspace,
    Delete,
    /// Up to the end of the line.
    KillToEnd,
    /// All before the cursor.
    KillToStart,
    KillWordLeft,
    KillWordRight,
    /// Give the line up.
    Abandon,
    ClearScreen,
}

/// More parameter bytes than any key sends.
const MAX_SEQUENCE: usize = 16;

#[derive(Debug, Default)]
enum State {
    #[default]
    Ground,
    /// Within a character of several bytes.
    Utf8(Vec<u8>),
    Escape,
    /// ESC [, with what came after it.
    Csi(Vec<u8>),
    /// ESC O
    Ss3,
}

/// The decoder's state between two bytes.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    after_cr: bool,
}

impl Decoder {
    /// Takes one byte; gives the key that it completes.
    pub(crate) fn feed(&mut self, byte: u8) -> Option<Key> {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        match std::mem::take(&mut self.state) {
            State::Utf8(mut bytes) if byte & 0xc0 == 0x80 => {
                bytes.push(byte);
                match std::str::from_utf8(&bytes) {
                    Ok(text) => text.chars().next().filter(|c| !c.is_control()).map(Key::Char),
                    Err(error) => {
                        if error.error_len().is_none() {
                            self.state = State::Utf8(bytes);
                        }
                        None
                    }
                }
            }
            // A character that broke off is dropped.
            State::Ground | State::Utf8(_) => self.ground(byte, after_cr),
            State::Escape => self.escape(byte),
            State::Csi(mut sequence) => match byte {
                0x40..=0x7e => csi(&sequence, byte),
                0x20..=0x3f if sequence.len() < MAX_SEQUENCE => {
                    sequence.push(byte);
                    self.state = State::Csi(sequence);
                    None
                }
                _ => self.ground(byte, after_cr),
            },
            State::Ss3 => csi(&[], byte),
        }
    }

    fn ground(&mut self, byte: u8, after_cr: bool) -> Option<Key> {
        Some(match byte {
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Abandon,
            0x04 => Key::Delete,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x08 | 0x7f => Key::Backspace,
            b'\t' => Key::Tab,
            b'\n' if after_cr => return None,
            b'\r' | b'\n' => Key::Enter,
            0x0b => Key::KillToEnd,
            0x0c => Key::ClearScreen,
            0x0e => Key::Down,
            0x10 => Key::Up,
            0x15 => Key::KillToStart,
            0x17 => Key::KillWordLeft,
            0x1b => {
                self.state = State::Escape;
                return None;
            }
            0x20..=0x7e => Key::Char(byte.into()),
            0xc2..=0xf4 => {
                self.state = State::Utf8(vec![byte]);
                return None;
            }
            _ => return None,
        })
    }

    fn escape(&mut self, byte: u8) -> Option<Key> {
        match byte {
            b'[' => self.state = State::Csi(Vec::new()),
            b'O' => self.state = State::Ss3,
            0x1b => self.state = State::Escape,
            b'b' => return Some(Key::WordLeft),
            b'f' => return Some(Key::WordRight),
            b'd' => return Some(Key::KillWordRight),
            0x08 | 0x7f => return Some(Key::KillWordLeft),
            b'\r' | b'\n' => return Some(Key::Enter),
            _ => {}
        }
        None
    }
}

/// The key of a control sequence with these parameters and this final byte.
fn csi(parameters: &[u8], end: u8) -> Option<Key> {
    // `1;5C`: with Control; `1;3C`: with Alt.
    let by_word = parameters.ends_with(b";5") || parameters.ends_with(b";3");
    Some(match (end, parameters) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) if by_word => Key::WordRight,
        (b'D', _) if by_word => Key::WordLeft,
        (b'C', _) => Key::Right,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', b"1" | b"7") => Key::Home,
        (b'F', _) | (b'~', b"4" | b"8") => Key::End,
        (b'~', b"3") => Key::Delete,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|byte| decoder.feed(*byte)).collect()
    }

    #[test]
    fn line_ends_of_all_kinds_are_one_enter_each() {
        use Key::{Char, Enter};
        assert_eq!(
            keys(b"a\r\nb\nc\r\r"),
            [Char('a'), Enter, Char('b'), Enter, Char('c'), Enter, Enter]
        );
    }

    #[test]
    fn escape_sequences_are_keys() {
        assert_eq!(
            keys(b"\x1b[A\x1bOB\x1b[3~\x1b[1;5C\x1b[H\x1bOF\x1bb\x1b[99;99q"),
            [Key::Up, Key::Down, Key::Delete, Key::WordRight, Key::Home, Key::End, Key::WordLeft]
        );
    }

    #[test]
    fn broken_utf8_is_dropped_and_nothing_after_it() {
        assert_eq!(keys("é😀".as_bytes()), [Key::Char('é'), Key::Char('😀')]);
        assert_eq!(keys(b"\xc3x\xff\xf0\x9f\ny"), [Key::Char('x'), Key::Enter, Key::Char('y')]);
        assert_eq!(keys(b"\xe0\x80\x80z"), [Key::Char('z')]);
    }
}
