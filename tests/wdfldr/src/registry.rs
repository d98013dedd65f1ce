//! WDFKEY: the driver's parameters.

use alloc::vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use wdk_standin::wdk_sys::{
    _KEY_VALUE_INFORMATION_CLASS as Class, ACCESS_MASK, HANDLE, KEY_READ,
    KEY_VALUE_PARTIAL_INFORMATION, NT_SUCCESS, NTSTATUS, OBJ_CASE_INSENSITIVE, OBJ_KERNEL_HANDLE,
    OBJECT_ATTRIBUTES, PCUNICODE_STRING, PULONG, PVOID, PWDF_DRIVER_GLOBALS,
    PWDF_OBJECT_ATTRIBUTES, REG_DWORD, STATUS_BUFFER_OVERFLOW, STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS, ULONG, WDFDRIVER, WDFKEY,
    ntddk::{ZwClose, ZwOpenKey, ZwQueryValueKey},
};

use crate::{
    call::{Call, Of},
    nt::{irql, text::Text},
    object::{self, Attributes, Kind, Parent},
};

/// Bytes before `Data` in KEY_VALUE_PARTIAL_INFORMATION.
const HEADER: usize = 12;
/// The longest value that is read.
const LONGEST: usize = 64 * 1024;

pub(crate) struct Key(AtomicUsize);

impl Key {
    fn handle(&self) -> HANDLE {
        self.0.load(Ordering::Acquire) as HANDLE
    }

    pub(crate) fn close(&self) {
        let handle = self.0.swap(0, Ordering::AcqRel) as HANDLE;
        if !handle.is_null() {
            // SAFETY: opened by us, closed once.
            let _ = unsafe { ZwClose(handle) };
        }
    }
}

fn open(parent: HANDLE, name: &Text, access: ACCESS_MASK) -> Result<Key, NTSTATUS> {
    let mut name = name.as_unicode();
    let mut attributes = OBJECT_ATTRIBUTES {
        Length: size_of::<OBJECT_ATTRIBUTES>() as ULONG,
        RootDirectory: parent,
        ObjectName: &raw mut name,
        Attributes: OBJ_CASE_INSENSITIVE | OBJ_KERNEL_HANDLE,
        ..OBJECT_ATTRIBUTES::default()
    };
    let mut handle: HANDLE = core::ptr::null_mut();
    // SAFETY: all three live across the call.
    let status = unsafe { ZwOpenKey(&raw mut handle, access, &raw mut attributes) };
    if NT_SUCCESS(status) {
        Ok(Key(AtomicUsize::new(handle.addr())))
    } else {
        Err(status)
    }
}

pub(crate) unsafe extern "C" fn wdf_driver_open_parameters_registry_key(
    globals: PWDF_DRIVER_GLOBALS,
    driver: WDFDRIVER,
    access: ACCESS_MASK,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    key: *mut WDFKEY,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDriverOpenParametersRegistryKey", irql::PASSIVE, globals) };
    let _ = call.driver_object(driver);
    let mut path = call.client().registry_path.units().to_vec();
    path.extend("\\Parameters".encode_utf16());
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let opened = open(core::ptr::null_mut(), &Text::from_units(&path), access)?;
        let parent = Parent::Default(call.driver());
        object::create(&call, &attributes, parent, Kind::Key(opened))
    });
    call.finish(made, key)
}

pub(crate) unsafe extern "C" fn wdf_registry_open_key(
    globals: PWDF_DRIVER_GLOBALS,
    parent: WDFKEY,
    name: PCUNICODE_STRING,
    access: ACCESS_MASK,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    key: *mut WDFKEY,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRegistryOpenKey", irql::PASSIVE, globals) };
    let root = if parent.is_null() {
        core::ptr::null_mut()
    } else {
        call.key(parent).handle()
    };
    // SAFETY: the driver's string.
    let Some(name) = (unsafe { Text::copy(name) }) else {
        return STATUS_INVALID_PARAMETER;
    };
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let opened = open(root, &name, access)?;
        let parent = Parent::Default(call.driver());
        object::create(&call, &attributes, parent, Kind::Key(opened))
    });
    call.finish(made, key)
}

