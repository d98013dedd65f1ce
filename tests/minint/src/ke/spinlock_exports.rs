//! Spin locks as drivers see them: `KSPIN_LOCK`, in-stack queued locks,
//! reader-writer spin locks, interlocked lists.
//!
//! The lock word holds 0 or the address of the owner's thread with bit 0 set, so that
//! a recursive acquisition and a release by someone else are found.

use core::ffi::c_void;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::irql::{self, DISPATCH_LEVEL, require_irql};
use super::list::List;
use crate::hal::{cpu, instr};

fn word<'a>(lock: *mut usize, api: &str) -> &'a AtomicUsize {
    require!(
        !lock.is_null() && lock.is_aligned(),
        api,
        "the lock is at {lock:p}"
    );
    // SAFETY: the caller vouches for the lock; it is only accessed atomically.
    unsafe { AtomicUsize::from_ptr(lock) }
}

/// Mark of the running processor: DPCs interrupt threads, so the processor owns the lock.
fn mark() -> usize {
    cpu::current_number() as usize * 2 + 1
}

fn acquire(lock: *mut usize, api: &str) {
    let lock = word(lock, api);
    let mark = mark();
    while let Err(owner) = lock.compare_exchange_weak(0, mark, Ordering::Acquire, Ordering::Relaxed)
    {
        require!(
            owner != mark,
            api,
            "the processor holds the lock at {lock:p} already"
        );
        instr::pause();
    }
}

fn release(lock: *mut usize, api: &str) {
    let lock = word(lock, api);
    let owner = lock.load(Ordering::Relaxed);
    require!(
        owner == mark(),
        api,
        "the lock at {lock:p} is not held by this processor"
    );
    lock.store(0, Ordering::Release);
}

/// `KeInitializeSpinLock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeSpinLock(lock: *mut usize) {
    word(lock, "KeInitializeSpinLock").store(0, Ordering::Release);
}

/// `KeAcquireSpinLockRaiseToDpc`: the IRQL before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireSpinLockRaiseToDpc(lock: *mut usize) -> u8 {
    let api = "KeAcquireSpinLockRaiseToDpc";
    require_irql(DISPATCH_LEVEL, api);
    let old = irql::raise(DISPATCH_LEVEL);
    acquire(lock, api);
    old
}

/// `KeAcquireSpinLock` as a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireSpinLock(lock: *mut usize, old: *mut u8) {
    // SAFETY: the same.
    let before = unsafe { KeAcquireSpinLockRaiseToDpc(lock) };
    // SAFETY: forwarded to the caller.
    unsafe { old.write(before) };
}

/// `KeReleaseSpinLock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseSpinLock(lock: *mut usize, old: u8) {
    let api = "KeReleaseSpinLock";
    irql::require_irql_exact(DISPATCH_LEVEL, api);
    require!(old <= DISPATCH_LEVEL, api, "the old IRQL is {old}");
    release(lock, api);
    irql::lower(old);
}

/// `KeAcquireSpinLockAtDpcLevel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireSpinLockAtDpcLevel(lock: *mut usize) {
    let api = "KeAcquireSpinLockAtDpcLevel";
    let now = irql::current();
    require!(
        now >= DISPATCH_LEVEL,
        api,
        "IRQL {now}, at least 2 is required"
    );
    acquire(lock, api);
}

/// `KeReleaseSpinLockFromDpcLevel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseSpinLockFromDpcLevel(lock: *mut usize) {
    let api = "KeReleaseSpinLockFromDpcLevel";
    let now = irql::current();
    require!(
        now >= DISPATCH_LEVEL,
        api,
        "IRQL {now}, at least 2 is required"
    );
    release(lock, api);
}

/// `KeTryToAcquireSpinLockAtDpcLevel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeTryToAcquireSpinLockAtDpcLevel(lock: *mut usize) -> u8 {
    let api = "KeTryToAcquireSpinLockAtDpcLevel";
    let now = irql::current();
    require!(
        now >= DISPATCH_LEVEL,
        api,
        "IRQL {now}, at least 2 is required"
    );
    let got = word(lock, api).compare_exchange(0, mark(), Ordering::Acquire, Ordering::Relaxed);
    u8::from(got.is_ok())
}

