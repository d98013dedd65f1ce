//! The driver object: creation, unload, end.

use alloc::{sync::Arc, vec::Vec};

use wdk_standin::wdk_sys::{
    _WDF_DRIVER_INIT_FLAGS as Flags, DRIVER_OBJECT, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT,
    PWDF_DRIVER_CONFIG, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES, PWSTR,
    STATUS_DRIVER_INTERNAL_ERROR, STATUS_INVALID_PARAMETER, WDF_DRIVER_CONFIG, WDFDRIVER,
};

use crate::{
    call::Call,
    client::{self, Client},
    device,
    nt::{irql, spinlock::SpinLock, violation},
    object::{self, Attributes, Kind, Parent, store::Handle},
};

pub(crate) struct Driver {
    /// In order of creation.
    pub(crate) devices: SpinLock<Vec<Handle>>,
}

pub(crate) unsafe extern "C" fn wdf_driver_create(
    globals: PWDF_DRIVER_GLOBALS,
    driver_object: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    config: PWDF_DRIVER_CONFIG,
    driver: *mut WDFDRIVER,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDriverCreate", irql::PASSIVE, globals) };
    call.require(
        driver_object == call.client().driver_object,
        format_args!("DriverObject is not the one that was bound"),
    );
    let config: WDF_DRIVER_CONFIG = call.read(config, "WDF_DRIVER_CONFIG");
    call.size(
        "WDF_DRIVER_CONFIG",
        config.Size,
        size_of::<WDF_DRIVER_CONFIG>(),
    );
    let non_pnp = config.DriverInitFlags & Flags::WdfDriverInitNonPnpDriver as u32 != 0;
    if !non_pnp {
        violation::print(format_args!(
            "WdfDriverCreate: this framework serves drivers with WdfDriverInitNonPnpDriver only"
        ));
        return STATUS_INVALID_PARAMETER;
    }
    if config.EvtDriverDeviceAdd.is_some() {
        violation::print(format_args!(
            "WdfDriverCreate: a non-PnP driver has no EvtDriverDeviceAdd"
        ));
        return STATUS_INVALID_PARAMETER;
    }
    if call.client().driver().is_some() {
        violation::print(format_args!("WdfDriverCreate: called twice"));
        return STATUS_DRIVER_INTERNAL_ERROR;
    }
    let kind = Kind::Driver(Driver {
        devices: SpinLock::new(Vec::new()),
    });
    let made = Attributes::read(&call, attributes)
        .and_then(|attributes| object::create(&call, &attributes, Parent::Fixed(None), kind));
    let object = match made {
        Ok(object) => object,
        Err(status) => return status,
    };
    call.client().set_driver(Some(object.handle()));
    call.client().set_unload(config.EvtDriverUnload);
    // Without EvtDriverUnload the driver cannot be unloaded: the stub must not
    // put an unload routine there either.
    call.client()
        .set_displace_unload(config.EvtDriverUnload.is_some());
    // SAFETY: the driver's own object, in the thread that loads it.
    let wdm = unsafe { &mut *driver_object };
    if config.DriverInitFlags & Flags::WdfDriverInitNoDispatchOverride as u32 == 0 {
        for entry in &mut wdm.MajorFunction {
            *entry = Some(device::dispatch);
        }
    }
    wdm.DriverUnload = config.EvtDriverUnload.map(|_| unload as _);
    call.write_optional(driver, object.pointer());
    wdk_standin::wdk_sys::STATUS_SUCCESS
}

/// The driver object's unload routine; `FxDriverEntry`'s stub calls it.
unsafe extern "C" fn unload(driver_object: *mut DRIVER_OBJECT) {
    let Some(client) = client::of_driver_object(driver_object) else {
        return;
    };
    if let (Some(unload), Some(driver)) = (client.take_unload(), client.driver()) {
        let before = irql::current();
        // SAFETY: the driver's own callback with its own handle.
        unsafe { unload(driver.0 as WDFDRIVER) };
        object::check_irql(before, "EvtDriverUnload");
    }
    delete_devices(&client);
}

fn delete_devices(client: &Arc<Client>) {
    let Some(driver) = client.driver() else {
        return;
    };
    let call = Call::internal("EvtDriverUnload", client.clone());
    let devices: Vec<Handle> = {
        let object = call.any(driver);
        let Kind::Driver(driver) = &object.kind else {
            return;
        };
        core::mem::take(&mut *driver.devices.lock())
    };
    for device in devices.into_iter().rev() {
        object::delete(device, "unload");
    }
}

/// What remains of the driver in the framework ends.
pub(crate) fn tear_down(client: &Arc<Client>) {
    delete_devices(client);
    if let Some(driver) = client.driver() {
        object::delete(driver, "WdfVersionUnbind");
        client.set_driver(None);
    }
}

pub(crate) unsafe extern "C" fn wdf_driver_get_registry_path(
    globals: PWDF_DRIVER_GLOBALS,
    driver: WDFDRIVER,
) -> PWSTR {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDriverGetRegistryPath", irql::PASSIVE, globals) };
    let _ = call.driver_object(driver);
    call.client().registry_path.as_unicode().Buffer
}

pub(crate) unsafe extern "C" fn wdf_driver_wdm_get_driver_object(
    globals: PWDF_DRIVER_GLOBALS,
    driver: WDFDRIVER,
) -> PDRIVER_OBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDriverWdmGetDriverObject", irql::DISPATCH, globals) };
    let _ = call.driver_object(driver);
    call.client().driver_object
}

pub(crate) unsafe extern "C" fn wdf_verifier_dbg_break_point(globals: PWDF_DRIVER_GLOBALS) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfVerifierDbgBreakPoint", irql::DISPATCH, globals) };
    violation::print(format_args!(
        "{}: {} breaks",
        call.name(),
        call.client().text_name()
    ));
    wdk_standin::wdk::dbg_break();
}
