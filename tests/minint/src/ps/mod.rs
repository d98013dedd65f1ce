//! Threads and processes as objects: `PsCreateSystemThread` and the questions about
//! who runs. Ring 3 is in [`user`].
//!
//! The scheduler's part of a thread is [`crate::ke::thread`]. Creation and end at
//! PASSIVE_LEVEL; questions at any IRQL.

pub mod exports;
pub mod process;
pub mod programs;
pub mod user;

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::ke::thread::{self, Thread};
use process::Process;

static CREATE_HOOK: AtomicUsize = AtomicUsize::new(0);
static THREAD_HOOK: AtomicUsize = AtomicUsize::new(0);

/// Sets what hears of each process: (id, created).
pub fn set_create_hook(hook: fn(u32, bool)) {
    CREATE_HOOK.store(hook as usize, Ordering::Release);
}

/// Sets what hears of each thread: (process id, thread id, created).
pub fn set_thread_hook(hook: fn(u32, u32, bool)) {
    THREAD_HOOK.store(hook as usize, Ordering::Release);
}

pub(crate) fn process_changed(id: u32, created: bool) {
    let hook = CREATE_HOOK.load(Ordering::Acquire);
    if hook != 0 {
        // SAFETY: only `set_create_hook` writes the word, from a value of this very type.
        let hook: fn(u32, bool) = unsafe { core::mem::transmute(hook) };
        hook(id, created);
    }
}

fn thread_changed(thread: &Thread, created: bool) {
    let hook = THREAD_HOOK.load(Ordering::Acquire);
    if hook != 0 {
        // SAFETY: only `set_thread_hook` writes the word, from a value of this very type.
        let hook: fn(u32, u32, bool) = unsafe { core::mem::transmute(hook) };
        hook(thread.process.id, thread.id, created);
    }
}

/// A thread is about to start.
pub(crate) fn thread_started(thread: &Thread) {
    thread_changed(thread, true);
}

/// The running thread is about to end.
pub(crate) fn thread_ended(thread: &Thread) {
    thread_changed(thread, false);
}

/// Tells each process: id and name.
pub fn list(f: &mut dyn FnMut(u32, &str)) {
    for process in process::all() {
        f(process.id, process.name);
    }
}

/// The process whose address space the running thread uses.
pub fn current_process() -> &'static Process {
    let thread = thread::current();
    thread.attached.get().unwrap_or(thread.process)
}

/// Address of [`current_process`]'s object.
pub fn current_process_address() -> usize {
    core::ptr::from_ref(current_process()) as usize
}