/// `KeTestSpinLock`: whether it is free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeTestSpinLock(lock: *mut usize) -> u8 {
    u8::from(word(lock, "KeTestSpinLock").load(Ordering::Acquire) == 0)
}

/// `KLOCK_QUEUE_HANDLE`.
#[repr(C)]
#[derive(Debug)]
pub struct QueueHandle {
    next: usize,
    lock: usize,
    old: u8,
}

const _: () =
    assert!(size_of::<QueueHandle>() == size_of::<wdk_standin::wdk_sys::KLOCK_QUEUE_HANDLE>());

/// `KeAcquireInStackQueuedSpinLock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireInStackQueuedSpinLock(
    lock: *mut usize,
    handle: *mut QueueHandle,
) {
    let api = "KeAcquireInStackQueuedSpinLock";
    require_irql(DISPATCH_LEVEL, api);
    let old = irql::raise(DISPATCH_LEVEL);
    acquire(lock, api);
    // SAFETY: forwarded to the caller.
    unsafe {
        handle.write(QueueHandle {
            next: 0,
            lock: lock as usize,
            old,
        });
    };
}

/// `KeReleaseInStackQueuedSpinLock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseInStackQueuedSpinLock(handle: *mut QueueHandle) {
    // SAFETY: forwarded to the caller.
    let held = unsafe { handle.read() };
    release(held.lock as *mut usize, "KeReleaseInStackQueuedSpinLock");
    irql::lower(held.old);
}

/// `KeAcquireInStackQueuedSpinLockAtDpcLevel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireInStackQueuedSpinLockAtDpcLevel(
    lock: *mut usize,
    handle: *mut QueueHandle,
) {
    let api = "KeAcquireInStackQueuedSpinLockAtDpcLevel";
    let now = irql::current();
    require!(
        now >= DISPATCH_LEVEL,
        api,
        "IRQL {now}, at least 2 is required"
    );
    acquire(lock, api);
    // SAFETY: forwarded to the caller.
    unsafe {
        handle.write(QueueHandle {
            next: 0,
            lock: lock as usize,
            old: now,
        });
    };
}

/// `KeReleaseInStackQueuedSpinLockFromDpcLevel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseInStackQueuedSpinLockFromDpcLevel(handle: *mut QueueHandle) {
    // SAFETY: forwarded to the caller.
    let held = unsafe { handle.read() };
    release(
        held.lock as *mut usize,
        "KeReleaseInStackQueuedSpinLockFromDpcLevel",
    );
}

/// Exclusive owner of an `EX_SPIN_LOCK`.
const EXCLUSIVE: i32 = i32::MIN;

fn shared_word<'a>(lock: *mut i32, api: &str) -> &'a AtomicI32 {
    require!(
        !lock.is_null() && lock.is_aligned(),
        api,
        "the lock is at {lock:p}"
    );
    // SAFETY: the caller vouches for the lock; it is only accessed atomically.
    unsafe { AtomicI32::from_ptr(lock) }
}

fn acquire_shared(lock: *mut i32, api: &str) {
    let lock = shared_word(lock, api);
    loop {
        let now = lock.load(Ordering::Relaxed);
        let free = now >= 0;
        if free
            && lock
                .compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            return;
        }
        instr::pause();
    }
}

fn acquire_exclusive(lock: *mut i32, api: &str) {
    let lock = shared_word(lock, api);
    while lock
        .compare_exchange_weak(0, EXCLUSIVE, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        instr::pause();
    }
}

fn release_shared(lock: *mut i32, api: &str) {
    let old = shared_word(lock, api).fetch_sub(1, Ordering::Release);
    require!(old > 0, api, "the lock at {lock:p} is not held shared");
}

