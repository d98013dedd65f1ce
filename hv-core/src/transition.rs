//! The transition lock: one change of a page's role at a time, for all cores.
//!
//! Taken in root mode only. A core that waits for it answers requests to
//! invalidate meanwhile, so the holder that waits for acknowledgements never
//! waits for a waiter.

use core::sync::atomic::{AtomicBool, Ordering};

/// The lock.
#[derive(Debug, Default)]
pub struct TransitionLock(AtomicBool);

/// Held until dropped.
#[derive(Debug)]
pub struct Held<'a>(&'a TransitionLock);

impl TransitionLock {
    /// Not held.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Takes the lock, calling `serve` for as long as another core holds it.
    pub fn acquire(&self, serve: impl Fn()) -> Held<'_> {
        loop {
            if !self.0.load(Ordering::Relaxed)
                && self
                    .0
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Held(self);
            }
            serve();
            core::hint::spin_loop();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};

    #[test]
    fn who_waits_serves_until_the_lock_is_given_back() {
        let lock = TransitionLock::new();
        let held = RefCell::new(Some(lock.acquire(|| panic!("it is free"))));
        let served = Cell::new(0);
        let second = lock.acquire(|| {
            served.set(served.get() + 1);
            assert!(served.get() <= 3, "it was given back");
            if served.get() == 3 {
                held.take();
            }
        });
        assert_eq!(served.get(), 3);
        drop(second);
        drop(lock.acquire(|| panic!("it is free again")));
    }
}
