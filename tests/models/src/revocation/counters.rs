//! Counters: only one of them means something here.

/// A counter that nobody reads.
#[derive(Debug, Default)]
pub struct Counter {
    forbidden: bool,
}

/// What the genuine sources count.
#[derive(Debug)]
#[expect(missing_docs, reason = "as in hv-core")]
pub struct Counters {
    pub invalidations: Counter,
    pub kicks_sent: Counter,
    pub kicks_taken: Counter,
    pub unanswered: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            invalidations: Counter::default(),
            kicks_sent: Counter::default(),
            kicks_taken: Counter::default(),
            unanswered: Counter { forbidden: true },
        }
    }
}

impl Counters {
    /// Adds one.
    pub fn bump(counter: &Counter) {
        assert!(!counter.forbidden, "a core has not acknowledged");
    }
}