fn release_exclusive(lock: *mut i32, api: &str) {
    let old = shared_word(lock, api).swap(0, Ordering::Release);
    require!(
        old == EXCLUSIVE,
        api,
        "the lock at {lock:p} is not held exclusively"
    );
}

macro_rules! reader_writer {
    ($acquire:ident, $release:ident, $acquire_dpc:ident, $release_dpc:ident, $take:ident, $give:ident) => {
        #[doc = concat!("`", stringify!($acquire), "`: the IRQL before.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $acquire(lock: *mut i32) -> u8 {
            require_irql(DISPATCH_LEVEL, stringify!($acquire));
            let old = irql::raise(DISPATCH_LEVEL);
            $take(lock, stringify!($acquire));
            old
        }

        #[doc = concat!("`", stringify!($release), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $release(lock: *mut i32, old: u8) {
            irql::require_irql_exact(DISPATCH_LEVEL, stringify!($release));
            $give(lock, stringify!($release));
            irql::lower(old);
        }

        #[doc = concat!("`", stringify!($acquire_dpc), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $acquire_dpc(lock: *mut i32) {
            $take(lock, stringify!($acquire_dpc));
        }

        #[doc = concat!("`", stringify!($release_dpc), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $release_dpc(lock: *mut i32) {
            $give(lock, stringify!($release_dpc));
        }
    };
}

reader_writer!(
    ExAcquireSpinLockShared,
    ExReleaseSpinLockShared,
    ExAcquireSpinLockSharedAtDpcLevel,
    ExReleaseSpinLockSharedFromDpcLevel,
    acquire_shared,
    release_shared
);
reader_writer!(
    ExAcquireSpinLockExclusive,
    ExReleaseSpinLockExclusive,
    ExAcquireSpinLockExclusiveAtDpcLevel,
    ExReleaseSpinLockExclusiveFromDpcLevel,
    acquire_exclusive,
    release_exclusive
);

/// Runs `f` with interrupts off under a driver's spin lock: these routines are for any IRQL.
fn interlocked<R>(lock: *mut usize, api: &str, f: impl FnOnce() -> R) -> R {
    let were_on = instr::cli();
    acquire(lock, api);
    let result = f();
    release(lock, api);
    if were_on {
        // SAFETY: interrupts were on when the caller came.
        unsafe { instr::sti() };
    }
    result
}

fn list<'a>(entry: *mut c_void) -> &'a List {
    // SAFETY: the caller of the export vouches for the LIST_ENTRY, which the given lock guards.
    unsafe { &*entry.cast::<List>() }
}

/// `ExInterlockedInsertTailList`: the last entry before, NULL if the list was empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInterlockedInsertTailList(
    head: *mut c_void,
    entry: *mut c_void,
    lock: *mut usize,
) -> *mut c_void {
    interlocked(lock, "ExInterlockedInsertTailList", || {
        let last = list(head)
            .last()
            .map_or(core::ptr::null_mut(), |last| last.cast_mut().cast());
        list(head).push_back(list(entry));
        last
    })
}

/// `ExInterlockedInsertHeadList`: the first entry before, NULL if the list was empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInterlockedInsertHeadList(
    head: *mut c_void,
    entry: *mut c_void,
    lock: *mut usize,
) -> *mut c_void {
    interlocked(lock, "ExInterlockedInsertHeadList", || {
        let first = list(head)
            .first()
            .map_or(core::ptr::null_mut(), |first| first.cast_mut().cast());
        list(head).push_front(list(entry));
        first
    })
}

/// `ExInterlockedRemoveHeadList`: NULL if the list is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInterlockedRemoveHeadList(
    head: *mut c_void,
    lock: *mut usize,
) -> *mut c_void {
    interlocked(lock, "ExInterlockedRemoveHeadList", || {
        match list(head).first() {
            Some(first) => {
                list(first.cast_mut().cast()).remove();
                first.cast_mut().cast()
            }
            None => core::ptr::null_mut(),
        }
    })
}
