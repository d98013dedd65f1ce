//! WDFDEVICE_INIT: what a driver says about a device before it exists.
//!
//! The driver holds the address of a [`Settings`]; the client's list tells a
//! live one from one that was used or freed.

use alloc::boxed::Box;

use wdk_standin::wdk_sys::{
    _WDF_DEVICE_IO_TYPE as IoType, _WDF_FILEOBJECT_CLASS as FileClass, BOOLEAN,
    FILE_DEVICE_SECURE_OPEN, FILE_DEVICE_UNKNOWN, GUID, NTSTATUS, PCUNICODE_STRING,
    PFN_WDF_DEVICE_SHUTDOWN_NOTIFICATION, PFN_WDF_IO_IN_CALLER_CONTEXT, PWDF_DRIVER_GLOBALS,
    PWDF_FILEOBJECT_CONFIG, PWDF_OBJECT_ATTRIBUTES, PWDFDEVICE_INIT, STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS, UCHAR, ULONG, WDF_DEVICE_IO_TYPE, WDF_FILEOBJECT_CONFIG, WDFDRIVER,
};

use crate::{
    call::Call,
    nt::{irql, text::Text, violation},
    object::Attributes,
    sddl::Descriptor,
};

/// WdfDeviceShutdown.
const SHUTDOWN: UCHAR = 1;

pub(crate) struct Settings {
    pub(crate) name: Option<Text>,
    pub(crate) descriptor: Descriptor,
    pub(crate) device_type: ULONG,
    pub(crate) characteristics: ULONG,
    pub(crate) exclusive: bool,
    pub(crate) io_type: WDF_DEVICE_IO_TYPE,
    pub(crate) file_config: Option<WDF_FILEOBJECT_CONFIG>,
    pub(crate) file_attributes: Attributes,
    pub(crate) request_attributes: Attributes,
    pub(crate) shutdown: PFN_WDF_DEVICE_SHUTDOWN_NOTIFICATION,
    pub(crate) in_caller_context: PFN_WDF_IO_IN_CALLER_CONTEXT,
}

/// The live settings behind a driver's pointer.
#[allow(clippy::mut_from_ref)]
fn settings(call: &Call, init: PWDFDEVICE_INIT) -> &mut Settings {
    let live = call.client().inits.lock().contains(&init.addr());
    call.require(
        live,
        format_args!("DeviceInit was not given by the framework, or is used up"),
    );
    // SAFETY: in the list, so not freed; the driver uses it in one thread.
    unsafe { &mut *init.cast::<Settings>() }
}

/// Gives settings into the driver's hands.
pub(crate) fn give(call: &Call, settings: Box<Settings>) -> PWDFDEVICE_INIT {
    let init: PWDFDEVICE_INIT = Box::into_raw(settings).cast();
    call.client().inits.lock().push(init.addr());
    init
}

/// Takes the settings out of the driver's hands.
pub(crate) fn take(call: &Call, init: PWDFDEVICE_INIT) -> Box<Settings> {
    let _ = settings(call, init);
    call.client()
        .inits
        .lock()
        .retain(|other| *other != init.addr());
    // SAFETY: made by `Box::into_raw` and in the list until now.
    unsafe { Box::from_raw(init.cast::<Settings>()) }
}

fn descriptor(call: &Call, text: PCUNICODE_STRING) -> Option<Descriptor> {
    // SAFETY: the driver's string.
    let text = unsafe { Text::copy(text) }?;
    let descriptor = Descriptor::parse(text.units());
    if descriptor.is_none() {
        violation::print(format_args!(
            "{}: not a security descriptor: {}",
            call.name(),
            text.to_text()
        ));
    }
    descriptor
}

pub(crate) unsafe extern "C" fn wdf_control_device_init_allocate(
    globals: PWDF_DRIVER_GLOBALS,
    driver: WDFDRIVER,
    sddl: PCUNICODE_STRING,
) -> PWDFDEVICE_INIT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfControlDeviceInitAllocate", irql::PASSIVE, globals) };
    let _ = call.driver_object(driver);
    call.require(!sddl.is_null(), format_args!("SDDLString is null"));
    let Some(descriptor) = descriptor(&call, sddl) else {
        return core::ptr::null_mut();
    };
    let settings = Box::new(Settings {
        name: None,
        descriptor,
        device_type: FILE_DEVICE_UNKNOWN,
        // The framework always sets it, for every control device.
        characteristics: FILE_DEVICE_SECURE_OPEN,
        exclusive: false,
        io_type: IoType::WdfDeviceIoBuffered,
        file_config: None,
        file_attributes: Attributes::default(),
        request_attributes: Attributes::default(),
        shutdown: None,
        in_caller_context: None,
    });
    give(&call, settings)
}

pub(crate) unsafe extern "C" fn wdf_device_init_free(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitFree", irql::DISPATCH, globals) };
    drop(take(&call, init));
}

