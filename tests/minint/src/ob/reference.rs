//! The table of objects and their reference counts, and the exports over it.
//!
//! IRQL at most DISPATCH_LEVEL for counting; an object ends at PASSIVE_LEVEL.

use alloc::collections::BTreeMap;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    ACCESS_MASK, HANDLE, KPROCESSOR_MODE, LONG_PTR, NTSTATUS, POBJECT_HANDLE_INFORMATION,
    POBJECT_TYPE, PUNICODE_STRING, PVOID, ULONG,
};

use super::argument::{own, put};
use super::types::{ObType, type_of};
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, current, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ke::thread;
use crate::ps::process;
use crate::rtl::status::{
    STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS,
};

/// Ends an object whose last reference is gone.
pub(crate) type Delete = fn(*mut c_void);

struct Entry {
    kind: ObType,
    references: isize,
    delete: Option<Delete>,
}

static OBJECTS: SpinLock<BTreeMap<usize, Entry>> = SpinLock::new(BTreeMap::new());

/// Enters a new object with one reference, its maker's.
pub(crate) fn insert(object: *mut c_void, kind: ObType, delete: Option<Delete>) {
    let old = OBJECTS.lock().insert(
        object.addr(),
        Entry {
            kind,
            references: 1,
            delete,
        },
    );
    crate::require!(
        old.is_none(),
        "ObCreateObject",
        "object {:p} exists already",
        object
    );
}

/// Ends the table's part in a thread or a process: the core's count goes on.
fn give_back(object: *mut c_void) {
    match crate::ex::event::dispatcher_kind(object) {
        Some(ObType::Thread) => {
            thread::dereference(thread::from_object(object, "ObDereferenceObject"));
        }
        Some(ObType::Process) => process::dereference(own!(object.cast::<process::Process>())),
        _ => {}
    }
}

/// Adds a reference to a thread or a process of the core. The table holds one
/// reference of the core's for as long as it counts any of its own.
pub(crate) fn reference_foreign(object: *mut c_void, kind: ObType) {
    let mut table = OBJECTS.lock();
    if let Some(entry) = table.get_mut(&object.addr()) {
        entry.references += 1;
        return;
    }
    table.insert(
        object.addr(),
        Entry {
            kind,
            references: 1,
            delete: Some(give_back),
        },
    );
    drop(table);
    match kind {
        ObType::Thread => thread::reference(thread::from_object(object, "ObReferenceObject")),
        ObType::Process => process::reference(own!(object.cast::<process::Process>())),
        _ => {}
    }
}

/// Whether references to an object of the core are left, at its end.
pub(crate) fn forget(object: usize) -> bool {
    OBJECTS
        .lock()
        .get(&object)
        .is_some_and(|entry| entry.references > 0)
}

/// The type of a known object.
pub(crate) fn kind_of(object: *const c_void) -> Option<ObType> {
    let known = OBJECTS.lock().get(&object.addr()).map(|entry| entry.kind);
    known.or_else(|| crate::ex::event::dispatcher_kind(object.cast_mut()))
}

/// Number of objects in the table.
pub(crate) fn count() -> usize {
    OBJECTS.lock().len()
}

/// Adds a reference and returns the new count.
pub(crate) fn reference(object: *mut c_void, api: &str) -> isize {
    let mut table = OBJECTS.lock();
    if let Some(entry) = table.get_mut(&object.addr()) {
        entry.references += 1;
        return entry.references;
    }
    drop(table);
    match crate::ex::event::dispatcher_kind(object) {
        Some(kind) => reference_foreign(object, kind),
        None => crate::ke::bugcheck::violation(api, format_args!("{object:p} is not an object")),
    }
    1
}

