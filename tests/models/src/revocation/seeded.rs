//! Planted faults of the product: none here, the variants have their own.

/// The mistakes that genuine sources name.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in hv-core")]
pub enum Planted {
    SkipAcknowledge,
    SkipKick,
    SlowCore,
}

/// Never.
#[must_use]
pub fn is(_: Planted) -> bool {
    false
}
