//! Sets of frames, for root mode: a few instructions a question.
//!
//! In private memory, used under the transition lock. They forget: who is not
//! found is looked up in the snapshot once more, which costs time and nothing
//! else.

use core::sync::atomic::{AtomicU64, Ordering};

/// A set of frames that forgets: an insertion may push another frame out. What
/// is forgotten is asked about once more. All zeros is empty.
#[repr(C)]
pub(crate) struct FrameSet([AtomicU64; Self::PLACES]);

impl FrameSet {
    const PLACES: usize = 512;

    fn place(&self, pfn: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(pfn).ok()? % Self::PLACES)
    }

    /// Whether the frame is known to be in it.
    pub(crate) fn contains(&self, pfn: u64) -> bool {
        // Kept as their successors, so that 0 is none.
        self.place(pfn)
            .is_some_and(|place| place.load(Ordering::Relaxed) == pfn + 1)
    }

    /// Puts a frame in, perhaps in another one's place.
    pub(crate) fn insert(&self, pfn: u64) {
        if let Some(place) = self.place(pfn) {
            place.store(pfn + 1, Ordering::Relaxed);
        }
    }

    /// Empties it.
    pub(crate) fn clear(&self) {
        for place in &self.0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}
