//! How many new findings a second are told: a token bucket.
//!
//! A storm of findings would bury its first ones and keep their reader busy for
//! ever. Each new finding takes a token; without one the event is counted as
//! dropped for that cause. Only telling is limited: what root mode does about a
//! page never depends on it. Pure; owned by the assembler.

/// Findings that may come at once.
pub(super) const BURST: u64 = 128;
/// Findings a second in the long run.
pub(super) const PER_SECOND: u64 = 16;

/// 100 ns units for one token.
const PERIOD: u64 = 10_000_000 / PER_SECOND;

/// The bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: u64,
    /// Up to when tokens have been added, 100 ns since 1601.
    filled: u64,
}

impl Bucket {
    /// A full bucket.
    pub(super) const FULL: Bucket = Bucket {
        tokens: BURST,
        filled: 0,
    };

    /// Takes a token at `now`; `false` if there is none. A clock that goes back
    /// adds nothing.
    pub(super) fn take(&mut self, now: u64) -> bool {
        let due = now.saturating_sub(self.filled) / PERIOD;
        if self.tokens.saturating_add(due) >= BURST {
            self.tokens = BURST;
            self.filled = self.filled.max(now);
        } else {
            self.tokens += due;
            self.filled += due * PERIOD;
        }
        let taken = self.tokens > 0;
        self.tokens -= u64::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 10_000_000;

    fn taken(bucket: &mut Bucket, now: u64) -> u64 {
        (0..1000).map(|_| u64::from(bucket.take(now))).sum()
    }

    #[test]
    fn a_burst_then_a_trickle() {
        let mut bucket = Bucket::FULL;
        let start = 1000 * SECOND;
        assert_eq!(taken(&mut bucket, start), BURST);
        assert_eq!(taken(&mut bucket, start), 0);
        assert_eq!(taken(&mut bucket, start + SECOND), PER_SECOND);
        assert_eq!(taken(&mut bucket, start + SECOND + PERIOD - 1), 0);
        assert_eq!(taken(&mut bucket, start + SECOND + PERIOD), 1);
        // Quiet for long: full again, and no fuller.
        assert_eq!(taken(&mut bucket, start + 3600 * SECOND), BURST);
        assert_eq!(taken(&mut bucket, start + 3601 * SECOND), PER_SECOND);
    }

    #[test]
    fn asking_often_loses_no_part_of_a_token() {
        let mut bucket = Bucket::FULL;
        let start = 1000 * SECOND;
        taken(&mut bucket, start);
        let more: u64 = (1..=100)
            .map(|tenth| u64::from(bucket.take(start + tenth * SECOND / 10)))
            .sum();
        assert_eq!(more, 100, "16 a second are due, 10 are asked for");
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing() {
        let mut bucket = Bucket::FULL;
        assert_eq!(taken(&mut bucket, 50 * SECOND), BURST);
        assert_eq!(taken(&mut bucket, 10 * SECOND), 0);
        assert_eq!(taken(&mut bucket, 51 * SECOND), PER_SECOND);
    }
}
