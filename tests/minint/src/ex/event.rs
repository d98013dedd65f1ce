//! Events and time as this part of the kernel uses them, and events by handle.
//!
//! Waiting is at most APC_LEVEL, by the core's rules.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{
    ACCESS_MASK, BOOLEAN, HANDLE, KEVENT, NTSTATUS, PHANDLE, PKEVENT, PLARGE_INTEGER,
    POBJECT_ATTRIBUTES, PUNICODE_STRING,
};

use super::nt;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, put};
use crate::ob::namespace::Node;
use crate::ob::{self, ObType};
use crate::rtl::status::{
    STATUS_INVALID_PARAMETER, STATUS_OBJECT_NAME_COLLISION, STATUS_OBJECT_NAME_EXISTS,
    STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS,
};

/// An event of the kernel's own.
pub(crate) struct Event(UnsafeCell<KEVENT>);

// SAFETY: the dispatcher serialises all use of the KEVENT.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new event, in its box because the dispatcher links to its address.
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "its address must not change"
    )]
    pub(crate) fn new(kind: u32) -> Box<Self> {
        let event = Box::new(Self(UnsafeCell::new(KEVENT::default())));
        // SAFETY: its memory is this box's alone.
        unsafe { nt::KeInitializeEvent(event.0.get(), kind, 0) };
        event
    }

    /// The KEVENT.
    pub(crate) fn get(&self) -> PKEVENT {
        self.0.get()
    }

    /// Signals it. IRQL at most DISPATCH_LEVEL.
    pub(crate) fn set(&self) {
        // SAFETY: initialized in `new`.
        unsafe { nt::KeSetEvent(self.0.get(), 0, 0) };
    }

    /// Waits for it. IRQL at most APC_LEVEL.
    pub(crate) fn wait(&self) {
        let _ = wait_for(self.0.get().cast(), None);
    }

    /// Waits for it at most this long.
    pub(crate) fn wait_ms(&self, milliseconds: i64) -> bool {
        wait_for(self.0.get().cast(), Some(milliseconds)) == STATUS_SUCCESS
    }
}

/// Waits for a dispatcher object, at most `milliseconds`.
pub(crate) fn wait_for(object: *mut c_void, milliseconds: Option<i64>) -> NTSTATUS {
    let mut due = milliseconds.map(|ms| -ms * 10_000);
    let due = due
        .as_mut()
        .map_or(core::ptr::null_mut(), |due| core::ptr::from_mut(due).cast());
    // SAFETY: a live dispatcher object, by the caller; the time outlives the call.
    unsafe { nt::KeWaitForSingleObject(object, 0, nt::KERNEL_MODE, 0, due) }
}

/// Gives the processor away for some milliseconds. PASSIVE_LEVEL.
pub(crate) fn sleep_ms(milliseconds: i64) {
    let mut due = -milliseconds * 10_000;
    let due: PLARGE_INTEGER = core::ptr::from_mut(&mut due).cast();
    // SAFETY: the interval outlives the call.
    unsafe { nt::KeDelayExecutionThread(nt::KERNEL_MODE, 0, due) };
}

/// A lock that may be held across waits: taken rarely, for long.
pub(crate) struct Gate(AtomicBool);

impl Gate {
    /// An open gate.
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Runs `f` with the gate held. PASSIVE_LEVEL.
    pub(crate) fn hold<R>(&self, f: impl FnOnce() -> R) -> R {
        while self.0.swap(true, Ordering::Acquire) {
            sleep_ms(1);
        }
        let result = f();
        self.0.store(false, Ordering::Release);
        result
    }
}

/// `EPROCESS` of the caller.
pub(crate) fn current_process() -> *mut c_void {
    // SAFETY: no arguments, any IRQL.
    unsafe { nt::PsGetCurrentProcess() }
}

/// `ETHREAD` of the caller.
pub(crate) fn current_thread() -> *mut c_void {
    // SAFETY: no arguments, any IRQL.
    unsafe { nt::PsGetCurrentThread() }
}

/// Whether this is a process or a thread, from the type byte of its
/// `DISPATCHER_HEADER` (`KOBJECTS`: 3 and 6).
pub(crate) fn dispatcher_kind(object: *mut c_void) -> Option<ObType> {
    match *borrow!(object.cast::<u8>(), "ObReferenceObject") {
        3 if is_process(object) => Some(ObType::Process),
        6 => Some(ObType::Thread),
        _ => None,
    }
}

/// Whether a process begins here: other structures carry the same type number.
fn is_process(object: *mut c_void) -> bool {
    crate::ps::process::all()
        .iter()
        .any(|&process| core::ptr::from_ref(process).addr() == object.addr())
}

/// The name in `OBJECT_ATTRIBUTES`, if there is one.
pub(crate) fn name_of(attributes: POBJECT_ATTRIBUTES, api: &str) -> Option<alloc::string::String> {
    if attributes.is_null() {
        return None;
    }
    let name = borrow!(attributes, api).ObjectName;
    (!name.is_null()).then(|| crate::rtl::unicode::text(name, api))
}

fn delete(object: *mut c_void) {
    ob::remove_object_names(object.addr());
    // SAFETY: made by `make`, and its last reference is gone.
    drop(unsafe { Box::from_raw(object.cast::<KEVENT>()) });
}

