//! The control device `\\.\hvdetect`.
//!
//! Administrators and the system may open it, several at once: a `status` must
//! work while a `watch` holds a handle. Created by DriverEntry; the framework
//! deletes it, its link and its queues after the driver's unload callback.
//!
//! All callbacks run at PASSIVE_LEVEL and take no lock but those of the modules
//! that they call.

use core::sync::atomic::{AtomicU32, Ordering};

use detector::lifecycle::Call;

use crate::control::Driver;
use crate::queue;
use crate::status::Status;
use crate::unicode::wide;
use crate::waiters::{self, Parking};
use crate::wdk_crates::wdk_sys::{
    _WDF_DEVICE_IO_TYPE, _WDF_DEVICE_SHUTDOWN_FLAGS, _WDF_EXECUTION_LEVEL, _WDF_FILEOBJECT_CLASS,
    _WDF_IO_QUEUE_DISPATCH_TYPE, _WDF_SYNCHRONIZATION_SCOPE, _WDF_TRI_STATE, NT_SUCCESS, NTSTATUS,
    PWDFDEVICE_INIT, STATUS_SUCCESS, UNICODE_STRING, WDF_EXECUTION_LEVEL, WDF_FILEOBJECT_CONFIG,
    WDF_IO_QUEUE_CONFIG, WDF_NO_OBJECT_ATTRIBUTES, WDF_OBJECT_ATTRIBUTES, WDF_WORKITEM_CONFIG,
    WDFDEVICE, WDFDRIVER, WDFFILEOBJECT, WDFQUEUE, WDFREQUEST, WDFWORKITEM,
    call_unsafe_wdf_function_binding,
};

/// Handles that may be open at once.
const MOST_HANDLES: u32 = 64;

static HANDLES: AtomicU32 = AtomicU32::new(0);

/// System and administrators may do everything, nobody else anything
/// (`SDDL_DEVOBJ_SYS_ALL_ADM_ALL`).
const SECURITY: &str = "D:P(A;;GA;;;SY)(A;;GA;;;BA)";

fn check(status: NTSTATUS) -> Result<(), Status> {
    if NT_SUCCESS(status) {
        Ok(())
    } else {
        Err(Status::from_nt(status))
    }
}

fn attributes(level: WDF_EXECUTION_LEVEL) -> WDF_OBJECT_ATTRIBUTES {
    WDF_OBJECT_ATTRIBUTES {
        Size: size_u32::<WDF_OBJECT_ATTRIBUTES>(),
        ExecutionLevel: level,
        SynchronizationScope: _WDF_SYNCHRONIZATION_SCOPE::WdfSynchronizationScopeInheritFromParent,
        ..WDF_OBJECT_ATTRIBUTES::default()
    }
}

/// Size of a structure as its `Size` field has it.
pub(crate) const fn size_u32<T>() -> u32 {
    assert!(size_of::<T>() <= 0xFFFF, "a structure of the framework");
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let size = size_of::<T>() as u32;
    size
}

/// What a device is made of until the framework takes it over.
struct Init(PWDFDEVICE_INIT);

impl Drop for Init {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: WdfDeviceCreate, which takes it over, has set it to null
            // if it succeeded.
            unsafe { call_unsafe_wdf_function_binding!(WdfDeviceInitFree, self.0) };
        }
    }
}

/// Creates the device with its link and queues, and opens it for requests.
pub(crate) fn create(handle: WDFDRIVER, driver: &Driver) -> Result<(), Status> {
    let security: UNICODE_STRING = wide!(SECURITY);
    // SAFETY: the driver handle is live, the string is constant.
    let init = unsafe {
        call_unsafe_wdf_function_binding!(WdfControlDeviceInitAllocate, handle, &raw const security)
    };
    if init.is_null() {
        return Err(Status::NO_MEMORY);
    }
    let mut init = Init(init);
    describe(&init)?;

    let mut attributes = attributes(_WDF_EXECUTION_LEVEL::WdfExecutionLevelPassive);
    let mut device: WDFDEVICE = core::ptr::null_mut();
    // SAFETY: the init structure is complete; on success it becomes null.
    check(unsafe {
        call_unsafe_wdf_function_binding!(
            WdfDeviceCreate,
            &raw mut init.0,
            &raw mut attributes,
            &raw mut device
        )
    })?;
    let link: UNICODE_STRING = wide!("\\DosDevices\\hvdetect");
    // SAFETY: the device was created just now; the string is constant.
    check(unsafe {
        call_unsafe_wdf_function_binding!(WdfDeviceCreateSymbolicLink, device, &raw const link)
    })?;
    create_queue(device, &mut default_queue())?;
    driver.findings.set_parking(Parking {
        parked: create_queue(device, &mut manual_queue())?,
        seen: create_queue(device, &mut manual_queue())?,
        look: create_work_item(device, waiters::on_look)?,
    });
    // SAFETY: the device is complete; requests are welcome from here on.
    unsafe { call_unsafe_wdf_function_binding!(WdfControlFinishInitializing, device) };
    Ok(())
}

