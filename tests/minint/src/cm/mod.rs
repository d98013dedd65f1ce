//! The registry: keys and values in memory, lost at power-off.
//!
//! One tree behind one lock; a handle to a key is an object that holds its path.
//! PASSIVE_LEVEL. Paths compare without case; `\Registry` is the root.

mod query;
mod rtl;
mod tree;

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    ACCESS_MASK, HANDLE, NTSTATUS, PHANDLE, POBJECT_ATTRIBUTES, PUNICODE_STRING, PVOID, ULONG,
};

use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own, put};
use crate::ob::{self, ObType};
use crate::rtl::status::{
    STATUS_CANNOT_DELETE, STATUS_INVALID_PARAMETER, STATUS_KEY_DELETED,
    STATUS_OBJECT_NAME_NOT_FOUND, STATUS_SUCCESS,
};
use crate::rtl::unicode::text;
use tree::Tree;

static TREE: SpinLock<Tree> = SpinLock::new(Tree::new());

const SERVICES: &str = "\\Registry\\Machine\\System\\CurrentControlSet\\Services";
const CONTROL: &str = "\\Registry\\Machine\\System\\CurrentControlSet\\Control";
/// `REG_SZ`.
pub(crate) const REG_SZ: u32 = 1;
/// `REG_EXPAND_SZ`.
pub(crate) const REG_EXPAND_SZ: u32 = 2;
/// `REG_DWORD`.
pub(crate) const REG_DWORD: u32 = 4;

/// The registry path of a service, as `DriverEntry` gets it.
pub(crate) fn service_key(service: &str) -> String {
    "\\REGISTRY\\MACHINE\\SYSTEM\\ControlSet001\\Services\\".to_string() + service
}

fn wide(text: &str) -> alloc::vec::Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Makes the keys that every system has. PASSIVE_LEVEL, once.
pub(crate) fn start() {
    let version = "\\Registry\\Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion";
    let build = crate::rtl::BUILD.to_string();
    let mut tree = TREE.lock();
    let _ = tree.create(SERVICES);
    let _ = tree.create(CONTROL);
    let options = wide(crate::hal::boot::cmdline());
    tree.set(CONTROL, "SystemStartOptions", REG_SZ, options);
    let _ = tree.create("\\Registry\\Machine\\Hardware");
    let _ = tree.create("\\Registry\\User");
    let _ = tree.create(version);
    tree.set(version, "CurrentBuildNumber", REG_SZ, wide(&build));
    tree.set(version, "ProductName", REG_SZ, wide("MiniNT"));
}

/// Makes a service's key with the values that the service controller writes.
pub(crate) fn create_service(service: &str, path: &str) {
    let key = SERVICES.to_string() + "\\" + service;
    let mut tree = TREE.lock();
    let _ = tree.create(&key);
    let _ = tree.create(&(key.clone() + "\\Parameters"));
    // Kernel driver, on demand, normal error control.
    for (name, value) in [("Type", 1u32), ("Start", 3), ("ErrorControl", 1)] {
        tree.set(&key, name, REG_DWORD, value.to_le_bytes().to_vec());
    }
    tree.set(&key, "ImagePath", REG_EXPAND_SZ, wide(path));
}

/// What a key handle refers to.
struct Key {
    path: String,
}

fn delete(object: *mut c_void) {
    // SAFETY: made by `open`, and its last reference is gone.
    drop(unsafe { Box::from_raw(object.cast::<Key>()) });
}

fn open(path: String, access: ACCESS_MASK) -> HANDLE {
    let object = Box::into_raw(Box::new(Key { path })).cast::<c_void>();
    ob::insert(object, ObType::Key, Some(delete));
    let handle = ob::insert_handle_with(object, access, None);
    let _ = ob::dereference(object, "ZwOpenKey");
    handle
}

