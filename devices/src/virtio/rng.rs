//! The entropy device (Virtio 1.2, 5.4): it fills what the driver gives it with random bytes.

use board::device::Paused;

use super::device::{ENTROPY, Kind, VirtioDevice, read_bytes};
use super::{Chain, Io};

/// The most bytes of one request: the driver asks again for more, and a chain of 4 GiB is no work
/// for the loop's thread.
const MAX_REQUEST: u32 = 64 << 10;

/// Where random bytes come from.
pub trait EntropySource: Send {
    /// Fills `data`.
    fn fill(&mut self, data: &mut [u8]);
}

/// The kernel's random numbers.
#[derive(Debug, Default)]
pub struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&mut self, data: &mut [u8]) {
        for piece in data.chunks_mut(256) {
            // It fails for a bad address only, and up to 256 bytes come whole.
            let _ = rustix::rand::getrandom(piece, rustix::rand::GetRandomFlags::empty());
        }
    }
}

/// The device.
pub struct Rng {
    source: Box<dyn EntropySource>,
}

impl Rng {
    /// A device that draws on `source`.
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self { source }
    }

    fn fill(&mut self, chain: Chain, io: &mut Io<'_>) {
        let mut buffer = [0; 1024];
        let wanted = chain.writable_len().min(MAX_REQUEST);
        let mut done = 0;
        while done < wanted {
            let piece = &mut buffer[..(wanted - done).min(1024) as usize];
            self.source.fill(piece);
            chain.write_at(io.ram(), done, piece);
            done += piece.len() as u32;
        }
        io.push(0, chain, wanted);
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&[], offset, data);
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        io.serve(queue, |io, chain| self.fill(chain, io));
    }

    fn reset(&mut self) -> Paused {
        Paused::Done
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, Rig, peek};
    use super::*;

    /// Counts up.
    struct Counter(u8);

    impl EntropySource for Counter {
        fn fill(&mut self, data: &mut [u8]) {
            for byte in data {
                *byte = self.0;
                self.0 = self.0.wrapping_add(1);
            }
        }
    }

    #[test]
    fn buffers_are_filled_in_their_order() {
        let mut rig = Rig::new(4 << 20, |_, _| Box::new(Rng::new(Box::new(Counter(0)))));
        let mut rings = rig.start(0, 8);
        let at = Rig::BUFFERS;
        let first = rings[0].add(&[Buffer::room(at, 3), Buffer::room(at + 8, 2)]).unwrap();
        let second = rings[0].add(&[Buffer::room(0x20_0000, 1 << 20)]).unwrap();
        rig.kick(0);
        assert_eq!(peek(&rig.ram, at), [0, 1, 2, 0, 0, 0, 0, 0, 3, 4, 0]);
        assert_eq!(rings[0].take(), Some((first, 5)));
        assert_eq!(rings[0].take(), Some((second, MAX_REQUEST)));
        assert_eq!(peek(&rig.ram, 0x20_0000 + 1030), [11, 12]);
    }

    #[test]
    fn the_hosts_numbers_differ() {
        let (mut one, mut other) = ([0; 300], [0; 300]);
        HostEntropy.fill(&mut one);
        HostEntropy.fill(&mut other);
        assert_ne!(one, other);
        assert_ne!(one[256..], [0; 44]);
    }
}
