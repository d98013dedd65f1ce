//! Mutexes: `KMUTEX`, fast mutexes, guarded mutexes.
//!
//! A `KMUTEX` is a dispatcher object with an owner: recursive, and abandoned when its
//! owner ends. A fast mutex is an atomic count with a synchronization event behind it;
//! it raises to APC_LEVEL while it is held. A guarded mutex is the same within a
//! guarded region.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::dispatcher::{self, Header, Locked, STATUS_ABANDONED, object};
use super::event::Event;
use super::irql::{self, APC_LEVEL, DISPATCH_LEVEL, require_irql};
use super::list::{List, container};
use super::thread::{self, Thread};
use super::wait;

const STATUS_MUTANT_NOT_OWNED: u32 = 0xC000_0046;

/// `KMUTANT`.
#[repr(C)]
#[derive(Debug)]
pub struct Mutant {
    header: Header,
    link: List,
    owner: Cell<*const Thread>,
    abandoned: Cell<u8>,
    apc_disable: Cell<u8>,
}

const _: () = assert!(size_of::<Mutant>() == size_of::<wdk_standin::wdk_sys::KMUTANT>());

fn mutant(header: &Header) -> &Mutant {
    // SAFETY: a header of type MUTANT begins a KMUTANT.
    unsafe { &*ptr::from_ref(header).cast::<Mutant>() }
}

/// Whether the mutex of this header belongs to the thread.
pub(crate) fn owned_by(header: &Header, thread: &Thread) -> bool {
    ptr::eq(mutant(header).owner.get(), thread)
}

/// Gives the mutex to the thread; `STATUS_ABANDONED` if its last owner ended with it.
pub(crate) fn take(header: &Header, thread: &'static Thread) -> i32 {
    let this = mutant(header);
    header.signal.set(header.signal.get() - 1);
    if header.signal.get() == 0 {
        this.owner.set(thread);
        thread.mutants.push_back(&this.link);
        if this.apc_disable.get() != 0 {
            thread
                .critical_regions
                .set(thread.critical_regions.get() + 1);
        }
        if this.abandoned.replace(0) != 0 {
            return STATUS_ABANDONED;
        }
    }
    0
}

fn give_up(locked: &Locked, this: &Mutant, boost: i8) {
    // SAFETY: an owner is live as long as it owns.
    let owner = unsafe { &*this.owner.get() };
    if this.apc_disable.get() != 0 {
        owner.critical_regions.set(owner.critical_regions.get() - 1);
    }
    this.link.remove();
    this.owner.set(ptr::null());
    wait::test(locked, &this.header, boost);
}

/// An ending thread loses its mutexes.
pub(crate) fn abandon_all(locked: &Locked, thread: &'static Thread) {
    while let Some(link) = thread.mutants.first() {
        let this = container::<Mutant>(link, offset_of!(Mutant, link));
        // SAFETY: the thread's list holds its mutexes by this link.
        let this = unsafe { &*this };
        this.abandoned.set(1);
        this.header.signal.set(1);
        give_up(locked, this, 0);
    }
}

fn checked<'a>(object: *mut c_void, api: &str) -> &'a Mutant {
    require!(!object.is_null(), api, "the mutex is NULL");
    // SAFETY: the caller vouches for the mutex; its type is checked next.
    let this = unsafe { &*object.cast::<Mutant>() };
    require!(
        this.header.kind.get() == object::MUTANT,
        api,
        "{object:p} is no initialised mutex"
    );
    this
}

/// `KeInitializeMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeMutex(object: *mut c_void, _level: u32) {
    // SAFETY: the caller gives memory for a KMUTEX.
    let this = unsafe { &*object.cast::<Mutant>() };
    this.header
        .initialize(object::MUTANT, size_of::<Mutant>(), 1);
    this.owner.set(ptr::null());
    this.abandoned.set(0);
    this.apc_disable.set(1);
}

/// `KeReleaseMutex`: the state before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseMutex(object: *mut c_void, _wait: u8) -> i32 {
    let api = "KeReleaseMutex";
    require_irql(DISPATCH_LEVEL, api);
    let this = checked(object, api);
    let locked = dispatcher::lock();
    if !ptr::eq(this.owner.get(), thread::current()) {
        super::bugcheck::raise_status(STATUS_MUTANT_NOT_OWNED, api);
    }
    let old = this.header.signal.get();
    this.header.signal.set(old + 1);
    if old == 0 {
        give_up(&locked, this, 1);
    }
    old
}

/// `KeReadStateMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReadStateMutex(object: *mut c_void) -> i32 {
    checked(object, "KeReadStateMutex").header.signal.get()
}

/// `FAST_MUTEX` and `KGUARDED_MUTEX`.
#[repr(C)]
#[derive(Debug)]
pub struct FastMutex {
    /// 1 while free.
    count: AtomicI32,
    owner: AtomicUsize,
    contention: Cell<u32>,
    event: Event,
    old_irql: Cell<u32>,
}

const _: () = assert!(size_of::<FastMutex>() == size_of::<wdk_standin::wdk_sys::FAST_MUTEX>());