/// The path behind a key handle, if the key still exists.
fn path_of(handle: HANDLE) -> Result<String, NTSTATUS> {
    let object = ob::object_of(handle, ObType::Key)?;
    let path = own!(object.cast::<Key>()).path.clone();
    if TREE.lock().exists(&path) {
        Ok(path)
    } else {
        Err(STATUS_KEY_DELETED)
    }
}

/// The full path that `OBJECT_ATTRIBUTES` name.
fn full_path(attributes: POBJECT_ATTRIBUTES, api: &str) -> Result<String, NTSTATUS> {
    let attributes = borrow!(attributes, api);
    if attributes.ObjectName.is_null() {
        return Err(STATUS_INVALID_PARAMETER);
    }
    let name = text(attributes.ObjectName, api);
    if attributes.RootDirectory.is_null() {
        return Ok(name);
    }
    let root = path_of(attributes.RootDirectory)?;
    Ok(if name.is_empty() {
        root
    } else {
        root + "\\" + &name
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwOpenKey(
    handle: PHANDLE,
    access: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
) -> NTSTATUS {
    const API: &str = "ZwOpenKey";
    require_irql(PASSIVE_LEVEL, API);
    let path = match full_path(attributes, API) {
        Ok(path) => path,
        Err(status) => return status,
    };
    if !TREE.lock().exists(&path) {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    put!(handle, open(path, access), API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwOpenKeyEx(
    handle: PHANDLE,
    access: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    _options: ULONG,
) -> NTSTATUS {
    // SAFETY: the same contract.
    unsafe { ZwOpenKey(handle, access, attributes) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwCreateKey(
    handle: PHANDLE,
    access: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    _title: ULONG,
    _class: PUNICODE_STRING,
    _options: ULONG,
    disposition: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "ZwCreateKey";
    const CREATED_NEW_KEY: u32 = 1;
    const OPENED_EXISTING_KEY: u32 = 2;
    require_irql(PASSIVE_LEVEL, API);
    let path = match full_path(attributes, API) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let mut tree = TREE.lock();
    let existed = tree.exists(&path);
    if !existed && !tree.parent_exists(&path) {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    let _ = tree.create(&path);
    drop(tree);
    if !disposition.is_null() {
        put!(
            disposition,
            if existed {
                OPENED_EXISTING_KEY
            } else {
                CREATED_NEW_KEY
            },
            API
        );
    }
    put!(handle, open(path, access), API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwDeleteKey(handle: HANDLE) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "ZwDeleteKey");
    match path_of(handle) {
        Ok(path) if TREE.lock().delete(&path) => STATUS_SUCCESS,
        Ok(_) => STATUS_CANNOT_DELETE,
        Err(status) => status,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwFlushKey(handle: HANDLE) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "ZwFlushKey");
    path_of(handle).map_or_else(|status| status, |_| STATUS_SUCCESS)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwSetValueKey(
    handle: HANDLE,
    name: PUNICODE_STRING,
    _title: ULONG,
    kind: ULONG,
    data: PVOID,
    bytes: ULONG,
) -> NTSTATUS {
    const API: &str = "ZwSetValueKey";
    require_irql(PASSIVE_LEVEL, API);
    let path = match path_of(handle) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let data = if bytes == 0 {
        alloc::vec::Vec::new()
    } else {
        crate::ob::argument::check(data.cast_const().cast::<u8>(), API);
        // SAFETY: checked; the contract gives it `bytes` readable bytes.
        unsafe { core::slice::from_raw_parts(data.cast::<u8>(), bytes as usize) }.to_vec()
    };
    TREE.lock().set(&path, &text(name, API), kind, data);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwDeleteValueKey(
    handle: HANDLE,
    name: PUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "ZwDeleteValueKey";
    require_irql(PASSIVE_LEVEL, API);
    match path_of(handle) {
        Ok(path) if TREE.lock().unset(&path, &text(name, API)) => STATUS_SUCCESS,
        Ok(_) => STATUS_OBJECT_NAME_NOT_FOUND,
        Err(status) => status,
    }
}
