//! Waiting: `KeWaitForSingleObject`, `KeWaitForMultipleObjects`,
//! `KeDelayExecutionThread`, and what satisfies a wait.
//!
//! Each thread has its own wait blocks, one an object and one for the timeout; a
//! block hangs on its object's list while the thread waits. Everything under the
//! dispatcher lock. IRQL at most APC_LEVEL, or DISPATCH_LEVEL with a timeout of 0.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use super::dispatcher::{self, Header, Locked, STATUS_ABANDONED, STATUS_TIMEOUT, object};
use super::irql::{APC_LEVEL, DISPATCH_LEVEL, require_irql};
use super::list::{List, container};
use super::mutex;
use super::thread::{self, MAXIMUM_WAIT_OBJECTS, State, Thread};
use super::timer;

/// One object of a thread's wait.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct WaitBlock {
    link: List,
    thread: Cell<*const Thread>,
    object: Cell<*const Header>,
    key: Cell<i32>,
    /// Satisfies the wait alone.
    alone: Cell<bool>,
}

impl WaitBlock {
    pub(crate) const fn new() -> Self {
        Self {
            link: List::new(),
            thread: Cell::new(ptr::null()),
            object: Cell::new(ptr::null()),
            key: Cell::new(0),
            alone: Cell::new(true),
        }
    }

    pub(crate) fn bind(&self, thread: &'static Thread) {
        self.thread.set(thread);
    }

    fn hang(&self, object: &Header, key: i32, alone: bool) {
        self.object.set(object);
        self.key.set(key);
        self.alone.set(alone);
        object.waiters.push_back(&self.link);
    }

    fn object(&self) -> &Header {
        // SAFETY: an object that is waited for outlives the wait; drivers that free one break a rule of their own.
        unsafe { &*self.object.get() }
    }

    fn thread(&self) -> &'static Thread {
        // SAFETY: a block is part of its thread, and a waiting thread is live.
        unsafe { &*self.thread.get() }
    }
}

fn block_of(link: *const List) -> &'static WaitBlock {
    let block = container::<WaitBlock>(link, offset_of!(WaitBlock, link));
    // SAFETY: lists of waiters hold wait blocks by this link.
    unsafe { &*block }
}

/// Whether `thread` would not have to wait for the object.
fn satisfied(object: &Header, thread: &Thread) -> bool {
    object.signal.get() > 0
        || object.kind.get() == object::MUTANT && mutex::owned_by(object, thread)
}

/// Takes the object for `thread`; returns `STATUS_ABANDONED` or 0.
fn satisfy(object: &Header, thread: &'static Thread) -> i32 {
    match object.kind.get() {
        object::SYNCHRONIZATION_EVENT | object::SYNCHRONIZATION_TIMER => object.signal.set(0),
        object::SEMAPHORE => object.signal.set(object.signal.get() - 1),
        object::MUTANT => return mutex::take(object, thread),
        _ => {}
    }
    0
}

/// Takes all wait blocks of the thread off their objects.
pub(crate) fn unlink(thread: &Thread) {
    for block in &thread.wait_blocks[..thread.wait_count.get()] {
        block.link.remove();
    }
    thread.wait_count.set(0);
}

/// The object may have become signalled: ends the waits that this satisfies.
pub(crate) fn test(locked: &Locked, object: &Header, boost: i8) {
    let mut entry = object.waiters.first();
    while let Some(link) = entry {
        if object.signal.get() <= 0 {
            return;
        }
        let block = block_of(link);
        let thread = block.thread();
        if block.alone.get() {
            let status = block.key.get() + satisfy(object, thread);
            dispatcher::unwait(locked, thread, status, boost);
            // The thread's other blocks may have hung here too.
            entry = object.waiters.first();
        } else if all_satisfied(thread) {
            let status = satisfy_all(thread);
            dispatcher::unwait(locked, thread, status, boost);
            entry = object.waiters.first();
        } else {
            entry = object.waiters.after(link);
        }
    }
}

fn all_satisfied(thread: &Thread) -> bool {
    let blocks = &thread.wait_blocks[..thread.wait_count.get()];
    blocks
        .iter()
        .filter(|block| !block.alone.get())
        .all(|block| satisfied(block.object(), thread))
}

fn satisfy_all(thread: &'static Thread) -> i32 {
    let blocks = &thread.wait_blocks[..thread.wait_count.get()];
    let mut status = 0;
    for block in blocks.iter().filter(|block| !block.alone.get()) {
        status |= satisfy(block.object(), thread);
    }
    status
}

/// How long a wait may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// For ever.
    Never,
    /// Until this interrupt time; 0: do not wait at all.
    Until(u64),
}

impl Timeout {
    /// From a driver's pointer: NULL, 0, negative (relative) or positive (absolute), in 100 ns.
    ///
    /// # Safety
    /// `timeout` is NULL or readable.
    pub(crate) unsafe fn from_pointer(timeout: *const i64) -> Self {
        if timeout.is_null() {
            return Self::Never;
        }
        // SAFETY: forwarded to the caller.
        let value = unsafe { timeout.read() };
        if value == 0 {
            Self::Until(0)
        } else {
            Self::Until(timer::due_time(value))
        }
    }
}

