//! Random numbers for the guest: the host's, or with `--seed` a stream that is the same in each run.
//!
//! The stream is SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
//! OOPSLA 2014): the n-th number is a function of seed and n, so that a position is all there is to
//! save. It is meant to repeat, not to keep secrets.

/// A source of random numbers that belongs to one device or vCPU.
#[derive(Clone, Debug)]
pub struct Entropy {
    /// `None`: the host's.
    seed: Option<u64>,
    position: u64,
}

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

impl Entropy {
    /// The host's random numbers.
    pub fn host() -> Self {
        Self { seed: None, position: 0 }
    }

    /// The numbers that `seed` gives the user `name`, such as `cpu0` or `virtio-rng0`.
    pub fn seeded(seed: u64, name: &str) -> Self {
        let start =
            name.bytes().fold(mix(seed), |h, byte| mix(h.wrapping_add(GAMMA) ^ u64::from(byte)));
        Self { seed: Some(start), position: 0 }
    }

    /// [`Entropy::seeded`] where there is a seed, else [`Entropy::host`].
    pub fn new(seed: Option<u64>, name: &str) -> Self {
        seed.map_or_else(Self::host, |seed| Self::seeded(seed, name))
    }

    /// The next number; `None` when the host has none.
    pub fn number(&mut self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// Fills `data`; false, and nothing of it counts, when the host fails. Each call takes whole
    /// numbers of 8 bytes from a stream that a seed gives.
    pub fn fill(&mut self, data: &mut [u8]) -> bool {
        let Some(seed) = self.seed else { return fill_from_host(data) };
        for chunk in data.chunks_mut(8) {
            self.position = self.position.wrapping_add(1);
            let number = mix(seed.wrapping_add(self.position.wrapping_mul(GAMMA)));
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
        true
    }

    /// How many numbers have been taken from a stream that a seed gives; 0 without one.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on as if `position` numbers had been taken.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }
}

fn fill_from_host(data: &mut [u8]) -> bool {
    let mut rest = data;
    while !rest.is_empty() {
        // SAFETY: `rest` is that many writable bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        let Ok(got) = usize::try_from(got) else { return false };
        rest = &mut rest[got..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_names_differ() {
        let take = |mut e: Entropy| [e.number(), e.number(), e.number()];
        assert_eq!(take(Entropy::seeded(5, "cpu0")), take(Entropy::new(Some(5), "cpu0")));
        assert_ne!(take(Entropy::seeded(5, "cpu0")), take(Entropy::seeded(5, "cpu1")));
        assert_ne!(take(Entropy::seeded(5, "cpu0")), take(Entropy::seeded(6, "cpu0")));
        assert_ne!(take(Entropy::host()), take(Entropy::host()));
    }

    #[test]
    fn a_position_is_all_there_is_to_save() {
        let mut first = Entropy::seeded(1, "a");
        let mut bytes = [0; 20];
        assert!(first.fill(&mut bytes));
        assert_eq!(first.position(), 3);
        let mut second = Entropy::seeded(1, "a");
        second.seek(first.position());
        assert_eq!(first.number(), second.number());
    }
}
