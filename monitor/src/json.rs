//! JSON values out of a stream of bytes that is cut anywhere, and JSON as QMP spaces it.
//!
//! Strings may also stand in single quotes, which is QEMU's extension of JSON. After a value that
//! is broken the rest of its line is dropped, and the next line begins afresh.

use std::collections::VecDeque;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Deepest nesting; serde_json's own bound lies above it.
const MAX_DEPTH: usize = 100;

/// Splits the stream into values.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    input: VecDeque<u8>,
    /// The value as far as it is there, its strings in double quotes.
    message: Vec<u8>,
    /// The closing brackets that are still to come.
    open: Vec<u8>,
    /// Within a string: the quote that ends it.
    quote: Option<u8>,
    /// Behind a backslash.
    escaped: bool,
    /// Dropping the rest of a broken line.
    skipping: bool,
}

impl Reader {
    /// Adds bytes that came in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }

    /// The next value, or what is wrong with it; `None` where more bytes are needed.
    pub(crate) fn next(&mut self) -> Option<Result<Value, String>> {
        while let Some(byte) = self.input.pop_front() {
            if self.skipping {
                self.skipping = byte != b'\n';
                continue;
            }
            if self.message.len() > MAX_MESSAGE {
                return Some(self.fail(byte, "JSON token size limit exceeded".to_owned()));
            }
            let result = match self.quote {
                Some(quote) => self.in_string(quote, byte),
                None => self.outside(byte),
            };
            if result.is_some() {
                return result;
            }
        }
        None
    }

    fn in_string(&mut self, quote: u8, byte: u8) -> Option<Result<Value, String>> {
        if byte < 0x20 {
            let text = format!("JSON parse error, control character {byte:#04x} in a string");
            return Some(self.fail(byte, text));
        }
        if std::mem::take(&mut self.escaped) {
            // JSON knows no \', which single quotes need.
            match byte {
                b'\'' => self.message.push(byte),
                _ => self.message.extend([b'\\', byte]),
            }
            return None;
        }
        match byte {
            b'\\' => self.escaped = true,
            _ if byte == quote => {
                self.quote = None;
                self.message.push(b'"');
                if self.open.is_empty() {
                    return Some(self.finish());
                }
            }
            b'"' => self.message.extend(b"\\\""),
            _ => self.message.push(byte),
        }
        None
    }

    fn outside(&mut self, byte: u8) -> Option<Result<Value, String>> {
        let in_word = self.open.is_empty() && !self.message.is_empty();
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if in_word => return Some(self.finish()),
            b'{' | b'[' | b'"' | b'\'' if in_word => {
                self.input.push_front(byte);
                return Some(self.finish());
            }
            b' ' | b'\t' | b'\r' | b'\n' => {
                if !self.open.is_empty() {
                    self.message.push(byte);
                }
            }
            b'"' | b'\'' => {
                self.quote = Some(byte);
                self.message.push(b'"');
            }
            b'{' | b'[' => {
                if self.open.len() == MAX_DEPTH {
                    let text = "JSON nesting depth limit exceeded".to_owned();
                    return Some(self.fail(byte, text));
                }
                self.open.push(if byte == b'{' { b'}' } else { b']' });
                self.message.push(byte);
            }
            b'}' | b']' => {
                if self.open.pop() != Some(byte) {
                    let text = "JSON parse error, expecting value".to_owned();
                    return Some(self.fail(byte, text));
                }
                self.message.push(byte);
                if self.open.is_empty() {
                    return Some(self.finish());
                }
            }
            0x21..=0x7e => self.message.push(byte),
            _ => {
                let text = format!("JSON parse error, stray byte {byte:#04x}");
                return Some(self.fail(byte, text));
            }
        }
        None
    }

    fn finish(&mut self) -> Result<Value, String> {
        let message = std::mem::take(&mut self.message);
        serde_json::from_slice(&message).map_err(|error| format!("JSON parse error, {error}"))
    }

    /// Gives the value up, at this byte.
    fn fail(&mut self, byte: u8, why: String) -> Result<Value, String> {
        let input = std::mem::take(&mut self.input);
        *self = Self { input, skipping: byte != b'\n', ..Self::default() };
        Err(why)
    }
}

/// Spaces behind colons and commas.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// One message, with its line end.
pub(crate) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    message
        .serialize(&mut Serializer::with_formatter(&mut out, Spaced))
        .expect("replies have string keys, and a Vec takes all");
    out.extend(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<Result<Value, String>> {
        let mut reader = Reader::default();
        let mut values = Vec::new();
        for byte in bytes {
            reader.push(&[*byte]);
            while let Some(value) = reader.next() {
                values.push(value);
            }
        }
        values
    }

    #[test]
    fn values_are_split_wherever_they_end() {
        assert_eq!(
            read(b" {\"a\":\r\n[1,\"}\"]}{'b':'x\"\\'y'}5 \"s\" [] "),
            [
                Ok(json!({"a": [1, "}"]})),
                Ok(json!({"b": "x\"'y"})),
                Ok(json!(5)),
                Ok(json!("s")),
                Ok(json!([])),
            ]
        );
    }

    #[test]
    fn a_broken_line_is_one_error() {
        for broken in [
            &b"{\"a\": [}, 1, 2}"[..],
            b"}",
            b"{\"a\": \"b",
            b"nonsense",
            b"{\"a\" 1}",
            b"\xff\xfe{",
            b"{\"a\":\x00}",
            b"{\"a\":\"\\q\"}",
            b"{\"a\":\"\xc3\"}",
        ] {
            let values = read(&[broken, b"\n{}\n"].concat());
            assert!(matches!(&values[..], [Err(_), Ok(_)]), "{values:?}");
        }
    }

    #[test]
    fn size_and_depth_have_bounds() {
        let deep = [vec![b'['; 101], b"\n{}".to_vec()].concat();
        assert_eq!(read(&deep)[0], Err("JSON nesting depth limit exceeded".to_owned()));
        let long = [b"\"".to_vec(), vec![b'x'; MAX_MESSAGE + 1], b"\n{}".to_vec()].concat();
        let values = read(&long);
        assert_eq!(values, [Err("JSON token size limit exceeded".to_owned()), Ok(json!({}))]);
    }
}
