//! A structure that the kernel keeps pointers to: it lies in an `Arc` and never
//! moves, and the kernel serialises access to it.

use core::cell::UnsafeCell;

pub(crate) struct Pinned<T>(UnsafeCell<T>);

// SAFETY: only handed out as a raw pointer, to kernel calls that lock.
unsafe impl<T> Sync for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Pinned<T> {}

impl<T: Default> Pinned<T> {
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(T::default()))
    }
}

impl<T> Pinned<T> {
    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}