/// Waits for objects; the current thread. `any`: one is enough.
pub(crate) fn wait(objects: &[*const Header], any: bool, timeout: Timeout, api: &str) -> i32 {
    let poll = timeout == Timeout::Until(0);
    require_irql(if poll { DISPATCH_LEVEL } else { APC_LEVEL }, api);
    let thread = thread::current();
    let at = |object: *const Header| {
        // SAFETY: the caller of the export vouches for the object.
        unsafe { &*object }
    };
    for &object in objects {
        require!(!object.is_null(), api, "an object is NULL");
        let kind = at(object).kind.get();
        require!(
            kind <= 9 && kind != 4 && kind != 7,
            api,
            "{object:p} is no dispatcher object (type {kind})"
        );
    }
    let locked = dispatcher::lock();
    if any {
        for (number, &object) in objects.iter().enumerate() {
            if satisfied(at(object), thread) {
                return number as i32 + satisfy(at(object), thread);
            }
        }
    } else if objects.iter().all(|&object| satisfied(at(object), thread)) {
        return objects
            .iter()
            .fold(0, |status, &object| status | satisfy(at(object), thread));
    }
    if poll {
        return STATUS_TIMEOUT;
    }
    for (number, (&object, block)) in objects.iter().zip(&thread.wait_blocks).enumerate() {
        block.hang(at(object), if any { number as i32 } else { 0 }, any);
    }
    thread.wait_count.set(objects.len());
    if let Timeout::Until(due) = timeout {
        timer::start_thread_timer(&locked, thread, due);
        let block = &thread.wait_blocks[objects.len()];
        block.hang(&thread.timer.header, STATUS_TIMEOUT, true);
        thread.wait_count.set(objects.len() + 1);
    }
    thread.state.set(State::Waiting);
    dispatcher::block(locked)
}

/// `KeWaitForSingleObject`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeWaitForSingleObject(
    object: *mut c_void,
    _reason: i32,
    _mode: i8,
    _alertable: u8,
    timeout: *mut i64,
) -> i32 {
    // SAFETY: forwarded to the caller.
    let timeout = unsafe { Timeout::from_pointer(timeout) };
    wait(&[object.cast()], true, timeout, "KeWaitForSingleObject")
}

/// `KeWaitForMutexObject`, the same by another name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeWaitForMutexObject(
    object: *mut c_void,
    reason: i32,
    mode: i8,
    alertable: u8,
    timeout: *mut i64,
) -> i32 {
    // SAFETY: forwarded to the caller.
    unsafe { KeWaitForSingleObject(object, reason, mode, alertable, timeout) }
}

/// `KeWaitForMultipleObjects`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeWaitForMultipleObjects(
    count: u32,
    objects: *mut *mut c_void,
    wait_type: i32,
    _reason: i32,
    _mode: i8,
    _alertable: u8,
    timeout: *mut i64,
    wait_blocks: *mut c_void,
) -> i32 {
    const THREAD_WAIT_OBJECTS: u32 = 3;
    const MAXIMUM_WAIT_OBJECTS_EXCEEDED: u32 = 0xC;
    let api = "KeWaitForMultipleObjects";
    let limit = if wait_blocks.is_null() {
        THREAD_WAIT_OBJECTS
    } else {
        MAXIMUM_WAIT_OBJECTS as u32
    };
    if count == 0 || count > limit {
        super::bugcheck::raise(
            MAXIMUM_WAIT_OBJECTS_EXCEEDED,
            [u64::from(count), u64::from(limit), 0, 0],
        );
    }
    // SAFETY: forwarded to the caller.
    let timeout = unsafe { Timeout::from_pointer(timeout) };
    // SAFETY: the caller gives `count` pointers; a pointer to an object is a pointer to its header.
    let objects =
        unsafe { core::slice::from_raw_parts(objects.cast::<*const Header>(), count as usize) };
    wait(objects, wait_type == 1, timeout, api)
}

/// `KeDelayExecutionThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeDelayExecutionThread(
    _mode: i8,
    _alertable: u8,
    interval: *mut i64,
) -> i32 {
    let api = "KeDelayExecutionThread";
    require_irql(APC_LEVEL, api);
    require!(!interval.is_null(), api, "the interval is NULL");
    // SAFETY: forwarded to the caller.
    let timeout = unsafe { Timeout::from_pointer(interval) };
    if timeout == Timeout::Until(0) {
        dispatcher::yield_now();
        return 0;
    }
    match wait(&[], true, timeout, api) {
        STATUS_TIMEOUT => 0,
        other => other,
    }
}

/// Sleeps for this many 100 ns; the kernel's own use.
pub fn sleep(interval: u64) {
    let due = crate::hal::clock::interrupt_time() + interval.max(1);
    wait(&[], true, Timeout::Until(due), "sleep");
}

/// Whether a status is that of an abandoned mutex.
pub fn abandoned(status: i32) -> bool {
    status & STATUS_ABANDONED != 0 && status < STATUS_TIMEOUT
}
