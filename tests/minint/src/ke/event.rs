//! Events: `KEVENT`.
//!
//! State under the dispatcher lock; setting at DISPATCH_LEVEL or below.

use core::ffi::c_void;
use core::ptr;

use super::dispatcher::{self, Header, Locked, object};
use super::irql::{DISPATCH_LEVEL, require_irql};
use super::wait::{self, Timeout};

/// `KEVENT`.
#[repr(C)]
#[derive(Debug)]
pub struct Event {
    /// Signalled while the event is set.
    pub header: Header,
}

const _: () = assert!(size_of::<Event>() == size_of::<wdk_standin::wdk_sys::KEVENT>());

// SAFETY: guarded by the dispatcher lock.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is not initialised; the kernel's own become synchronization
    /// events at their first use.
    pub const fn new() -> Self {
        Self {
            header: Header::new(),
        }
    }

    /// Makes it an event of this kind and state.
    pub fn initialize(&self, kind: u8, set: bool) {
        self.header
            .initialize(kind, size_of::<Self>(), i32::from(set));
    }

    fn prepare(&self) {
        if !self.header.waiters.is_linked() {
            self.initialize(object::SYNCHRONIZATION_EVENT, false);
        }
    }

    /// Sets the event.
    pub fn set(&self, boost: i8) {
        let locked = dispatcher::lock();
        self.set_locked(&locked, boost);
    }

    /// Sets the event under the dispatcher lock; returns the state before.
    pub(crate) fn set_locked(&self, locked: &Locked, boost: i8) -> i32 {
        self.prepare();
        let old = self.header.signal.replace(1);
        if old <= 0 {
            wait::test(locked, &self.header, boost);
        }
        old
    }

    /// Waits for it without a limit.
    pub fn wait(&self) {
        {
            let _locked = dispatcher::lock();
            self.prepare();
        }
        wait::wait(&[ptr::from_ref(&self.header)], true, Timeout::Never, "wait");
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

fn event<'a>(event: *mut c_void, api: &str) -> &'a Event {
    require!(!event.is_null(), api, "the event is NULL");
    // SAFETY: the caller vouches for the event; its type is checked next.
    let event = unsafe { &*event.cast::<Event>() };
    require!(
        event.header.kind.get() <= object::SYNCHRONIZATION_EVENT
            && event.header.waiters.is_linked(),
        api,
        "{:p} is no initialised event",
        ptr::from_ref(event)
    );
    event
}

/// `KeInitializeEvent`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeEvent(event: *mut c_void, event_type: i32, state: u8) {
    require!(
        (0..2).contains(&event_type),
        "KeInitializeEvent",
        "type {event_type}"
    );
    // SAFETY: the caller gives memory for a KEVENT.
    let event = unsafe { &*event.cast::<Event>() };
    event.initialize(event_type as u8, state != 0);
}

/// `KeSetEvent`: the state before. With `wait` the caller waits next; that needs no
/// atomicity here, since both are correct one after the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetEvent(object: *mut c_void, increment: i32, wait: u8) -> i32 {
    require_irql(DISPATCH_LEVEL, "KeSetEvent");
    if wait != 0 {
        require_irql(super::irql::APC_LEVEL, "KeSetEvent with Wait");
    }
    let event = event(object, "KeSetEvent");
    let locked = dispatcher::lock();
    event.set_locked(&locked, increment.clamp(0, 15) as i8)
}

/// `KeResetEvent`: the state before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeResetEvent(object: *mut c_void) -> i32 {
    require_irql(DISPATCH_LEVEL, "KeResetEvent");
    let event = event(object, "KeResetEvent");
    let _locked = dispatcher::lock();
    event.header.signal.replace(0)
}

/// `KeClearEvent`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeClearEvent(object: *mut c_void) {
    // SAFETY: forwarded to the caller.
    unsafe { KeResetEvent(object) };
}

/// `KePulseEvent`: ends the waits of now, then resets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KePulseEvent(object: *mut c_void, increment: i32, _wait: u8) -> i32 {
    require_irql(DISPATCH_LEVEL, "KePulseEvent");
    let event = event(object, "KePulseEvent");
    let locked = dispatcher::lock();
    let old = event.set_locked(&locked, increment.clamp(0, 15) as i8);
    event.header.signal.set(0);
    old
}

/// `KeReadStateEvent`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReadStateEvent(object: *mut c_void) -> i32 {
    event(object, "KeReadStateEvent").header.signal.get()
}
