//! The executive's smaller parts: worker threads, callback objects, lookaside
//! lists, interlocked lists, events by handle, tracing.
//!
//! Each file owns its table behind its own lock; a lock is never held while
//! foreign code runs.

pub(crate) mod callback;
pub(crate) mod entry;
pub(crate) mod etw;
pub(crate) mod event;
pub(crate) mod lookaside;
pub(crate) mod notify;
pub(crate) mod nt;
pub(crate) mod pool;
mod service;
mod slist;
pub(crate) mod work;

/// Starts the system's worker threads and makes its callback objects.
/// PASSIVE_LEVEL, once.
pub(crate) fn start() {
    work::start();
    callback::start();
    notify::start();
}
