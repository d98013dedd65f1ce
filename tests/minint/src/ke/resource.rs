//! Executive resources: `ERESOURCE`, one writer or many readers, recursive.
//!
//! The driver's structure holds a pointer to this kernel's own state, made by
//! `ExInitializeResourceLite` and freed by `ExDeleteResourceLite`. Waiters sleep on
//! an event that every release sets. The caller must be in a critical region.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;

use super::dispatcher::object;
use super::event::Event;
use super::irql::{APC_LEVEL, DISPATCH_LEVEL, require_irql};
use super::spinlock::SpinLock;
use super::thread;
use crate::hal::cpu;

struct State {
    /// Owner thread and how often it holds the resource.
    exclusive: Option<(usize, u32)>,
    shared: Vec<(usize, u32)>,
    exclusive_waiters: u32,
}

struct Resource {
    state: SpinLock<State>,
    released: Event,
}

const STATUS_SUCCESS: i32 = 0;

fn slot(resource: *mut c_void, api: &str) -> *mut usize {
    require!(!resource.is_null(), api, "the resource is NULL");
    resource.cast()
}

fn resource<'a>(object: *mut c_void, api: &str) -> &'a Resource {
    // SAFETY: the caller vouches for an initialised ERESOURCE, whose first word is ours.
    let pointer = unsafe { slot(object, api).read() };
    require!(pointer != 0, api, "{object:p} is no initialised resource");
    // SAFETY: written by `ExInitializeResourceLite`, cleared by `ExDeleteResourceLite`.
    unsafe { &*(pointer as *const Resource) }
}

/// `ExInitializeResourceLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInitializeResourceLite(object: *mut c_void) -> i32 {
    require_irql(DISPATCH_LEVEL, "ExInitializeResourceLite");
    let state = State {
        exclusive: None,
        shared: Vec::new(),
        exclusive_waiters: 0,
    };
    let this = Box::new(Resource {
        state: SpinLock::new(state),
        released: Event::new(),
    });
    this.released.initialize(object::NOTIFICATION_EVENT, false);
    let pointer = Box::into_raw(this) as usize;
    // SAFETY: the caller gives memory for an ERESOURCE.
    unsafe { slot(object, "ExInitializeResourceLite").write(pointer) };
    STATUS_SUCCESS
}

/// `ExDeleteResourceLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExDeleteResourceLite(object: *mut c_void) -> i32 {
    let api = "ExDeleteResourceLite";
    require_irql(DISPATCH_LEVEL, api);
    let this = core::ptr::from_ref(resource(object, api)).cast_mut();
    // SAFETY: made by `ExInitializeResourceLite`; the slot is cleared so that it is freed once.
    let this = unsafe { Box::from_raw(this) };
    let held = {
        let state = this.state.lock();
        state.exclusive.is_some() || !state.shared.is_empty()
    };
    require!(!held, api, "the resource is held");
    // SAFETY: as in `ExInitializeResourceLite`.
    unsafe { slot(object, api).write(0) };
    STATUS_SUCCESS
}

fn acquire(object: *mut c_void, exclusive: bool, wait: bool, api: &str) -> u8 {
    require_irql(APC_LEVEL, api);
    require!(
        super::time::apcs_disabled(),
        api,
        "normal kernel APCs are not disabled"
    );
    let this = resource(object, api);
    let me = cpu::current_thread();
    let mut waiting = false;
    loop {
        let mut state = this.state.lock();
        if waiting {
            state.exclusive_waiters -= u32::from(exclusive);
        }
        let mine = state.shared.iter().position(|&(thread, _)| thread == me);
        let granted = match state.exclusive {
            Some((owner, ref mut count)) if owner == me => {
                *count += 1;
                true
            }
            Some(_) => false,
            None if exclusive => {
                let free = state.shared.is_empty();
                if free {
                    state.exclusive = Some((me, 1));
                }
                free
            }
            None => match mine {
                Some(at) => {
                    state.shared[at].1 += 1;
                    true
                }
                None if state.exclusive_waiters > 0 => false,
                None => {
                    state.shared.push((me, 1));
                    true
                }
            },
        };
        if granted || !wait {
            return u8::from(granted);
        }
        state.exclusive_waiters += u32::from(exclusive);
        waiting = true;
        drop(state);
        this.released.wait();
        let _locked = super::dispatcher::lock();
        this.released.header.signal.set(0);
    }
}

/// `ExAcquireResourceExclusiveLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExAcquireResourceExclusiveLite(object: *mut c_void, wait: u8) -> u8 {
    acquire(object, true, wait != 0, "ExAcquireResourceExclusiveLite")
}

/// `ExAcquireResourceSharedLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExAcquireResourceSharedLite(object: *mut c_void, wait: u8) -> u8 {
    acquire(object, false, wait != 0, "ExAcquireResourceSharedLite")
}

/// `ExReleaseResourceLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReleaseResourceLite(object: *mut c_void) {
    let api = "ExReleaseResourceLite";
    require_irql(DISPATCH_LEVEL, api);
    let this = resource(object, api);
    let me = cpu::current_thread();
    let mut state = this.state.lock();
    let mut known = false;
    if let Some((owner, count)) = state.exclusive {
        if owner == me {
            known = true;
            state.exclusive = (count > 1).then_some((owner, count - 1));
        }
    } else if let Some(at) = state.shared.iter().position(|&(thread, _)| thread == me) {
        known = true;
        state.shared[at].1 -= 1;
        if state.shared[at].1 == 0 {
            state.shared.swap_remove(at);
        }
    }
    drop(state);
    require!(known, api, "the thread does not hold the resource");
    this.released.set(1);
}

/// `ExIsResourceAcquiredExclusiveLite`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExIsResourceAcquiredExclusiveLite(object: *mut c_void) -> u8 {
    let state = resource(object, "ExIsResourceAcquiredExclusiveLite")
        .state
        .lock();
    u8::from(
        state
            .exclusive
            .is_some_and(|(owner, _)| owner == cpu::current_thread()),
    )
}

/// `ExEnterCriticalRegionAndAcquireResourceExclusive`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExEnterCriticalRegionAndAcquireResourceExclusive(
    object: *mut c_void,
) -> *mut c_void {
    let thread = thread::current();
    thread
        .critical_regions
        .set(thread.critical_regions.get() + 1);
    acquire(
        object,
        true,
        true,
        "ExEnterCriticalRegionAndAcquireResourceExclusive",
    );
    core::ptr::null_mut()
}

/// `ExReleaseResourceAndLeaveCriticalRegion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReleaseResourceAndLeaveCriticalRegion(object: *mut c_void) {
    // SAFETY: forwarded to the caller.
    unsafe { ExReleaseResourceLite(object) };
    let thread = thread::current();
    thread
        .critical_regions
        .set(thread.critical_regions.get() - 1);
}
