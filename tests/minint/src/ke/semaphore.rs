//! Semaphores: `KSEMAPHORE`. State under the dispatcher lock.

use core::cell::Cell;
use core::ffi::c_void;

use super::dispatcher::{self, Header, object};
use super::irql::{DISPATCH_LEVEL, require_irql};
use super::wait;

const STATUS_SEMAPHORE_LIMIT_EXCEEDED: u32 = 0xC000_0047;

/// `KSEMAPHORE`.
#[repr(C)]
#[derive(Debug)]
pub struct Semaphore {
    header: Header,
    limit: Cell<i32>,
}

const _: () = assert!(size_of::<Semaphore>() == size_of::<wdk_standin::wdk_sys::KSEMAPHORE>());

fn semaphore<'a>(object: *mut c_void, api: &str) -> &'a Semaphore {
    require!(!object.is_null(), api, "the semaphore is NULL");
    // SAFETY: the caller vouches for the semaphore; its type is checked next.
    let this = unsafe { &*object.cast::<Semaphore>() };
    require!(
        this.header.kind.get() == object::SEMAPHORE,
        api,
        "{object:p} is no initialised semaphore"
    );
    this
}

/// `KeInitializeSemaphore`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeSemaphore(object: *mut c_void, count: i32, limit: i32) {
    require!(
        count >= 0 && limit > 0 && count <= limit,
        "KeInitializeSemaphore",
        "count {count}, limit {limit}"
    );
    // SAFETY: the caller gives memory for a KSEMAPHORE.
    let this = unsafe { &*object.cast::<Semaphore>() };
    this.header
        .initialize(object::SEMAPHORE, size_of::<Semaphore>(), count);
    this.limit.set(limit);
}

/// `KeReleaseSemaphore`: the count before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReleaseSemaphore(
    object: *mut c_void,
    increment: i32,
    adjustment: i32,
    _wait: u8,
) -> i32 {
    let api = "KeReleaseSemaphore";
    require_irql(DISPATCH_LEVEL, api);
    let this = semaphore(object, api);
    require!(adjustment > 0, api, "the adjustment is {adjustment}");
    let locked = dispatcher::lock();
    let old = this.header.signal.get();
    match old.checked_add(adjustment) {
        Some(new) if new <= this.limit.get() => this.header.signal.set(new),
        _ => super::bugcheck::raise_status(STATUS_SEMAPHORE_LIMIT_EXCEEDED, api),
    }
    wait::test(&locked, &this.header, increment.clamp(0, 15) as i8);
    old
}

/// `KeReadStateSemaphore`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReadStateSemaphore(object: *mut c_void) -> i32 {
    semaphore(object, "KeReadStateSemaphore")
        .header
        .signal
        .get()
}
