//! The entropy device (Virtio 1.2, 5.4): it fills what the driver gives it with random bytes.

use board::Entropy;
use board::device::Paused;
use board::state::{ErasedSnapshot, Snapshot, StateError};
use serde::{Deserialize, Serialize};

use super::device::{ENTROPY, Kind, VirtioDevice, read_bytes};
use super::{Chain, Io};

/// The most bytes of one request: the driver asks again for more, and a chain of 4 GiB is no work
/// for the loop's thread.
const MAX_REQUEST: u32 = 64 << 10;

/// The device.
pub struct Rng {
    source: Entropy,
}

impl Rng {
    /// A device that draws on `source`.
    pub fn new(source: Entropy) -> Self {
        Self { source }
    }

    fn fill(&mut self, chain: Chain, io: &mut Io<'_>) {
        let mut buffer = [0; 1024];
        let wanted = chain.writable_len().min(MAX_REQUEST);
        let mut done = 0;
        while done < wanted {
            let piece = &mut buffer[..(wanted - done).min(1024) as usize];
            // A host that has no more gives the driver fewer bytes.
            if !self.source.fill(piece) {
                break;
            }
            chain.write_at(io.ram(), done, piece);
            done += piece.len() as u32;
        }
        io.push(0, chain, done);
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

    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        Some(self)
    }

    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// The saved state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RngV1 {
    /// How far a stream that a seed gives has been used.
    position: u64,
}

impl Snapshot for Rng {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u32 = 1;
    type State = RngV1;

    fn save(&self) -> RngV1 {
        let Self { source } = self;
        RngV1 { position: source.position() }
    }

    fn restore(&mut self, state: RngV1) -> Result<(), StateError> {
        let RngV1 { position } = state;
        self.source.seek(position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, Rig, descriptor, peek, poke};
    use super::*;

    #[test]
    fn buffers_are_filled_in_their_order() {
        let source = || Entropy::seeded(7, "rng");
        let mut rig = Rig::new(4 << 20, |_, _| Box::new(Rng::new(source())));
        let mut rings = rig.start(0, 8);
        let at = Rig::BUFFERS;
        let first = rings[0].add(&[Buffer::room(at, 3), Buffer::room(at + 8, 5)]).unwrap();
        let second = rings[0].add(&[Buffer::room(0x20_0000, 1 << 20)]).unwrap();
        rig.kick(0);
        assert_eq!(rings[0].take(), Some((first, 8)));
        assert_eq!(rings[0].take(), Some((second, MAX_REQUEST)));
        let mut expected = [0; 24];
        source().fill(&mut expected);
        assert_eq!(peek::<3>(&rig.ram, at), expected[..3]);
        assert_eq!(peek::<5>(&rig.ram, at + 8), expected[3..8]);
        assert_eq!(peek::<16>(&rig.ram, 0x20_0000), expected[8..]);
    }

    #[test]
    fn a_seeded_stream_goes_on_after_a_restore() {
        let rig = || Rig::new(4 << 20, |_, _| Box::new(Rng::new(Entropy::seeded(7, "rng"))));
        let (mut one, other) = (rig(), rig());
        let mut rings = one.start(0, 8);
        rings[0].add(&[Buffer::room(Rig::BUFFERS, 8)]);
        one.kick(0);
        one.copy_to(&other, 4 << 20);
        for mut rig in [one, other] {
            let bytes = descriptor(Rig::BUFFERS, 8, 2, 0);
            poke(&rig.ram, rings[0].descriptors + 16, &bytes);
            poke(&rig.ram, rings[0].avail + 2, &[2, 0]);
            poke(&rig.ram, rings[0].avail + 6, &[1, 0]);
            rig.slot.lock().resume();
            rig.turn();
            let mut expected = [0; 16];
            Entropy::seeded(7, "rng").fill(&mut expected);
            assert_eq!(peek::<8>(&rig.ram, Rig::BUFFERS), expected[8..]);
        }
    }
}
