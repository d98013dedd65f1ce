//! The atomics and cells of [`crate::ring`] and [`crate::evidence`].
//!
//! `tests/models` compiles those two with loom's in their place, which is why
//! they are named here and the cell hands out pointers in closures.

use core::cell::UnsafeCell;

pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A place that one side at a time may use; which one, its owner knows.
#[repr(transparent)]
pub(crate) struct Cell<T>(UnsafeCell<T>);

impl<T> Cell<T> {
    /// Gives `work` the place to read.
    pub(crate) fn with<R>(&self, work: impl FnOnce(*const T) -> R) -> R {
        work(self.0.get())
    }

    /// Gives `work` the place to write.
    pub(crate) fn with_mut<R>(&self, work: impl FnOnce(*mut T) -> R) -> R {
        work(self.0.get())
    }
}
