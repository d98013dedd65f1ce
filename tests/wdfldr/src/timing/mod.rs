//! Timers, DPCs and work items: callbacks that do not come from a request.

mod dpc;
mod passive;
mod timer;
mod work_item;

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{NTSTATUS, PDEVICE_OBJECT};

pub(crate) use dpc::*;
pub(crate) use timer::*;
pub(crate) use work_item::*;

use crate::{
    call::Call,
    object::{Attributes, Kind, Object, Parent, STORE, store::Handle},
};

/// Automatic serialization asks for callbacks of one level.
const STATUS_WDF_INCOMPATIBLE_EXECUTION_LEVEL: NTSTATUS = 0xC020_020C_u32.cast_signed();

/// An object that no WdfObjectDelete has touched yet.
fn live(handle: Handle) -> Option<Arc<Object>> {
    let store = STORE.lock();
    if store.is_deleted(handle).ok()? {
        return None;
    }
    store.get(handle).ok().cloned()
}

/// The parent that the driver names, and the device above it.
fn parent_device(
    call: &Call,
    attributes: &Attributes,
) -> Result<(Arc<Object>, Option<PDEVICE_OBJECT>), NTSTATUS> {
    let parent = attributes
        .parent(call, Parent::Required)?
        .map(|parent| call.any(parent));
    let Some(parent) = parent else {
        return Err(wdk_standin::wdk_sys::STATUS_INVALID_PARAMETER);
    };
    let mut above = Some(parent.handle());
    while let Some(handle) = above {
        let object = call.any(handle);
        if let Kind::Device(device) = &object.kind {
            return Ok((parent, Some(device.wdm)));
        }
        above = STORE.lock().parent(handle).ok().flatten();
    }
    Ok((parent, None))
}