fn fast<'a>(mutex: *mut c_void, api: &str) -> &'a FastMutex {
    require!(!mutex.is_null(), api, "the mutex is NULL");
    // SAFETY: the caller vouches for the mutex.
    unsafe { &*mutex.cast::<FastMutex>() }
}

fn fast_initialize(mutex: *mut c_void, api: &str) {
    let this = fast(mutex, api);
    this.count.store(1, Ordering::Release);
    this.owner.store(0, Ordering::Relaxed);
    this.contention.set(0);
    this.event.initialize(object::SYNCHRONIZATION_EVENT, false);
}

fn fast_acquire(this: &FastMutex, api: &str) {
    let current = ptr::from_ref(thread::current()) as usize;
    require!(
        this.owner.load(Ordering::Relaxed) != current,
        api,
        "the thread owns the mutex already"
    );
    if this.count.fetch_sub(1, Ordering::AcqRel) != 1 {
        this.contention.set(this.contention.get() + 1);
        this.event.wait();
    }
    this.owner.store(current, Ordering::Relaxed);
}

fn fast_try(this: &FastMutex) -> bool {
    let got = this
        .count
        .compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok();
    if got {
        this.owner
            .store(ptr::from_ref(thread::current()) as usize, Ordering::Relaxed);
    }
    got
}

fn fast_release(this: &FastMutex, api: &str) {
    let current = ptr::from_ref(thread::current()) as usize;
    require!(
        this.owner.load(Ordering::Relaxed) == current,
        api,
        "the thread does not own the mutex"
    );
    this.owner.store(0, Ordering::Relaxed);
    if this.count.fetch_add(1, Ordering::AcqRel) < 0 {
        this.event.set(1);
    }
}

/// `ExInitializeFastMutex` (an inline of the headers, an export of some kernels).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInitializeFastMutex(mutex: *mut c_void) {
    fast_initialize(mutex, "ExInitializeFastMutex");
}

/// `ExAcquireFastMutex`: raises to APC_LEVEL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExAcquireFastMutex(mutex: *mut c_void) {
    let api = "ExAcquireFastMutex";
    require_irql(APC_LEVEL, api);
    let this = fast(mutex, api);
    let old = irql::raise(APC_LEVEL);
    fast_acquire(this, api);
    this.old_irql.set(u32::from(old));
}

/// `ExTryToAcquireFastMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExTryToAcquireFastMutex(mutex: *mut c_void) -> u8 {
    let api = "ExTryToAcquireFastMutex";
    require_irql(APC_LEVEL, api);
    let this = fast(mutex, api);
    let old = irql::raise(APC_LEVEL);
    if fast_try(this) {
        this.old_irql.set(u32::from(old));
        return 1;
    }
    irql::lower(old);
    0
}

/// `ExReleaseFastMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReleaseFastMutex(mutex: *mut c_void) {
    let api = "ExReleaseFastMutex";
    irql::require_irql_exact(APC_LEVEL, api);
    let this = fast(mutex, api);
    let old = this.old_irql.get() as u8;
    fast_release(this, api);
    irql::lower(old);
}

/// `ExAcquireFastMutexUnsafe`: APCs must be off already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExAcquireFastMutexUnsafe(mutex: *mut c_void) {
    let api = "ExAcquireFastMutexUnsafe";
    require_irql(APC_LEVEL, api);
    require!(super::time::apcs_disabled(), api, "APCs are not disabled");
    fast_acquire(fast(mutex, api), api);
}

/// `ExReleaseFastMutexUnsafe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReleaseFastMutexUnsafe(mutex: *mut c_void) {
    let api = "ExReleaseFastMutexUnsafe";
    require_irql(APC_LEVEL, api);
    fast_release(fast(mutex, api), api);
}

/// `KeInitializeGuardedMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeGuardedMutex(mutex: *mut c_void) {
    fast_initialize(mutex, "KeInitializeGuardedMutex");
}

/// `KeAcquireGuardedMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAcquireGuardedMutex(mutex: *mut c_void) {
    let api = "KeAcquireGuardedMutex";
    require_irql(APC_LEVEL, api);
    let thread = thread::current();
    thread.guarded_regions.set(thread.guarded_regions.get() + 1);
    fast_acquire(fast(mutex, api), api);
}

/// `KeTryToAcquireGuardedMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeTryToAcquireGuardedMutex(mutex: *mut c_void) -> u8 {
    let api = "KeTryToAcquireGuardedMutex";
    require_irql(APC_LEVEL, api);
    let got = fast_try(fast(mutex, api));
    if got {
        let thread = thread::current();
        thread.guarded_regions.set(thread.guarded_regions.get() + 1);
    }
    u8::from(got)
}

/// `KeReleaseGuardedMutex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseGuardedMutex(mutex: *mut c_void) {
    let api = "KeReleaseGuardedMutex";
    require_irql(APC_LEVEL, api);
    fast_release(fast(mutex, api), api);
    let thread = thread::current();
    thread.guarded_regions.set(thread.guarded_regions.get() - 1);
}