/// Sets what a control device may have; its type stays unknown, since no call for
/// that is among those that Microsoft allows here ("Using Control Device Objects").
fn describe(init: &Init) -> Result<(), Status> {
    let name: UNICODE_STRING = wide!("\\Device\\hvdetect");
    // SAFETY: the init structure is live; the framework copies the string.
    check(unsafe {
        call_unsafe_wdf_function_binding!(WdfDeviceInitAssignName, init.0, &raw const name)
    })?;
    // SAFETY: the init structure is live.
    unsafe { call_unsafe_wdf_function_binding!(WdfDeviceInitSetExclusive, init.0, 0) };
    // SAFETY: as above.
    unsafe {
        call_unsafe_wdf_function_binding!(
            WdfDeviceInitSetIoType,
            init.0,
            _WDF_DEVICE_IO_TYPE::WdfDeviceIoBuffered
        );
    };
    // SAFETY: as above; the callback lives as long as the image.
    unsafe {
        call_unsafe_wdf_function_binding!(
            WdfControlDeviceInitSetShutdownNotification,
            init.0,
            Some(on_shutdown),
            SHUTDOWN
        );
    };
    let mut files = WDF_FILEOBJECT_CONFIG {
        Size: size_u32::<WDF_FILEOBJECT_CONFIG>(),
        EvtDeviceFileCreate: Some(on_create),
        EvtFileClose: Some(on_close),
        EvtFileCleanup: None,
        AutoForwardCleanupClose: _WDF_TRI_STATE::WdfUseDefault,
        FileObjectClass: _WDF_FILEOBJECT_CLASS::WdfFileObjectWdfCannotUseFsContexts,
    };
    // SAFETY: as above; the framework copies the structure.
    unsafe {
        call_unsafe_wdf_function_binding!(
            WdfDeviceInitSetFileObjectConfig,
            init.0,
            &raw mut files,
            WDF_NO_OBJECT_ATTRIBUTES
        );
    };
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "the flag is 1")]
const SHUTDOWN: u8 = _WDF_DEVICE_SHUTDOWN_FLAGS::WdfDeviceShutdown as u8;

fn default_queue() -> WDF_IO_QUEUE_CONFIG {
    let mut config = WDF_IO_QUEUE_CONFIG {
        Size: size_u32::<WDF_IO_QUEUE_CONFIG>(),
        DispatchType: _WDF_IO_QUEUE_DISPATCH_TYPE::WdfIoQueueDispatchParallel,
        PowerManaged: _WDF_TRI_STATE::WdfUseDefault,
        DefaultQueue: 1,
        EvtIoDeviceControl: Some(queue::on_device_control),
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    // Zero would mean that no request is ever presented.
    config.Settings.Parallel.NumberOfPresentedRequests = u32::MAX;
    config
}

fn manual_queue() -> WDF_IO_QUEUE_CONFIG {
    WDF_IO_QUEUE_CONFIG {
        Size: size_u32::<WDF_IO_QUEUE_CONFIG>(),
        DispatchType: _WDF_IO_QUEUE_DISPATCH_TYPE::WdfIoQueueDispatchManual,
        PowerManaged: _WDF_TRI_STATE::WdfUseDefault,
        ..WDF_IO_QUEUE_CONFIG::default()
    }
}

fn create_queue(device: WDFDEVICE, config: &mut WDF_IO_QUEUE_CONFIG) -> Result<WDFQUEUE, Status> {
    let mut queue: WDFQUEUE = core::ptr::null_mut();
    // SAFETY: the device is live; the framework copies the configuration.
    check(unsafe {
        call_unsafe_wdf_function_binding!(
            WdfIoQueueCreate,
            device,
            core::ptr::from_mut(config),
            WDF_NO_OBJECT_ATTRIBUTES,
            &raw mut queue
        )
    })?;
    Ok(queue)
}

/// A work item of the device.
fn create_work_item(
    device: WDFDEVICE,
    callback: unsafe extern "C" fn(WDFWORKITEM),
) -> Result<WDFWORKITEM, Status> {
    let mut config = WDF_WORKITEM_CONFIG {
        Size: size_u32::<WDF_WORKITEM_CONFIG>(),
        EvtWorkItemFunc: Some(callback),
        // The device serializes nothing.
        AutomaticSerialization: 0,
    };
    let mut attributes = attributes(_WDF_EXECUTION_LEVEL::WdfExecutionLevelInheritFromParent);
    attributes.ParentObject = device.cast();
    let mut item: WDFWORKITEM = core::ptr::null_mut();
    // SAFETY: the device is live; the framework copies both structures.
    check(unsafe {
        call_unsafe_wdf_function_binding!(
            WdfWorkItemCreate,
            &raw mut config,
            &raw mut attributes,
            &raw mut item
        )
    })?;
    Ok(item)
}

unsafe extern "C" fn on_create(_device: WDFDEVICE, request: WDFREQUEST, _file: WDFFILEOBJECT) {
    let one_more = |open: u32| (open < MOST_HANDLES).then_some(open + 1);
    let opened = HANDLES.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
    let status = match opened {
        Ok(_) => STATUS_SUCCESS,
        Err(_) => Status::TOO_MANY_HANDLES.as_nt(),
    };
    // SAFETY: the create request is ours and is not used after this.
    unsafe { call_unsafe_wdf_function_binding!(WdfRequestComplete, request, status) };
}

unsafe extern "C" fn on_close(_file: WDFFILEOBJECT) {
    HANDLES.fetch_sub(1, Ordering::AcqRel);
}

/// The system goes down: the machine is given back before it does.
unsafe extern "C" fn on_shutdown(_device: WDFDEVICE) {
    if let Some(driver) = Driver::get() {
        // A core that cannot leave changes nothing about the shutdown.
        let _ = driver.end(Call::Shutdown);
    }
}