/// Makes an event object with one reference, or opens the one of that name.
fn make(name: Option<&str>, kind: u32, state: BOOLEAN) -> Result<(*mut c_void, bool), NTSTATUS> {
    if let Some(name) = name
        && let Ok((existing, _)) = ob::resolve(name)
    {
        let existing = core::ptr::with_exposed_provenance_mut::<c_void>(existing);
        if ob::kind_of(existing) != Some(ObType::Event) {
            return Err(STATUS_OBJECT_TYPE_MISMATCH);
        }
        let _ = ob::reference(existing, "ZwCreateEvent");
        return Ok((existing, true));
    }
    let event = Box::into_raw(Box::new(KEVENT::default()));
    // SAFETY: its memory is this box's alone.
    unsafe { nt::KeInitializeEvent(event, kind, state) };
    let object = event.cast::<c_void>();
    if let Some(name) = name
        && ob::insert_name(name, Node::Object(object.expose_provenance())).is_err()
    {
        // SAFETY: nobody has seen it.
        drop(unsafe { Box::from_raw(event) });
        return Err(STATUS_OBJECT_NAME_COLLISION);
    }
    ob::insert(object, ObType::Event, Some(delete));
    Ok((object, false))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwCreateEvent(
    handle: PHANDLE,
    access: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    kind: u32,
    state: BOOLEAN,
) -> NTSTATUS {
    const API: &str = "ZwCreateEvent";
    require_irql(PASSIVE_LEVEL, API);
    if kind > nt::SYNCHRONIZATION_EVENT {
        return STATUS_INVALID_PARAMETER;
    }
    let name = name_of(attributes, API);
    let (event, existed) = match make(name.as_deref(), kind, state) {
        Ok(made) => made,
        Err(status) => return status,
    };
    let opened = ob::insert_handle_with(event, access, None);
    let _ = ob::dereference(event, API);
    put!(handle, opened, API);
    if existed {
        STATUS_OBJECT_NAME_EXISTS
    } else {
        STATUS_SUCCESS
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwOpenEvent(
    handle: PHANDLE,
    access: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
) -> NTSTATUS {
    const API: &str = "ZwOpenEvent";
    require_irql(PASSIVE_LEVEL, API);
    let Some(name) = name_of(attributes, API) else {
        return STATUS_INVALID_PARAMETER;
    };
    let Ok((event, _)) = ob::resolve(&name) else {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    };
    let event = core::ptr::with_exposed_provenance_mut::<c_void>(event);
    if ob::kind_of(event) != Some(ObType::Event) {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    put!(handle, ob::insert_handle_with(event, access, None), API);
    STATUS_SUCCESS
}

fn set_by_handle(handle: HANDLE, previous: *mut i32, signalled: bool, api: &str) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, api);
    let event = match ob::object_of(handle, ObType::Event) {
        Ok(event) => event.cast::<KEVENT>(),
        Err(status) => return status,
    };
    let before = if signalled {
        // SAFETY: a live event: the handle references it.
        unsafe { nt::KeSetEvent(event, 0, 0) }
    } else {
        // SAFETY: as above.
        unsafe { nt::KeResetEvent(event) }
    };
    if !previous.is_null() {
        put!(previous, before, api);
    }
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwSetEvent(handle: HANDLE, previous: *mut i32) -> NTSTATUS {
    set_by_handle(handle, previous, true, "ZwSetEvent")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwResetEvent(handle: HANDLE, previous: *mut i32) -> NTSTATUS {
    set_by_handle(handle, previous, false, "ZwResetEvent")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwClearEvent(handle: HANDLE) -> NTSTATUS {
    set_by_handle(handle, core::ptr::null_mut(), false, "ZwClearEvent")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwWaitForSingleObject(
    handle: HANDLE,
    alertable: BOOLEAN,
    timeout: PLARGE_INTEGER,
) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "ZwWaitForSingleObject");
    for kind in [ObType::Event, ObType::Thread, ObType::Process] {
        if let Ok(object) = ob::object_of(handle, kind) {
            // SAFETY: a live dispatcher object: the handle references it.
            return unsafe {
                nt::KeWaitForSingleObject(object, 0, nt::USER_MODE, alertable, timeout)
            };
        }
    }
    crate::rtl::status::STATUS_INVALID_HANDLE
}

fn named(name: PUNICODE_STRING, handle: PHANDLE, kind: u32, api: &str) -> PKEVENT {
    require_irql(PASSIVE_LEVEL, api);
    let name = (!name.is_null()).then(|| crate::rtl::unicode::text(name, api));
    let Ok((event, _)) = make(name.as_deref(), kind, 1) else {
        return core::ptr::null_mut();
    };
    put!(
        handle,
        ob::insert_handle_with(event, 0x001F_0003, None),
        api
    );
    let _ = ob::dereference(event, api);
    event.cast()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCreateNotificationEvent(
    name: PUNICODE_STRING,
    handle: PHANDLE,
) -> PKEVENT {
    named(
        name,
        handle,
        nt::NOTIFICATION_EVENT,
        "IoCreateNotificationEvent",
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCreateSynchronizationEvent(
    name: PUNICODE_STRING,
    handle: PHANDLE,
) -> PKEVENT {
    named(
        name,
        handle,
        nt::SYNCHRONIZATION_EVENT,
        "IoCreateSynchronizationEvent",
    )
}
