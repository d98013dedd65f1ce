//! The kernel handle table.
//!
//! One table: every thread that opens handles here belongs to the System process,
//! or opens kernel handles (`OBJ_KERNEL_HANDLE`). A handle holds one reference on
//! its object. PASSIVE_LEVEL, but for the table's own lock.

use alloc::collections::BTreeMap;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{ACCESS_MASK, HANDLE, KPROCESSOR_MODE, NTSTATUS, POBJECT_TYPE, PVOID};

use super::argument::put;
use super::reference::{Delete, dereference, kind_of, reference};
use super::types::{ObType, type_of};
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::rtl::status::{STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS};

/// Kernel handles have their top bits set, so no process handle looks like one.
const KERNEL_HANDLE: usize = 0xFFFF_FFFF_8000_0000;

struct Entry {
    object: usize,
    access: ACCESS_MASK,
    on_close: Option<Delete>,
}

struct Table {
    entries: BTreeMap<usize, Entry>,
    next: usize,
}

static HANDLES: SpinLock<Table> = SpinLock::new(Table {
    entries: BTreeMap::new(),
    next: 1,
});

/// Opens a handle to an object of the core, with all access.
pub(crate) fn insert_handle(object: *mut c_void, kind: ObType) -> HANDLE {
    debug_assert!(matches!(kind, ObType::Thread | ObType::Process));
    insert_handle_with(object, 0x001F_FFFF, None)
}

/// Opens a handle: takes a reference of its own; `on_close` runs before that is
/// dropped.
pub(crate) fn insert_handle_with(
    object: *mut c_void,
    access: ACCESS_MASK,
    on_close: Option<Delete>,
) -> HANDLE {
    let _ = reference(object, "ObOpenObjectByPointer");
    let mut table = HANDLES.lock();
    let value = KERNEL_HANDLE | (table.next * 4);
    table.next += 1;
    let object = object.expose_provenance();
    table.entries.insert(
        value,
        Entry {
            object,
            access,
            on_close,
        },
    );
    core::ptr::without_provenance_mut(value)
}

/// Object and granted access of a handle.
pub(crate) fn look_up(handle: HANDLE) -> Result<(*mut c_void, ACCESS_MASK), NTSTATUS> {
    const CURRENT_PROCESS: usize = usize::MAX;
    const CURRENT_THREAD: usize = usize::MAX - 1;
    match handle.addr() {
        CURRENT_PROCESS => {
            let process = crate::ex::event::current_process();
            return Ok((process, 0x001F_FFFF));
        }
        CURRENT_THREAD => {
            let thread = crate::ex::event::current_thread();
            return Ok((thread, 0x001F_FFFF));
        }
        _ => {}
    }
    let table = HANDLES.lock();
    let entry = table
        .entries
        .get(&handle.addr())
        .ok_or(STATUS_INVALID_HANDLE)?;
    Ok((
        core::ptr::with_exposed_provenance_mut(entry.object),
        entry.access,
    ))
}

/// The object behind a handle if it is of this type.
pub(crate) fn object_of(handle: HANDLE, kind: ObType) -> Result<*mut c_void, NTSTATUS> {
    let (object, _) = look_up(handle)?;
    if kind_of(object) == Some(kind) {
        Ok(object)
    } else {
        Err(STATUS_OBJECT_TYPE_MISMATCH)
    }
}

/// Closes a handle.
pub(crate) fn close_handle(handle: HANDLE) -> NTSTATUS {
    let entry = HANDLES.lock().entries.remove(&handle.addr());
    let Some(entry) = entry else {
        return STATUS_INVALID_HANDLE;
    };
    let object = core::ptr::with_exposed_provenance_mut(entry.object);
    if let Some(on_close) = entry.on_close {
        on_close(object);
    }
    let _ = dereference(object, "ZwClose");
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwClose(handle: HANDLE) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "ZwClose");
    let status = close_handle(handle);
    crate::require!(
        status == STATUS_SUCCESS,
        "ZwClose",
        "{:p} is not an open handle",
        handle
    );
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn NtClose(handle: HANDLE) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "NtClose");
    close_handle(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObCloseHandle(handle: HANDLE, _mode: KPROCESSOR_MODE) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "ObCloseHandle");
    close_handle(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ObOpenObjectByPointer(
    object: PVOID,
    _attributes: u32,
    _state: PVOID,
    access: ACCESS_MASK,
    kind: POBJECT_TYPE,
    _mode: KPROCESSOR_MODE,
    handle: *mut HANDLE,
) -> NTSTATUS {
    const API: &str = "ObOpenObjectByPointer";
    require_irql(PASSIVE_LEVEL, API);
    if !kind.is_null() && type_of(kind.cast()) != kind_of(object) {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    let opened = insert_handle_with(object, access, None);
    put!(handle, opened, API);
    STATUS_SUCCESS
}