pub(crate) unsafe extern "C" fn wdf_registry_close(globals: PWDF_DRIVER_GLOBALS, key: WDFKEY) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRegistryClose", irql::PASSIVE, globals) };
    let handle = call.key(key).object.handle();
    object::delete(handle, call.name());
}

/// Type and bytes of a value.
fn query(key: &Of<Key>, name: PCUNICODE_STRING) -> Result<(u32, vec::Vec<u8>), NTSTATUS> {
    // SAFETY: the driver's string.
    let Some(name) = (unsafe { Text::copy(name) }) else {
        return Err(STATUS_INVALID_PARAMETER);
    };
    value(key, &name)
}

/// Whether the system was booted with that word. PASSIVE_LEVEL.
pub(crate) fn booted_with(word: &str) -> bool {
    const CONTROL: &str = "\\Registry\\Machine\\System\\CurrentControlSet\\Control";
    let text = |text: &str| Text::from_units(&text.encode_utf16().collect::<vec::Vec<u16>>());
    let Ok(key) = open(core::ptr::null_mut(), &text(CONTROL), KEY_READ) else {
        return false;
    };
    let found = value(&key, &text("SystemStartOptions"));
    key.close();
    let units: vec::Vec<u16> = found.map_or_else(
        |_| vec::Vec::new(),
        |(_, bytes)| {
            let pairs = bytes.chunks_exact(2);
            pairs
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                .collect()
        },
    );
    let options = alloc::string::String::from_utf16_lossy(&units);
    options
        .split([' ', '\0'])
        .any(|option| option.eq_ignore_ascii_case(word))
}

fn value(key: &Key, name: &Text) -> Result<(u32, vec::Vec<u8>), NTSTATUS> {
    let mut name = name.as_unicode();
    let mut block = vec![0_u64; (HEADER + LONGEST).div_ceil(8)];
    let mut needed = 0;
    // SAFETY: name, block and length live across the call.
    let status = unsafe {
        ZwQueryValueKey(
            key.handle(),
            &raw mut name,
            Class::KeyValuePartialInformation,
            block.as_mut_ptr().cast(),
            (HEADER + LONGEST) as ULONG,
            &raw mut needed,
        )
    };
    if !NT_SUCCESS(status) {
        return Err(status);
    }
    let information: *const KEY_VALUE_PARTIAL_INFORMATION = block.as_ptr().cast();
    // SAFETY: filled by the call.
    let kind = unsafe { (*information).Type };
    // SAFETY: filled by the call.
    let length = unsafe { (*information).DataLength } as usize;
    let bytes = block.iter().flat_map(|word| word.to_le_bytes());
    Ok((kind, bytes.skip(HEADER).take(length).collect()))
}

pub(crate) unsafe extern "C" fn wdf_registry_query_value(
    globals: PWDF_DRIVER_GLOBALS,
    key: WDFKEY,
    name: PCUNICODE_STRING,
    capacity: ULONG,
    value: PVOID,
    length: PULONG,
    kind: PULONG,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRegistryQueryValue", irql::PASSIVE, globals) };
    let key = call.key(key);
    call.require(
        capacity == 0 || !value.is_null(),
        format_args!("ValueLength without a buffer"),
    );
    let (found, bytes) = match query(&key, name) {
        Ok(found) => found,
        Err(status) => return status,
    };
    call.write_optional(length, bytes.len() as ULONG);
    call.write_optional(kind, found);
    let room = bytes.len().min(capacity as usize);
    if room > 0 {
        // SAFETY: the driver's buffer has `capacity` bytes.
        let buffer = unsafe { core::slice::from_raw_parts_mut(value.cast::<u8>(), room) };
        buffer.copy_from_slice(&bytes[..room]);
    }
    if bytes.len() > capacity as usize {
        return STATUS_BUFFER_OVERFLOW;
    }
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_registry_query_ulong(
    globals: PWDF_DRIVER_GLOBALS,
    key: WDFKEY,
    name: PCUNICODE_STRING,
    value: PULONG,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRegistryQueryULong", irql::PASSIVE, globals) };
    let key = call.key(key);
    match query(&key, name) {
        Ok((REG_DWORD, bytes)) if bytes.len() >= 4 => {
            call.write(
                value,
                u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            );
            STATUS_SUCCESS
        }
        Ok(_) => STATUS_OBJECT_TYPE_MISMATCH,
        Err(status) => status,
    }
}
