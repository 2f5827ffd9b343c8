//! Packets on the wire: `$`, data, `#`, two hexadecimal digits of checksum (gdb's manual, E.1).

/// What has come in whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A packet with its frame; the checksum is right.
    Packet(Vec<u8>),
    /// A packet that was changed on its way, or is too long.
    Damaged,
    /// Ctrl-C: the byte 3 between packets.
    Interrupt,
    /// The client wants the last answer again.
    Nack,
}

/// Cuts a stream of bytes.
#[derive(Debug)]
pub(super) struct Framer {
    most: usize,
    packet: Vec<u8>,
    /// The packet is longer than `most`; the rest of it is thrown away.
    too_long: bool,
    /// Digits of the checksum that are still to come, once `#` has come.
    digits: Option<u8>,
}

impl Framer {
    /// Packets have at most `most` bytes with their frame.
    pub(super) fn new(most: usize) -> Self {
        Self { most, packet: Vec::new(), too_long: false, digits: None }
    }

    pub(super) fn push(&mut self, byte: u8) -> Option<Frame> {
        if self.packet.is_empty() {
            match byte {
                b'$' => self.packet.push(byte),
                0x03 => return Some(Frame::Interrupt),
                b'-' => return Some(Frame::Nack),
                _ => {}
            }
            return None;
        }
        if self.digits.is_none() && byte == b'$' {
            // The end of the one before has been lost.
            self.restart();
            self.packet.push(byte);
            return None;
        }
        if self.packet.len() < self.most {
            self.packet.push(byte);
        } else {
            self.too_long = true;
        }
        match self.digits {
            None if byte == b'#' => self.digits = Some(2),
            None => {}
            Some(1) => {
                let whole = !self.too_long && is_sound(&self.packet);
                let packet = std::mem::take(&mut self.packet);
                self.restart();
                return Some(if whole { Frame::Packet(packet) } else { Frame::Damaged });
            }
            Some(left) => self.digits = Some(left - 1),
        }
        None
    }

    fn restart(&mut self) {
        self.packet.clear();
        (self.too_long, self.digits) = (false, None);
    }
}

/// Whether the checksum of `$data#xx` is right.
fn is_sound(packet: &[u8]) -> bool {
    let Some((body, digits)) = packet.split_last_chunk::<2>() else { return false };
    let data = body.get(1..body.len().saturating_sub(1)).unwrap_or_default();
    let sum = data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let given = str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
    given == Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut framer = Framer::new(16);
        bytes.iter().filter_map(|byte| framer.push(*byte)).collect()
    }

    fn packet(text: &str) -> Frame {
        Frame::Packet(text.as_bytes().to_vec())
    }

    #[test]
    fn packets_are_cut_and_checked() {
        assert_eq!(
            frames(b"+$?#3f+\x03$g#67"),
            [packet("$?#3f"), Frame::Interrupt, packet("$g#67")]
        );
        assert_eq!(frames(b"$g#68-"), [Frame::Damaged, Frame::Nack]);
        assert_eq!(frames(b"$g#+7"), [Frame::Damaged]);
        assert_eq!(frames(b"$m10,$?#3f"), [packet("$?#3f")]);
        assert_eq!(frames(b"$12345678901234567890#00$?#3f"), [Frame::Damaged, packet("$?#3f")]);
        assert_eq!(frames(b"garbage\n"), []);
    }
}
