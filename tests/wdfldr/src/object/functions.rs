//! WdfObject…: what a driver may do with any object.

use wdk_standin::wdk_sys::{
    GUID, LONG, NTSTATUS, PCCH, PCWDF_OBJECT_CONTEXT_TYPE_INFO, PVOID, PWDF_DRIVER_GLOBALS,
    PWDF_OBJECT_ATTRIBUTES, STATUS_NOT_FOUND, STATUS_OBJECT_NAME_EXISTS, STATUS_SUCCESS, ULONG,
    WDFOBJECT,
};

use super::{
    attributes::{Attributes, Parent},
    context::Context,
    instance::{self, Kind, STORE},
    store::Handle,
};
use crate::{
    call::Call,
    nt::{
        irql,
        violation::{self, Code},
    },
};

pub(crate) unsafe extern "C" fn wdf_object_get_typed_context_worker(
    globals: PWDF_DRIVER_GLOBALS,
    object: WDFOBJECT,
    type_info: PCWDF_OBJECT_CONTEXT_TYPE_INFO,
) -> PVOID {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectGetTypedContextWorker", irql::DISPATCH, globals) };
    let object = call.object(object);
    call.require(!type_info.is_null(), format_args!("TypeInfo is null"));
    object.context(type_info).unwrap_or(core::ptr::null_mut())
}

pub(crate) unsafe extern "C" fn wdf_object_allocate_context(
    globals: PWDF_DRIVER_GLOBALS,
    object: WDFOBJECT,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    context: *mut PVOID,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectAllocateContext", irql::DISPATCH, globals) };
    let object = call.object(object);
    let attributes = match Attributes::read(&call, attributes) {
        Ok(attributes) => attributes,
        Err(status) => return status,
    };
    let unique = attributes.context_type();
    call.require(
        !unique.is_null(),
        format_args!("ContextAttributes name no context type"),
    );
    if let Some(block) = object.context(unique) {
        call.write_optional(context, block);
        return STATUS_OBJECT_NAME_EXISTS;
    }
    if STORE.lock().is_deleted(object.handle()).unwrap_or(true) {
        return wdk_standin::wdk_sys::STATUS_DELETE_PENDING;
    }
    for context in attributes.contexts(object.handle()) {
        object.add_context(context);
    }
    call.write_optional(
        context,
        object.context(unique).unwrap_or(core::ptr::null_mut()),
    );
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_object_context_get_object(
    globals: PWDF_DRIVER_GLOBALS,
    context: PVOID,
) -> WDFOBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectContextGetObject", irql::DISPATCH, globals) };
    call.require(!context.is_null(), format_args!("ContextPointer is null"));
    // SAFETY: the driver's promise; a wrong pointer gives no live handle below.
    let handle = unsafe { Context::owner(context) };
    call.any(handle).pointer()
}

pub(crate) unsafe extern "C" fn wdf_object_reference_actual(
    globals: PWDF_DRIVER_GLOBALS,
    object: WDFOBJECT,
    _tag: PVOID,
    _line: LONG,
    _file: PCCH,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectReferenceActual", irql::DISPATCH, globals) };
    let object = call.object(object);
    let referenced = STORE.lock().reference(object.handle());
    call.require(referenced.is_ok(), format_args!("the object is gone"));
}

pub(crate) unsafe extern "C" fn wdf_object_dereference_actual(
    globals: PWDF_DRIVER_GLOBALS,
    object: WDFOBJECT,
    _tag: PVOID,
    _line: LONG,
    _file: PCCH,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectDereferenceActual", irql::DISPATCH, globals) };
    let handle = call.object(object).handle();
    instance::dereference(handle, call.name());
}

pub(crate) unsafe extern "C" fn wdf_object_create(
    globals: PWDF_DRIVER_GLOBALS,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    object: *mut WDFOBJECT,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectCreate", irql::DISPATCH, globals) };
    let created = Attributes::read(&call, attributes).and_then(|attributes| {
        instance::create(
            &call,
            &attributes,
            Parent::Default(call.driver()),
            Kind::General,
        )
    });
    call.finish(created, object)
}

pub(crate) unsafe extern "C" fn wdf_object_delete(globals: PWDF_DRIVER_GLOBALS, object: WDFOBJECT) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectDelete", irql::DISPATCH, globals) };
    let object = call.object(object);
    if !object.kind.deletable() {
        violation::raise(
            Code::Deletion,
            object.handle().0,
            0,
            format_args!(
                "WdfObjectDelete: the framework deletes a {} itself",
                object.kind.name()
            ),
        );
    }
    let handle: Handle = object.handle();
    drop(object);
    instance::delete(handle, call.name());
}

pub(crate) unsafe extern "C" fn wdf_object_query(
    globals: PWDF_DRIVER_GLOBALS,
    object: WDFOBJECT,
    _guid: *const GUID,
    _length: ULONG,
    _buffer: PVOID,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfObjectQuery", irql::DISPATCH, globals) };
    let _ = call.object(object);
    STATUS_NOT_FOUND
}