pub(crate) unsafe extern "C" fn wdf_control_device_init_set_shutdown_notification(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    notification: PFN_WDF_DEVICE_SHUTDOWN_NOTIFICATION,
    flags: UCHAR,
) {
    // SAFETY: a driver's call.
    let call = unsafe {
        Call::enter(
            "WdfControlDeviceInitSetShutdownNotification",
            irql::PASSIVE,
            globals,
        )
    };
    call.require(
        flags == SHUTDOWN,
        format_args!("Flags {flags:#x}: only WdfDeviceShutdown is supported"),
    );
    call.require(notification.is_some(), format_args!("Notification is null"));
    settings(&call, init).shutdown = notification;
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_io_type(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    io_type: WDF_DEVICE_IO_TYPE,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetIoType", irql::DISPATCH, globals) };
    call.require(
        (IoType::WdfDeviceIoNeither..=IoType::WdfDeviceIoDirect).contains(&io_type),
        format_args!("IoType {io_type} is invalid for a control device"),
    );
    settings(&call, init).io_type = io_type;
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_exclusive(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    exclusive: BOOLEAN,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetExclusive", irql::PASSIVE, globals) };
    settings(&call, init).exclusive = exclusive != 0;
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_device_type(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    device_type: ULONG,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetDeviceType", irql::PASSIVE, globals) };
    settings(&call, init).device_type = device_type;
}

pub(crate) unsafe extern "C" fn wdf_device_init_assign_name(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    name: PCUNICODE_STRING,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitAssignName", irql::PASSIVE, globals) };
    // SAFETY: the driver's string.
    settings(&call, init).name = unsafe { Text::copy(name) };
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_device_init_assign_sddl_string(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    sddl: PCUNICODE_STRING,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitAssignSDDLString", irql::PASSIVE, globals) };
    let settings = settings(&call, init);
    match descriptor(&call, sddl) {
        Some(descriptor) => {
            settings.descriptor = descriptor;
            STATUS_SUCCESS
        }
        None => STATUS_INVALID_PARAMETER,
    }
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_device_class(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    class: *const GUID,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetDeviceClass", irql::PASSIVE, globals) };
    call.require(!class.is_null(), format_args!("DeviceClassGuid is null"));
    // The class only names overrides in the registry; this machine has none.
    let _ = settings(&call, init);
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_characteristics(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    characteristics: ULONG,
    or_in: BOOLEAN,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetCharacteristics", irql::PASSIVE, globals) };
    let settings = settings(&call, init);
    if or_in == 0 {
        settings.characteristics = 0;
    }
    settings.characteristics |= characteristics | FILE_DEVICE_SECURE_OPEN;
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_file_object_config(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    config: PWDF_FILEOBJECT_CONFIG,
    attributes: PWDF_OBJECT_ATTRIBUTES,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetFileObjectConfig", irql::PASSIVE, globals) };
    let config: WDF_FILEOBJECT_CONFIG = call.read(config, "WDF_FILEOBJECT_CONFIG");
    call.size(
        "WDF_FILEOBJECT_CONFIG",
        config.Size,
        size_of::<WDF_FILEOBJECT_CONFIG>(),
    );
    let class = config.FileObjectClass & !FileClass::WdfFileObjectCanBeOptional;
    call.require(
        (FileClass::WdfFileObjectNotRequired..=FileClass::WdfFileObjectWdfCannotUseFsContexts)
            .contains(&class),
        format_args!("FileObjectClass {:#x} is invalid", config.FileObjectClass),
    );
    call.require(
        (0..=2).contains(&config.AutoForwardCleanupClose),
        format_args!("AutoForwardCleanupClose is invalid"),
    );
    let attributes = Attributes::read(&call, attributes);
    call.require(
        attributes.is_ok(),
        format_args!("FileObjectAttributes are invalid"),
    );
    let settings = settings(&call, init);
    settings.file_attributes = attributes.unwrap_or_default();
    settings.file_config = Some(config);
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_request_attributes(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    attributes: PWDF_OBJECT_ATTRIBUTES,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceInitSetRequestAttributes", irql::DISPATCH, globals) };
    let attributes = Attributes::read(&call, attributes);
    call.require(
        attributes.is_ok(),
        format_args!("RequestAttributes are invalid"),
    );
    settings(&call, init).request_attributes = attributes.unwrap_or_default();
}

pub(crate) unsafe extern "C" fn wdf_device_init_set_io_in_caller_context_callback(
    globals: PWDF_DRIVER_GLOBALS,
    init: PWDFDEVICE_INIT,
    callback: PFN_WDF_IO_IN_CALLER_CONTEXT,
) {
    // SAFETY: a driver's call.
    let call = unsafe {
        Call::enter(
            "WdfDeviceInitSetIoInCallerContextCallback",
            irql::PASSIVE,
            globals,
        )
    };
    call.require(
        callback.is_some(),
        format_args!("EvtIoInCallerContext is null"),
    );
    settings(&call, init).in_caller_context = callback;
}
