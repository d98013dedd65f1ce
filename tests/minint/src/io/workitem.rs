//! Work items of devices and drivers.
//!
//! The item keeps its device or driver object alive while it is queued. IRQL at
//! most DISPATCH_LEVEL; the routine runs at PASSIVE_LEVEL in a system worker.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{DEVICE_OBJECT, DRIVER_OBJECT, PDEVICE_OBJECT, PVOID, ULONG};

use crate::ex::work::SYSTEM;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own};
use crate::ob::{self, ObType};

type Routine = unsafe extern "C" fn(PVOID, PVOID);
type RoutineEx = unsafe extern "C" fn(PVOID, PVOID, *mut Item);

/// `IO_WORKITEM`: opaque to drivers, `IoSizeofWorkItem` bytes long.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Item {
    object: usize,
    queued: AtomicBool,
    allocated: bool,
}

/// Items of `IoAllocateWorkItem` that are not freed.
static ITEMS: SpinLock<Vec<usize>> = SpinLock::new(Vec::new());

fn driver_of(object: *mut c_void) -> *mut DRIVER_OBJECT {
    match ob::kind_of(object) {
        Some(ObType::Device) => own!(object.cast::<DEVICE_OBJECT>()).DriverObject,
        _ => object.cast(),
    }
}

/// Calls `visit` with each item and the driver object it belongs to.
pub(crate) fn outstanding(visit: &mut dyn FnMut(usize, usize)) {
    let all = ITEMS.lock().clone();
    for address in all {
        let item = &*own!(core::ptr::with_exposed_provenance_mut::<Item>(address));
        let object = core::ptr::with_exposed_provenance_mut::<c_void>(item.object);
        visit(address, driver_of(object).addr());
    }
}

fn check_object(object: PVOID, api: &str) {
    let kind = ob::kind_of(object);
    crate::require!(
        matches!(kind, Some(ObType::Device | ObType::Driver)),
        api,
        "{:p} is neither a device nor a driver object",
        object
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoAllocateWorkItem(device: PDEVICE_OBJECT) -> *mut Item {
    const API: &str = "IoAllocateWorkItem";
    require_irql(DISPATCH_LEVEL, API);
    check_object(device.cast(), API);
    let item = Box::into_raw(Box::new(Item {
        object: device.expose_provenance(),
        queued: AtomicBool::new(false),
        allocated: true,
    }));
    ITEMS.lock().push(item.expose_provenance());
    item
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoFreeWorkItem(item: *mut Item) {
    const API: &str = "IoFreeWorkItem";
    require_irql(DISPATCH_LEVEL, API);
    let known = {
        let mut items = ITEMS.lock();
        let at = items.iter().position(|&other| other == item.addr());
        at.map(|at| items.swap_remove(at)).is_some()
    };
    crate::require!(
        known,
        API,
        "{:p} did not come from IoAllocateWorkItem",
        item
    );
    crate::require!(
        !own!(item).queued.load(Ordering::SeqCst),
        API,
        "the work item is still queued"
    );
    // SAFETY: made by `IoAllocateWorkItem`, out of the table now.
    drop(unsafe { Box::from_raw(item) });
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoSizeofWorkItem() -> ULONG {
    64
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoInitializeWorkItem(object: PVOID, item: *mut Item) {
    const API: &str = "IoInitializeWorkItem";
    require_irql(DISPATCH_LEVEL, API);
    check_object(object, API);
    crate::ob::argument::put!(
        item,
        Item {
            object: object.expose_provenance(),
            queued: AtomicBool::new(false),
            allocated: false,
        },
        API
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoUninitializeWorkItem(item: *mut Item) {
    const API: &str = "IoUninitializeWorkItem";
    require_irql(DISPATCH_LEVEL, API);
    let item = borrow!(item, API);
    crate::require!(
        !item.allocated,
        API,
        "the item came from IoAllocateWorkItem"
    );
    crate::require!(
        !item.queued.load(Ordering::SeqCst),
        API,
        "the work item is still queued"
    );
}

/// Addresses for the worker.
#[derive(Clone, Copy)]
struct Call {
    item: usize,
    object: usize,
    routine: usize,
    context: usize,
    extended: bool,
}

fn queue(item: *mut Item, routine: usize, context: PVOID, extended: bool, api: &str) {
    require_irql(DISPATCH_LEVEL, api);
    let state = borrow!(item, api);
    crate::require!(routine != 0, api, "the routine is NULL");
    crate::require!(
        !state.queued.swap(true, Ordering::SeqCst),
        api,
        "the work item at {:p} is queued already",
        item
    );
    let object = core::ptr::with_exposed_provenance_mut::<c_void>(state.object);
    let _ = ob::reference(object, api);
    let call = Call {
        item: item.expose_provenance(),
        object: state.object,
        routine,
        context: context.expose_provenance(),
        extended,
    };
    SYSTEM.add(Box::new(move || run(call)));
}

fn run(call: Call) {
    let item = core::ptr::with_exposed_provenance_mut::<Item>(call.item);
    let object = core::ptr::with_exposed_provenance_mut::<c_void>(call.object);
    let context = core::ptr::with_exposed_provenance_mut::<c_void>(call.context);
    // The routine may queue or free the item.
    own!(item).queued.store(false, Ordering::SeqCst);
    if call.extended {
        // SAFETY: an `IO_WORKITEM_ROUTINE_EX`, by its contract.
        let routine: RoutineEx = unsafe { core::mem::transmute(call.routine) };
        // SAFETY: the device keeps the driver loaded.
        unsafe { routine(object, context, item) };
    } else {
        // SAFETY: an `IO_WORKITEM_ROUTINE`, by its contract.
        let routine: Routine = unsafe { core::mem::transmute(call.routine) };
        // SAFETY: the device keeps the driver loaded.
        unsafe { routine(object, context) };
    }
    let _ = ob::dereference(object, "IoQueueWorkItem");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoQueueWorkItem(
    item: *mut Item,
    routine: Option<Routine>,
    _queue: ULONG,
    context: PVOID,
) {
    queue(
        item,
        routine.map_or(0, |routine| routine as usize),
        context,
        false,
        "IoQueueWorkItem",
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoQueueWorkItemEx(
    item: *mut Item,
    routine: Option<RoutineEx>,
    _queue: ULONG,
    context: PVOID,
) {
    queue(
        item,
        routine.map_or(0, |routine| routine as usize),
        context,
        true,
        "IoQueueWorkItemEx",
    );
}
