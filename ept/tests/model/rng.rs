//! A small deterministic generator (xorshift64*), so that an interleaving is
//! named by its seed.

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// How often to repeat a test: `normal` times the environment variable
/// `HVDETECT_EFFORT`, 1 unless set.
pub(crate) fn scaled(normal: u32) -> u32 {
    let effort = std::env::var("HVDETECT_EFFORT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    normal.saturating_mul(effort)
}
