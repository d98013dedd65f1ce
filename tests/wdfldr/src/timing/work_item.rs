//! WDFWORKITEM.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    NTSTATUS, PDEVICE_OBJECT, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES, PWDF_WORKITEM_CONFIG,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_DEVICE_REQUEST, WDF_WORKITEM_CONFIG, WDFOBJECT,
    WDFWORKITEM,
};

use super::{live, parent_device, passive::Passive};
use crate::{
    call::Call,
    nt::irql,
    object::{self, Attributes, Kind, Parent, STORE, check_irql, store::Handle},
};

pub(crate) struct WorkItem {
    config: WDF_WORKITEM_CONFIG,
    passive: Passive,
}

impl WorkItem {
    /// No call is queued or runs any more.
    pub(crate) fn dispose(&self) {
        self.passive.wait();
    }
}

unsafe extern "C" fn run(_device: PDEVICE_OBJECT, context: *mut c_void) {
    let found = STORE.lock().get(Handle(context.addr() as u64)).cloned();
    if let Ok(object) = found
        && let Kind::WorkItem(item) = &object.kind
    {
        item.passive.run(|| {
            if let Some(callback) = item.config.EvtWorkItemFunc {
                let before = irql::current();
                // SAFETY: the driver's callback with its own handle.
                unsafe { callback(object.pointer::<_>()) };
                check_irql(before, "EvtWorkItem");
            }
        });
    }
}

pub(crate) unsafe extern "C" fn wdf_work_item_create(
    globals: PWDF_DRIVER_GLOBALS,
    config: PWDF_WORKITEM_CONFIG,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    item: *mut WDFWORKITEM,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWorkItemCreate", irql::DISPATCH, globals) };
    let config: WDF_WORKITEM_CONFIG = call.read(config, "WDF_WORKITEM_CONFIG");
    call.size(
        "WDF_WORKITEM_CONFIG",
        config.Size,
        size_of::<WDF_WORKITEM_CONFIG>(),
    );
    call.require(
        config.EvtWorkItemFunc.is_some(),
        format_args!("EvtWorkItemFunc is null"),
    );
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let (_, device) = parent_device(&call, &attributes)?;
        let device = device.ok_or(STATUS_INVALID_DEVICE_REQUEST)?;
        let passive = Passive::new(device).ok_or(STATUS_INSUFFICIENT_RESOURCES)?;
        let kind = Kind::WorkItem(WorkItem { config, passive });
        object::create(&call, &attributes, Parent::Required, kind)
    });
    if let Ok(object) = &made
        && let Kind::WorkItem(inner) = &object.kind
    {
        inner.passive.initialize();
    }
    call.finish(made, item)
}

pub(crate) unsafe extern "C" fn wdf_work_item_enqueue(
    globals: PWDF_DRIVER_GLOBALS,
    item: WDFWORKITEM,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWorkItemEnqueue", irql::DISPATCH, globals) };
    let item = call.work_item(item);
    call.require(
        live(item.object.handle()).is_some(),
        format_args!("the work item is being deleted"),
    );
    item.passive.queue(run, item.object.handle());
}

pub(crate) unsafe extern "C" fn wdf_work_item_get_parent_object(
    globals: PWDF_DRIVER_GLOBALS,
    item: WDFWORKITEM,
) -> WDFOBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWorkItemGetParentObject", irql::DISPATCH, globals) };
    let handle = call.work_item(item).object.handle();
    let parent = STORE.lock().parent(handle).ok().flatten();
    parent.map_or(core::ptr::null_mut(), |parent| parent.0 as WDFOBJECT)
}

pub(crate) unsafe extern "C" fn wdf_work_item_flush(
    globals: PWDF_DRIVER_GLOBALS,
    item: WDFWORKITEM,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWorkItemFlush", irql::PASSIVE, globals) };
    call.work_item(item).passive.wait();
}
