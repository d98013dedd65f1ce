//! `StartIo` on top of the device's queue.
//!
//! The queue is the device object's own `KDEVICE_QUEUE`. IRQL DISPATCH_LEVEL, or
//! below it where Microsoft says so.

use wdk_standin::wdk_sys::{
    BOOLEAN, KDEVICE_QUEUE, KDEVICE_QUEUE_ENTRY, PDEVICE_OBJECT, PDRIVER_CANCEL, PIRP, ULONG,
};

use super::irp::exchange_cancel_routine;
use crate::ke::irql::{self, DISPATCH_LEVEL, require_irql, require_irql_exact};
use crate::ob::argument::{borrow, own};

type Queue = *mut KDEVICE_QUEUE;
type Entry = *mut KDEVICE_QUEUE_ENTRY;

unsafe extern "C" {
    fn KeInsertDeviceQueue(queue: Queue, entry: Entry) -> BOOLEAN;
    fn KeInsertByKeyDeviceQueue(queue: Queue, entry: Entry, key: ULONG) -> BOOLEAN;
    fn KeRemoveDeviceQueue(queue: Queue) -> Entry;
    fn KeRemoveByKeyDeviceQueue(queue: Queue, key: ULONG) -> Entry;
}

fn insert(queue: Queue, entry: Entry, key: Option<u32>) -> BOOLEAN {
    match key {
        // SAFETY: the queue of a live device, at DISPATCH_LEVEL.
        Some(key) => unsafe { KeInsertByKeyDeviceQueue(queue, entry, key) },
        // SAFETY: as above.
        None => unsafe { KeInsertDeviceQueue(queue, entry) },
    }
}

fn entry_of(irp: PIRP) -> Entry {
    (&raw mut own!(irp).Tail).cast()
}

fn irp_of(entry: Entry) -> PIRP {
    entry
        .wrapping_byte_sub(core::mem::offset_of!(wdk_standin::wdk_sys::IRP, Tail))
        .cast()
}

fn start_io(device: PDEVICE_OBJECT, irp: PIRP) {
    let driver = own!(own!(device).DriverObject);
    if let Some(routine) = driver.DriverStartIo {
        // SAFETY: the driver's routine, at DISPATCH_LEVEL as documented.
        unsafe { routine(device, irp) };
    }
}

fn at_dispatch(f: impl FnOnce()) {
    let old = irql::raise(DISPATCH_LEVEL);
    f();
    irql::lower(old);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartPacket(
    device: PDEVICE_OBJECT,
    irp: PIRP,
    key: *mut ULONG,
    cancel: PDRIVER_CANCEL,
) {
    const API: &str = "IoStartPacket";
    require_irql(DISPATCH_LEVEL, API);
    let state = borrow!(device, API);
    let key = if key.is_null() {
        None
    } else {
        Some(*borrow!(key, API))
    };
    at_dispatch(|| {
        if cancel.is_some() {
            let _ = exchange_cancel_routine(irp, cancel);
        }
        if insert(&raw mut state.DeviceQueue, entry_of(irp), key) == 0 {
            state.CurrentIrp = irp;
            start_io(device, irp);
        }
    });
}

fn next(device: PDEVICE_OBJECT, key: Option<u32>, api: &str) {
    require_irql_exact(DISPATCH_LEVEL, api);
    let state = borrow!(device, api);
    state.CurrentIrp = core::ptr::null_mut();
    let queue = &raw mut state.DeviceQueue;
    let entry = match key {
        // SAFETY: the queue of a live device, at DISPATCH_LEVEL.
        Some(key) => unsafe { KeRemoveByKeyDeviceQueue(queue, key) },
        // SAFETY: as above.
        None => unsafe { KeRemoveDeviceQueue(queue) },
    };
    if !entry.is_null() {
        let irp = irp_of(entry);
        state.CurrentIrp = irp;
        start_io(device, irp);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartNextPacket(device: PDEVICE_OBJECT, _cancelable: BOOLEAN) {
    next(device, None, "IoStartNextPacket");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartNextPacketByKey(
    device: PDEVICE_OBJECT,
    _cancelable: BOOLEAN,
    key: ULONG,
) {
    next(device, Some(key), "IoStartNextPacketByKey");
}