/// Drops a reference and returns the new count; at zero the object ends.
pub(crate) fn dereference(object: *mut c_void, api: &str) -> isize {
    let mut table = OBJECTS.lock();
    let Some(entry) = table.get_mut(&object.addr()) else {
        drop(table);
        crate::ke::bugcheck::violation(api, format_args!("{object:p} is not an object"));
    };
    entry.references -= 1;
    let left = entry.references;
    if left > 0 {
        return left;
    }
    let delete = entry.delete;
    table.remove(&object.addr());
    drop(table);
    if let Some(delete) = delete {
        if current() == PASSIVE_LEVEL {
            delete(object);
        } else {
            crate::ex::work::defer(delete, object);
        }
    }
    0
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObfReferenceObject(object: PVOID) -> LONG_PTR {
    require_irql(DISPATCH_LEVEL, "ObfReferenceObject");
    reference(object, "ObfReferenceObject") as LONG_PTR
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObfReferenceObjectWithTag(object: PVOID, _tag: ULONG) -> LONG_PTR {
    require_irql(DISPATCH_LEVEL, "ObfReferenceObjectWithTag");
    reference(object, "ObfReferenceObjectWithTag") as LONG_PTR
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObfDereferenceObject(object: PVOID) -> LONG_PTR {
    require_irql(DISPATCH_LEVEL, "ObfDereferenceObject");
    dereference(object, "ObfDereferenceObject") as LONG_PTR
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObfDereferenceObjectWithTag(
    object: PVOID,
    _tag: ULONG,
) -> LONG_PTR {
    require_irql(DISPATCH_LEVEL, "ObfDereferenceObjectWithTag");
    dereference(object, "ObfDereferenceObjectWithTag") as LONG_PTR
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObDereferenceObjectDeferDelete(object: PVOID) {
    require_irql(DISPATCH_LEVEL, "ObDereferenceObjectDeferDelete");
    // The worker drops it, so the object ends in the worker's thread.
    crate::ex::work::defer(
        |object| {
            let _ = dereference(object, "ObDereferenceObjectDeferDelete");
        },
        object,
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObReferenceObjectByPointer(
    object: PVOID,
    _access: ACCESS_MASK,
    kind: POBJECT_TYPE,
    mode: KPROCESSOR_MODE,
) -> NTSTATUS {
    require_irql(DISPATCH_LEVEL, "ObReferenceObjectByPointer");
    let wanted = type_of(kind.cast());
    // A kernel-mode caller may leave the type out.
    if (!kind.is_null() || mode != 0) && (wanted.is_none() || wanted != kind_of(object)) {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    let _ = reference(object, "ObReferenceObjectByPointer");
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObReferenceObjectByPointerWithTag(
    object: PVOID,
    access: ACCESS_MASK,
    kind: POBJECT_TYPE,
    mode: KPROCESSOR_MODE,
    _tag: ULONG,
) -> NTSTATUS {
    // SAFETY: the same contract.
    unsafe { ObReferenceObjectByPointer(object, access, kind, mode) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObReferenceObjectByHandle(
    handle: HANDLE,
    _access: ACCESS_MASK,
    kind: POBJECT_TYPE,
    _mode: KPROCESSOR_MODE,
    object: *mut PVOID,
    information: POBJECT_HANDLE_INFORMATION,
) -> NTSTATUS {
    const API: &str = "ObReferenceObjectByHandle";
    require_irql(PASSIVE_LEVEL, API);
    let wanted = type_of(kind.cast());
    crate::require!(
        kind.is_null() || wanted.is_some(),
        API,
        "{:p} is not an object type",
        kind
    );
    let (found, granted) = match super::handle::look_up(handle) {
        Ok(found) => found,
        Err(status) => return status,
    };
    if wanted.is_some() && kind_of(found) != wanted {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    let _ = reference(found, API);
    if !information.is_null() {
        put!(
            information,
            wdk_standin::wdk_sys::OBJECT_HANDLE_INFORMATION {
                HandleAttributes: 0,
                GrantedAccess: granted,
            },
            API
        );
    }
    put!(object, found, API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObReferenceObjectByName(
    name: PUNICODE_STRING,
    _attributes: ULONG,
    _state: PVOID,
    _access: ACCESS_MASK,
    kind: POBJECT_TYPE,
    _mode: KPROCESSOR_MODE,
    _context: PVOID,
    object: *mut PVOID,
) -> NTSTATUS {
    const API: &str = "ObReferenceObjectByName";
    require_irql(PASSIVE_LEVEL, API);
    let path = crate::rtl::unicode::text(name, API);
    let Ok((found, rest)) = super::resolve(&path) else {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    };
    if !rest.is_empty() {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    let found = core::ptr::with_exposed_provenance_mut::<c_void>(found);
    if !kind.is_null() && type_of(kind.cast()) != kind_of(found) {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    let _ = reference(found, API);
    put!(object, found, API);
    STATUS_SUCCESS
}
