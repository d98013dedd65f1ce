//! Atomics for genuine sources: loom's, with a moment before each access at
//! which a non-maskable interrupt may strike.
//!
//! The interrupt is the model's affair: it sets a handler for the running
//! thread ([`interruptible`]), which is called before each access of that thread
//! and may do accesses of its own.
//!
//! Who waits for another core's store calls [`wait`]. With two cores that is a
//! yield, and the store is seen when weak memory wants it. With three, loom would
//! let two of them yield to each other for ever; a waiter is then put aside until
//! the next store of anybody ([`park_waiters`]); memory is sequentially consistent
//! then, or a waiter could be put aside for good with an old value in hand.

use std::cell::{Cell, RefCell};

pub use loom::sync::atomic::{Ordering, fence};

loom::thread_local! {
    static HANDLER: Cell<Option<fn()>> = Cell::new(None);
}

// Of the host's thread, on which loom runs all of the model's.
thread_local! {
    static PARKING: Cell<bool> = const { Cell::new(false) };
    static STORES: Cell<u64> = const { Cell::new(0) };
    static WAITERS: RefCell<Vec<loom::thread::Thread>> = const { RefCell::new(Vec::new()) };
}

loom::thread_local! {
    static SEEN: Cell<u64> = Cell::new(0);
}

/// At the start of a run: whether waiters are put aside in it.
pub fn park_waiters(park: bool) {
    PARKING.set(park);
    STORES.set(0);
    WAITERS.take();
}

/// Lets others run until something may have changed.
pub fn wait() {
    if !PARKING.get() {
        loom::thread::yield_now();
        return;
    }
    if SEEN.with(Cell::get) == STORES.get() {
        WAITERS.with_borrow_mut(|waiters| waiters.push(loom::thread::current()));
        loom::thread::park();
    }
    SEEN.with(|seen| seen.set(STORES.get()));
    fence(Ordering::SeqCst);
}

fn stored() {
    if PARKING.get() {
        fence(Ordering::SeqCst);
        STORES.set(STORES.get() + 1);
        for waiter in WAITERS.take() {
            waiter.unpark();
        }
    }
}

/// From now on `handler` strikes at each access of this thread.
pub fn interruptible(handler: Option<fn()>) {
    HANDLER.with(|own| own.set(handler));
}

fn moment() {
    // Taken while it runs: an interrupt does not interrupt itself.
    if let Some(handler) = HANDLER.with(Cell::take) {
        handler();
        HANDLER.with(|own| own.set(Some(handler)));
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// An atomic of the model.
        #[derive(Debug)]
        pub struct $name(loom::sync::atomic::$name);

        #[expect(missing_docs, reason = "as in the standard library")]
        impl $name {
            #[must_use]
            pub fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            #[must_use]
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                moment();
                self.0.load(order)
            }

            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                moment();
                self.0.store(value, order);
                stored();
            }

            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                moment();
                let old = self.0.swap(value, order);
                stored();
                old
            }

            #[track_caller]
            #[expect(clippy::missing_errors_doc, reason = "as in the standard library")]
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                moment();
                let done = self.0.compare_exchange(old, new, success, failure);
                stored();
                done
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty, $($method:ident),*) => {
        #[expect(missing_docs, reason = "as in the standard library")]
        impl $name {
            $(
                #[track_caller]
                pub fn $method(&self, value: $value, order: Ordering) -> $value {
                    moment();
                    let old = self.0.$method(value, order);
                    stored();
                    old
                }
            )*
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU8, u8);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
arithmetic!(AtomicU32, u32, fetch_add, fetch_sub, fetch_max);
arithmetic!(AtomicU64, u64, fetch_add, fetch_sub, fetch_max);
